"""Several processes at one run, on one machine or on many: who writes, and how all stay in step.

Everything goes through `mx.distributed`, over whatever it offers: sockets, MPI, NCCL, RDMA. The first process writes
and speaks; the others compute their share. A process that is alone pays nothing: MLX is not even imported for this.
Every collective is computed at once, in the order in which it stands here, for all processes must meet in the same
order. Knows nothing of networks or runs.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ...core.errors import DistillkitError, Elsewhere
from ...core.files import digest

if TYPE_CHECKING:
    import mlx.core as mx

T = TypeVar("T")
MESSAGE = 8 << 20  # numbers in one message: many small ones would wait for each other
INTERRUPTED = 130


@dataclass
class Vote:
    """A wish to stop: one's own when it goes in, anybody's when it comes out."""

    stop: bool = False


class World:
    """The processes of a run, and which of them this is."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank: int = 0 if group is None else group.rank()
        self.size: int = 1 if group is None else group.size()

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes, judges and speaks."""
        return self.rank == 0

    def sum(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The sum over all processes of each array, in few big messages; a dict that is handed over is emptied."""
        if self.size == 1:
            return dict(arrays)
        import mlx.core as mx

        found: dict[str, mx.array] = {}
        for names in _messages({name: value.size for name, value in arrays.items()}):
            parts = [arrays.pop(name) if isinstance(arrays, dict) else arrays[name] for name in names]
            ends = list(accumulate(part.size for part in parts))
            total = self._all_sum(mx.concatenate([part.reshape(-1) for part in parts]))
            pieces = mx.split(total, ends[:-1]) if len(ends) > 1 else [total]
            for name, piece, part in zip(names, pieces, parts, strict=True):
                found[name] = piece.reshape(part.shape).astype(part.dtype)
        return found

    def spread(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The first process's arrays, for all."""
        import mlx.core as mx

        return self.sum(dict(arrays) if self.writes else {n: mx.zeros_like(value) for n, value in arrays.items()})

    def share(self, value: T) -> T:
        """The first process's value, for all: plain JSON."""
        if self.size == 1:
            return value
        import mlx.core as mx
        import numpy as np

        text = json.dumps(value).encode() if self.writes else b""
        length = max(row[0] for row in self.gather([len(text)]))
        letters = np.frombuffer(text.ljust(length, b"\0"), np.uint8).astype(np.int32)
        told = np.array(self._all_sum(mx.array(letters))).astype(np.uint8).tobytes()
        return cast(T, json.loads(told))

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """The numbers of every process, in the order of their ranks."""
        if self.size == 1:
            return [list(numbers)]
        import mlx.core as mx

        with _peers():
            everyone = mx.distributed.all_gather(mx.array(list(numbers), dtype=mx.int32)[None], group=self.group)
            mx.eval(everyone)
        return cast("list[list[int]]", everyone.tolist())

    def same(self, value: Any) -> bool:
        """Whether all processes have an equal value."""
        words = digest(value)
        rows = self.gather([int(words[i : i + 7], 16) for i in range(0, 28, 7)])
        return all(row == rows[0] for row in rows)

    def on_this_machine(self) -> int:
        """How many of the processes share this machine."""
        rows = self.gather([int(digest([socket.gethostname()])[:7], 16)])
        return rows.count(rows[self.rank])

    def first(self, work: Callable[[], T]) -> T:
        """What the first process makes of some work, for all, who wait for it: plain JSON."""
        with self.together():
            made = work() if self.writes else None
        return self.share(cast(T, made))

    @contextmanager
    def together(self) -> Iterator[Vote]:
        """What ends well in all processes or in none. Nothing inside may be a collective.

        The processes wait for each other at the end; where one has failed, the others raise `Elsewhere`.
        """
        vote = Vote()
        try:
            yield vote
        except BaseException as error:
            if self.size > 1:
                self._failed(error)
            raise
        if self.size > 1:
            rows = self.gather([0, vote.stop])
            _must_be_well([code for code, _ in rows], self.rank)
            vote.stop = any(wish for _, wish in rows)

    def _failed(self, error: BaseException) -> None:
        """Tell the others. The first process's own failure is the one that is spoken of."""
        interrupted = INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
        codes = [code for code, _ in self.gather([getattr(error, "exit_code", interrupted), 0])]
        if not self.writes and codes[0]:
            raise Elsewhere("", exit_code=codes[0]) from error

    def _all_sum(self, message: mx.array) -> mx.array:
        import mlx.core as mx

        with _peers():
            total = mx.distributed.all_sum(message, group=self.group)
            mx.eval(total)
        return total


def _must_be_well(codes: Sequence[int], rank: int) -> None:
    for other, code in enumerate(codes):
        if code:
            told = f"process {other} of {len(codes)} failed; it says why" if rank == 0 else ""
            raise Elsewhere(told, exit_code=code)


@contextmanager
def _peers() -> Iterator[None]:
    """A lost connection, in words."""
    try:
        yield
    except RuntimeError as error:
        hint = "The last checkpoint is kept; the same command with --resume goes on from there."
        raise DistillkitError(f"the other processes of this run cannot be reached: {error}", hint) from error


def _messages(sizes: Mapping[str, int]) -> Iterable[list[str]]:
    """Names in their order, as many together as one message holds."""
    names: list[str] = []
    held = 0
    for name, size in sizes.items():
        if names and held + size > MESSAGE:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    if names:
        yield names


ALONE = World()


@cache
def join() -> World:
    """All processes that were launched together; this one alone when it was not launched so."""
    if not _launched(os.environ):
        return ALONE
    import mlx.core as mx

    with _peers():
        group = mx.distributed.init()
    return World(group) if group.size() > 1 else ALONE


def _launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher says that there are others: `mlx.launch` or MPI."""
    hosts = environment.get("MLX_HOSTFILE")  # of one process alone the launcher leaves it empty
    listed = bool(hosts) and Path(hosts or "").is_file() and bool(Path(hosts or "").read_text().strip())
    counts = ("MLX_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
    crowd = any(environment.get(name, "").isdecimal() and int(environment[name]) > 1 for name in counts)
    return listed or crowd or "MLX_JACCL_COORDINATOR" in environment


@dataclass(frozen=True)
class Share:
    """Which rows of every batch are this process's: whole parts, so that it is cut alike by any number of processes."""

    rows: range
    parts: tuple[int, ...]  # where each part ends, counted from the first of these rows
    first: int  # the number of the first part among those of the whole batch
    whole: int  # rows of the whole batch

    @classmethod
    def of(cls, world: World, rows: int, parts: int) -> Share:
        """This process's share of `rows`, which are cut into `parts` as equal as can be."""
        sizes = [rows // parts + (i < rows % parts) for i in range(parts)]
        ends, each = [0, *accumulate(sizes)], parts // world.size
        first = world.rank * each
        start, stop = ends[first], ends[first + each]
        cuts = tuple(end - start for end in ends[first + 1 : first + each + 1])
        return cls(range(start, stop), cuts, first, rows)
