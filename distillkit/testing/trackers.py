"""What a tracker owes the host: it listens, whatever comes, and leaves the run as it was.

Tells it of a small run that is done. Does not know where it writes to.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.files import file_digest, read_json
from ..core.run_folder import Run
from ..plugins.interfaces import Tracker
from .fixtures import finished_run
from .framework import Case, expect, run_checks

VALUES = {"loss": 5.25, "hard": 5.0, "soft": 0.25, "learning_rate": 3e-4, "gradient_norm": 1.0}


def check_tracker(cls: type[Tracker], options: Mapping[str, Any] | None = None) -> list[str]:
    """Hold a tracker against its promises. `options` are those of a recipe's [[tracker]] table: let it work offline."""
    checks = [
        tracks_a_complete_run,
        tracks_a_resumed_run,
        handles_an_interrupted_run,
        handles_unusual_values,
        leaves_the_run_unchanged,
    ]
    return run_checks("trackers", cls, options, checks)


def run_of(case: Case) -> Run:
    """A run on disk, in a folder of its own."""
    return finished_run(case.empty_folder("run"))


def _follow(tracker: Tracker, run: Run, steps: range = range(1, 4)) -> None:
    tracker.start(run)
    for step in steps:
        tracker.log(step, VALUES)
    tracker.log(steps[-1], {"validation_loss": 4.5})
    tracker.finish(read_json(run.report))


def tracks_a_complete_run(case: Case) -> None:
    """Start, some steps, an evaluation at a step that was told of already, finish."""
    _follow(case.build(), run_of(case))


def tracks_a_resumed_run(case: Case) -> None:
    """A resumed run is told of again, by a new object, from a later step on."""
    run = run_of(case)
    _follow(case.build(), run)
    _follow(case.build(), run, range(3, 6))


def handles_an_interrupted_run(case: Case) -> None:
    """Nobody calls `finish` then, and another run follows."""
    run = run_of(case)
    tracker = case.build()
    tracker.start(run)
    tracker.log(1, VALUES)
    _follow(case.build(), run)


def handles_unusual_values(case: Case) -> None:
    """None at all, a name that is new, a loss that is not a number; and it leaves them as they were."""
    run, tracker = run_of(case), case.build()
    tracker.start(run)
    for step, told in enumerate(({}, {"loss": float("nan")}, {"loss": float("inf"), "new/name": 1.0}, VALUES)):
        kept = copy.deepcopy(told)
        tracker.log(step, told)
        expect(str(kept) == str(told), f"it made {told} of {kept}", "Copy the values before you change them.")
    report = read_json(run.report)
    kept = copy.deepcopy(report)
    tracker.finish(report)
    expect(kept == report, "it changed the report", "Copy the report before you change it.")


def leaves_the_run_unchanged(case: Case) -> None:
    """It may add files to the run's folder, and changes none that stands there."""
    run = run_of(case)
    before = sums(run.path)
    _follow(case.build(), run)
    after = sums(run.path)
    changed = [name for name in before if after.get(name) != before[name]]
    expect(not changed, f"it changed {', '.join(changed[:3])} of the run", "Write to a file or folder of your own.")


def sums(folder: Path) -> dict[str, str]:
    """The digest of every file of a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file_digest(file) for file in files}
