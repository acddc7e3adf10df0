"""Paired differences, sign-flip and bootstrap tests, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.stats import (
    Difference,
    bootstrap_test,
    holm,
    paired_difference,
    sign_flip_test,
    smallest_detectable,
    verdict,
)

Peer = Callable[[str], ModuleType]
Rng = np.random.Generator


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
    with pytest.raises(ValueError, match="no key in common"):
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
