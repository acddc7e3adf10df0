"""How likely tokens were to a student, and what else was likely: of tokens that it drew, and of tokens it is given.

Log-probabilities are the network's own, before a temperature or anything else changes them. Knows tokens only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..generation.generate import logits_of
from ..generation.score import Window, windows
from ..model.cpu.math import logsumexp
from .loss import chunk_rows

AT_ONCE = 2048  # tokens that are read between two tokens of those who write


@dataclass(frozen=True)
class Pick:
    """A token, its log-probability where that was asked for, and the likeliest tokens in its place, best first."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def picks(logits: mx.array, tokens: mx.array, most: int) -> list[Pick]:
    """The tokens [N] that logits [N, V] came to, with so many alternatives each."""
    chances = logits - logsumexp(logits)[:, None]
    own = mx.take_along_axis(chances, tokens[:, None], axis=-1)[:, 0]
    most = min(most, logits.shape[-1])
    ids = mx.argpartition(-chances, kth=max(0, most - 1), axis=-1)[:, :most]
    values = mx.take_along_axis(chances, ids, axis=-1)
    mx.eval(own, ids, values)
    rows = zip(*(np.array(each).tolist() for each in (tokens, own, ids, values)), strict=True)
    return [Pick(token, at, _ranked(names, each)) for token, at, names, each in rows]


def _ranked(ids: Sequence[int], values: Sequence[float]) -> tuple[tuple[int, float], ...]:
    return tuple(sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0])))


@dataclass(eq=False)
class Reading:
    """Tokens to be judged, each after those before it; `tell` gets the picks of all but the first."""

    tokens: Sequence[int]
    top: int
    tell: Callable[[list[Pick] | Exception], None]
    dropped: bool = False
    found: list[Pick] = field(default_factory=list)


class Desk:
    """Readings of many askers, read in windows, as many at once as are worth it."""

    def __init__(self, model: nn.Module, context: int) -> None:
        self.model, self.context = model, context
        self.waiting: deque[tuple[Reading, Window]] = deque()
        self.at_hand: list[tuple[Reading, Window]] = []

    def add(self, reading: Reading) -> None:
        """Take in a reading."""
        parts = [(reading, window) for window in windows(0, reading.tokens, self.context)]
        self.waiting.extend(parts)
        if not parts:
            reading.tell([])

    def step(self) -> None:
        """Read some windows, and tell those whose last one it was."""
        self.at_hand = batch = list(self._batch())
        if not batch:
            return
        for (reading, _), found in zip(batch, self._read(batch), strict=True):
            reading.found += found
            if len(reading.found) == len(reading.tokens) - 1:
                reading.tell(reading.found)

    def fail(self, error: Exception) -> None:
        """Tell all who wait that nothing comes of it."""
        for reading in {id(reading): reading for reading, _ in [*self.at_hand, *self.waiting]}.values():
            reading.tell(error)
        self.waiting.clear()

    def _batch(self) -> Iterator[tuple[Reading, Window]]:
        """The next windows, in the order in which they came, whose askers are still there."""
        longest = count = 0
        while self.waiting:
            reading, window = self.waiting[0]
            longest = max(longest, len(window.inputs))
            if count and (count + 1) * longest > AT_ONCE:
                return
            self.waiting.popleft()
            if not reading.dropped:
                count += 1
                yield reading, window

    def _read(self, batch: Sequence[tuple[Reading, Window]]) -> Iterator[list[Pick]]:
        """The picks that each window counts. Padding stands at the right, where nobody sees it."""
        longest = max(len(window.inputs) for _, window in batch)
        inputs = np.zeros((len(batch), longest), np.int32)
        for row, (_, window) in enumerate(batch):
            inputs[row, : len(window.inputs)] = window.inputs
        hidden = self.model(mx.array(inputs))
        for row, (reading, window) in enumerate(batch):
            last = len(window.inputs)
            counted = hidden[row, last - window.count : last]
            yield self._judged(counted, window.targets[len(window.targets) - window.count :], reading.top)

    def _judged(self, hidden: mx.array, targets: Sequence[int], top: int) -> list[Pick]:
        """Picks of targets, a chunk of logits at a time."""
        chunk, found = chunk_rows(self.model.head[0].shape[0]), []
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            found += picks(logits_of(self.model, hidden[part]), mx.array(list(targets[part])), top)
        return found
