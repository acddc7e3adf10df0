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

COLDEST = 1e-6  # below this the likeliest token is certain, and float32 has no room for the quotient


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
    feed = (Feed if hasattr(model, "extend") else Reread)(model, context, padding)
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
    """Feeds rows of tokens to a network over a cache, each token once as long as its row has room.

    A row that fills the context reads its later half again and goes on from there; its neighbours do not.
    """

    def __init__(self, model: nn.Module, context: int, padding: int) -> None:
        self.model, self.context, self.padding = model, context, padding
        self.past: Cache = []
        self.held = 0
        self.starts: list[int] = []

    def next_logits(self, rows: list[list[int]]) -> mx.array:
        """Logits [B, V] of the token after each row, of which only the last is new."""
        if self.past:
            self._make_room(rows)
            return self._extend([row[-1:] for row in rows])
        longest = max(len(row) for row in rows)
        self.starts = [longest - len(row) for row in rows]
        return self._extend([[self.padding] * (longest - len(row)) + row for row in rows])

    def _extend(self, tokens: list[list[int]]) -> mx.array:
        hidden, self.past = self.model.extend(mx.array(tokens), self.past, mx.array(self.starts))
        self.held += len(tokens[0])
        return logits_of(self.model, hidden[:, -1])

    def _make_room(self, rows: list[list[int]]) -> None:
        """Let full rows read half a context again, less the new token; drop what no row sees any more."""
        full = [i for i, start in enumerate(self.starts) if self.held - start == self.context]
        keep = self.context // 2 - 1
        if full and keep:
            _, again = self.model.extend(mx.array([rows[i][-keep - 1 : -1] for i in full]), None)
            for held, fresh in zip(self.past, again, strict=True):
                for kept, new in zip(held, fresh, strict=True):
                    kept[mx.array(full), :, self.held - keep :] = new
        for i in full:
            self.starts[i] = self.held - keep
        if spare := min(self.starts):
            self.past = [(keys[:, :, spare:], values[:, :, spare:]) for keys, values in self.past]
            self.starts = [start - spare for start in self.starts]
            self.held -= spare


class Reread:
    """Feeds a network that keeps no cache, as a plugin's may: every token again for each new one."""

    def __init__(self, model: nn.Module, context: int, padding: int) -> None:
        self.model, self.context, self.padding = model, context, padding

    def next_logits(self, rows: list[list[int]]) -> mx.array:
        """Logits [B, V] of the token after each row. Padding stands at the right, where nobody sees it."""
        seen = [row[-self.context :] for row in rows]
        longest = max(len(row) for row in seen)
        hidden = self.model(mx.array([row + [self.padding] * (longest - len(row)) for row in seen]))
        last = mx.array([len(row) - 1 for row in seen])
        return logits_of(self.model, mx.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])


def logits_of(model: nn.Module, hidden: mx.array) -> mx.array:
    """The logits of hidden states, by the network's own head."""
    weight, bias = model.head
    logits: mx.array = hidden @ weight.T
    return logits if bias is None else logits + bias


def draw(logits: mx.array, keys: Sequence[mx.array], sampling: Sampling) -> mx.array:
    """One token a row, by adding Gumbel noise to log-probabilities and taking the largest."""
    if sampling.temperature < COLDEST:
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
