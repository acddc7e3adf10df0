"""Figures and names as people read them: on a terminal, in Markdown, on a page.

Knows numbers and text, and nothing of reports. Whatever a run says is hostile until `clean` has seen it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.text import one_line, printable

__all__ = ["Fact", "printable", "count", "figure", "interval", "label", "one_line", "short", "size", "title", "when"]


@dataclass(frozen=True)
class Fact:
    """One line of a report: what, how much, and what to know about it."""

    name: str
    value: str
    note: str = ""


def figure(value: float | None, decimals: int | None = None) -> str:
    """A number, as precisely as asked, or else with four digits that matter."""
    if value is None or not math.isfinite(value):
        return "not known"
    if abs(value) >= 1e7 or 0 < abs(value) < 1e-5:
        return f"{value:.3g}"
    if decimals is None:
        decimals = 4 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text


def interval(metric: Mapping[str, Any], signed: bool = False) -> str:
    """A figure with its interval, `2.01 [1.98, 2.05]`, no more precise than the interval allows."""
    value, low, high = (metric.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "not known"
    sign = "+" if signed and value > 0 else ""
    if low is None or high is None:
        return sign + figure(value)
    decimals = _decimals(value, high - low)
    return f"{sign}{figure(value, decimals)} [{figure(low, decimals)}, {figure(high, decimals)}]"


def _decimals(value: float, width: float) -> int | None:
    """How many decimals still say something, when the interval is this wide."""
    if not math.isfinite(width) or width <= 0:
        return None
    least = 2 if abs(value) < 10 else int(abs(value) < 100)
    return min(6, max(least, -math.floor(math.log10(width / 5))))


def count(value: Any, unit: str = "") -> str:
    """A whole number with its unit: `1 document`, `3,000 documents`."""
    number = f"{value:,}" if isinstance(value, int) else one_line(value)
    return f"{number} {unit if value == 1 else unit + 's'}" if unit else number


def size(value: float) -> str:
    """Bytes as people say them."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.{0 if units[0] == 'bytes' else 1}f} {units[0]}"


def short(value: int) -> str:
    """A large number in three digits: 1.07M."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:  # 999,500 is rounded to a million, and told as such
            return f"{value / limit:.3g}{letter}"
    return str(value)


def label(name: str) -> str:
    """The name of a metric or key, for reading."""
    return one_line(name).replace("_", " ")


def title(judge: str, metric: str) -> str:
    """A metric under the name of its judge, unless that would say the same twice."""
    return label(metric) if judge == metric else f"{one_line(judge)}: {label(metric)}"


def when(stamp: Any) -> str:
    """A time as people read it, from the one that was recorded."""
    text = one_line(stamp)
    return f"{text[:10]} {text[11:16]} UTC" if len(text) == 20 and text.endswith("Z") else text
