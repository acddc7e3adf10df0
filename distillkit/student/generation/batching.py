"""Many who ask, one network: rows join a running batch and leave it between two tokens.

One thread, the engine's, makes every array and evaluates it, for MLX's streams serve only the thread that made them.
Others hand in work and are told what comes of it. What a row is told does not depend on its neighbours. Knows tokens
only; text, stop words and connections are somebody else's.
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

from ..training.logprobs import Desk, Pick, Reading, picks
from ..training.parallel import thread_stream_pool
from .generate import ROWS, Feed, Reread, logits_of, next_hidden
from .sampling import Sampling, draw, keys_of, noise_of, turn

MOST = 32  # rows that are written on at once; others wait for their turn


@dataclass(frozen=True)
class Ended:
    """A row is over: "stop" at the end of text, "length" when it had all its tokens."""

    finish: str


@dataclass(eq=False)
class Writing:
    """A row to be written; `tell` gets its tokens one by one, and how it ended. Whoever loses interest drops it."""

    prompt: Sequence[int]
    seed: int
    sampling: Sampling
    max_tokens: int
    tell: Callable[[Pick | Ended | Exception], None]
    top: int | None = None  # alternatives to each token; None asks for no log-probabilities at all
    dropped: bool = False


@dataclass(eq=False)
class Row:
    """A row that is being written: all its tokens but the last, the last, and its generator."""

    work: Writing
    tokens: list[int]
    key: mx.array
    last: int = -1
    count: int = 0
    ended: bool = False

    def told(self, pick: Pick, end: int) -> None:
        """Note the next token, and tell who asked."""
        if self.count:
            self.tokens.append(self.last)
        self.last, self.count = pick.token, self.count + 1
        self.ended = pick.token == end or self.count == self.work.max_tokens
        if pick.token != end:
            self.work.tell(pick)
        if self.ended:
            self.work.tell(Ended("stop" if pick.token == end else "length"))


class Running:
    """The rows that are being written, shared out over the streams."""

    def __init__(self, model: nn.Module, context: int, end: int) -> None:
        self.model, self.context, self.end = model, context, end
        self.stream_pool = thread_stream_pool()
        self.feed = Feed if hasattr(model, "extend") else Reread
        self.feeds: list[Any] = [self.feed(model, context, end, []) for _ in self.stream_pool.streams]
        self.rows: dict[int, Row] = {}
        self.born = 0

    def admit(self, works: Sequence[Writing]) -> None:
        """Read the prompts of new rows, give each its first token, and let them join those that are running."""
        new = {self.born + i: self._row(work) for i, work in enumerate(works)}
        self.born += len(new)
        feed: Any = self.feed(self.model, self.context, self.end, list(new))
        self.rows |= new
        hidden = feed.next_hidden({number: row.tokens for number, row in new.items()}, None)
        self._onward(list(new.values()), hidden)
        feed.keep([number for number, row in new.items() if not row.ended])
        if feed.rows:
            self._roomiest().join(feed)
        self._part()

    def step(self) -> None:
        """Give every row its next token."""
        for row in self.rows.values():
            row.ended |= row.work.dropped
        self._part()
        order = [self.rows[number] for feed in self.feeds for number in feed.rows]
        if order:
            texts = {number: row.tokens for number, row in self.rows.items()}
            last = mx.array([row.last for row in order])
            self._onward(order, next_hidden(self.feeds, self.stream_pool, texts, last))
            self._part()

    def _row(self, work: Writing) -> Row:
        tokens = list(work.prompt)[-(self.context - 1) :] or [self.end]
        return Row(work, tokens, keys_of([work.seed]))

    def _roomiest(self) -> Any:
        """The feed that new rows join: a stream of its own is worth it only when another has its hands full."""
        first = self.feeds[0]
        return first if len(first.rows) < ROWS else min(self.feeds, key=lambda feed: len(feed.rows))

    def _part(self) -> None:
        """Let rows that have ended leave."""
        if any(row.ended for row in self.rows.values()):
            self.rows = {number: row for number, row in self.rows.items() if not row.ended}
            for feed in self.feeds:
                feed.keep(list(self.rows))

    def _onward(self, rows: list[Row], hidden: mx.array) -> None:
        logits = logits_of(self.model, hidden, self.stream_pool)
        chosen = self._chosen(rows, logits)
        mx.eval(chosen, [row.key for row in rows])
        for row, pick in zip(rows, _told(rows, logits, chosen), strict=True):
            row.told(pick, self.end)

    def _chosen(self, rows: list[Row], logits: mx.array) -> mx.array:
        """The next token of each row; rows that draw alike draw together."""
        alike: dict[Sampling, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            alike[row.work.sampling].append(place)
        if len(alike) == 1:
            return self._drawn(rows, logits)
        drawn = [self._drawn([rows[i] for i in places], logits[mx.array(places)]) for places in alike.values()]
        order = mx.array([place for places in alike.values() for place in places])
        return mx.concatenate(drawn)[mx.argsort(order)]

    def _drawn(self, rows: list[Row], logits: mx.array) -> mx.array:
        sampling = rows[0].work.sampling
        if sampling.greedy:
            return draw(logits, None, sampling)
        later, now = turn(mx.concatenate([row.key for row in rows]))
        for row, key in zip(rows, mx.split(later, len(rows)), strict=True):
            row.key = key
        return draw(logits, noise_of(now, logits.shape[-1]), sampling)


def _told(rows: Sequence[Row], logits: mx.array, chosen: mx.array) -> list[Pick]:
    """What the rows are told, with log-probabilities for those that asked."""
    found = [Pick(token) for token in chosen.tolist()]  # type: ignore[arg-type, union-attr]
    places = [place for place, row in enumerate(rows) if row.work.top is not None]
    if places:
        at, most = mx.array(places), max(rows[place].work.top or 0 for place in places)
        for place, pick in zip(places, picks(logits[at], chosen[at], most), strict=True):
            found[place] = Pick(pick.token, pick.logprob, pick.top[: rows[place].work.top])
    return found


class Engine:
    """The thread that owns the network. Work is handed in from anywhere; `tell` is called on this thread."""

    def __init__(self, model: nn.Module, context: int, end: int, most: int = MOST) -> None:
        self.model, self.context, self.end, self.most = model, context, end, most
        self.inbox: queue.SimpleQueue[Writing | Reading | None] = queue.SimpleQueue()
        self.waiting: deque[Writing] = deque()
        self.device = mx.default_device()
        self.busy = 0  # rows that are being written, for whoever wants to look
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> Engine:
        """Begin to work."""
        self.model.eval()
        self.thread.start()
        return self

    def submit(self, work: Writing | Reading) -> None:
        """Hand in work."""
        self.inbox.put(work)

    def close(self) -> None:
        """Stop after the token that is being made. Nobody is told of what is left."""
        self.inbox.put(None)
        self.thread.join()

    def _run(self) -> None:
        mx.set_default_device(self.device)
        self._begin()
        while self._receive():
            try:
                self._work()
            except Exception as error:  # noqa: BLE001 - those who asked are told, and the next ones are served
                self._fail(error)
            self.busy = len(self.running.rows)

    def _begin(self) -> None:
        self.running = Running(self.model, self.context, self.end)
        self.desk = Desk(self.model, self.context)

    def _receive(self) -> bool:
        """Take in what has come, and wait for it where there is nothing else to do; False at the end."""
        idle = not (self.running.rows or self.waiting or self.desk.waiting)
        while idle or not self.inbox.empty():
            work = self.inbox.get()
            if work is None:
                return False
            if isinstance(work, Reading):
                self.desk.add(work)
            else:
                self.waiting.append(work)
            idle = False
        return True

    def _work(self) -> None:
        """One token for every row, the first one for new rows, and some reading."""
        self.running.step()
        room = self.most - len(self.running.rows)
        new: list[Writing] = []
        while self.waiting and len(new) < room:
            work = self.waiting.popleft()
            if not work.dropped:
                new.append(work)
        if new:
            self.running.admit(new)
        self.desk.step()

    def _fail(self, error: Exception) -> None:
        """Tell everybody, and begin again with nobody."""
        for work in [*(row.work for row in self.running.rows.values()), *self.waiting]:
            work.tell(error)
        self.waiting.clear()
        self.desk.fail(error)
        self._begin()
