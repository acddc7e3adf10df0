"""Runs judges: shows each a subject, validates its grades, and records the protocol under which it graded.

Grades under different protocols are not comparable. Each grade therefore carries a hash of everything that determines
it except the subject: the judge's own facts (prompt, schema, scale, options), its teacher's identity, and the model
that the answers name. Knows neither networks nor files: the caller provides student, documents and teacher.
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

AskTeacher = Callable[[Sequence[Request]], Sequence[Answer]]
MAX_ABS_SCORE = 1e100  # the square of a larger score overflows, and so does the variance
FAMILY_ALIASES = {"o": "gpt", "chatgpt": "gpt", "codellama": "llama"}  # models whose names do not begin with the family


@dataclass
class JudgeTeacher:
    """A judge's teacher: asks it, and records the models that its answers name."""

    ask: AskTeacher
    identity: Mapping[str, Any] = field(default_factory=dict)  # what determines the answers: provider and identity
    models: set[str] = field(default_factory=set)

    def __call__(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """The answers to the requests."""
        answers = self.ask(requests)
        self.models |= {answer.model for answer in answers if answer.model}
        return answers


@dataclass(frozen=True)
class RunSubject:
    """A run as judges see it. `read_train` is called only if a judge reads the training text."""

    samples: Sequence[Sample]
    held_out: Sequence[Document]
    student: Scorer
    read_train: Callable[[], Iterable[str]]
    others: Sequence[Subject] = ()
    teacher: AskTeacher | None = None
    name: str = "the student"

    @property
    def train_text(self) -> Iterable[str]:
        """The training documents."""
        return self.read_train()

    def ask(self, requests: Sequence[Request]) -> Sequence[Answer] | None:
        """Answers of the judge's teacher, or None if it has none."""
        return None if self.teacher is None else self.teacher(requests)


@dataclass(frozen=True)
class Protocol:
    """Everything that determines a judge's grades except the subject."""

    facts: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """A hash of the facts."""
        return digest(self.facts)[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the report."""
        return {"hash": self.hash, "facts": dict(self.facts)}


@dataclass(frozen=True)
class JudgeResult:
    """A judge's grades, the metrics and protocol of these grades, and the design analysis of repeated grades."""

    judge: str
    grades: list[Grade]
    metrics: dict[str, Metric]
    protocol: Protocol
    design: dict[str, dict[str, Any]] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """The grades as rows of `grades.jsonl`."""
        protocol = self.protocol.hash
        return [{"judge": self.judge, "protocol": protocol, **grade.to_json()} for grade in self.grades]

    @property
    def power_summary(self) -> str:
        """The judge's noise and the minimum detectable difference in words; "" if no sample was graded twice."""
        criterion = "overall" if "overall" in self.design else next(iter(self.design), "")
        design = self.design.get(criterion) or {"detectable": None}
        if design["detectable"] is None:
            return ""
        deviation = (design["variance"]["noise"] or 0.0) ** 0.5
        return (
            f"{self.judge}: repeated grades of a sample have standard deviation {deviation:.2f}; "
            f"minimum detectable difference in {criterion}: {design['detectable']:.2f}"
        )


def run_judge(judge: Judge, subject: Subject) -> JudgeResult:
    """Let a judge grade a subject. Errors of the judge are reported under its name."""
    who = f"the judge {judge.name!r}"
    try:
        grades = [_validate(who, grade) for grade in judge.grade(subject)]
        metrics = {**judge.summarise(grades), **_metrics_by_temperature(judge, grades, subject.samples)}
        protocol = build_protocol(judge, getattr(subject, "teacher", None))
    except DistillkitError:
        raise
    except (Exception, SystemExit) as error:
        raise DistillkitError(f"{who} failed: {type(error).__name__}: {error}") from error
    for name, metric in metrics.items():
        if not isinstance(metric, Metric) or not _is_finite(metric.value):
            raise DistillkitError(f"{who} returned no numeric metric for {name!r}: {metric}")
    return JudgeResult(judge.name, grades, metrics, protocol, {} if judge.compares else analyze_designs(grades))


def planned_requests(judge: Judge, subject: Subject) -> list[Request]:
    """The requests that a judge will send for a subject."""
    try:
        return list(judge.requests(subject))
    except DistillkitError:
        raise
    except Exception as error:
        message = f"the judge {judge.name!r} failed to list its requests: {type(error).__name__}: {error}"
        raise DistillkitError(message) from error


def build_protocol(judge: Judge, teacher: AskTeacher | None = None) -> Protocol:
    """The protocol of a judge: its own facts, its teacher's identity, and the models that answered."""
    facts = {"judge": judge.name, **judge.facts()}
    if isinstance(teacher, JudgeTeacher):
        facts |= {"teacher": dict(teacher.identity), "models": sorted(teacher.models)}
    return Protocol(facts)


def _metrics_by_temperature(judge: Judge, grades: Sequence[Grade], samples: Sequence[Sample]) -> dict[str, Metric]:
    """The metrics at each temperature, `overall@0.5`, if samples were drawn at several; otherwise none."""
    temperatures = {sample.id: sample.temperature for sample in samples}
    metrics: dict[str, Metric] = {}
    for temperature in (distinct := sorted({t for t in temperatures.values() if t is not None})):
        selected = [g for g in grades if g.sample is not None and temperatures.get(g.sample) == temperature]
        if selected and len(distinct) > 1:
            metrics |= {f"{name}@{temperature:g}": metric for name, metric in judge.summarise(selected).items()}
    return metrics


def analyze_designs(grades: Sequence[Grade]) -> dict[str, dict[str, Any]]:
    """For each criterion with repeated grades of samples: variance components and the minimum detectable difference.

    The components are the variances between prompts, between samples of a prompt, and between grades of a sample. The
    detectable difference is that between two runs that are judged by this design.
    """
    designs = {}
    for criterion in dict.fromkeys(grade.criterion for grade in grades if grade.sample is not None):
        selected = [grade for grade in grades if grade.criterion == criterion and grade.sample is not None]
        prompts, samples = (
            [str(value) for value in values] for values in zip(*((g.cluster, g.sample) for g in selected), strict=True)
        )
        n_prompts, n_samples, n_grades = len(set(prompts)), len(set(samples)), len(selected)
        if n_grades == n_samples:
            continue
        variance = components([grade.score for grade in selected], prompts, samples)
        designs[criterion] = {
            "prompts": n_prompts,
            "samples": n_samples,
            "grades": n_grades,
            "variance": asdict(variance),
            "detectable": variance.detectable(n_prompts, max(1, n_samples // n_prompts), n_grades // n_samples),
        }
    return designs


def model_family(model: str | None) -> str | None:
    """The family that a model's name begins with, such as gpt, llama or qwen; None if there is none."""
    found = re.match(r"[a-z]+", (model or "").rpartition("/")[2].lower())
    return FAMILY_ALIASES.get(found[0], found[0]) if found else None


def _validate(who: str, grade: object) -> Grade:
    """The grade, if it is one with a finite score and weight. Raises DistillkitError otherwise."""
    if not isinstance(grade, Grade):
        raise DistillkitError(f"{who} returned a {type(grade).__name__} instead of a Grade")
    valid = all(_is_finite(value) and abs(float(value)) <= MAX_ABS_SCORE for value in (grade.score, grade.weight))
    if not valid or grade.weight < 0:
        graded = grade.sample or grade.document or "the student"
        raise DistillkitError(
            f"{who} gave {graded} a score of {grade.score!r} with weight {grade.weight!r} for {grade.criterion!r}",
            f"Both must be numbers of at most {MAX_ABS_SCORE:g} in magnitude, and the weight must not be negative.",
        )
    return grade


def _is_finite(value: object) -> bool:
    """Whether a value is a finite number. True and False count as 1 and 0."""
    return isinstance(value, Real) and math.isfinite(value)
