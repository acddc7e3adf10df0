"""The judge stage: a subject is shown to each judge, and what they say is kept, with the protocol they said it by.

Grades of unlike protocols do not compare, so every grade carries a hash of all that decides it but the subject: the
judge's own facts (prompt, schema, scale, options), whom it asked, and which model the answers say they are from. Knows
neither networks nor files: whoever calls brings the student, the documents and a way to ask a teacher.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any

from ..core.errors import DistillkitError
from ..core.files import digest
from ..core.records import Answer, Document, Grade, Metric, Request, Sample
from ..plugins.interfaces import Judge, Scorer, Subject
from ..stats import components

Ask = Callable[[Sequence[Request]], Sequence[Answer]]
LARGEST = 1e100  # of a score: squares of larger ones, and so their spread, are no numbers
KIN = {"o": "gpt", "chatgpt": "gpt", "codellama": "llama"}  # models whose names hide their family


@dataclass
class Asker:
    """A way to ask a teacher that remembers who answered."""

    ask: Ask
    who: Mapping[str, Any] = field(default_factory=dict)  # what decides the answers: provider and identity
    models: set[str] = field(default_factory=set)  # as the answers report them

    def __call__(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Ask, and note the models."""
        answers = self.ask(requests)
        self.models |= {answer.model for answer in answers if answer.model}
        return answers


@dataclass(frozen=True)
class Judged:
    """What a judge sees of a run. `read_train` is called only by judges that look at the training text."""

    samples: Sequence[Sample]
    held_out: Sequence[Document]
    student: Scorer
    read_train: Callable[[], Iterable[str]]
    others: Sequence[Subject] = ()
    asker: Ask | None = None
    name: str = "the student"

    @property
    def train_text(self) -> Iterable[str]:
        """The documents that were trained on."""
        return self.read_train()

    def ask(self, requests: Sequence[Request]) -> Sequence[Answer] | None:
        """Answers of the judge's teacher, or None when it has none."""
        return None if self.asker is None else self.asker(requests)


@dataclass(frozen=True)
class Protocol:
    """All that decides a judge's grades but the subject, and its hash."""

    facts: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """Equal protocols, equal hashes."""
        return digest(self.facts)[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the report."""
        return {"hash": self.hash, "facts": dict(self.facts)}


@dataclass(frozen=True)
class Verdict:
    """All that one judge said, what it comes to, and what its design could have seen."""

    judge: str
    grades: list[Grade]
    metrics: dict[str, Metric]
    protocol: Protocol
    design: dict[str, dict[str, Any]] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """The grades as lines for `grades.jsonl`."""
        mark = self.protocol.hash
        return [{"judge": self.judge, "protocol": mark, **grade.to_json()} for grade in self.grades]

    @property
    def reach(self) -> str:
        """What this design can see, in words; nothing where samples were graded once."""
        name = "overall" if "overall" in self.design else next(iter(self.design), "")
        found = self.design.get(name) or {"detectable": None}
        if found["detectable"] is None:
            return ""
        noise = (found["variance"]["noise"] or 0.0) ** 0.5
        return (
            f"{self.judge}: grades of one sample spread by {noise:.2f}; "
            f"two runs must be about {found['detectable']:.2f} apart in {name} to be told apart"
        )


def judge(judge: Judge, subject: Subject) -> Verdict:
    """Ask one judge; what it does wrong is said in its name."""
    who = f"the judge {judge.name!r}"
    try:
        grades = [_checked(who, grade) for grade in judge.grade(subject)]
        metrics = {**judge.summarise(grades), **_by_temperature(judge, grades, subject.samples)}
        facts = protocol(judge, getattr(subject, "asker", None))
    except DistillkitError:
        raise
    except (Exception, SystemExit) as error:
        raise DistillkitError(f"{who} failed: {type(error).__name__}: {error}") from error
    for name, metric in metrics.items():
        if not isinstance(metric, Metric) or not _is_number(metric.value):
            raise DistillkitError(f"{who} made no number of its grades of {name!r}: {metric}")
    return Verdict(judge.name, grades, metrics, facts, {} if judge.compares else designs(grades))


def would_ask(judge: Judge, subject: Subject) -> list[Request]:
    """The requests that a judge foresees."""
    try:
        return list(judge.requests(subject))
    except DistillkitError:
        raise
    except Exception as error:
        told = f"the judge {judge.name!r} could not say what it would ask: {type(error).__name__}: {error}"
        raise DistillkitError(told) from error


def protocol(judge: Judge, asker: Ask | None = None) -> Protocol:
    """By what a judge grades: its own facts, whom it asks, and who answered."""
    facts = {"judge": judge.name, **judge.facts()}
    if isinstance(asker, Asker):
        facts |= {"teacher": dict(asker.who), "models": sorted(asker.models)}
    return Protocol(facts)


def _by_temperature(judge: Judge, grades: Sequence[Grade], samples: Sequence[Sample]) -> dict[str, Metric]:
    """Where samples were written at several temperatures, the metrics at each of them, beside those of all."""
    warm = {sample.id: sample.temperature for sample in samples}
    metrics: dict[str, Metric] = {}
    for one in (there := sorted({t for t in warm.values() if t is not None})):
        own = [grade for grade in grades if grade.sample is not None and warm.get(grade.sample) == one]
        if own and len(there) > 1:
            metrics |= {f"{name}@{one:g}": metric for name, metric in judge.summarise(own).items()}
    return metrics


def designs(grades: Sequence[Grade]) -> dict[str, dict[str, Any]]:
    """For each criterion that samples were graded by more than once: where its spread comes from.

    And the smallest difference that two runs judged so could show.
    """
    found = {}
    for criterion in dict.fromkeys(grade.criterion for grade in grades if grade.sample is not None):
        of = [grade for grade in grades if grade.criterion == criterion and grade.sample is not None]
        prompts, samples = (
            [str(value) for value in values] for values in zip(*((g.cluster, g.sample) for g in of), strict=True)
        )
        if len(of) == len(set(samples)):
            continue
        parts, count = components([grade.score for grade in of], prompts, samples), len(set(prompts))
        found[criterion] = {
            "prompts": count,
            "samples": len(set(samples)),
            "grades": len(of),
            "variance": asdict(parts),
            "detectable": parts.detectable(count, max(1, len(set(samples)) // count), len(of) // len(set(samples))),
        }
    return found


def family(model: str | None) -> str | None:
    """The family that a model's name speaks of: gpt, llama, qwen ...; None where it speaks of none."""
    found = re.match(r"[a-z]+", (model or "").rpartition("/")[2].lower())
    return KIN.get(found[0], found[0]) if found else None


def _checked(who: str, grade: object) -> Grade:
    """A grade that can be counted, or the judge's fault said plainly."""
    if not isinstance(grade, Grade):
        raise DistillkitError(f"{who} gave a {type(grade).__name__} where a Grade was due")
    countable = all(_is_number(value) and abs(float(value)) <= LARGEST for value in (grade.score, grade.weight))
    if not countable or grade.weight < 0:
        of = grade.sample or grade.document or "the student"
        raise DistillkitError(
            f"{who} gave {of} a score of {grade.score!r}, weighing {grade.weight!r}, for {grade.criterion!r}",
            f"Both must be numbers of at most {LARGEST:g}, and no weight below 0.",
        )
    return grade


def _is_number(value: object) -> bool:
    """Whether a value can be averaged. True and False can: they are 1 and 0."""
    return isinstance(value, Real) and math.isfinite(value)
