"""Paired comparison of two runs on the same prompts or documents: difference, p-value, smallest detectable difference.

The interval is that of the mean difference over clusters (`means`). The p-value is that of a sign-flip test: if the
runs are equal, the difference of each cluster has either sign with equal probability. A verdict needs both to agree.
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
ALL_SIGNS = 13  # up to this many clusters, all sign combinations are enumerated
FLIPS = 9999
MANY = 500  # above this many clusters, sign flips and Student's t agree to three digits


@dataclass(frozen=True)
class Difference:
    """The mean of a - b over pairs, its 95% interval, its p-value and the number of clusters.

    `detectable` is the smallest true difference that this design detects with a power of 80%.
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
    """The mean of a - b over the keys that both have. Without `clusters`, each key is its own cluster."""
    both = [key for key in a if key in b]
    if not both:
        raise ValueError("a and b have no key in common, so nothing can be paired")
    of = [key if clusters is None else clusters[key] for key in both]
    weight = np.array([1.0 if weights is None else weights[key] for key in both], np.float64)
    apart = np.array([a[key] - b[key] for key in both], np.float64)
    _, top = cluster_sums(apart * weight, of)
    _, bottom = cluster_sums(weight, of)
    mean = ratio(top, bottom)
    low, high = mean.interval()
    if mean.n < 2:
        return Difference(mean.value, low, high, None, mean.n, None)
    return Difference(mean.value, low, high, _p_value(top, mean), mean.n, smallest_detectable(mean.error, mean.df))


def _p_value(top: NDArray[np.float64], mean: Mean) -> float:
    if mean.n <= MANY:
        return sign_flip_test(top)
    if mean.error == 0:
        return float(mean.value == 0)
    return t_two_sided(mean.value / mean.error, mean.df)


def sign_flip_test(differences: ArrayLike, seed: int = 0) -> float:
    """The two-sided p-value of a sign-flip test of cluster differences: exact for few clusters, else Monte Carlo."""
    values = np.asarray(differences, np.float64)
    observed = abs(values.sum()) * (1 - 1e-12)  # sums in another order differ in the last digit
    if len(values) <= ALL_SIGNS:
        signs = 1 - 2.0 * (np.arange(1 << len(values))[:, None] >> np.arange(len(values)) & 1)
        return float((abs(signs @ values) >= observed).mean())
    rng = np.random.default_rng(seed)
    extreme, block = 0, max(1, BLOCK // len(values))
    for start in range(0, FLIPS, block):
        signs = 1 - 2.0 * rng.integers(0, 2, (min(block, FLIPS - start), len(values)), dtype=np.int8)
        extreme += int((abs(signs @ values) >= observed).sum())
    return (extreme + 1) / (FLIPS + 1)


def bootstrap_test(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> float:
    """The p-value of a bootstrap test that a ratio is 0, for differences that are not symmetric."""
    ratios = resample_ratios(numerators, denominators, seed)
    value = float(np.sum(numerators) / np.sum(denominators))
    return float(((abs(ratios - value) >= abs(value)).sum() + 1) / (len(ratios) + 1))


def smallest_detectable(error: float, df: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """The true difference that a two-sided test detects with this power, given the standard error."""
    return error * (t_quantile(1 - alpha / 2, df) + t_quantile(power, df))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values for multiple comparisons."""
    adjusted, most = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        most = max(most, min(1.0, ps[i] * (len(ps) - rank)))
        adjusted[i] = most
    return adjusted


def verdict(difference: Difference, better: Literal["lower", "higher"] = "higher", alpha: float = ALPHA) -> Verdict:
    """The verdict on a compared with b. Pass a difference with a corrected p-value to use that one."""
    p, low, high = difference.p, difference.low, difference.high
    if p is None or low is None or high is None or math.isnan(p) or p > alpha or low <= 0 <= high:
        return SAME
    return BETTER if (difference.value > 0) == (better == "higher") else WORSE


def paired_interval(ours: ArrayLike, theirs: ArrayLike, weights: ArrayLike, clusters: Sequence[str]) -> Metric:
    """The weighted mean of the paired differences `ours - theirs`, with its interval over clusters."""
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return mean_interval(difference, weights, clusters)
