"""Writing: tokens after tokens, for many prompts at once, over a cache of keys and values.

Each row has a seed of its own, so what is written to a prompt does not depend on its neighbours.
Knows tokens only; text is somebody else's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from .gpt import Cache


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: temperature 0 takes the likeliest; top_k 0 and top_p 1 leave all in."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def write(
    model: nn.Module,
    context: int,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    padding: int,
) -> Iterator[list[int]]:
    """The next token of every row, again and again; whoever asks decides when to stop."""
    rows = [list(prompt)[-(context - 1) :] or [padding] for prompt in prompts]
    keys = [mx.random.key(seed % 2**32) for seed in seeds]
    feed = Feed(model, context, padding)
    while True:
        logits = feed.next_logits(rows)
        splits = [mx.random.split(key) for key in keys]
        keys = [pair[0] for pair in splits]
        chosen = draw(logits, [pair[1] for pair in splits], sampling)
        mx.eval(chosen, keys)
        tokens: list[int] = chosen.tolist()  # type: ignore[assignment]
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        yield tokens


class Feed:
    """Feeds rows of tokens to a network, each token once as long as the cache has room."""

    def __init__(self, model: nn.Module, context: int, padding: int) -> None:
        self.model, self.context, self.padding = model, context, padding
        self.past: Cache | None = None
        self.starts = mx.array(0)
        self.held = 0

    def next_logits(self, rows: list[list[int]]) -> mx.array:
        """Logits [B, V] of the token after each row, of which only the last is new."""
        if self.past is not None and self.held < self.context:
            return self._extend(mx.array([[row[-1]] for row in rows]))
        # At the beginning, and whenever the context is full: read the later half again.
        longest = max(len(row) for row in rows)
        window = longest if longest < self.context else max(1, self.context // 2)
        rows = [row[-window:] for row in rows]
        longest = max(len(row) for row in rows)
        self.starts = mx.array([longest - len(row) for row in rows])
        self.past, self.held = None, 0
        return self._extend(mx.array([[self.padding] * (longest - len(row)) + row for row in rows]))

    def _extend(self, tokens: mx.array) -> mx.array:
        hidden, self.past = self.model.extend(tokens, self.past, self.starts)
        self.held += tokens.shape[1]
        weight, bias = self.model.head
        logits: mx.array = hidden[:, -1] @ weight.T
        return logits if bias is None else logits + bias


def draw(logits: mx.array, keys: Sequence[mx.array], sampling: Sampling) -> mx.array:
    """One token a row, by adding Gumbel noise to log-probabilities and taking the largest."""
    if sampling.temperature == 0:
        return logits.argmax(axis=-1)
    logits = _cut(logits / sampling.temperature, sampling)
    noise = mx.stack([mx.random.gumbel((logits.shape[-1],), key=key) for key in keys])
    return (logits + noise).argmax(axis=-1)


def _cut(logits: mx.array, sampling: Sampling) -> mx.array:
    """Leave in the k likeliest tokens, and of those the fewest that hold top_p of the mass."""
    if 0 < sampling.top_k < logits.shape[-1]:
        least = mx.topk(logits, sampling.top_k, axis=-1).min(axis=-1, keepdims=True)
        logits = mx.where(logits < least, -mx.inf, logits)
    if sampling.top_p < 1:
        order = mx.argsort(-logits, axis=-1)
        chances = mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1)
        before = mx.cumsum(chances, axis=-1) - chances
        ranks = mx.argsort(order, axis=-1)
        logits = mx.where(mx.take_along_axis(before, ranks, axis=-1) < sampling.top_p, logits, -mx.inf)
    return logits
