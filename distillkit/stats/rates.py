"""Wilson's interval of a proportion, and the Bradley-Terry model of pairwise wins."""

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
    """The log strength of a player, relative to the mean: exp of the difference of two strengths is their odds.

    `smoothed` means that some player won or lost every game, so half a win was added to both sides of each pair.
    """

    value: float
    low: float
    high: float
    smoothed: bool = False


def wilson(successes: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a proportion. A tie may count as half a success. For n = 0, it is (0, 1)."""
    if n <= 0:
        return 0.0, 1.0
    z, share = normal_quantile((1 + level) / 2), successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # With no or only successes, the formula gives 0 or 1 up to rounding.
    low = max(0.0, float(middle - reach)) if successes > 0 else 0.0
    return low, min(1.0, float(middle + reach)) if successes < n else 1.0


def all_met(wins: NDArray[Any]) -> bool:
    """Whether games connect all players, directly or through others, so that their strengths are comparable."""
    return _strongly_connected((wins + wins.T) > 0)


def bradley_terry(wins: NDArray[Any], level: float = LEVEL) -> list[Strength]:
    """The Bradley-Terry strengths of players, where i beat j wins[i, j] times. A tie is half a win for each."""
    w = np.asarray(wins, np.float64).copy()
    np.fill_diagonal(w, 0)
    smoothed = not _strongly_connected(w > 0)
    if smoothed:
        if not all_met(w):
            raise ValueError("some players are not connected by games, so their strengths cannot be compared")
        w = w + 0.5 * ((w + w.T) > 0)
    strengths = _maximum_likelihood(w)
    reach = normal_quantile((1 + level) / 2) * _standard_errors(w, strengths)
    return [Strength(s, s - r, s + r, smoothed) for s, r in zip(strengths.tolist(), reach.tolist(), strict=True)]


def _maximum_likelihood(w: Array) -> Array:
    """Maximum-likelihood log strengths by Hunter's MM algorithm. Their mean is 0."""
    games, won = w + w.T, w.sum(axis=1)
    p = np.ones(len(w))
    for _ in range(ROUNDS):
        following = won / (games / (p[:, None] + p[None, :])).sum(axis=1)
        following /= np.exp(np.log(following).mean())
        if np.abs(np.log(following / p)).max() < CLOSE:
            break
        p = following
    return np.asarray(np.log(following))


def _standard_errors(w: Array, strengths: Array) -> Array:
    """Standard errors from the Fisher information, with the mean strength fixed at 0."""
    chance = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    information = -(w + w.T) * chance * (1 - chance)
    np.fill_diagonal(information, 0)
    np.fill_diagonal(information, -information.sum(axis=1))
    variance = np.linalg.pinv(information, hermitian=True)
    return np.asarray(np.sqrt(np.clip(np.diag(variance), 0, None)))


def _strongly_connected(beats: NDArray[np.bool_]) -> bool:
    """Whether every player beat every other, directly or through others. Otherwise strengths are unbounded."""
    reach = beats | np.eye(len(beats), dtype=bool)
    for _ in range(max(1, int(np.ceil(np.log2(max(2, len(beats))))))):
        reach = (reach.astype(np.float64) @ reach) > 0
    return bool(reach.all())
