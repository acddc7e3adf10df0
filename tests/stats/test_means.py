"""Means and ratios: their intervals cover the true value, and agree with statsmodels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from distillkit.core.records import Metric
from distillkit.stats import (
    bootstrap_ratio,
    cluster_sums,
    mean_interval,
    means,
    paired_interval,
    ratio,
    weighted_mean,
)

SIMULATIONS = 1000
TRUTH = 3.0
Peer = Callable[[str], ModuleType]
Rng = np.random.Generator


def clustered(rng: Rng, clusters: int = 60) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores, weights and clusters of unequal size, whose members share most of their luck."""
    sizes = rng.integers(1, 8, clusters)
    index = np.repeat(np.arange(clusters), sizes)
    scores = TRUTH + rng.normal(size=clusters)[index] + 0.5 * rng.normal(size=len(index))
    return scores, rng.uniform(0.5, 3, len(index)), [f"d{i}" for i in index]


# --------------------------------------------------------------------------------------------------- covering


def same(rng: Rng, clusters: int) -> np.ndarray:
    return np.full(clusters, 4)


def unlike(rng: Rng, clusters: int) -> np.ndarray:
    return rng.integers(1, 8, clusters)


def lopsided(rng: Rng, clusters: int) -> np.ndarray:
    return np.maximum(1, rng.lognormal(1, 1, clusters)).astype(int)


@pytest.mark.parametrize("within", [0.5, 3.0])
@pytest.mark.parametrize("sizes", [same, unlike, lopsided])
@pytest.mark.parametrize("clusters", [5, 10, 50])
def test_95_of_100_intervals_hold_the_truth(clusters: int, sizes: Any, within: float) -> None:
    """Also with five clusters, with clusters of very unlike size, and with little luck in common."""
    rng = np.random.default_rng([clusters, int(10 * within)])
    hits = 0
    for _ in range(SIMULATIONS):
        counts = sizes(rng, clusters)
        sums = counts * (TRUTH + rng.normal(size=clusters)) + within * np.sqrt(counts) * rng.normal(size=clusters)
        low, high = ratio(sums, counts).interval()
        hits += low <= TRUTH <= high  # type: ignore[operator]
    most = 0.97 if clusters > 5 else 0.98  # with five clusters of which one is most, nobody knows better
    assert 0.93 <= hits / SIMULATIONS <= most


def test_scores_on_a_scale_of_whole_numbers_are_covered_too() -> None:
    """Grades from 1 to 10 that pile up at the top."""
    rng = np.random.default_rng(3)
    easy = rng.normal(8.5, 1.5, (200_000, 1))
    grades = np.clip(np.round(easy + rng.normal(0, 1, (len(easy), 3))), 1, 10)
    truth, hits = grades.mean(), 0
    for _ in range(SIMULATIONS):
        drawn = grades[rng.integers(0, len(grades), 50)].sum(axis=1)
        low, high = ratio(drawn, np.full(50, 3)).interval()
        hits += low <= truth <= high  # type: ignore[operator]
    assert 0.93 <= hits / SIMULATIONS <= 0.97


def test_rows_taken_for_clusters_would_promise_too_much() -> None:
    rng = np.random.default_rng(1)
    drawn = [clustered(rng) for _ in range(300)]
    alone = [mean_interval(s, w, [str(j) for j in range(len(s))]) for s, w, _ in drawn]
    assert np.mean([m.low <= TRUTH <= m.high for m in alone]) < 0.85  # type: ignore[operator]


def test_the_interval_of_paired_differences_covers_the_truth_and_is_narrower_than_unpaired() -> None:
    rng = np.random.default_rng(2)
    paired, unpaired = [], []
    for _ in range(300):
        theirs, weights, clusters = clustered(rng)
        gained = {name: 0.2 + 0.1 * rng.normal() for name in dict.fromkeys(clusters)}
        ours = theirs + [gained[name] for name in clusters]
        paired.append(paired_interval(ours, theirs, weights, clusters))
        unpaired.append(mean_interval(ours, weights, clusters))
    assert 0.92 <= np.mean([m.low <= 0.2 <= m.high for m in paired]) <= 0.98  # type: ignore[operator]
    widths = [np.mean([m.high - m.low for m in of]) for of in (paired, unpaired)]  # type: ignore[operator]
    assert widths[0] < widths[1] / 4


def test_a_ratio_is_of_sums_and_both_its_intervals_cover_the_true_one() -> None:
    """Bits per byte: documents of very different length, whose rate hangs on their length."""
    rng = np.random.default_rng(3)
    hits = []
    for i in range(300):
        sizes = rng.choice([10.0, 20.0, 30.0], 80)
        rates = sizes / 10 + rng.normal(size=80)
        intervals = bootstrap_ratio(sizes * rates, sizes, seed=i), ratio(sizes * rates, sizes).interval()
        # E[size * rate] / E[size] = (10 * 1 + 20 * 2 + 30 * 3) / (10 + 20 + 30)
        hits.append([low <= 140 / 60 <= high for low, high in intervals])  # type: ignore[operator]
    assert np.all(np.abs(np.mean(hits, axis=0) - 0.95) <= 0.03)
    assert weighted_mean([1, 2, 3], [10, 20, 30]) == pytest.approx(140 / 60)


# ------------------------------------------------------------------------------------------------------ means


def test_clusters_of_one_size_give_the_textbooks_interval_and_statsmodels(peer: Peer) -> None:
    scipy, models = peer("scipy.stats"), peer("statsmodels.regression.linear_model")
    rng = np.random.default_rng(8)
    scores = rng.normal(size=(12, 3)) + rng.normal(size=(12, 1))
    names = np.repeat([f"p{i}" for i in range(12)], 3).tolist()
    metric = mean_interval(scores.reshape(-1), np.ones(36), names)
    textbook = scipy.ttest_1samp(scores.mean(axis=1), 0).confidence_interval()
    assert (metric.low, metric.high) == pytest.approx((textbook.low, textbook.high), rel=1e-9)
    groups = {"groups": np.repeat(np.arange(12), 3)}
    fitted = models.OLS(scores.reshape(-1), np.ones(36)).fit(cov_type="cluster", cov_kwds=groups)
    top, bottom = scores.sum(axis=1), np.full(12, 3.0)
    assert ratio(top, bottom).error == pytest.approx(float(fitted.bse[0]), rel=1e-9)


def test_one_cluster_gives_a_value_and_no_interval() -> None:
    metric = mean_interval([1.0, 3.0], [1.0, 1.0], ["a", "a"])
    assert metric == Metric(2.0, None, None, 1)
    assert paired_interval([2.0], [1.0], [1.0], ["a"]) == Metric(1.0, None, None, 1)


def test_the_mean_is_of_rows_by_weight_and_not_of_clusters() -> None:
    metric = mean_interval([1.0, 1.0, 4.0], [1.0, 1.0, 2.0], ["a", "a", "b"])
    assert (metric.value, metric.n) == (2.5, 2)
    assert metric.low == pytest.approx(2.5 - 1.5 * math.tan(0.475 * math.pi))  # t with one degree of freedom


def test_clusters_are_summed_in_the_order_in_which_they_appear() -> None:
    names, sums = cluster_sums(np.array([1.0, 2.0, 4.0, 8.0]), ["b", "a", "b", "c"])
    assert names == ["b", "a", "c"]
    assert sums.tolist() == [5.0, 2.0, 8.0]


def test_equal_scores_have_no_spread() -> None:
    metric = mean_interval(np.full(20, 0.5), np.ones(20), [str(i) for i in range(20)])
    assert metric == Metric(0.5, 0.5, 0.5, 20)


def test_what_weighs_nothing_does_not_count() -> None:
    assert ratio([1.0, 2.0, 0.0], [1.0, 1.0, 0.0]) == ratio([1.0, 2.0], [1.0, 1.0])


def test_a_wider_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(4).normal(size=50)
    for interval in (
        lambda level: bootstrap_ratio(values, np.ones(50), level=level),
        ratio(values, np.ones(50)).interval,
    ):
        widths = [high - low for low, high in (interval(level) for level in (0.5, 0.95, 0.99))]
        assert widths == sorted(widths)
        assert len(set(widths)) == 3


@pytest.mark.parametrize("clusters", [50, 10_000])
def test_two_thousand_resamples_take_less_than_two_seconds(clusters: int) -> None:
    values = np.random.default_rng(6).normal(size=clusters)
    began = time.process_time()
    bootstrap_ratio(values, np.ones(clusters))
    assert time.process_time() - began < 2


def test_the_size_of_a_block_does_not_decide_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(7).normal(size=100)
    whole = bootstrap_ratio(values, np.ones(100))
    monkeypatch.setattr(means, "BLOCK", 1)
    assert bootstrap_ratio(values, np.ones(100)) == pytest.approx(whole, abs=0.05)
