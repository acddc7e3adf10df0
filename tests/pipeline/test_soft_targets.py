"""Soft targets in whole runs: stored from logits, or aligned from the log-probabilities of answers in other tokens."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from distillkit_plugins.checkpoint import Checkpoint

from distillkit.core.errors import DistillkitError, Interrupted, UsageError
from distillkit.core.files import read_jsonl
from distillkit.core.run_folder import newest_run
from distillkit.data.corpus import pack_texts
from distillkit.pipeline.checks import check, check_soft_targets
from distillkit.pipeline.pipeline import Pipeline
from distillkit.pipeline.plan import build_plan
from distillkit.pipeline.plan_text import format_plan
from distillkit.pipeline.soft_targets import SoftTargets
from distillkit.pipeline.training_data import HELD_OUT, held_out_stream, training_batches, training_streams
from distillkit.reporting.run.report import build_report, write_report
from distillkit.reporting.run.summary import sections
from distillkit.reporting.run.text import format_report
from distillkit.teachers.soft_targets import from_logits
from support.soft_targets import FOREIGN, assemble, home, sit, trained

__all__ = ["home", "trained"]  # fixtures


class Asked:
    """Counts how often a checkpoint's logits are asked for; it may interrupt, or allow none."""

    def __init__(self, patch: pytest.MonkeyPatch, interrupt_at: int = -1) -> None:
        self.calls, inner = 0, Checkpoint.logits

        def logits(teacher: Checkpoint, tokens: mx.array) -> mx.array:
            self.calls += 1
            if self.calls == interrupt_at:
                raise KeyboardInterrupt
            return inner(teacher, tokens)

        patch.setattr(Checkpoint, "logits", logits)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


# ------------------------------------------------------------------------------------------------ from logits


def test_a_store_is_filled_once_and_read_in_every_step(home: Path, asked: Asked) -> None:
    run = sit("teacher.store=true", "teacher.top_logprobs=0", stages=("label",))
    parts = assemble("teacher.store=true")
    streams = training_streams(parts, run.answers)
    assert len(streams) == 2
    windows = [stream.windows(16) for stream in streams]
    assert asked.calls == sum(-(-some // (4096 // 16)) for some in windows)
    Pipeline(parts, run).execute(("train", "report"))
    assert run.info["training"]["steps"] == 4
    sit("teacher.store=true")  # another run of the same
    assert asked.calls == sum(-(-some // (4096 // 16)) for some in windows)

    soft = run.info["teacher"]["soft"]
    learnt = sum(int(stream.weights(1, stream.tokens).sum()) for stream in streams)
    assert (soft["from"], soft["positions"], soft["with_soft"]) == ("store", learnt, learnt)
    assert 0 < soft["mass"] < 1
    assert soft["bytes_a_position"] <= 84.5  # the columns of a shard are filled up to eight bytes
    batch = training_batches(parts, run.answers).batch(0)
    assert batch.soft_ids is not None
    assert batch.has_soft is not None
    assert batch.soft_log_probs is not None
    assert batch.soft_ids.shape == (4, 16, 20)
    logits = np.array(SoftTargets(parts).logits_teacher.logits(mx.array(batch.inputs))).astype(np.float64)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    there = (batch.has_soft > 0) & (batch.weight > 0)
    best = np.sort(logits, axis=-1)[..., :-21:-1]
    np.testing.assert_allclose(batch.soft_log_probs[there], best[there], atol=5e-3)


def test_draws_can_be_stored_instead(home: Path) -> None:
    run = sit("teacher.store=true", "teacher.store_samples=30")
    batch = training_batches(assemble("teacher.store=true", "teacher.store_samples=30"), run.answers).batch(0)
    assert batch.soft_log_probs is not None
    assert batch.has_soft is not None
    assert np.exp(batch.soft_log_probs).sum(axis=-1)[batch.has_soft > 0] == pytest.approx(1, abs=1e-5)
    assert run.info["teacher"]["soft"]["mass"] == 1.0
    with pytest.raises(UsageError, match=r"stores samples drawn at temperature 1") as caught:
        sit("teacher.store=true", "teacher.store_samples=30", "mixer.temperature=2.0")
    assert "mixer.temperature = 1.0" in caught.value.hint


@pytest.mark.parametrize(
    ("heat", "refused"),
    [
        ('{schedule="linear", from=1.0, to=2.0}', True),
        ('{schedule="cosine", from=1.5, to=1.0, steps=1}', True),
        ('{schedule="warm-stable-decay", from=1.0, to=2.0, steps=2}', True),  # and is 1 again for the rest of the run
        ('{schedule="warm-stable-decay", from=1.0, to=1.0, end=0.5}', True),
        ('{schedule="linear", from=1.0, to=1.0}', False),
        ("1.0", False),
    ],
)
def test_draws_are_refused_whenever_they_would_be_softened(home: Path, heat: str, refused: bool) -> None:
    parts = assemble(
        "teacher.store=true",
        "teacher.store_samples=30",
        "train.steps=100",
        "mixer.name=alpha-temperature",
        f"mixer.temperature={heat}",
    )
    if not refused:
        check_soft_targets(parts)
        return
    with pytest.raises(UsageError, match="stores samples drawn at temperature 1"):
        check_soft_targets(parts)


def test_interrupted_the_teacher_goes_on_reading_where_it_was(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_logits, "TOKENS_AT_ONCE", 256)
    monkeypatch.setattr("distillkit.teachers.soft_targets.store.SoftTargetWriter.__init__.__defaults__", (512,))
    store = "teacher.store=true"
    with monkeypatch.context() as patch:
        stopped = Asked(patch, interrupt_at=9)
        with pytest.raises(Interrupted, match="stopped while the teacher computed soft targets"):
            sit(store)
    assert newest_run("pupil").info["status"] == "interrupted"
    again = Asked(monkeypatch)
    run = sit(store, resume=True)
    windows = sum(-(-stream.windows(16) // 16) for stream in training_streams(assemble(store), run.answers))
    assert again.calls == windows - (stopped.calls - 1) // 2 * 2  # two calls fill a shard
    assert run.info["training"]["steps"] == 4


def test_soft_targets_that_are_gone_are_asked_for_by_name(home: Path) -> None:
    run = sit("teacher.store=true")
    shutil.rmtree(home / "cache" / "soft")
    with pytest.raises(UsageError, match="there are no soft targets") as caught:
        Pipeline(assemble("teacher.store=true", "train.steps=6"), run).execute(("train",))
    assert "distillkit label" in caught.value.hint


# ----------------------------------------------------------------------------------------------- from answers


def test_answers_in_other_tokens_become_soft_targets(home: Path) -> None:
    run = sit(*FOREIGN, "teacher.share=0.5", stages=("label", "train", "report"))
    soft = run.info["teacher"]["soft"]
    parts = assemble(*FOREIGN, "teacher.share=0.5")
    told = training_streams(parts, run.answers)[1]
    assert soft["from"] == "answers"
    assert soft["positions"] == int(told.weights(1, told.tokens).sum())
    assert 0.4 * soft["positions"] < soft["with_soft"] < soft["positions"]
    assert 0 < soft["mass"] < 1
    batch = training_batches(parts, run.answers).batch(1)
    assert batch.has_soft is not None
    assert batch.from_teacher[:, 0].sum() == 2
    assert batch.has_soft[batch.from_teacher > 0].any()
    assert not batch.has_soft[batch.from_teacher == 0].any()

    report = json.loads(run.report.read_text())
    assert report["teacher"]["soft"] == soft
    told_of = f"{soft['with_soft']} of {soft['positions']} positions"
    for text in (format_report(report), (run.path / "report.md").read_text(), (run.path / "report.html").read_text()):
        assert told_of in text
        assert f"{soft['mass']:.1%}" in text
    assert [entry.name for entry in sections(report)["teacher"]].count("mass covered") == 1


def test_the_same_tokens_are_aligned_everywhere(home: Path) -> None:
    run = sit("teacher.signal=top_logprobs", "teacher.top_logprobs=10")
    soft = run.info["teacher"]["soft"]
    assert soft["with_soft"] > 0.9 * soft["positions"]


def test_answers_can_be_kept_from_training(home: Path) -> None:
    plain, apart = (sit(*FOREIGN, f"teacher.held_out={share}") for share in (0.0, 0.5))
    index = read_jsonl(apart.answers / "index.jsonl")
    assert index == read_jsonl(plain.answers / "index.jsonl")
    held_out = apart.info["teacher"]["held_out"]
    assert 0 < held_out < len(index)
    assert "teacher_text" not in plain.info["training"]
    spoken = apart.info["training"]["teacher_text"]
    assert 0 < spoken["loss"] < 10
    assert 0 < spoken["bits_per_byte"] < 20
    parts = assemble(*FOREIGN, "teacher.held_out=0.5")
    stream = held_out_stream(apart.answers)
    assert stream is not None
    assert stream.documents == held_out
    assert spoken["tokens"] == int(stream.weights(1, stream.tokens).sum())
    learnt = list(training_streams(parts, apart.answers)[1].texts(parts.tokenizer))
    assert not set(learnt) & set(stream.texts(parts.tokenizer))
    assert len(learnt) + held_out == len(index)
    write_report(apart)
    assert "loss on teacher text" in format_report(build_report(apart))
    # A later look at the label stage without a held-out share leaves none behind.
    Pipeline(assemble(*FOREIGN), apart).execute(("label",))
    assert held_out_stream(apart.answers) is None


@pytest.mark.parametrize("finished", [True, False])
def test_answers_of_one_token_are_too_little_to_look_at_and_do_not_end_a_run(home: Path, finished: bool) -> None:
    run = sit(*FOREIGN, "teacher.held_out=0.5", stages=("label",))
    parts = assemble(*FOREIGN, "teacher.held_out=0.5")
    pack_texts([("", "Y", finished)] * (1 if finished else 2), parts.tokenizer, run.answers / HELD_OUT)
    Pipeline(parts, run).execute(("train",))
    assert run.info["training"]["steps"] == 4
    assert "teacher_text" not in run.info["training"]


# ------------------------------------------------------------------------------------------- plans, refusals


def test_the_plan_counts_the_bytes(home: Path) -> None:
    parts = assemble("teacher.store=true")
    soft = build_plan(parts)["teacher"]["soft"]
    assert soft["positions"] == parts.corpus.train.tokens + 12 * (8 + 20)
    assert (soft["bytes_a_position"], soft["bytes"]) == (84, 84 * soft["positions"])
    assert re.search(r"soft targets\s+about .* at most 84 bytes", format_plan(build_plan(parts)))
    assert build_plan(assemble(*FOREIGN))["teacher"]["soft"]["bytes"] == 12 * (20 * 44 + (8 + 20) * 4)
    assert build_plan(assemble("mixer.name=hard"))["teacher"]["soft"] is None


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("teacher.store=true", "teacher.signal=text"), "only logits are stored, and the teacher gives text"),
        (("teacher.store_samples=50",), "store_samples without store = true"),
        (("teacher.signal=top_logprobs",), "teacher.top_logprobs: found 0"),
        ((*FOREIGN, "teacher.prompts=0"), "teacher.prompts: found 0"),
    ],
)
def test_what_cannot_be_is_refused_by_the_recipe(home: Path, overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        assemble(*overrides)


def test_the_recipe_says_whether_prompts_are_learnt(home: Path) -> None:
    learnt = {}
    for said in ("false", "true"):
        run = sit(f"teacher.learn_prompts={said}", stages=("label",))
        (stream,) = (one for one in training_streams(assemble(), run.answers) if one.from_teacher)
        learnt[said] = stream.weights(0, stream.tokens)
    assert len(learnt["true"]) == len(learnt["false"])
    assert (learnt["false"] == 0).sum() >= 12 * 7  # a prompt has eight tokens, the last of which may reach beyond it
    assert (learnt["true"] == 0).sum() < 12  # at most the first of each, after an answer that was cut


@pytest.mark.parametrize("store", ["true", "false"])
def test_logits_of_other_tokens_are_never_used(home: Path, asked: Asked, store: str) -> None:
    with pytest.raises(DistillkitError, match="the teacher's tokenizer is not the student's") as caught:
        sit(*FOREIGN[:2], f"teacher.store={store}")
    assert 'tokenizer.kind = "tiny"' in caught.value.hint
    assert 'teacher.signal = "top_logprobs"' in caught.value.hint
    assert asked.calls == 0


@pytest.mark.parametrize("store", ["true", "false"])
def test_a_teacher_that_reads_less_than_the_student_is_refused_by_the_check(
    home: Path, asked: Asked, store: str
) -> None:
    longer = assemble("student.context=17", f"teacher.store={store}")
    with pytest.raises(UsageError, match=r"student\.context = 17, but the teacher's context is 16 tokens") as caught:
        check(longer)
    assert "student.context = 16" in caught.value.hint
    with pytest.raises(UsageError, match="the teacher's context is 16 tokens"):
        build_plan(longer)  # and whoever did not check is refused its logits
    assert asked.calls == 0
    check(assemble("student.context=12", f"teacher.store={store}"))


def test_a_teacher_that_reads_less_may_teach_by_what_it_writes(home: Path) -> None:
    sit("student.context=24", *FOREIGN)


def test_a_teacher_that_does_not_say_how_much_it_reads_is_not_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "context", None)
    check(assemble("student.context=17"))
