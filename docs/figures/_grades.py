"""Bits per byte of each held-out tale, for figures about judging."""

from __future__ import annotations

from _runs import run

from distillkit.core.files import read_jsonl


def bits_per_byte(name: str) -> dict[str, tuple[float, float]]:
    """Bits per byte and number of bytes by tale."""
    rows = [row for row in read_jsonl(run(name).grades) if row["criterion"] == "bits_per_byte" and "document" in row]
    return {row["document"]: (row["score"], row["weight"]) for row in rows}
