"""The tables of a comparison as pandas data frames: shared by page, terminal and CSV files.

Knows the content of a comparison and the runs that it was built from, not how a cell is formatted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .compared_run import ComparedRun

if TYPE_CHECKING:
    from pandas import DataFrame

VALUE_KEYS = ("value", "low", "high")


def all_tables(comparison: Mapping[str, Any]) -> dict[str, DataFrame]:
    """The tables of a comparison by name."""
    return {
        "runs": runs_table(comparison),
        "differences": differences_table(comparison),
        "recipes": _by_run(comparison["recipes"], "key", comparison["runs"]),
        "provenance": _by_run(comparison["provenance"], "fact", comparison["runs"]),
    }


def csv_tables(comparison: Mapping[str, Any], runs: Sequence[ComparedRun]) -> dict[str, DataFrame]:
    """All tables by file name, with the page's curves and all samples. Their text is not escaped."""
    tables = {**all_tables(comparison), "curves": _curves(runs), "samples": _samples(runs)}
    return {f"{name}.csv": table for name, table in tables.items()}


def runs_table(comparison: Mapping[str, Any]) -> DataFrame:
    """One row per run in ranking order: rank, verdict, all metrics, and cost."""
    verdicts = {(row["versus"], row["judge"], row["metric"]): row["verdict"] for row in comparison["rows"]}
    values = {(row["run"], row["judge"], row["metric"]): row for row in comparison["figures"]}
    ranked = {row["run"]: row for row in comparison["ranking"]["rows"]}
    rows = []
    for name in [*ranked] or comparison["runs"]:
        place = ranked.get(name, {})
        row = {"rank": place.get("rank"), "run": name, "verdict": place.get("verdict")}
        for metric in comparison["metrics"]:
            key = (name, metric["judge"], metric["metric"])
            row |= _metric_columns(f"{metric['judge']}.{metric['metric']}", values.get(key, {}), verdicts.get(key))
        rows.append(row | comparison["about"][name])
    return _frame(rows)


def _metric_columns(name: str, values: Mapping[str, Any], verdict: str | None) -> dict[str, Any]:
    value, low, high = (values.get(key) for key in VALUE_KEYS)
    return {name: value, f"{name}.low": low, f"{name}.high": high, f"{name}.verdict": verdict}


def differences_table(comparison: Mapping[str, Any]) -> DataFrame:
    """One row per metric and run: both values, the difference with its statistics, and the verdict."""
    rows = []
    for row in comparison["rows"]:
        baseline, other = (row["values"].get(row[side]) or {} for side in ("baseline", "versus"))
        names = {"run": row["versus"], "baseline": row["baseline"], "judge": row["judge"], "metric": row["metric"]}
        values = {"baseline_value": baseline.get("value"), "value": other.get("value")}
        rest = ("difference", "low", "high", "n", "p", "p_adjusted", "detectable", "verdict", "note")
        rows.append({**names, **values, **{key: row[key] for key in rest}})
    return _frame(rows, ["run", "baseline", "judge", "metric"])


def _by_run(rows: Sequence[Mapping[str, Any]], first: str, names: Sequence[str]) -> DataFrame:
    """One row per key, one column per run."""
    return _frame([{first: row[first], **row["values"]} for row in rows], [first, *names])


def _curves(runs: Sequence[ComparedRun]) -> DataFrame:
    rows = [
        {"run": run.name, "kind": kind, "step": step, "loss": loss}
        for run in runs
        for kind in ("training", "validation")
        for step, loss in run.curves[kind]
    ]
    return _frame(rows, ["run", "kind", "step", "loss"])


def _samples(runs: Sequence[ComparedRun]) -> DataFrame:
    rows = [{"run": run.name, **vars(sample)} for run in runs for sample in run.samples]
    return _frame(rows, ["run", "id", "prompt", "completion", "temperature"])


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> DataFrame:
    """A data frame of objects: integers stay integers in columns with missing values."""
    import pandas

    return pandas.DataFrame(list(rows), columns=columns and list(dict.fromkeys([*columns, *_keys(rows)])), dtype=object)


def _keys(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    return (key for row in rows for key in row)


def to_rows(table: DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as plain values, with None for missing ones."""
    return [dict(zip(table.columns, row, strict=True)) for row in table.where(table.notna(), None).to_numpy()]


def transpose(table: DataFrame) -> DataFrame:
    """A table with one row per run instead of one column per run, for comparisons of many runs."""
    first = table.columns[0]
    transposed = table.set_index(first).T
    return transposed.rename_axis("run").reset_index()
