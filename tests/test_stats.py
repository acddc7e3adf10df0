"""Intervals that cover what they say they cover, whatever hangs together inside a cluster."""

from __future__ import annotations

import time

import numpy as np
import pytest

from distillkit import stats
from distillkit.records import Metric
from distillkit.stats import (
    bootstrap_ratio,
    cluster_sums,
    mean_interval,
    paired_interval,
    weighted_mean,
)

SIMULATIONS = 400
CLUSTERS = 60
TRUTH = 3.0


def clustered(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores, weights and clusters of unequal size, whose members share most of their luck."""
    sizes = rng.integers(1, 8, CLUSTERS)
    index = np.repeat(np.arange(CLUSTERS), sizes)
    scores = TRUTH + rng.normal(size=CLUSTERS)[index] + 0.5 * rng.normal(size=len(index))
    return scores, rng.uniform(0.5, 3, len(index)), [f"d{i}" for i in index]


def covered(metrics: list[Metric], truth: float) -> float:
    return float(np.mean([m.low <= truth <= m.high for m in metrics]))  # type: ignore[operator]


def test_the_interval_of_a_clustered_mean_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    drawn = [clustered(rng) for _ in range(SIMULATIONS)]
    metrics = [mean_interval(*rows, seed=i) for i, rows in enumerate(drawn)]
    assert 0.92 <= covered(metrics, TRUTH) <= 0.98
    assert {m.n for m in metrics} == {CLUSTERS}


def test_rows_taken_for_clusters_would_promise_too_much() -> None:
    rng = np.random.default_rng(1)
    drawn = [clustered(rng) for _ in range(SIMULATIONS)]
    alone = [mean_interval(s, w, [str(j) for j in range(len(s))], seed=i) for i, (s, w, _) in enumerate(drawn)]
    assert covered(alone, TRUTH) < 0.85


def test_the_interval_of_paired_differences_covers_the_truth_and_is_narrower_than_unpaired() -> None:
    rng = np.random.default_rng(2)
    metrics, unpaired = [], []
    for i in range(SIMULATIONS):
        theirs, weights, clusters = clustered(rng)
        gained = {name: 0.2 + 0.1 * rng.normal() for name in dict.fromkeys(clusters)}
        ours = theirs + [gained[name] for name in clusters]
        metrics.append(paired_interval(ours, theirs, weights, clusters, seed=i))
        unpaired.append(mean_interval(ours, weights, clusters, seed=i))
    assert 0.92 <= covered(metrics, 0.2) <= 0.98
    widths = [np.mean([m.high - m.low for m in of]) for of in (metrics, unpaired)]  # type: ignore[operator]
    assert widths[0] < widths[1] / 4


def test_a_ratio_is_of_sums_and_its_interval_covers_the_true_one() -> None:
    """Bits per byte: documents of very different length, whose rate hangs on their length."""
    rng = np.random.default_rng(3)
    hits = []
    for i in range(SIMULATIONS):
        sizes = rng.choice([10.0, 20.0, 30.0], 80)
        rates = sizes / 10 + rng.normal(size=80)
        low, high = bootstrap_ratio(sizes * rates, sizes, seed=i)
        assert low is not None
        assert high is not None
        # E[size * rate] / E[size] = (10 * 1 + 20 * 2 + 30 * 3) / (10 + 20 + 30)
        hits.append(low <= 140 / 60 <= high)
    assert 0.92 <= np.mean(hits) <= 0.98
    assert weighted_mean([1, 2, 3], [10, 20, 30]) == pytest.approx(140 / 60)


def test_a_wider_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(4).normal(size=50)
    intervals = [bootstrap_ratio(values, np.ones(50), level=level) for level in (0.5, 0.95, 0.99)]
    widths = [high - low for low, high in intervals]  # type: ignore[operator]
    assert widths == sorted(widths)
    assert len(set(widths)) == 3


def test_one_cluster_gives_a_value_and_no_interval() -> None:
    metric = mean_interval([1.0, 3.0], [1.0, 1.0], ["a", "a"])
    assert metric == Metric(2.0, None, None, 1)
    assert paired_interval([2.0], [1.0], [1.0], ["a"]) == Metric(1.0, None, None, 1)


def test_the_mean_is_of_rows_by_weight_and_not_of_clusters() -> None:
    metric = mean_interval([1.0, 1.0, 4.0], [1.0, 1.0, 2.0], ["a", "a", "b"])
    assert metric.value == 2.5
    assert metric.n == 2
    assert metric.low == 1.0
    assert metric.high == 4.0


def test_clusters_are_summed_in_the_order_in_which_they_appear() -> None:
    names, sums = cluster_sums(np.array([1.0, 2.0, 4.0, 8.0]), ["b", "a", "b", "c"])
    assert names == ["b", "a", "c"]
    assert sums.tolist() == [5.0, 2.0, 8.0]


def test_equal_seeds_give_equal_intervals_and_others_differ() -> None:
    rows = clustered(np.random.default_rng(5))
    assert mean_interval(*rows, seed=7) == mean_interval(*rows, seed=7)
    assert mean_interval(*rows, seed=7).low != mean_interval(*rows, seed=8).low
    assert mean_interval(*rows, seed=7).value == mean_interval(*rows, seed=8).value


def test_equal_scores_have_no_spread() -> None:
    metric = mean_interval(np.full(20, 0.5), np.ones(20), [str(i) for i in range(20)])
    assert metric == Metric(0.5, 0.5, 0.5, 20)


@pytest.mark.parametrize("clusters", [50, 10_000])
def test_two_thousand_resamples_take_less_than_two_seconds(clusters: int) -> None:
    values = np.random.default_rng(6).normal(size=clusters)
    began = time.perf_counter()
    bootstrap_ratio(values, np.ones(clusters))
    assert time.perf_counter() - began < 2


def test_the_size_of_a_block_does_not_decide_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(7).normal(size=100)
    whole = bootstrap_ratio(values, np.ones(100))
    monkeypatch.setattr(stats, "BLOCK", 1)
    assert bootstrap_ratio(values, np.ones(100)) == pytest.approx(whole, abs=0.05)
