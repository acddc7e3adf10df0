"""Formats numbers, names and times for people: on a terminal, in Markdown, on a page.

Knows numbers and text, and nothing of reports. Text from a run is untrusted until `printable` has escaped it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.text import one_line, printable

__all__ = [
    "Entry",
    "abbreviate",
    "format_bytes",
    "format_count",
    "format_interval",
    "format_number",
    "format_time",
    "metric_title",
    "one_line",
    "printable",
    "readable_name",
]


@dataclass(frozen=True)
class Entry:
    """One line of a report: a name, a formatted value, and an optional note."""

    name: str
    value: str
    note: str = ""


def format_number(value: float | None, decimals: int | None = None) -> str:
    """A number with the given decimals, by default with four significant digits."""
    if value is None or not math.isfinite(value):
        return "unknown"
    if abs(value) >= 1e7 or 0 < abs(value) < 1e-5:
        return f"{value:.3g}"
    if decimals is None:
        decimals = 4 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text


def format_interval(metric: Mapping[str, Any], signed: bool = False) -> str:
    """A value with its confidence interval, `2.01 [1.98, 2.05]`, with no more digits than the interval supports."""
    value, low, high = (metric.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "unknown"
    sign = "+" if signed and value > 0 else ""
    if low is None or high is None:
        return sign + format_number(value)
    decimals = _decimals(value, high - low)
    return f"{sign}{format_number(value, decimals)} [{format_number(low, decimals)}, {format_number(high, decimals)}]"


def _decimals(value: float, width: float) -> int | None:
    """The number of decimals that is meaningful for an interval of this width."""
    if not math.isfinite(width) or width <= 0:
        return None
    least = 2 if abs(value) < 10 else int(abs(value) < 100)
    return min(6, max(least, -math.floor(math.log10(width / 5))))


def format_count(value: Any, unit: str = "") -> str:
    """A whole number with its unit: `1 document`, `3,000 documents`."""
    number = f"{value:,}" if isinstance(value, int) else one_line(value)
    return f"{number} {unit if value == 1 else unit + 's'}" if unit else number


def format_bytes(value: float) -> str:
    """A number of bytes with a decimal unit: `1.5 MB`."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.{0 if units[0] == 'bytes' else 1}f} {units[0]}"


def abbreviate(value: int) -> str:
    """A large number in three significant digits: `1.07M`."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:  # 999,500 rounds to 1M
            return f"{value / limit:.3g}{letter}"
    return str(value)


def readable_name(name: str) -> str:
    """The name of a metric or key with spaces instead of underscores."""
    return one_line(name).replace("_", " ")


def metric_title(judge: str, metric: str) -> str:
    """`judge: metric`, or the metric alone if both have the same name."""
    return readable_name(metric) if judge == metric else f"{one_line(judge)}: {readable_name(metric)}"


def format_time(stamp: Any) -> str:
    """A recorded UTC time to the minute: `2026-11-30 09:15 UTC`."""
    text = one_line(stamp)
    return f"{text[:10]} {text[11:16]} UTC" if len(text) == 20 and text.endswith("Z") else text
