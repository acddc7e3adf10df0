"""Compares judges' grades of samples with people's grades: rank correlation and agreement.

People's grades are a CSV table with a column `sample` and either one column per criterion, or the columns `criterion`
and `score`; a column `person` tells several people apart. Sends no requests.
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

Scores = dict[str, dict[str, float]]  # mean scores by criterion and sample
EVERYONE = ""  # the name under which the grades of all people are averaged
RESERVED_COLUMNS = ("sample", "person", "criterion", "score")
CSV_HINT = "The first line must name the columns, for example: sample,person,grammar,creativity"
FEW_SAMPLES = 20


@dataclass(frozen=True)
class Agreement:
    """How well the grades of a judge (or a person) agree with reference grades on one criterion."""

    judge: str
    criterion: str
    n: int
    rank_correlation: Correlation
    kappa: Kappa
    within_one: float  # share of samples whose two grades are at most one point apart, with its interval
    within_one_low: float
    within_one_high: float
    bias: float  # mean difference, judge minus reference

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {
            "judge": self.judge,
            "criterion": self.criterion,
            "n": self.n,
            "order": asdict(self.rank_correlation),
            "grades": asdict(self.kappa),
            "close": self.within_one,
            "close_low": self.within_one_low,
            "close_high": self.within_one_high,
            "higher": self.bias,
        }


def read_human_grades(path: Path) -> dict[str, Scores]:
    """Mean scores by person, and over all people under EVERYONE. Raises UsageError if the file is malformed."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}", CSV_HINT)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = [*csv.DictReader(stream, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as CSV: {error}", CSV_HINT) from error
    if not rows or "sample" not in rows[0]:
        raise UsageError(f"{path} has no column named sample", CSV_HINT)
    grades = [grade for number, row in enumerate(rows, 2) for grade in _parse_row(row, f"{path}, line {number}")]
    people = dict.fromkeys([EVERYONE, *(person for person, *_ in grades if person)])
    return {who: _means([grade[1:] for grade in grades if who in (EVERYONE, grade[0])]) for who in people}


def _parse_row(row: Mapping[str | None, Any], where: str) -> list[tuple[str, str, str, float]]:
    """Person, criterion, sample and score of each grade in a row. Empty fields are skipped."""
    if None in row:
        raise UsageError(f"{where} has more fields than the first line names", CSV_HINT)
    scores = {str(name): value for name, value in row.items() if name not in RESERVED_COLUMNS}
    if "criterion" in row and "score" in row:
        scores = {row["criterion"]: row["score"]}
    scores = {name: value for name, value in scores.items() if (value or "").strip()}
    if scores and None in (row["sample"], *scores):  # the csv module fills a short row with None
        raise UsageError(f"{where} has a score, but ends before its sample or criterion", CSV_HINT)
    return [
        (row.get("person") or EVERYONE, name.strip(), row["sample"], _parse_number(value, f"{where}, {name}"))
        for name, value in scores.items()
    ]


def _parse_number(text: str, where: str) -> float:
    try:
        value = float(text)
        if not isfinite(value):
            raise ValueError("nan and inf are not grades")
        return value
    except ValueError as error:
        raise UsageError(f"{where}: found {text!r}, expected a number", CSV_HINT) from error


def _means(grades: Sequence[tuple[str, str, float]]) -> Scores:
    """The mean score of each criterion and sample."""
    lists: dict[str, dict[str, list[float]]] = {}
    for criterion, sample, score in grades:
        lists.setdefault(criterion, {}).setdefault(sample, []).append(score)
    return {
        criterion: {sample: fmean(scores) for sample, scores in by_sample.items()}
        for criterion, by_sample in lists.items()
    }


def scores_by_judge(rows: Sequence[Mapping[str, Any]]) -> dict[str, Scores]:
    """Mean scores by judge from the rows of `grades.jsonl`."""
    grades: dict[str, list[tuple[str, str, float]]] = {}
    for row in rows:
        grade = Grade.from_json(row)
        if grade.sample is not None:
            grades.setdefault(row["judge"], []).append((grade.criterion, grade.sample, grade.score))
    return {judge: _means(of_judge) for judge, of_judge in grades.items()}


def compare_with_people(people: Mapping[str, Scores], judges: Mapping[str, Scores]) -> list[Agreement]:
    """The agreement of each judge with the mean of all people, and of each two people, on each criterion."""
    comparisons = [(judge, scores, people[EVERYONE]) for judge, scores in judges.items()]
    names = [who for who in people if who != EVERYONE]
    comparisons += [(f"{b} and {a}", people[b], people[a]) for i, a in enumerate(names) for b in names[i + 1 :]]
    agreements = [
        measure_agreement(
            title, criterion, {s: (reference[criterion][s], own[s]) for s in own if s in reference[criterion]}
        )
        for title, scores, reference in comparisons
        for criterion, own in scores.items()
        if criterion in reference and reference[criterion].keys() & own.keys()
    ]
    if not any(agreement.judge in judges for agreement in agreements):
        graded = ", ".join(sorted({f"{judge}.{criterion}" for judge, of in judges.items() for criterion in of}))
        raise UsageError(
            "no sample was graded by people and by a judge on the same criterion",
            f"Use the sample ids of samples.jsonl. Judges graded {graded or 'none: distillkit judge --judge rubric'}.",
        )
    return agreements


def measure_agreement(judge: str, criterion: str, pairs: Mapping[str, tuple[float, float]]) -> Agreement:
    """The agreement of pairs of scores by sample: reference first, judge second."""
    reference, own = zip(*pairs.values(), strict=True)
    within_one = sum(abs(a - b) <= 1 for a, b in pairs.values())
    return Agreement(
        judge,
        criterion,
        len(pairs),
        spearman(reference, own),
        weighted_kappa([round(value) for value in reference], [round(value) for value in own]),
        within_one / len(pairs),
        *wilson(within_one, len(pairs)),
        fmean(own) - fmean(reference),
    )


def format_agreements(agreements: Sequence[Agreement]) -> str:
    """The agreements as a table."""
    heads = ("Spearman's rho", "weighted kappa", "within one point")
    lines = [f"{'judge':<20} {'criterion':<14} {'n':>4}  {heads[0]:<22} {heads[1]:<22} {heads[2]:<20} bias"]
    for agreement in agreements:
        interval = f"[{agreement.within_one_low:.0%}, {agreement.within_one_high:.0%}]"
        within_one = f"{agreement.within_one:.0%} {interval}"
        rho, kappa = _format_interval(agreement.rank_correlation), _format_interval(agreement.kappa)
        lines.append(
            f"{agreement.judge:<20} {agreement.criterion:<14} {agreement.n:>4}  {rho:<22} {kappa:<22} "
            f"{within_one:<20} {agreement.bias:+.2f}"
        )
    if min(agreement.n for agreement in agreements) < FEW_SAMPLES:
        lines.append(f"Fewer than {FEW_SAMPLES} samples: the estimates are imprecise, as the wide intervals show.")
    return "\n".join(lines)


def _format_interval(value: Correlation | Kappa) -> str:
    if value.value is None:
        return "constant grades"
    return f"{value.value:.2f}" + (f" [{value.low:.2f}, {value.high:.2f}]" if value.low is not None else "")
