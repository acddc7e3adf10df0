"""Checks of exporters: verified, reproducible files, in a folder of any name.

The exporter is given a small finished run. Does not know its format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import DistillkitError
from ..core.run_folder import Run
from ..plugins.discovery import describe_error
from ..plugins.interfaces import Exporter
from .fixtures import finished_run
from .framework import Case, CheckError, expect, run_checks
from .trackers import digests


def check_exporter(
    cls: type[Exporter], options: Mapping[str, Any] | None = None, *, run: Run | None = None, repeatable: bool = True
) -> list[str]:
    """Check an exporter. `run` replaces the default run, a small GPT, if the exporter needs another student.

    Pass `repeatable=False` if its files contain times or other values that differ between exports.
    """
    checks = [writes_and_verifies_files, accepts_any_folder_name, leaves_the_run_unchanged, refuses_an_untrained_run]
    if repeatable:
        checks.append(is_repeatable)
    return run_checks("exporters", cls, options, checks, run=run)


def run_of(case: Case) -> Run:
    """The run to export."""
    run: Run | None = case.extra["run"]
    return run or finished_run(case.empty_folder("run"))


def writes_and_verifies_files(case: Case) -> None:
    """It writes files and returns a list of lines that say what it verified."""
    folder = case.empty_folder("export")
    lines = case.build().export(run_of(case), folder)
    is_valid = isinstance(lines, list) and lines and all(isinstance(line, str) and line for line in lines)
    expect(is_valid, f"it returned {lines!r}", "Return a list of lines, one for each thing that was verified.")
    expect(digests(folder), "it wrote no file", "Write to the folder that is passed to it.")


def accepts_any_folder_name(case: Case) -> None:
    """The folder's name may contain spaces and non-ASCII characters."""
    folder = case.empty_folder("export") / "Schüler 漢字"
    folder.mkdir()
    case.build().export(run_of(case), folder)
    expect(digests(folder), f"it wrote nothing to a folder named {folder.name!r}", "Use its path unchanged.")


def leaves_the_run_unchanged(case: Case) -> None:
    """It does not modify the run."""
    run = run_of(case)
    before = digests(run.path)
    case.build().export(run, case.empty_folder("export"))
    expect(digests(run.path) == before, "it changed the run", "Write only to the folder that is passed to it.")


def refuses_an_untrained_run(case: Case) -> None:
    """It refuses a run without a checkpoint with a DistillkitError."""
    empty = Run(case.empty_folder("empty"))
    remedy = "Raise a UsageError that says that the run has no checkpoint."
    try:
        case.build().export(empty, case.empty_folder("export"))
    except DistillkitError:
        return
    except Exception as error:
        raise CheckError(f"a run without a checkpoint: {describe_error(error)}", remedy) from error
    raise CheckError("it exported a run that was never trained", remedy)


def is_repeatable(case: Case) -> None:
    """Two exports of a run are byte-identical."""
    run = run_of(case)
    one, two = case.empty_folder("export"), case.empty_folder("export")
    for folder in (one, two):
        case.build().export(run, folder)
    different = sorted(name for name in digests(one) if digests(one)[name] != digests(two).get(name))
    remedy = "Write no times. If it has to, call check_exporter(..., repeatable=False)."
    expect(not different, f"exported twice, {', '.join(different[:3])} differs", remedy)
