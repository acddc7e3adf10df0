"""On-policy distillation: the student goes on with some rows of a batch itself, for its teacher to judge.

Which rows, and what chance decides in them, is drawn from (seed, step, row of the whole batch), so that it does not
depend on how many processes share a batch, nor on where training was interrupted. Knows nothing of losses, and of
teachers only that some must be asked what they think of a row; others read the batch themselves, beside the student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.nn as nn
import numpy as np

from ...core.records import LOG_ZERO
from ..generation.generate import generate_tokens
from ..generation.sampling import Sampling
from .distributed import BatchShard

Array = np.ndarray[Any, Any]
ROWS, WORDS = 1, 2  # what chance is drawn for
SOFT = ("soft_ids", "soft_log_probs", "soft_residual", "has_soft")


class Judge(Protocol):
    """Somebody who is asked what they think of rows."""

    width: int  # tokens that they may name at a place

    def __call__(self, rows: Array) -> tuple[Array, Array, Array, Array]:
        """Of rows [B, T + 1]: names [B, T, width], log-probabilities, residuals [B, T], and who has a soft target."""


@dataclass(frozen=True)
class OnPolicy:
    """How much of each batch the student writes, after how many tokens that it is given: at most half a row."""

    share: float
    prompt_tokens: int
    context: int
    padding: int
    seed: int
    judge: Judge | None = None

    def continued(self, model: nn.Module, batch: Mapping[str, Array], shard: BatchShard, step: int) -> dict[str, Array]:
        """A process's rows of a batch, some of them written on by the student. All that it wrote counts.

        The last window of a stream may hold less text than the student is to be given: it is learnt as it is.
        """
        kept = min(self.prompt_tokens, batch["inputs"].shape[1] // 2)
        chosen = (row - shard.rows.start for row in self.rows(shard.batch_rows, step) if row in shard.rows)
        own = [row for row in chosen if _holds(batch, row, kept)]
        arrays = {name: value.copy() for name, value in batch.items()}
        arrays["from_student"] = np.zeros_like(arrays["weight"])
        if self.judge:
            arrays |= _with_soft(arrays, self.judge.width)
        if own:
            places = [shard.rows.start + row for row in own]
            tokens = self._written(model, arrays["inputs"][own], kept, places, step)
            arrays["inputs"][own], arrays["hard"][own] = tokens[:, :-1], tokens[:, 1:]
            arrays["weight"][own, kept - 1 :] = 1
            arrays["from_teacher"][own], arrays["from_student"][own] = 0, 1
            if self.judge:
                self._judged(arrays, own, tokens)
        return arrays

    def _judged(self, arrays: dict[str, Array], own: list[int], tokens: Array) -> None:
        """What is thought of the rows, in their places; nothing of what stood there before."""
        assert self.judge is not None
        ids, logs, residuals, has = self.judge(tokens)
        arrays["soft_log_probs"][own] = LOG_ZERO
        arrays["soft_ids"][own, :, : self.judge.width] = ids
        arrays["soft_log_probs"][own, :, : self.judge.width] = logs
        arrays["soft_residual"][own], arrays["has_soft"][own] = residuals, has

    def rows(self, whole: int, step: int) -> list[int]:
        """Which rows of the whole batch the student writes at a step."""
        chosen = self._chance(step, ROWS).permutation(whole)[: round(self.share * whole)]
        return sorted(int(row) for row in chosen)

    def _written(self, model: nn.Module, rows: Array, kept: int, places: list[int], step: int) -> Array:
        """The first tokens of rows [B, T] and how the student goes on: one token more, for the last to predict."""
        model.eval()
        begun, length = rows[:, :kept], rows.shape[1] + 1 - kept
        seeds = [int(self._chance(step, WORDS, place).integers(2**32)) for place in places]
        drawn = generate_tokens(model, self.context, begun.tolist(), seeds, Sampling(), self.padding, max_tokens=length)
        return np.concatenate([begun, np.array(list(drawn), dtype=rows.dtype).T], axis=1)

    def _chance(self, *what: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed % 2**64, *what]))


def _holds(batch: Mapping[str, Array], row: int, count: int) -> bool:
    """Whether so many tokens of a row are text: what it is filled up with is zeros that do not count."""
    return bool(batch["inputs"][row, count - 1 :].any() or batch["weight"][row, count - 1 :].any())


def judged(arrays: Mapping[str, Array]) -> dict[str, float]:
    """Of the places that the student wrote: the share with a soft target, and the mass that those name."""
    own = arrays["from_student"] * arrays["weight"] > 0
    soft = own & (arrays["has_soft"] > 0)
    mass = float(np.exp(arrays["soft_log_probs"][soft]).sum())
    return {"share": float(soft.sum() / max(1, own.sum())), "mass": mass / max(1, int(soft.sum()))}


def judged_in_all(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The same over all steps that were logged, if anybody was asked."""
    found = [row["judged"] for row in rows if "judged" in row]
    return {"judged": {key: sum(one[key] for one in found) / len(found) for key in found[0]}} if found else {}


def _with_soft(arrays: Mapping[str, Array], width: int) -> dict[str, Array]:
    """The soft targets of a batch, of which there may be none, with room for so many names at each place."""
    size = arrays["weight"].shape
    had = arrays["soft_ids"].shape[2] if "soft_ids" in arrays else 0
    room = (*size, max(0, width - had))
    ids, logs = np.zeros(room, np.int32), np.full(room, LOG_ZERO, np.float32)
    if not had:
        nothing = np.full(size, LOG_ZERO, np.float32), np.zeros(size, np.float32)
        return dict(zip(SOFT, (ids, logs, *nothing), strict=True))
    wider = (np.concatenate([arrays[name], more], axis=2) for name, more in zip(SOFT, (ids, logs), strict=False))
    return dict(zip(SOFT, wider, strict=False))
