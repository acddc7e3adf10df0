"""Quantiles and tails of Student's t."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.stats import (
    t_quantile,
    t_two_sided,
)

Peer = Callable[[str], ModuleType]


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
