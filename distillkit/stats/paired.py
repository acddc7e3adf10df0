"""Two runs on the same prompts or documents: their difference, whether it is chance, and what could have been seen.

The interval is that of the mean difference over clusters (`means`). Its p is that of sign flips: were the runs equal,
each cluster's difference could as well have had the other sign. A verdict needs both to agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.records import Metric
from .means import BLOCK, Mean, cluster_sums, mean_interval, ratio, resample_ratios
from .quantiles import t_quantile, t_two_sided

Verdict = Literal["better", "worse", "not distinguishable"]
BETTER: Final = "better"
WORSE: Final = "worse"
SAME: Final = "not distinguishable"
ALPHA, POWER = 0.05, 0.8
ALL_SIGNS = 13  # clusters up to which every choice of signs is tried
FLIPS = 9999
MANY = 500  # clusters from which sign flips and Student's t agree to the third digit


@dataclass(frozen=True)
class Difference:
    """The mean of a - b over pairs, its 95% interval, how likely it is by chance, over how many clusters.

    `detectable` is the smallest true difference that this design finds four times in five.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    detectable: float | None


def paired_difference(
    a: Mapping[str, float],
    b: Mapping[str, float],
    clusters: Mapping[str, str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Difference:
    """What a has more than b on the keys that both have; each key is a cluster of its own unless `clusters` says."""
    both = [key for key in a if key in b]
    if not both:
        raise ValueError("nothing is in both, so nothing can be paired")
    of = [key if clusters is None else clusters[key] for key in both]
    weight = np.array([1.0 if weights is None else weights[key] for key in both], np.float64)
    apart = np.array([a[key] - b[key] for key in both], np.float64)
    _, top = cluster_sums(apart * weight, of)
    _, bottom = cluster_sums(weight, of)
    mean = ratio(top, bottom)
    low, high = mean.interval()
    if mean.n < 2:
        return Difference(mean.value, low, high, None, mean.n, None)
    return Difference(mean.value, low, high, _chance(top, mean), mean.n, smallest_detectable(mean.error, mean.df))


def _chance(top: NDArray[np.float64], mean: Mean) -> float:
    if mean.n <= MANY:
        return sign_flip_test(top)
    if mean.error == 0:
        return float(mean.value == 0)
    return t_two_sided(mean.value / mean.error, mean.df)


def sign_flip_test(differences: ArrayLike, seed: int = 0) -> float:
    """How often chance alone would move the sum of the clusters' differences as far from 0: all signs, or many."""
    values = np.asarray(differences, np.float64)
    seen = abs(values.sum()) * (1 - 1e-12)  # sums in another order differ in their last digit
    if len(values) <= ALL_SIGNS:
        signs = 1 - 2.0 * (np.arange(1 << len(values))[:, None] >> np.arange(len(values)) & 1)
        return float((abs(signs @ values) >= seen).mean())
    rng = np.random.default_rng(seed)
    far, block = 0, max(1, BLOCK // len(values))
    for start in range(0, FLIPS, block):
        signs = 1 - 2.0 * rng.integers(0, 2, (min(block, FLIPS - start), len(values)), dtype=np.int8)
        far += int((abs(signs @ values) >= seen).sum())
    return (far + 1) / (FLIPS + 1)


def bootstrap_test(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> float:
    """How often a resampled ratio is as far from the ratio as that is from 0: where differences are not symmetric."""
    ratios = resample_ratios(numerators, denominators, seed)
    value = float(np.sum(numerators) / np.sum(denominators))
    return float(((abs(ratios - value) >= abs(value)).sum() + 1) / (len(ratios) + 1))


def smallest_detectable(error: float, df: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """The true difference that a two-sided test finds with this power, given the standard error of the difference."""
    return error * (t_quantile(1 - alpha / 2, df) + t_quantile(power, df))


def holm(ps: Sequence[float]) -> list[float]:
    """Each p as it counts among all of them: the smallest times their number, the next times one less, and so on."""
    adjusted, most = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        most = max(most, min(1.0, ps[i] * (len(ps) - rank)))
        adjusted[i] = most
    return adjusted


def verdict(difference: Difference, better: Literal["lower", "higher"] = "higher", alpha: float = ALPHA) -> Verdict:
    """What can be said of a beside b, in words. With a corrected p, that one decides."""
    p, low, high = difference.p, difference.low, difference.high
    if p is None or low is None or high is None or math.isnan(p) or p > alpha or low <= 0 <= high:
        return SAME
    return BETTER if (difference.value > 0) == (better == "higher") else WORSE


def paired_interval(ours: ArrayLike, theirs: ArrayLike, weights: ArrayLike, clusters: Sequence[str]) -> Metric:
    """The weighted mean of `ours - theirs`, pair by pair, with its interval over clusters."""
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return mean_interval(difference, weights, clusters)
