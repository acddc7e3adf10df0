"""Runs side by side: every run against the first one, pair by pair, and what can be said of the differences.

Knows what judges left in the run folders and which figures may be compared; not how grades came about, nor how a
comparison is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...core.errors import UsageError
from ...core.run_folder import SCHEMA, Run
from ...stats import Difference, holm, paired_difference, verdict
from .. import words
from ..run import page, provenance, tables
from . import compared_run
from .compared_run import Side
from .pairs import Pairs, pairs

MOST = 50

# Criteria counted a token, so that they say nothing across tokenizers.
BY_THE_TOKEN = frozenset({"loss", "perplexity"})

BASELINE, INCOMPARABLE, NEITHER = "baseline", "not comparable", "neither"


def compare(runs: Sequence[Run], anyway: bool = False) -> dict[str, Any]:
    """Every run against the first one: a row a metric and run, paired by document or prompt.

    Grades of unequal protocols are compared only `anyway`, and then every table says so.
    """
    return contrast(read(runs), anyway)


def read(runs: Sequence[Run]) -> list[Side]:
    """What each run brings; the first one is the baseline."""
    if len(runs) < 2:
        raise UsageError("a comparison needs two runs", "Name the baseline first: distillkit compare RUN RUN")
    if len(runs) > MOST:
        raise UsageError(f"{len(runs)} runs are too many to compare", f"Name at most {MOST}, the baseline first.")
    return [compared_run.read(run, name) for run, name in zip(runs, compared_run.names(runs), strict=True)]


def contrast(found: Sequence[Side], anyway: bool = False) -> dict[str, Any]:
    """The comparison of sides that were read, as plain values: what `--json` prints and every table is made of."""
    first, *others = found
    strange = provenance.protocols_apart(found)
    if strange and not anyway:
        raise UsageError(
            "the runs were not judged in the same way:\n  " + "\n  ".join(strange),
            "Judge them again under one protocol, or compare them all the same: --anyway",
        )
    rows = [row for other in others for row in _rows(first, other)]
    metrics = _metrics(found)
    return {
        "schema": SCHEMA,
        "runs": [side.name for side in found],
        "baseline": first.name,
        "anyway": bool(strange),
        "notes": [*_anyway(strange), *_notes(found, rows)],
        "about": {side.name: provenance.about(side) for side in found},
        "metrics": [
            {"judge": judge, "metric": metric, "better": _better(found, judge, metric)} for judge, metric in metrics
        ],
        "figures": list(_figures(found, metrics)),
        "ranking": _ranking(found, metrics, rows),
        "rows": tables.plain(rows),
        "recipes": provenance.recipes(found),
        "provenance": provenance.facts(found),
    }


def _better(found: Sequence[Side], judge: str, metric: str) -> page.Better | None:
    """Which way is better, as the first run says that has the figure."""
    side = next((side for side in found if side.values(judge, metric)), found[0])
    return page.better(side.report, judge, metric)


def _metrics(found: Sequence[Side]) -> list[tuple[str, str]]:
    """Judges and metrics that any of the runs has, in the order of the first; bits per byte before all."""
    every = dict.fromkeys(
        (judge, metric) for side in found for judge, metrics in side.report["judges"].items() for metric in metrics
    )
    return sorted(every, key=lambda pair: pair[1] != "bits_per_byte")


def _figures(found: Sequence[Side], metrics: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    for side in found:
        for judge, metric in metrics:
            if values := side.values(judge, metric):
                yield {"run": side.name, "judge": judge, "metric": metric, **values}


# Differences ------------------------------------------------------------------------------------------------


def _rows(first: Side, other: Side) -> list[dict[str, Any]]:
    """All metrics of one run against the baseline's, with each p as it counts among them all."""
    seen = {key: _seen(first, other, key) for key in _metrics([first, other])}
    tested = {key: what for key, what in seen.items() if isinstance(what, tuple) and what[0].p is not None}
    counted = dict(zip(tested, holm([float(what[0].p or 0) for what in tested.values()]), strict=True))
    rows = {key: _row(first, other, key, what, counted.get(key)) for key, what in seen.items()}
    for judge, metric in rows:
        if metric == "perplexity" and (judge, metric) not in first.grades and (judge, "loss") in rows:
            rows[judge, metric] |= _by_loss(rows[judge, metric], rows[judge, "loss"])
    return list(rows.values())


def _seen(first: Side, other: Side, key: tuple[str, str]) -> tuple[Difference, str] | str:
    """The difference with what to know of it, or the reason why there is none."""
    if reason := _why_not(first, other, *key):
        return reason
    both = pairs(first, other, key)
    if both.reason:
        return both.reason
    found = _difference(both)
    tested = page.better(first.report, *key) is not None  # what nobody is better by takes no share of Holm's correction
    return found if tested else replace(found, p=None), both.note


def _difference(both: Pairs) -> Difference:
    """The other run's scores less the first's, by the first's weights."""
    ours, theirs = ({"\0".join(t): g for t, g in side.items()} for side in (both.first, both.other))
    return paired_difference(
        {thing: graded.score for thing, graded in theirs.items()},
        {thing: graded.score for thing, graded in ours.items()},
        weights={thing: graded.weight for thing, graded in ours.items()},
    )


def _row(
    first: Side, other: Side, key: tuple[str, str], seen: tuple[Difference, str] | str, counted: float | None
) -> dict[str, Any]:
    """One metric of one run against the baseline's."""
    judge, metric = key
    row = {
        "judge": judge,
        "metric": metric,
        "values": {side.name: side.values(judge, metric) for side in (first, other)},
        "baseline": first.name,
        "versus": other.name,
        **dict.fromkeys(("difference", "low", "high", "p", "p_adjusted", "detectable")),
        **{"n": 0, "verdict": INCOMPARABLE, "note": ""},
    }
    if isinstance(seen, str):
        return {**row, "note": seen}
    found, note = seen
    note = "; ".join(filter(None, (note, provenance.in_another_way(first, other, judge))))
    figures = {name: getattr(found, name) for name in ("low", "high", "p", "detectable", "n")}
    said = _said(found, counted, page.better(first.report, judge, metric))
    return {**row, "difference": found.value, **figures, "p_adjusted": counted, "verdict": said, "note": note}


def _said(found: Difference, counted: float | None, way: page.Better | None) -> str:
    """The verdict on a difference: there is none where neither way is better, or nothing could be tested."""
    if way is None:
        return NEITHER
    return INCOMPARABLE if counted is None else verdict(replace(found, p=counted), way)


def _why_not(first: Side, other: Side, judge: str, metric: str) -> str:
    """The reason why two figures cannot be set against each other at all, or nothing."""
    for side in (first, other):
        if side.values(judge, metric) is None:
            return f"{side.name} has no such figure"
    if metric in BY_THE_TOKEN:
        ours, theirs = first.fingerprint("tokenizer"), other.fingerprint("tokenizer")
        if ours is None or theirs is None:
            return "nobody recorded whether the tokenizers are the same"
        if ours != theirs:
            return "different tokenizers: a token is not the same amount of text; see bits per byte"
    together = any(judge in side.report["together"] for side in (first, other))
    if together and first.counted(judge, metric) != other.counted(judge, metric):
        return "counted over other samples: judge both with the same [sampling]"
    return ""


def _by_loss(perplexity: Mapping[str, Any], loss: Mapping[str, Any]) -> dict[str, Any]:
    """Perplexity rises and falls with the loss, so their verdicts agree; a difference would say no more."""
    if any(values is None for values in perplexity["values"].values()):
        return {}
    return {
        "verdict": loss["verdict"],
        "n": loss["n"],
        "note": loss["note"] or "decided by the loss, which it follows",
    }


# The order of the runs --------------------------------------------------------------------------------------


def _ranking(
    found: Sequence[Side], metrics: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """All runs by one metric, the best first; those that cannot be set against the baseline come last, unranked."""
    if not metrics:
        return {"judge": None, "metric": None, "rows": []}
    by = [key for key in metrics if _better(found, *key)] or metrics
    judge, metric = max(by, key=lambda key: sum(side.values(*key) is not None for side in found))
    against = {row["versus"]: row for row in rows if (row["judge"], row["metric"]) == (judge, metric)}
    lines = [_place(side, (judge, metric), against.get(side.name)) for side in found]
    sign = 1 if _better(found, judge, metric) == "lower" else -1
    unranked = [line for line in lines if line["value"] is None or line["verdict"] == INCOMPARABLE]
    ranked = sorted((line for line in lines if line not in unranked), key=lambda line: sign * line["value"])
    for rank, line in enumerate(ranked, 1):
        line["rank"] = rank
    return {"judge": judge, "metric": metric, "rows": [*ranked, *unranked]}


def _place(side: Side, key: tuple[str, str], row: Mapping[str, Any] | None) -> dict[str, Any]:
    """A run's line in the ranking."""
    values = side.values(*key) or dict.fromkeys(("value", "low", "high", "n"))
    own = {"difference": None, "difference_low": None, "difference_high": None, "p_adjusted": None}
    if row is not None:
        own = {"difference": row["difference"], "difference_low": row["low"], "difference_high": row["high"]}
        own["p_adjusted"] = row["p_adjusted"]
    said = BASELINE if row is None else row["verdict"]
    return {"rank": None, "run": side.name, **values, **own, "verdict": said}


# What a reader must know ------------------------------------------------------------------------------------


def _anyway(strange: Sequence[str]) -> list[str]:
    if not strange:
        return []
    return ["Compared anyway, though the runs were not judged in the same way: " + "; ".join(strange) + "."]


def _notes(found: Sequence[Side], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know of the comparison as a whole."""
    first, *others = found
    notes = [f"{side.name}: {lack}" for side in found for lack in page.lacks(side.report)]
    notes += provenance.protocols_unknown(found)
    if note := _budgets(first, others):
        notes.append(note)
    pairs_tested = {row["versus"] for row in rows if row["p"] is not None}
    if len(pairs_tested) > 1:
        notes.append(
            f"{len(pairs_tested)} runs stand against one baseline. Each p is corrected for the metrics of its pair, "
            "not for the number of runs: of twenty equal runs, one may seem to differ."
        )
    return notes


def _budgets(first: Side, others: Sequence[Side]) -> str:
    """The warning that part of a difference may be that of the training budgets."""
    ours = first.report["training"].get("tokens")
    theirs = {side.name: side.report["training"].get("tokens") for side in others}
    unlike = {name: tokens for name, tokens in theirs.items() if None not in (tokens, ours) and tokens != ours}
    if not unlike:
        return ""
    if len(unlike) > 3:
        least, most = words.count(min(unlike.values())), words.count(max(unlike.values()))
        said = f"{len(unlike)} others on {least} to {most}"
    else:
        said = " and ".join(f"{name} on {words.count(tokens)}" for name, tokens in unlike.items())
    return (
        f"{first.name} was trained on {words.count(ours)} tokens and {said}: "
        "part of a difference may be that of the budgets."
    )
