"""Where the spread of grades comes from: prompts, samples of one prompt, and a judge that grades one sample twice.

The means of squares of a nested analysis of variance, each set to what it is expected to be; samples and repeats may be
unequal in number. Knows nothing of what is graded.
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
    """Variances: between prompts, between samples of a prompt, between grades of a sample. None: it cannot be told.

    `together` is that between all samples, of one prompt or of several.
    """

    prompt: float | None
    sample: float | None
    noise: float | None
    together: float | None = None

    def detectable(self, prompts: int, samples: int = 1, repeats: int = 1) -> float | None:
        """The smallest difference of two runs that a design could see, if prompts are equally hard for both.

        Where it cannot be told what is the prompts' luck, all of it counts as the samples': then it is at most this.
        """
        own = self.together if self.sample is None else self.sample
        if prompts < 2 or own is None:
            return None
        spread = 2 * (own + (self.noise or 0.0) / repeats) / samples
        return smallest_detectable(float(np.sqrt(spread / prompts)), prompts - 1)


def components(scores: ArrayLike, prompts: Sequence[str], samples: Sequence[str]) -> Components:
    """The components of grades, each of a sample of a prompt. Without repeats the noise is part of the samples."""
    y = np.asarray(scores, np.float64)
    inner, outer = _index(list(zip(prompts, samples, strict=True))), _index(prompts)
    own = np.zeros(inner.max() + 1, np.int64)
    own[inner] = outer  # the prompt of each sample
    n, sizes, whole = len(y), np.bincount(inner), np.bincount(outer)
    a, s = len(whole), len(sizes)
    means, middles = np.bincount(inner, y) / sizes, np.bincount(outer, y) / whole
    noise = _variance(((y - means[inner]) ** 2).sum(), n - s)
    apart = (sizes * (means - y.mean()) ** 2).sum()
    together = _apart(apart, s - 1, noise, n - (sizes.astype(np.float64) ** 2).sum() / n)
    per_prompt = np.bincount(own, sizes.astype(np.float64) ** 2) / whole
    squares = (sizes * (means - middles[own]) ** 2).sum()
    sample = _apart(squares, s - a, noise, n - per_prompt.sum())
    if sample is None:  # one sample a prompt: whose luck it was cannot be told
        return Components(None, None, noise, together)
    between = (whole * (middles - y.mean()) ** 2).sum()
    between -= sample * (per_prompt.sum() - (sizes.astype(np.float64) ** 2).sum() / n)
    prompt = _apart(between, a - 1, noise, n - (whole.astype(np.float64) ** 2).sum() / n)
    return Components(prompt, sample, noise, together)


def _index(names: Sequence[object]) -> NDArray[np.int64]:
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.fromiter((order[name] for name in names), np.int64, len(names))


def _variance(squares: float, freedom: int) -> float | None:
    return float(squares) / freedom if freedom > 0 else None


def _apart(squares: float, freedom: int, within: float | None, size: float) -> float | None:
    """A component from its sum of squares, what lies within taken away; chance may make it negative, which is 0."""
    if freedom <= 0 or size <= 0:
        return None
    return max(0.0, float((squares - freedom * (within or 0.0)) / size))
