"""Soft targets from a local teacher's logits: it reads the student's windows once, and the result goes into a store.

A store keeps either the top-k tokens with the mass of all others, or counts of tokens sampled from the teacher's
distribution, which are an unbiased estimate of it (the top-k alone are not). Samples depend only on the seed and the
window. Knows logits and windows, but not what the targets are used for.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...core.console import Console
from ...core.errors import Interrupted, UsageError
from ...core.records import LOG_ZERO
from ...plugins.interfaces import Teacher
from .store import Binding, SoftTargetRows, SoftTargetStore, SoftTargetWriter

TOKENS_AT_ONCE = 4096
LOGITS_AT_ONCE = 1 << 22

Floats = NDArray[np.float32]


class WindowedStream(Protocol):
    """A packed stream, split into the student's windows."""

    tokens: int

    def windows(self, context: int) -> int:
        """The number of windows."""

    def window(self, context: int, index: int) -> tuple[NDArray[np.int32], Floats]:
        """The `context + 1` tokens of a window, and the loss weights of the last `context`."""


def write_soft_targets(
    teacher: Teacher, stream: WindowedStream, writer: SoftTargetWriter, console: Console | None = None
) -> SoftTargetStore:
    """Write the soft targets of every position of a stream. Continues a store that was interrupted."""
    binding, console = writer.binding, console or Console()
    context = binding.context or 0
    windows, at_once = stream.windows(context), _at_once(context, binding.vocab_size)
    first_window = max(0, writer.done - 1) // context
    try:
        if not writer.done:
            writer.add(SoftTargetRows.blank(1), np.zeros(1, np.float32))  # the first token has no prediction
        for first in range(first_window, windows, at_once):
            some = range(first, min(first + at_once, windows))
            _write_windows(teacher, stream, some, writer)
            console.progress(f"  {some.stop}/{windows} windows read", last=some.stop == windows)
    except KeyboardInterrupt as error:
        done = f"{writer.done:,} of {stream.tokens:,} positions are kept"
        raise Interrupted(f"stopped while the teacher computed soft targets; {done}") from error
    return writer.close()


def _at_once(context: int, vocab_size: int) -> int:
    """The number of windows per call: enough for speed, with a limit on the memory for logits."""
    return max(1, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // vocab_size) // context)


def _write_windows(teacher: Teacher, stream: WindowedStream, some: range, writer: SoftTargetWriter) -> None:
    """Write the soft targets of a few windows."""
    import mlx.core as mx

    binding = writer.binding
    context = binding.context or 0
    tokens, weights = zip(*(stream.window(context, index) for index in some), strict=True)
    logits = np.array(teacher.logits(mx.array(np.stack(tokens)[:, :-1])).astype(mx.float32))
    if logits.shape != (len(some), context, binding.vocab_size):
        raise UsageError(
            f"the teacher {teacher.name!r} returned logits of shape {logits.shape} for {len(some)} windows of "
            f"{context} tokens, expected {(len(some), context, binding.vocab_size)}",
            'Its tokens must be the student\'s. To use only its text, set teacher.signal = "text".',
        )
    sizes = [min(context, stream.tokens - 1 - index * context) for index in some]
    targets = [_targets(rows[:size], binding, index) for index, rows, size in zip(some, logits, sizes, strict=True)]
    kept_weights = [weight[:size] for weight, size in zip(weights, sizes, strict=True)]
    writer.add(
        SoftTargetRows.concatenate(targets), np.concatenate(kept_weights)
    )  # in one call, so that a shard ends with a window


def _targets(logits: Floats, binding: Binding, window: int) -> SoftTargetRows:
    """The soft targets of a window, in the form that the store keeps."""
    if not binding.samples:
        return top_k(logits, binding.most)
    random = np.random.Generator(np.random.PCG64([binding.seed or 0, window]))
    return sample_counts(logits, binding.samples, random.random((binding.context or 0, binding.samples))[: len(logits)])


def top_k(logits: Floats, k: int) -> SoftTargetRows:
    """The k most likely tokens of each row of logits [N, V], in descending order, and the mass of all others."""
    size, vocab_size = logits.shape
    k = min(k, vocab_size)
    top = np.argpartition(logits, vocab_size - k, axis=1)[:, vocab_size - k :]
    chosen = np.take_along_axis(logits, top, axis=1)
    order = np.argsort(-chosen, axis=1, kind="stable")
    top, chosen = np.take_along_axis(top, order, axis=1), np.take_along_axis(chosen, order, axis=1)
    mass = np.exp(logits - chosen[:, :1])
    total = mass.sum(axis=1, dtype=np.float64)
    np.put_along_axis(mass, top, 0, axis=1)
    rest = mass.sum(axis=1, dtype=np.float64) / total
    logs = chosen - chosen[:, :1] - np.log(total)[:, None]
    residuals = np.where(rest > 0, np.log(np.maximum(rest, 1e-300)), LOG_ZERO)
    return SoftTargetRows(np.full(size, k), top.reshape(-1), logs.reshape(-1), residuals)


def sample_counts(logits: Floats, samples: int, uniforms: NDArray[np.float64]) -> SoftTargetRows:
    """Counts of tokens sampled from each row of softmax(logits) [N, V], by uniform numbers [N, samples] in [0, 1)."""
    size, vocab_size = logits.shape
    mass = np.cumsum(np.exp(logits - logits.max(axis=1, keepdims=True)), axis=1, dtype=np.float64)
    offset = np.arange(size)[:, None]  # row i is shifted by i, so that one search covers all rows
    cumulative = np.minimum(mass / mass[:, -1:], 1) + offset
    found = np.searchsorted(cumulative.reshape(-1), (uniforms + offset).reshape(-1), side="right").reshape(
        size, samples
    )
    keys, counts = np.unique(np.minimum(found, (offset + 1) * vocab_size - 1), return_counts=True)
    rows, ids = np.divmod(keys, vocab_size)
    return SoftTargetRows(np.bincount(rows, minlength=size), ids, counts, np.full(size, LOG_ZERO))
