"""The judge that counts words: how unlike each other the samples are, and how much each repeats itself."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydantic import Field

from distillkit import Grade, Judge, Metric, Sample, Subject, hookimpl

Words = Sequence[str]
ORDERS = (1, 2, 3, 4)  # of BLEU


class Diversity(Judge):
    """Distinct n-grams, repetition inside a sample, self-BLEU, vocabulary and length of the samples."""

    name = "diversity"
    lower_is_better = frozenset({"repetition", "self_bleu"})
    neither_is_better = frozenset({"words"})
    together = True

    class Options(Judge.Options):
        """What is counted."""

        distinct: list[int] = Field([1, 2, 3], description="lengths of the n-grams of which the distinct are counted")
        repeated: int = Field(4, ge=1, description="length of the n-grams whose repetition inside a sample is counted")

    def grade(self, subject: Subject) -> Iterator[Grade]:
        """Samples of one temperature together, apart from those of any other: they are figures of their own."""
        groups = defaultdict[float | None, list[Sample]](list)
        for sample in subject.samples:
            groups[sample.temperature].append(sample)
        for samples in groups.values():
            yield from self._together(samples)

    def _together(self, samples: Sequence[Sample]) -> Iterator[Grade]:
        """What each sample adds. A thing that stands in three places is a third new in each of them.

        So the weighted means are the figures of these samples together, and still each sample has its part.
        """
        texts = [re.findall(r"\w+(?:['\u2019]\w+)*", sample.completion.lower()) for sample in samples]
        ids = [sample.id for sample in samples]
        for n in self.options.distinct:
            grams = [_grams(text, n) for text in texts]
            for name, news, own in zip(ids, _news(grams), grams, strict=True):
                if own:
                    yield Grade(f"distinct_{n}", news / len(own), sample=name, weight=len(own))
        for name, news in zip(ids, _news(texts), strict=True):
            yield Grade("vocabulary", news * len(texts), sample=name)
        for name, text, bleu in zip(ids, texts, _self_bleu(texts), strict=True):
            yield Grade("words", len(text), sample=name)
            if said := _grams(text, self.options.repeated):
                yield Grade("repetition", 1 - len(set(said)) / len(said), sample=name)
            if bleu is not None:
                yield Grade("self_bleu", bleu, sample=name)

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Metric]:
        """Means; the vocabulary is a count, of which an interval would say little: more samples have more words."""
        metrics = super().summarise(grades)
        if "vocabulary" in metrics:
            metrics["vocabulary"] = replace(metrics["vocabulary"], low=None, high=None)
        return metrics


def _grams(words: Words, n: int) -> list[tuple[str, ...]]:
    return [*zip(*(words[i:] for i in range(n)), strict=False)]


def _news(texts: Sequence[Sequence[object]]) -> list[float]:
    """For each text the sum over its items of one part in as many as there are of it in all texts."""
    counts = Counter(item for text in texts for item in text)
    return [sum(1 / counts[item] for item in text) for text in texts]


def _self_bleu(texts: Sequence[Words]) -> list[float | None]:
    """BLEU of each text with all others as its references; None of one without words, or alone.

    An n-gram counts at most as often as in that other text which has it most often: two highest counts are enough.
    """
    logs = [0.0] * len(texts)
    for n in ORDERS:
        counts = [Counter(_grams(text, n)) for text in texts]
        best = _two_highest(counts)
        for i, own in enumerate(counts):
            matched = sum(min(count, _others(best[gram], i)) for gram, count in own.items())
            logs[i] += math.log((matched + (n > 1)) / (own.total() + (n > 1)) or 1e-9) if own.total() or n > 1 else 0
    lengths = [len(text) for text in texts]
    return [
        math.exp(log / len(ORDERS)) * _brevity(lengths, i) if len(texts) > 1 and lengths[i] else None
        for i, log in enumerate(logs)
    ]


def _two_highest(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], list[tuple[int, int]]]:
    """Of each n-gram the two texts that have it most often: how often, and which."""
    best: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for i, own in enumerate(counts):
        for gram, count in own.items():
            best[gram] = sorted([*best.get(gram, []), (count, i)], reverse=True)[:2]
    return best


def _others(best: Sequence[tuple[int, int]], own: int) -> int:
    return max((count for count, i in best if i != own), default=0)


def _brevity(lengths: Sequence[int], own: int) -> float:
    """BLEU's penalty on a text that is shorter than the reference nearest in length."""
    others = [length for i, length in enumerate(lengths) if i != own]
    nearest = min(others, key=lambda length: (abs(length - lengths[own]), length))
    return min(1.0, math.exp(1 - nearest / lengths[own]))


@hookimpl
def register_judges() -> list[type[Judge]]:
    """Offer it."""
    return [Diversity]
