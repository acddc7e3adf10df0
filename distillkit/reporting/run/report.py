"""Builds the report of a run from the files in its run folder.

The report can be rebuilt at any time, also for a run that was interrupted: stages without a record are listed under
`missing`. Knows no model, judge or teacher, only the files they left; `summary` words the report, `page` and `text`
render it.
"""

from __future__ import annotations

import math
import statistics
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import DistillkitError
from ...core.files import read_jsonl, write_json, write_text
from ...core.records import Grade, Sample
from ...core.run_folder import JUDGING_KEYS, SCHEMA, Run
from . import page, text

if TYPE_CHECKING:
    import pandas

Report = dict[str, Any]
Rows = list[dict[str, Any]]

# Reading a run folder --------------------------------------------------------------------------------------


def read_metrics(run: Run) -> Rows:
    """The rows of `metrics.jsonl`. If a resumed run repeated a step, its last row counts."""
    rows = read_rows(run.metrics)
    return list({(row.get("kind"), row.get("step")): row for row in rows}.values())


def read_samples(run: Run) -> list[Sample]:
    """The samples, if the run's final weights wrote them."""
    info = run.info
    weights = (info.get("sampling") or {}).get("weights") or info.get("judged_weights")
    return [Sample.from_json(row) for row in read_rows(run.samples)] if _has_weights(info, weights) else []


def read_grades(run: Run) -> Rows:
    """The rows of `grades.jsonl`, if they grade the run's final weights."""
    info = run.info
    return read_rows(run.grades) if _has_weights(info, info.get("judged_weights")) else []


def read_rows(path: Path) -> Rows:
    """The rows of a JSON Lines file as plain JSON values. Raises DistillkitError with the path if it is malformed."""
    try:
        rows = read_jsonl(path)
    except (ValueError, OSError) as error:
        raise DistillkitError(f"{path} cannot be read: {error}", "Run that stage again.") from error
    return [to_json_values(row) for row in rows]


def _read_recipe(run: Run) -> str:
    return run.recipe.read_text(encoding="utf-8", errors="replace") if run.recipe.is_file() else ""


def to_json_values(value: Any) -> Any:
    """A copy that is valid JSON for every reader: non-finite numbers become None, lone surrogates become "?"."""
    if isinstance(value, Mapping):
        return {to_json_values(str(key)): to_json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_values(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def results_of_final_weights(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run's record without the results of judging other weights than its final ones."""
    if _has_weights(info, info.get("judged_weights")):
        return info
    return {key: value for key, value in info.items() if key not in JUDGING_KEYS}


def _has_weights(info: Mapping[str, Any], weights: str | None) -> bool:
    """Whether these are the run's final weights, or either is unknown. A student may be judged during training."""
    final = (info.get("training") or {}).get("weights_sha256")
    return None in (weights, final) or weights == final


# The report ------------------------------------------------------------------------------------------------


def build_report(run: Run, metrics: Rows | None = None) -> Report:
    """The content of `report.json`. All keys are always present; missing content is empty and listed in `missing`.

    `metrics` are the rows of `read_metrics`, if they have been read already.
    """
    info, recipe_text = results_of_final_weights(run.info), _read_recipe(run)
    report = {
        "schema": SCHEMA,
        "run": info.get("run") or run.name,
        "recipe": info.get("recipe") or run.path.parent.name,
        "status": info.get("status") or "not known",
        "started": info.get("started"),
        "missing": _missing_stages(info, recipe_text),
        "judges": info.get("judges") or {},
        "judges_protocol": info.get("judges_protocol") or {},
        "judges_design": info.get("judges_design") or {},
        "lower_is_better": info.get("lower_is_better") or {},
        "neither_is_better": info.get("neither_is_better") or {},
        "together": info.get("together") or [],
        "student": info.get("student") or {},
        "imported": info.get("imported"),
        "data": info.get("data") or {},
        "tokenizer": info.get("tokenizer") or {},
        "teacher": _teacher(info),
        "training": info.get("training") or {},
        "speed": _speed(read_metrics(run) if metrics is None else metrics, info.get("seconds") or {}),
        "device": info.get("device"),
        "seed": info.get("seed"),
        "versions": info.get("versions") or {},
        "plugins": info.get("plugins") or [],
        "warnings": info.get("warnings") or [],
        "recipe_text": recipe_text,
    }
    return dict(to_json_values(report))


def _teacher(info: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The teacher's record, with its total cost over labelling, training and resumed runs."""
    teacher, usd = info.get("teacher"), (info.get("spent") or {}).get("usd")
    return {**teacher, "usd": round(usd, 6)} if teacher and usd else teacher


def missing_stages(run: Run) -> list[str]:
    """The stages that the run's recipe requires and that did not finish."""
    return _missing_stages(results_of_final_weights(run.info), _read_recipe(run))


def _missing_stages(info: Mapping[str, Any], recipe_text: str) -> list[str]:
    try:
        recipe = tomllib.loads(recipe_text)
    except tomllib.TOMLDecodeError:
        recipe = {}
    has_teacher = bool((recipe.get("teacher") or {}).get("provider"))
    # Without a recipe it is unknown whether judging was requested; then report that it is missing.
    has_judges = bool(recipe.get("judge")) or not recipe
    finished = {
        "data": bool(info.get("data")),
        "label": bool(info.get("teacher")) or not has_teacher,
        "train": _is_trained(info, recipe),
        "judge": bool(info.get("judges")) or not has_judges,
    }
    return [stage for stage, done in finished.items() if not done]


def _is_trained(info: Mapping[str, Any], recipe: Mapping[str, Any]) -> bool:
    """Whether the student reached the recipe's last training step. Imported students count as trained."""
    if info.get("imported"):
        return True
    training, required = info.get("training") or {}, (recipe.get("train") or {}).get("steps")
    if not isinstance(required, int):
        return bool(training)
    steps = training.get("steps")
    return isinstance(steps, int) and steps >= required


def _speed(metrics: Rows, seconds: Mapping[str, Any]) -> dict[str, Any]:
    """Median training throughput, which a slow first step does not affect, and the seconds of each stage."""
    rates = [row.get("tokens_per_second") for row in metrics if row.get("kind") == "train"]
    known = [rate for rate in rates if rate]
    return {"training_tokens_per_second": statistics.median(known) if known else None, "seconds": seconds}


def write_report(run: Run) -> Report:
    """Write `report.json`, `report.md`, `report.html` and `tables/*.csv` into the run folder."""
    report, metrics, samples = build_report(run), read_metrics(run), read_samples(run)
    for name, table in build_tables(run, report).items():
        write_text(run.path / name, table.to_csv(index=False, lineterminator="\n"))
    write_text(run.path / "report.md", text.format_markdown(report, samples))
    write_text(run.path / "report.html", page.render_html(report, metrics, samples))
    # Written last: if it exists, so do the other files.
    write_json(run.report, report)
    return report


def build_tables(run: Run, report: Report) -> dict[str, pandas.DataFrame]:
    """The CSV tables by their path in the run folder. Their text is not escaped."""
    import pandas

    judges = [
        {"judge": judge, "metric": name, **{key: metric.get(key) for key in ("value", "low", "high", "n")}}
        for judge, metrics in report["judges"].items()
        for name, metric in metrics.items()
    ]
    defaults = {**Grade("", 0.0).__dict__, "judge": ""}
    tables: dict[str, tuple[Rows, list[str]]] = {
        "judges": (judges, ["judge", "metric", "value", "low", "high", "n"]),
        "training": ([_flatten(row) for row in read_metrics(run)], ["kind", "step", "loss"]),
        "grades": (
            [{**defaults, **row} for row in read_grades(run)],
            ["judge", "criterion", "score", "sample", "document", "weight", "note"],
        ),
        "samples": ([sample.to_json() for sample in read_samples(run)], ["id", "prompt", "completion", "seed"]),
    }
    return {
        f"tables/{name}.csv": pandas.DataFrame(rows, columns=_columns(rows, first))
        for name, (rows, first) in tables.items()
    }


def _columns(rows: Rows, first: list[str]) -> list[str]:
    """The keys of all rows: `first`, then the others in order of appearance."""
    return list(dict.fromkeys([*first, *(key for row in rows for key in row)]))


def _flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics with its nested loss terms and gradient norms as columns."""
    nested = {"terms": "term", "gradient_norms": "gradient_norm", "judged": "judged"}
    columns = {f"{prefix}_{name}": one for key, prefix in nested.items() for name, one in (row.get(key) or {}).items()}
    return {**{key: value for key, value in row.items() if key not in nested}, **columns}
