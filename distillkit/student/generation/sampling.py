"""Which token comes next: the likeliest, or one drawn by chance from those that are left in.

Each row draws from a generator of its own. Knows logits only; where they come from is somebody else's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

COLDEST = 1e-6  # below this the likeliest token is certain, and float32 has no room for the quotient


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: temperature 0 takes the likeliest.

    top_k 0, top_p 1 and min_p 0 leave all in; repetition_penalty 1 treats words alike, whether they were said or not.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature < COLDEST


def keys_of(seeds: Sequence[int]) -> mx.array:
    """The generator [B, 2] of each row."""
    return mx.stack([mx.random.key(seed % 2**32) for seed in seeds])


def turn(keys: mx.array) -> tuple[mx.array, mx.array]:
    """Generators for later, and generators to draw with now."""
    pairs = mx.vmap(mx.random.split)(keys)
    return pairs[:, :1].squeeze(1), pairs[:, 1:].squeeze(1)


def noise_of(keys: mx.array, size: int) -> mx.array:
    """Gumbel noise [B, size]: the largest sum of it and log-probabilities is a fair draw."""
    return mx.vmap(lambda key: mx.random.gumbel((size,), key=key))(keys)


def draw(logits: mx.array, noise: mx.array | None, sampling: Sampling) -> mx.array:
    """One token a row. Greedy rows need no noise."""
    if sampling.greedy or noise is None:
        return logits.argmax(axis=-1)
    return (cut(mx.contiguous(logits) / sampling.temperature, sampling) + noise).argmax(axis=-1)


def cut(logits: mx.array, sampling: Sampling) -> mx.array:
    """Leave in the k likeliest tokens; of those the fewest that hold top_p of the mass; none far below the first."""
    if 0 < sampling.top_k < logits.shape[-1]:
        least = mx.topk(logits, sampling.top_k, axis=-1).min(axis=-1, keepdims=True)
        logits = mx.where(logits < least, -mx.inf, logits)
    if sampling.top_p < 1:
        order = mx.argsort(-logits, axis=-1)
        sorted_logits = mx.take_along_axis(logits, order, axis=-1)
        chances = mx.softmax(sorted_logits, axis=-1)
        before = mx.cumsum(chances, axis=-1) - chances
        left = mx.where(before < sampling.top_p, sorted_logits, -mx.inf)
        logits = mx.put_along_axis(logits, order, left, axis=-1)
    if sampling.min_p > 0:
        least = logits.max(axis=-1, keepdims=True) + math.log(sampling.min_p)
        logits = mx.where(logits < least, -mx.inf, logits)
    return logits


class Said:
    """Which tokens each row has had, to make them less likely to come again.

    A logit above 0 is divided by the penalty, one below is multiplied with it. The token that stands between texts is
    no part of any, so it goes unpunished: or texts would not end.
    """

    def __init__(self, rows: Sequence[Sequence[int]], between: int, penalty: float) -> None:
        self.rows, self.between, self.penalty = rows, between, penalty
        self.marks: mx.array | None = None

    def punish(self, logits: mx.array, last: mx.array | None) -> mx.array:
        """Logits [B, V] after the last tokens, which are marked from now on."""
        if self.penalty == 1:
            return logits
        if self.marks is None:
            self.marks = self._marked(logits.shape)
        if last is not None:
            self.marks[mx.arange(last.shape[0]), last] = True
        self.marks[:, self.between] = False
        punished = mx.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return mx.where(self.marks, punished, logits)

    def _marked(self, shape: tuple[int, ...]) -> mx.array:
        """The marks of what stood in the rows at the beginning."""
        marks = mx.zeros(shape, dtype=mx.bool_)
        for i, row in enumerate(self.rows):
            marks[i, mx.array(list(row))] = True
        return marks

    def keep(self, rows: list[int]) -> None:
        """Forget all rows but these."""
        if self.marks is not None:
            self.marks = self.marks[mx.array(rows)]
