"""Runs side by side: pairs of grades, their differences, and what can be said of them.

Knows what judges left in the run folders and which figures may be compared; not how grades came about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..records import Grade, Metric
from ..runs import SCHEMA, Run
from ..stats import paired_interval
from . import page, tables, terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

# Criteria of which less is more; of every other, more is better.
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "bits_per_byte"})
# Criteria counted a token, so that they say nothing across tokenizers.
BY_THE_TOKEN = frozenset({"loss", "perplexity"})

BETTER, WORSE, SAME, INCOMPARABLE = "better", "worse", "no difference seen", "not comparable"


@dataclass(frozen=True)
class _Side:
    """One run under comparison."""

    name: str
    report: tables.Report
    grades: Mapping[tuple[str, str], Sequence[Grade]]
    prompts: Mapping[str, str]

    def values(self, judge: str, metric: str) -> dict[str, Any] | None:
        """A metric as the judge gave it, or None."""
        found = (self.report["judges"].get(judge) or {}).get(metric)
        return {key: found.get(key) for key in ("value", "low", "high", "n")} if found else None

    def print_of(self, part: str) -> str | None:
        """The fingerprint of the data or the tokenizer."""
        found = self.report[part].get("fingerprint")
        return None if found is None else str(found)


@dataclass(frozen=True)
class _Graded:
    """All that one criterion said of one thing: the score, its weight, and what it is resampled with."""

    score: float
    weight: float
    cluster: str


@dataclass(frozen=True)
class _Pairs:
    """What both runs were graded on, and what the reader must know of it."""

    first: list[_Graded]
    other: list[_Graded]
    note: str = ""
    reason: str = ""


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Every run against the first one: a row a metric and run, paired by document or sample."""
    if len(runs) < 2:
        raise UsageError("a comparison needs two runs", "Name the baseline first: distillkit compare RUN RUN")
    sides = [_side(run, name) for run, name in zip(runs, _names(runs), strict=True)]
    first, *others = sides
    rows = [_row(judge, metric, first, other) for other in others for judge, metric in _metrics(first, other)]
    return {
        "schema": SCHEMA,
        "runs": [side.name for side in sides],
        "about": {side.name: _about(side.report) for side in sides},
        "rows": tables.plain(rows),
        "notes": _notes(sides, rows),
    }


def _names(runs: Sequence[Run]) -> list[str]:
    """The runs' names; those that two folders share get a number."""
    names: list[str] = []
    for run in runs:
        same = sum(name.partition(" (")[0] == run.name for name in names)
        names.append(f"{run.name} ({same + 1})" if same else run.name)
    return names


def _side(run: Run, name: str) -> _Side:
    grades: dict[tuple[str, str], list[Grade]] = {}
    for row in tables.lines(run.grades):
        grade = Grade.from_json(row)
        grades.setdefault((row.get("judge", ""), grade.criterion), []).append(grade)
    return _Side(name, tables.build(run), grades, {sample.id: sample.prompt for sample in tables.samples_of(run)})


def _about(report: tables.Report) -> dict[str, Any]:
    return {
        "status": report["status"],
        "parameters": (report["student"].get("parameters") or {}).get("unique"),
        "training_tokens": report["training"].get("tokens"),
    }


def _metrics(*sides: _Side) -> list[tuple[str, str]]:
    """Judges and metrics that any of the runs has, in the order of the first; bits per byte before all."""
    found = dict.fromkeys(
        (judge, metric) for side in sides for judge, metrics in side.report["judges"].items() for metric in metrics
    )
    return sorted(found, key=lambda pair: pair[1] != "bits_per_byte")


def _row(judge: str, metric: str, first: _Side, other: _Side) -> dict[str, Any]:
    """One metric of one run against the baseline's."""
    row = {
        "judge": judge,
        "metric": metric,
        "values": {side.name: side.values(judge, metric) for side in (first, other)},
        "baseline": first.name,
        "versus": other.name,
        **{"difference": None, "low": None, "high": None, "n": 0, "verdict": INCOMPARABLE, "note": ""},
    }
    if reason := _why_not(judge, metric, first, other):
        return {**row, "note": reason}
    if metric == "perplexity" and (judge, metric) not in first.grades:
        return {**row, **_by_loss(_row(judge, "loss", first, other))}
    pairs = _pairs(first, other, (judge, metric))
    if pairs.reason:
        return {**row, "note": pairs.reason}
    contrast = paired_interval(
        [graded.score for graded in pairs.other],
        [graded.score for graded in pairs.first],
        [graded.weight for graded in pairs.first],
        [graded.cluster for graded in pairs.first],
    )
    figures = {"difference": contrast.value, "low": contrast.low, "high": contrast.high, "n": contrast.n}
    return {**row, **figures, "verdict": _verdict(metric, contrast), "note": pairs.note}


def _why_not(judge: str, metric: str, first: _Side, other: _Side) -> str:
    """The reason why two figures cannot be set against each other at all, or nothing."""
    for side in (first, other):
        if side.values(judge, metric) is None:
            return f"{side.name} has no such figure"
    if metric in BY_THE_TOKEN:
        ours, theirs = first.print_of("tokenizer"), other.print_of("tokenizer")
        if ours is None or theirs is None:
            return "nobody recorded whether the tokenizers are the same"
        if ours != theirs:
            return "different tokenizers: a token is not the same amount of text; see bits per byte"
    return ""


def _by_loss(loss: Mapping[str, Any]) -> dict[str, Any]:
    """Perplexity rises and falls with the loss, so their verdicts agree; a difference would say no more."""
    return {
        "verdict": loss["verdict"],
        "n": loss["n"],
        "note": loss["note"] or "decided by the loss, which it follows",
    }


def _verdict(metric: str, contrast: Metric) -> str:
    if contrast.low is None or contrast.high is None:
        return INCOMPARABLE
    if contrast.low <= 0 <= contrast.high:
        return SAME
    return BETTER if (contrast.value < 0) == (metric in LOWER_IS_BETTER) else WORSE


def _pairs(first: _Side, other: _Side, key: tuple[str, str]) -> _Pairs:
    """The documents or samples that both were graded on, with one score of each run."""
    ours, theirs = (_by_thing(side.grades.get(key, ())) for side in (first, other))
    both = [thing for thing in ours if thing in theirs]
    if not ours or not theirs:
        return _Pairs([], [], reason="not graded one by one, so nothing can be paired")
    if reason := _other_things(first, other, ours, theirs, both):
        return _Pairs([], [], reason=reason)

    same = [thing for thing in both if _same_prompt(first, other, thing)]
    if len({ours[thing].cluster for thing in same}) < 2:
        return _Pairs([], [], reason="fewer than two pairs: no interval can be given")
    notes = [_dropped(len(same), max(len(ours), len(theirs)))]
    if any(not math.isclose(ours[t].weight, theirs[t].weight) for t in same):
        notes.append(f"weighted as in {first.name}, since the weights differ")
    return _Pairs([ours[t] for t in same], [theirs[t] for t in same], "; ".join(filter(None, notes)))


def _dropped(used: int, most: int) -> str:
    return f"{used:,} of {most:,} were graded in both" if used < most else ""


def _by_thing(grades: Sequence[Grade]) -> dict[tuple[str, str], _Graded]:
    """Grades by what they are of. Several of one thing become their mean, with the weight of all of them."""
    sums: dict[tuple[str, str], _Graded] = {}
    for grade in grades:
        thing = ("document", grade.document) if grade.document is not None else ("sample", grade.sample)
        # What was not finite was read as None: it is no score, and the note on pairs will count it as lost.
        if thing[1] is None or grade.score is None or (grade.weight or 0) <= 0:
            continue
        so_far = sums.setdefault((thing[0], thing[1]), _Graded(0.0, 0.0, str(grade.cluster)))
        score, weight = so_far.score + grade.score * grade.weight, so_far.weight + grade.weight
        sums[thing[0], thing[1]] = replace(so_far, score=score, weight=weight)
    return {thing: replace(graded, score=graded.score / graded.weight) for thing, graded in sums.items()}


def _other_things(
    first: _Side,
    other: _Side,
    ours: Mapping[tuple[str, str], _Graded],
    theirs: Mapping[tuple[str, str], _Graded],
    both: Sequence[tuple[str, str]],
) -> str:
    """Why what bears the same name may yet be something else, or nothing.

    Documents of the same data are the same. Of other data, equal names prove nothing (they are often
    numbers): there all names, all weights and the size of the held-out text must agree.
    """
    if not both:
        return "different held-out documents" if next(iter(ours))[0] == "document" else "different samples"
    print_of = first.print_of("data")
    if both[0][0] == "sample" or (print_of is not None and print_of == other.print_of("data")):
        return ""
    sizes = [_held_out(side) for side in (first, other)]
    agree = (
        ours.keys() == theirs.keys()
        and all(math.isclose(ours[thing].weight, theirs[thing].weight) for thing in both)
        and sizes[0] == sizes[1]
        and None not in sizes[0]
    )
    return "" if agree else "different held-out documents"


def _held_out(side: _Side) -> tuple[Any, Any]:
    held_out = side.report["data"].get("held_out") or {}
    return held_out.get("documents"), held_out.get("bytes")


def _same_prompt(first: _Side, other: _Side, thing: tuple[str, str]) -> bool:
    """Whether two samples of one name answer one prompt, as far as the runs kept their prompts."""
    kind, name = thing
    prompts = {side.prompts[name] for side in (first, other) if kind == "sample" and name in side.prompts}
    return len(prompts) < 2


def _notes(sides: Sequence[_Side], rows: tables.Rows) -> list[str]:
    """What a reader must know of the comparison as a whole."""
    notes = [f"{side.name}: {lack}" for side in sides for lack in page.lacks(side.report)]
    first, *others = sides
    ours = first.report["training"].get("tokens")
    for other in others:
        theirs = other.report["training"].get("tokens")
        if ours is not None and theirs is not None and ours != theirs:
            notes.append(
                f"{first.name} was trained on {ours:,} tokens and {other.name} on {theirs:,}: "
                "part of a difference may be that of the budgets."
            )
    if tested := sum(row["low"] is not None for row in rows):
        notes += _chance(tested)
    return notes


def _chance(tested: int) -> list[str]:
    """The warning that many comparisons need: each interval is right for itself alone."""
    if tested < 2:
        return []
    return [f"{tested} differences were tested, each at 95%: one in twenty shows by chance where there is none."]


def text(comparison: Mapping[str, Any], colour: bool = False) -> str:
    """The comparison as it is printed."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [terminal.sections({"runs": page.about(comparison)})]
    parts += [_contrast_table(table) for table in page.contrasts(comparison)]
    parts.append(Text("\nA difference is that run minus the baseline, with its 95% interval.", style="dim"))
    parts += [Text(f"! {page.clean(note)}", style="yellow") for note in comparison["notes"]]
    return terminal.printed(Group(*parts), colour)


def _contrast_table(contrasts: Mapping[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), width=terminal.WIDTH, header_style="dim")
    for head, width in (("metric", 25), ("baseline", 8), ("this", 8), ("difference", 23), ("verdict", 20)):
        table.add_column(head, width=width)
    styles = {BETTER: "green", WORSE: "red"}
    notes: dict[str, str] = {}
    for row in contrasts["rows"]:
        mark = f" [{notes.setdefault(row['note'], str(len(notes) + 1))}]" if row["note"] else ""
        verdict = Text(f"{row['verdict']}{mark}", styles.get(row["verdict"], ""))
        first, other = (row[key].partition(" [")[0] for key in ("first", "other"))
        table.add_row(*map(Text, (row["metric"], first, other, row["difference"])), verdict)
    title = Text(f"{contrasts['versus']} against {contrasts['baseline']}", "bold")
    lines = [Text(f"[{number}] {note}", "dim") for note, number in notes.items()]
    return Group(terminal.ruled(title), table, *lines)
