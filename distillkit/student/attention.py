"""Causal attention over a whole text, fast on a CPU.

MLX's own attention computes on a CPU what no position may see, and computes the forward pass again for the gradient.
Here queries go in blocks that read no further than their own end, and what the softmax was made of is kept. On a GPU
MLX's own fused attention is the fast one and is used. Knows nothing of networks, caches or padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import mlx.core as mx

from .elementary import exp, ours, row_max

BLOCK = 128  # queries at once
HIDDEN = -1e9


def causal_attention(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """What each position [B, H, T, D] gathers from itself and those before it."""
    scale = 1 / math.sqrt(queries.shape[-1])
    if not ours(queries):
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask="causal")
    outputs: Any = _attention(queries * scale, keys, values)
    return cast(mx.array, outputs[0])


@mx.custom_function
def _attention(queries: mx.array, keys: mx.array, values: mx.array) -> Any:
    """What is gathered; then, for each block, the powers before they were divided by their sums, and the sums."""
    seen, kept = [], []
    summed = mx.concatenate([values, mx.ones((*values.shape[:-1], 1))], axis=-1)  # a column that adds up the powers
    for start, stop in _blocks(queries):
        scores = queries[:, :, start:stop] @ keys[:, :, :stop].swapaxes(-1, -2) + _mask(start, stop)
        powers = exp(scores - row_max(scores))
        gathered = powers @ summed[:, :, :stop]
        total = gathered[..., -1:]
        seen.append(gathered[..., :-1] / total)
        kept += [powers, total]
    return mx.concatenate(seen, axis=2), *kept


@_attention.vjp
def _attention_gradient(primals: Any, cotangents: Any, outputs: Any) -> Any:
    """Chances are powers / total; dividing the short side of each product by the totals saves passes over the long."""
    queries, keys, values = primals
    slope, seen = cotangents[0], outputs[0]
    of_queries, of_keys, of_values = [], [], []
    for i, (start, stop) in enumerate(_blocks(queries)):
        powers, total = outputs[1 + 2 * i : 3 + 2 * i]
        here, q = slope[:, :, start:stop], queries[:, :, start:stop]
        mean = (here * seen[:, :, start:stop]).sum(axis=-1, keepdims=True)
        of_scores = powers * (here @ values[:, :, :stop].swapaxes(-1, -2) - mean)
        of_queries.append(of_scores @ keys[:, :, :stop] / total)
        of_keys.append(of_scores.swapaxes(-1, -2) @ (q / total))
        of_values.append(powers.swapaxes(-1, -2) @ (here / total))
    spans = list(_blocks(queries))
    return mx.concatenate(of_queries, axis=2), _stacked(of_keys, spans), _stacked(of_values, spans)


def _blocks(queries: mx.array) -> Iterator[tuple[int, int]]:
    length = queries.shape[2]
    return ((start, min(start + BLOCK, length)) for start in range(0, length, BLOCK))


def _mask(start: int, stop: int) -> mx.array:
    """What keeps the queries of a block from the keys after them."""
    places = mx.arange(stop)
    return mx.where(places[None] <= places[start:, None], 0.0, HIDDEN)


def _stacked(parts: list[mx.array], spans: list[tuple[int, int]]) -> mx.array:
    """The sum of arrays of growing length: the last block's reaches over all positions, the first's over its own."""
    pieces = []
    for i, (start, stop) in enumerate(spans):
        piece = parts[i][:, :, start:stop]
        for longer in parts[i + 1 :]:
            piece = piece + longer[:, :, start:stop]
        pieces.append(piece)
    return mx.concatenate(pieces, axis=2)
