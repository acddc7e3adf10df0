"""The judge that asks a local teacher: how likely it holds what the student wrote."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from distillkit import Grade, Judge, Subject, hookimpl


class TeacherLikelihood(Judge):
    """How likely the samples are to a local teacher, in bits a byte; less is likelier. Dull text is likely, too."""

    name = "teacher-likelihood"
    lower_is_better = frozenset({"bits_per_byte"})

    class Options(Judge.Options):
        """Whose opinion is asked."""

        model: str = Field("tales-teacher", description="a run, a checkpoint folder, or a bundled student's name")

    def facts(self) -> dict[str, Any]:
        """The teacher's weights, whatever they are called."""
        from distillkit.student import fingerprint

        return {"weights": fingerprint(self.options.model)}

    def grade(self, subject: Subject) -> Iterator[Grade]:
        """One grade a sample that has any text; the prompt does not count."""
        from distillkit.student import Trained

        written = [sample for sample in subject.samples if sample.completion]
        teacher = Trained.load(self.options.model)
        scores = teacher.score_after([s.prompt for s in written], [s.completion for s in written])
        for sample, score in zip(written, scores, strict=True):
            bits = score.nats / math.log(2)
            yield Grade("bits_per_byte", bits / score.bytes, sample=sample.id, weight=score.bytes)


@hookimpl
def register_judges() -> list[type[Judge]]:
    """Offer it."""
    return [TeacherLikelihood]
