"""Scoring text: the negative log-likelihood of every token, each with as much preceding context as possible.

A document follows an end-of-text token and ends with one, which is scored too. Documents longer than the context are
read in windows that overlap by half; each window counts only the tokens that the previous one did not.
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
class TextScore:
    """The score of one text: its negative log-likelihood in nats, and its number of tokens and of UTF-8 bytes."""

    nats: float
    tokens: int
    bytes: int


@dataclass(frozen=True)
class ScoringWindow:
    """Part of a document: inputs, the tokens that follow them, and how many of the last ones count."""

    document: int
    inputs: Sequence[int]
    targets: Sequence[int]
    count: int


def scoring_windows(document: int, tokens: Sequence[int], context: int) -> Iterator[ScoringWindow]:
    """Windows over the tokens of a document that count every token but the first exactly once."""
    last, done, begin = len(tokens) - 1, 0, 0
    stride = max(1, context // 2)
    while done < last:
        end = min(begin + context, last)
        yield ScoringWindow(document, tokens[begin:end], tokens[begin + 1 : end + 1], end - done)
        done, begin = end, begin + stride


def document_nlls(model: nn.Module, context: int, documents: Sequence[Sequence[int]]) -> list[float]:
    """-log p in nats of each document, given its first token."""
    nlls = [0.0] * len(documents)
    windows = [w for i, tokens in enumerate(documents) for w in scoring_windows(i, tokens, context)]
    windows.sort(key=lambda window: len(window.inputs))
    for batch in _batch_windows(windows):
        for window, nll in zip(batch, _window_nlls(model, batch), strict=True):
            nlls[window.document] += nll
    return nlls


def _batch_windows(windows: list[ScoringWindow]) -> Iterator[list[ScoringWindow]]:
    """Batches of windows, which are sorted by length, with at most BATCH_TOKENS tokens each."""
    batch: list[ScoringWindow] = []
    for window in windows:
        if batch and (len(batch) + 1) * len(window.inputs) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _window_nlls(model: nn.Module, batch: list[ScoringWindow]) -> list[float]:
    """-log p of the tokens that each window counts."""
    longest = max(len(window.inputs) for window in batch)
    inputs, targets = (np.zeros((len(batch), longest), np.int32) for _ in range(2))
    mask = np.zeros((len(batch), longest), np.float32)
    for i, window in enumerate(batch):
        length = len(window.inputs)
        inputs[i, :length], targets[i, :length] = window.inputs, window.targets
        mask[i, length - window.count : length] = 1
    hidden = model(mx.array(inputs))
    nlls = token_nlls(hidden.reshape(-1, hidden.shape[-1]), model.head, mx.array(targets.reshape(-1)))
    sums = (nlls.reshape(mask.shape) * mx.array(mask)).sum(axis=-1)
    return np.array(sums).astype(float).tolist()  # type: ignore[no-any-return]


def token_nlls(hidden: mx.array, head: tuple[mx.array, mx.array | None], targets: mx.array) -> mx.array:
    """-log p of each target [N] under its hidden state [N, D], computing the logits in chunks."""
    weight, bias = head
    chunk = chunk_rows(weight.shape[0])
    nlls = []
    for start in range(0, hidden.shape[0], chunk):
        logits = hidden[start : start + chunk] @ weight.T
        logits = logits if bias is None else logits + bias
        chosen = mx.take_along_axis(logits, targets[start : start + chunk, None], axis=-1)[:, 0]
        nlls.append(logsumexp(logits) - chosen)
        mx.eval(nlls[-1])
    return mx.concatenate(nlls)
