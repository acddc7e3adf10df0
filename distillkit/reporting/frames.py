"""The tables of a comparison, held by pandas: what people see on a page or a terminal, and find in CSV files.

Knows the content of a comparison and the sides it was made of; how a cell reads is not its affair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .compare.compared_run import Side

if TYPE_CHECKING:
    from pandas import DataFrame

FIGURES = ("value", "low", "high")


def frames(comparison: Mapping[str, Any]) -> dict[str, DataFrame]:
    """Every table of a comparison by its name."""
    return {
        "runs": runs(comparison),
        "differences": differences(comparison),
        "recipes": _by_run(comparison["recipes"], "key", comparison["runs"]),
        "provenance": _by_run(comparison["provenance"], "fact", comparison["runs"]),
    }


def csvs(comparison: Mapping[str, Any], found: Sequence[Side]) -> dict[str, DataFrame]:
    """The tables by file name, with what the page shows of curves and samples. Text stands in them unescaped."""
    tables = {**frames(comparison), "curves": _curves(found), "samples": _samples(found)}
    return {f"{name}.csv": table for name, table in tables.items()}


def runs(comparison: Mapping[str, Any]) -> DataFrame:
    """A row a run in the order of the ranking: its rank and verdict, every figure, and what it took."""
    verdicts = {(row["versus"], row["judge"], row["metric"]): row["verdict"] for row in comparison["rows"]}
    figures = {(row["run"], row["judge"], row["metric"]): row for row in comparison["figures"]}
    ranked = {row["run"]: row for row in comparison["ranking"]["rows"]}
    rows = []
    for name in [*ranked] or comparison["runs"]:
        place = ranked.get(name, {})
        row = {"rank": place.get("rank"), "run": name, "verdict": place.get("verdict")}
        for metric in comparison["metrics"]:
            key = (name, metric["judge"], metric["metric"])
            row |= _figure(f"{metric['judge']}.{metric['metric']}", figures.get(key, {}), verdicts.get(key))
        rows.append(row | comparison["about"][name])
    return _frame(rows)


def _figure(name: str, figures: Mapping[str, Any], verdict: str | None) -> dict[str, Any]:
    """The columns of one metric."""
    value, low, high = (figures.get(key) for key in FIGURES)
    return {name: value, f"{name}.low": low, f"{name}.high": high, f"{name}.verdict": verdict}


def differences(comparison: Mapping[str, Any]) -> DataFrame:
    """A row a metric and run: both values, the difference, and what can be said of it."""
    rows = []
    for row in comparison["rows"]:
        ours, theirs = (row["values"].get(row[side]) or {} for side in ("baseline", "versus"))
        own = {"run": row["versus"], "baseline": row["baseline"], "judge": row["judge"], "metric": row["metric"]}
        own |= {"baseline_value": ours.get("value"), "value": theirs.get("value")}
        rest = ("difference", "low", "high", "n", "p", "p_adjusted", "detectable", "verdict", "note")
        rows.append(own | {key: row[key] for key in rest})
    return _frame(rows, ["run", "baseline", "judge", "metric"])


def _by_run(rows: Sequence[Mapping[str, Any]], first: str, names: Sequence[str]) -> DataFrame:
    """A row a fact, a column a run."""
    return _frame([{first: row[first], **row["values"]} for row in rows], [first, *names])


def _curves(found: Sequence[Side]) -> DataFrame:
    rows = [
        {"run": side.name, "kind": kind, "step": step, "loss": loss}
        for side in found
        for kind in ("training", "validation")
        for step, loss in side.curves[kind]
    ]
    return _frame(rows, ["run", "kind", "step", "loss"])


def _samples(found: Sequence[Side]) -> DataFrame:
    rows = [{"run": side.name, **vars(sample)} for side in found for sample in side.samples]
    return _frame(rows, ["run", "id", "prompt", "completion", "temperature"])


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> DataFrame:
    """A table of values as they are: a whole number stays one beside what is missing."""
    import pandas

    return pandas.DataFrame(list(rows), columns=columns and list(dict.fromkeys([*columns, *_keys(rows)])), dtype=object)


def _keys(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    return (key for row in rows for key in row)


def records(table: DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as plain values, with None for what is missing."""
    return [dict(zip(table.columns, row, strict=True)) for row in table.where(table.notna(), None).to_numpy()]


def wide(table: DataFrame) -> DataFrame:
    """A table with a row a run instead of a column a run: what many runs need."""
    first = table.columns[0]
    turned = table.set_index(first).T
    return turned.rename_axis("run").reset_index()
