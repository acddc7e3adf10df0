"""Real runs: stopped, killed, damaged, extended and resumed, they end where an undisturbed run ends."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from distillkit.core import cpu
from distillkit.core.errors import DistillkitError, Interrupted, LimitReached, TrainingError, UsageError
from distillkit.core.files import read_jsonl
from distillkit.core.run_folder import STAGES, Run, find_run, newest_run
from distillkit.data.batches import sequential
from distillkit.pipeline.new_run import create_run
from distillkit.pipeline.pipeline import STAGE_FUNCTIONS, Pipeline
from distillkit.pipeline.training_data import training_batches
from distillkit.reporting.run.report import build_report, write_report
from distillkit.reporting.run.text import format_report
from distillkit.student import Sampling, Trained, blas
from distillkit.student import checkpoint as checkpoints
from distillkit.student.training.optimizers import flatten
from distillkit.student.training.precision import LOSS_SCALE, MAX_OVERFLOWS
from support.training import (
    RecordingConsole,
    _kept,
    assemble,
    copied,
    fill_the_disk,
    prepare_home,
    sit,
    steps_of,
    stop_at,
    stopped_at,
    train_losses,
    train_steps,
    weights,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for runs and cache, with the recipes and the plugin of these tests."""
    prepare_home(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture(scope="module")
def by_heart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, RecordingConsole]:
    """A student of few texts that learnt them by heart, and what was said meanwhile."""
    told = RecordingConsole()
    little = ("data.stories=4", "data.held_out=0.5", "data.block_chars=200")
    able = ("student.width=64", "student.dropout=0.0", "train.batch_size=4")
    often = ("train.steps=150", "train.evaluate_every=25", "train.checkpoint_every=10", "train.keep=2")
    with pytest.MonkeyPatch.context() as patch:
        prepare_home(tmp_path_factory.mktemp("by_heart"), patch)
        return sit(*little, *able, *often, console=told), told


def refused(*overrides: str, recipe: str = "tiny") -> DistillkitError:
    with pytest.raises(UsageError) as caught:
        sit(*overrides, resume=True, recipe=recipe)
    assert caught.value.exit_code == 2
    return caught.value


def trained(*overrides: str) -> Run:
    """A run that nothing disturbed: trained once, copied for whoever asks."""
    return copied(_kept(overrides, cpu.cores()))


def undisturbed(*overrides: str) -> str:
    """The weights that such a run ends with."""
    return weights(Run(_kept(overrides, cpu.cores())))


def step_names(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir() if not path.name.startswith("."))


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


def start_child(home: Path, *words: str) -> subprocess.Popen[str]:
    """The program itself, in a process of its own."""
    environment = {**os.environ, "DISTILLKIT_HOME": str(home)}
    command = [sys.executable, "-m", "distillkit", *words]
    return subprocess.Popen(
        command,
        cwd=home,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(child: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and what stood on standard error."""
    _, said = child.communicate(timeout=240)
    return child.returncode, said


def wait_for_step(child: subprocess.Popen[str], metrics: Path, step: int) -> None:
    """Wait until a child has logged a step."""
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b'"train"') < step:
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


# ------------------------------------------------------------------------------------------ interrupted


@pytest.mark.slow
def test_ctrl_c_exits_130_says_how_to_go_on_and_ends_like_an_undisturbed_run(home: Path) -> None:
    sparse = ("train.checkpoint_every=50", "train.evaluate_every=100")
    long = [word for key in (*sparse, "train.steps=200") for word in ("--set", key)] + ["--until", "train"]
    child = start_child(home, "run", "tiny.toml", *long)
    metrics = home / "reports" / "tiny" / "1" / "metrics.jsonl"
    wait_for_step(child, metrics, 25)
    child.send_signal(signal.SIGINT)
    code, said = finished(child)
    assert code == 130
    run = find_run("tiny/1")
    stopped = max(steps_of(run))
    assert f"stopped after step {stopped} of 200; everything is saved" in said
    assert 25 <= stopped < 200
    assert run.info["status"] == "interrupted"
    assert train_steps(run) == list(range(1, stopped + 1))
    (advice,) = re.findall(r"Continue: distillkit (run \S+ --resume)", said)
    code, said = finished(start_child(home, *shlex.split(advice), "--until", "train"))
    assert (code, run.info["status"]) == (0, "done"), said
    assert f"from step {stopped} to step 200" in said
    assert train_steps(run) == list(range(1, 201))
    assert weights(run) == undisturbed(*sparse, "train.steps=200")


@pytest.mark.parametrize("step", [1, 3, 4, 5, 11])
def test_a_run_that_was_stopped_anywhere_ends_like_an_undisturbed_one(home: Path, step: int) -> None:
    other = trained("train.streams=2")
    run = stopped_at(step, "train.streams=2")
    assert max(steps_of(run)) == step
    sit("train.streams=2", resume=True)
    assert weights(run) == weights(other)
    assert [drop_speed(row) for row in read_jsonl(run.metrics)] == [
        drop_speed(row) for row in read_jsonl(other.metrics)
    ]


def drop_speed(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "tokens_per_second"}


def test_ctrl_c_at_the_last_step_stops_too_and_loses_nothing(home: Path) -> None:
    run, told = stopped_at(12), RecordingConsole()
    assert run.info["status"] == "interrupted"
    sit(resume=True, console=told)
    assert any("Training is complete" in line for line in told.lines)
    assert weights(run) == undisturbed()


def test_a_second_ctrl_c_stops_at_once_and_the_run_still_goes_on(home: Path) -> None:
    run = stopped_at(8, times=2)
    assert max(steps_of(run)) == 6
    assert run.info["status"] == "interrupted"
    sit(resume=True)
    assert train_steps(run) == list(range(1, 13))
    assert weights(run) == undisturbed()


def test_stopping_during_an_evaluation_loses_no_more_than_the_steps_since_the_last_checkpoint(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(job: Any) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("distillkit.student.training.loop.evaluate", stop)
        with pytest.raises(Interrupted):
            sit()
    run = sit(resume=True)
    assert weights(run) == undisturbed()


@pytest.mark.parametrize(
    ("ended_by", "told"),
    [
        (TrainingError("the loss is no longer a number"), TrainingError),
        (KeyboardInterrupt(), Interrupted),
        (LimitReached("the budget is spent"), LimitReached),
    ],
)
def test_a_disk_that_is_full_by_then_does_not_hide_what_ended_a_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, ended_by: BaseException, told: type[BaseException]
) -> None:
    def end(job: Any, state: Any) -> None:
        fill_the_disk(monkeypatch)
        raise ended_by

    monkeypatch.setattr("distillkit.student.training.loop.train", end)
    with pytest.raises(told):
        sit()


def test_a_disk_that_is_full_when_a_stage_has_ended_well_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGE_FUNCTIONS, "label", lambda session: fill_the_disk(monkeypatch))
    with pytest.raises(OSError, match="No space left"):
        sit()


def test_signals_are_handled_by_the_former_handlers_again(home: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop_at(2, 1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_time_of_all_sittings_adds_up(home: Path) -> None:
    run = stopped_at(5)
    first = run.info["training"]["seconds"]
    sit(resume=True)
    assert run.info["training"]["seconds"] > first > 0


@pytest.mark.slow
def test_a_run_that_was_stopped_says_how_far_it_came_and_is_not_done_when_it_is_judged(home: Path) -> None:
    run = stopped_at(5, 'judge.0.name="perplexity"')
    came = run.info["training"]
    assert (came["steps"], came["tokens"]) == (5, 5 * 2 * 2 * 16)
    sit('judge.0.name="perplexity"', resume=True, stages=("judge", "report"))
    report = build_report(run)
    assert (report["status"], report["missing"]) == ("unfinished", ["train"])
    assert "did not finish" in format_report(report)
    sit('judge.0.name="perplexity"', resume=True, stages=("train", "judge", "report"))
    report = build_report(run)
    assert (report["status"], report["missing"]) == ("done", [])


def test_an_extended_run_that_is_stopped_has_no_figures_of_its_first_end(home: Path) -> None:
    first = trained().info["training"]
    with pytest.raises(TrainingError):
        sit("train.steps=40", "train.learning_rate=1e30", resume=True)
    run = newest_run("tiny")
    (kept,) = checkpoints.list_checkpoints(run.checkpoints)[-1:]
    assert run.info["training"]["steps"] == kept.step
    assert weights(run) == checkpoints.weights_digest(kept.weights())
    assert build_report(run)["missing"] == ["train"]
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        sit(
            *("train.steps=60", "tracker.0.name=diary", "tracker.0.file=diary"),
            f"tracker.0.signal_at={kept.step + 2}",
            resume=True,
        )
    again = run.info["training"]
    assert (again["steps"], again["loss"] != first["loss"]) == (kept.step + 2, True)
    assert weights(run) != first["weights_sha256"]


def test_who_trains_on_has_no_verdicts_samples_or_grades_of_the_weights_before(home: Path) -> None:
    judged = ('judge.0.name="perplexity"', "sampling.count=2", "sampling.max_tokens=4")
    run = sit(*judged, stages=STAGES)
    assert run.info["judged_weights"] == run.info["sampling"]["weights"] == weights(run)
    assert build_report(run)["missing"] == []
    sit(*judged, "train.steps=16", resume=True, stages=("train",))
    report = write_report(run)
    assert (report["judges"], report["missing"]) == ({}, ["judge"])
    assert not run.samples.exists()
    assert not run.grades.exists()
    sit(*judged, "train.steps=16", resume=True, stages=("judge", "report"))
    assert run.info["judged_weights"] == weights(run)
    assert build_report(run)["missing"] == []
    before = run.samples.read_bytes()
    sit(*judged, "train.steps=16", resume=True, stages=("train",))  # nothing is left to train
    assert (build_report(run)["missing"], run.samples.read_bytes()) == ([], before)


def kill_and_go_on(home: Path, kills: int, steps: int, seed: int, longest: float) -> None:
    """Kill a run at random moments, some of them while it starts, then let it end."""
    chance, words = random.Random(seed), ("--set", f"train.steps={steps}", "--until", "train")
    child = start_child(home, "run", "tiny.toml", *words)
    wait_for_step(child, home / "reports" / "tiny" / "1" / "metrics.jsonl", 1)
    run = find_run("tiny/1")
    for _ in range(kills):
        time.sleep(chance.uniform(0, longest))
        child.kill()
        child.communicate()
        assert run.info, "run.json is always whole"
        child = start_child(home, "run", "tiny.toml", "--resume", *words)
    code, said = finished(child)
    assert code == 0, said
    assert weights(run) == undisturbed(f"train.steps={steps}")
    assert train_steps(run) == list(range(1, steps + 1))
    assert not list(run.path.rglob("*.part"))
    for checkpoint in checkpoints.list_checkpoints(run.checkpoints):
        checkpoint.verify()


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_like_an_undisturbed_one(home: Path) -> None:
    kill_and_go_on(home, kills=2, steps=150, seed=1, longest=0.6)


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times_in_a_row_ends_like_an_undisturbed_one(home: Path) -> None:
    kill_and_go_on(home, kills=10, steps=1500, seed=2, longest=3.0)


def test_two_processes_never_train_the_same_run(home: Path) -> None:
    run = stopped_at(4)
    with (run.checkpoints / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "being trained by another process" in refused().message
    assert weights(sit(resume=True)) == undisturbed()


# ------------------------------------------------------------------------------------------ going on


def test_a_run_is_extended_by_more_steps(home: Path) -> None:
    constant = ("train.final_learning_rate=0.01", "train.warmup=0")
    run, told = trained(*constant, "train.steps=7"), RecordingConsole()
    sit(*constant, "train.steps=12", resume=True, console=told)
    assert "Changed since the last session: train.steps was 7 and is 12." in told.lines
    assert any(line.startswith("Training from step 7 to step 12") for line in told.lines)
    assert run.info["training"]["steps"] == 12
    assert weights(run) == undisturbed(*constant, "train.steps=12")


def test_a_run_with_nothing_left_to_do_says_so(home: Path) -> None:
    run, told = trained(), RecordingConsole()
    before = weights(run)
    sit(resume=True, console=told)
    assert "Training is complete: the run has 12 of 12 steps. To extend it, raise train.steps." in told.lines
    assert weights(run) == before
    assert train_steps(run) == list(range(1, 13))


def test_a_changed_learning_rate_is_told(home: Path) -> None:
    run, told = stopped_at(5), RecordingConsole()
    sit("train.learning_rate=0.02", resume=True, console=told)
    assert "Changed since the last session: train.learning_rate was 0.01 and is 0.02." in told.lines
    rates = [row["learning_rate"] for row in read_jsonl(run.metrics) if row["kind"] == "train"]
    assert max(rates[:5]) == pytest.approx(0.01)
    assert 0.01 < rates[5] < 0.02


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("data.stories=61", "the corpus"),
        ("data.held_out=0.3", "the corpus"),
        ("tokenizer.vocab_size=310", "the tokenizer"),
        ("student.width=32", "student.width (16 to 32)"),
        ("student.dropout=0.2", "student.dropout (0.1 to 0.2)"),
        ("seed=43", "the seed"),
        ("train.batch_size=3", "the order of batches"),
    ],
)
def test_a_run_does_not_go_on_with_something_else(home: Path, change: str, named: str) -> None:
    run = stopped_at(5)
    error = refused(change)
    assert error.message.startswith("tiny/1 cannot be resumed: ")
    assert named in error.message
    assert "since its checkpoint at step 5" in error.message
    sit(resume=True)
    assert weights(run) == undisturbed()


@pytest.mark.parametrize("change", ["data.held_out=0.3", "tokenizer.vocab_size=310"])
@pytest.mark.parametrize("stages", [("judge", "report"), ("train",)])
def test_a_run_is_neither_judged_nor_begun_to_train_on_other_text(
    home: Path, change: str, stages: tuple[str, ...]
) -> None:
    judged = ('judge.0.name="perplexity"', "sampling.count=2", "sampling.max_tokens=4")
    before = ("label", "train") if "judge" in stages else ("label",)
    run = sit(*judged, stages=before)
    recipe, info = run.recipe.read_text(), run.info
    with pytest.raises(UsageError, match="tiny/1 began with other text or another tokenizer"):
        sit(*judged, change, resume=True, stages=stages)
    assert (run.recipe.read_text(), run.info) == (recipe, info)
    sit(*judged, resume=True, stages=("train", "judge", "report"))


def test_a_refusal_to_go_on_exits_2(home: Path) -> None:
    stopped_at(5)
    code, said = finished(start_child(home, "run", "tiny.toml", "--resume", "--set", "data.stories=70"))
    assert code == 2
    assert "tiny/1 cannot be resumed: the corpus" in said
    assert "changed since its checkpoint at step 5" in said
    assert "Traceback" not in said


def test_a_batch_may_be_cut_otherwise_when_it_stays_the_same(home: Path) -> None:
    run = stopped_at(5)
    sit("train.batch_size=4", "train.accumulate=1", "student.dropout=0.1", resume=True)
    assert run.info["training"]["steps"] == 12


def test_a_changed_chunk_is_used_and_told(home: Path) -> None:
    run, told = stopped_at(5), RecordingConsole()
    sit("train.chunk=64", resume=True, console=told)
    assert "Changed since the last session: train.chunk was auto and is 64." in told.lines
    assert checkpoints.list_checkpoints(run.checkpoints)[-1].state["numerics"]["chunk"] == 64


def test_going_on_with_more_cores_keeps_the_number_of_streams(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distillkit.core.cpu.cores", lambda: 1)
    run = stopped_at(5, "train.streams=auto")
    monkeypatch.setattr("distillkit.core.cpu.cores", lambda: 2)
    sit("train.streams=auto", resume=True)
    assert weights(run) == undisturbed("train.streams=1")


def test_a_run_that_goes_on_with_another_blas_kernel_says_that_it_is_close_and_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = stopped_at(5), RecordingConsole()
    numerics = checkpoints.list_checkpoints(run.checkpoints)[-1].state["numerics"]
    here = blas.load()
    assert (numerics["blas"], numerics["kernel"]) == (here.name, here.kernel)
    monkeypatch.setattr(blas, "load", lambda: replace(here, kernel="Nehalem"))
    sit(resume=True, console=told)
    assert told.warnings(f"close to an uninterrupted one, but not identical: kernel was {here.kernel} and is Nehalem")
    assert run.info["status"] == "done"
    assert f"({here.kernel} kernels)" in run.info["device"]


def test_more_streams_than_rows_are_not_used(home: Path) -> None:
    assert weights(sit("train.streams=50")) == weights(sit("train.streams=2"))


# ------------------------------------------------------------------------------------------ damage

FILES = ["model.safetensors", "optimizer.safetensors", "student.json", "state.json", "sums.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_noticed_and_the_checkpoint_before_is_used(home: Path, name: str) -> None:
    run, told = stopped_at(5), RecordingConsole()
    flip_a_bit(run.checkpoints / "step-00000005" / name)
    sit(resume=True, console=told)
    (warning,) = told.warnings("step-00000005")
    assert warning.endswith("resuming from step 4")
    assert "damaged-step-00000005" in step_names(run)
    assert weights(run) == undisturbed()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(home: Path, name: str) -> None:
    run, told = stopped_at(5), RecordingConsole()
    (run.checkpoints / "step-00000005" / name).unlink()
    sit(resume=True, console=told)
    assert told.warnings("missing")
    assert weights(run) == undisturbed()


def test_the_same_step_may_be_damaged_again_and_again(home: Path) -> None:
    run = trained()
    for _ in range(3):
        flip_a_bit(run.checkpoints / "step-00000012" / "model.safetensors")
        sit(resume=True)
    assert [name for name in step_names(run) if "damaged" in name] == [
        "damaged-step-00000012",
        "damaged-step-00000012.2",
        "damaged-step-00000012.3",
    ]
    assert weights(run) == undisturbed()


def test_when_every_checkpoint_is_damaged_training_starts_again(home: Path) -> None:
    run, told = stopped_at(7), RecordingConsole()
    count = len(steps_of(run))
    for checkpoint in checkpoints.list_checkpoints(run.checkpoints):
        flip_a_bit(checkpoint.path / "model.safetensors")
    sit(resume=True, console=told)
    assert len(told.warnings("starting from the beginning")) == count
    assert train_steps(run) == list(range(1, 13))
    assert weights(run) == undisturbed()


def test_half_a_last_line_in_the_log_is_survived(home: Path) -> None:
    run = stopped_at(7)
    with run.metrics.open("a") as log:
        log.write('{"kind": "train", "step": 8, "lo')
    sit(resume=True)
    assert train_steps(run) == list(range(1, 13))


def test_rows_after_the_checkpoint_are_written_anew(home: Path) -> None:
    run = stopped_at(8, times=2)  # the log knows step 8, the newest checkpoint step 6
    assert train_steps(run)[-1] == 8
    assert max(steps_of(run)) == 6
    sit(resume=True)
    assert train_steps(run) == list(range(1, 13))
    assert [row["step"] for row in read_jsonl(run.metrics) if row["kind"] == "validation"] == [4, 8, 12]


def test_a_lost_log_does_not_stop_a_run(home: Path) -> None:
    run = stopped_at(7)
    run.metrics.unlink()
    sit(resume=True)
    assert train_steps(run) == list(range(8, 13))
    assert weights(run) == undisturbed()


def test_leftovers_of_a_crash_are_swept_away(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stopped_at(7)
    code = "import sys; from distillkit.core.files import _part_path, Path\n"
    code += "for name in sys.argv[1:]: _part_path(Path(name)).mkdir()"
    subprocess.run([sys.executable, "-c", code, run.path / "x", run.checkpoints / "x"], check=True)
    assert len(list(run.path.rglob("*.part"))) == 2
    monkeypatch.setattr("distillkit.core.files._cleaned", set())  # as in a process of its own
    sit(resume=True)
    assert not list(run.path.rglob("*.part"))


# ------------------------------------------------------------------------------------------ divergence


def test_a_loss_that_is_no_number_stops_with_exit_1_and_names_the_last_good_checkpoint(home: Path) -> None:
    child = start_child(home, "run", "tiny.toml", "--set", "train.learning_rate=1e30", "--until", "train")
    code, said = finished(child)
    run = find_run("tiny/1")
    assert code == 1, said
    assert "the loss is no longer a number after step" in said
    assert f"the last good checkpoint is {run.checkpoints / 'step-00000000'}" in said
    assert "A lower train.learning_rate" in said
    assert "Traceback" not in said
    assert run.info["status"] == "failed"


@pytest.mark.parametrize("every", [1, 3])
def test_weights_that_diverged_are_no_good_checkpoint(home: Path, every: int) -> None:
    often = (f"train.checkpoint_every={every}", f"train.evaluate_every={every}")
    with pytest.raises(TrainingError) as caught:
        sit(*often, "train.learning_rate=1e30", "train.keep=20")
    run = newest_run("tiny")
    good, faults = checkpoints.newest_valid(run.checkpoints)
    assert good is not None
    assert faults == []
    assert str(good.path) in caught.value.message
    assert all(bool(mx.isfinite(value).all()) for value in good.weights().values())
    sit(*often, "train.learning_rate=0.001", resume=True)  # it can be mended
    assert run.info["training"]["steps"] == 12


def test_a_last_step_that_ruins_the_weights_is_no_success(home: Path) -> None:
    with pytest.raises(TrainingError, match="validation loss nan"):
        sit("train.steps=1", "train.learning_rate=1e38", "train.weight_decay=100.0")
    assert newest_run("tiny").info["status"] == "failed"


# ------------------------------------------------------------------------------------------ what is kept


@pytest.mark.slow
def test_only_the_newest_checkpoints_and_the_best_are_kept(by_heart: tuple[Run, RecordingConsole]) -> None:
    run, _ = by_heart
    best = run.info["training"]["best_step"]
    assert best < 140
    assert steps_of(run) == [best, 140, 150]
    losses = {row["step"]: row["loss"] for row in read_jsonl(run.metrics) if row["kind"] == "validation"}
    assert best == min(losses, key=lambda step: losses[step])
    assert run.info["training"]["best_loss"] == losses[best]


def test_the_very_first_state_is_saved(home: Path) -> None:
    run = sit("train.keep=100")
    assert steps_of(run)[0] == 0


def test_the_seed_decides_the_first_weights_and_the_order_of_the_text(home: Path) -> None:
    runs = [sit("train.steps=1", "train.keep=9", "train.learning_rate=1e-30", f"seed={seed}") for seed in (1, 1, 2)]
    first = [checkpoints.weights_digest(checkpoints.list_checkpoints(run.checkpoints)[0].weights()) for run in runs]
    losses = [read_jsonl(run.metrics)[0]["loss"] for run in runs]
    assert first[0] == first[1] != first[2]
    assert losses[0] == losses[1] != losses[2]


def test_a_student_that_is_half_trained_writes(home: Path) -> None:
    run = stopped_at(5)
    student = Trained.load(run.path)
    saved = checkpoints.list_checkpoints(run.checkpoints)[-1]
    assert saved.step == 5
    assert checkpoints.weights_digest(flatten(student.model.parameters())) == checkpoints.weights_digest(
        saved.weights()
    )
    (written,) = student.write(["One day"], [1], Sampling(), 10)
    assert written.tokens > 0
    assert student.score(["One day"])[0].nats > 0


def test_the_student_of_a_run_is_its_last_not_its_best(by_heart: tuple[Run, RecordingConsole]) -> None:
    run, _ = by_heart
    assert checkpoints.weights_digest(flatten(Trained.load(run.path).model.parameters())) == weights(run)


def test_a_run_that_was_never_trained_says_so(home: Path) -> None:
    create_run(assemble(), {})
    with pytest.raises(UsageError, match="the run tiny/1 has no usable checkpoint"):
        Trained.load("tiny")


# ------------------------------------------------------------------------------------------ what is measured


def test_the_validation_loss_is_the_mean_surprise_of_the_held_out_tokens(home: Path) -> None:
    parts = assemble("train.evaluate_batches=10000")
    run = create_run(parts, {})
    Pipeline(parts, run).execute(("train",))
    student, total, count = Trained.load(run.path), 0.0, 0.0
    for batch in sequential(parts.corpus.held_out, 16, 2):
        logits = np.array(student.logits(mx.array(batch.inputs))).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        chosen = np.take_along_axis(logp, batch.hard[..., None], axis=-1)[..., 0]
        total -= (chosen * batch.weight).sum()
        count += batch.weight.sum()
    assert count == parts.corpus.held_out.tokens - 1
    assert run.info["training"]["validation_loss"] == pytest.approx(total / count, rel=1e-5)


def test_each_step_is_logged_with_its_terms_rate_norm_and_speed(home: Path) -> None:
    rows = [row for row in read_jsonl(trained().metrics) if row["kind"] == "train"]
    for row in rows:
        assert row["terms"] == {"hard": row["loss"]}
        assert row["gradient_norm"] > 0
        assert row["tokens_per_second"] > 0
    assert [row["learning_rate"] for row in rows[:3]] == pytest.approx([0.005, 0.01, 0.01])


def test_learning_by_heart_is_pointed_out_once(by_heart: tuple[Run, RecordingConsole]) -> None:
    run, told = by_heart
    (warning,) = told.warnings("overfitting. More documents, fewer train.steps")
    assert re.search(r"step \d+: validation loss \d+\.\d+ rises and training loss is \d+\.\d+", warning)
    (epochs,) = told.warnings("each token is seen")
    assert re.search(r"is seen \d+\.\d times", epochs)
    assert epochs in {f"warning: {text}" for text in run.info["warnings"]}


def test_a_healthy_run_is_not_warned(home: Path) -> None:
    told = RecordingConsole()
    sit(console=told)
    assert told.warnings("") == []


def test_trackers_are_told_of_every_step_and_of_the_report(home: Path) -> None:
    diary = ("tracker.0.name=diary", "tracker.0.file=diary")
    run = sit(*diary, stages=("train", "judge", "report"))
    rows = [json.loads(line) for line in (home / "diary").read_text().splitlines()]
    assert rows[0] == ["start", "tiny/1"]
    assert rows[-1] == ["finish", "tiny/1"]
    logged = [(step, values) for kind, step, values in rows[1:-1] if kind == "log"]
    assert [step for step, values in logged if "loss" in values] == list(range(1, 13))
    assert [step for step, values in logged if "validation_loss" in values] == [4, 8, 12]
    first = read_jsonl(run.metrics)[0]
    assert logged[0][1]["loss"] == logged[0][1]["term/hard"] == first["loss"]


def test_the_student_writes_while_it_is_trained_without_disturbing_that(home: Path) -> None:
    told = RecordingConsole()
    run = sit("train.sample_every=5", console=told)
    samples = [line for line in told.lines if line.startswith("  ") and "|" in line]
    assert len(samples) == 2
    assert weights(run) == undisturbed()


def test_what_the_student_writes_while_it_is_trained_is_drawn_as_the_recipe_says(home: Path) -> None:
    shown = []
    for how in ("sampling.temperature=0", "sampling.top_k=1"):
        told = RecordingConsole()
        sit("train.sample_every=5", how, console=told)
        shown.append([line for line in told.lines if line.startswith("  ") and "|" in line])
    assert len(shown[0]) == 2
    assert shown[0] == shown[1]


# ------------------------------------------------------------------------------------------ students and teachers


def saved_weights(run: Run, step: int) -> dict[str, mx.array]:
    return checkpoints.Checkpoint(checkpoints.step_folder(run.checkpoints, step)).weights()


def test_a_student_may_begin_with_the_weights_of_another(home: Path) -> None:
    origin, told = trained(), RecordingConsole()
    run = sit(
        "student.from=tiny/1", "train.keep=100", "student.dropout=0.0", "seed=7", "tokenizer.kind=tiny", console=told
    )
    assert "Starting from the weights of tiny/1, step 12." in told.lines
    assert checkpoints.weights_digest(saved_weights(run, 0)) == weights(origin)
    assert weights(run) != weights(origin)


def test_a_student_may_begin_with_a_checkpoint_that_was_taken_elsewhere(home: Path) -> None:
    origin, told = trained(), RecordingConsole()
    mine = shutil.copytree(origin.checkpoints / "step-00000012", home / "kept" / "my-own")
    shutil.copytree(origin.tokenizer, mine / "tokenizer")
    run = sit(f"student.from={mine}", "train.keep=100", console=told)
    assert f"Starting from the weights of {mine}, step 12." in told.lines
    assert checkpoints.weights_digest(saved_weights(run, 0)) == weights(origin)


def test_weights_of_another_shape_are_refused(home: Path) -> None:
    trained()
    with pytest.raises(UsageError, match=r"has another architecture: student\.width \(16 to 32\)") as caught:
        sit("student.from=tiny/1", "student.width=32", "student.dropout=0.0")
    assert caught.value.exit_code == 2


def test_weights_that_read_other_tokens_are_refused(home: Path) -> None:
    trained()
    with pytest.raises(UsageError, match="was trained with another tokenizer") as caught:
        sit("student.from=tiny/1", "data.seed=5")
    assert 'tokenizer.kind = "tiny/1"' in caught.value.hint


def test_the_teacher_is_asked_in_every_step_and_learns_nothing(home: Path) -> None:
    origin = trained("train.steps=30")
    parts = assemble(recipe="pupil", console=RecordingConsole())
    teacher: Any = parts.teacher
    before = checkpoints.weights_digest(flatten(teacher.trained.model.parameters()))
    run = create_run(parts, {})
    Pipeline(parts, run).execute(("label", "train"))
    assert before == weights(origin)
    assert checkpoints.weights_digest(flatten(teacher.trained.model.parameters())) == before
    rows = [row for row in read_jsonl(run.metrics) if row["kind"] == "train"]
    assert all(row["terms"]["soft"] > 0 for row in rows)
    assert all(
        row["loss"] == pytest.approx((row["terms"]["hard"] + row["terms"]["soft"]) / 2, rel=1e-5) for row in rows
    )


def test_the_soft_loss_is_the_distance_from_the_teachers_opinion(home: Path) -> None:
    trained("train.steps=30")
    parts = assemble("student.dropout=0.0", "train.keep=100", "mixer.temperature=3.0", recipe="pupil")
    run = create_run(parts, {})
    Pipeline(parts, run).execute(("label", "train"))
    batch = training_batches(parts, Path("nowhere")).batch(0)

    def logp(where: Path) -> Any:
        logits = np.array(Trained.load(where).logits(mx.array(batch.inputs))).astype(np.float64) / 3
        logits -= logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    theirs, ours = logp(find_run("tiny").path), logp(run.checkpoints / "step-00000000")
    expected = 9 * ((np.exp(theirs) * (theirs - ours)).sum(axis=-1) * batch.weight).sum() / batch.weight.sum()
    assert read_jsonl(run.metrics)[0]["terms"]["soft"] == pytest.approx(expected, rel=1e-4)


def test_a_taught_run_that_was_stopped_ends_like_an_undisturbed_one(home: Path) -> None:
    trained()
    other = sit(recipe="pupil")
    diary = ("tracker.0.name=diary", "tracker.0.file=diary", "tracker.0.signal_at=5")
    with pytest.raises(Interrupted):
        sit(*diary, recipe="pupil")
    assert weights(sit(recipe="pupil", resume=True)) == weights(other)


def test_a_teacher_that_reads_other_tokens_is_refused(home: Path) -> None:
    trained()
    with pytest.raises(UsageError, match="the teacher's tokenizer is not the student's") as caught:
        sit("tokenizer.kind=bpe", "tokenizer.vocab_size=320", recipe="pupil")
    assert caught.value.exit_code == 2


def test_a_plugins_mixer_trains(home: Path) -> None:
    told = RecordingConsole()
    run = sit("mixer.name=focal", console=told)
    rows = [row for row in read_jsonl(run.metrics) if row["kind"] == "train"]
    assert all(row["terms"] == {"focal": row["loss"]} for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert weights(run) == weights(sit("mixer.name=focal"))


def test_a_plugins_student_trains_resumes_and_writes(home: Path) -> None:
    run = stopped_at(5, "student.arch=bigram")
    sit("student.arch=bigram", resume=True)
    assert weights(run) == undisturbed("student.arch=bigram")
    assert undisturbed("student.arch=bigram", "seed=2") != weights(run)
    (written,) = Trained.load(run.path).write(["One day"], [1], Sampling(), 30)
    assert written.tokens > 0


# ------------------------------------------------------------------------------------------ precision and memory


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_nearly_the_same_and_keeps_float32(home: Path, precision: str) -> None:
    full, told = trained("train.steps=30"), RecordingConsole()
    half = sit("train.steps=30", f"train.precision={precision}", console=told)
    assert train_losses(half) == pytest.approx(train_losses(full), rel=2e-2)
    assert train_losses(half) != train_losses(full)
    assert told.warnings("many times slower than float32")
    saved = checkpoints.list_checkpoints(half.checkpoints)[-1]
    assert saved.state["numerics"]["precision"] == precision
    for file in ("model", "optimizer"):
        arrays: Any = mx.load(str(saved.path / f"{file}.safetensors"))
        assert {value.dtype for value in arrays.values()} == {mx.float32}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_goes_on_bit_for_bit(home: Path, precision: str) -> None:
    run = stopped_at(5, f"train.precision={precision}")
    sit(f"train.precision={precision}", resume=True)
    assert weights(run) == undisturbed(f"train.precision={precision}")


def test_a_changed_precision_is_told(home: Path) -> None:
    stopped_at(5)
    told = RecordingConsole()
    sit("train.precision=bfloat16", resume=True, console=told)
    assert "Changed since the last session: train.precision was auto and is bfloat16." in told.lines
    assert told.warnings("precision was float32 and is bfloat16")


def test_a_plugins_student_and_mixer_learn_in_half_precision(home: Path) -> None:
    run = sit("student.arch=bigram", "mixer.name=focal", "train.precision=bfloat16")
    other = sit("student.arch=bigram", "mixer.name=focal")
    assert train_losses(run) == pytest.approx(train_losses(other), rel=2e-2)


def test_a_gradient_that_float16_cannot_hold_is_left_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSS_SCALE, "float16", 1e9)
    with pytest.raises(TrainingError, match="gradient norm"):
        sit("train.steps=40", "train.precision=float16")
    run = newest_run("tiny")
    norms = [row["gradient_norm"] for row in read_jsonl(run.metrics) if row["kind"] == "train"]
    assert norms == [None] * (MAX_OVERFLOWS - 1)
    first, *_, last = checkpoints.list_checkpoints(run.checkpoints)
    assert checkpoints.weights_digest(first.weights()) == checkpoints.weights_digest(last.weights())


def test_blocks_computed_again_learn_the_same(home: Path) -> None:
    plain, again = (sit("student.layers=3", f"train.checkpointing={on}") for on in ("false", "true"))
    assert train_losses(again) == pytest.approx(train_losses(plain), rel=1e-5)


def test_a_student_that_cannot_compute_again_says_so(home: Path) -> None:
    with pytest.raises(UsageError, match=r"does not support train\.checkpointing"):
        sit("student.arch=bigram", "train.checkpointing=true")
