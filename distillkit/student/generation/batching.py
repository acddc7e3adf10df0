"""Continuous batching: rows of many clients join the running batch and leave it between two tokens.

One thread, the engine's, builds and evaluates all arrays, because MLX streams can only be used by the thread that made
them. Other threads submit tasks and receive events. The output of a row does not depend on the other rows. Works on
token ids only: text, stop strings and connections are handled by `student.serving`.
"""

from __future__ import annotations

import queue
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..training.parallel import thread_stream_pool
from .generate import MIN_ROWS_PER_STREAM, CachedDecoder, UncachedDecoder, compute_logits, next_hidden
from .logprobs import ScoringQueue, ScoringTask, TokenLogprob, token_logprobs
from .sampling import Sampling, gumbel_noise, random_keys, sample_tokens, split_keys

MAX_ROWS = 32  # rows that are decoded at once; others wait


@dataclass(frozen=True)
class Finished:
    """The event that ends a row: "stop" at the end of text, "length" after `max_tokens`."""

    reason: str


@dataclass(eq=False)
class GenerationTask:
    """One row to generate. `on_event` receives its tokens one by one, then `Finished`, or an exception.

    Setting `cancelled` removes the row from the batch.
    """

    prompt: Sequence[int]
    seed: int
    sampling: Sampling
    max_tokens: int
    on_event: Callable[[TokenLogprob | Finished | Exception], None]
    top: int | None = None  # alternatives per token; None requests no log-probabilities
    cancelled: bool = False


@dataclass(eq=False)
class ActiveRow:
    """A row of the running batch: all its tokens but the last, the last one, and its random key."""

    task: GenerationTask
    tokens: list[int]
    key: mx.array
    last: int = -1
    count: int = 0
    ended: bool = False

    def append(self, token: TokenLogprob, end: int) -> None:
        """Append the next token, and send the events."""
        if self.count:
            self.tokens.append(self.last)
        self.last, self.count = token.token, self.count + 1
        self.ended = token.token == end or self.count == self.task.max_tokens
        if token.token != end:
            self.task.on_event(token)
        if self.ended:
            self.task.on_event(Finished("stop" if token.token == end else "length"))


class RunningBatch:
    """The rows that are being generated, distributed over the CPU streams."""

    def __init__(self, model: nn.Module, context: int, end: int) -> None:
        self.model, self.context, self.end = model, context, end
        self.pool = thread_stream_pool()
        self.decoder_class = CachedDecoder if hasattr(model, "extend") else UncachedDecoder
        self.decoders: list[Any] = [self.decoder_class(model, context, end, []) for _ in self.pool.streams]
        self.rows: dict[int, ActiveRow] = {}
        self.next_number = 0

    def admit(self, tasks: Sequence[GenerationTask]) -> None:
        """Prefill the prompts of new rows, generate their first tokens, and add them to the batch."""
        new = {self.next_number + i: self._new_row(task) for i, task in enumerate(tasks)}
        self.next_number += len(new)
        decoder: Any = self.decoder_class(self.model, self.context, self.end, list(new))
        self.rows |= new
        hidden = decoder.next_hidden({number: row.tokens for number, row in new.items()}, None)
        self._append_next(list(new.values()), hidden)
        decoder.keep([number for number, row in new.items() if not row.ended])
        if decoder.rows:
            self._decoder_for_new_rows().join(decoder)
        self._remove_ended()

    def step(self) -> None:
        """Generate the next token of every row."""
        for row in self.rows.values():
            row.ended |= row.task.cancelled
        self._remove_ended()
        order = [self.rows[number] for decoder in self.decoders for number in decoder.rows]
        if order:
            rows = {number: row.tokens for number, row in self.rows.items()}
            last = mx.array([row.last for row in order])
            self._append_next(order, next_hidden(self.decoders, self.pool, rows, last))
            self._remove_ended()

    def _new_row(self, task: GenerationTask) -> ActiveRow:
        tokens = list(task.prompt)[-(self.context - 1) :] or [self.end]
        return ActiveRow(task, tokens, random_keys([task.seed]))

    def _decoder_for_new_rows(self) -> Any:
        """The decoder that new rows join: another stream pays off only when the first has enough rows."""
        first = self.decoders[0]
        if len(first.rows) < MIN_ROWS_PER_STREAM:
            return first
        return min(self.decoders, key=lambda decoder: len(decoder.rows))

    def _remove_ended(self) -> None:
        if any(row.ended for row in self.rows.values()):
            self.rows = {number: row for number, row in self.rows.items() if not row.ended}
            for decoder in self.decoders:
                decoder.keep(list(self.rows))

    def _append_next(self, rows: list[ActiveRow], hidden: mx.array) -> None:
        """Append a token to each row, given the hidden states [B, D] of their last tokens."""
        logits = compute_logits(self.model, hidden, self.pool)
        chosen = self._choose(rows, logits)
        mx.eval(chosen, [row.key for row in rows])
        for row, token in zip(rows, _with_logprobs(rows, logits, chosen), strict=True):
            row.append(token, self.end)

    def _choose(self, rows: list[ActiveRow], logits: mx.array) -> mx.array:
        """The next token [B] of each row. Rows with equal sampling settings are sampled together."""
        groups: dict[Sampling, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            groups[row.task.sampling].append(place)
        if len(groups) == 1:
            return self._sample(rows, logits)
        chosen = [self._sample([rows[i] for i in places], logits[mx.array(places)]) for places in groups.values()]
        order = mx.array([place for places in groups.values() for place in places])
        return mx.concatenate(chosen)[mx.argsort(order)]

    def _sample(self, rows: list[ActiveRow], logits: mx.array) -> mx.array:
        sampling = rows[0].task.sampling
        if sampling.greedy:
            return sample_tokens(logits, None, sampling)
        later, now = split_keys(mx.concatenate([row.key for row in rows]))
        for row, key in zip(rows, mx.split(later, len(rows)), strict=True):
            row.key = key
        return sample_tokens(logits, gumbel_noise(now, logits.shape[-1]), sampling)


def _with_logprobs(rows: Sequence[ActiveRow], logits: mx.array, chosen: mx.array) -> list[TokenLogprob]:
    """The chosen tokens, with log-probabilities for the rows that request them."""
    tokens = [TokenLogprob(token) for token in chosen.tolist()]  # type: ignore[arg-type, union-attr]
    places = [place for place, row in enumerate(rows) if row.task.top is not None]
    if places:
        at, most = mx.array(places), max(rows[place].task.top or 0 for place in places)
        for place, token in zip(places, token_logprobs(logits[at], chosen[at], most), strict=True):
            tokens[place] = TokenLogprob(token.token, token.logprob, token.top[: rows[place].task.top])
    return tokens


class Engine:
    """The thread that owns the network. Any thread may submit tasks; callbacks run on the engine's thread."""

    def __init__(self, model: nn.Module, context: int, end: int, max_rows: int = MAX_ROWS) -> None:
        self.model, self.context, self.end, self.max_rows = model, context, end, max_rows
        self.inbox: queue.SimpleQueue[GenerationTask | ScoringTask | None] = queue.SimpleQueue()
        self.waiting: deque[GenerationTask] = deque()
        self.device = mx.default_device()
        self.busy = 0  # rows that are being generated, for monitoring
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> Engine:
        """Start the thread."""
        self.model.eval()
        self.thread.start()
        return self

    def submit(self, task: GenerationTask | ScoringTask) -> None:
        """Queue a task."""
        self.inbox.put(task)

    def close(self) -> None:
        """Stop after the current step. Tasks that are not done receive no event."""
        self.inbox.put(None)
        self.thread.join()

    def _run(self) -> None:
        mx.set_default_device(self.device)
        self._reset()
        while self._receive():
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - reported to the tasks; the engine keeps serving
                self._fail(error)
            self.busy = len(self.running.rows)

    def _reset(self) -> None:
        self.running = RunningBatch(self.model, self.context, self.end)
        self.scoring = ScoringQueue(self.model, self.context)

    def _receive(self) -> bool:
        """Take tasks from the inbox, waiting for one if there is nothing else to do. False when closed."""
        idle = not (self.running.rows or self.waiting or self.scoring.waiting)
        while idle or not self.inbox.empty():
            task = self.inbox.get()
            if task is None:
                return False
            if isinstance(task, ScoringTask):
                self.scoring.add(task)
            else:
                self.waiting.append(task)
            idle = False
        return True

    def _step(self) -> None:
        """Generate one token per row, admit new rows, and score one batch of windows."""
        self.running.step()
        free = self.max_rows - len(self.running.rows)
        new: list[GenerationTask] = []
        while self.waiting and len(new) < free:
            task = self.waiting.popleft()
            if not task.cancelled:
                new.append(task)
        if new:
            self.running.admit(new)
        self.scoring.step()

    def _fail(self, error: Exception) -> None:
        """Report an exception to all tasks, and start over with an empty batch."""
        for task in [*(row.task for row in self.running.rows.values()), *self.waiting]:
            task.on_event(error)
        self.waiting.clear()
        self.scoring.fail(error)
        self._reset()
