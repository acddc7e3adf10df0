"""Checks of trackers: they accept all values and do not modify the run.

The tracker is given a small finished run. Does not know where it writes to.
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
    """Check a tracker. `options` are those of a recipe's [[tracker]] table; choose ones that work offline."""
    checks = [
        tracks_a_complete_run,
        tracks_a_resumed_run,
        handles_an_interrupted_run,
        handles_unusual_values,
        leaves_the_run_unchanged,
    ]
    return run_checks("trackers", cls, options, checks)


def run_of(case: Case) -> Run:
    """A finished run in a new folder."""
    return finished_run(case.empty_folder("run"))


def _follow(tracker: Tracker, run: Run, steps: range = range(1, 4)) -> None:
    tracker.start(run)
    for step in steps:
        tracker.log(step, VALUES)
    tracker.log(steps[-1], {"validation_loss": 4.5})
    tracker.finish(read_json(run.report))


def tracks_a_complete_run(case: Case) -> None:
    """Start, some steps, an evaluation at a step that was already logged, finish."""
    _follow(case.build(), run_of(case))


def tracks_a_resumed_run(case: Case) -> None:
    """A resumed run is tracked by a new instance, starting at a later step."""
    run = run_of(case)
    _follow(case.build(), run)
    _follow(case.build(), run, range(3, 6))


def handles_an_interrupted_run(case: Case) -> None:
    """`finish` may never be called, and another run may follow."""
    run = run_of(case)
    tracker = case.build()
    tracker.start(run)
    tracker.log(1, VALUES)
    _follow(case.build(), run)


def handles_unusual_values(case: Case) -> None:
    """No values, new names, NaN and infinity; the values passed to it are not modified."""
    run, tracker = run_of(case), case.build()
    tracker.start(run)
    for step, values in enumerate(({}, {"loss": float("nan")}, {"loss": float("inf"), "new/name": 1.0}, VALUES)):
        before = copy.deepcopy(values)
        tracker.log(step, values)
        expect(
            str(before) == str(values), f"it changed {before} to {values}", "Copy the values before you change them."
        )
    report = read_json(run.report)
    before = copy.deepcopy(report)
    tracker.finish(report)
    expect(before == report, "it changed the report", "Copy the report before you change it.")


def leaves_the_run_unchanged(case: Case) -> None:
    """It may add files to the run's folder, but does not change existing ones."""
    run = run_of(case)
    before = digests(run.path)
    _follow(case.build(), run)
    after = digests(run.path)
    changed = [name for name in before if after.get(name) != before[name]]
    expect(not changed, f"it changed {', '.join(changed[:3])} of the run", "Write to a new file or folder.")


def digests(folder: Path) -> dict[str, str]:
    """The digest of every file of a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file_digest(file) for file in files}
