"""The judge `teacher-likelihood`: the likelihood of samples under a local teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from distillkit import Grade, Judge, Subject, hookimpl


class TeacherLikelihood(Judge):
    """Bits per byte of the samples under a local teacher; lower is likelier. Dull text is likely, too."""

    name = "teacher-likelihood"
    lower_is_better = frozenset({"bits_per_byte"})

    class Options(Judge.Options):
        """Options of the judge `teacher-likelihood`."""

        model: str = Field("tales-teacher", description="a run, a checkpoint folder, or a bundled student's name")

    def facts(self) -> dict[str, Any]:
        """The hash of the teacher's weights."""
        from distillkit.student import fingerprint

        return {"weights": fingerprint(self.options.model)}

    def grade(self, subject: Subject) -> Iterator[Grade]:
        """One grade for each non-empty sample. The prompt's own tokens do not count."""
        from distillkit.student import Trained

        non_empty = [sample for sample in subject.samples if sample.completion]
        teacher = Trained.load(self.options.model)
        scores = teacher.score_after([s.prompt for s in non_empty], [s.completion for s in non_empty])
        for sample, score in zip(non_empty, scores, strict=True):
            bits = score.nats / math.log(2)
            yield Grade("bits_per_byte", bits / score.bytes, sample=sample.id, weight=score.bytes)


@hookimpl
def register_judges() -> list[type[Judge]]:
    """The judge of this module."""
    return [TeacherLikelihood]
