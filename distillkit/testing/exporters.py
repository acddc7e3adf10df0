"""What an exporter owes the host: files that were looked at again, the same each time, in a folder of any name.

Hands it a small run that is done. Does not know the format.
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
from .trackers import sums


def check_exporter(
    cls: type[Exporter], options: Mapping[str, Any] | None = None, *, run: Run | None = None, repeatable: bool = True
) -> list[str]:
    """Hold an exporter against its promises. `run` is a run of yours, if a small GPT will not do.

    Say `repeatable=False` of one that writes times or other things that differ each time.
    """
    checks = [writes_and_verifies_files, accepts_any_folder_name, leaves_the_run_unchanged, refuses_an_untrained_run]
    if repeatable:
        checks.append(is_repeatable)
    return run_checks("exporters", cls, options, checks, run=run)


def run_of(case: Case) -> Run:
    """The run to export."""
    given: Run | None = case.extra["run"]
    return given or finished_run(case.empty_folder("run"))


def writes_and_verifies_files(case: Case) -> None:
    """A list of lines for the user; what nobody looked at again may be wrong."""
    folder = case.empty_folder("export")
    told = case.build().export(run_of(case), folder)
    good = isinstance(told, list) and told and all(isinstance(line, str) and line for line in told)
    expect(good, f"it returned {told!r}", "Return a list of lines, one for each thing that was checked.")
    expect(sums(folder), "it wrote no file", "Write to the folder that it is handed.")


def accepts_any_folder_name(case: Case) -> None:
    """Also one with blanks, and a name that is not ASCII."""
    folder = case.empty_folder("export") / "Schüler 漢字"
    folder.mkdir()
    case.build().export(run_of(case), folder)
    expect(sums(folder), f"it wrote nothing to a folder named {folder.name!r}", "Hand its path on as it is.")


def leaves_the_run_unchanged(case: Case) -> None:
    """What is exported is not changed."""
    run = run_of(case)
    before = sums(run.path)
    case.build().export(run, case.empty_folder("export"))
    expect(sums(run.path) == before, "it changed the run", "Write to the folder that it is handed, nowhere else.")


def refuses_an_untrained_run(case: Case) -> None:
    """A run that was never trained cannot be exported."""
    empty = Run(case.empty_folder("empty"))
    remedy = "Raise a UsageError that says so."
    try:
        case.build().export(empty, case.empty_folder("export"))
    except DistillkitError:
        return
    except Exception as error:
        raise CheckError(f"a run without a checkpoint: {describe_error(error)}", remedy) from error
    raise CheckError("it exported a run that was never trained", remedy)


def is_repeatable(case: Case) -> None:
    """The same run, the same bytes."""
    run = run_of(case)
    one, two = case.empty_folder("export"), case.empty_folder("export")
    for folder in (one, two):
        case.build().export(run, folder)
    differ = sorted(name for name in sums(one) if sums(one)[name] != sums(two).get(name))
    remedy = "Write no times; if it must, say check_exporter(..., repeatable=False)."
    expect(not differ, f"exported twice, {', '.join(differ[:3])} differs", remedy)
