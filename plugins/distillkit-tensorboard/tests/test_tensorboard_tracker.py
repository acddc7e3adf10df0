"""Runs in TensorBoard: real recipes, and TensorBoard's own reader of what was written."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from distillkit_tensorboard import redact_keys
from distillkit_tensorboard.events import EventFile
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

RECIPE = """
name = "watched"
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
steps = 6
batch_size = 2
evaluate_every = 3
checkpoint_every = 3
[sampling]
count = 3
max_tokens = 8
[[tracker]]
name = "tensorboard"
samples = 2
"""
KEY = "canary.in.the.mine.1"


def distillkit(home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DISTILLKIT_HOME": str(home), "COLUMNS": "100", **variables}
    more = [] if _installed() else ["-p", "distillkit_tensorboard"]
    command = [sys.executable, "-m", "distillkit", *more, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, timeout=300)


def _installed() -> bool:
    from importlib.metadata import entry_points

    return any(entry.value == "distillkit_tensorboard" for entry in entry_points(group="distillkit"))


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(found: EventAccumulator, tag: str) -> dict[int, float]:
    rows = found.Scalars(tag)
    assert len({row.step for row in rows}) == len(rows), f"{tag} has a step twice"
    return {row.step: row.value for row in rows}


def text(found: EventAccumulator, tag: str) -> str:
    (event,) = found.Tensors(f"{tag}/text_summary")
    return bytes(tensor_util.make_ndarray(event.tensor_proto)[0]).decode()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("watched")
    (home / "watched.toml").write_text(RECIPE)
    done = distillkit(home, "run", "watched.toml", GROQ_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    return home / "reports/watched/1"


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]


def test_what_was_logged_is_what_tensorboard_reads(watched: Path) -> None:
    found = read(watched / "tensorboard")
    train, validation = rows(watched, "train"), rows(watched, "validation")
    for tag, key in (("train/loss", "loss"), ("train/learning_rate", "learning_rate")):
        assert scalars(found, tag) == pytest.approx({row["step"]: row[key] for row in train}, rel=1e-6)
    terms = {row["step"]: row["terms"]["hard"] for row in train}
    assert scalars(found, "train/terms/hard") == pytest.approx(terms, rel=1e-6)
    losses = {row["step"]: row["loss"] for row in validation}
    assert scalars(found, "evaluation/loss") == pytest.approx(losses, rel=1e-6)


def test_the_report_and_samples_come_last(watched: Path) -> None:
    found = read(watched / "tensorboard")
    report = json.loads((watched / "report.json").read_text())
    metric = report["judges"]["perplexity"]["bits_per_byte"]
    for bound, tag in (("value", ""), ("low", "/low"), ("high", "/high")):
        assert scalars(found, f"judges/perplexity/bits_per_byte{tag}") == pytest.approx({6: metric[bound]}, rel=1e-6)
    assert scalars(found, "training/steps") == {6: 6}
    assert 'name = "watched"' in text(found, "recipe")
    samples = [json.loads(line) for line in (watched / "samples.jsonl").read_text().splitlines()]
    assert samples[0]["prompt"].split()[0] in text(found, "samples/0")
    assert "samples/1/text_summary" in found.Tags()["tensors"]
    assert "samples/2/text_summary" not in found.Tags()["tensors"]
    told = b"".join(path.read_bytes() for path in (watched / "tensorboard").iterdir())
    assert KEY.encode() not in told


def test_a_run_that_goes_on_has_every_step_once(tmp_path: Path) -> None:
    (tmp_path / "watched.toml").write_text(RECIPE)
    assert distillkit(tmp_path, "run", "watched.toml").returncode == 0
    done = distillkit(tmp_path, "run", "watched.toml", "--set", "train.steps=9", "--resume")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "reports/watched/1"
    found = read(run / "tensorboard")
    assert len(list((run / "tensorboard").iterdir())) == 2
    expected = {row["step"]: row["loss"] for row in rows(run, "train")}
    assert scalars(found, "train/loss") == pytest.approx(expected, rel=1e-6)
    assert sorted(expected) == list(range(1, 10))


def test_steps_that_are_done_again_void_those_of_before(tmp_path: Path) -> None:
    first = EventFile(tmp_path, 1)
    for step in range(1, 8):
        first.scalars(step, {"loss": float(step)})
    # The process is killed here, and goes on from a checkpoint at step 4.
    again = EventFile(tmp_path, 5)
    for step in range(5, 10):
        again.scalars(step, {"loss": 100.0 + step})
    expected = {step: float(step) if step < 5 else 100.0 + step for step in range(1, 10)}
    assert scalars(read(tmp_path), "loss") == expected


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=20), st.floats(width=32), min_size=1, max_size=6),
    st.integers(0, 2**62),
    st.text(max_size=300),
)
def test_whatever_is_said_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, float], step: int, words: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    file = EventFile(folder)
    file.scalars(step, values)
    file.text(step, "words", words)
    found = read(folder)
    for tag, value in values.items():
        (row,) = found.Scalars(tag)
        assert row.step == step
        assert row.value == value or (math.isnan(value) and math.isnan(row.value))
    assert text(found, "words") == words


def test_a_number_too_large_for_single_precision_is_infinite(tmp_path: Path) -> None:
    EventFile(tmp_path).scalars(1, {"a": 1e300, "b": -1e300})
    assert [scalars(read(tmp_path), tag)[1] for tag in "ab"] == [math.inf, -math.inf]


def test_keys_are_taken_out_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    assert redact_keys(f"Bearer {KEY}") == "Bearer ***"


def test_it_keeps_the_promises_of_a_tracker() -> None:
    from distillkit_tensorboard import TensorBoard

    from distillkit.testing import check_tracker

    check_tracker(TensorBoard)
