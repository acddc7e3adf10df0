"""Position encodings without trained parameters: sinusoidal embeddings and rotary embeddings (RoPE).

Both are computed in float64 and kept as tables, so that no sine is computed twice. Knows nothing of networks.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

ROPE_BASE = 10_000.0  # the ratio of the longest wavelength to the shortest

Rotation = tuple[mx.array, mx.array]  # cosines and sines


def _angles(context: int, width: int) -> np.ndarray[Any, Any]:
    """The angle of each position and frequency [context, ceil(width / 2)]: position * ROPE_BASE ** (-2i / width)."""
    frequencies = ROPE_BASE ** (-np.arange(0, width, 2) / width)
    result: np.ndarray[Any, Any] = np.arange(context)[:, None] * frequencies
    return result


def sinusoidal_table(context: int, width: int) -> mx.array:
    """Sinusoidal position embeddings [context, width]: sine and cosine of each frequency, interleaved."""
    table = _angles(context, width)
    both = np.stack([np.sin(table), np.cos(table)], axis=-1).reshape(context, -1)
    return mx.array(both[:, :width].astype(np.float32))


def rope_tables(context: int, width: int) -> Rotation:
    """The cosines and sines [context, width / 2] by which RoPE rotates a head of an even width."""
    table = _angles(context, width)
    return mx.array(np.cos(table).astype(np.float32)), mx.array(np.sin(table).astype(np.float32))


def apply_rope(x: mx.array, rotation: Rotation) -> mx.array:
    """Rotate heads [..., T, D] by their positions. Dimensions i and i + D / 2 form a pair, as in Llama."""
    cos, sin = rotation
    first, second = mx.split(x, 2, axis=-1)
    return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
