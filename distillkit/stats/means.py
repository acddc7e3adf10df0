"""Weighted means and their intervals over clusters.

The interval is Student's t, with a variance that is correct for few clusters of unequal size: the squared deviation of
each cluster is divided by the share of its variance that remains after subtracting the common mean, and the degrees of
freedom are Kish's effective number of clusters minus one. For clusters of equal size, it is the textbook interval of
the cluster means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.records import Metric
from .quantiles import t_quantile

Array = NDArray[np.float64]
RESAMPLES = 2000
BLOCK = 1 << 17  # resampled indices per block
LEVEL = 0.95


@dataclass(frozen=True)
class Mean:
    """A weighted mean over clusters, with its standard error, degrees of freedom and number of clusters."""

    value: float
    error: float
    df: float
    n: int

    def interval(self, level: float = LEVEL) -> tuple[float | None, float | None]:
        """The lower and upper bound; None for a single cluster."""
        if self.n < 2:
            return None, None
        reach = self.error * t_quantile((1 + level) / 2, self.df)
        return self.value - reach, self.value + reach


def weighted_mean(scores: ArrayLike, weights: ArrayLike) -> float:
    """sum(scores * weights) / sum(weights)."""
    s, w = np.asarray(scores, np.float64), np.asarray(weights, np.float64)
    return float((s * w).sum() / w.sum())


def cluster_sums(values: Array, clusters: Sequence[str]) -> tuple[list[str], Array]:
    """The sum of the values in each cluster, in order of first appearance."""
    order = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    index = np.fromiter((order[name] for name in clusters), np.int64, len(clusters))
    return list(order), np.bincount(index, weights=values, minlength=len(order)).astype(np.float64)


def ratio(numerators: ArrayLike, denominators: ArrayLike) -> Mean:
    """sum(numerators) / sum(denominators) over clusters, with its standard error. Ignores clusters of weight 0."""
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    top, bottom = top[bottom > 0], bottom[bottom > 0]
    value = float(top.sum() / bottom.sum())
    if len(top) < 2:
        return Mean(value, 0.0, 0.0, len(top))
    shares = bottom / bottom.sum()
    left = 1 - 2 * shares + (shares**2).sum()  # share of the variance that remains after subtracting the mean
    error = float(np.sqrt((shares**2 / left * (top / bottom - value) ** 2).sum()))
    return Mean(value, error, max(1.0, float(1 / (shares**2).sum()) - 1), len(top))


def mean_interval(scores: ArrayLike, weights: ArrayLike, clusters: Sequence[str]) -> Metric:
    """The weighted mean of scores, with its 95% interval over clusters. `n` is the number of clusters."""
    s, w = np.asarray(scores, np.float64), np.asarray(weights, np.float64)
    _, top = cluster_sums(s * w, clusters)
    _, bottom = cluster_sums(w, clusters)
    mean = ratio(top, bottom)
    low, high = mean.interval()
    return Metric(weighted_mean(s, w), low, high, mean.n)


def bootstrap_ratio(
    numerators: ArrayLike, denominators: ArrayLike, seed: int = 0, level: float = LEVEL
) -> tuple[float | None, float | None]:
    """A percentile bootstrap interval of sum(numerators) / sum(denominators), for metrics without a formula."""
    ratios = resample_ratios(numerators, denominators, seed)
    if not len(ratios):
        return None, None
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resample_ratios(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> Array:
    """Bootstrap replicates of the ratio, resampling clusters; empty for a single cluster."""
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if len(top) < 2:
        return np.zeros(0)
    rng = np.random.default_rng(seed)
    ratios = []
    block = max(1, BLOCK // len(top))
    for start in range(0, RESAMPLES, block):
        indices = rng.integers(0, len(top), (min(block, RESAMPLES - start), len(top)))
        ratios.append(top[indices].sum(axis=1) / bottom[indices].sum(axis=1))
    return np.concatenate(ratios)
