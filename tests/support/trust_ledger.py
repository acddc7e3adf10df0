"""Record the results of the trust tests in the folder that DISTILLKIT_TRUST names, for the table in docs/trust.md.

The contract, for any test of a promise:

    pytestmark = pytest.mark.trust               # or on the test; `make trust` runs what is marked so, slow or not

    def test_every_kill_is_survived(tmp_path):
        tried = size(30, full=200)               # the second one under `make trust`
        survived = ...
        held("Crashes: a killed command finishes", tried, survived, f"{survived} kills")

A promise begins with one of SECTIONS and a colon; the rest is a sentence that a user understands. Calls with equal
promises, of parametrised tests for instance, are added up in the table; their figures are put side by side. `held`
fails the test when not all held. Without DISTILLKIT_TRUST nothing is written down.

Knows no promise.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

Size = TypeVar("Size")
FOLDER = "DISTILLKIT_TRUST"
FILE = "ledger.jsonl"
SECTIONS = [
    "Crashes",
    "Disk",
    "Concurrent processes",
    "Determinism",
    "Load",
    "Bad input",
    "Secrets",
    "Code from data",
    "Supply",
]


def held(promise: str, tried: int, held: int, figure: str = "", test: str | None = None, least: int = 0) -> None:
    """Record that a promise held in `held` of `tried` cases; the test is the running one, unless given.

    Of promises that say how often they are tried, `least` is that number: with fewer, all added up, no table is made.
    """
    assert promise.partition(": ")[0] in SECTIONS, f"{promise!r} begins with none of {', '.join(SECTIONS)}"
    assert tried > 0, f"{promise}: nothing was tried"
    if folder := os.environ.get(FOLDER):
        row = {"promise": promise, "test": test or _running(), "tried": tried, "held": held, "figure": figure}
        row |= {"least": least} if least else {}
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / FILE).open("ab", buffering=0) as file:  # one write, for tests may run side by side
            file.write(json.dumps(row).encode() + b"\n")
    assert held == tried, f"{promise}: {held} of {tried}"


def lacking(what: str) -> NoReturn:
    """Skip a test that needs something that is missing; under `make trust` it fails instead."""
    (pytest.fail if os.environ.get(FOLDER) else pytest.skip)(what)


def size(small: Size, full: Size) -> Size:
    """The number of cases: `small` among the slow tests, `full` under `make trust`."""
    return full if os.environ.get(FOLDER) else small


def _running() -> str:
    """The running test, without its parameters: tests/test_x.py::test_y."""
    return os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0].partition("[")[0]
