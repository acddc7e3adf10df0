"""What an exporter owes the host: files that were looked at again, the same each time, in a folder of any name.

Hands it a small run that is done. Does not know the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import DistillkitError
from ..core.run_folder import Run
from ..plugins.discovery import reason
from ..plugins.interfaces import Exporter
from .materials import finished_run
from .promises import BrokenError, Case, check, expect
from .trackers import sums


def check_exporter(
    cls: type[Exporter], options: Mapping[str, Any] | None = None, *, run: Run | None = None, repeatable: bool = True
) -> list[str]:
    """Hold an exporter against its promises. `run` is a run of yours, if a small GPT will not do.

    Say `repeatable=False` of one that writes times or other things that differ each time.
    """
    promises = [writes_files_and_says_what_it_checked, takes_any_folder, leaves_the_run_as_it_was, refuses_in_words]
    if repeatable:
        promises.append(repeats_itself)
    return check("exporters", cls, options, promises, run=run)


def run_of(case: Case) -> Run:
    """The run to export."""
    given: Run | None = case.more["run"]
    return given or finished_run(case.place("run"))


def writes_files_and_says_what_it_checked(case: Case) -> None:
    """A list of lines for the user; what nobody looked at again may be wrong."""
    folder = case.place("export")
    told = case.new().export(run_of(case), folder)
    good = isinstance(told, list) and told and all(isinstance(line, str) and line for line in told)
    expect(good, f"it returned {told!r}", "Return a list of lines, one for each thing that was checked.")
    expect(sums(folder), "it wrote no file", "Write to the folder that it is handed.")


def takes_any_folder(case: Case) -> None:
    """Also one with blanks, and a name that is not ASCII."""
    folder = case.place("export") / "Schüler 漢字"
    folder.mkdir()
    case.new().export(run_of(case), folder)
    expect(sums(folder), f"it wrote nothing to a folder named {folder.name!r}", "Hand its path on as it is.")


def leaves_the_run_as_it_was(case: Case) -> None:
    """What is exported is not changed."""
    run = run_of(case)
    before = sums(run.path)
    case.new().export(run, case.place("export"))
    expect(sums(run.path) == before, "it changed the run", "Write to the folder that it is handed, nowhere else.")


def refuses_in_words(case: Case) -> None:
    """A run that was never trained cannot be exported."""
    empty = Run(case.place("empty"))
    remedy = "Raise a UsageError that says so."
    try:
        case.new().export(empty, case.place("export"))
    except DistillkitError:
        return
    except Exception as error:
        raise BrokenError(f"a run without a checkpoint: {reason(error)}", remedy) from error
    raise BrokenError("it exported a run that was never trained", remedy)


def repeats_itself(case: Case) -> None:
    """The same run, the same bytes."""
    run = run_of(case)
    one, two = case.place("export"), case.place("export")
    for folder in (one, two):
        case.new().export(run, folder)
    differ = sorted(name for name in sums(one) if sums(one)[name] != sums(two).get(name))
    remedy = "Write no times; if it must, say check_exporter(..., repeatable=False)."
    expect(not differ, f"exported twice, {', '.join(differ[:3])} differs", remedy)
