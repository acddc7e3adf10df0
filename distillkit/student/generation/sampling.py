"""Choosing the next token from logits: greedily, or by sampling with temperature, top-k, top-p and min-p.

Each row samples from its own random key. Works on logits only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

MIN_TEMPERATURE = 1e-6  # below this, sampling is greedy: float32 would overflow in logits / temperature


@dataclass(frozen=True)
class Sampling:
    """How the next token is sampled. Temperature 0 takes the most likely token.

    top_k = 0, top_p = 1 and min_p = 0 filter nothing. repetition_penalty = 1 penalizes nothing.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without sampling."""
        return self.temperature < MIN_TEMPERATURE


def random_keys(seeds: Sequence[int]) -> mx.array:
    """A random key [B, 2] for each row."""
    return mx.stack([mx.random.key(seed % 2**32) for seed in seeds])


def split_keys(keys: mx.array) -> tuple[mx.array, mx.array]:
    """Keys for later steps, and keys for this step."""
    pairs = mx.vmap(mx.random.split)(keys)
    return pairs[:, :1].squeeze(1), pairs[:, 1:].squeeze(1)


def gumbel_noise(keys: mx.array, size: int) -> mx.array:
    """Gumbel noise [B, size]. The argmax of logits plus this noise is a sample of their softmax."""
    return mx.vmap(lambda key: mx.random.gumbel((size,), key=key))(keys)


def sample_tokens(logits: mx.array, noise: mx.array | None, sampling: Sampling) -> mx.array:
    """The next token [B] of each row. Greedy sampling needs no noise."""
    if sampling.greedy or noise is None:
        return logits.argmax(axis=-1)
    return (filter_logits(mx.contiguous(logits) / sampling.temperature, sampling) + noise).argmax(axis=-1)


def filter_logits(logits: mx.array, sampling: Sampling) -> mx.array:
    """Logits [B, V] with the tokens that top-k, top-p and min-p (in this order) exclude set to -inf."""
    if 0 < sampling.top_k < logits.shape[-1]:
        lowest = mx.topk(logits, sampling.top_k, axis=-1).min(axis=-1, keepdims=True)
        logits = mx.where(logits < lowest, -mx.inf, logits)
    if sampling.top_p < 1:
        order = mx.argsort(-logits, axis=-1)
        sorted_logits = mx.take_along_axis(logits, order, axis=-1)
        probabilities = mx.softmax(sorted_logits, axis=-1)
        before = mx.cumsum(probabilities, axis=-1) - probabilities
        kept = mx.where(before < sampling.top_p, sorted_logits, -mx.inf)
        logits = mx.put_along_axis(logits, order, kept, axis=-1)
    if sampling.min_p > 0:
        lowest = logits.max(axis=-1, keepdims=True) + math.log(sampling.min_p)
        logits = mx.where(logits < lowest, -mx.inf, logits)
    return logits


class RepetitionPenalty:
    """Penalizes tokens that a row already contains: positive logits are divided by the penalty, others multiplied.

    The token that separates texts is never penalized, or texts would not end.
    """

    def __init__(self, rows: Sequence[Sequence[int]], separator: int, penalty: float) -> None:
        self.rows, self.separator, self.penalty = rows, separator, penalty
        self.seen: mx.array | None = None  # [B, V]: whether a row contains a token

    def apply(self, logits: mx.array, last: mx.array | None) -> mx.array:
        """Penalized logits [B, V] that follow the last tokens [B], which count as seen from now on."""
        if self.penalty == 1:
            return logits
        if self.seen is None:
            self.seen = self._seen_in_rows(logits.shape)
        if last is not None:
            self.seen[mx.arange(last.shape[0]), last] = True
        self.seen[:, self.separator] = False
        penalized = mx.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return mx.where(self.seen, penalized, logits)

    def _seen_in_rows(self, shape: tuple[int, ...]) -> mx.array:
        """Which tokens the rows contain at the start."""
        seen = mx.zeros(shape, dtype=mx.bool_)
        for i, row in enumerate(self.rows):
            seen[i, mx.array(list(row))] = True
        return seen

    def keep(self, rows: list[int]) -> None:
        """Keep only these rows."""
        if self.seen is not None:
            self.seen = self.seen[mx.array(rows)]
