"""The judge `diversity`: how much samples differ from each other, and how much each repeats itself."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydantic import Field

from distillkit import Grade, Judge, Metric, Sample, Subject, hookimpl

Words = Sequence[str]
BLEU_ORDERS = (1, 2, 3, 4)


class Diversity(Judge):
    """Distinct n-grams, repetition inside a sample, self-BLEU, vocabulary and length of the samples."""

    name = "diversity"
    lower_is_better = frozenset({"repetition", "self_bleu"})
    neither_is_better = frozenset({"words"})
    together = True

    class Options(Judge.Options):
        """Options of the judge `diversity`."""

        distinct: list[int] = Field([1, 2, 3], description="n-gram lengths of the distinct-n metrics")
        repeated: int = Field(4, ge=1, description="n-gram length of the repetition metric")

    def grade(self, subject: Subject) -> Iterator[Grade]:
        """Grade the samples of each temperature as a separate group."""
        groups = defaultdict[float | None, list[Sample]](list)
        for sample in subject.samples:
            groups[sample.temperature].append(sample)
        for samples in groups.values():
            yield from self._grade_group(samples)

    def _grade_group(self, samples: Sequence[Sample]) -> Iterator[Grade]:
        """Grades whose weighted means are the metrics of the whole group.

        An n-gram that occurs k times in the group counts as 1/k of a distinct n-gram at each occurrence.
        """
        texts = [re.findall(r"\w+(?:['\u2019]\w+)*", sample.completion.lower()) for sample in samples]
        ids = [sample.id for sample in samples]
        for n in self.options.distinct:
            grams = [_ngrams(text, n) for text in texts]
            for id_, distinct, own in zip(ids, _distinct_counts(grams), grams, strict=True):
                if own:
                    yield Grade(f"distinct_{n}", distinct / len(own), sample=id_, weight=len(own))
        for id_, distinct in zip(ids, _distinct_counts(texts), strict=True):
            yield Grade("vocabulary", distinct * len(texts), sample=id_)
        for id_, text, bleu in zip(ids, texts, _self_bleu(texts), strict=True):
            yield Grade("words", len(text), sample=id_)
            if own := _ngrams(text, self.options.repeated):
                yield Grade("repetition", 1 - len(set(own)) / len(own), sample=id_)
            if bleu is not None:
                yield Grade("self_bleu", bleu, sample=id_)

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Metric]:
        """Weighted means. The vocabulary has no interval: it is a count that grows with the number of samples."""
        metrics = super().summarise(grades)
        if "vocabulary" in metrics:
            metrics["vocabulary"] = replace(metrics["vocabulary"], low=None, high=None)
        return metrics


def _ngrams(words: Words, n: int) -> list[tuple[str, ...]]:
    return [*zip(*(words[i:] for i in range(n)), strict=False)]


def _distinct_counts(texts: Sequence[Sequence[object]]) -> list[float]:
    """For each text, the sum of 1 / (number of occurrences in all texts) over its items."""
    counts = Counter(item for text in texts for item in text)
    return [sum(1 / counts[item] for item in text) for text in texts]


def _self_bleu(texts: Sequence[Words]) -> list[float | None]:
    """BLEU of each text with all other texts as references; None for a text without words, or a single text.

    Counts are clipped at the maximum count in any other text, so the two highest counts of each n-gram suffice.
    """
    logs = [0.0] * len(texts)
    for n in BLEU_ORDERS:
        counts = [Counter(_ngrams(text, n)) for text in texts]
        highest = _two_highest_counts(counts)
        for i, own in enumerate(counts):
            matched = sum(min(count, _max_in_others(highest[gram], i)) for gram, count in own.items())
            logs[i] += math.log((matched + (n > 1)) / (own.total() + (n > 1)) or 1e-9) if own.total() or n > 1 else 0
    lengths = [len(text) for text in texts]
    return [
        math.exp(log / len(BLEU_ORDERS)) * _brevity(lengths, i) if len(texts) > 1 and lengths[i] else None
        for i, log in enumerate(logs)
    ]


def _two_highest_counts(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], list[tuple[int, int]]]:
    """For each n-gram the two highest counts and the indices of their texts."""
    highest: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for i, own in enumerate(counts):
        for gram, count in own.items():
            highest[gram] = sorted([*highest.get(gram, []), (count, i)], reverse=True)[:2]
    return highest


def _max_in_others(highest: Sequence[tuple[int, int]], own: int) -> int:
    return max((count for count, i in highest if i != own), default=0)


def _brevity(lengths: Sequence[int], own: int) -> float:
    """BLEU's brevity penalty, relative to the reference closest in length."""
    others = [length for i, length in enumerate(lengths) if i != own]
    nearest = min(others, key=lambda length: (abs(length - lengths[own]), length))
    return min(1.0, math.exp(1 - nearest / lengths[own]))


@hookimpl
def register_judges() -> list[type[Judge]]:
    """The judge of this module."""
    return [Diversity]
