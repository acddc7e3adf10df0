"""Log-probabilities of tokens and of their most likely alternatives, for generated tokens and for given text.

Log-probabilities are those of the network itself, before a temperature or a filter is applied. Works on token ids only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..model.cpu.math import logsumexp
from ..training.loss import chunk_rows
from .generate import compute_logits
from .score import ScoringWindow, scoring_windows

TOKENS_PER_STEP = 2048  # given tokens that are scored between two decoding steps


@dataclass(frozen=True)
class TokenLogprob:
    """A token id, its log-probability (None if not requested), and the most likely tokens in its place, best first."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def token_logprobs(logits: mx.array, tokens: mx.array, top: int) -> list[TokenLogprob]:
    """Log-probabilities of tokens [N] under logits [N, V], with the `top` most likely alternatives of each."""
    logprobs = logits - logsumexp(logits)[:, None]
    chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    top = min(top, logits.shape[-1])
    ids = mx.argpartition(-logprobs, kth=max(0, top - 1), axis=-1)[:, :top]
    values = mx.take_along_axis(logprobs, ids, axis=-1)
    mx.eval(chosen, ids, values)
    rows = zip(*(np.array(each).tolist() for each in (tokens, chosen, ids, values)), strict=True)
    return [TokenLogprob(token, logprob, _sort_by_logprob(names, each)) for token, logprob, names, each in rows]


def _sort_by_logprob(ids: Sequence[int], values: Sequence[float]) -> tuple[tuple[int, float], ...]:
    return tuple(sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0])))


@dataclass(eq=False)
class ScoringTask:
    """Tokens to score, each given those before it. `on_result` receives all tokens but the first, or an exception."""

    tokens: Sequence[int]
    top: int
    on_result: Callable[[list[TokenLogprob] | Exception], None]
    cancelled: bool = False
    scored: list[TokenLogprob] = field(default_factory=list)


class ScoringQueue:
    """Scoring tasks of many clients, processed in batches of windows."""

    def __init__(self, model: nn.Module, context: int) -> None:
        self.model, self.context = model, context
        self.waiting: deque[tuple[ScoringTask, ScoringWindow]] = deque()
        self.current: list[tuple[ScoringTask, ScoringWindow]] = []

    def add(self, task: ScoringTask) -> None:
        """Queue the windows of a task."""
        windows = [(task, window) for window in scoring_windows(0, task.tokens, self.context)]
        self.waiting.extend(windows)
        if not windows:
            task.on_result([])

    def step(self) -> None:
        """Score one batch of windows, and report the tasks that are complete."""
        self.current = batch = list(self._next_batch())
        if not batch:
            return
        for (task, _), scored in zip(batch, self._score_batch(batch), strict=True):
            task.scored += scored
            if len(task.scored) == len(task.tokens) - 1:
                task.on_result(task.scored)

    def fail(self, error: Exception) -> None:
        """Report an exception to all current and waiting tasks, and empty the queue."""
        for task in {id(task): task for task, _ in [*self.current, *self.waiting]}.values():
            task.on_result(error)
        self.waiting.clear()

    def _next_batch(self) -> Iterator[tuple[ScoringTask, ScoringWindow]]:
        """The next windows in order of arrival, without those of cancelled tasks."""
        longest = count = 0
        while self.waiting:
            task, window = self.waiting[0]
            longest = max(longest, len(window.inputs))
            if count and (count + 1) * longest > TOKENS_PER_STEP:
                return
            self.waiting.popleft()
            if not task.cancelled:
                count += 1
                yield task, window

    def _score_batch(self, batch: Sequence[tuple[ScoringTask, ScoringWindow]]) -> Iterator[list[TokenLogprob]]:
        """The scored tokens of each window. Padding is on the right, where causal attention does not reach it."""
        longest = max(len(window.inputs) for _, window in batch)
        inputs = np.zeros((len(batch), longest), np.int32)
        for row, (_, window) in enumerate(batch):
            inputs[row, : len(window.inputs)] = window.inputs
        hidden = self.model(mx.array(inputs))
        for row, (task, window) in enumerate(batch):
            last = len(window.inputs)
            counted = hidden[row, last - window.count : last]
            yield self._score(counted, window.targets[len(window.targets) - window.count :], task.top)

    def _score(self, hidden: mx.array, targets: Sequence[int], top: int) -> list[TokenLogprob]:
        """Score targets under their hidden states [N, D], computing the logits in chunks."""
        chunk, scored = chunk_rows(self.model.head[0].shape[0]), []
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            scored += token_logprobs(compute_logits(self.model, hidden[part]), mx.array(list(targets[part])), top)
        return scored
