"""What each held-out tale was worth to a run, in bits a byte: what pictures of judging are drawn of."""

from __future__ import annotations

from _runs import run

from distillkit.core.files import read_jsonl


def bits(name: str) -> dict[str, tuple[float, float]]:
    """Of each tale the bits a byte, and how many bytes."""
    rows = [row for row in read_jsonl(run(name).grades) if row["criterion"] == "bits_per_byte" and "document" in row]
    return {row["document"]: (row["score"], row["weight"]) for row in rows}
