"""Shares and wins: Wilson's interval, and the strengths that explain who beat whom. Knows no judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .means import LEVEL
from .quantiles import normal_quantile

Array = NDArray[np.float64]
ROUNDS = 10_000
CLOSE = 1e-12


@dataclass(frozen=True)
class Strength:
    """How strong one player is, as a logarithm beside the mean of all: e to the difference of two are their odds.

    `smoothed` says that somebody won or lost everything, so that half a win was lent to both sides of each pair.
    """

    value: float
    low: float
    high: float
    smoothed: bool = False


def wilson(successes: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """The interval of a share; a tie may count as half a success. Of nothing, anything is possible."""
    if n <= 0:
        return 0.0, 1.0
    z, share = normal_quantile((1 + level) / 2), successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Where all is lost or won the formula ends at 0 or 1 but for float's last digits.
    low = max(0.0, float(middle - reach)) if successes > 0 else 0.0
    return low, min(1.0, float(middle + reach)) if successes < n else 1.0


def all_met(wins: NDArray[Any]) -> bool:
    """Whether every two players met, at least through others, so that their strengths compare."""
    return _all_reach_all((wins + wins.T) > 0)


def bradley_terry(wins: NDArray[Any], level: float = LEVEL) -> list[Strength]:
    """The strengths of players of whom i beat j wins[i, j] times; ties are half a win each."""
    w = np.asarray(wins, np.float64).copy()
    np.fill_diagonal(w, 0)
    smoothed = not _all_reach_all(w > 0)
    if smoothed:
        if not all_met(w):
            raise ValueError("some of these never met, not even through others, so their strengths do not compare")
        w = w + 0.5 * ((w + w.T) > 0)
    strengths = _most_likely(w)
    reach = normal_quantile((1 + level) / 2) * _errors(w, strengths)
    return [Strength(s, s - r, s + r, smoothed) for s, r in zip(strengths.tolist(), reach.tolist(), strict=True)]


def _most_likely(w: Array) -> Array:
    """Hunter's MM steps to the likeliest strengths; logarithms, whose mean is 0."""
    games, won = w + w.T, w.sum(axis=1)
    p = np.ones(len(w))
    for _ in range(ROUNDS):
        following = won / (games / (p[:, None] + p[None, :])).sum(axis=1)
        following /= np.exp(np.log(following).mean())
        if np.abs(np.log(following / p)).max() < CLOSE:
            break
        p = following
    return np.asarray(np.log(following))


def _errors(w: Array, strengths: Array) -> Array:
    """Standard errors from the information that the games hold, with the mean of all strengths held at 0."""
    chance = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    information = -(w + w.T) * chance * (1 - chance)
    np.fill_diagonal(information, 0)
    np.fill_diagonal(information, -information.sum(axis=1))
    variance = np.linalg.pinv(information, hermitian=True)
    return np.asarray(np.sqrt(np.clip(np.diag(variance), 0, None)))


def _all_reach_all(beats: NDArray[np.bool_]) -> bool:
    """Whether everybody beat everybody, if only through others: else strengths have no bound."""
    reach = beats | np.eye(len(beats), dtype=bool)
    for _ in range(max(1, int(np.ceil(np.log2(max(2, len(beats))))))):
        reach = (reach.astype(np.float64) @ reach) > 0
    return bool(reach.all())
