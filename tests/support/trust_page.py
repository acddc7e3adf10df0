"""Write the table of docs/trust.md from the results of the trust tests: `make trust`.

    python tests/support/trust_page.py FOLDER [--page docs/trust.md]

Knows no promise: they stand in the tests, and come by the ledger. Where a section has no row, or something was tried
less often than it is promised, the page is left as it is. Tests that failed or did not run stand below the table: they
may have written nothing down.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from distillkit import __version__
from distillkit.core.files import read_jsonl, write_text

sys.path.insert(0, str(Path(__file__).parents[1]))  # where `support` lies, when this runs as a script

from support.trust_ledger import FILE, SECTIONS

BEGIN, END = "<!-- made by `make trust` -->", "<!-- end of what is made -->"
REPORT = "tests.xml"  # of pytest, in the same folder
HEAD = ("| Promise | Tried | Held | Figure | Test |", "| --- | ---: | ---: | --- | --- |")


def rows(folder: Path) -> list[dict[str, Any]]:
    """One row per promise, ordered by section, then as recorded; results of one promise are added up."""
    found: dict[str, dict] = {}
    for row in read_jsonl(folder / FILE):
        whole = found.setdefault(row["promise"], {"tried": 0, "held": 0, "least": 0, "figures": {}, "tests": {}})
        whole["least"] = max(whole["least"], row.get("least", 0))
        whole["tried"] += row["tried"]
        whole["held"] += row["held"]
        whole["figures"] |= {row["figure"]: None} if row["figure"] else {}
        whole["tests"] |= {row["test"]: None}
    ordered = sorted(found, key=lambda promise: SECTIONS.index(promise.partition(": ")[0]))
    return [{"promise": promise, **found[promise]} for promise in ordered]


def table(folder: Path) -> str:
    """The table in Markdown, section by section."""
    lines, last = [_measured(), "", *HEAD], ""
    for row in rows(folder):
        section, _, said = str(row["promise"]).partition(": ")
        lines += [f"| **{section}** | | | | |"] if section != last else []
        figures, tests = (
            "; ".join(row["figures"]),
            ", ".join(f"`{test.removeprefix('tests/')}`" for test in row["tests"]),
        )
        lines.append(f"| {_cell(said)} | {row['tried']:,} | {row['held']:,} | {_cell(figures)} | {tests} |")
        last = section
    return "\n".join([*lines, *untold(folder)])


def lacks(folder: Path) -> list[str]:
    """Why no table can be written from the recorded results."""
    found = rows(folder) if (folder / FILE).is_file() else []
    there = {row["promise"].partition(": ")[0] for row in found}
    return [f"{section}: no test has written anything down" for section in SECTIONS if section not in there] + [
        f"{row['promise']}: {row['tried']} tried, of {row['least']} that are promised"
        for row in found
        if row["tried"] < row["least"]
    ]


def untold(folder: Path) -> list[str]:
    """The names of the tests that failed or were skipped, from pytest's report."""
    if not (folder / REPORT).is_file():
        return []
    found: dict[str, dict[str, None]] = {"Failed": {}, "Did not run": {}}
    for case in ElementTree.parse(folder / REPORT).iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('tests.').replace('.', '/')}.py::{case.get('name')}"
        for kind, what in (("failure", "Failed"), ("error", "Failed"), ("skipped", "Did not run")):
            if case.find(kind) is not None:
                found[what][f"`{name.partition('[')[0]}`"] = None
    return [f"\n{what}: {', '.join(names)}." for what, names in found.items() if names]


def _measured() -> str:
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return f"distillkit {__version__}, {datetime.now(UTC):%Y-%m-%d}, {system}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Write the table between its markers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path, default=Path("docs/trust.md"))
    given = parser.parse_args()
    if reasons := lacks(given.folder):
        raise SystemExit("\n".join([f"{given.page} is left as it is:", *reasons]))
    before, _, rest = given.page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{given.page} has no place for the table: {BEGIN} and {END}")
    write_text(given.page, f"{before}{BEGIN}\n{table(given.folder)}\n{END}{after}")


if __name__ == "__main__":
    main()
