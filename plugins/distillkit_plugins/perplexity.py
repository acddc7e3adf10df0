"""The judge that needs no teacher: how surprised the student is by documents that it never saw."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence

from distillkit import Grade, Judge, Metric, Subject, UsageError, hookimpl

MOST_NATS = math.log(sys.float_info.max)  # of which the exponential is still a number


class Perplexity(Judge):
    """Loss, perplexity and bits per byte of the held-out documents, every token once.

    Bits per byte compare across tokenizers; loss and perplexity do not.
    """

    name = "perplexity"
    lower_is_better = frozenset({"loss", "perplexity", "bits_per_byte"})

    def grade(self, subject: Subject) -> Iterator[Grade]:
        """Two grades a document, weighted so that their means are those of all tokens and of all bytes."""
        if not subject.held_out:
            raise UsageError("there are no held-out documents to judge by", "Raise data.held_out or data.documents.")
        scores = subject.student.score([document.text for document in subject.held_out])
        for document, score in zip(subject.held_out, scores, strict=True):
            yield Grade("loss", score.nats / score.tokens, document=document.id, weight=score.tokens)
            if score.bytes:
                bits = score.nats / math.log(2)
                yield Grade("bits_per_byte", bits / score.bytes, document=document.id, weight=score.bytes)

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Metric]:
        """The weighted means, and perplexity, the exponential of the loss; a student that diverged may have none."""
        metrics = super().summarise(grades)
        loss = metrics["loss"]
        if loss.value > MOST_NATS:
            return metrics
        low, high = (None if bound is None or bound > MOST_NATS else math.exp(bound) for bound in (loss.low, loss.high))
        return {**metrics, "perplexity": Metric(math.exp(loss.value), low, high, loss.n)}


@hookimpl
def register_judges() -> list[type[Judge]]:
    """Offer it."""
    return [Perplexity]
