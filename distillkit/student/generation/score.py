"""How likely texts are to a student: every token once, each with as much before it as the context allows.

A document begins after an end-of-text token and ends with one, which is counted too. Long documents are read
in windows that overlap by half, and each window counts only what the one before did not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..model.cpu.math import logsumexp
from ..training.loss import chunk_rows

BATCH_TOKENS = 8192


@dataclass
class Scored:
    """How likely one text was: the sum of its tokens' surprises in nats, how many they are, and its bytes."""

    nats: float
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Window:
    """Part of a document: inputs, the tokens that follow them, and how many of the last ones count."""

    document: int
    inputs: Sequence[int]
    targets: Sequence[int]
    count: int


def windows(document: int, tokens: Sequence[int], context: int) -> Iterator[Window]:
    """Windows over tokens (the first of which is given) that count each later token exactly once."""
    last, done, begin = len(tokens) - 1, 0, 0
    stride = max(1, context // 2)
    while done < last:
        end = min(begin + context, last)
        yield Window(document, tokens[begin:end], tokens[begin + 1 : end + 1], end - done)
        done, begin = end, begin + stride


def score_tokens(model: nn.Module, context: int, documents: Sequence[Sequence[int]]) -> list[float]:
    """The nats of each document's tokens after its first."""
    nats = [0.0] * len(documents)
    parts = [w for i, tokens in enumerate(documents) for w in windows(i, tokens, context)]
    parts.sort(key=lambda window: len(window.inputs))
    for batch in _batches(parts):
        for window, surprise in zip(batch, _surprises(model, batch), strict=True):
            nats[window.document] += surprise
    return nats


def _batches(parts: list[Window]) -> Iterator[list[Window]]:
    """Windows of like length together, a bounded number of tokens at once."""
    batch: list[Window] = []
    for window in parts:
        if batch and (len(batch) + 1) * len(window.inputs) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _surprises(model: nn.Module, batch: list[Window]) -> list[float]:
    """The nats that each window counts."""
    longest = max(len(window.inputs) for window in batch)
    inputs, targets = (np.zeros((len(batch), longest), np.int32) for _ in range(2))
    counts = np.zeros((len(batch), longest), np.float32)
    for i, window in enumerate(batch):
        length = len(window.inputs)
        inputs[i, :length], targets[i, :length] = window.inputs, window.targets
        counts[i, length - window.count : length] = 1
    hidden = model(mx.array(inputs))
    surprise = token_surprises(hidden.reshape(-1, hidden.shape[-1]), model.head, mx.array(targets.reshape(-1)))
    sums = (surprise.reshape(counts.shape) * mx.array(counts)).sum(axis=-1)
    return np.array(sums).astype(float).tolist()  # type: ignore[no-any-return]


def token_surprises(hidden: mx.array, head: tuple[mx.array, mx.array | None], targets: mx.array) -> mx.array:
    """-log p of each target [N], a chunk of logits at a time."""
    weight, bias = head
    chunk = chunk_rows(weight.shape[0])
    pieces = []
    for start in range(0, hidden.shape[0], chunk):
        logits = hidden[start : start + chunk] @ weight.T
        logits = logits if bias is None else logits + bias
        chosen = mx.take_along_axis(logits, targets[start : start + chunk, None], axis=-1)[:, 0]
        pieces.append(logsumexp(logits) - chosen)
        mx.eval(pieces[-1])
    return mx.concatenate(pieces)
