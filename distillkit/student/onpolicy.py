"""On-policy distillation: the student goes on with some rows of a batch itself, for its teacher to judge.

Which rows, and what chance decides in them, is drawn from (seed, step, row of the whole batch), so that it does not
depend on how many processes share a batch, nor on where training was interrupted. Knows nothing of losses or teachers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
import numpy as np

from .drawing import Sampling
from .generate import write
from .world import Share

Array = np.ndarray[Any, Any]
ROWS, WORDS = 1, 2  # what chance is drawn for


@dataclass(frozen=True)
class OnPolicy:
    """How much of each batch the student writes, after how many tokens that it is given: at most half a row."""

    share: float
    prompt_tokens: int
    context: int
    padding: int
    seed: int

    def continued(self, model: nn.Module, batch: Mapping[str, Array], share: Share, step: int) -> dict[str, Array]:
        """A process's rows of a batch, some of them written on by the student. All that it wrote counts."""
        own = [row - share.rows.start for row in self.rows(share.whole, step) if row in share.rows]
        arrays = {name: value.copy() for name, value in batch.items()}
        arrays["from_student"] = np.zeros_like(arrays["weight"])
        if own:
            kept = min(self.prompt_tokens, arrays["inputs"].shape[1] // 2)
            places = [share.rows.start + row for row in own]
            tokens = self._written(model, arrays["inputs"][own], kept, places, step)
            arrays["inputs"][own], arrays["hard"][own] = tokens[:, :-1], tokens[:, 1:]
            arrays["weight"][own, kept - 1 :] = 1
            arrays["from_teacher"][own], arrays["from_student"][own] = 0, 1
        return arrays

    def rows(self, whole: int, step: int) -> list[int]:
        """Which rows of the whole batch the student writes at a step."""
        chosen = self._chance(step, ROWS).permutation(whole)[: round(self.share * whole)]
        return sorted(int(row) for row in chosen)

    def _written(self, model: nn.Module, rows: Array, kept: int, places: list[int], step: int) -> Array:
        """The first tokens of rows [B, T] and how the student goes on: one token more, for the last to predict."""
        model.eval()
        begun, length = rows[:, :kept], rows.shape[1] + 1 - kept
        seeds = [int(self._chance(step, WORDS, place).integers(2**32)) for place in places]
        drawn = write(model, self.context, begun.tolist(), seeds, Sampling(), self.padding, max_tokens=length)
        return np.concatenate([begun, np.array(list(drawn), dtype=rows.dtype).T], axis=1)

    def _chance(self, *what: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed % 2**64, *what]))
