"""The judge stage: a subject is shown to each judge, and what they say is kept.

Knows neither networks nor files: whoever calls brings the student, the documents and a way to ask a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
    try:
        grades = list(judge.grade(subject))
        metrics = judge.summarise(grades)
    except DistillkitError:
        raise
    except Exception as error:
        raise DistillkitError(f"the judge {judge.name!r} failed: {type(error).__name__}: {error}") from error
    strange = next((grade for grade in grades if not isinstance(grade, Grade)), None)
    if strange is not None:
        raise DistillkitError(
            f"the judge {judge.name!r} gave a {type(strange).__name__} where a Grade was due"
        )
    return Verdict(judge.name, grades, metrics)
