"""`make acceptance`: results are kept with their machine, failures are repeated, successes are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.scripts import script

acceptance = script("benchmarks/acceptance.py")


def experiment(log: Path, code: int) -> Any:
    """An experiment that notes each time it runs, writes a result and exits with a code."""
    command = f"bash -c 'echo ran >> {log}; echo {{{{\\\"value\\\": 7}}}} > {{json}}; exit {code}'"
    return acceptance.Experiment("one", "notes its runs", command, command)


def test_a_result_is_kept_with_its_machine_and_a_success_is_not_repeated(tmp_path: Path) -> None:
    log, results = tmp_path / "log", tmp_path / "results"
    assert acceptance.run(experiment(log, 0), results)
    record = json.loads((results / "one.json").read_text())
    assert record["result"] == {"value": 7}
    assert record["exit_code"] == 0
    assert record["machine"]["cpu"]
    assert acceptance.run(experiment(log, 0), results)
    assert log.read_text() == "ran\n"
    assert acceptance.run(experiment(log, 0), results, again=True)
    assert log.read_text() == "ran\n" * 2


def test_a_failure_is_recorded_and_repeated_the_next_time(tmp_path: Path) -> None:
    log, results = tmp_path / "log", tmp_path / "results"
    assert not acceptance.run(experiment(log, 3), results)
    assert json.loads((results / "one.json").read_text())["exit_code"] == 3
    assert acceptance.run(experiment(log, 0), results)
    assert log.read_text() == "ran\n" * 2


def test_small_results_are_kept_apart(tmp_path: Path) -> None:
    log, results = tmp_path / "log", tmp_path / "results"
    assert acceptance.run(experiment(log, 0), results, small=True)
    assert [file.name for file in results.iterdir()] == ["one.small.json"]
