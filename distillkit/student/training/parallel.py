"""Several cores at work on one step: parts of a batch, each on an MLX stream of its own; memory that stays
at hand, or is not needed.

On the CPU an MLX stream is one thread, so a part a stream uses all cores. One thread, the caller's, builds all
graphs and hands them to MLX in one evaluation; MLX feeds the streams. Results come back in the order of the
parts, so nothing depends on timing. Knows nothing of what is computed.
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


def compute_again(network: Any, arch: str) -> None:
    """Have a network keep nothing of its blocks, if it can do without."""
    if not hasattr(network, "recompute"):
        raise UsageError(f"the student {arch!r} cannot do train.checkpointing", "Leave it out, or take gpt.")
    network.recompute = True


def keep_memory() -> None:
    """Have glibc keep what MLX frees, instead of giving it back to the kernel, which clears it page by page again.

    A training step then takes a fifth less time. The process stays as large as it was at its largest.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):  # musl has none
        ctypes.CDLL(None).mallopt(M_MMAP_MAX, 0)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, -1)


class Lanes:
    """As many streams as parts are computed at once. The first is the one that all else uses."""

    def __init__(self, count: int) -> None:
        device = mx.default_device()
        self.streams = [mx.default_stream(device), *(mx.new_stream(device) for _ in range(count - 1))]

    @property
    def count(self) -> int:
        """How many parts are computed at once."""
        return len(self.streams)

    def shared(self, sizes: Mapping[str, int]) -> dict[str, mx.Stream]:
        """A stream for each of many arrays, so that all have about as many numbers to work on."""
        loads, found = [0] * self.count, {}
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            least = loads.index(min(loads))
            loads[least] += sizes[name]
            found[name] = self.streams[least]
        return found

    def each(self, build: Callable[[int], T], most: int | None = None) -> list[T]:
        """The evaluated results of `build(0)`, `build(1)`, ..., each computed on its own stream; at most so many."""
        results = []
        for i, stream in enumerate(self.streams[:most]):
            with mx.stream(stream):
                results.append(build(i))
        mx.eval(results)
        return results


class _Own(threading.local):
    """What belongs to the thread that asks: MLX's streams serve only the thread that made them."""

    def __init__(self) -> None:
        self.lanes: dict[str, Lanes] = {}


_own = _Own()
ENOUGH = 4  # more streams are not known to read memory any faster


def own_lanes() -> Lanes:
    """This thread's lanes for small work that comes often, made once a device. On a GPU one is all there is."""
    device = mx.default_device()
    if str(device) not in _own.lanes:
        _own.lanes[str(device)] = Lanes(min(cpu.cores(), ENOUGH) if device == mx.cpu else 1)
    return _own.lanes[str(device)]
