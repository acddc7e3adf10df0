"""On-policy distillation: the student generates the continuation of some rows of a batch, and the teacher scores them.

Which rows are generated, and the sampling noise, are drawn from (seed, step, row of the whole batch), so they depend
neither on the number of processes that share a batch nor on where training was interrupted. Knows nothing of losses.
A teacher that computes logits inside the step reads the batch itself; only other teachers are called here, through a
`RowScorer`.
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
ROW_CHOICE, TOKEN_SAMPLING = 1, 2  # stream ids of the random generators
SOFT_ARRAYS = ("soft_ids", "soft_log_probs", "soft_residual", "has_soft")


class RowScorer(Protocol):
    """Returns a teacher's soft targets for rows of tokens."""

    width: int  # the number k of tokens in a soft target

    def __call__(self, rows: Array) -> tuple[Array, Array, Array, Array]:
        """For rows [B, T + 1]: ids [B, T, k], log-probabilities [B, T, k], residuals [B, T], has_soft [B, T]."""


@dataclass(frozen=True)
class OnPolicyGenerator:
    """Replaces a share of each batch's rows by text that the student generates.

    Each such row keeps its first `prompt_tokens` tokens (at most half of the row) as the prompt.
    """

    share: float
    prompt_tokens: int
    context: int
    padding: int
    seed: int
    scorer: RowScorer | None = None

    def generate(self, model: nn.Module, batch: Mapping[str, Array], shard: BatchShard, step: int) -> dict[str, Array]:
        """This process's rows of a batch, some of them continued by the student. Every generated token counts.

        A row with less text than the prompt is left as it is; the last window of a stream may be such a row.
        """
        kept = min(self.prompt_tokens, batch["inputs"].shape[1] // 2)
        chosen = (row - shard.rows.start for row in self.chosen_rows(shard.batch_rows, step) if row in shard.rows)
        own = [row for row in chosen if _has_text(batch, row, kept)]
        arrays = {name: value.copy() for name, value in batch.items()}
        arrays["from_student"] = np.zeros_like(arrays["weight"])
        if self.scorer:
            arrays |= _with_soft_arrays(arrays, self.scorer.width)
        if own:
            places = [shard.rows.start + row for row in own]
            tokens = self._generate_rows(model, arrays["inputs"][own], kept, places, step)
            arrays["inputs"][own], arrays["hard"][own] = tokens[:, :-1], tokens[:, 1:]
            arrays["weight"][own, kept - 1 :] = 1
            arrays["from_teacher"][own], arrays["from_student"][own] = 0, 1
            if self.scorer:
                self._set_soft_targets(arrays, own, tokens)
        return arrays

    def _set_soft_targets(self, arrays: dict[str, Array], own: list[int], tokens: Array) -> None:
        """Overwrite the soft targets of the generated rows with those of the scorer."""
        assert self.scorer is not None
        ids, log_probs, residuals, has_soft = self.scorer(tokens)
        arrays["soft_log_probs"][own] = LOG_ZERO
        arrays["soft_ids"][own, :, : self.scorer.width] = ids
        arrays["soft_log_probs"][own, :, : self.scorer.width] = log_probs
        arrays["soft_residual"][own], arrays["has_soft"][own] = residuals, has_soft

    def chosen_rows(self, batch_rows: int, step: int) -> list[int]:
        """The rows of the whole batch that the student continues at a step."""
        chosen = self._random(step, ROW_CHOICE).permutation(batch_rows)[: round(self.share * batch_rows)]
        return sorted(int(row) for row in chosen)

    def _generate_rows(self, model: nn.Module, rows: Array, kept: int, places: list[int], step: int) -> Array:
        """The first `kept` tokens of rows [B, T] and the student's continuation, [B, T + 1] in all."""
        model.eval()
        prompts, length = rows[:, :kept], rows.shape[1] + 1 - kept
        seeds = [int(self._random(step, TOKEN_SAMPLING, place).integers(2**32)) for place in places]
        generated = generate_tokens(
            model, self.context, prompts.tolist(), seeds, Sampling(), self.padding, max_tokens=length
        )
        return np.concatenate([prompts, np.array(list(generated), dtype=rows.dtype).T], axis=1)

    def _random(self, *stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed % 2**64, *stream]))


def _has_text(batch: Mapping[str, Array], row: int, count: int) -> bool:
    """Whether a row has at least `count` tokens of text. Padding consists of zeros with weight 0."""
    return bool(batch["inputs"][row, count - 1 :].any() or batch["weight"][row, count - 1 :].any())


def soft_target_coverage(arrays: Mapping[str, Array]) -> dict[str, float]:
    """Of the generated positions: the share with a soft target, and the mean probability mass of its tokens."""
    own = arrays["from_student"] * arrays["weight"] > 0
    soft = own & (arrays["has_soft"] > 0)
    mass = float(np.exp(arrays["soft_log_probs"][soft]).sum())
    return {"share": float(soft.sum() / max(1, own.sum())), "mass": mass / max(1, int(soft.sum()))}


def mean_soft_target_coverage(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The mean coverage over all logged steps as {"judged": ...}, or {} if no rows were scored."""
    found = [row["judged"] for row in rows if "judged" in row]
    return {"judged": {key: sum(one[key] for one in found) / len(found) for key in found[0]}} if found else {}


def _with_soft_arrays(arrays: Mapping[str, Array], width: int) -> dict[str, Array]:
    """The soft-target arrays of a batch, created if there are none, and widened to at least `width` tokens."""
    size = arrays["weight"].shape
    had = arrays["soft_ids"].shape[2] if "soft_ids" in arrays else 0
    added = (*size, max(0, width - had))
    ids, log_probs = np.zeros(added, np.int32), np.full(added, LOG_ZERO, np.float32)
    if not had:
        empty = np.full(size, LOG_ZERO, np.float32), np.zeros(size, np.float32)
        return dict(zip(SOFT_ARRAYS, (ids, log_probs, *empty), strict=True))
    pairs = zip(SOFT_ARRAYS, (ids, log_probs), strict=False)
    wider = (np.concatenate([arrays[name], more], axis=2) for name, more in pairs)
    return dict(zip(SOFT_ARRAYS, wider, strict=False))
