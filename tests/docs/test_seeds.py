"""The five seeds as recipes: each plans offline, has the parameters that it says, and runs; and recipes that begin with
the student of another."""

from __future__ import annotations

import itertools
import json
import os
import pty
import random
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from distillkit.cli.main import cli
from distillkit.core.errors import DataError, DistillkitError, Interrupted, UsageError
from distillkit.core.run_folder import Run, runs_of
from distillkit.data.tokenizer import Tokenizer
from distillkit.pipeline import base_run
from distillkit.pipeline.checks import check
from distillkit.pipeline.context import Context
from distillkit.pipeline.pipeline import STAGE_FUNCTIONS
from distillkit.pipeline.plan import build_plan
from distillkit.pipeline.plan_text import format_plan
from distillkit.pipeline.session import RunSession
from distillkit.plugins.manager import Plugins, current_plugins
from distillkit.recipe.recipe import bundled_recipes, load
from support.chat_provider import serving
from support.judge_provider import Judge
from support.paths import SHARED
from support.small_recipe import small

# What each document gives, counted by hand: tables, blocks of attention and MLP with their norms, the end.
GPT2_53M = 2 * 50257 * 384 + 512 * 384 + 8 * (384 * 1152 + 1152 + 384 * 384 + 384) + 2 * 384
GPT2_53M += 8 * (384 * 1536 + 1536 + 1536 * 384 + 384 + 4 * 384)
NANO_44M = 2 * 9157 * 512 + 9157 + 12 * (3 * (512 * 512 + 512) + 512 * 2048 + 2048 + 2048 * 512 + 512 + 4 * 512)
SIZES = {
    "tinystories_53m_base": 52_990_464,
    "tinystories_53m": 52_990_464,
    "finewebedu_53m": 52_990_464,
    "gpt2_nano_44m": 44_062_661,
    "slm_nano_1m": 1_032_672,
    "slm_tiny_10m": 10_080_320,
    "slm_small_28m": 29_499_904,
    "slm_medium_70m": 68_212_000,
}
EPOCHS = {
    "tinystories_53m_base": 92.16,
    "tinystories_53m": 25.5,
    "finewebedu_53m": 30.55,
    "gpt2_nano_44m": 3.31,
    "slm_nano_1m": 1.02,
    "slm_tiny_10m": 0.98,
    "slm_small_28m": 1.02,
    "slm_medium_70m": 2.04,
}

# What each recipe says. First what the issue and the documents give, then, below a line of dashes, what is ours.
ADAMW = {"train.schedule": "cosine", "train.weight_decay": 0.1, "train.clip": 1.0, "train.accumulate": 1}
GPT2 = {
    "student.arch": "gpt", "student.positions": "learned", "student.norm": "layernorm", "student.qk_norm": False,
    "student.kv_heads": None, "student.attention_out": True, "student.final_norm": True, "student.head_bias": False,
    "student.bias": True, "student.activation": "gelu", "student.from": None,
}  # fmt: skip
ALONE = {"teacher": None, "mixer": {"name": "hard"}, "judge": [{"name": "perplexity"}]}
BASE_53M = GPT2 | ADAMW | ALONE | {
    "data.source": "hub", "data.dataset": "tinystories", "data.tokens": 2_000_000, "tokenizer.kind": "gpt2",
    "student.layers": 8, "student.heads": 8, "student.width": 384, "student.hidden": 1536, "student.context": 512,
    "student.dropout": 0.1, "student.tied": False,
    "train.steps": 30_000, "train.batch_size": 12, "train.learning_rate": 3e-4, "train.final_learning_rate": 3e-5,
    "train.warmup": 2000, "train.betas": [0.9, 0.95], "train.evaluate_every": 500, "train.checkpoint_every": 500,
    "sampling.temperature": 0.8, "sampling.top_k": 50,
    # ----
    "data.block_chars": 8000,
}  # fmt: skip
TAUGHT_53M = BASE_53M | {
    "student.from": "tinystories_53m_base",
    "teacher.provider": "groq", "teacher.model": "openai/gpt-oss-20b", "teacher.prompts": 1100,
    "mixer": {"name": "sequence", "alpha": 0.7},
    "sampling.count": 50, "judge.0.name": "perplexity", "judge.1.name": "rubric",
    # ----
    "teacher.max_tokens": 512, "teacher.max_usd": 1.0, "sampling.max_tokens": 200,
    "judge.1.teacher.provider": "openai", "judge.1.teacher.model": "gpt-4.1-mini", "judge.1.teacher.max_usd": 1.0,
}  # fmt: skip
del TAUGHT_53M["teacher"], TAUGHT_53M["judge"]  # which are told key by key
GUIDE = GPT2 | ADAMW | ALONE | {
    "data.source": "hub", "data.dataset": "tinystories", "tokenizer.kind": "bpe", "tokenizer.vocab_size": 8192,
    "student.context": 256, "student.bias": False, "student.dropout": 0.1, "student.tied": True, "student.hidden": None,
    "sampling.temperature": 0.8, "sampling.top_k": 50, "sampling.max_tokens": 200,
    # ----
    "data.held_out": 0.01, "data.block_chars": 4000, "train.batch_size": 64, "train.final_learning_rate": None,
    "train.betas": [0.9, 0.95], "train.evaluate_every": 250, "train.checkpoint_every": 500,
}  # fmt: skip
FIGURES: dict[str, dict[str, Any]] = {
    "tinystories_53m_base": BASE_53M,
    "tinystories_53m": TAUGHT_53M | {
        "train.steps": 10_000,
        # ----
        "train.learning_rate": 1e-4, "train.final_learning_rate": 1e-5, "train.warmup": 200,
        "teacher.prompt_tokens": 32, "teacher.share": 0.17,
    },
    "finewebedu_53m": TAUGHT_53M | {
        "data.dataset": "fineweb-edu", "data.tokens": 10_000_000,
        "train.steps": 35_000, "train.final_learning_rate": 1.5e-5, "sampling.top_p": 0.95,
        # ----
        "data.held_out": 0.02, "teacher.prompt_tokens": 64, "teacher.share": 0.09, "sampling.prompts": "held_out",
        "judge.1.kind": "text", "judge.1.age_group": False,
    },
    "gpt2_nano_44m": GPT2 | ADAMW | ALONE | {
        "data.source": "hub", "data.dataset": "fineweb-edu", "data.tokens": 99_000_000,
        "tokenizer.kind": "bpe", "tokenizer.vocab_size": 9157,
        "student.layers": 12, "student.heads": 8, "student.width": 512, "student.hidden": 2048,
        "student.context": 1024, "student.positions": "sinusoidal", "student.activation": "relu",
        "student.attention_out": False, "student.final_norm": False, "student.tied": False, "student.head_bias": True,
        "train.steps": 10_000, "train.batch_size": 8, "train.accumulate": 4, "train.learning_rate": 3e-4,
        "train.sample_every": 500,
        # ----
        "data.held_out": 0.01, "data.block_chars": 6000, "student.dropout": 0.0, "train.final_learning_rate": 1e-6,
        "train.warmup": 0, "train.betas": [0.9, 0.999], "train.evaluate_every": 500, "train.checkpoint_every": 500,
    },
    # Of the guide's sizes all shapes, budgets and rates are ours.
    "slm_nano_1m": GUIDE | {
        "data.tokens": 20_000_000, "student.layers": 2, "student.heads": 3, "student.width": 96,
        "train.steps": 5000, "train.batch_size": 16, "train.learning_rate": 2e-3, "train.warmup": 200,
    },
    "slm_tiny_10m": GUIDE | {
        "data.tokens": 200_000_000, "student.layers": 6, "student.heads": 5, "student.width": 320,
        "train.steps": 12_000, "train.learning_rate": 1e-3, "train.warmup": 500,
    },
    "slm_small_28m": GUIDE | {
        "data.tokens": 450_000_000, "student.layers": 8, "student.heads": 8, "student.width": 512,
        "train.steps": 28_000, "train.learning_rate": 6e-4, "train.warmup": 1000,
    },
    "slm_medium_70m": GUIDE | {
        "data.tokens": 450_000_000, "student.layers": 8, "student.heads": 10, "student.width": 800,
        "train.steps": 28_000, "train.accumulate": 2, "train.learning_rate": 4e-4, "train.warmup": 1000,
    },
}  # fmt: skip

TEACHER = '''
from distillkit import Answer, Teacher, hookimpl

class RecordingTeacher(Teacher):
    """Ends every story alike."""
    name = "told"
    chats = True
    def answer(self, request):
        return Answer(text=" and they all went home.")

@hookimpl
def register_teachers():
    return [RecordingTeacher]
'''

BASE = small(
    "base",
    """
[train]
steps = 4
batch_size = 2
evaluate_every = 2
checkpoint_every = 2
[sampling]
count = 1
max_tokens = 4
""",
)
OUTER = """
extends = "base.toml"
name = "outer"
[student]
from = "base.toml"
[train]
learning_rate = 1e-4
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with two small recipes, the second of which begins with the first."""
    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path))
    monkeypatch.setattr("distillkit.plugins.manager._current", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "outer.toml").write_text(OUTER)
    (tmp_path / "told.py").write_text(TEACHER)
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket connects anywhere."""

    def refuse(*_: Any) -> None:
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def distillkit(*words: str) -> str:
    """The program in this process: what it says, or the error that it ends with."""
    done = CliRunner().invoke(cli, ["-p", "told.py", *words])
    if isinstance(done.exception, DistillkitError):
        raise done.exception
    assert done.exception is None, done.exception
    return done.output


def at_a_terminal(*words: str, answer: str) -> tuple[int, str]:
    """The program with somebody at a terminal who answers its question: how it ends, and all that stands there then."""
    theirs, ours = pty.openpty()
    command = [sys.executable, "-m", "distillkit", *words]
    with subprocess.Popen(command, stdin=ours, stdout=ours, stderr=ours, start_new_session=True) as program:
        os.close(ours)
        said = b""
        while more := read(theirs):
            asked, said = b"Continue?" in said, said + more
            if b"Continue?" in said and not asked:
                os.write(theirs, f"{answer}\n".encode())
    os.close(theirs)
    return program.returncode, said.decode()


def read(terminal: int) -> bytes:
    """What comes next; nothing once the program has ended, of which Linux makes an error."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def numbers(recipe: str) -> list[str]:
    return [run.path.name for run in runs_of(recipe)]


# Plans.


@pytest.mark.usefixtures("home", "offline")
@pytest.mark.parametrize("name", SIZES)
def test_every_seed_checks_and_plans_offline_with_the_parameters_that_it_says(name: str) -> None:
    recipe = Plugins.load().check(load(name))
    parts = Context(recipe, Plugins.load())
    if find_spec("datasets"):
        check(parts)
    foreseen = build_plan(parts)
    assert foreseen["student"]["parameters"]["unique"] == SIZES[name]
    assert foreseen["data"]["here"] is False
    assert foreseen["data"]["train"]["tokens"] == FIGURES[name]["data.tokens"]
    assert foreseen["training"]["epochs"] == pytest.approx(EPOCHS[name], abs=0.01)
    if recipe.teacher:
        assert foreseen["teacher"]["calls"] == recipe.teacher.prompts == 1100
    text = format_plan(foreseen)
    assert f"{SIZES[name]:,}" in text
    assert ("memorises its text" in text) == (EPOCHS[name] >= 4)
    assert ("distillkit plan tinystories_53m_base" in text) == (name in ("tinystories_53m", "finewebedu_53m"))


def at(tree: Any, key: str) -> Any:
    """What stands at a dotted key; None where nothing does."""
    for part in key.split("."):
        tree = tree[int(part)] if isinstance(tree, list) else (tree or {}).get(part)
    return tree


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("name", FIGURES)
def test_a_recipe_keeps_the_figures_of_its_document(name: str) -> None:
    parts = Context(Plugins.load().check(load(name)), Plugins.load())
    said = parts.recipe.values()
    said["student"] = parts.student.options.model_dump() | said["student"]  # and what it leaves to the student's own
    assert {key: at(said, key) for key in FIGURES[name]} == FIGURES[name]


@pytest.mark.parametrize("name", FIGURES)
def test_no_figure_of_a_recipe_is_missing_among_those_that_are_held(name: str) -> None:
    def keys(tree: Any, before: str = "") -> set[str]:
        if isinstance(tree, list) and isinstance(tree[0], dict):
            tree = dict(enumerate(tree))
        if not isinstance(tree, dict):
            return {before[1:]}
        return {key for inner, value in tree.items() for key in keys(value, f"{before}.{inner}")}

    written = keys(tomllib.loads(bundled_recipes()[name].read_text()))
    words = {"name", "extends", "teacher.system"} | {key for key in written if key.startswith("judge.1.criteria.")}
    assert written - keys(FIGURES[name]) <= words


def test_the_parameters_are_those_of_the_documents() -> None:
    assert SIZES["tinystories_53m_base"] == GPT2_53M
    assert SIZES["gpt2_nano_44m"] == NANO_44M
    for name, size in SIZES.items():
        said = re.search(r"_(\d+)m", name)
        assert said is not None
        assert abs(size / (1e6 * int(said[1])) - 1) <= 0.1


def test_every_seed_says_why() -> None:
    for name in SIZES:
        text = bundled_recipes()[name].read_text()
        assert text.startswith("#")
        assert str(load(name).name) == name
        assert f"{SIZES[name]:,}" in text or "extends" in text
        assert max(map(len, text.splitlines())) <= 120


@pytest.mark.usefixtures("offline")
def test_the_line_that_brings_the_temperature_back_is_what_it_takes(home: Path) -> None:
    (line,) = re.findall(r"^#     (mixer = .*)$", bundled_recipes()["tinystories_53m"].read_text(), re.MULTILINE)
    (home / "soft.toml").write_text(f'extends = "tinystories_53m"\nname = "soft"\n{line}\n')
    with pytest.raises(UsageError, match="alpha-temperature"):  # Groq gives no probabilities
        Plugins.load().check(load("soft.toml"))
    gives = ["teacher.provider=openai", "teacher.model=gpt-4.1-mini", "teacher.top_logprobs=20"]
    soft = Plugins.load().check(load("soft.toml", gives)).mixer
    assert (soft.name, soft.options) == ("alpha-temperature", {"alpha": 0.7, "temperature": 2.0})


@pytest.mark.usefixtures("home", "offline")
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("tinystories_53m_base", [["data.tokens"], ["train.steps"]]),
        ("tinystories_53m", [["data.tokens", "teacher.prompts"], ["train.steps"]]),
        ("finewebedu_53m", [["data.tokens", "teacher.prompts"], ["train.steps"]]),
    ],
)
def test_what_is_better_than_the_warning_is_no_longer_warned_of(name: str, keys: list[list[str]]) -> None:
    def advice(*overrides: str) -> str:
        parts = Context(Plugins.load().check(load(name, overrides)), Plugins.load())
        return build_plan(parts)["training"]["advice"] or ""

    ways = [re.findall(r"([\w.]+) = ([\d_]+)", way) for way in advice().split(" or ")]
    assert [[key for key, _ in way] for way in ways] == keys
    for way in ways:
        assert advice(*(f"{key}={value}" for key, value in way)) == ""


def test_more_text_of_a_prompts_file_is_asked_for_in_lines_and_only_where_there_are_too_few(home: Path) -> None:
    told = ["teacher.provider=told", "teacher.share=0.5", "teacher.prompt_tokens=4", "teacher.max_tokens=8"]

    def advice(lines: int, *more: str) -> str:
        (home / "prompts.txt").write_text("".join(f"Tell of fox {i}.\n" for i in range(lines)))
        keys = (*told, "teacher.prompts_file=prompts.txt", "teacher.prompts=0", "train.steps=20000", *more)
        parts = Context(Plugins.load(("told.py",)).check(load("base.toml", keys)), current_plugins())
        return build_plan(parts)["training"]["advice"] or ""

    few, many = advice(20), advice(9000)
    assert re.search(r"at least [\d,]+ lines in teacher\.prompts_file", few)
    assert "corpus of" in many
    assert "prompts" not in many  # it says nothing that would cut the file
    assert "at least teacher.prompts = " in advice(20, "teacher.prompts=20")


@pytest.mark.usefixtures("home", "offline")
def test_a_run_without_a_network_says_how_to_bring_a_copy(peer: Callable[[str], ModuleType]) -> None:
    peer("datasets")
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        distillkit("run", "slm_nano_1m")
    assert "--set data.source=text --set data.path=" in caught.value.hint
    assert numbers("slm_nano_1m") == []


@pytest.mark.usefixtures("home", "offline")
def test_a_library_that_is_missing_is_said_first_and_a_plan_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for words in (("recipe", "check"), ("run",), ("label",)):
        with pytest.raises(DataError, match="needs the package datasets, which is not installed") as caught:
            distillkit(*words, "slm_nano_1m")
        assert caught.value.exit_code == 2
        assert 'pip install "distillkit[hub]"' in caught.value.hint
        assert "--set data.source=text --set data.path=" in caught.value.hint
    assert "1,032,672 unique" in distillkit("plan", "slm_nano_1m")
    assert "is valid" in distillkit("recipe", "check", "slm_nano_1m", "--set", "data.source=tales")
    assert numbers("slm_nano_1m") == []


@pytest.mark.usefixtures("home", "offline")
def test_the_package_of_a_tokenizer_is_missed_first_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(DataError, match="sentencepiece"):
        distillkit("recipe", "check", "base.toml", "--set", "tokenizer.kind=sentencepiece")


def words_for(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


@pytest.mark.usefixtures("offline")
def test_a_key_that_is_missing_is_said_before_any_text_is_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GROQ_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    (home / "book.txt").write_text("One day a fox met a hen. " * 4000)
    text = words_for("data.source=text", "data.path=book.txt", "train.steps=20")
    with pytest.raises(UsageError, match="no key for the teacher 'groq'") as caught:
        distillkit("run", "tinystories_53m", "--yes", *text)
    assert (caught.value.exit_code, caught.value.hint) == (2, "Set GROQ_API_KEY, or write it to .env.")
    told = words_for("teacher.provider=told", "teacher.prompts=5")
    with pytest.raises(UsageError, match="'openai', which the judge 'rubric' asks") as caught:
        distillkit("run", "tinystories_53m", "--yes", *text, *told)
    assert "Set OPENAI_API_KEY" in caught.value.hint
    assert """--set 'judge=[{name="perplexity"}]'""" in caught.value.hint
    assert not (home / "cache/data").exists()
    assert numbers("tinystories_53m") == numbers("tinystories_53m_base") == []
    checked = distillkit("recipe", "check", "tinystories_53m", *text)
    assert "warning: there is no key for the teacher 'groq': only answers in the cache can be used." in checked
    assert "which the judge 'rubric' asks" in checked
    assert checked.endswith("is valid.\n")


@pytest.mark.usefixtures("home", "offline")
def test_a_warm_up_that_never_ends_is_told() -> None:
    told = distillkit("plan", "slm_nano_1m", "--set", "train.steps=20")
    assert "train.warmup = 200 is longer than the run: the learning rate only reaches 0.0002 of 0.002" in told
    assert "for a trial that learns: train.warmup = 2" in told
    short = distillkit("plan", "slm_nano_1m", "--set", "train.steps=20", "--set", "train.warmup=2")
    assert "train.warmup" not in short


# Beginning with the student of a recipe.


def test_a_recipe_that_begins_with_another_runs_that_one_first(home: Path) -> None:
    with pytest.raises(UsageError, match=r"outer begins with the student of base, which is trained first") as caught:
        distillkit("run", "outer.toml")
    assert "Add --yes" in caught.value.hint
    assert numbers("base") == numbers("outer") == []
    distillkit("run", "outer.toml", "--yes")
    assert numbers("base") == numbers("outer") == ["1"]
    base, outer = (json.loads((home / f"reports/{name}/1/report.json").read_text()) for name in ("base", "outer"))
    assert (base["status"], outer["status"]) == ("done", "done")
    assert load(str(Run(home / "reports/outer/1").recipe)).student.from_ == "base/1"
    assert base["training"]["weights_sha256"] != outer["training"]["weights_sha256"]


@pytest.mark.parametrize(("answer", "begun"), [("n", []), pytest.param("y", ["1"], marks=pytest.mark.slow)])
def test_who_sits_at_a_terminal_is_asked_before_the_first_one_is_trained(
    home: Path, answer: str, begun: list[str]
) -> None:
    code, said = at_a_terminal("run", "outer.toml", "--until", "train", answer=answer)
    assert "outer begins with the student of base, which is trained first:" in said
    assert said.count("Continue? [y/N]:") == 1
    assert numbers("base") == numbers("outer") == begun
    if begun:
        assert code == 0
        assert load("reports/outer/1/recipe.toml").student.from_ == "base/1"
    else:
        assert code == 2
        assert "no run was started" in said
        assert "--set student.from=RUN" in said
        assert not [*home.glob("reports/*")]


def test_a_run_that_fits_is_taken_and_one_that_does_not_is_named(home: Path) -> None:
    distillkit("run", "base.toml", "--set", "train.evaluate_every=4")  # which changes nothing that is learnt
    distillkit("run", "outer.toml", "--until", "train")
    assert (numbers("base"), numbers("outer")) == (["1"], ["1"])
    with pytest.raises(UsageError) as caught:
        distillkit("run", "outer.toml", "--set", "train.steps=2")
    assert "--set student.from=base/1" in caught.value.hint
    distillkit("run", "outer.toml", "--set", "train.steps=2", "--set", "student.from=base/1", "--until", "train")
    assert (numbers("base"), numbers("outer")) == (["1"], ["1", "2"])


def test_what_is_left_of_the_first_run_is_agreed_to_before_it_is_gone_on_with(home: Path) -> None:
    teacher = 'provider="compatible",model="m",base_url="http://127.0.0.1:9/v1",price={input=2.0,output=8.0}'
    (home / "base.toml").write_text(f'{BASE}\n[[judge]]\nname="rubric"\nteacher={{{teacher}}}\n')
    distillkit("run", "base.toml", "--until", "label")
    with pytest.raises(UsageError, match="calls of the judge rubric to compatible may cost"):
        distillkit("run", "outer.toml", "--set", 'judge=[{name="perplexity"}]')
    assert (numbers("base"), numbers("outer")) == (["1"], [])


def test_a_run_whose_record_is_damaged_fits_nobody_and_stops_nobody(home: Path) -> None:
    distillkit("run", "base.toml")
    (home / "reports/base/1/run.json").write_text("{")
    with pytest.raises(UsageError, match="which is trained first") as caught:
        distillkit("run", "outer.toml")
    assert "base/1" not in caught.value.hint


def test_what_is_set_of_text_shape_and_length_holds_for_the_first_recipe_too(home: Path) -> None:
    (home / "mine.txt").write_text("".join(f"Fox number {i} went home.\n|\n" for i in range(80)))
    text = ["data.source=text", "data.path=mine.txt", "data.separator=|", "train.steps=2", "student.width=8"]
    own = ["train.learning_rate=0.01", "seed=7", "teacher.provider=told", "teacher.prompts=3", "sampling.count=2"]
    words = [word for override in (*text, *own) for word in ("--set", override)]
    distillkit("run", "outer.toml", "--yes", *words)
    base, outer = (load(f"reports/{name}/1/recipe.toml") for name in ("base", "outer"))
    assert base.data == outer.data
    assert (base.student.options["width"], outer.student.options["width"]) == (8, 8)
    assert (base.train.steps, outer.train.steps) == (2, 2)
    assert (base.train.learning_rate, outer.train.learning_rate) == (3e-4, 0.01)
    assert (base.seed, outer.seed, base.teacher) == (42, 7, None)


def test_an_interrupted_chain_goes_on_where_it_stopped(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = STAGE_FUNCTIONS["train"]
    stopped = ["base", "outer"]

    def once(session: RunSession) -> None:
        if session.recipe.name in stopped:
            stopped.remove(session.recipe.name)
            raise KeyboardInterrupt
        train(session)

    monkeypatch.setitem(STAGE_FUNCTIONS, "train", once)
    with pytest.raises(Interrupted, match="interrupted") as caught:
        distillkit("run", "outer.toml", "--yes")
    assert "reports/base/1 --resume" in caught.value.hint
    with pytest.raises(Interrupted) as caught:
        distillkit("run", "outer.toml", "--yes")
    assert "reports/outer/1 --resume" in caught.value.hint
    distillkit("run", "reports/outer/1", "--resume")
    assert (numbers("base"), numbers("outer")) == (["1"], ["1"])
    undisturbed = (Run(home / "reports/outer/1").info)["training"]["weights_sha256"]
    distillkit("run", "outer.toml")
    assert (Run(home / "reports/outer/2").info)["training"]["weights_sha256"] == undisturbed


def test_to_go_on_with_a_run_does_not_touch_the_one_that_it_began_with(home: Path) -> None:
    distillkit("run", "outer.toml", "--yes", "--until", "train")
    distillkit("run", "outer.toml", "--resume", "--set", "train.steps=6", "--until", "train")
    assert (numbers("base"), numbers("outer")) == (["1"], ["1"])
    assert Run(home / "reports/outer/1").info["training"]["steps"] == 6
    assert load("reports/outer/1/recipe.toml").student.from_ == "base/1"


def test_labelling_needs_no_student_to_begin_with(home: Path) -> None:
    teacher = ["--set", "teacher.provider=told", "--set", "teacher.prompts=3"]
    distillkit("label", "outer.toml", *teacher)
    assert (numbers("base"), numbers("outer")) == ([], ["1"])
    distillkit("train", "outer/1", "--yes")
    assert (numbers("base"), numbers("outer")) == (["1"], ["1"])
    assert load("reports/outer/1/recipe.toml").student.from_ == "base/1"


def test_two_tokenizers_of_different_text_are_refused_before_anything_is_trained(home: Path) -> None:
    (home / "outer.toml").write_text(OUTER + "[data]\nheld_out = 0.3\n")
    with pytest.raises(
        UsageError, match=r"would each train a tokenizer, on different text \(data\.held_out\)"
    ) as caught:
        distillkit("run", "outer.toml", "--yes")
    assert "Set data.held_out for both" in caught.value.hint
    assert numbers("base") == numbers("outer") == []


@pytest.mark.usefixtures("home")
def test_a_recipe_to_begin_with_must_be_there() -> None:
    with pytest.raises(UsageError, match=r"there is no recipe .*gone\.toml"):
        distillkit("recipe", "check", "outer.toml", "--set", "student.from=gone.toml")


def test_what_goes_down_to_the_first_recipe() -> None:
    given = ["data.path=a", "tokenizer.kind=bpe", "student.width=8", "student.from=x", "train.steps=2", "train.clip=2"]
    given.append("train.warmup=1")
    down = ("data.path=a", "tokenizer.kind=bpe", "student.width=8", "train.steps=2", "train.warmup=1")
    assert base_run.inherited_overrides(given) == down


# Running them.

SMALL = [
    "data.source=tales", "data.stories=150", "data.held_out=0.1", "tokenizer.kind=bpe", "tokenizer.vocab_size=500",
    "student.layers=2", "student.heads=2", "student.width=16", "student.hidden=32", "student.context=32",
    "train.steps=20", "train.batch_size=6", "train.accumulate=1", "sampling.count=1", "sampling.max_tokens=8",
]  # fmt: skip
TOLD = ["teacher.provider=told", "teacher.prompts=5", 'judge=[{name="perplexity"}]']


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SIZES if name != "tinystories_53m_base"])
def test_every_seed_runs_at_a_small_size(home: Path, name: str) -> None:
    taught = TOLD if load(name).teacher else []
    distillkit("run", name, "--yes", *(word for override in (*SMALL, *taught) for word in ("--set", override)))
    report = json.loads((home / f"reports/{name}/1/report.json").read_text())
    assert (report["status"], report["training"]["steps"]) == ("done", 20)
    assert report["judges"]["perplexity"]["bits_per_byte"]["value"] > 0
    assert numbers("tinystories_53m_base") == (["1"] if taught else [])


NOVELS = SHARED / "data" / "austen_four_novels.txt.xz"


def book(home: Path) -> str:
    """One file with four long texts in it: novels where they are at hand, or else made-up words."""
    if NOVELS.is_file():
        return str(NOVELS)
    chance = random.Random(0)
    sounds = [one + other for one in "bdfgklmnprstvz" for other in ("a", "e", "i", "o", "u", "an", "er", "ill")]
    known = ["".join(chance.choices(sounds, k=chance.randint(1, 4))) for _ in range(9000)]
    texts = [" ".join(chance.choices(known, k=40_000)) for _ in range(4)]
    (home / "book.txt").write_text("\n<|endoftext|>\n".join(texts))
    return "book.txt"


@pytest.mark.slow
def test_the_smallest_seed_runs_as_it_is_on_a_book(home: Path) -> None:
    own = words_for("data.source=text", f"data.path={book(home)}", "train.steps=20")
    said = distillkit("run", "slm_nano_1m", *own)
    report = json.loads((home / "reports/slm_nano_1m/1/report.json").read_text())
    assert (report["status"], report["training"]["steps"]) == ("done", 20)
    assert report["student"]["parameters"]["unique"] == SIZES["slm_nano_1m"]
    assert report["data"]["held_out"]["documents"] >= 5
    assert "perplexity" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tinystories_53m", "finewebedu_53m"])
def test_the_chain_runs_on_a_book_with_a_server_for_teacher(home: Path, name: str) -> None:
    # The same text is held out in both, so both train the same tokenizer.
    small = ["data.held_out=0.1", "tokenizer.kind=bpe", "tokenizer.vocab_size=2000"]
    small += ["student.width=32", "student.hidden=64"]
    small += ["student.layers=2", "student.context=64", "train.batch_size=6", "train.steps=8", "sampling.count=2"]
    with serving() as provider, serving() as grader:
        grader.rule = Judge()
        asked = ["teacher.prompts=12"]
        for table, url in (("teacher", provider.url), ("judge.1.teacher", grader.url)):
            asked += [f"{table}.provider=compatible", f"{table}.base_url={url}", f"{table}.model=any"]
        own = words_for("data.source=text", f"data.path={book(home)}", *small, *asked)
        distillkit("run", name, "--yes", *own)
        assert len(provider.prompts) == 12
    base, report = (
        json.loads((home / f"reports/{n}/1/report.json").read_text()) for n in ("tinystories_53m_base", name)
    )
    assert (base["status"], report["status"], report["teacher"]["asked"]) == ("done", "done", 12)
    assert {*report["judges"]} == {"perplexity", "rubric"}
    assert load(f"reports/{name}/1/recipe.toml").student.from_ == "tinystories_53m_base/1"


# Tokenizers side by side.


@pytest.mark.slow
def test_tokenizers_are_compared_on_text_that_none_of_them_has_seen(
    peer: Callable[[str], ModuleType], home: Path
) -> None:
    peer("sentencepiece")
    words = ["data", "tokenizers", "base.toml", "--set", "data.stories=400", "--also", "bpe:600", "--also", "nobody"]
    found = json.loads(distillkit(*words, "--json"))
    rows = {(row["kind"], row["vocab_size"]): row for row in found["tokenizers"]}
    assert list(rows) == [("bpe", 300), ("sentencepiece", 300), ("bpe", 600), ("nobody", None)]
    assert "no tokenizer 'nobody'" in rows["nobody", None]["missing"]
    assert rows["bpe", 600]["bytes_a_token"] > rows["bpe", 300]["bytes_a_token"] > 1
    distillkit("run", "base.toml", "--set", "data.stories=400", "--until", "label")
    own = Tokenizer.load(home / "reports/base/1/tokenizer")
    kept = next((home / "cache/data").glob("*/held_out.jsonl")).read_text().splitlines()
    texts = [json.loads(line)["text"] for line in kept]
    tokens = [token for text in texts for token in own.encode(text)]
    assert found["text"] == {**found["text"], "documents": len(texts), "bytes": sum(len(t.encode()) for t in texts)}
    assert (rows["bpe", 300]["tokens"], rows["bpe", 300]["used"]) == (len(tokens), len(set(tokens)))
    table = distillkit(*words)
    assert "bytes a token" in table
    assert "bpe, 600" in table


@pytest.mark.usefixtures("home")
def test_tokenizers_are_timed_and_the_seconds_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(0, 1.25)  # a clock that goes on when it is looked at
    monkeypatch.setattr("distillkit.data.tokenizers.comparison.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    words = ["data", "tokenizers", "base.toml", "--also", "tales-teacher"]
    rows = {row["kind"]: row for row in json.loads(distillkit(*words, "--json"))["tokenizers"]}
    assert (rows["bpe"]["train_seconds"], rows["bpe"]["encode_seconds"]) == (1.25, 1.25)
    lines = distillkit(*words).splitlines()
    (head,) = (line for line in lines if "bytes a token" in line)
    assert head.split("  ")[-2:] == ["trained in", "encoded in"]
    shown = {line.partition(",")[0]: re.split(r" {2,}", line)[-2:] for line in lines if line.endswith(" s")}
    assert shown["bpe"] == ["1.25 s", "1.25 s"]
    assert shown["tales-teacher"] == ["-", "1.25 s"]


def test_a_kind_that_is_trained_needs_a_size(home: Path) -> None:
    with pytest.raises(DataError, match="needs a size"):
        distillkit("data", "tokenizers", "base.toml", "--also", "sentencepiece")
