"""The KV cache: keys and values of the tokens that a network has read, for a batch of rows.

All rows end at the same position; shorter rows begin later, after padding that is masked. Knows nothing of tokens, nor
of how keys and values are computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

GROWTH = 128  # positions to allocate at a time; without spare room each new token would copy the whole cache


class KVCache:
    """Keys and values [2, B, H, T, D] of each layer, of which the first `length` positions are in use."""

    def __init__(self, layers: int, starts: Sequence[int]) -> None:
        self.layers: list[mx.array | None] = [None] * layers
        self.starts = list(starts)  # the position at which each row begins
        self.length = 0

    def append(self, layer: int, new: mx.array) -> mx.array:
        """Append keys and values to a layer and return all of them. The caller increases `length` afterwards."""
        stop = self.length + new.shape[3]
        stored = self.layers[layer]
        if stored is None or stop > stored.shape[3]:
            stored = self._grow(stored, new, stop)
        stored[..., self.length : stop, :] = new
        self.layers[layer] = stored
        return stored[..., :stop, :]

    def _grow(self, stored: mx.array | None, new: mx.array, stop: int) -> mx.array:
        added = -stop % GROWTH + stop - self.length
        empty = mx.zeros((*new.shape[:3], added, new.shape[4]), dtype=new.dtype)
        return empty if stored is None else mx.concatenate([stored[..., : self.length, :], empty], axis=3)

    def keep(self, rows: list[int]) -> None:
        """Keep only these rows."""
        self.starts = [self.starts[row] for row in rows]
        self.layers = [stored if stored is None else stored[:, mx.array(rows)] for stored in self.layers]
        self.trim()

    def restart(self, rows: list[int], again: KVCache) -> None:
        """Replace the contents of some rows by those of another, shorter cache."""
        first = self.length - again.length
        for stored, other in zip(self.layers, again.layers, strict=True):
            if stored is not None and other is not None:
                stored[:, mx.array(rows), :, first : self.length] = other[..., : again.length, :]
        for row in rows:
            self.starts[row] = first
        self.trim()

    def join(self, other: KVCache) -> None:
        """Add the rows of another cache, padding the shorter of the two at the left."""
        length = max(self.length, other.length)
        pairs = zip(self.layers, other.layers, strict=True)
        self.layers = [
            mx.concatenate([_pad_left(length, mine, self.length), _pad_left(length, more, other.length)], axis=1)
            for mine, more in pairs
            if mine is not None and more is not None
        ]
        self.starts = [
            *(start + length - self.length for start in self.starts),
            *(start + length - other.length for start in other.starts),
        ]
        self.length = length

    def trim(self) -> None:
        """Drop the positions that are padding in every row."""
        if spare := min(self.starts):
            self.layers = [stored if stored is None else stored[..., spare:, :] for stored in self.layers]
            self.starts = [start - spare for start in self.starts]
            self.length -= spare


def _pad_left(length: int, stored: mx.array, used: int) -> mx.array:
    """The `used` first positions of a layer, padded at the left to `length`."""
    values = stored[..., :used, :]
    if used == length:
        return values
    padding = mx.zeros((*stored.shape[:3], length - used, stored.shape[4]), dtype=stored.dtype)
    return mx.concatenate([padding, values], axis=3)
