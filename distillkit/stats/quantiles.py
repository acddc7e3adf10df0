"""Quantiles and tails of Student's t and the normal distribution, to about twelve digits, without SciPy."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

TINY = 1e-300
CLOSE = 1e-13
NORMAL = NormalDist()


def normal_quantile(p: float) -> float:
    """The p-quantile of the standard normal distribution."""
    return NORMAL.inv_cdf(p)


def t_two_sided(t: float, df: float) -> float:
    """The two-sided tail probability P(|T| >= |t|) of the t distribution."""
    if not math.isfinite(df):
        return math.erfc(abs(t) / math.sqrt(2))
    return _incomplete_beta(df / 2, 0.5, df / (df + t * t), t * t / (df + t * t)) if math.isfinite(t) else 0.0


@lru_cache(maxsize=1024)
def t_quantile(p: float, df: float) -> float:
    """The p-quantile of the t distribution with df degrees of freedom."""
    if not 0 < p < 1 or df <= 0:
        raise ValueError(f"expected 0 < p < 1 and df > 0, found p = {p} and df = {df}")
    if p == 0.5:
        return 0.0
    if not math.isfinite(df):
        return normal_quantile(p)
    tail = 2 * min(p, 1 - p)
    found = _solve_tail(tail, df)
    return found if p > 0.5 else -found


def _solve_tail(tail: float, df: float) -> float:
    """The t with this two-sided tail probability, by Newton's method within a shrinking bracket."""
    low, high = 0.0, 1.0
    while t_two_sided(high, df) > tail:
        low, high = high, 2 * high
    t = (low + high) / 2
    for _ in range(200):
        over = t_two_sided(t, df) - tail
        low, high = (t, high) if over > 0 else (low, t)
        following = t + over / (2 * _t_density(t, df))
        following = following if low < following < high else (low + high) / 2
        if abs(following - t) <= CLOSE * following:
            return following
        t = following
    return t


def _t_density(t: float, df: float) -> float:
    constant = _log_gamma_ratio(df / 2) - math.log(df * math.pi) / 2
    return math.exp(constant - (df + 1) / 2 * math.log1p(t * t / df))


def _log_gamma_ratio(a: float) -> float:
    """log gamma(a + 1/2) - log gamma(a), by a series for large a, where the difference would lose digits."""
    if a < 30:
        return math.lgamma(a + 0.5) - math.lgamma(a)
    return math.log(a) / 2 - 1 / (8 * a) + 1 / (192 * a**3) - 1 / (640 * a**5)


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """The regularized incomplete beta function at x = 1 - rest, where a or b is 1/2, by its continued fraction."""
    if x <= 0 or rest <= 0:
        return float(rest <= 0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, rest, x)
    constant = _log_gamma_ratio(b if a == 0.5 else a) - math.log(math.pi) / 2
    logs = [math.log(one) if one < other else math.log1p(-other) for one, other in ((x, rest), (rest, x))]
    return math.exp(a * logs[0] + b * logs[1] + constant) * _continued_fraction(a, b, x) / a


def _continued_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for term in (even, odd):
            d, c = 1 / _nonzero(1 + term * d), _nonzero(1 + term / c)
            change = c * d
            value *= change
        if abs(change - 1) < 1e-16:
            break
    return value


def _nonzero(value: float) -> float:
    """The value, or a tiny number instead of zero, to divide by."""
    return value if abs(value) > TINY else TINY
