"""Students taken elsewhere: every family, every format, loaded again by the tools that people use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tomli_w
from click.testing import CliRunner
from distillkit_plugins import export_hf
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.cli.main import cli
from distillkit.core.errors import DistillkitError, UsageError
from distillkit.core.run_folder import Run, find_run
from distillkit.data.tales import story
from distillkit.data.tokenizer import CL100K_PATTERN, Tokenizer, build, byte_alphabet
from distillkit.student.generation.generate import compute_logits
from distillkit.student.interchange import exporting, hf_tokenizer, hf_weights, verify
from distillkit.student.interchange.verify import Bounds, NetworkReader, verify_export
from distillkit.student.model.gpt import GPTConfig
from distillkit.student.trained import Trained
from support.interchange import TINY, gpt2_words, hub, run_with
from support.paths import ROOT, TESTS
from support.students import TEXTS, f64, lively, shapes, tokenizer

QUICK = settings(max_examples=40, deadline=None)
LLAMA = replace(TINY, positions="rope", norm="rmsnorm", activation="swiglu", bias=False)

IN_GPT2 = {
    "as it was": TINY,
    "untied, tanh": replace(TINY, tied=False, activation="gelu_tanh"),
    "as the nano": replace(TINY, positions="sinusoidal", attention_out=False, activation="relu", hidden=96),
    "no biases, shared keys": replace(TINY, bias=False, kv_heads=2, tied=False),
}
IN_LLAMA = {
    "llama": LLAMA,
    "llama, untied, biases": replace(LLAMA, tied=False, bias=True, kv_heads=1),
    "llama without projection": replace(LLAMA, attention_out=False, kv_heads=2),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path / "home"))
    if request.node.get_closest_marker("slow") is None:  # verification of less text takes less time
        monkeypatch.setattr(verify, "TEXT_TOKENS", 40)
        monkeypatch.setattr(verify, "GREEDY_TOKENS", 20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> Any:
    return CliRunner().invoke(cli, list(arguments), catch_exceptions=True)


def refused(*arguments: str) -> str:
    """The message of a command that must not go well."""
    failed = command(*arguments).exception
    assert isinstance(failed, DistillkitError), failed
    return str(failed)


# ---------------------------------------------------------------------------------------------- families


@QUICK
@given(shapes(), st.integers(0, 99))
def test_a_student_is_the_same_in_every_family_that_takes_it(shape: GPTConfig, seed: int) -> None:
    model, tokens = lively(shape, seed), mx.array(np.random.default_rng(seed).integers(0, 23, (1, 10)))
    expected = f64(compute_logits(model, model(tokens)))
    for faults, family, back in (
        (hf_weights.gpt2_obstacles(shape), hf_weights.to_gpt2, hf_weights.from_gpt2),
        (hf_weights.llama_obstacles(shape), hf_weights.to_llama, hf_weights.from_llama),
    ):
        if list(faults):
            with pytest.raises(UsageError, match="cannot be a"):
                family(model)
            continue
        member = family(model)
        other = lively(member.exported_config)
        other.load_weights(list(back(other.config, member.weights).items()))
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(f64(compute_logits(other, other(tokens))), expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("name", [*IN_GPT2, *IN_LLAMA])
def test_a_configuration_means_the_shape_that_it_was_made_of(name: str) -> None:
    member = exporting.convert(lively((IN_GPT2 | IN_LLAMA)[name]))
    shape = member.exported_config
    config = hf_weights.hf_config(member, 299)
    assert config.get("attn_pdrop", 0.0) == 0.0  # nothing is dropped there in training
    found = hf_weights.gpt_config_from_hf(config)
    assert replace(found, dropout=0.0, kv_heads=found.num_kv_heads) == replace(shape, kv_heads=shape.num_kv_heads)


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"final_norm": False}, ["it has no final norm", "its positions are learned"]),
        ({"tied": False, "head_bias": True}, ["its head has a bias"]),
        ({"qk_norm": True}, ["it normalizes queries and keys"]),
        ({"positions": "rope"}, ["not a GPT-2: its positions are rope", "its activation is gelu"]),
        ({"norm": "rmsnorm"}, ["its norm is rmsnorm"]),
    ],
)
def test_a_student_of_neither_family_is_told_why(change: dict[str, Any], reasons: list[str]) -> None:
    run = run_with(replace(TINY, **change))
    for kind in ("hf", "mlx", "gguf"):
        message = refused("export", run.name, "--to", "there", "--format", kind)
        assert all(reason in message for reason in reasons)
        assert "docs/export.md" in message
        assert not Path("there").exists()


# ---------------------------------------------------------------------------------------------- tokenizers


def others(words: Tokenizer) -> Any:
    from tokenizers import Tokenizer as Other

    return Other.from_str(json.dumps(hf_tokenizer.tokenizer_json(words)))


@settings(max_examples=150, deadline=None)
@given(st.text() | st.text(alphabet=" \n\tab'sl-.1\u3000\xa0é漢") | st.text(alphabet="ot hen"))
def test_tokenizer_json_cuts_every_text_as_ours_does(text: str) -> None:
    if "<|endoftext|>" in text:
        return
    assert others_of_texts().encode(text).ids == tokenizer().encode(text)
    assert others_of_texts().decode(tokenizer().encode(text)) == text


def others_of_texts(known: dict[str, Any] = {}) -> Any:  # noqa: B006 - it is a cache
    return known.setdefault("it", others(tokenizer()))


def test_letters_of_the_whole_world_are_cut_alike() -> None:
    other, mine = others(tokenizer()), tokenizer()
    points = [point for point in range(0x20000) if not 0xD800 <= point < 0xE000]
    for start in range(0, len(points), 64):
        text = "".join(f"a{chr(point)}b {chr(point)}" for point in points[start : start + 64])
        if other.encode(text).ids != mine.encode(text):
            odd = [
                p for p in points[start : start + 64] if other.encode(f"a{chr(p)}b").ids != mine.encode(f"a{chr(p)}b")
            ]
            # what was assigned since one of the engines was made, and nothing else
            import unicodedata

            assert all(unicodedata.category(chr(p)) == "Cn" for p in odd), [hex(p) for p in odd]


def test_a_tokenizer_that_would_cut_otherwise_is_not_written(home: Path) -> None:
    text = hf_tokenizer.tokenizer_json(tokenizer())
    text["model"]["merges"] = text["model"]["merges"][::-1]
    with pytest.raises(DistillkitError, match="but the student reads"):
        hf_tokenizer.check_agreement(tokenizer(), json.dumps(text))


@cache
def unigrams() -> Tokenizer:
    return build("sentencepiece", vocab_size=600, texts=lambda: (story(0, index) for index in range(250)))


@cache
def others_of_unigrams() -> Any:
    return others(unigrams())


@pytest.mark.peer
@settings(max_examples=150, deadline=None)
@given(st.text() | st.text(alphabet=" \n\tab'sl-.1\0\u3000\xa0é漢") | st.text(alphabet="ot hen"))
def test_tokenizer_json_cuts_every_text_as_sentencepiece_does(text: str) -> None:
    needs_sentencepiece()
    if any(name in text for name in hf_tokenizer.special_strings(unigrams())):
        return
    assert others_of_unigrams().encode(text).ids == unigrams().encode(text)
    assert others_of_unigrams().decode(unigrams().encode(text)) == text


def needs_sentencepiece() -> None:
    """For tests of hypothesis, which take no fixture of one test."""
    if os.environ.get("DISTILLKIT_PEERS") != "required":
        pytest.importorskip("sentencepiece", reason="the peer sentencepiece is not installed")


@pytest.mark.peer
def test_a_sentencepiece_goes_away_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_sentencepiece()
    run = run_with(replace(TINY, vocab_size=unigrams().vocab_size), words=unigrams())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = command("export", run.name, "--to", "there", "--format", "hf")
    assert said.exit_code == 0, said.exception
    assert {"tokenizer.json", "pieces.model"} <= {file.name for file in Path("there").iterdir()}
    assert command("import", "there", "--name", "back").exit_code == 0
    assert Trained.load(find_run("back").path).tokenizer.fingerprint == unigrams().fingerprint
    message = refused("export", run.name, "--to", "other", "--format", "gguf")
    assert "a GGUF file contains the tokenizer, but the tokenizer 'sentencepiece' does not split text" in message
    assert not Path("other").exists()
    whole = json.loads(Path("there/tokenizer.json").read_text())
    whole["model"]["vocab"] = [[piece, -score] for piece, score in whole["model"]["vocab"]]
    Path("there/tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(DistillkitError, match="but the student reads"):
        hf_tokenizer.read_tokenizer(Path("there"))


def test_a_tokenizer_that_goes_nowhere_is_refused_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Tokenizer("mine", CL100K_PATTERN, tokenizer().ranks, tokenizer().special)
    run = run_with(TINY, words=words)
    for kind in ("mlx", "gguf"):
        message = refused("export", run.name, "--to", "there", "--format", kind)
        assert "the tokenizer 'mine' does not split text as GPT-2's does" in message
        assert "--format hf" in message
        assert not Path("there").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = command("export", run.name, "--to", "there", "--format", "hf")
    assert "without tokenizer.json: the tokenizer 'mine' does not split" in said.output
    assert not Path("there/tokenizer.json").exists()


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json and merges.txt"])
def test_a_tokenizer_comes_back_as_it_went(home: Path, files: str) -> None:
    if files == "tokenizer.json":
        hf_tokenizer.write_tokenizer(tokenizer(), home, 80)
    else:
        words = {hf_tokenizer.token_to_unicode(piece): token for piece, token in tokenizer().ranks.items()}
        (home / "vocab.json").write_text(json.dumps({**words, **tokenizer().special}))
        pairs = [f"{left} {right}" for left, right in hf_tokenizer.merge_pairs(tokenizer())]
        (home / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]), encoding="utf-8")
    assert hf_tokenizer.read_tokenizer(home).fingerprint == tokenizer().fingerprint


def test_a_foreign_tokenizer_is_refused_with_the_reason(home: Path) -> None:
    whole = hf_tokenizer.tokenizer_json(tokenizer())
    for change, words in (
        ({"type": "Unigram"}, "type Unigram"),
        ({"merges": whole["model"]["merges"][::-1]}, "in the order of its merges"),
        ({"vocab": {**whole["model"]["vocab"], "漢": 400}}, "not byte-level"),
    ):
        (home / "tokenizer.json").write_text(json.dumps({**whole, "model": {**whole["model"], **change}}))
        with pytest.raises(UsageError, match=words):
            hf_tokenizer.read_tokenizer(home)
    (home / "tokenizer.json").unlink()
    (home / "merges.json").write_text("[]")
    with pytest.raises(UsageError, match="gpt2-nano's"):
        hf_tokenizer.read_tokenizer(home)


# ---------------------------------------------------------------------------------------------- the proof


class Wrong(NetworkReader):
    """An export whose logits are a little off."""

    def __init__(self, model: Any, by: str, off: float) -> None:
        super().__init__(model, by)
        self.off = off

    def logits(self, tokens: Any) -> Any:
        return super().logits(tokens) + self.off * np.arange(tokenizer().vocab_size)[None] / 300


@pytest.mark.parametrize(("off", "holds"), [(0.0, True), (1e-4, True), (0.02, False)])
def test_a_proof_sees_what_is_off(off: float, holds: bool) -> None:
    run = run_with(TINY)
    student = Trained.load(run.path)
    reader = Wrong(student.model, "a test", off)
    if holds:
        proof = verify_export(run, student, reader, Bounds())
        assert proof["greedy"] == {"tokens": verify.GREEDY_TOKENS, "alike": verify.GREEDY_TOKENS}
        assert proof["largest_difference"] == pytest.approx(off, abs=2e-5)
    else:
        with pytest.raises(DistillkitError, match=r"logits differ by up to 0\.02"):
            verify_export(run, student, reader, Bounds())
    with pytest.raises(DistillkitError, match="perplexity"):
        verify_export(run, student, Wrong(student.model, "a test", 3.0), Bounds(exact=False))


@pytest.mark.parametrize(("context", "written"), [(2, 1), (3, 2), (8, 4), (9, 5)])
def test_a_proof_of_a_student_with_a_small_context_ends(context: int, written: int) -> None:
    run = run_with(replace(TINY, context=context))
    student = Trained.load(run.path)
    proof = verify_export(run, student, NetworkReader(student.model, "a test"), Bounds())
    assert proof["greedy"] == {"tokens": written, "alike": written}


def test_an_export_that_is_not_the_student_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(TINY)
    monkeypatch.setattr(
        export_hf, "open_exported", lambda folder, converted: NetworkReader(lively(TINY, seed=5), "a test")
    )
    assert "differs from the student (compared by a test)" in refused(
        "export", run.name, "--to", "there", "--format", "hf"
    )
    assert list(home.glob("*there*")) == []


@pytest.mark.parametrize("name", [*IN_GPT2, *IN_LLAMA])
def test_without_transformers_the_files_are_read_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with((IN_GPT2 | IN_LLAMA)[name])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = command("export", run.name, "--to", "there", "--format", "hf")
    assert said.exit_code == 0, said.exception
    assert "reading the files back (transformers and torch are not installed)" in said.output
    assert f"equal greedy tokens: {verify.GREEDY_TOKENS} of {verify.GREEDY_TOKENS}" in said.output
    names = {file.name for file in Path("there").iterdir()}
    assert names == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors", "proof.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    weights: Any = mx.load("there/model.safetensors")
    assert not [key for key in weights if key.startswith("transformer.")]


def test_the_card_is_one_that_the_hub_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import ModelCard

    run = run_with(TINY)
    metric = {"value": 1.25, "low": 1.2, "high": 1.3, "n": 40}
    training = {"steps": 90, "tokens": 8000, "epochs": 6.2, "loss": 1.1}
    teacher = {"provider": "groq", "model": "openai/gpt-oss-20b", "signal": "text", "prompts": 11}
    run.record(judges={"perplexity": {"bits_per_byte": metric}}, teacher=teacher, training=training)
    run.record(data={"source": "tales", "train": {"documents": 5, "tokens": 100}}, warnings=["seen too often"])
    run.record(imported=None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command("export", run.name, "--to", "there", "--format", "hf").exit_code == 0
    card = ModelCard.load("there/README.md")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("bits_per_byte", 1.25, "tales")
    assert card.data.library_name == "transformers"
    for words in ("1.25 [1.2, 1.3]", "openai/gpt-oss-20b", "seen too often", "6.2 epochs", "equal greedy tokens"):
        assert words in card.text


def test_the_card_says_nothing_of_how_a_student_was_trained_that_was_brought_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = run_with(TINY)
    training = {"batch_size": 16, "learning_rate": 3e-4, "warmup": 50}
    lent = {"source": "hub", "dataset": "tinystories"}
    run.recipe.write_text(tomli_w.dumps({**tomllib.loads(run.recipe.read_text()), "train": training, "data": lent}))
    metric = {"value": 1.25, "low": 1.2, "high": 1.3, "n": 40}
    run.record(training={"steps": 20000}, judges={"perplexity": {"loss": metric}}, data={"held_out": {"documents": 3}})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command("export", run.name, "--to", "there", "--format", "hf").exit_code == 0
    card = Path("there/README.md").read_text()
    assert "imported from `student.pt` (made by a test)" in card
    assert "`perplexity` is over text that it may have been trained on" in card
    untrue = [
        "without a teacher",
        "Made with distillkit",
        "tokens seen",
        "batch size",
        "Every training text follows",
        "held-out text: ",
    ]
    untrue += ["instructions", "datasets:", "language:"]
    assert [words for words in (*untrue, "The run has no record") if words in card] == []
    run.record(imported=None)
    assert command("export", run.name, "--to", "ours", "--format", "hf").exit_code == 0
    ours = Path("ours/README.md").read_text()
    assert [words for words in untrue if words not in ours] == []


def test_only_figures_of_held_out_text_are_those_of_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import ModelCard

    run = run_with(TINY)
    run.record(imported=None, data={"source": "tales"})
    metric = {"value": 1.25, "low": 1.2, "high": 1.3, "n": 40}
    judges = {"teacher-likelihood": {"bits_per_byte": metric}, "rubric": {"humour": metric}}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for folder, more in (("samples", {}), ("both", {"perplexity": {"loss": metric}})):
        run.record(judges=judges | more)
        assert command("export", run.name, "--to", folder, "--format", "hf").exit_code == 0
    samples, both = (ModelCard.load(f"{folder}/README.md") for folder in ("samples", "both"))
    assert samples.data.eval_results is None
    assert [result.metric_type for result in both.data.eval_results] == ["loss"]
    assert ["held-out text, counting every token" in card.text for card in (samples, both)] == [False, True]
    assert all("| rubric | humour |" in card.text for card in (samples, both))


def test_without_a_tokenizer_the_card_shows_how_the_weights_alone_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(TINY, words=Tokenizer("mine", CL100K_PATTERN, tokenizer().ranks, tokenizer().special))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command("export", run.name, "--to", "there", "--format", "hf").exit_code == 0
    card = Path("there/README.md").read_text()
    assert "AutoTokenizer" not in card
    assert f"torch.tensor([[{tokenizer().end_of_text}]])  # the end-of-text token of mine" in card


def test_the_card_says_what_the_run_says_now_and_not_what_an_older_report_said(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(TINY)
    metric = {"value": 1.25, "low": 1.2, "high": 1.3, "n": 40}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for folder, judges in (("before", {"perplexity": {"bits_per_byte": metric}}), ("after", {})):
        run.record(judges=judges)
        assert command("export", run.name, "--to", folder, "--format", "hf").exit_code == 0
    cards = [Path(folder, "README.md").read_text() for folder in ("before", "after")]
    assert ["1.25 [1.2, 1.3]" in card for card in cards] == [True, False]


# ---------------------------------------------------------------------------------------------- the command


def test_what_cannot_be_is_refused_first(home: Path) -> None:
    run = run_with(TINY)
    (home / "there").mkdir()
    assert "already exists" in refused("export", run.name, "--to", "there", "--format", "hf")
    assert "Known: gguf, hf, mlx" in refused("export", run.name, "--to", "new", "--format", "ggml")
    assert "quantize" in refused("export", run.name, "--to", "new", "--format", "hf", "--quantize", "8")
    assert list(home.glob("*new*")) == []


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(TINY)
    for kind, package in (("mlx", "mlx_lm"), ("gguf", "gguf")):
        monkeypatch.setitem(sys.modules, package, None)
        message = refused("export", run.name, "--to", "there", "--format", kind)
        assert f'pip install "distillkit[export-{kind}]"' in message


def push(run: Run, monkeypatch: pytest.MonkeyPatch, *more: str, token: str = "hf_test", there: str = "there") -> Any:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    return command("export", run.name, "--to", there, "--format", "hf", "--push", "me/tiny", *more)


def test_a_push_shows_what_would_go_and_uploads_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(TINY)
    with hub() as (address, got):
        monkeypatch.setenv("HF_ENDPOINT", address)
        asked = push(run, monkeypatch, there="first")
        assert "Add --yes" in str(asked.exception)
        assert got["files"] == {}
        assert f"To {address}/me/tiny (private) will be uploaded:" in asked.output
        assert "model.safetensors" in asked.output
        done = push(run, monkeypatch, "--yes")
        assert done.exit_code == 0, done.exception
        assert f"Uploaded: {address}/me/tiny" in done.output
        refusal = push(run, monkeypatch, "--yes", token="hf_wrong", there="second")
    assert got["created"][0].get("visibility") == "private" or got["created"][0]["private"] is True
    assert got["files"] == {file.name: file.read_bytes() for file in (home / "there").iterdir()}
    assert "library_name" in got["card"]
    assert "the upload to" in str(refusal.exception)
    assert "hf upload me/tiny second --private" in str(refusal.exception)
    assert "hf_wrong" not in str(refusal.exception)
    assert Path("second/README.md").is_file()


def test_for_machines_there_is_json_on_standard_output_and_nothing_else(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub() as (address, _):
        monkeypatch.setenv("HF_ENDPOINT", address)
        done = push(run_with(TINY), monkeypatch, "--yes", "--json")
    assert done.exit_code == 0, done.exception
    told = json.loads(done.stdout)
    assert told["folder"] == "there"
    assert told["proof"] == json.loads(Path("there/proof.json").read_text())
    assert f"Uploaded: {address}/me/tiny" in done.stderr


def test_a_push_without_a_token_is_refused_before_the_work(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    message = refused("export", run_with(TINY).name, "--to", "there", "--format", "hf", "--push", "me/tiny")
    assert "set HF_TOKEN" in message
    assert not Path("there").exists()


def test_an_exporter_may_use_the_former_names() -> None:
    former = ("Member", "Own", "student_of", "of_family", "read_back", "needed", "versions_of")
    assert all(getattr(exporting, name).__name__ in exporting.__all__ for name in former)


def test_the_exporter_of_the_documentation_works(home: Path) -> None:
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (home / "names.py").write_text(page.rpartition("```python\n")[2].partition("```")[0])
    run = run_with(TINY)
    said = command("-p", "names.py", "export", run.name, "--to", "there", "--format", "names")
    assert said.exit_code == 0, said.exception
    assert "28 names, as gpt2" in said.output
    assert "h.1.mlp.c_proj.bias" in Path("there/names.txt").read_text()


FINISHING = '''
from distillkit import Exporter, hookimpl


class Again(Exporter):
    """The weights as they are, proven by the student itself."""

    name = "again"

    def export(self, run, folder):
        from distillkit.student.interchange import exporting

        student, network = exporting.load_student(run)
        facts = {FACTS}
        return exporting.finish(
            run, folder, student, lambda: exporting.NetworkReader(network, "itself"), exporting.Bounds(), facts
        )


@hookimpl
def register_exporters():
    return [Again]
'''


@pytest.mark.parametrize(
    ("facts", "told", "untold"),
    [
        ({}, ["equal greedy tokens"], ["library_name", "path/to/it", "note: "]),
        (
            {"format": "again", "notes": ["as it is"], "library": "ours", "use": "Say `load(path/to/it)`."},
            ['library_name: "ours"', "## Usage\n\nSay `load(path/to/it)`.", "note: as it is"],
            [],
        ),
    ],
)
def test_a_plugins_exporter_has_its_proof_and_card_written(
    home: Path, facts: dict[str, Any], told: list[str], untold: list[str]
) -> None:
    (home / "again.py").write_text(FINISHING.replace("{FACTS}", repr(facts)))
    run = run_with(TINY)
    said = command("-p", "again.py", "export", run.name, "--to", "there", "--format", "again")
    assert said.exit_code == 0, said.exception
    assert "verified by itself" in said.output
    assert json.loads(Path("there/proof.json").read_text())["greedy"] == {
        "tokens": verify.GREEDY_TOKENS,
        "alike": verify.GREEDY_TOKENS,
    }
    card = Path("there/README.md").read_text()
    assert [words for words in told if words not in card] == []
    assert [words for words in untold if words in card] == []


# ---------------------------------------------------------------------------------------------- peers


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize("name", [*IN_GPT2, *IN_LLAMA])
def test_transformers_says_what_the_student_says(name: str, peer: Any) -> None:
    peer("torch")
    transformers = peer("transformers")
    run = run_with((IN_GPT2 | IN_LLAMA)[name])
    said = command("export", run.name, "--to", "there", "--format", "hf")
    assert said.exit_code == 0, said.exception
    proof = json.loads(Path("there/proof.json").read_text())
    assert proof["by"].startswith("transformers")
    assert proof["largest_difference"] < 1e-3
    assert proof["greedy"] == {"tokens": verify.GREEDY_TOKENS, "alike": verify.GREEDY_TOKENS}
    words = transformers.AutoTokenizer.from_pretrained("there")
    for text in TEXTS:
        assert words(text)["input_ids"] == tokenizer().encode(text)
        assert words.decode(tokenizer().encode(text)) == text
    assert words.eos_token_id == tokenizer().end_of_text


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize("kind", ["bpe", "mine"])
def test_the_card_shows_code_that_runs(kind: str, peer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("torch", "transformers"):
        peer(package)
    pattern = tokenizer().pattern if kind == "bpe" else CL100K_PATTERN
    words = Tokenizer(kind, pattern, tokenizer().ranks, tokenizer().special)
    assert command("export", run_with(TINY, words=words).name, "--to", "there", "--format", "hf").exit_code == 0
    code = Path("there/README.md").read_text().partition("```python\n")[2].partition("```")[0]
    capsys.readouterr()
    exec(code.replace("path/to/it", "there"), {})
    assert capsys.readouterr().out.startswith("<|endoftext|>One day" if kind == "bpe" else "[299, ")


@pytest.mark.slow
@pytest.mark.peer
def test_a_sentencepiece_is_read_by_transformers_and_mlx_lm(peer: Any) -> None:
    for package in ("torch", "sentencepiece"):
        peer(package)
    transformers, mlx_lm = peer("transformers"), peer("mlx_lm")
    run = run_with(replace(TINY, vocab_size=unigrams().vocab_size), words=unigrams())
    for kind in ("hf", "mlx"):
        assert command("export", run.name, "--to", kind, "--format", kind).exit_code == 0
    words = transformers.AutoTokenizer.from_pretrained("hf")
    model, theirs = mlx_lm.load("mlx")
    for text in TEXTS:
        assert words(text)["input_ids"] == theirs.encode(text) == unigrams().encode(text)
        assert words.decode(unigrams().encode(text)) == text
    assert words.eos_token_id == unigrams().end_of_text
    assert isinstance(mlx_lm.generate(model, theirs, TEXTS[0], max_tokens=5), str)


MLX_KINDS = {
    "as it was": "gpt_bigcode",
    "no biases, shared keys": "gpt_bigcode",
    "llama": "llama",
    "llama, untied, biases": "llama",
    "tied, tanh": "gpt2",
}


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize("name", MLX_KINDS)
def test_mlx_lm_says_what_the_student_says(name: str, peer: Any) -> None:
    mlx_lm = peer("mlx_lm")
    shape = (IN_GPT2 | IN_LLAMA | {"tied, tanh": replace(TINY, activation="gelu_tanh")})[name]
    run = run_with(shape)
    said = command("export", run.name, "--to", "there", "--format", "mlx")
    assert said.exit_code == 0, said.exception
    assert f"as {MLX_KINDS[name]}" in said.output
    proof = json.loads(Path("there/proof.json").read_text())
    assert proof["largest_difference"] < 1e-3
    assert proof["greedy"] == {"tokens": verify.GREEDY_TOKENS, "alike": verify.GREEDY_TOKENS}
    model, words = mlx_lm.load("there")
    text = mlx_lm.generate(model, words, TEXTS[0], max_tokens=5)
    assert isinstance(text, str)
    assert words.encode(TEXTS[0]) == tokenizer().encode(TEXTS[0])


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize("bits", ["8", "4"])
@pytest.mark.parametrize("shape", [replace(TINY, width=64, hidden=256), replace(LLAMA, width=64, hidden=192)])
def test_mlx_lm_runs_a_quantized_student(shape: GPTConfig, bits: str, peer: Any) -> None:
    peer("mlx_lm")
    run = run_with(shape, scale=0.05)
    said = command("export", run.name, "--to", "there", "--format", "mlx", "--quantize", bits)
    assert said.exit_code == 0, said.exception
    assert f"{bits} bits a weight" in said.output
    proof = json.loads(Path("there/proof.json").read_text())
    assert proof["quantize"] == int(bits)
    assert proof["largest_difference"] > 0
    plain = command("export", run.name, "--to", "plain", "--format", "mlx")
    assert plain.exit_code == 0
    sizes = [Path(folder, "model.safetensors").stat().st_size for folder in ("there", "plain")]
    assert sizes[0] < 0.45 * sizes[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "relu"}, "mlx-lm has no GPT-2 with relu"),
        ({"activation": "gelu_tanh", "tied": False}, "whose head is tied"),
    ],
)
def test_what_mlx_lm_has_not_is_refused(change: dict[str, Any], words: str) -> None:
    assert words in refused("export", run_with(replace(TINY, **change)).name, "--to", "there", "--format", "mlx")


@pytest.mark.peer
@pytest.mark.parametrize("name", ["as it was", "untied, tanh", "no biases, shared keys", *IN_LLAMA])
def test_a_gguf_file_holds_the_student(name: str, peer: Any) -> None:
    gguf = peer("gguf")
    run = run_with((IN_GPT2 | IN_LLAMA)[name], scale=0.1)
    said = command("export", run.name, "--to", "there", "--format", "gguf")
    assert said.exit_code == 0, said.exception
    fields = gguf.GGUFReader("there/model.gguf").fields
    words = fields["tokenizer.ggml.tokens"].contents()
    assert words[:256] == list(byte_alphabet())
    assert words[tokenizer().end_of_text] == "<|endoftext|>"
    assert fields["general.architecture"].contents() == ("llama" if name in IN_LLAMA else "gpt2")


def test_what_llama_cpp_has_not_is_refused() -> None:
    message = refused("export", run_with(replace(TINY, activation="relu")).name, "--to", "there", "--format", "gguf")
    assert "supports only tanh GELU" in message


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "mlx", "gguf"])
def test_the_built_in_exporters_keep_what_exporters_promise(kind: str, peer: Any) -> None:
    from distillkit.plugins.manager import current_plugins
    from distillkit.testing import check_exporter

    for package in ("torch", "transformers", "mlx_lm", "gguf"):
        peer(package)
    exporter: Any = current_plugins().find("exporters", kind)
    assert check_exporter(exporter)


# ---------------------------------------------------------------------------------------------- llama.cpp


def llama_cpp() -> str | None:
    """The folder with node-llama-cpp, if there is one. Where peers are required and npm can fetch it, there must be."""
    folder = os.environ.get("DISTILLKIT_LLAMA")
    if folder and shutil.which("node"):
        return folder
    if os.environ.get("DISTILLKIT_PEERS") == "required" and shutil.which("npm"):
        pytest.fail("DISTILLKIT_LLAMA names no folder with node-llama-cpp, and npm is there to fetch it")
    return None


def by_llama_cpp(folder: str, file: Path, rows: list[list[int]], text: str, context: int) -> dict[str, Any]:
    """Chances of the next tokens by the real llama.cpp, and how it cuts a text."""
    script = str(TESTS / "support" / "llama.mjs")
    run = subprocess.run(
        ["node", script, folder, str(file), json.dumps(rows), text, str(context)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def assert_llama_cpp_agrees(folder: str, run: Run, file: Path, text: str) -> tuple[float, float]:
    from distillkit.student.interchange.verify import verification_texts

    student = Trained.load(run.path)
    rows = verification_texts(run, student)
    found = by_llama_cpp(folder, file, rows, text, student.context)
    assert found["tokens"] == student.tokenizer.encode(text)
    own, surprises = NetworkReader(student.model, ""), []
    for row in rows:
        logits = own.logits(row)[:-1].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        surprises += list(np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(row) - 1), row[1:]])
    mine, theirs = float(np.exp(np.mean(surprises))), float(np.exp(-np.mean(np.log(np.concatenate(found["chances"])))))
    assert theirs == pytest.approx(mine, rel=0.01)
    return mine, theirs


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize("name", ["as it was", "untied, tanh", "no biases, shared keys", *IN_LLAMA])
def test_llama_cpp_says_what_the_student_says(name: str, peer: Any) -> None:
    folder = llama_cpp()
    if folder is None:
        pytest.skip("DISTILLKIT_LLAMA names no folder with node-llama-cpp")
    peer("gguf")
    run = run_with((IN_GPT2 | IN_LLAMA)[name])
    assert command("export", run.name, "--to", "there", "--format", "gguf").exit_code == 0
    text = "One day a fox's   hen.\n\n They ran 12,345 漢"
    assert_llama_cpp_agrees(folder, run, Path("there/model.gguf").absolute(), text)


def test_a_llama_cpp_that_could_be_had_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTILLKIT_LLAMA", raising=False)
    monkeypatch.setenv("DISTILLKIT_PEERS", "required")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(pytest.fail.Exception, match="npm is there to fetch it"):
        llama_cpp()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert llama_cpp() is None


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.parametrize("name", ["as it was", "untied, tanh", "llama, untied, biases"])
def test_where_llama_cpp_python_is_installed_it_makes_the_proof(name: str, peer: Any) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python, which builds for half an hour, is not installed")
    peer("gguf")
    run = run_with((IN_GPT2 | IN_LLAMA)[name])
    assert command("export", run.name, "--to", "there", "--format", "gguf").exit_code == 0
    proof = json.loads(Path("there/proof.json").read_text())
    assert proof["by"].startswith("llama.cpp")
    assert proof["greedy"] == {"tokens": verify.GREEDY_TOKENS, "alike": verify.GREEDY_TOKENS}
    assert 0 < proof["largest_difference"] < 0.05


# ---------------------------------------------------------------------------------------------- the seed's size


@pytest.mark.slow
@pytest.mark.peer
def test_the_seeds_student_goes_everywhere(peer: Any) -> None:
    for package in ("torch", "transformers", "mlx_lm", "gguf"):
        peer(package)
    seed = GPTConfig(50257, layers=8, heads=8, width=384, hidden=1536, context=512, tied=False)
    run = run_with(seed, scale=0.05, words=gpt2_words())
    for kind in ("hf", "mlx", "gguf"):
        said = command("export", run.name, "--to", kind, "--format", kind)
        assert said.exit_code == 0, said.exception
        proof = json.loads(Path(kind, "proof.json").read_text())
        print(kind, proof)
        if kind != "gguf":
            assert proof["largest_difference"] < 1e-3
            assert proof["greedy"] == {"tokens": verify.GREEDY_TOKENS, "alike": verify.GREEDY_TOKENS}
    if folder := llama_cpp():
        text = "One day a fox's   hen.\n\n They ran 12"
        print(assert_llama_cpp_agrees(folder, run, Path("gguf/model.gguf").absolute(), text))
