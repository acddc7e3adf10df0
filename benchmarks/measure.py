"""What all benchmarks share: processes of their own, medians, a table for people and JSON for programs.

These figures are ratios within one run: machines differ, and are busy with other things. Knows no engine.
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


class Failed(SystemExit):
    """An engine ended with an error, which this tells the end of."""


def subject(engine: str, problem: str, steps: int, device: str | None = None) -> dict[str, Any]:
    """What one engine took for some steps of a problem, in a process of its own."""
    command = [sys.executable, str(HERE / "subject.py"), engine, problem, str(steps), *([device] if device else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{engine} failed:\n{done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one shape as a Markdown table."""
    names = list(rows[0])
    lines = [names, ["---" for _ in names], *([str(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tell(title: str, rows: Sequence[Mapping[str, Any]], result: Mapping[str, Any], path: Path | None) -> None:
    """Print the table; write the JSON beside it if a path is given."""
    from distillkit.student import blas

    blas.load()  # before anything imports mlx
    from distillkit.pipeline.bench import machine

    where = machine()
    print(f"\n{title}\n{where['cpu']}, {where['cores']} cores, {where['packages']}\n\n{table(rows)}\n")
    if path:
        path.write_text(json.dumps({"title": title, "machine": where, **result}, indent=2) + "\n", encoding="utf-8")
