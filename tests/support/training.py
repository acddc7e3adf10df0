"""A home folder, recipes and steps for tests of real training runs."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from distillkit.core import cpu
from distillkit.core.console import Console
from distillkit.core.errors import Interrupted
from distillkit.core.files import read_jsonl
from distillkit.core.run_folder import Run, newest_run
from distillkit.core.run_folder import home_folder as home_folder
from distillkit.pipeline.context import Context
from distillkit.pipeline.new_run import create_run
from distillkit.pipeline.pipeline import Pipeline
from distillkit.plugins.manager import Plugins, current_plugins
from distillkit.recipe.recipe import load
from distillkit.student import checkpoint as checkpoints
from distillkit.student.training.distributed import ProcessGroup
from support.small_recipe import small

TINY = small(
    "tiny",
    """
dropout = 0.1
[train]
steps = 12
batch_size = 2
accumulate = 2
learning_rate = 0.01
warmup = 2
evaluate_every = 4
evaluate_batches = 2
checkpoint_every = 3
""",
    top="judge = []",
)
PUPIL = """
extends = "tiny.toml"
name = "pupil"
[tokenizer]
kind = "tiny"
[teacher]
provider = "checkpoint"
model = "tiny"
[mixer]
name = "alpha-temperature"
"""
PLUGIN = '''
import json, os, signal
from pathlib import Path
import mlx.core as mx
import mlx.nn as nn
from distillkit import Mixer, Student, Tracker, hookimpl

class Diary(Tracker):
    """Records every call; may send this process signals at a step."""
    name = "diary"
    class Options(Tracker.Options):
        file: str
        signal_at: int = 0
        times: int = 1
    def write(self, *row):
        with Path(self.options.file).open("a") as stream:
            stream.write(json.dumps(row) + "\\n")
    def start(self, run):
        self.write("start", run.name)
    def log(self, step, values):
        self.write("log", step, dict(values))
        if step == self.options.signal_at and "loss" in values:
            for _ in range(self.options.times):
                os.kill(os.getpid(), signal.SIGINT)
    def finish(self, report):
        self.write("finish", report["run"])

class Focal(Mixer):
    """Focal loss. Holds an array that was never evaluated."""
    name = "focal"
    def __init__(self, options=None):
        super().__init__(options)
        self.one = mx.arange(2)[1:] * 1.0
    def rows(self, logits, targets, step):
        logp = targets.log_prob(logits)
        return {"focal": -(self.one - mx.exp(logp)) ** 2 * logp}

class Net(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, 8)
        self.out = nn.Linear(8, vocab_size)
    def __call__(self, tokens):
        return self.tokens(tokens)
    @property
    def head(self):
        return self.out.weight, self.out.bias

class Bigram(Student):
    """A bigram model: no cache, a bias in the head, and its own initialisation."""
    name = "bigram"
    context = 16
    def build(self, vocab_size):
        return Net(vocab_size)

@hookimpl
def register_trackers():
    return [Diary]

@hookimpl
def register_mixers():
    return [Focal]

@hookimpl
def register_students():
    return [Bigram]
'''


class RecordingConsole(Console):
    """Records the printed lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(f"warning: {text}")

    def progress(self, text: str, last: bool = False) -> None:
        pass

    def warnings(self, word: str) -> list[str]:
        return [line for line in self.lines if line.startswith("warning: ") and word in line]


def prepare_home(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("DISTILLKIT_HOME", str(folder))
    patch.chdir(folder)
    (folder / "tiny.toml").write_text(TINY)
    (folder / "pupil.toml").write_text(PUPIL)
    (folder / "plugin.py").write_text(PLUGIN)


def assemble(*overrides: str, recipe: str = "tiny", console: Console | None = None) -> Context:
    plugins = Plugins.load(("plugin.py",))
    return Context(plugins.check(load(f"{recipe}.toml", overrides)), current_plugins(), console)


def sit(
    *overrides: str,
    resume: bool = False,
    recipe: str = "tiny",
    stages: tuple[str, ...] = ("label", "train"),
    console: Console | None = None,
) -> Run:
    """Run the stages of a new or resumed run in this process."""
    parts = assemble(*overrides, recipe=recipe, console=console)
    run = newest_run(recipe) if resume else create_run(parts, {})
    Pipeline(parts, run).execute(stages)
    return run


def weights(run: Run) -> str:
    return str(run.info["training"]["weights_sha256"])


def stopped_at(step: int, *overrides: str, times: int = 1, recipe: str = "tiny") -> Run:
    """A run interrupted after a step: trained once and copied for each test; with a teacher, trained for this test."""
    if recipe != "tiny":
        return stop_at(step, times, *overrides, recipe=recipe)
    return copied(_kept(overrides, cpu.cores(), (step, times)))


def copied(run: Path) -> Run:
    """Copy a run of another folder as the next run of this folder."""
    here = home_folder() / "reports" / "tiny"
    number = 1 + max((int(path.name) for path in here.glob("[0-9]*")), default=0)
    return Run(Path(shutil.copytree(run, here / str(number))))


@cache
def _kept(overrides: tuple[str, ...], cores: int, stop: tuple[int, int] | None = None) -> Path:
    """The folder of a run that was trained with this many cores and interrupted after a step, if given."""
    folder = Path(_shelf().name, str(len(list(Path(_shelf().name).iterdir()))))
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        prepare_home(folder, patch)
        run = stop_at(*stop, *overrides) if stop else sit(*overrides)
        return run.path.resolve()


@cache
def _shelf() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def stop_at(step: int, times: int, *overrides: str, recipe: str = "tiny") -> Run:
    """Start a run and send it Ctrl-C after a step, `times` times."""
    diary = ("tracker.0.name=diary", "tracker.0.file=diary", f"tracker.0.signal_at={step}")
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        sit(*overrides, *diary, f"tracker.0.times={times}", recipe=recipe)
    return newest_run(recipe)


def steps_of(run: Run) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints.list_checkpoints(run.checkpoints)]


def train_steps(run: Run) -> list[int]:
    return [row["step"] for row in read_jsonl(run.metrics) if row["kind"] == "train"]


def fill_the_disk(patch: pytest.MonkeyPatch) -> None:
    """Make every write of a run's record fail from now on."""

    def full(file: Path, values: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    patch.setattr("distillkit.core.run_folder.write_json", full)


def train_losses(run: Run) -> list[float]:
    return [row["loss"] for row in read_jsonl(run.metrics) if row["kind"] == "train"]


class Fake(ProcessGroup):
    """One of two processes; the messages of the other one are given."""

    def __init__(self, rank: int, *others: list[int]) -> None:
        self.rank, self.world_size, self.others = rank, 2, list(others)

    def gather(self, numbers: Any) -> list[list[int]]:
        rows = [list(numbers), self.others.pop(0)]
        return rows if self.rank == 0 else rows[::-1]
