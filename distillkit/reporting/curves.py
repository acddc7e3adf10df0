"""Loss curves with few points, for pages with many runs. Knows rows of `metrics.jsonl`, and nothing of plots.

A point is the mean of consecutive logged steps, not a step picked out of many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MAX_POINTS = 160


def downsample(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Training and validation loss as [step, nats per token] pairs, and how many rows a training point averages."""
    found = {kind: _series(rows, kind) for kind in ("train", "validation")}
    return {
        "training": _average(found["train"]),
        "validation": _average(found["validation"]),
        "rows_per_point": -(-len(found["train"]) // MAX_POINTS),
    }


def _series(rows: Sequence[Mapping[str, Any]], kind: str) -> list[tuple[float, float]]:
    """Steps and losses of one kind of row in order of steps, without missing values."""
    pairs: list[tuple[Any, Any]] = [(row.get("step"), _loss(row)) for row in rows if row.get("kind") == kind]
    return sorted((float(step), float(loss)) for step, loss in pairs if _is_number(step) and _is_number(loss))


def _loss(row: Mapping[str, Any]) -> Any:
    """The cross-entropy with the text if it was logged: a mixer's total loss is not comparable between recipes."""
    return (row.get("terms") or {}).get("hard", row.get("loss"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _average(pairs: Sequence[tuple[float, float]]) -> list[list[float]]:
    """At most MAX_POINTS points, each the mean of an equal number of consecutive pairs."""
    if not pairs:
        return []
    parts = np.array_split(np.asarray(pairs, np.float64), min(len(pairs), MAX_POINTS))
    means = [part.mean(axis=0) for part in parts]
    return [[round(float(step), 1), float(f"{loss:.5g}")] for step, loss in means]
