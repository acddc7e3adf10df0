"""The judge `memorization`: how much of the samples is copied from the training text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydantic import Field

from distillkit import Grade, Judge, Metric, Subject, hookimpl
from distillkit.data.overlap import longest_matches


class Memorization(Judge):
    """The longest sequence of words that a sample shares with the training text, and the share of such sequences.

    Held-out documents are graded in the same way for comparison: similar texts share many words without copying.
    """

    name = "memorization"
    lower_is_better = frozenset({"longest", "overlap"})
    neither_is_better = frozenset(
        {"held_out_longest", "held_out_overlap"}
    )  # of held-out documents, cut to the samples' length

    class Options(Judge.Options):
        """Options of the judge `memorization`."""

        words: int = Field(8, ge=4, description="number of consecutive shared words that count as overlap")

    def grade(self, subject: Subject) -> Iterator[Grade]:
        """Two grades for each sample and each held-out document, which is cut to the samples' median length."""
        median_length = sorted(len(sample.completion) for sample in subject.samples)[len(subject.samples) // 2 :][:1]
        samples = [(sample.id, sample.completion) for sample in subject.samples]
        held_out = [(document.id, document.text[: median_length[0]]) for document in subject.held_out if median_length]
        texts = [*samples, *held_out]
        found = longest_matches([text for _, text in texts], subject.train_text)
        for i, ((id_, _), lengths) in enumerate(zip(texts, found, strict=True)):
            prefix, sample, document = ("", id_, None) if i < len(samples) else ("held_out_", None, id_)
            yield Grade(f"{prefix}longest", float(max(lengths, default=0)), sample, document)
            positions = len(lengths) - self.options.words + 1
            if positions > 0:
                share = sum(n >= self.options.words for n in lengths) / positions
                yield Grade(f"{prefix}overlap", share, sample, document, weight=positions)

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Metric]:
        """Weighted means; the lower end of an interval is at least 0."""
        metrics = super().summarise(grades)
        return {name: replace(m, low=None if m.low is None else max(0.0, m.low)) for name, m in metrics.items()}


@hookimpl
def register_judges() -> list[type[Judge]]:
    """The judge of this module."""
    return [Memorization]
