"""Agreement of two graders: rank correlation and weighted kappa."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .means import LEVEL
from .quantiles import normal_quantile

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with its interval; None if one of the graders gives constant grades."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa with quadratic weights, and its interval."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def spearman(a: ArrayLike, b: ArrayLike, level: float = LEVEL) -> Correlation:
    """Spearman's rank correlation, with a Fisher interval that uses the variance of Bonett and Wright for ranks."""
    first, second = (_ranks(np.asarray(values, np.float64)) for values in (a, b))
    n = len(first)
    if n < 2 or min(first.std(), second.std()) == 0:
        return Correlation(None, None, None, n)
    value = float(np.clip(np.asarray(np.corrcoef(first, second))[0, 1], -1, 1))
    if n < 4:
        return Correlation(value, None, None, n)
    if 1 - abs(value) < 1e-12:
        return Correlation(round(value), *_perfect_interval(value, n, level), n)
    reach = normal_quantile((1 + level) / 2) * math.sqrt((1 + value**2 / 2) / (n - 3))
    middle = math.atanh(value)
    return Correlation(value, math.tanh(middle - reach), math.tanh(middle + reach), n)


def _perfect_interval(value: float, n: int, level: float) -> tuple[float, float]:
    """The interval for a perfect correlation: computed as if one adjacent pair of n were swapped."""
    almost = 1 - 6 * 2 / (n * (n * n - 1))
    reach = normal_quantile((1 + level) / 2) * math.sqrt((1 + almost**2 / 2) / (n - 3))
    bound = math.tanh(math.atanh(almost) - reach)
    return (bound, 1.0) if value > 0 else (-1.0, -bound)


def _ranks(values: Array) -> Array:
    """Ranks from 1. Ties get their mean rank."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[index.reshape(-1)], np.float64)


def weighted_kappa(
    a: Sequence[Any], b: Sequence[Any], categories: Sequence[Any] | None = None, level: float = LEVEL
) -> Kappa:
    """Cohen's kappa with quadratic weights, and its asymptotic interval (Fleiss, Cohen and Everitt)."""
    names = sorted({*a, *b}) if categories is None else list(categories)
    if len(names) < 2 or not len(a):
        return Kappa(None, None, None, len(a))
    place = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(names), len(names)))
    for x, y in zip(a, b, strict=True):
        table[place[x], place[y]] += 1
    table /= table.sum()
    where = np.array(names, np.float64)
    agree = 1 - ((where[:, None] - where[None, :]) / (where[-1] - where[0])) ** 2
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    observed, chance = float((agree * table).sum()), float(rows @ agree @ columns)
    if chance == 1:
        return Kappa(None, None, None, len(a))
    kappa = (observed - chance) / (1 - chance)
    # The expected agreement by chance of each row and column.
    around = (agree @ columns)[:, None] + (agree.T @ rows)[None, :]
    variance = (table * (agree - around * (1 - kappa)) ** 2).sum() - (kappa - chance * (1 - kappa)) ** 2
    reach = normal_quantile((1 + level) / 2) * math.sqrt(max(0.0, variance) / len(a)) / (1 - chance)
    return Kappa(kappa, max(-1.0, kappa - reach), min(1.0, kappa + reach), len(a))
