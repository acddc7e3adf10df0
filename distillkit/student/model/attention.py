"""Causal attention over a whole text, fast on a CPU.

MLX's own attention computes on a CPU what no position may see, and computes the forward pass again for the gradient.
Here queries go in blocks that read no further than their own end, and of a softmax only its sums are kept. On a GPU
MLX's own fused attention is the fast one and is used. Knows nothing of networks, caches or padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import mlx.core as mx

from .cpu.math import exp, ours, row_max

BLOCK = 128  # queries at once
HIDDEN = -1e9


def causal_attention(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """What each position [B, H, T, D] gathers from itself and those before it.

    Keys and values may have fewer heads: each then serves several heads of queries that stand side by side.
    """
    if not ours(queries):
        scale = _scale(queries)
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask="causal")
    if (times := queries.shape[1] // keys.shape[1]) > 1:
        keys, values = mx.repeat(keys, times, axis=1), mx.repeat(values, times, axis=1)
    outputs: Any = _attention(queries, keys, values)
    return cast(mx.array, outputs[0])


def attention_weights(queries: mx.array, keys: mx.array) -> mx.array:
    """How much each position takes from each [B, H, T, T]: what `causal_attention` weighs the values with.

    To be looked at. Training never holds all of them at once.
    """
    keys = mx.repeat(keys, queries.shape[1] // keys.shape[1], axis=1)
    scores = _scores(queries, keys, 0, queries.shape[2])
    return mx.softmax(scores * _scale(queries), axis=-1, precise=True)


def _scale(queries: mx.array) -> float:
    return 1 / math.sqrt(queries.shape[-1])


@mx.custom_function
def _attention(queries: mx.array, keys: mx.array, values: mx.array) -> Any:
    """What is gathered; then, for each block, the greatest score of each row and the sum of its powers."""
    seen, kept = [], []
    summed = mx.concatenate([values, mx.ones((*values.shape[:-1], 1))], axis=-1)  # a column that adds up the powers
    for start, stop in _blocks(queries):
        scores = _scores(queries, keys, start, stop)
        top = row_max(scores)
        gathered = exp(scores - top, _scale(queries)) @ summed[:, :, :stop]
        total = gathered[..., -1:]
        seen.append(gathered[..., :-1] / total)
        kept += [top, total]
    return mx.concatenate(seen, axis=2), *kept


@_attention.vjp
def _attention_gradient(primals: Any, cotangents: Any, outputs: Any) -> Any:
    """Chances are powers / total; dividing the short side of each product by the totals saves passes over the long."""
    queries, keys, values = primals
    slope, seen, scale = cotangents[0], outputs[0], _scale(primals[0])
    of_queries, of_keys, of_values = [], [], []
    for i, (start, stop) in enumerate(_blocks(queries)):
        top, total = outputs[1 + 2 * i : 3 + 2 * i]
        powers = exp(_scores(queries, keys, start, stop) - top, scale)  # again: to keep them would double the memory
        here = slope[:, :, start:stop]
        mean = (here * seen[:, :, start:stop]).sum(axis=-1, keepdims=True)
        of_scores = powers * (here @ values[:, :, :stop].swapaxes(-1, -2) - mean)
        of_queries.append(of_scores @ keys[:, :, :stop] * (scale / total))
        of_keys.append(of_scores.swapaxes(-1, -2) @ (queries[:, :, start:stop] * (scale / total)))
        of_values.append(powers.swapaxes(-1, -2) @ (here / total))
    spans = list(_blocks(queries))
    return mx.concatenate(of_queries, axis=2), _stacked(of_keys, spans), _stacked(of_values, spans)


def _scores(queries: mx.array, keys: mx.array, start: int, stop: int) -> mx.array:
    """How well the queries of a block fit the keys up to its end, before they are scaled."""
    places = mx.arange(stop)
    mask = mx.where(places[None] <= places[start:, None], 0.0, HIDDEN)
    return queries[:, :, start:stop] @ keys[:, :, :stop].swapaxes(-1, -2) + mask


def _blocks(queries: mx.array) -> Iterator[tuple[int, int]]:
    length = queries.shape[2]
    return ((start, min(start + BLOCK, length)) for start in range(0, length, BLOCK))


def _stacked(parts: list[mx.array], spans: list[tuple[int, int]]) -> mx.array:
    """The sum of arrays of growing length: the last block's reaches over all positions, the first's over its own."""
    pieces = []
    for i, (start, stop) in enumerate(spans):
        piece = parts[i][:, :, start:stop]
        for longer in parts[i + 1 :]:
            piece = piece + longer[:, :, start:stop]
        pieces.append(piece)
    return mx.concatenate(pieces, axis=2)
