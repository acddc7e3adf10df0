"""Data-parallel training in several processes, on one machine or on many: a process group with its collectives.

Everything goes through `mx.distributed`, over whichever backend it offers: sockets, MPI, NCCL, RDMA. Rank 0 is the
main process: it writes files and prints; the others compute their shard of each batch. In a single process nothing
here costs anything: MLX is not even imported. Every collective is evaluated at once, in program order, because all
processes must enter the collectives in the same order. Knows nothing of networks or runs.
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

from ...core.errors import DistillkitError, PeerProcessError
from ...core.files import digest

if TYPE_CHECKING:
    import mlx.core as mx

T = TypeVar("T")
BUCKET_SIZE = 8 << 20  # numbers in one message: many small messages would wait for each other
INTERRUPTED = 130


@dataclass
class StopVote:
    """A request to stop: this process's own when it enters a barrier, that of any process when it leaves."""

    stop: bool = False


class ProcessGroup:
    """The processes of a run: this process's rank, the group size, and the collectives."""

    def __init__(self, group: Any = None) -> None:
        """`group` is that of `mx.distributed.init()`; None is a single process."""
        self._group = group
        self.rank: int = 0 if group is None else group.rank()
        self.world_size: int = 1 if group is None else group.size()

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes, judges and prints."""
        return self.rank == 0

    def sum(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """All-reduce: the sum of each array over all processes, in few large messages. Empties a dict passed in."""
        if self.world_size == 1:
            return dict(arrays)
        import mlx.core as mx

        sums: dict[str, mx.array] = {}
        for names in _buckets({name: value.size for name, value in arrays.items()}):
            parts = [arrays.pop(name) if isinstance(arrays, dict) else arrays[name] for name in names]
            ends = list(accumulate(part.size for part in parts))
            total = self._all_sum(mx.concatenate([part.reshape(-1) for part in parts]))
            pieces = mx.split(total, ends[:-1]) if len(ends) > 1 else [total]
            for name, piece, part in zip(names, pieces, parts, strict=True):
                sums[name] = piece.reshape(part.shape).astype(part.dtype)
        return sums

    def broadcast_arrays(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The main process's arrays, in every process."""
        import mlx.core as mx

        return self.sum(dict(arrays) if self.is_main else {n: mx.zeros_like(value) for n, value in arrays.items()})

    def broadcast(self, value: T) -> T:
        """The main process's value, which is plain JSON, in every process."""
        if self.world_size == 1:
            return value
        import mlx.core as mx
        import numpy as np

        text = json.dumps(value).encode() if self.is_main else b""
        length = max(row[0] for row in self.gather([len(text)]))
        characters = np.frombuffer(text.ljust(length, b"\0"), np.uint8).astype(np.int32)
        received = np.array(self._all_sum(mx.array(characters))).astype(np.uint8).tobytes()
        return cast(T, json.loads(received))

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """All-gather: the numbers of every process, in the order of their ranks."""
        if self.world_size == 1:
            return [list(numbers)]
        import mlx.core as mx

        with _connection_errors():
            gathered = mx.distributed.all_gather(mx.array(list(numbers), dtype=mx.int32)[None], group=self._group)
            mx.eval(gathered)
        return cast("list[list[int]]", gathered.tolist())

    def all_equal(self, value: Any) -> bool:
        """Whether all processes have an equal value."""
        hexadecimal = digest(value)
        rows = self.gather([int(hexadecimal[i : i + 7], 16) for i in range(0, 28, 7)])
        return all(row == rows[0] for row in rows)

    def local_world_size(self) -> int:
        """The number of processes on this machine."""
        rows = self.gather([int(digest([socket.gethostname()])[:7], 16)])
        return rows.count(rows[self.rank])

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Call `work` in the main process and return its result, which is plain JSON, in every process."""
        with self.barrier():
            result = work() if self.is_main else None
        return self.broadcast(cast(T, result))

    @contextmanager
    def barrier(self) -> Iterator[StopVote]:
        """A block that succeeds in all processes or in none. It must not contain a collective.

        The processes wait for each other at the end of the block. If one failed, the others raise `PeerProcessError`.
        """
        vote = StopVote()
        try:
            yield vote
        except BaseException as error:
            if self.world_size > 1:
                self._report_failure(error)
            raise
        if self.world_size > 1:
            rows = self.gather([0, vote.stop])
            _raise_remote_failure([code for code, _ in rows], self.rank)
            vote.stop = any(stop for _, stop in rows)

    def _report_failure(self, error: BaseException) -> None:
        """Tell the other processes. If the main process failed too, only its error is shown."""
        interrupted = INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
        codes = [code for code, _ in self.gather([getattr(error, "exit_code", interrupted), 0])]
        if not self.is_main and codes[0]:
            raise PeerProcessError("", exit_code=codes[0]) from error

    def _all_sum(self, message: mx.array) -> mx.array:
        import mlx.core as mx

        with _connection_errors():
            total = mx.distributed.all_sum(message, group=self._group)
            mx.eval(total)
        return total


def _raise_remote_failure(codes: Sequence[int], rank: int) -> None:
    """Raise `PeerProcessError` if any process ended a block with a non-zero exit code."""
    for other, code in enumerate(codes):
        if code:
            message = f"process {other} of {len(codes)} failed; see its error message" if rank == 0 else ""
            raise PeerProcessError(message, exit_code=code)


@contextmanager
def _connection_errors() -> Iterator[None]:
    """Turn the backend's error for a lost connection into a `DistillkitError` with a hint."""
    try:
        yield
    except RuntimeError as error:
        hint = "The last checkpoint is kept; continue from it with the same command and --resume."
        raise DistillkitError(f"the other processes of this run cannot be reached: {error}", hint) from error


def _buckets(sizes: Mapping[str, int]) -> Iterable[list[str]]:
    """The names in their order, grouped into buckets that each fit into one message."""
    names: list[str] = []
    held = 0
    for name, size in sizes.items():
        if names and held + size > BUCKET_SIZE:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    if names:
        yield names


SINGLE_PROCESS = ProcessGroup()


@cache
def init_process_group() -> ProcessGroup:
    """The group of all processes that were launched together, or `SINGLE_PROCESS` without a launcher."""
    if not _is_launched(os.environ):
        return SINGLE_PROCESS
    import mlx.core as mx

    with _connection_errors():
        group = mx.distributed.init()
    return ProcessGroup(group) if group.size() > 1 else SINGLE_PROCESS


def _is_launched(environment: Mapping[str, str]) -> bool:
    """Whether the environment shows that `mlx.launch` or MPI started several processes."""
    hosts = environment.get("MLX_HOSTFILE")  # empty if the launcher started only one process
    has_hosts = bool(hosts) and Path(hosts or "").is_file() and bool(Path(hosts or "").read_text().strip())
    counts = ("MLX_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
    several = any(environment.get(name, "").isdecimal() and int(environment[name]) > 1 for name in counts)
    return has_hosts or several or "MLX_JACCL_COORDINATOR" in environment


@dataclass(frozen=True)
class BatchShard:
    """The rows of every batch that this process computes.

    A batch is divided into parts, and a shard is a whole number of parts, so that the parts do not depend on the number
    of processes.
    """

    rows: range
    part_ends: tuple[int, ...]  # where each part ends, counted from the shard's first row
    first_part: int  # index of the shard's first part among all parts of the batch
    batch_rows: int  # rows of the whole batch

    @classmethod
    def of(cls, group: ProcessGroup, rows: int, parts: int) -> BatchShard:
        """This process's shard of a batch of `rows` that is divided into `parts` of nearly equal size."""
        sizes = [rows // parts + (i < rows % parts) for i in range(parts)]
        ends, parts_each = [0, *accumulate(sizes)], parts // group.world_size
        first = group.rank * parts_each
        start, stop = ends[first], ends[first + parts_each]
        part_ends = tuple(end - start for end in ends[first + 1 : first + parts_each + 1])
        return cls(range(start, stop), part_ends, first, rows)
