"""The table of `distillkit runs`: one row per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.errors import DistillkitError
from ...core.run_folder import Run
from .. import formatting, terminal
from .report import Rows, results_of_final_weights, to_json_values


def list_runs(runs: Sequence[Run]) -> Rows:
    """One row per run. A run whose record cannot be read is listed with the status `unreadable`."""
    return [_row(run) for run in runs]


def _row(run: Run) -> dict[str, Any]:
    try:
        info = results_of_final_weights(to_json_values(run.info))
    except DistillkitError:
        info = {"status": "unreadable"}
    judge, metric, values = _headline_metric(info.get("judges") or {})
    return {
        "run": run.name,
        "recipe": info.get("recipe") or run.path.parent.name,
        "status": info.get("status") or "not known",
        "parameters": ((info.get("student") or {}).get("parameters") or {}).get("unique"),
        "judge": judge,
        "metric": metric,
        **{key: values.get(key) for key in ("value", "low", "high")},
        "steps": (info.get("training") or {}).get("steps"),
        "started": info.get("started"),
    }


def _headline_metric(judges: Mapping[str, Any]) -> tuple[str | None, str | None, Mapping[str, Any]]:
    """Judge, name and values of the metric that represents a run: bits per byte, otherwise the first one."""
    found = [(judge, name, value) for judge, metrics in judges.items() for name, value in metrics.items()]
    found.sort(key=lambda row: row[1] != "bits_per_byte")
    return found[0] if found else (None, None, {})


def format_listing(rows: Rows, colour: bool = False) -> str:
    """The listing as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return "There are no runs yet. Start one: distillkit run quickstart\n"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in ("run", "status", "parameters", "metric", "steps", "started"):
        table.add_column(head, justify="right" if head in ("parameters", "steps") else "left")
    for row in rows:
        table.add_row(*map(Text, _cells(row)))
    return terminal.render(table, colour)


def _cells(row: Mapping[str, Any]) -> list[str]:
    counts = ["" if row[key] is None else formatting.format_count(row[key]) for key in ("parameters", "steps")]
    value = formatting.format_interval(row).partition(" [")[0]
    metric = f"{formatting.readable_name(row['metric'])} {value}" if row["metric"] else ""
    started = formatting.format_time(row["started"]).removesuffix(" UTC") if row["started"] else ""
    name, status = formatting.one_line(row["run"]), formatting.one_line(row["status"])
    return [name, status, counts[0], metric, counts[1], started]
