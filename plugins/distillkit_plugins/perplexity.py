"""The judge `perplexity`: the student's loss on held-out documents. Needs no teacher."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence

from distillkit import Grade, Judge, Metric, Subject, UsageError, hookimpl

MAX_NATS = math.log(sys.float_info.max)  # larger values overflow in exp


class Perplexity(Judge):
    """Loss, perplexity and bits per byte of the held-out documents, every token once.

    Bits per byte are comparable across tokenizers; loss and perplexity are not.
    """

    name = "perplexity"
    lower_is_better = frozenset({"loss", "perplexity", "bits_per_byte"})

    def grade(self, subject: Subject) -> Iterator[Grade]:
        """Two grades for each document, weighted by tokens and bytes, so that means are over all tokens and bytes."""
        if not subject.held_out:
            raise UsageError(
                "there are no held-out documents to compute perplexity on", "Raise data.held_out or data.documents."
            )
        scores = subject.student.score([document.text for document in subject.held_out])
        for document, score in zip(subject.held_out, scores, strict=True):
            yield Grade("loss", score.nats / score.tokens, document=document.id, weight=score.tokens)
            if score.bytes:
                bits = score.nats / math.log(2)
                yield Grade("bits_per_byte", bits / score.bytes, document=document.id, weight=score.bytes)

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Metric]:
        """Weighted means, and perplexity = exp(loss), unless the loss of a diverged student overflows it."""
        metrics = super().summarise(grades)
        loss = metrics["loss"]
        if loss.value > MAX_NATS:
            return metrics
        low, high = (None if bound is None or bound > MAX_NATS else math.exp(bound) for bound in (loss.low, loss.high))
        return {**metrics, "perplexity": Metric(math.exp(loss.value), low, high, loss.n)}


@hookimpl
def register_judges() -> list[type[Judge]]:
    """The judge of this module."""
    return [Perplexity]
