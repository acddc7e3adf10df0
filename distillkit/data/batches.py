"""Batches: windows of packed streams, with the soft targets that are kept beside them, as a function of seed and step.

Knows nothing of sources, of what a mixer makes of a target, nor of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError
from ..core.files import digest
from ..core.records import LOG_ZERO
from .shards import Floats, Ints, Stream, files_of

ORDERS_KEPT = 2


@dataclass(frozen=True)
class Batch:
    """Tokens to read, tokens to predict, whether each counts (0 is padding or a prompt), and who wrote it.

    Where soft targets are stored there are also, for each token to predict, the names and log-probabilities of the
    tokens that a teacher held for likely, the mass of all others (its log), and whether there is such a target at all.
    """

    inputs: Ints
    hard: Ints
    weight: Floats
    from_teacher: Floats
    soft_ids: Ints | None = None
    soft_log_probs: Floats | None = None
    soft_residual: Floats | None = None
    has_soft: Floats | None = None


SoftRows = tuple[Ints, Floats, Floats, Floats]


class Soft(Protocol):
    """Soft targets that are kept beside a stream."""

    width: int
    fingerprint: str

    def read(self, start: int, stop: int) -> SoftRows:
        """Of a range of tokens: names and log-probabilities [N, width], residuals [N], and who has a target [N]."""


class Row(NamedTuple):
    """One window of a stream, with the soft targets of its last `context` tokens if some are kept."""

    tokens: Ints
    weights: Floats
    from_teacher: bool
    soft: SoftRows | None = None


class Batches:
    """The endless sequence of epochs over some streams, cut into batches: a pure function of seed and step.

    Each epoch is a permutation of all windows, drawn from the seed and its own number, so no state is kept:
    to resume is to ask for the next step. With a share of the teacher's rows, its windows and the others have epochs
    of their own, and every batch has as many rows of each as the share says.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        context: int,
        batch_size: int,
        seed: int,
        *,
        soft: Sequence[Soft | None] = (),
        share: float | None = None,
    ) -> None:
        self.streams = list(streams)
        self.context = context
        self.batch_size = batch_size
        self.seed = seed
        self.soft = list(soft) or [None] * len(self.streams)
        self.share = share
        self.width = max((max(1, store.width) for store in self.soft if store), default=0)
        self.tokens = sum(stream.tokens for stream in self.streams)
        self.pools = self._pools()
        self.windows = sum(pool.windows for pool in self.pools)
        if not self.windows:
            raise DataError("there is nothing to train on: the corpus has fewer than two tokens", "Add text.")

    def _pools(self) -> list[_Pool]:
        """The windows that are drawn from together, and how many of each batch."""
        counts = [stream.windows(self.context) for stream in self.streams]
        everything = list(range(len(counts)))
        taught = [i for i in everything if self.streams[i].from_teacher and counts[i]]
        others = [i for i in everything if i not in taught]
        rows = round((self.share or 0.0) * self.batch_size)
        if self.share is None or not taught or not any(counts[i] for i in others):
            return [_Pool(everything, counts, self.batch_size, self.seed)]
        if self.share and not rows:
            told = f"teacher.share = {self.share} of {self.batch_size} rows a step is none"
            raise DataError(told, "Raise it, or train.batch_size; 0 leaves the answers out.")
        pools = [_Pool(others, counts, self.batch_size - rows, self.seed), _Pool(taught, counts, rows, self.seed)]
        return [pool for pool in pools if pool.rows]

    @property
    def fingerprint(self) -> str:
        """What decides every batch: the tokens, their soft targets, the context, the batch size and the seed."""
        tokens = [[file["sha256"] for file in files_of(stream.manifest)] for stream in self.streams]
        teachers = [stream.from_teacher for stream in self.streams]
        soft = [[store and store.fingerprint for store in self.soft]] if any(self.soft) else []
        share = [] if self.share is None else [{"share": self.share}]
        return digest([tokens, teachers, self.context, self.batch_size, self.seed, *soft, *share])

    def epochs(self, steps: int) -> float:
        """How often that many steps see each window; of two kinds, those that are seen more often."""
        return max(steps * pool.rows / pool.windows for pool in self.pools)

    def batch(self, step: int) -> Batch:
        """The batch of a step; the first step is 0."""
        return self.rows(step, 0, self.batch_size)

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """A part of the batch of a step, for one machine of several."""
        return _stack([self._row(step, number) for number in range(start, stop)], self.context, self.width)

    def _row(self, step: int, number: int) -> Row:
        for pool in self.pools:
            if number < pool.rows:
                which, index = pool.window(step * pool.rows + number)
                return self._window(which, index)
            number -= pool.rows
        raise IndexError(f"a batch has {self.batch_size} rows")

    def _window(self, which: int, index: int) -> Row:
        stream, store = self.streams[which], self.soft[which]
        row = Row(*stream.window(self.context, index), stream.from_teacher)
        if store is None:
            return row
        first = index * self.context + 1
        return row._replace(soft=store.read(first, min(first + self.context, stream.tokens)))


class _Pool:
    """Windows of some streams, epoch after epoch, each in an order of its own."""

    def __init__(self, which: Sequence[int], counts: Sequence[int], rows: int, seed: int) -> None:
        self.which, self.rows, self.seed = which, rows, seed
        self._firsts = np.cumsum([0, *(counts[i] for i in which)])
        self.windows = int(self._firsts[-1])
        self._orders: dict[int, NDArray[np.int64]] = {}

    def window(self, place: int) -> tuple[int, int]:
        """The window at a place of the endless sequence: of which stream, and which of its windows."""
        epoch, position = divmod(place, self.windows)
        index = int(self._order(epoch)[position])
        among = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return self.which[among], index - int(self._firsts[among])

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            while len(self._orders) >= ORDERS_KEPT:
                del self._orders[min(self._orders)]
            random = np.random.Generator(np.random.PCG64([self.seed % 2**64, epoch]))
            self._orders[epoch] = random.permutation(self.windows)
        return self._orders[epoch]


class Prefetcher:
    """Batches by their step, the next one made on a thread of its own while the last is used. Only NumPy is touched."""

    def __init__(self, batch: Callable[[int], Batch], steps: int) -> None:
        self.batch, self.steps = batch, steps
        self._pool = ThreadPoolExecutor(1, "batches")
        self._made: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        """The batch of a step; there are `steps` in all."""
        ready = self._made.pop(step, None) or self._pool.submit(self.batch, step)
        found = ready.result()
        self._made = {step + 1: self._pool.submit(self.batch, step + 1)} if step + 1 < self.steps else {}
        return found


def sequential(stream: Stream, context: int, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
    """The windows of a stream in order, in at most `limit` batches.

    The last batch is filled up with weight 0, so that all have one shape.
    """
    windows = stream.windows(context)
    blank = Row(np.zeros(context + 1, np.int32), np.zeros(context, np.float32), stream.from_teacher)
    for start in range(0, windows, batch_size)[:limit]:
        real = range(start, min(start + batch_size, windows))
        rows = [Row(*stream.window(context, index), stream.from_teacher) for index in real]
        yield _stack(rows + [blank] * (batch_size - len(rows)), context)


def _stack(rows: Sequence[Row], context: int, width: int = 0) -> Batch:
    tokens = np.array([row.tokens for row in rows], dtype=np.int32).reshape(len(rows), context + 1)
    weight = np.array([row.weights for row in rows], dtype=np.float32).reshape(len(rows), context)
    teacher = np.array([[row.from_teacher] for row in rows], dtype=np.float32).reshape(len(rows), 1)
    return Batch(
        np.ascontiguousarray(tokens[:, :-1]),
        np.ascontiguousarray(tokens[:, 1:]),
        weight,
        np.repeat(teacher, context, axis=1),
        *(_soft(rows, context, width) if width else ()),
    )


def _soft(rows: Sequence[Row], context: int, width: int) -> SoftRows:
    """The soft targets of rows, each filled up to the width and the length of all."""
    size = (len(rows), context)
    ids, logs = np.zeros((*size, width), np.int32), np.full((*size, width), LOG_ZERO, np.float32)
    residuals, has = np.full(size, LOG_ZERO, np.float32), np.zeros(size, np.float32)
    for i, row in enumerate(rows):
        if row.soft:
            names, values, rest, there = row.soft
            length, wide = names.shape
            ids[i, :length, :wide], logs[i, :length, :wide] = names, values
            residuals[i, :length], has[i, :length] = rest, there
    return ids, logs, residuals, has
