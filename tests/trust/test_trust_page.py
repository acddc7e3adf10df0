"""docs/trust.md is made of what its tests wrote down, and names tests that are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT
from support.trust_ledger import FOLDER, SECTIONS, held, lacking, size
from support.trust_page import BEGIN, END

PAGE = ROOT / "docs" / "trust.md"


def make(ledger: Path, page: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tests" / "support" / "trust_page.py", ledger, "--page", page]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def made(ledger: Path, page: Path) -> str:
    assert make(ledger, page).returncode == 0
    return page.read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page of its own, and a ledger beside it."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "ledger"))
    page = tmp_path / "trust.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    return page


def table_of(text: str) -> str:
    """The ledger's part of the page, without the table of faults."""
    return text.partition(BEGIN)[2].partition(END)[0]


def fill(*but: str) -> None:
    """Something in every section."""
    for section in SECTIONS:
        if section not in but:
            held(f"{section}: all is well", 1, 1)


def test_what_was_tried_is_added_up_and_put_between_the_marks(tmp_path: Path, page: Path) -> None:
    held("Secrets: no key | anywhere", 7, 7)
    held("Crashes: all finish", 3, 3, "3 kills")
    held("Crashes: all finish", 4, 4, "4 kills", test="tests/test_b.py::test_c")
    with pytest.raises(AssertionError, match="half of it: 1 of 2"):
        held("Disk: half of it", 2, 1)
    with pytest.raises(AssertionError, match="begins with none"):
        held("Manners: no", 1, 1)
    with pytest.raises(AssertionError, match="nothing was tried"):
        held("Disk: nothing", 0, 0)
    fill("Secrets", "Crashes", "Disk")
    text = made(tmp_path / "ledger", page)
    here = "`trust/test_trust_page.py::test_what_was_tried_is_added_up_and_put_between_the_marks`"
    lines = [line for line in table_of(text).splitlines() if line.startswith("| ") and "all is well" not in line][2:]
    assert [line for line in lines if not line.startswith("| **")] == [
        f"| all finish | 7 | 7 | 3 kills; 4 kills | {here}, `test_b.py::test_c` |",
        f"| half of it | 2 | 1 |  | {here} |",
        f"| no key \\| anywhere | 7 | 7 |  | {here} |",
    ]
    assert [line for line in lines if line.startswith("| **")] == [f"| **{section}** | | | | |" for section in SECTIONS]
    assert made(tmp_path / "ledger", page) == text  # what was there before is replaced


def refused(tmp_path: Path, page: Path) -> str:
    before = page.read_bytes()
    done = make(tmp_path / "ledger", page)
    assert done.returncode == 1
    assert page.read_bytes() == before
    return done.stderr


def test_no_table_is_made_of_half_a_ledger(tmp_path: Path, page: Path) -> None:
    assert "Crashes: no test has written anything down" in refused(tmp_path, page)
    fill("Supply")
    said = refused(tmp_path, page)
    assert "Supply: no test has written anything down" in said
    assert "Crashes" not in said
    held("Supply: all is well", 1, 1)
    held("Crashes: many are killed", 60, 60, least=200)
    assert "Crashes: many are killed: 60 tried, of 200 that are promised" in refused(tmp_path, page)
    held("Crashes: many are killed", 140, 140, least=200)
    assert "| many are killed | 200 | 200 |" in made(tmp_path / "ledger", page)


def test_what_failed_before_it_wrote_anything_down_stands_below_the_table(tmp_path: Path, page: Path) -> None:
    fill()
    test = "import pytest\n@pytest.mark.parametrize('n', [1, 2])\ndef test_{name}(n): {what}\n"
    for name, what in {"a": "assert n == 1", "b": "pytest.skip('no')", "c": "pass"}.items():
        (tmp_path / f"test_{name}.py").write_text(test.format(name=name, what=what))
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={tmp_path / 'ledger' / 'tests.xml'}"]
    assert subprocess.run([*run, str(tmp_path)], cwd=tmp_path, capture_output=True, check=False).returncode == 1
    text = table_of(made(tmp_path / "ledger", page))
    assert "\nFailed: `test_a.py::test_a`.\n" in text
    assert "\nDid not run: `test_b.py::test_b`.\n" in text
    assert "test_c" not in text


def test_what_is_lacking_is_skipped_here_and_fails_where_promises_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no disk"):
        lacking("no disk")
    monkeypatch.setenv(FOLDER, "somewhere")
    with pytest.raises(pytest.fail.Exception, match="no disk"):
        lacking("no disk")


def test_without_a_folder_nothing_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    held("Disk: all of it", 2, 2)
    assert size(3, 10) == 3
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert size(3, 10) == 10


def test_every_test_that_the_page_names_is_there_and_all_that_was_tried_held() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table_of(text).splitlines()
        if re.match(r"\| (?!Promise|---|\*\*)", line)
    ]
    for promise, tried, kept, _, tests in rows:
        assert tried == kept, promise
        for file, name in re.findall(r"`([\w/.]+)::(\w+)`", tests):
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{promise}: {file}::{name}"
    assert len(set(SECTIONS)) == len(SECTIONS)
    if rows:
        assert re.findall(r"^\| \*\*(.*)\*\* \|", text, re.MULTILINE) == SECTIONS
        assert not re.findall(r"^(Failed|Did not run): ", text, re.MULTILINE)
