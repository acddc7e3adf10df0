"""Variance components of grades: between prompts, between samples of a prompt, and noise of a judge.

Method of moments for a nested analysis of variance: mean squares are equated with their expectations. The numbers of
samples and repeats may be unequal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .paired import smallest_detectable

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Components:
    """Variances between prompts, between samples of a prompt, and between grades of a sample; None if not estimable.

    `together` is the variance between all samples, of the same prompt or of different ones.
    """

    prompt: float | None
    sample: float | None
    noise: float | None
    together: float | None = None

    def detectable(self, prompts: int, samples: int = 1, repeats: int = 1) -> float | None:
        """The smallest detectable difference of two runs in a design, if prompts are equally hard for both.

        If the variance between prompts is not estimable, it is included in that of the samples: an upper bound.
        """
        own = self.together if self.sample is None else self.sample
        if prompts < 2 or own is None:
            return None
        spread = 2 * (own + (self.noise or 0.0) / repeats) / samples
        return smallest_detectable(float(np.sqrt(spread / prompts)), prompts - 1)


def components(scores: ArrayLike, prompts: Sequence[str], samples: Sequence[str]) -> Components:
    """The variance components of grades. Without repeated grades, the noise is part of the variance of samples."""
    y = np.asarray(scores, np.float64)
    inner, outer = _index(list(zip(prompts, samples, strict=True))), _index(prompts)
    own = np.zeros(inner.max() + 1, np.int64)
    own[inner] = outer  # the prompt of each sample
    n, sizes, whole = len(y), np.bincount(inner), np.bincount(outer)
    a, s = len(whole), len(sizes)
    means, middles = np.bincount(inner, y) / sizes, np.bincount(outer, y) / whole
    noise = _variance(((y - means[inner]) ** 2).sum(), n - s)
    apart = (sizes * (means - y.mean()) ** 2).sum()
    together = _component(apart, s - 1, noise, n - (sizes.astype(np.float64) ** 2).sum() / n)
    per_prompt = np.bincount(own, sizes.astype(np.float64) ** 2) / whole
    squares = (sizes * (means - middles[own]) ** 2).sum()
    sample = _component(squares, s - a, noise, n - per_prompt.sum())
    if sample is None:  # one sample per prompt: prompts and samples cannot be separated
        return Components(None, None, noise, together)
    between = (whole * (middles - y.mean()) ** 2).sum()
    between -= sample * (per_prompt.sum() - (sizes.astype(np.float64) ** 2).sum() / n)
    prompt = _component(between, a - 1, noise, n - (whole.astype(np.float64) ** 2).sum() / n)
    return Components(prompt, sample, noise, together)


def _index(names: Sequence[object]) -> NDArray[np.int64]:
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.fromiter((order[name] for name in names), np.int64, len(names))


def _variance(squares: float, df: int) -> float | None:
    return float(squares) / df if df > 0 else None


def _component(squares: float, df: int, within: float | None, size: float) -> float | None:
    """A component from its sum of squares, minus the variance within. Negative estimates become 0."""
    if df <= 0 or size <= 0:
        return None
    return max(0.0, float((squares - df * (within or 0.0)) / size))
