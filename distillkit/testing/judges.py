"""What a judge owes the host: grades of what it was shown, the same each time, that can be kept and summed up.

Shows it a small subject: samples and documents of all kinds, and a student that anybody can compute.
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
from .fixtures import Pupil, documents, samples
from .framework import Case, CheckError, expect, plain_json, run_checks

Ask = Callable[[Request], Answer | str]


def check_judge(cls: type[Judge], options: Mapping[str, Any] | None = None, *, teacher: Ask | None = None) -> list[str]:
    """Hold a judge against its promises. `options` are those of a recipe's [[judge]] table.

    A judge that asks a teacher needs one: `teacher` is handed each request and returns an answer, or its text.
    """
    checks = [grades_its_subject, summarises_its_grades, is_repeatable, handles_an_empty_subject]
    checks += [handles_empty_samples]
    if teacher is not None:
        checks += [handles_refused_requests, handles_a_missing_teacher]
    return run_checks("judges", cls, options, checks, teacher=teacher)


def subject_of(case: Case) -> RunSubject:
    """What the judge is shown."""
    ask: Ask | None = case.extra["teacher"]

    def ask_all(requests: Sequence[Request]) -> list[Answer]:
        answers = [ask(request) for request in requests] if ask else []
        return [Answer(answer) if isinstance(answer, str) else answer for answer in answers]

    train = documents("train")
    subject = RunSubject(
        samples=samples(),
        held_out=documents("held-out"),
        student=Pupil(),
        read_train=lambda: (document.text for document in train),
        teacher=ask_all if ask else None,
    )
    shorter = [replace(sample, completion=sample.completion[:20]) for sample in subject.samples]
    return replace(subject, others=[replace(subject, name="another", samples=shorter)])


def result_of(case: Case, subject: RunSubject) -> JudgeResult:
    """What the host makes of what a judge says."""
    try:
        return run_judge(case.build(), subject)
    except DistillkitError as error:
        remedy = "A judge that asks a teacher needs one: check_judge(..., teacher=lambda request: ...)."
        raise CheckError(str(error), remedy if case.extra["teacher"] is None else "") from error


# --------------------------------------------------------------------------------------------- promises


def grades_its_subject(case: Case) -> None:
    """Samples and documents by their ids; every grade can be kept as a line of JSON."""
    subject = subject_of(case)
    grades = result_of(case, subject).grades
    expect(grades, "it gave no grade at all", "Yield Grade(criterion, score, sample=...) for what it was shown.")
    _are_of(grades, [sample.id for sample in subject.samples], "sample")
    _are_of(grades, [document.id for document in subject.held_out], "document")
    for grade in grades:
        expect(isinstance(grade.criterion, str) and grade.criterion, f"{grade!r} has no criterion", "Name it.")
        again = Grade.from_json(json.loads(json.dumps(plain_json(grade.to_json(), "a grade"))))
        expect(again == grade, f"{grade!r} came back from JSON as {again!r}", "Give numbers and text of Python.")


def _are_of(grades: Iterable[Grade], known: Sequence[str], kind: str) -> None:
    strange = [getattr(grade, kind) for grade in grades if getattr(grade, kind) not in (None, *known)]
    expect(not strange, f"it graded the {kind} {strange[:1]}, which it was not shown", f"Use {kind}={kind}.id.")


def summarises_its_grades(case: Case) -> None:
    """Metrics are numbers inside their intervals, and the same when the grades were read from disk."""
    result = result_of(case, subject_of(case))
    for name, metric in result.metrics.items():
        bounds = [bound for bound in (metric.low, metric.high) if bound is not None]
        finite = all(math.isfinite(bound) for bound in bounds)
        within = all(low is None or high is None or low <= high for low, high in _pairs(metric))
        expect(finite and within, f"the metric {name!r} is {metric}", "low <= value <= high, all finite.")
    kept = [Grade.from_json(json.loads(json.dumps(row))) for row in result.rows()]
    again = case.build().summarise(kept)
    remedy = "summarise() may look at the grades alone: the host calls it with those of grades.jsonl, too."
    expect(again == result.metrics, f"of its grades from disk it makes {again}, before {result.metrics}", remedy)


def _pairs(metric: Metric) -> list[tuple[float | None, float | None]]:
    return [(metric.low, metric.value), (metric.value, metric.high)]


def is_repeatable(case: Case) -> None:
    """The same subject, the same grades."""
    one, two = (result_of(case, subject_of(case)) for _ in range(2))
    remedy = "Draw by a seed of its own, and let no clock or order of a set decide."
    expect(one.rows() == two.rows(), "shown the same again, it graded otherwise", remedy)


def handles_an_empty_subject(case: Case) -> None:
    """No samples, or no held-out documents: it has nothing to say, or refuses in words."""
    subject = subject_of(case)
    _says_so(case, replace(subject, samples=[]), "without samples")
    _says_so(case, replace(subject, held_out=[]), "without documents")
    _says_so(case, replace(subject, samples=[], held_out=[], read_train=tuple), "with nothing at all")


def handles_empty_samples(case: Case) -> None:
    """A student may end at once, and a plan counts what would be asked of such samples: it may be nothing."""
    subject = subject_of(case)
    wordless = replace(subject, samples=[replace(sample, completion="") for sample in subject.samples])
    try:
        planned_requests(case.build(), wordless)
    except DistillkitError as error:
        remedy = "Leave out in requests() what it cannot ask."
        raise CheckError(f"of samples without a word, {error}", remedy) from error
    _says_so(case, wordless, "of samples without a word")


def handles_refused_requests(case: Case) -> None:
    """A teacher that gives no answer says "refused" instead: that sample has no grade."""
    refused = replace(subject_of(case), teacher=lambda requests: [Answer("", finish="refused") for _ in requests])
    _says_so(case, refused, "when its teacher refuses")


def handles_a_missing_teacher(case: Case) -> None:
    """Without a teacher it grades all the same, or refuses in words."""
    _says_so(case, replace(subject_of(case), teacher=None), "without a teacher")


def _says_so(case: Case, subject: RunSubject, when: str) -> None:
    try:
        run_judge(case.build(), subject)
    except UsageError:
        return
    except DistillkitError as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, DistillkitError):
            return
        remedy = "Yield no grades then, or raise a UsageError that says what it needs; summarise([]) is {}."
        raise CheckError(f"{when} it failed: {describe_error(cause)}", remedy) from error
