"""Intervals and paired tests, in NumPy only. Knows nothing of students, judges or files.

What is resampled is always a cluster (a document, a prompt): scores inside one are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .records import Metric

RESAMPLES = 2000
BLOCK = 1 << 17  # picks at once


def weighted_mean(scores: ArrayLike, weights: ArrayLike) -> float:
    """Sum of score times weight, over the sum of weights."""
    s, w = np.asarray(scores, np.float64), np.asarray(weights, np.float64)
    return float((s * w).sum() / w.sum())


def cluster_sums(values: NDArray[np.float64], clusters: Sequence[str]) -> tuple[list[str], NDArray[np.float64]]:
    """The sum of the values in each cluster, in order of first appearance."""
    order = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    index = np.fromiter((order[name] for name in clusters), np.int64, len(clusters))
    return list(order), np.bincount(index, weights=values, minlength=len(order)).astype(np.float64)


def bootstrap_ratio(
    numerators: ArrayLike, denominators: ArrayLike, seed: int = 0, level: float = 0.95
) -> tuple[float | None, float | None]:
    """A percentile bootstrap interval of sum(numerators) / sum(denominators) over clusters."""
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if len(top) < 2:
        return None, None
    rng = np.random.default_rng(seed)
    ratios: list[NDArray[np.float64]] = []
    block = max(1, BLOCK // len(top))
    for start in range(0, RESAMPLES, block):
        picks = rng.integers(0, len(top), (min(block, RESAMPLES - start), len(top)))
        ratios.append(top[picks].sum(axis=1) / bottom[picks].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(scores: ArrayLike, weights: ArrayLike, clusters: Sequence[str], seed: int = 0) -> Metric:
    """The weighted mean of scores, with an interval over clusters; `n` counts clusters."""
    s, w = np.asarray(scores, np.float64), np.asarray(weights, np.float64)
    _, top = cluster_sums(s * w, clusters)
    _, bottom = cluster_sums(w, clusters)
    low, high = bootstrap_ratio(top, bottom, seed)
    return Metric(weighted_mean(s, w), low, high, len(top))


def paired_interval(
    ours: ArrayLike, theirs: ArrayLike, weights: ArrayLike, clusters: Sequence[str], seed: int = 0
) -> Metric:
    """The weighted mean of `ours - theirs`, pair by pair, with an interval over clusters."""
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return mean_interval(difference, weights, clusters, seed)
