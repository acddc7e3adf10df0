"""Windows that are drawn from together, epoch after epoch. Knows how many there are, not what is in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ORDERS_KEPT = 2


class Pool:
    """Windows of some streams, epoch after epoch, each in an order of its own."""

    def __init__(self, which: Sequence[int], counts: Sequence[int], rows: int, seed: int) -> None:
        self.which, self.rows, self.seed = which, rows, seed
        self._firsts = np.cumsum([0, *(counts[i] for i in which)])
        self.windows = int(self._firsts[-1])
        self._orders: dict[int, NDArray[np.int64]] = {}

    def window(self, place: int) -> tuple[int, int]:
        """The window at a place of the endless sequence: of which stream, and which of its windows."""
        epoch, position = divmod(place, self.windows)
        index = int(self._order(epoch)[position])
        among = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return self.which[among], index - int(self._firsts[among])

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            while len(self._orders) >= ORDERS_KEPT:
                del self._orders[min(self._orders)]
            random = np.random.Generator(np.random.PCG64([self.seed % 2**64, epoch]))
            self._orders[epoch] = random.permutation(self.windows)
        return self._orders[epoch]
