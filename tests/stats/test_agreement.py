"""Spearman's rank correlation and weighted kappa."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from distillkit.stats import (
    spearman,
    weighted_kappa,
)

Peer = Callable[[str], ModuleType]


def test_spearman_is_scipys_with_ties(peer: Peer) -> None:
    scipy = peer("scipy.stats")
    rng = np.random.default_rng(14)
    for _ in range(20):
        a, b = rng.integers(1, 6, 25), rng.integers(1, 6, 25)
        found = spearman(a, b)
        assert found.value == pytest.approx(scipy.spearmanr(a, b).statistic, abs=1e-12)
        assert found.low < found.value < found.high  # type: ignore[operator]


def test_the_interval_of_spearman_covers_the_truth() -> None:
    rng = np.random.default_rng(15)
    truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of normal numbers whose correlation is 0.6
    hits = 0
    for _ in range(500):
        a = rng.normal(size=40)
        found = spearman(a, 0.6 * a + 0.8 * rng.normal(size=40))
        hits += found.low <= truth <= found.high  # type: ignore[operator]
    assert 0.92 <= hits / 500 <= 0.98


def test_a_perfect_order_is_not_beyond_doubt_and_what_never_varies_has_none() -> None:
    up, down = spearman(range(10), range(10)), spearman(range(10), range(10, 0, -1))
    assert (up.value, up.high, down.value, down.low) == (1.0, 1.0, -1.0, -1.0)
    assert 0.8 < up.low < 1  # type: ignore[operator]
    assert down.high == pytest.approx(-up.low)  # type: ignore[operator]
    assert spearman([1, 1, 1, 1], [1, 2, 3, 4]).value is None
    assert spearman([1, 2, 3], [1, 2, 3]).low is None


def test_weighted_kappa_and_its_interval_are_statsmodels(peer: Peer) -> None:
    inter_rater = peer("statsmodels.stats.inter_rater")
    rng = np.random.default_rng(16)
    a = rng.integers(1, 6, 80)
    b = np.clip(a + rng.integers(-1, 2, 80), 1, 5)
    table = np.zeros((5, 5))
    np.add.at(table, (a - 1, b - 1), 1)
    theirs = inter_rater.cohens_kappa(table, wt="quadratic")
    found = weighted_kappa(a.tolist(), b.tolist())
    assert found.value == pytest.approx(theirs.kappa)
    assert (found.low, found.high) == pytest.approx((theirs.kappa_low, theirs.kappa_upp), rel=1e-6)


def test_kappa_is_one_for_equal_grades_nothing_by_chance_and_none_where_all_are_alike() -> None:
    assert weighted_kappa([1, 2, 3, 4], [1, 2, 3, 4]).value == pytest.approx(1)
    rng = np.random.default_rng(17)
    assert abs(weighted_kappa(rng.integers(1, 6, 5000).tolist(), rng.integers(1, 6, 5000).tolist()).value) < 0.05  # type: ignore[arg-type]
    assert weighted_kappa([3, 3], [3, 3]).value is None
