"""Tests whether judges rank stories by quality, with twenty anchor stories of known quality.

Five stories come in four versions each: as written, with shuffled sentences, with shuffled words, and as random words.
Knows neither judges nor run folders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from statistics import fmean
from typing import Any

from ..core.records import Grade, Sample
from ..stats import Correlation, spearman

STRONG_CORRELATION = 0.5


@dataclass(frozen=True)
class Anchor:
    """A story and its quality level: 4 as written, 3 sentences shuffled, 2 words shuffled, 1 random words."""

    sample: Sample
    level: int


@dataclass(frozen=True)
class AnchorResult:
    """How one criterion of a judge correlates with the quality of the anchors, and its mean grade per level."""

    judge: str
    criterion: str
    correlation: Correlation
    by_level: Mapping[int, float]

    @property
    def conclusion(self) -> str:
        """The result in words."""
        correlation = self.correlation
        if correlation.value is None and len(self.by_level) > 1:
            return "gives all stories the same grade"
        if correlation.low is None or correlation.high is None:
            return "too few grades to tell"
        if correlation.low > STRONG_CORRELATION:
            return "ranks stories by quality"
        if correlation.low > 0:
            return "weakly correlated with quality"
        return "ranks stories in reverse order of quality" if correlation.high < 0 else "not correlated with quality"

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `--json` and `run.json`."""
        means = {str(level): mean for level, mean in self.by_level.items()}
        return {
            "judge": self.judge,
            "criterion": self.criterion,
            **asdict(self.correlation),
            "by_level": means,
            "says": self.conclusion,
        }


def load_anchors() -> list[Anchor]:
    """The twenty anchors."""
    text = resources.files("distillkit.judging").joinpath("anchors.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [Anchor(Sample(row["id"], row["prompt"], row["completion"], 0), row["level"]) for row in rows]


def correlate_with_quality(judge: str, grades: Sequence[Grade], lower_is_better: frozenset[str]) -> list[AnchorResult]:
    """The rank correlation of each criterion with the quality of the anchors.

    A positive correlation means that better stories get better grades, also where lower grades are better.
    """
    levels = {anchor.sample.id: anchor.level for anchor in load_anchors()}
    results = []
    for criterion in dict.fromkeys(grade.criterion for grade in grades):
        scores: dict[str, list[float]] = {}
        for grade in grades:
            if grade.criterion == criterion and grade.sample in levels:
                scores.setdefault(str(grade.sample), []).append(grade.score)
        if len(scores) < 2:
            continue
        means = {sample: fmean(values) for sample, values in scores.items()}
        sign = -1 if criterion in lower_is_better else 1
        correlation = spearman([levels[sample] for sample in means], [sign * mean for mean in means.values()])
        by_level = {
            level: [mean for sample, mean in means.items() if levels[sample] == level]
            for level in sorted({*levels.values()})
        }
        level_means = {level: fmean(values) for level, values in by_level.items() if values}
        results.append(AnchorResult(judge, criterion, correlation, level_means))
    return results


def format_results(results: Sequence[AnchorResult], not_applicable: Sequence[str]) -> str:
    """The results as a table. `not_applicable` names judges that grade the student rather than samples."""
    header = (
        f"{'judge':<20} {'criterion':<16} {'random':>7} {'words':>7} {'sentences':>9} {'clean':>7}  rank correlation"
    )
    lines = [header]
    for result in results:
        means = [result.by_level.get(level) for level in (1, 2, 3, 4)]
        cells = [
            f"{'' if mean is None else format(mean, '.2f'):>{width}}"
            for mean, width in zip(means, (7, 7, 9, 7), strict=True)
        ]
        lines.append(f"{result.judge:<20} {result.criterion:<16} {' '.join(cells)}  {_format_correlation(result)}")
    lines += [f"{name:<20} grades the student rather than samples: anchors do not apply" for name in not_applicable]
    return "\n".join(lines)


def _format_correlation(result: AnchorResult) -> str:
    correlation = result.correlation
    if correlation.value is None or correlation.low is None:
        return result.conclusion
    return f"{correlation.value:.2f} [{correlation.low:.2f}, {correlation.high:.2f}]: {result.conclusion}"
