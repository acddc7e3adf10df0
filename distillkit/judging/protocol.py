"""The judge stage: a subject is shown to each judge, and what they say is kept.

Knows neither networks nor files: whoever calls brings the student, the documents and a way to ask a teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..errors import DistillkitError
from ..records import Answer, Document, Grade, Metric, Request, Sample
from ..roles import Judge, Scorer, Subject

Ask = Callable[[Sequence[Request]], Sequence[Answer]]


@dataclass(frozen=True)
class Judged:
    """What a judge sees of a run. `read_train` is called only by judges that look at the training text."""

    samples: Sequence[Sample]
    held_out: Sequence[Document]
    student: Scorer
    read_train: Callable[[], Iterable[str]]
    others: Sequence[Subject] = ()
    asker: Ask | None = None

    @property
    def train_text(self) -> Iterable[str]:
        """The documents that were trained on."""
        return self.read_train()

    def ask(self, requests: Sequence[Request]) -> Sequence[Answer] | None:
        """Answers of the judge's teacher, or None when it has none."""
        return None if self.asker is None else self.asker(requests)


@dataclass(frozen=True)
class Verdict:
    """All that one judge said, and what it comes to."""

    judge: str
    grades: list[Grade]
    metrics: dict[str, Metric]

    def rows(self) -> list[dict[str, Any]]:
        """The grades as lines for `grades.jsonl`."""
        return [{"judge": self.judge, **grade.to_json()} for grade in self.grades]


def judge(judge: Judge, subject: Subject) -> Verdict:
    """Ask one judge; what it does wrong is said in its name."""
    who = f"the judge {judge.name!r}"
    try:
        grades = [_checked(who, grade) for grade in judge.grade(subject)]
        metrics = judge.summarise(grades)
    except DistillkitError:
        raise
    except (Exception, SystemExit) as error:
        raise DistillkitError(f"{who} failed: {type(error).__name__}: {error}") from error
    for name, metric in metrics.items():
        if not isinstance(metric, Metric) or not _is_number(metric.value):
            raise DistillkitError(f"{who} made no number of its grades of {name!r}: {metric}")
    return Verdict(judge.name, grades, metrics)


def _checked(who: str, grade: object) -> Grade:
    """A grade that can be counted, or the judge's fault said plainly."""
    if not isinstance(grade, Grade):
        raise DistillkitError(f"{who} gave a {type(grade).__name__} where a Grade was due")
    if not _is_number(grade.score) or not _is_number(grade.weight) or grade.weight < 0:
        of = grade.sample or grade.document or "the student"
        raise DistillkitError(
            f"{who} gave {of} a score of {grade.score!r}, weighing {grade.weight!r}, for {grade.criterion!r}",
            "Both must be finite numbers, and no weight below 0.",
        )
    return grade


def _is_number(value: object) -> bool:
    """Whether a value can be averaged. True and False can: they are 1 and 0."""
    return isinstance(value, Real) and math.isfinite(value)
