"""Helpers of all benchmarks: run an engine in a separate process, compute medians, print a table and write JSON.

Benchmarks compare ratios within one run, because machines differ and are busy with other work. Knows no engine.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class EngineError(SystemExit):
    """An engine failed. The message contains the end of its error output."""


def run_engine(engine: str, problem: str, steps: int, device: str | None = None) -> dict[str, Any]:
    """The times, losses and peak memory of some steps of one engine, run in a separate process."""
    command = [sys.executable, str(HERE / "run_engine.py"), engine, problem, str(steps), *([device] if device else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"{engine} failed:\n{done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""
    names = list(rows[0])
    lines = [names, ["---" for _ in names], *([str(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(title: str, rows: Sequence[Mapping[str, Any]], result: Mapping[str, Any], path: Path | None) -> None:
    """Print a table of the results, and write them as JSON if a path is given."""
    from distillkit.student import blas

    blas.load()  # before anything imports mlx
    from distillkit.pipeline.bench import describe_machine

    computer = describe_machine()
    print(f"\n{title}\n{computer['cpu']}, {computer['cores']} cores, {computer['packages']}\n\n{table(rows)}\n")
    if path:
        path.write_text(json.dumps({"title": title, "machine": computer, **result}, indent=2) + "\n", encoding="utf-8")
