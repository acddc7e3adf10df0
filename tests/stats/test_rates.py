"""Wilson intervals and Bradley-Terry strengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.stats import (
    bradley_terry,
    wilson,
)

Peer = Callable[[str], ModuleType]


@settings(deadline=None)
@given(st.integers(1, 500), st.floats(0, 1))
def test_a_wilson_interval_holds_the_share_and_stays_within_bounds(n: int, share: float) -> None:
    low, high = wilson(share * n, n)
    assert 0 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1


def test_a_wilson_interval_of_all_or_nothing_ends_at_the_bound() -> None:
    assert all((wilson(0, n)[0], wilson(n, n)[1]) == (0.0, 1.0) for n in range(1, 200))


def test_wilson_is_statsmodels(peer: Peer) -> None:
    proportion = peer("statsmodels.stats.proportion")
    for k, n in ((0, 5), (3, 10), (49, 50), (500, 1000)):
        assert wilson(k, n) == pytest.approx(proportion.proportion_confint(k, n, method="wilson"), abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)


def test_bradley_terry_strengths_and_errors_are_those_of_a_logistic_regression(peer: Peer) -> None:
    models = peer("statsmodels.discrete.discrete_model")
    rng = np.random.default_rng(9)
    truth, k = np.array([0.8, 0.1, -0.3, -0.6]), 4
    wins, rows, won = np.zeros((k, k)), [], []
    for i in range(k):
        for j in range(i):
            for _ in range(60):
                first = rng.random() < 1 / (1 + math.exp(truth[j] - truth[i]))
                wins[(i, j) if first else (j, i)] += 1
                rows.append(np.eye(k)[i] - np.eye(k)[j])
                won.append(float(first))
    found = bradley_terry(wins)
    fitted = models.Logit(won, np.array(rows)[:, 1:]).fit(disp=False)  # the first player's strength held at 0
    theirs = np.array([0.0, *fitted.params])
    assert [s.value for s in found] == pytest.approx((theirs - theirs.mean()).tolist(), abs=1e-6)
    shift = np.hstack([np.zeros((k, 1)), np.eye(k)[:, 1:]]) - 1 / k
    covariance = np.zeros((k, k))
    covariance[1:, 1:] = fitted.cov_params()
    errors = np.sqrt(np.diag(shift @ covariance @ shift.T))
    assert [(s.high - s.low) / 2 / 1.959964 for s in found] == pytest.approx(errors.tolist(), rel=1e-4)


def test_strengths_cover_the_truth() -> None:
    rng = np.random.default_rng(10)
    truth, hits = np.array([0.5, 0.0, -0.5]), []
    chance = 1 / (1 + np.exp(truth[None, :] - truth[:, None]))
    for _ in range(400):
        wins = np.zeros((3, 3))
        for i, j in ((0, 1), (0, 2), (1, 2)):
            wins[i, j] = rng.binomial(50, chance[i, j])
            wins[j, i] = 50 - wins[i, j]
        hits.append([s.low <= t <= s.high for s, t in zip(bradley_terry(wins), truth, strict=True)])
    assert 0.92 <= np.mean(hits) <= 0.98


def test_ties_are_half_a_win_and_whoever_wins_everything_is_still_measured() -> None:
    even = bradley_terry(np.array([[0, 5, 5], [5, 0, 5], [5, 5, 0.0]]))
    assert [s.value for s in even] == pytest.approx([0, 0, 0])
    best, *others = bradley_terry(np.array([[0, 9, 9], [0, 0, 5], [0, 4, 0.0]]))
    assert best.smoothed
    assert best.value > others[0].value > others[1].value
    assert math.isfinite(best.high)
    with pytest.raises(ValueError, match="not connected by games"):
        bradley_terry(np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0.0]]))
