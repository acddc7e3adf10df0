"""Twenty stories of known quality, to see whether a judge can tell: as they were written, with their sentences
shuffled, with the words inside shuffled too, and words drawn from a hat. Knows neither judges nor files of runs.
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

CLEAR = 0.5  # a rank correlation that is surely above this tells good from bad


@dataclass(frozen=True)
class Anchor:
    """A story, and how good it is: 4 as it was written, 3 sentences shuffled, 2 words shuffled, 1 word salad."""

    sample: Sample
    level: int


@dataclass(frozen=True)
class Order:
    """How well one criterion of a judge follows the quality of the anchors."""

    judge: str
    criterion: str
    correlation: Correlation
    by_level: Mapping[int, float]

    @property
    def sentence(self) -> str:
        """The finding in plain words."""
        found = self.correlation
        if found.value is None and len(self.by_level) > 1:
            return "gives all of them the same"
        if found.low is None or found.high is None:
            return "too few were graded to tell"
        if found.low > CLEAR:
            return "tells good stories from bad ones"
        if found.low > 0:
            return "follows their quality, though not closely"
        return "turns their order around" if found.high < 0 else "does not follow their quality"

    def to_json(self) -> dict[str, Any]:
        """Plain values, for machines."""
        means = {str(level): mean for level, mean in self.by_level.items()}
        return {
            "judge": self.judge,
            "criterion": self.criterion,
            **asdict(self.correlation),
            "by_level": means,
            "says": self.sentence,
        }


def anchors() -> list[Anchor]:
    """The twenty stories."""
    text = resources.files("distillkit.judging").joinpath("anchors.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [Anchor(Sample(row["id"], row["prompt"], row["completion"], 0), row["level"]) for row in rows]


def orders(judge: str, grades: Sequence[Grade], lower_is_better: frozenset[str]) -> list[Order]:
    """For each criterion that all anchors were graded by: whether better stories have better grades."""
    levels = {anchor.sample.id: anchor.level for anchor in anchors()}
    found = []
    for criterion in dict.fromkeys(grade.criterion for grade in grades):
        scores: dict[str, list[float]] = {}
        for grade in grades:
            if grade.criterion == criterion and grade.sample in levels:
                scores.setdefault(str(grade.sample), []).append(grade.score)
        if len(scores) < 2:
            continue
        means = {name: fmean(values) for name, values in scores.items()}
        sign = -1 if criterion in lower_is_better else 1
        correlation = spearman([levels[name] for name in means], [sign * mean for mean in means.values()])
        by_level = {
            one: [mean for name, mean in means.items() if levels[name] == one] for one in sorted({*levels.values()})
        }
        found.append(Order(judge, criterion, correlation, {one: fmean(of) for one, of in by_level.items() if of}))
    return found


def text(found: Sequence[Order], silent: Sequence[str]) -> str:
    """The orders for a reader."""
    lines = [
        f"{'judge':<20} {'criterion':<16} {'salad':>7} {'words':>7} {'sentences':>9} {'clean':>7}  rank correlation"
    ]
    for order in found:
        means = [order.by_level.get(level) for level in (1, 2, 3, 4)]
        shown = [
            f"{'' if mean is None else format(mean, '.2f'):>{width}}"
            for mean, width in zip(means, (7, 7, 9, 7), strict=True)
        ]
        lines.append(f"{order.judge:<20} {order.criterion:<16} {' '.join(shown)}  {_words(order)}")
    lines += [f"{name:<20} grades the student, not samples: anchors say nothing of it" for name in silent]
    return "\n".join(lines)


def _words(order: Order) -> str:
    c = order.correlation
    figures = "" if c.value is None or c.low is None else f"{c.value:.2f} [{c.low:.2f}, {c.high:.2f}]: "
    return f"{figures}{order.sentence}"
