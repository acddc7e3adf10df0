"""docs/trust.md is made of what its tests wrote down, and names tests that are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ledger import FOLDER, SECTIONS, held, size

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "trust.md"


def made(ledger: Path, page: Path) -> str:
    subprocess.run([sys.executable, ROOT / "tests" / "trust.py", ledger, "--page", page], check=True)
    return page.read_text(encoding="utf-8")


def test_what_was_tried_is_added_up_and_put_between_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "trust.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setenv(FOLDER, str(tmp_path / "ledger"))
    held("Secrets: no key | anywhere", 7, 7)
    held("Crashes: all finish", 3, 3, "3 kills")
    held("Crashes: all finish", 4, 4, "4 kills", test="tests/test_b.py::test_c")
    with pytest.raises(AssertionError, match="half of it: 1 of 2"):
        held("Disk: half of it", 2, 1)
    with pytest.raises(AssertionError, match="begins with none"):
        held("Manners: no", 1, 1)
    text = made(tmp_path / "ledger", page)
    here = "`test_trust.py::test_what_was_tried_is_added_up_and_put_between_the_marks`"
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert lines == [
        "| **Crashes** | | | | |",
        f"| all finish | 7 | 7 | 3 kills; 4 kills | {here}, `test_b.py::test_c` |",
        "| **Disk** | | | | |",
        f"| half of it | 2 | 1 |  | {here} |",
        "| **Secrets** | | | | |",
        f"| no key \\| anywhere | 7 | 7 |  | {here} |",
    ]
    assert made(tmp_path / "ledger", page) == text  # what was there before is replaced


def test_without_a_folder_nothing_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    held("Disk: all of it", 2, 2)
    assert size(3, 10) == 3
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert size(3, 10) == 10


def test_every_test_that_the_page_names_is_there_and_all_that_was_tried_held() -> None:
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| (?!Promise|---|\*\*)", line)
    ]
    for promise, tried, kept, _, tests in rows:
        assert tried == kept, promise
        for file, name in re.findall(r"`([\w/.]+)::(\w+)`", tests):
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{promise}: {file}::{name}"
    assert len(set(SECTIONS)) == len(SECTIONS)
