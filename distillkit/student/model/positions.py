"""How a network may learn where a token stands without a table that is trained: sinusoids, or turned heads.

Both are made in float64 and kept as tables, so that no sine is computed twice. Knows nothing of networks.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

BASE = 10_000.0  # the longest wave is that much longer than the shortest

Turn = tuple[mx.array, mx.array]  # cosines and sines


def _waves(context: int, width: int) -> np.ndarray[Any, Any]:
    """The angle of each place for each wave [context, width / 2]; an odd width has half a wave more."""
    speeds = BASE ** (-np.arange(0, width, 2) / width)
    result: np.ndarray[Any, Any] = np.arange(context)[:, None] * speeds
    return result


def sinusoids(context: int, width: int) -> mx.array:
    """A vector for each place [context, width]: sine and cosine of each wave, one beside the other."""
    waves = _waves(context, width)
    both = np.stack([np.sin(waves), np.cos(waves)], axis=-1).reshape(context, -1)
    return mx.array(both[:, :width].astype(np.float32))


def angles(context: int, width: int) -> Turn:
    """The cosine and the sine by which each place turns a head of an even width, both [context, width / 2]."""
    waves = _waves(context, width)
    return mx.array(np.cos(waves).astype(np.float32)), mx.array(np.sin(waves).astype(np.float32))


def turned(x: mx.array, turn: Turn) -> mx.array:
    """Heads [..., T, D] turned by their places: the first half of each is one coordinate, the second the other."""
    cos, sin = turn
    one, other = mx.split(x, 2, axis=-1)
    return mx.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)
