"""Intervals that cover what they say they cover, and figures that SciPy and statsmodels find too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core.records import Metric
from distillkit.stats import (
    Difference,
    bootstrap_ratio,
    bootstrap_test,
    bradley_terry,
    cluster_sums,
    components,
    holm,
    mean_interval,
    means,
    paired_difference,
    paired_interval,
    ratio,
    sign_flip_test,
    smallest_detectable,
    spearman,
    t_quantile,
    t_two_sided,
    verdict,
    weighted_kappa,
    weighted_mean,
    wilson,
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


# -------------------------------------------------------------------------------------------------- quantiles


@settings(deadline=None)
@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.5, 1e5))
def test_a_quantile_of_t_is_where_its_tail_says(p: float, df: float) -> None:
    t = t_quantile(p, df)
    assert t_two_sided(t, df) == pytest.approx(2 * min(p, 1 - p), rel=1e-8)
    assert (t > 0) == (p > 0.5) or t == 0


def test_quantiles_of_t_are_scipys(peer: Peer) -> None:
    scipy = peer("scipy.stats")
    for df in (0.7, 1, 1.5, 2, 3, 7.3, 30, 59.9, 60.1, 1000, 1e5):
        for p in (0.5, 0.6, 0.8, 0.975, 0.9995, 0.01):
            assert t_quantile(p, df) == pytest.approx(scipy.t.ppf(p, df), rel=1e-9, abs=1e-12)
        for t in (0.0, 0.1, 1.0, 3.0, 30.0):
            assert t_two_sided(t, df) == pytest.approx(2 * scipy.t.sf(t, df), rel=1e-8)
    assert t_quantile(0.975, math.inf) == pytest.approx(scipy.norm.ppf(0.975))
    assert t_two_sided(2.0, math.inf) == pytest.approx(2 * scipy.norm.sf(2))


def test_a_quantile_of_nothing_is_refused() -> None:
    for p, df in ((0, 3), (1, 3), (0.5, 0)):
        with pytest.raises(ValueError, match="expected 0 < p < 1"):
            t_quantile(p, df)


# ------------------------------------------------------------------------------------------------------ pairs


def run(rng: Rng, luck: np.ndarray, gain: float = 0.0, noise: float = 0.8) -> dict[str, float]:
    """The grades of a run on prompts, some of which are harder than others."""
    return {
        f"p{i}": float(value) for i, value in enumerate(luck + gain + noise / math.sqrt(2) * rng.normal(size=len(luck)))
    }


def test_44_prompts_with_a_paired_spread_of_08_see_a_third_of_a_point() -> None:
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(200):
        luck = rng.normal(6, 2, 44)
        seen.append(paired_difference(run(rng, luck), run(rng, luck)).detectable)
    assert np.mean(seen) == pytest.approx(0.34, abs=0.015)  # type: ignore[arg-type]


def test_equal_runs_are_not_told_apart_and_twice_what_can_be_seen_is_seen() -> None:
    """Of 20 comparisons each: at least 18 without a verdict, at least 16 with the right one."""
    rng = np.random.default_rng(11)
    quiet, found = 0, 0
    for _ in range(20):
        luck = rng.normal(6, 2, 50)
        a, b = run(rng, luck), run(rng, luck)
        nothing = paired_difference(a, b)
        quiet += verdict(nothing, "higher") == "not distinguishable"
        better = run(rng, luck, gain=2 * nothing.detectable)  # type: ignore[operator]
        found += verdict(paired_difference(better, b), "higher") == "better"
    assert quiet >= 18
    assert found >= 16


def test_what_is_said_to_be_detectable_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(12)
    found = 0
    for _ in range(400):
        luck = rng.normal(6, 2, 30)
        gain = smallest_detectable(0.8 / math.sqrt(30), 29)
        found += verdict(paired_difference(run(rng, luck, gain), run(rng, luck)), "higher") == "better"
    assert 0.74 <= found / 400 <= 0.86


def test_the_same_pairs_say_the_same_the_other_way_round() -> None:
    rng = np.random.default_rng(13)
    luck = rng.normal(6, 2, 30)
    a, b = run(rng, luck, 1.0), run(rng, luck)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.value == -back.value
    assert (there.low, there.high) == (-back.high, -back.low)  # type: ignore[operator]
    assert (there.n, there.detectable) == (30, back.detectable)
    assert there.p == pytest.approx(back.p, abs=0.01)
    assert [verdict(one, "higher") for one in (there, back)] == ["better", "worse"]
    assert [verdict(one, "lower") for one in (there, back)] == ["worse", "better"]


def test_only_what_both_have_is_paired_by_cluster_and_weight() -> None:
    a = {"x#0": 3.0, "x#1": 5.0, "y#0": 4.0, "only": 100.0}
    b = {"x#0": 1.0, "x#1": 1.0, "y#0": 3.0, "other": 100.0}
    clusters = {key: key.partition("#")[0] for key in a}
    found = paired_difference(a, b, clusters, {**dict.fromkeys(a, 1.0), "y#0": 2.0})
    assert found.value == pytest.approx((2 + 4 + 2 * 1) / 4)
    assert found.n == 2
    assert found.p == 0.5  # two clusters: of four choices of signs, two are as far from 0
    with pytest.raises(ValueError, match="nothing is in both"):
        paired_difference({"a": 1.0}, {"b": 1.0})


def test_one_pair_says_nothing() -> None:
    found = paired_difference({"a": 1.0}, {"a": 0.0})
    assert found == Difference(1.0, None, None, None, 1, None)
    assert verdict(found) == "not distinguishable"


def test_equal_grades_are_no_difference_however_many_there_are() -> None:
    for n in (3, 40, 600):
        grades = {str(i): 5.0 for i in range(n)}
        found = paired_difference(grades, grades)
        assert (found.value, found.p, verdict(found)) == (0.0, 1.0, "not distinguishable")


def test_sign_flips_are_scipys(peer: Peer) -> None:
    scipy = peer("scipy.stats")
    rng = np.random.default_rng(5)
    for n in (6, 10, 40):
        values = rng.normal(0.4, 1, n)
        theirs = scipy.permutation_test(
            (values,),
            lambda x, axis: x.sum(axis=axis),
            permutation_type="samples",
            n_resamples=20_000,
            rng=1,
            vectorized=True,
        )
        assert sign_flip_test(values) == pytest.approx(theirs.pvalue, abs=1e-12 if n < 13 else 0.015)


def test_chance_alone_gives_every_p_equally_often() -> None:
    rng = np.random.default_rng(6)
    ps = np.array([sign_flip_test(rng.standard_t(3, 12)) for _ in range(1000)])
    assert abs((ps <= 0.05).mean() - 0.05) < 0.02
    assert abs((ps <= 0.5).mean() - 0.5) < 0.05


def test_from_many_clusters_on_students_t_says_what_sign_flips_say() -> None:
    rng = np.random.default_rng(7)
    values = rng.normal(0.07, 1, 501)
    many = paired_difference({str(i): float(v) for i, v in enumerate(values)}, {str(i): 0.0 for i in range(501)})
    assert many.p == pytest.approx(sign_flip_test(values), abs=0.02)


def test_the_bootstrap_test_finds_what_is_there_and_little_else() -> None:
    rng = np.random.default_rng(8)
    ps = [bootstrap_test(rng.normal(0, 1, 60), np.ones(60), seed=i) for i in range(200)]
    assert np.mean(np.array(ps) <= 0.05) < 0.1
    assert bootstrap_test(rng.normal(1, 1, 60), np.ones(60)) < 0.01


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=0, max_size=12))
def test_holm_never_lowers_a_p_and_keeps_their_order(ps: list[float]) -> None:
    adjusted = holm(ps)
    assert all(a >= p and a <= 1 for a, p in zip(adjusted, ps, strict=True))
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_holm_is_statsmodels(peer: Peer) -> None:
    multitest = peer("statsmodels.stats.multitest")
    ps = [0.01, 0.04, 0.03, 0.005, 0.9, 0.03]
    assert holm(ps) == pytest.approx(multitest.multipletests(ps, method="holm")[1].tolist())


# ------------------------------------------------------------------------------------------------------ rates


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
    with pytest.raises(ValueError, match="never met"):
        bradley_terry(np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0.0]]))


# -------------------------------------------------------------------------------------------------- agreement


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


# ------------------------------------------------------------------------------------------------- components


def nested(rng: Rng, prompts: int, samples: int, repeats: int) -> tuple[list[float], list[str], list[str]]:
    """Grades whose prompts differ by 1.5, samples by 1 and repeats by 0.5."""
    luck = rng.normal(0, 1.5, (prompts, 1, 1)) + rng.normal(0, 1, (prompts, samples, 1))
    scores = 6 + luck + rng.normal(0, 0.5, (prompts, samples, repeats))
    names = [(f"p{i}", f"p{i}#{j}") for i in range(prompts) for j in range(samples) for _ in range(repeats)]
    return scores.reshape(-1).tolist(), [p for p, _ in names], [s for _, s in names]


def test_components_are_found_again_also_where_repeats_are_missing() -> None:
    rng = np.random.default_rng(18)
    whole, gaps = [], []
    for _ in range(60):
        rows = nested(rng, 25, 4, 3)
        found = components(*rows)
        whole.append([found.prompt, found.sample, found.noise])
        kept = [i for i in range(len(rows[0])) if rng.random() < 0.7]
        some = components(*([part[i] for i in kept] for part in rows))  # type: ignore[arg-type]
        gaps.append([some.prompt, some.sample, some.noise])
    for told in (whole, gaps):
        assert np.mean(told, axis=0) == pytest.approx([2.25, 1.0, 0.25], rel=0.15)


def test_components_of_a_balanced_design_are_those_of_a_mixed_model(peer: Peer) -> None:
    models, pandas = peer("statsmodels.regression.mixed_linear_model"), peer("pandas")
    scores, prompts, samples = nested(np.random.default_rng(19), 20, 3, 2)
    frame = pandas.DataFrame({"score": scores, "prompt": prompts, "sample": samples})
    within = {"sample": "0 + C(sample)"}
    model = models.MixedLM.from_formula("score ~ 1", frame, groups="prompt", re_formula="1", vc_formula=within)
    fitted = model.fit()
    found = components(scores, prompts, samples)
    theirs = (float(fitted.cov_re.iloc[0, 0]), float(fitted.vcomp[0]), float(fitted.scale))
    assert (found.prompt, found.sample, found.noise) == pytest.approx(theirs, rel=1e-3)


def test_what_a_design_cannot_tell_is_none() -> None:
    one_grade = components([1.0, 2.0, 4.0, 3.0], ["a", "a", "b", "b"], ["a0", "a1", "b0", "b1"])
    assert one_grade.noise is None
    assert one_grade.sample == pytest.approx(0.5)  # the judge's noise is in it
    one_sample = components([1.0, 2.0, 4.0, 3.0], ["a", "a", "b", "b"], ["a0", "a0", "b0", "b0"])
    assert (one_sample.prompt, one_sample.sample, one_sample.noise) == (None, None, 0.5)
    assert one_sample.together == pytest.approx(2 - 0.5 / 2)  # of the means of a and b, less the noise in them
    assert one_sample.detectable(1) is None
    assert components([1.0, 2.0], ["a", "a"], ["a0", "a0"]).detectable(50) is None


def test_one_sample_a_prompt_still_says_what_a_design_sees_at_most() -> None:
    rng = np.random.default_rng(21)
    several, single = components(*nested(rng, 400, 3, 2)), components(*nested(rng, 400, 1, 2))
    assert single.together == pytest.approx(2.25 + 1, rel=0.15)
    assert single.detectable(50) > several.detectable(50)  # type: ignore[operator]


def test_more_repeats_help_against_noise_and_more_samples_against_both() -> None:
    found = components(*nested(np.random.default_rng(20), 50, 4, 3))
    plain, repeated, written = found.detectable(50), found.detectable(50, 1, 3), found.detectable(50, 4, 3)
    assert plain > repeated > written  # type: ignore[operator]
    assert found.detectable(200) == pytest.approx(plain / 2, rel=0.02)  # type: ignore[operator]


@pytest.fixture
def peer() -> Peer:
    """As in conftest, for modules inside of packages, too."""
    import importlib
    import os

    def find(name: str) -> ModuleType:
        if os.environ.get("DISTILLKIT_PEERS") != "required":
            pytest.importorskip(name.partition(".")[0], reason=f"the peer {name} is not installed")
        return importlib.import_module(name)

    return find
