"""The run folder: where every artefact of a run lives, and how runs are found again.

Knows names and places, not what is in them; only `run.json` is read and written here.
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
RUNNING, CUT_OFF = "running", "cut off"  # by whatever ended its process: nobody could say more
CHECKSUM = "checksum"  # of all else that `run.json` says
# Of the weights that were judged.
JUDGING_KEYS = ("judges", "judges_protocol", "judges_design", "lower_is_better", "neither_is_better", "together")


def home_folder() -> Path:
    """The folder that holds `cache/` and `reports/`: DISTILLKIT_HOME, or the current one."""
    return Path(os.environ.get("DISTILLKIT_HOME") or ".")


def cache_folder() -> Path:
    """Where answers and packed corpora live, for all runs."""
    return home_folder() / "cache"


def reports_folder() -> Path:
    """Where runs live."""
    return home_folder() / "reports"


@dataclass(frozen=True)
class Run:
    """One execution of a recipe, and its folder."""

    path: Path

    @property
    def name(self) -> str:
        """The name that finds it again: recipe/number."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}"

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def plan(self) -> Path:
        """What was foreseen."""
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        """One line a step or evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def answers(self) -> Path:
        """Which answers of the cache this run used, and soft targets."""
        return self.path / "answers"

    @property
    def checkpoints(self) -> Path:
        """A folder a checkpoint."""
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """The files that load the tokenizer again."""
        return self.path / "tokenizer"

    @property
    def samples(self) -> Path:
        """What the student wrote."""
        return self.path / "samples.jsonl"

    @property
    def grades(self) -> Path:
        """What the judges said."""
        return self.path / "grades.jsonl"

    @property
    def report(self) -> Path:
        """The report, for machines."""
        return self.path / "report.json"

    @property
    def info(self) -> dict[str, Any]:
        """What `run.json` says: versions, plugins, seeds, hashes, device, status."""
        file = self.path / "run.json"
        try:
            values = read_json(file)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (ValueError, OSError) as error:
            raise CorruptError(f"{file} cannot be read: {error}", self._recovery_hint) from error
        if not isinstance(values, dict):
            raise CorruptError(f"{file} is not a run's record", self._recovery_hint)
        checksum = values.pop(CHECKSUM, None)  # runs from before there was one have none
        if checksum not in (None, digest(values)):
            raise CorruptError(f"{file} is damaged: its checksum is not the one that was written", self._recovery_hint)
        if values.get("status") == RUNNING and "process" in values and has_ended(*values["process"]):
            values["status"] = CUT_OFF
        return values

    @property
    def _recovery_hint(self) -> str:
        """What to do without the record."""
        newest = max(self.checkpoints.glob("step-*"), default=None)
        learnt = f', with what this one has learnt: student.from = "{newest}"' if newest else ""
        return f"Begin a new run{learnt}. Answers of teachers are in the cache."

    def mark_running(self) -> None:
        """Record that this process is at work on it."""
        self.record(status=RUNNING, process=current_process())

    def mark_ended(self, status: str, **more: Any) -> None:
        """Record how it ended, and nothing of how it once failed."""

        def ended(info: dict[str, Any]) -> dict[str, Any]:
            return {**{key: value for key, value in info.items() if key != "error"}, "status": status, **more}

        self.update_info(ended)

    def discard_judging(self) -> None:
        """Forget all that was said of its weights, which move from here on, but for the time that they took."""

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
        """Add to `run.json`; what stood under the same keys is replaced."""
        self.update_info(lambda info: {**info, **values})

    def record_spending(self, spent: Mapping[str, float]) -> None:
        """Record what teachers have cost so far, at once: a budget must outlive a process that is killed."""
        if dict(spent) != self.info.get("spent"):
            self.record(spent=dict(spent))

    def update_info(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Change what `run.json` says. Of two processes that do so at once, the second sees what the first has said."""
        file = self.path / "run.json"
        with file_lock(file):
            values = json_roundtrip(change(self.info))
            write_json(file, {**values, CHECKSUM: digest(values)})

    @contextmanager
    def training_lock(self) -> Iterator[bool]:
        """Hold the run for training: whether it could be had. The lock goes with the process."""
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
        """Whether another process trains it now."""
        with self.training_lock() as free:
            return not free

    @property
    def busy_error(self) -> UsageError:
        """What is said to whoever wants to train it then."""
        return UsageError(f"{self.name} is being trained by another process", "Wait for it, or stop it first.")


@contextmanager
def new_run_folder(recipe: str, info: Mapping[str, Any]) -> Iterator[tuple[Run, Run]]:
    """A new run under the next free number, and where it is to be filled until the block ends.

    Two processes never get the same number. A run is there whole, or not at all: a crash leaves an empty number.
    """
    run = Run(_next_number(reports_folder() / recipe))
    try:
        with atomic_folder(run.path) as part:
            begun = Run(part)
            begun.record(schema=SCHEMA, run=run.name, **info)
            begun.mark_running()
            yield run, begun
    except BaseException:
        with suppress(OSError):
            run.path.rmdir()
        raise


def _next_number(folder: Path) -> Path:
    """An empty folder that is nobody else's."""
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
    """The runs of a recipe, oldest first; a number that a crash left empty is none."""
    return [Run(path) for path in _numbered_folders(reports_folder() / recipe) if any(path.iterdir())]


def all_runs() -> list[Run]:
    """All runs, oldest first within each recipe."""
    if not reports_folder().is_dir():
        return []
    names = sorted(path.name for path in reports_folder().iterdir() if path.is_dir())
    return [run for name in names for run in runs_of(name)]


def find_run(spec: str = "latest") -> Run:
    """The run that a person means: a folder, recipe/number, a recipe's name, or `latest`."""
    if spec == "latest":
        return _latest_run()
    for folder in (Path(spec), reports_folder() / spec):
        if _is_run(folder):
            return Run(folder)
    if begun := [run for run in runs_of(spec) if _is_run(run.path)]:
        return begun[-1]
    names = {name for run in all_runs() for name in (run.path.parent.name, run.name)}
    raise UsageError(f"there is no run {spec!r} in {reports_folder()}", did_you_mean(spec, names))


def _latest_run() -> Run:
    runs = [run for run in all_runs() if _is_run(run.path)]
    if not runs:
        raise UsageError(
            f"there are no runs in {reports_folder()}",
            "Make one: distillkit run quickstart",
        )
    return max(runs, key=lambda run: (run.path / "run.json").stat().st_mtime_ns)


def _is_run(folder: Path) -> bool:
    """Whether a run began here: a folder that was only just made, or left by a crash, has no record."""
    return (folder / "run.json").is_file()


def bundled_checkpoints() -> dict[str, Path]:
    """The students that ship with the package."""
    folder = Path(str(resources.files("distillkit_recipes"))) / "checkpoints"
    return {path.name: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def bundled_checkpoint(name: str) -> Path | None:
    """The folder of a student that ships with the package, or None."""
    return bundled_checkpoints().get(name)


def newest_run(recipe: str) -> Run:
    """The run of a recipe that `--resume` means."""
    runs = runs_of(recipe)
    if not runs:
        raise UsageError(f"there is no run of {recipe!r} to go on with", "Leave out --resume to begin one.")
    return runs[-1]
