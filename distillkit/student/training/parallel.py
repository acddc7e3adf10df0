"""CPU parallelism within one step: a pool of MLX streams, each of which computes one part of a batch.

On the CPU an MLX stream is one thread, so one part per stream keeps all cores busy. A single thread, the caller's,
builds all graphs and hands them to MLX in one evaluation; MLX feeds the streams. Results are returned in the order of
the parts, so nothing depends on timing. Also here: two settings that trade time against memory. Knows nothing of what
is computed.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import mlx.core as mx

from ...core import cpu
from ...core.errors import UsageError

T = TypeVar("T")


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def enable_checkpointing(network: Any, arch: str) -> None:
    """Turn on gradient checkpointing: the network recomputes the activations of its blocks in the backward pass."""
    if not hasattr(network, "recompute"):
        raise UsageError(
            f"the student {arch!r} does not support train.checkpointing",
            'Leave it out, or use student.arch = "gpt".',
        )
    network.recompute = True


def keep_freed_memory() -> None:
    """Make glibc keep the memory that MLX frees instead of returning it to the kernel, which zeroes it page by page.

    A training step then takes a fifth less time. The process stays at its peak size.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):  # musl has none
        ctypes.CDLL(None).mallopt(M_MMAP_MAX, 0)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, -1)


class StreamPool:
    """The MLX streams that compute parts of a batch in parallel. The first one is the default stream."""

    def __init__(self, count: int) -> None:
        device = mx.default_device()
        self.streams = [mx.default_stream(device), *(mx.new_stream(device) for _ in range(count - 1))]

    @property
    def count(self) -> int:
        """The number of streams."""
        return len(self.streams)

    def assign(self, sizes: Mapping[str, int]) -> dict[str, mx.Stream]:
        """A stream for each named array, so that all streams get about the same number of elements."""
        loads, assigned = [0] * self.count, {}
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            least = loads.index(min(loads))
            loads[least] += sizes[name]
            assigned[name] = self.streams[least]
        return assigned

    def map(self, build: Callable[[int], T], limit: int | None = None) -> list[T]:
        """The evaluated results of `build(0)`, `build(1)`, ..., one per stream; at most `limit` of them."""
        results = []
        for i, stream in enumerate(self.streams[:limit]):
            with mx.stream(stream):
                results.append(build(i))
        mx.eval(results)
        return results


class _ThreadPools(threading.local):
    """The pools of the calling thread: an MLX stream can be used only by the thread that created it."""

    def __init__(self) -> None:
        self.by_device: dict[str, StreamPool] = {}


_thread_pools = _ThreadPools()
MAX_STREAMS = 4  # more streams are not known to read memory faster


def thread_stream_pool() -> StreamPool:
    """The calling thread's pool for small, frequent work, created once per device. On a GPU it has one stream."""
    device = mx.default_device()
    if str(device) not in _thread_pools.by_device:
        _thread_pools.by_device[str(device)] = StreamPool(min(cpu.cores(), MAX_STREAMS) if device == mx.cpu else 1)
    return _thread_pools.by_device[str(device)]
