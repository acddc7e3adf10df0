"""The run folder: the paths of its files, `run.json`, and finding runs by name.

Does not know the contents of files other than `run.json`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from .errors import CorruptError, UsageError, did_you_mean
from .files import atomic_folder, digest, file_lock, json_roundtrip, read_json, write_json
from .processes import current_process, has_ended

SCHEMA = 1
STAGES = ("label", "train", "judge", "report")
RUNNING, CUT_OFF = "running", "cut off"  # "cut off": the process ended without recording a status
CHECKSUM = "checksum"  # key of the checksum of all other values of run.json
# Keys of run.json that describe the judged weights.
JUDGING_KEYS = ("judges", "judges_protocol", "judges_design", "lower_is_better", "neither_is_better", "together")


def home_folder() -> Path:
    """The folder that contains `cache/` and `reports/`: DISTILLKIT_HOME or the current folder."""
    return Path(os.environ.get("DISTILLKIT_HOME") or ".")


def cache_folder() -> Path:
    """The folder of answers, corpora and downloads, shared by all runs."""
    return home_folder() / "cache"


def reports_folder() -> Path:
    """The folder of the runs."""
    return home_folder() / "reports"


@dataclass(frozen=True)
class Run:
    """A run of a recipe, by its folder."""

    path: Path

    @property
    def name(self) -> str:
        """The name of the run: recipe/number."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}"

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def plan(self) -> Path:
        """The plan: estimated calls, cost, memory and time."""
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        """The metrics: one line per step or evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def answers(self) -> Path:
        """The folder of soft targets and of the index of the answers that were used."""
        return self.path / "answers"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, one folder each."""
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer."""
        return self.path / "tokenizer"

    @property
    def samples(self) -> Path:
        """The samples of the student."""
        return self.path / "samples.jsonl"

    @property
    def grades(self) -> Path:
        """The grades of the judges."""
        return self.path / "grades.jsonl"

    @property
    def report(self) -> Path:
        """The machine-readable report."""
        return self.path / "report.json"

    @property
    def info(self) -> dict[str, Any]:
        """The contents of `run.json`: versions, plugins, seeds, hashes, device, status."""
        file = self.path / "run.json"
        try:
            values = read_json(file)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (ValueError, OSError) as error:
            raise CorruptError(f"{file} cannot be read: {error}", self._recovery_hint) from error
        if not isinstance(values, dict):
            raise CorruptError(f"{file} is not a run's record", self._recovery_hint)
        checksum = values.pop(CHECKSUM, None)  # absent in old runs
        if checksum not in (None, digest(values)):
            raise CorruptError(f"{file} is damaged: its checksum is not the one that was written", self._recovery_hint)
        if values.get("status") == RUNNING and "process" in values and has_ended(*values["process"]):
            values["status"] = CUT_OFF
        return values

    @property
    def _recovery_hint(self) -> str:
        """The hint for a damaged `run.json`."""
        newest = max(self.checkpoints.glob("step-*"), default=None)
        weights = f' from the weights of this run: student.from = "{newest}"' if newest else ""
        return f"Start a new run{weights}. Answers of teachers are in the cache."

    def mark_running(self) -> None:
        """Record that this process executes the run."""
        self.record(status=RUNNING, process=current_process())

    def mark_ended(self, status: str, **more: Any) -> None:
        """Record the final status, and remove the error of an earlier failure."""

        def ended(info: dict[str, Any]) -> dict[str, Any]:
            return {**{key: value for key, value in info.items() if key != "error"}, "status": status, **more}

        self.update_info(ended)

    def discard_judging(self) -> None:
        """Discard results of judges and of training, except the training time: training changes the weights."""

        def moved(info: dict[str, Any]) -> dict[str, Any]:
            kept = {
                key: value for key, value in info.items() if key not in (*JUDGING_KEYS, "judged_weights", "sampling")
            }
            training = info.get("training") or {}
            return {**kept, "training": {key: value for key, value in training.items() if key == "seconds"}}

        self.update_info(moved)
        for written in (self.samples, self.grades):
            written.unlink(missing_ok=True)

    def record(self, **values: Any) -> None:
        """Set values in `run.json`."""
        self.update_info(lambda info: {**info, **values})

    def record_spending(self, spent: Mapping[str, float]) -> None:
        """Record spending on teachers immediately, so that a budget survives a killed process."""
        if dict(spent) != self.info.get("spent"):
            self.record(spent=dict(spent))

    def update_info(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Apply a change to `run.json` under a lock, so that concurrent changes are not lost."""
        file = self.path / "run.json"
        with file_lock(file):
            values = json_roundtrip(change(self.info))
            write_json(file, {**values, CHECKSUM: digest(values)})

    @contextmanager
    def training_lock(self) -> Iterator[bool]:
        """Lock the run for training. Yields whether the lock was acquired; it ends with the process."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        with (self.checkpoints / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    @property
    def is_being_trained(self) -> bool:
        """Whether another process is training the run."""
        with self.training_lock() as free:
            return not free

    @property
    def busy_error(self) -> UsageError:
        """The error for a process that cannot lock the run for training."""
        return UsageError(f"{self.name} is being trained by another process", "Wait for it, or stop it first.")


@contextmanager
def new_run_folder(recipe: str, info: Mapping[str, Any]) -> Iterator[tuple[Run, Run]]:
    """Create a run with the next free number. Yields the run, and the run at the temporary folder to fill.

    Two processes never get the same number. A run folder is complete or empty: a crash leaves an empty folder.
    """
    run = Run(_next_number(reports_folder() / recipe))
    try:
        with atomic_folder(run.path) as part:
            unfinished = Run(part)
            unfinished.record(schema=SCHEMA, run=run.name, **info)
            unfinished.mark_running()
            yield run, unfinished
    except BaseException:
        with suppress(OSError):
            run.path.rmdir()
        raise


def _next_number(folder: Path) -> Path:
    """Create the folder with the next free number."""
    folder.mkdir(parents=True, exist_ok=True)
    number = max((int(path.name) for path in _numbered_folders(folder)), default=0) + 1
    while True:
        try:
            (folder / str(number)).mkdir()
            return folder / str(number)
        except FileExistsError:
            number += 1


def _numbered_folders(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name))


def runs_of(recipe: str) -> list[Run]:
    """The runs of a recipe, oldest first, without empty folders left by a crash."""
    return [Run(path) for path in _numbered_folders(reports_folder() / recipe) if any(path.iterdir())]


def all_runs() -> list[Run]:
    """The runs of all recipes, oldest first within each recipe."""
    if not reports_folder().is_dir():
        return []
    names = sorted(path.name for path in reports_folder().iterdir() if path.is_dir())
    return [run for name in names for run in runs_of(name)]


def find_run(spec: str = "latest") -> Run:
    """Find a run by its folder, by recipe/number, by the name of its recipe (its newest run), or by `latest`."""
    if spec == "latest":
        return _latest_run()
    for folder in (Path(spec), reports_folder() / spec):
        if _is_run(folder):
            return Run(folder)
    if runs := [run for run in runs_of(spec) if _is_run(run.path)]:
        return runs[-1]
    names = {name for run in all_runs() for name in (run.path.parent.name, run.name)}
    raise UsageError(f"there is no run {spec!r} in {reports_folder()}", did_you_mean(spec, names))


def _latest_run() -> Run:
    runs = [run for run in all_runs() if _is_run(run.path)]
    if not runs:
        raise UsageError(
            f"there are no runs in {reports_folder()}",
            "Create one: distillkit run quickstart",
        )
    return max(runs, key=lambda run: (run.path / "run.json").stat().st_mtime_ns)


def _is_run(folder: Path) -> bool:
    """Whether a folder contains a run. Folders that are new or were left by a crash have no `run.json`."""
    return (folder / "run.json").is_file()


def bundled_checkpoints() -> dict[str, Path]:
    """The students bundled with the package, by name."""
    folder = Path(str(resources.files("distillkit_recipes"))) / "checkpoints"
    return {path.name: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def bundled_checkpoint(name: str) -> Path | None:
    """The folder of a bundled student, or None."""
    return bundled_checkpoints().get(name)


def newest_run(recipe: str) -> Run:
    """The newest run of a recipe, for `--resume`."""
    runs = runs_of(recipe)
    if not runs:
        raise UsageError(f"there is no run of {recipe!r} to resume", "Leave out --resume to start one.")
    return runs[-1]
