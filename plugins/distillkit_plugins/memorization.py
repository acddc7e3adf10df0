"""The judge that looks for the samples in the training text: what is learnt by heart is not written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydantic import Field

from distillkit import Grade, Judge, Metric, Subject, hookimpl
from distillkit.data.overlap import matches


class Memorization(Judge):
    """The longest run of words that a sample shares with the training text, and how much of it is such runs.

    The same of held-out documents stands beside it: texts of one kind share many words without copying.
    """

    name = "memorization"
    lower_is_better = frozenset({"longest", "overlap"})
    neither_is_better = frozenset({"held_out_longest", "held_out_overlap"})  # of documents, cut as the samples are

    class Options(Judge.Options):
        """What counts."""

        words: int = Field(8, ge=4, description="so many words in a row count as overlap")

    def grade(self, subject: Subject) -> Iterator[Grade]:
        """Two grades a sample, and two a held-out document, cut to the length that samples have."""
        length = sorted(len(sample.completion) for sample in subject.samples)[len(subject.samples) // 2 :][:1]
        samples = [(sample.id, sample.completion) for sample in subject.samples]
        unseen = [(document.id, document.text[: length[0]]) for document in subject.held_out] if length else []
        found = matches([text for _, text in [*samples, *unseen]], subject.train_text)
        for i, (name, lengths) in enumerate(zip([name for name, _ in [*samples, *unseen]], found, strict=True)):
            own = i < len(samples)
            what, sample, document = ("", name, None) if own else ("held_out_", None, name)
            yield Grade(f"{what}longest", float(max(lengths, default=0)), sample, document)
            places = len(lengths) - self.options.words + 1
            if places > 0:
                share = sum(n >= self.options.words for n in lengths) / places
                yield Grade(f"{what}overlap", share, sample, document, weight=places)

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Metric]:
        """Means; nobody shares fewer words than none."""
        found = super().summarise(grades)
        return {name: replace(m, low=None if m.low is None else max(0.0, m.low)) for name, m in found.items()}


@hookimpl
def register_judges() -> list[type[Judge]]:
    """Offer it."""
    return [Memorization]
