"""Training batches: windows of packed streams, with stored soft targets, as a function of seed and step.

Does not know sources, mixers or models.
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
    """Input tokens, hard targets, their weights (0 for padding and prompts), and whether a teacher wrote them; [B, T].

    With stored soft targets, there are also, for each position: the ids and log-probabilities of the teacher's most
    likely tokens [B, T, K], the log of the remaining mass, and whether the position has a soft target.
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


class SoftTargetReader(Protocol):
    """Stored soft targets of a stream."""

    width: int
    fingerprint: str

    def read(self, start: int, stop: int) -> SoftRows:
        """Ids and log-probabilities [N, width], residuals [N], and whether there is a target [N], of a range."""


class Row(NamedTuple):
    """A window of a stream, with the soft targets of its last `context` tokens, if any."""

    tokens: Ints
    weights: Floats
    from_teacher: bool
    soft: SoftRows | None = None


class Batches:
    """Batches of an endless sequence of epochs over streams: a pure function of seed and step.

    Each epoch is a permutation of all windows, derived from the seed and the number of the epoch. There is no state, so
    training resumes by requesting the next step. With `share`, windows of answers and other windows have separate
    epochs, and every batch contains the given share of rows with answers.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        context: int,
        batch_size: int,
        seed: int,
        *,
        soft: Sequence[SoftTargetReader | None] = (),
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
        """The pools of windows that share an epoch, each with its number of rows per batch."""
        counts = [stream.windows(self.context) for stream in self.streams]
        everything = list(range(len(counts)))
        answers = [i for i in everything if self.streams[i].from_teacher and counts[i]]
        others = [i for i in everything if i not in answers]
        rows = round((self.share or 0.0) * self.batch_size)
        if self.share is None or not answers or not any(counts[i] for i in others):
            return [_Pool(everything, counts, self.batch_size, self.seed)]
        if self.share and not rows:
            message = f"teacher.share = {self.share} of {self.batch_size} rows per step rounds to 0"
            raise DataError(message, "Raise it, or train.batch_size; 0 leaves the answers out.")
        pools = [_Pool(others, counts, self.batch_size - rows, self.seed), _Pool(answers, counts, rows, self.seed)]
        return [pool for pool in pools if pool.rows]

    @property
    def fingerprint(self) -> str:
        """A digest of everything that determines the batches: tokens, soft targets, context, batch size and seed."""
        tokens = [[file["sha256"] for file in files_of(stream.manifest)] for stream in self.streams]
        teachers = [stream.from_teacher for stream in self.streams]
        soft = [[store and store.fingerprint for store in self.soft]] if any(self.soft) else []
        share = [] if self.share is None else [{"share": self.share}]
        return digest([tokens, teachers, self.context, self.batch_size, self.seed, *soft, *share])

    def epochs(self, steps: int) -> float:
        """The number of epochs in that many steps; with two pools, the larger one."""
        return max(steps * pool.rows / pool.windows for pool in self.pools)

    def batch(self, step: int) -> Batch:
        """The batch of a step; the first step is 0."""
        return self.rows(step, 0, self.batch_size)

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of the batch of a step, for one process of several."""
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
    """Windows of some streams, in a new order in each epoch."""

    def __init__(self, which: Sequence[int], counts: Sequence[int], rows: int, seed: int) -> None:
        self.which, self.rows, self.seed = which, rows, seed
        self._firsts = np.cumsum([0, *(counts[i] for i in which)])
        self.windows = int(self._firsts[-1])
        self._orders: dict[int, NDArray[np.int64]] = {}

    def window(self, position: int) -> tuple[int, int]:
        """The window at a position of the endless sequence: the index of its stream, and of the window in it."""
        epoch, offset = divmod(position, self.windows)
        index = int(self._order(epoch)[offset])
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
    """Computes the next batch on a background thread while the current one is used. The thread uses NumPy only."""

    def __init__(self, batch: Callable[[int], Batch], steps: int) -> None:
        self.batch, self.steps = batch, steps
        self._pool = ThreadPoolExecutor(1, "batches")
        self._pending: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        """The batch of a step. There are `steps` steps in all."""
        ready = self._pending.pop(step, None) or self._pool.submit(self.batch, step)
        batch = ready.result()
        self._pending = {step + 1: self._pool.submit(self.batch, step + 1)} if step + 1 < self.steps else {}
        return batch


def sequential(stream: Stream, context: int, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
    """The windows of a stream in order, in at most `limit` batches.

    The last batch is padded with weight 0, so that all batches have the same shape.
    """
    windows = stream.windows(context)
    padding = Row(np.zeros(context + 1, np.int32), np.zeros(context, np.float32), stream.from_teacher)
    for start in range(0, windows, batch_size)[:limit]:
        real = range(start, min(start + batch_size, windows))
        rows = [Row(*stream.window(context, index), stream.from_teacher) for index in real]
        yield _stack(rows + [padding] * (batch_size - len(rows)), context)


def _stack(rows: Sequence[Row], context: int, width: int = 0) -> Batch:
    tokens = np.array([row.tokens for row in rows], dtype=np.int32).reshape(len(rows), context + 1)
    weight = np.array([row.weights for row in rows], dtype=np.float32).reshape(len(rows), context)
    teacher = np.array([[row.from_teacher] for row in rows], dtype=np.float32).reshape(len(rows), 1)
    return Batch(
        np.ascontiguousarray(tokens[:, :-1]),
        np.ascontiguousarray(tokens[:, 1:]),
        weight,
        np.repeat(teacher, context, axis=1),
        *(_stack_soft_targets(rows, context, width) if width else ()),
    )


def _stack_soft_targets(rows: Sequence[Row], context: int, width: int) -> SoftRows:
    """The soft targets of rows, padded to a common length and width."""
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
