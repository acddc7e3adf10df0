"""Compares runs: each run with the first one, paired, with confidence intervals, tests and verdicts.

Knows the metrics and grades in run folders and which of them may be compared; not how grades are produced, nor how a
comparison is displayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...core.errors import UsageError
from ...core.run_folder import SCHEMA, Run
from ...stats import Difference, holm, paired_difference, verdict
from ..formatting import format_count
from ..run import summary
from ..run.report import to_json_values
from . import provenance
from .compared_run import ComparedRun, read_run, unique_names
from .pairs import Pairs, pair_grades

MAX_RUNS = 50

# Averages over tokens: not comparable between tokenizers.
PER_TOKEN_METRICS = frozenset({"loss", "perplexity"})

BASELINE, INCOMPARABLE, NEITHER = "baseline", "not comparable", "neither"

Metric = tuple[str, str]  # judge and name


def compare(runs: Sequence[Run], anyway: bool = False) -> dict[str, Any]:
    """Compare each run with the first one: one row per metric and run, paired by document or prompt.

    Raises UsageError if a judge's protocols differ, unless `anyway`; then the notes of the comparison say so.
    """
    return build_comparison(read_runs(runs), anyway)


def read_runs(runs: Sequence[Run]) -> list[ComparedRun]:
    """Read 2 to 50 runs; the first one is the baseline."""
    if len(runs) < 2:
        raise UsageError("a comparison needs two runs", "Name the baseline first: distillkit compare RUN RUN")
    if len(runs) > MAX_RUNS:
        raise UsageError(f"{len(runs)} runs are too many to compare", f"Name at most {MAX_RUNS}, the baseline first.")
    return [read_run(run, name) for run, name in zip(runs, unique_names(runs), strict=True)]


def build_comparison(runs: Sequence[ComparedRun], anyway: bool = False) -> dict[str, Any]:
    """The comparison as plain values: what `--json` prints and all tables are made from."""
    baseline, *others = runs
    protocols = provenance.protocol_differences(runs)
    if protocols and not anyway:
        raise UsageError(
            "the runs were judged under different protocols:\n  " + "\n  ".join(protocols),
            "Judge them again under one protocol, or compare them nevertheless: --anyway",
        )
    rows = [row for other in others for row in _compare_pair(baseline, other)]
    metrics = _all_metrics(runs)
    return {
        "schema": SCHEMA,
        "runs": [run.name for run in runs],
        "baseline": baseline.name,
        "anyway": bool(protocols),
        "notes": [*_protocol_notes(protocols), *_notes(runs, rows)],
        "about": {run.name: provenance.describe_run(run) for run in runs},
        "metrics": [
            {"judge": judge, "metric": metric, "better": _direction(runs, judge, metric)} for judge, metric in metrics
        ],
        "figures": list(_metric_values(runs, metrics)),
        "ranking": _rank(runs, metrics, rows),
        "rows": to_json_values(rows),
        "recipes": provenance.recipe_differences(runs),
        "provenance": provenance.provenance_rows(runs),
    }


def _direction(runs: Sequence[ComparedRun], judge: str, metric: str) -> summary.Direction | None:
    """Which direction is better, according to the first run that has the metric."""
    run = next((run for run in runs if run.metric(judge, metric)), runs[0])
    return summary.direction(run.report, judge, metric)


def _all_metrics(runs: Sequence[ComparedRun]) -> list[Metric]:
    """The metrics that any run has, in order of appearance, but bits per byte first."""
    every = dict.fromkeys(
        (judge, metric) for run in runs for judge, metrics in run.report["judges"].items() for metric in metrics
    )
    return sorted(every, key=lambda metric: metric[1] != "bits_per_byte")


def _metric_values(runs: Sequence[ComparedRun], metrics: Sequence[Metric]) -> Iterator[dict[str, Any]]:
    for run in runs:
        for judge, metric in metrics:
            if values := run.metric(judge, metric):
                yield {"run": run.name, "judge": judge, "metric": metric, **values}


# Differences ------------------------------------------------------------------------------------------------


def _compare_pair(baseline: ComparedRun, other: ComparedRun) -> list[dict[str, Any]]:
    """All metrics of one run compared with the baseline, p values corrected over these metrics (Holm-Bonferroni)."""
    results = {metric: _compare_metric(baseline, other, metric) for metric in _all_metrics([baseline, other])}
    tested = {
        metric: result for metric, result in results.items() if isinstance(result, tuple) and result[0].p is not None
    }
    adjusted = dict(zip(tested, holm([float(difference.p or 0) for difference, _ in tested.values()]), strict=True))
    rows = {metric: _row(baseline, other, metric, result, adjusted.get(metric)) for metric, result in results.items()}
    for judge, metric in rows:
        if metric == "perplexity" and (judge, metric) not in baseline.grades and (judge, "loss") in rows:
            rows[judge, metric] |= _verdict_of_loss(rows[judge, metric], rows[judge, "loss"])
    return list(rows.values())


def _compare_metric(baseline: ComparedRun, other: ComparedRun, metric: Metric) -> tuple[Difference, str] | str:
    """The paired difference with a note, or the reason why the metric cannot be compared."""
    if reason := _incomparable_reason(baseline, other, *metric):
        return reason
    pairs = pair_grades(baseline, other, metric)
    if pairs.reason:
        return pairs.reason
    difference = _difference(pairs)
    # Metrics without a direction are excluded from Holm's correction.
    has_direction = summary.direction(baseline.report, *metric) is not None
    return difference if has_direction else replace(difference, p=None), pairs.note


def _difference(pairs: Pairs) -> Difference:
    """The paired difference of scores, other run minus baseline, with the baseline's weights."""
    ours, theirs = ({"\0".join(item): s for item, s in side.items()} for side in (pairs.baseline, pairs.other))
    return paired_difference(
        {item: score.score for item, score in theirs.items()},
        {item: score.score for item, score in ours.items()},
        weights={item: score.weight for item, score in ours.items()},
    )


def _row(
    baseline: ComparedRun,
    other: ComparedRun,
    key: Metric,
    result: tuple[Difference, str] | str,
    p_adjusted: float | None,
) -> dict[str, Any]:
    """The row of one metric of one run compared with the baseline."""
    judge, metric = key
    row = {
        "judge": judge,
        "metric": metric,
        "values": {run.name: run.metric(judge, metric) for run in (baseline, other)},
        "baseline": baseline.name,
        "versus": other.name,
        **dict.fromkeys(("difference", "low", "high", "p", "p_adjusted", "detectable")),
        **{"n": 0, "verdict": INCOMPARABLE, "note": ""},
    }
    if isinstance(result, str):
        return {**row, "note": result}
    difference, note = result
    note = "; ".join(filter(None, (note, provenance.protocol_note(baseline, other, judge))))
    statistics = {name: getattr(difference, name) for name in ("low", "high", "p", "detectable", "n")}
    said = _verdict(difference, p_adjusted, summary.direction(baseline.report, judge, metric))
    return {
        **row,
        "difference": difference.value,
        **statistics,
        "p_adjusted": p_adjusted,
        "verdict": said,
        "note": note,
    }


def _verdict(difference: Difference, p_adjusted: float | None, better: summary.Direction | None) -> str:
    """The verdict on a difference; none without a direction, or if nothing could be tested."""
    if better is None:
        return NEITHER
    return INCOMPARABLE if p_adjusted is None else verdict(replace(difference, p=p_adjusted), better)


def _incomparable_reason(baseline: ComparedRun, other: ComparedRun, judge: str, metric: str) -> str:
    """Why a metric of two runs cannot be compared, or ""."""
    for run in (baseline, other):
        if run.metric(judge, metric) is None:
            return f"{run.name} does not have this metric"
    if metric in PER_TOKEN_METRICS:
        ours, theirs = baseline.fingerprint("tokenizer"), other.fingerprint("tokenizer")
        if ours is None or theirs is None:
            return "a run did not record its tokenizer, so the tokenizers may differ"
        if ours != theirs:
            return "different tokenizers: averages per token are not comparable; see bits per byte"
    depends_on_set = any(judge in run.report["together"] for run in (baseline, other))
    if depends_on_set and baseline.samples_graded_for(judge, metric) != other.samples_graded_for(judge, metric):
        return "computed over different sets of samples: judge both runs with the same [sampling]"
    return ""


def _verdict_of_loss(perplexity: Mapping[str, Any], loss: Mapping[str, Any]) -> dict[str, Any]:
    """Perplexity is exp(loss), so it gets the verdict of the loss, and no difference of its own."""
    if any(values is None for values in perplexity["values"].values()):
        return {}
    return {
        "verdict": loss["verdict"],
        "n": loss["n"],
        "note": loss["note"] or "perplexity = exp(loss): the verdict is that of the loss",
    }


# Ranking ----------------------------------------------------------------------------------------------------


def _rank(runs: Sequence[ComparedRun], metrics: Sequence[Metric], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All runs, ranked by the metric that most runs have, best first. Incomparable runs come last, unranked."""
    if not metrics:
        return {"judge": None, "metric": None, "rows": []}
    candidates = [metric for metric in metrics if _direction(runs, *metric)] or metrics
    judge, metric = max(candidates, key=lambda key: sum(run.metric(*key) is not None for run in runs))
    differences = {row["versus"]: row for row in rows if (row["judge"], row["metric"]) == (judge, metric)}
    lines = [_ranking_row(run, (judge, metric), differences.get(run.name)) for run in runs]
    sign = 1 if _direction(runs, judge, metric) == "lower" else -1
    unranked = [line for line in lines if line["value"] is None or line["verdict"] == INCOMPARABLE]
    ranked = sorted((line for line in lines if line not in unranked), key=lambda line: sign * line["value"])
    for rank, line in enumerate(ranked, 1):
        line["rank"] = rank
    return {"judge": judge, "metric": metric, "rows": [*ranked, *unranked]}


def _ranking_row(run: ComparedRun, metric: Metric, row: Mapping[str, Any] | None) -> dict[str, Any]:
    values = run.metric(*metric) or dict.fromkeys(("value", "low", "high", "n"))
    difference = {"difference": None, "difference_low": None, "difference_high": None, "p_adjusted": None}
    if row is not None:
        difference = {"difference": row["difference"], "difference_low": row["low"], "difference_high": row["high"]}
        difference["p_adjusted"] = row["p_adjusted"]
    said = BASELINE if row is None else row["verdict"]
    return {"rank": None, "run": run.name, **values, **difference, "verdict": said}


# Notes ------------------------------------------------------------------------------------------------------


def _protocol_notes(protocols: Sequence[str]) -> list[str]:
    if not protocols:
        return []
    return [
        "Compared with --anyway, though the runs were judged under different protocols: " + "; ".join(protocols) + "."
    ]


def _notes(runs: Sequence[ComparedRun], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Caveats about the comparison as a whole."""
    baseline, *others = runs
    notes = [f"{run.name}: {alert}" for run in runs for alert in summary.missing_stage_alerts(run.report)]
    notes += provenance.unknown_protocol_notes(runs)
    if note := _budget_note(baseline, others):
        notes.append(note)
    tested_runs = {row["versus"] for row in rows if row["p"] is not None}
    if len(tested_runs) > 1:
        notes.append(
            f"{len(tested_runs)} runs are compared with one baseline. p values are corrected over the metrics of each "
            "run, not over the runs: expect one in twenty equal runs to appear different."
        )
    return notes


def _budget_note(baseline: ComparedRun, others: Sequence[ComparedRun]) -> str:
    """The caveat that runs were trained on different numbers of tokens, or ""."""
    tokens = baseline.report["training"].get("tokens")
    by_run = {run.name: run.report["training"].get("tokens") for run in others}
    different = {name: other for name, other in by_run.items() if None not in (other, tokens) and other != tokens}
    if not different:
        return ""
    if len(different) > 3:
        least, most = format_count(min(different.values())), format_count(max(different.values()))
        said = f"{len(different)} others on {least} to {most}"
    else:
        said = " and ".join(f"{name} on {format_count(other)}" for name, other in different.items())
    return (
        f"Training budgets differ: {baseline.name} was trained on {format_count(tokens)} tokens and {said}. "
        "Differences may be due to that."
    )
