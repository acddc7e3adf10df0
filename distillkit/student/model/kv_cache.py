"""What rows of tokens have left behind in a network that reads them: keys and values, with room to grow.

All rows end at the same place; shorter ones begin later, after padding that nobody sees. Knows nothing of tokens,
nor of how keys and values are made.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

STEP = 128  # room is made for so many places at once, or each new token would copy all former ones


class Cache:
    """Keys and values [2, B, H, places, D] of each layer; the first `held` places are in use."""

    def __init__(self, layers: int, starts: Sequence[int]) -> None:
        self.layers: list[mx.array | None] = [None] * layers
        self.starts = list(starts)  # where each row begins
        self.held = 0

    def add(self, layer: int, new: mx.array) -> mx.array:
        """A layer's keys and values with new ones at their end. The places count once `held` says so."""
        stop = self.held + new.shape[3]
        kept = self.layers[layer]
        if kept is None or stop > kept.shape[3]:
            kept = self._roomy(kept, new, stop)
        kept[..., self.held : stop, :] = new
        self.layers[layer] = kept
        return kept[..., :stop, :]

    def _roomy(self, kept: mx.array | None, new: mx.array, stop: int) -> mx.array:
        room = -stop % STEP + stop - self.held
        empty = mx.zeros((*new.shape[:3], room, new.shape[4]), dtype=new.dtype)
        return empty if kept is None else mx.concatenate([kept[..., : self.held, :], empty], axis=3)

    def keep(self, rows: list[int]) -> None:
        """Forget all rows but these."""
        self.starts = [self.starts[row] for row in rows]
        self.layers = [kept if kept is None else kept[:, mx.array(rows)] for kept in self.layers]
        self.trim()

    def restart(self, rows: list[int], again: Cache) -> None:
        """Let rows begin anew with what another cache holds of them."""
        first = self.held - again.held
        for kept, fresh in zip(self.layers, again.layers, strict=True):
            if kept is not None and fresh is not None:
                kept[:, mx.array(rows), :, first : self.held] = fresh[..., : again.held, :]
        for row in rows:
            self.starts[row] = first
        self.trim()

    def join(self, other: Cache) -> None:
        """Take in the rows of another cache. All end at the same place from then on."""
        held = max(self.held, other.held)
        pairs = zip(self.layers, other.layers, strict=True)
        self.layers = [
            mx.concatenate([_ending_at(held, mine, self.held), _ending_at(held, more, other.held)], axis=1)
            for mine, more in pairs
            if mine is not None and more is not None
        ]
        self.starts = [
            *(start + held - self.held for start in self.starts),
            *(start + held - other.held for start in other.starts),
        ]
        self.held = held

    def trim(self) -> None:
        """Drop the places before all rows' beginnings."""
        if spare := min(self.starts):
            self.layers = [kept if kept is None else kept[..., spare:, :] for kept in self.layers]
            self.starts = [start - spare for start in self.starts]
            self.held -= spare


def _ending_at(place: int, kept: mx.array, held: int) -> mx.array:
    """The places in use of a layer, after as much padding as lets them end there."""
    used = kept[..., :held, :]
    if held == place:
        return used
    return mx.concatenate([mx.zeros((*kept.shape[:3], place - held, kept.shape[4]), dtype=kept.dtype), used], axis=3)
