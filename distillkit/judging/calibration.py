"""What people say of samples beside what judges say of them: whether they rank them alike, and give like grades.

A table of people's grades is CSV: a column `sample`, and either one column a criterion, or `criterion` and `score`; a
column `person` tells several apart. Asks nobody anything.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from ..core.errors import UsageError
from ..core.records import Grade
from ..stats import Correlation, Kappa, spearman, weighted_kappa, wilson

Scores = dict[str, dict[str, float]]  # criterion -> sample -> mean score
NAMES = ("sample", "person", "criterion", "score")
EXAMPLE = "Its first line names its columns, for example: sample,person,grammar,creativity"
FEW = 20


@dataclass(frozen=True)
class Agreement:
    """A judge and people on one criterion: the order, the grades, and how often they are at most one point apart."""

    judge: str
    criterion: str
    n: int
    order: Correlation
    grades: Kappa
    close: float
    close_low: float
    close_high: float
    higher: float  # what the judge gives more than people, on the average

    def to_json(self) -> dict[str, Any]:
        """Plain values, for machines."""
        return asdict(self)


def by_people(path: Path) -> dict[str, Scores]:
    """The grades of a file: of each person, and of all together under no name."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}", EXAMPLE)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = [*csv.DictReader(stream, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as CSV: {error}", EXAMPLE) from error
    if not rows or "sample" not in rows[0]:
        raise UsageError(f"{path} has no column named sample", EXAMPLE)
    given = [grade for number, row in enumerate(rows, 2) for grade in _given(row, f"{path}, line {number}")]
    people = dict.fromkeys(["", *(person for person, *_ in given if person)])
    return {who: _means([one[1:] for one in given if who in ("", one[0])]) for who in people}


def _given(row: Mapping[str | None, Any], where: str) -> list[tuple[str, str, str, float]]:
    """Person, criterion, sample and score of each grade in a row; an empty field is none."""
    if None in row:
        raise UsageError(f"{where} has more fields than the first line names", EXAMPLE)
    pairs = {str(name): value for name, value in row.items() if name not in NAMES}
    if "criterion" in row and "score" in row:
        pairs = {row["criterion"]: row["score"]}
    pairs = {name: value for name, value in pairs.items() if (value or "").strip()}
    if pairs and None in (row["sample"], *pairs):  # a short row ends in fields of None
        raise UsageError(f"{where} has a score, but ends before its sample or criterion", EXAMPLE)
    return [
        (row.get("person") or "", name.strip(), row["sample"], _number(value, f"{where}, {name}"))
        for name, value in pairs.items()
    ]


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
        if not isfinite(value):
            raise ValueError("nan and inf are grades of nothing")
        return value
    except ValueError as error:
        raise UsageError(f"{where}: found {text!r}, expected a number", EXAMPLE) from error


def _means(grades: Sequence[tuple[str, str, float]]) -> Scores:
    lists: dict[str, dict[str, list[float]]] = {}
    for criterion, sample, score in grades:
        lists.setdefault(criterion, {}).setdefault(sample, []).append(score)
    return {criterion: {s: fmean(v) for s, v in of.items()} for criterion, of in lists.items()}


def by_judges(rows: Sequence[Mapping[str, Any]]) -> dict[str, Scores]:
    """The grades of samples by each judge, as `grades.jsonl` has them."""
    found: dict[str, list[tuple[str, str, float]]] = {}
    for row in rows:
        grade = Grade.from_json(row)
        if grade.sample is not None:
            found.setdefault(row["judge"], []).append((grade.criterion, grade.sample, grade.score))
    return {judge: _means(grades) for judge, grades in found.items()}


def agreements(people: Mapping[str, Scores], judges: Mapping[str, Scores]) -> list[Agreement]:
    """Every judge against all people together, and every two people against each other, on each criterion."""
    pairs = [(judge, of, people[""]) for judge, of in judges.items()]
    named = [who for who in people if who]
    pairs += [(f"{b} and {a}", people[b], people[a]) for i, a in enumerate(named) for b in named[i + 1 :]]
    found = [
        agreement(title, criterion, {s: (theirs[criterion][s], own[s]) for s in own if s in theirs[criterion]})
        for title, of, theirs in pairs
        for criterion, own in of.items()
        if criterion in theirs and theirs[criterion].keys() & own.keys()
    ]
    if not any(one.judge in judges for one in found):
        asked = ", ".join(sorted({f"{judge}.{criterion}" for judge, of in judges.items() for criterion in of}))
        raise UsageError(
            "no sample was graded by people and by a judge on one criterion",
            f"Samples are named as in samples.jsonl. Judges graded {asked or 'none: distillkit judge --judge rubric'}.",
        )
    return found


def agreement(judge: str, criterion: str, pairs: Mapping[str, tuple[float, float]]) -> Agreement:
    """People's scores and a judge's, sample by sample."""
    people, own = zip(*pairs.values(), strict=True)
    close = sum(abs(a - b) <= 1 for a, b in pairs.values())
    return Agreement(
        judge,
        criterion,
        len(pairs),
        spearman(people, own),
        weighted_kappa([round(value) for value in people], [round(value) for value in own]),
        close / len(pairs),
        *wilson(close, len(pairs)),
        fmean(own) - fmean(people),
    )


def text(found: Sequence[Agreement]) -> str:
    """The agreements for a reader."""
    heads = ("order (Spearman)", "grades (kappa)", "within one point")
    lines = [f"{'judge':<20} {'criterion':<14} {'n':>4}  {heads[0]:<22} {heads[1]:<22} {heads[2]:<20} higher by"]
    for one in found:
        close = f"{one.close:.0%} [{one.close_low:.0%}, {one.close_high:.0%}]"
        lines.append(
            f"{one.judge:<20} {one.criterion:<14} {one.n:>4}  {_interval(one.order):<22} {_interval(one.grades):<22} "
            f"{close:<20} {one.higher:+.2f}"
        )
    if min(one.n for one in found) < FEW:
        lines.append(f"Fewer than {FEW} samples say little: see how wide the intervals are.")
    return "\n".join(lines)


def _interval(value: Correlation | Kappa) -> str:
    if value.value is None:
        return "never varies"
    return f"{value.value:.2f}" + (f" [{value.low:.2f}, {value.high:.2f}]" if value.low is not None else "")
