"""A local teacher reads the student's windows once: what it thinks of every next token goes into a store.

Either its likeliest tokens are kept, with the mass of all others, or tokens that were drawn from what it thinks, and
counted: an unbiased picture of it, where the likeliest alone are not. Draws depend on the seed and the window alone.
Knows logits and windows; not why somebody wants them.
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
LOGITS_AT_ONCE = 1 << 22  # numbers

Floats = NDArray[np.float32]


class Windows(Protocol):
    """A packed stream, cut as the student reads it."""

    tokens: int

    def windows(self, context: int) -> int:
        """How many there are."""

    def window(self, context: int, index: int) -> tuple[NDArray[np.int32], Floats]:
        """The `context + 1` tokens of one, and the weights of the last `context` as targets."""


def write_soft_targets(
    teacher: Teacher, stream: Windows, writer: SoftTargetWriter, console: Console | None = None
) -> SoftTargetStore:
    """What a teacher thinks at every position of a stream, from where an earlier sitting was cut off."""
    binding, console = writer.binding, console or Console()
    context = binding.context or 0
    windows, at_once = stream.windows(context), _at_once(context, binding.vocab_size)
    begun = max(0, writer.done - 1) // context
    try:
        if not writer.done:
            writer.add(SoftTargetRows.blank(1), np.zeros(1, np.float32))  # nothing stands before the first token
        for first in range(begun, windows, at_once):
            some = range(first, min(first + at_once, windows))
            _read(teacher, stream, some, writer)
            console.progress(f"  {some.stop}/{windows} windows read", last=some.stop == windows)
    except KeyboardInterrupt as error:
        told = f"stopped while the teacher read; {writer.done:,} of {stream.tokens:,} positions are kept"
        raise Interrupted(told) from error
    return writer.close()


def _at_once(context: int, vocab_size: int) -> int:
    """How many windows: enough to be quick, and not more logits than fit."""
    return max(1, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // vocab_size) // context)


def _read(teacher: Teacher, stream: Windows, some: range, writer: SoftTargetWriter) -> None:
    """The soft targets of a few windows."""
    import mlx.core as mx

    binding = writer.binding
    context = binding.context or 0
    tokens, weights = zip(*(stream.window(context, index) for index in some), strict=True)
    logits = np.array(teacher.logits(mx.array(np.stack(tokens)[:, :-1])).astype(mx.float32))
    if logits.shape != (len(some), context, binding.vocab_size):
        raise UsageError(
            f"the teacher {teacher.name!r} gave logits of shape {logits.shape} for {len(some)} windows of {context} "
            f"tokens, and {(len(some), context, binding.vocab_size)} were due",
            'Its logits must be of the student\'s tokens; use its text alone: teacher.signal = "text".',
        )
    sizes = [min(context, stream.tokens - 1 - index * context) for index in some]
    found = [_named(rows[:size], binding, index) for index, rows, size in zip(some, logits, sizes, strict=True)]
    counted = [weight[:size] for weight, size in zip(weights, sizes, strict=True)]
    writer.add(
        SoftTargetRows.concatenate(found), np.concatenate(counted)
    )  # at once, so that a shard ends where this does


def _named(logits: Floats, binding: Binding, window: int) -> SoftTargetRows:
    """The tokens that a store keeps of each row of a window."""
    if not binding.samples:
        return top_k(logits, binding.most)
    random = np.random.Generator(np.random.PCG64([binding.seed or 0, window]))
    return sample_counts(logits, binding.samples, random.random((binding.context or 0, binding.samples))[: len(logits)])


def top_k(logits: Floats, most: int) -> SoftTargetRows:
    """The likeliest tokens of each row, the first first, and the mass of all others."""
    size, vocab_size = logits.shape
    most = min(most, vocab_size)
    named = np.argpartition(logits, vocab_size - most, axis=1)[:, vocab_size - most :]
    chosen = np.take_along_axis(logits, named, axis=1)
    order = np.argsort(-chosen, axis=1, kind="stable")
    named, chosen = np.take_along_axis(named, order, axis=1), np.take_along_axis(chosen, order, axis=1)
    mass = np.exp(logits - chosen[:, :1])
    total = mass.sum(axis=1, dtype=np.float64)
    np.put_along_axis(mass, named, 0, axis=1)
    rest = mass.sum(axis=1, dtype=np.float64) / total
    logs = chosen - chosen[:, :1] - np.log(total)[:, None]
    residuals = np.where(rest > 0, np.log(np.maximum(rest, 1e-300)), LOG_ZERO)
    return SoftTargetRows(np.full(size, most), named.reshape(-1), logs.reshape(-1), residuals)


def sample_counts(logits: Floats, samples: int, chances: NDArray[np.float64]) -> SoftTargetRows:
    """How often each token was drawn from each row, by so many chances [N, samples] between 0 and 1."""
    size, vocab_size = logits.shape
    mass = np.cumsum(np.exp(logits - logits.max(axis=1, keepdims=True)), axis=1, dtype=np.float64)
    above = np.arange(size)[:, None]  # row after row, so that one search finds the tokens of all
    ladder = np.minimum(mass / mass[:, -1:], 1) + above
    found = np.searchsorted(ladder.reshape(-1), (chances + above).reshape(-1), side="right").reshape(size, samples)
    keys, counts = np.unique(np.minimum(found, (above + 1) * vocab_size - 1), return_counts=True)
    rows, ids = np.divmod(keys, vocab_size)
    return SoftTargetRows(np.bincount(rows, minlength=size), ids, counts, np.full(size, LOG_ZERO))
