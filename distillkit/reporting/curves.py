"""Loss curves with few points, for pages that show many. Knows rows of `metrics.jsonl`, and nothing of pictures.

A point is the mean of the steps around it, never a step picked out of many, and says how many steps those are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

POINTS = 160


def thinned(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Training and validation as pairs of step and nats a token; `each` is how many rows a point stands for."""
    found = {kind: _series(rows, kind) for kind in ("train", "validation")}
    return {
        "training": _means(found["train"]),
        "validation": _means(found["validation"]),
        "each": -(-len(found["train"]) // POINTS),
    }


def _series(rows: Sequence[Mapping[str, Any]], kind: str) -> list[tuple[float, float]]:
    """Steps and losses of one kind, in order, without those that are missing."""
    pairs: list[tuple[Any, Any]] = [(row.get("step"), _loss(row)) for row in rows if row.get("kind") == kind]
    return sorted((float(step), float(loss)) for step, loss in pairs if _number(step) and _number(loss))


def _loss(row: Mapping[str, Any]) -> Any:
    """The cross-entropy with the text where it was logged: a mixer's whole loss means something else in each recipe."""
    return (row.get("terms") or {}).get("hard", row.get("loss"))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _means(pairs: Sequence[tuple[float, float]]) -> list[list[float]]:
    """At most so many points, each the mean of equally many neighbours."""
    if not pairs:
        return []
    parts = np.array_split(np.asarray(pairs, np.float64), min(len(pairs), POINTS))
    means = [part.mean(axis=0) for part in parts]
    return [[round(float(step), 1), float(f"{loss:.5g}")] for step, loss in means]
