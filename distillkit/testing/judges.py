"""Checks of judges: reproducible grades of the subject's samples and documents, which can be stored and summarised.

The judge is given a small subject: samples and documents of all kinds, and a simple student.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..core.errors import DistillkitError, UsageError
from ..core.records import Answer, Grade, Metric, Request
from ..judging.protocol import JudgeResult, RunSubject, planned_requests, run_judge
from ..plugins.discovery import describe_error
from ..plugins.interfaces import Judge
from .fixtures import ByteStudent, documents, samples
from .framework import Case, CheckError, expect, plain_json, run_checks

Ask = Callable[[Request], Answer | str]


def check_judge(cls: type[Judge], options: Mapping[str, Any] | None = None, *, teacher: Ask | None = None) -> list[str]:
    """Check a judge. `options` are those of a recipe's [[judge]] table.

    A judge that asks a teacher needs `teacher`, a function that returns an answer, or its text, to a request.
    """
    checks = [grades_its_subject, summarises_its_grades, is_repeatable, handles_an_empty_subject]
    checks += [handles_empty_samples]
    if teacher is not None:
        checks += [handles_refused_requests, handles_a_missing_teacher]
    return run_checks("judges", cls, options, checks, teacher=teacher)


def subject_of(case: Case) -> RunSubject:
    """The subject to grade."""
    ask: Ask | None = case.extra["teacher"]

    def ask_all(requests: Sequence[Request]) -> list[Answer]:
        answers = [ask(request) for request in requests] if ask else []
        return [Answer(answer) if isinstance(answer, str) else answer for answer in answers]

    train = documents("train")
    subject = RunSubject(
        samples=samples(),
        held_out=documents("held-out"),
        student=ByteStudent(),
        read_train=lambda: (document.text for document in train),
        teacher=ask_all if ask else None,
    )
    shorter = [replace(sample, completion=sample.completion[:20]) for sample in subject.samples]
    return replace(subject, others=[replace(subject, name="another", samples=shorter)])


def result_of(case: Case, subject: RunSubject) -> JudgeResult:
    """The judge's result, as the host computes it."""
    try:
        return run_judge(case.build(), subject)
    except DistillkitError as error:
        remedy = "A judge that asks a teacher needs one: check_judge(..., teacher=lambda request: ...)."
        raise CheckError(str(error), remedy if case.extra["teacher"] is None else "") from error


# ----------------------------------------------------------------------------------------------- checks


def grades_its_subject(case: Case) -> None:
    """It grades samples and documents by their ids, and every grade can be serialised as JSON."""
    subject = subject_of(case)
    grades = result_of(case, subject).grades
    expect(grades, "it yielded no grades", "Yield Grade(criterion, score, sample=...) for the samples of the subject.")
    _check_ids(grades, [sample.id for sample in subject.samples], "sample")
    _check_ids(grades, [document.id for document in subject.held_out], "document")
    for grade in grades:
        expect(isinstance(grade.criterion, str) and grade.criterion, f"{grade!r} has no criterion", "Give it a name.")
        restored = Grade.from_json(json.loads(json.dumps(plain_json(grade.to_json(), "a grade"))))
        expect(restored == grade, f"{grade!r} came back from JSON as {restored!r}", "Use Python numbers and text.")


def _check_ids(grades: Iterable[Grade], known: Sequence[str], kind: str) -> None:
    unknown = [getattr(grade, kind) for grade in grades if getattr(grade, kind) not in (None, *known)]
    expect(not unknown, f"it graded the {kind} {unknown[:1]}, which is not in the subject", f"Use {kind}={kind}.id.")


def summarises_its_grades(case: Case) -> None:
    """Metrics are finite, lie in their intervals, and are the same for grades that were read from disk."""
    result = result_of(case, subject_of(case))
    for name, metric in result.metrics.items():
        bounds = [bound for bound in (metric.low, metric.high) if bound is not None]
        are_finite = all(math.isfinite(bound) for bound in bounds)
        are_ordered = all(low is None or high is None or low <= high for low, high in _pairs(metric))
        expect(are_finite and are_ordered, f"the metric {name!r} is {metric}", "low <= value <= high, all finite.")
    stored = [Grade.from_json(json.loads(json.dumps(row))) for row in result.rows()]
    metrics = case.build().summarise(stored)
    remedy = "summarise() may use only the grades: the host also calls it with grades from grades.jsonl."
    expect(metrics == result.metrics, f"metrics of stored grades are {metrics}, before {result.metrics}", remedy)


def _pairs(metric: Metric) -> list[tuple[float | None, float | None]]:
    return [(metric.low, metric.value), (metric.value, metric.high)]


def is_repeatable(case: Case) -> None:
    """The same subject gets the same grades."""
    one, two = (result_of(case, subject_of(case)) for _ in range(2))
    remedy = "Use a fixed seed, and do not depend on the time or the order of a set."
    expect(one.rows() == two.rows(), "the same subject got different grades", remedy)


def handles_an_empty_subject(case: Case) -> None:
    """Without samples or held-out documents it yields nothing or raises a UsageError."""
    subject = subject_of(case)
    _grades_or_refuses(case, replace(subject, samples=[]), "without samples")
    _grades_or_refuses(case, replace(subject, held_out=[]), "without documents")
    _grades_or_refuses(case, replace(subject, samples=[], held_out=[], read_train=tuple), "with nothing at all")


def handles_empty_samples(case: Case) -> None:
    """It accepts empty samples, which a student may write, in `requests` and `grade`."""
    subject = subject_of(case)
    empty = replace(subject, samples=[replace(sample, completion="") for sample in subject.samples])
    try:
        planned_requests(case.build(), empty)
    except DistillkitError as error:
        remedy = "Skip samples in requests() that it cannot ask about."
        raise CheckError(f"with empty samples, {error}", remedy) from error
    _grades_or_refuses(case, empty, "with empty samples")


def handles_refused_requests(case: Case) -> None:
    """A request without an answer has `finish = "refused"`: that sample gets no grade."""
    refused = replace(subject_of(case), teacher=lambda requests: [Answer("", finish="refused") for _ in requests])
    _grades_or_refuses(case, refused, "when its teacher refuses")


def handles_a_missing_teacher(case: Case) -> None:
    """Without a teacher it grades nevertheless or raises a UsageError."""
    _grades_or_refuses(case, replace(subject_of(case), teacher=None), "without a teacher")


def _grades_or_refuses(case: Case, subject: RunSubject, when: str) -> None:
    try:
        run_judge(case.build(), subject)
    except UsageError:
        return
    except DistillkitError as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, DistillkitError):
            return
        remedy = "Yield no grades, or raise a UsageError that says what it needs; summarise([]) must return {}."
        raise CheckError(f"{when} it failed: {describe_error(cause)}", remedy) from error
