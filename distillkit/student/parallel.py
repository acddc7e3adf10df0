"""Several cores at work on one step: parts of a batch, each on an MLX stream of its own.

On the CPU an MLX stream is one thread, so a part a stream uses all cores. Graphs are built here, one after another,
and evaluated side by side; results come back in the order of the parts, so nothing depends on timing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import mlx.core as mx

T = TypeVar("T")


class Lanes:
    """As many streams as parts are computed at once. One lane is the calling thread alone."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.begun = False
        self.streams = [mx.new_thread_unsafe_stream(mx.default_device()) for _ in range(count - 1)]
        self.threads = [ThreadPoolExecutor(1, thread_name_prefix="lane") for _ in self.streams]

    def each(self, build: Callable[[int], T]) -> list[T]:
        """The evaluated results of `build(0)`, `build(1)`, ..., of which the last is computed on this thread."""
        results, waiting = [], []
        for i, (stream, thread) in enumerate(zip(self.streams, self.threads, strict=True)):
            with mx.stream(stream):
                results.append(build(i))
            if self.begun:
                waiting.append(thread.submit(mx.eval, results[-1]))
            else:  # a plugin may hold arrays that were never evaluated, which only this thread can do
                mx.eval(results[-1])
        self.begun = True
        results.append(build(self.count - 1))
        mx.eval(results[-1])
        for done in waiting:
            done.result()
        return results

    def __enter__(self) -> Lanes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for thread in self.threads:
            thread.submit(mx.clear_streams).result()
            thread.shutdown()
