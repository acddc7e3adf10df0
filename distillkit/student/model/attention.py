"""Causal attention over a whole text, fast on a CPU.

On a CPU MLX's own attention also computes the scores that are masked, and computes the forward pass again for the
gradient. Here queries are processed in blocks that read keys only up to the end of the block, and of each softmax only
the row maximum and the row sum are kept. On a GPU MLX's fused attention is faster and is used. Knows nothing of
networks, caches or padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import mlx.core as mx

from .cpu.math import exp, is_cpu_float32, row_max

BLOCK = 128  # queries per block
MASKED = -1e9


def causal_attention(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """softmax(Q Kᵀ / sqrt(D) + causal mask) V, for queries [B, H, T, D].

    Keys and values may have fewer heads G; each then serves H / G adjacent query heads.
    """
    if not is_cpu_float32(queries):
        scale = _scale(queries)
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask="causal")
    if (times := queries.shape[1] // keys.shape[1]) > 1:
        keys, values = mx.repeat(keys, times, axis=1), mx.repeat(values, times, axis=1)
    outputs: Any = _attention(queries, keys, values)
    return cast(mx.array, outputs[0])


def attention_weights(queries: mx.array, keys: mx.array) -> mx.array:
    """Attention weights [B, H, T, T], by which `causal_attention` weighs the values.

    For inspection only: training never holds all of them at once.
    """
    keys = mx.repeat(keys, queries.shape[1] // keys.shape[1], axis=1)
    scores = _scores(queries, keys, 0, queries.shape[2])
    return mx.softmax(scores * _scale(queries), axis=-1, precise=True)


def _scale(queries: mx.array) -> float:
    return 1 / math.sqrt(queries.shape[-1])


@mx.custom_function
def _attention(queries: mx.array, keys: mx.array, values: mx.array) -> Any:
    """The attention output [B, H, T, D]; then for each block the row maximum of its scores and its row sum of exp."""
    attended, kept = [], []
    extended = mx.concatenate([values, mx.ones((*values.shape[:-1], 1))], axis=-1)  # a column that sums the powers
    for start, stop in _blocks(queries):
        scores = _scores(queries, keys, start, stop)
        top = row_max(scores)
        weighted = exp(scores - top, _scale(queries)) @ extended[:, :, :stop]
        total = weighted[..., -1:]
        attended.append(weighted[..., :-1] / total)
        kept += [top, total]
    return mx.concatenate(attended, axis=2), *kept


@_attention.vjp
def _attention_gradient(primals: Any, cotangents: Any, outputs: Any) -> Any:
    """The gradient from weights P = powers / total. The totals divide the smaller factor of each matrix product."""
    queries, keys, values = primals
    grad, attended, scale = cotangents[0], outputs[0], _scale(primals[0])
    grad_queries, grad_keys, grad_values = [], [], []
    for i, (start, stop) in enumerate(_blocks(queries)):
        top, total = outputs[1 + 2 * i : 3 + 2 * i]
        powers = exp(_scores(queries, keys, start, stop) - top, scale)  # recomputed: keeping them doubles the memory
        grad_block = grad[:, :, start:stop]
        mean = (grad_block * attended[:, :, start:stop]).sum(axis=-1, keepdims=True)
        grad_scores = powers * (grad_block @ values[:, :, :stop].swapaxes(-1, -2) - mean)
        grad_queries.append(grad_scores @ keys[:, :, :stop] * (scale / total))
        grad_keys.append(grad_scores.swapaxes(-1, -2) @ (queries[:, :, start:stop] * (scale / total)))
        grad_values.append(powers.swapaxes(-1, -2) @ (grad_block / total))
    spans = list(_blocks(queries))
    return mx.concatenate(grad_queries, axis=2), _sum_blocks(grad_keys, spans), _sum_blocks(grad_values, spans)


def _scores(queries: mx.array, keys: mx.array, start: int, stop: int) -> mx.array:
    """Q Kᵀ + causal mask for the queries of a block and the keys up to its end; not yet scaled."""
    positions = mx.arange(stop)
    mask = mx.where(positions[None] <= positions[start:, None], 0.0, MASKED)
    return queries[:, :, start:stop] @ keys[:, :, :stop].swapaxes(-1, -2) + mask


def _blocks(queries: mx.array) -> Iterator[tuple[int, int]]:
    length = queries.shape[2]
    return ((start, min(start + BLOCK, length)) for start in range(0, length, BLOCK))


def _sum_blocks(parts: list[mx.array], spans: list[tuple[int, int]]) -> mx.array:
    """The sum of arrays of growing length along axis 2: part i covers the positions up to the end of span i."""
    pieces = []
    for i, (start, stop) in enumerate(spans):
        piece = parts[i][:, :, start:stop]
        for longer in parts[i + 1 :]:
            piece = piece + longer[:, :, start:stop]
        pieces.append(piece)
    return mx.concatenate(pieces, axis=2)
