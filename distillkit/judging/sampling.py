"""Samples: what the student writes to a set of beginnings. Knows no network; a writer is handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..errors import UsageError
from ..records import Document, Sample

Write = Callable[[Sequence[str], Sequence[int]], Iterable[str]]
Beginning = Callable[[str], str]


def held_out_prompts(
    documents: Sequence[Document], count: int, beginning: Beginning
) -> list[tuple[str, str]]:
    """Ids and beginnings of held-out documents, spread over all of them; each document serves once a round."""
    step = max(1, len(documents) // max(1, count))
    spread = [document for start in range(step) for document in documents[start::step]]
    chosen = [spread[i % len(spread)] for i in range(count)]
    return [(document.id, beginning(document.text)) for document in chosen]


def file_prompts(path: Path, count: int) -> list[tuple[str, str]]:
    """Ids and prompts from a file with one prompt a line, from the top again when there are too few."""
    try:
        lines = [line.rstrip("\n") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the prompts in {path} cannot be read: {error}") from error
    if not lines:
        raise UsageError(f"{path} holds no prompts", "Write one a line.")
    return [(f"{path.name}:{i % len(lines) + 1}", lines[i % len(lines)]) for i in range(count)]


def samples(prompts: Sequence[tuple[str, str]], seed: int, write: Write) -> list[Sample]:
    """One sample a prompt; a prompt that occurs again is a further sample of it."""
    seeds = [seed + i for i in range(len(prompts))]
    times: dict[str, int] = {}
    rows = []
    texts = write([text for _, text in prompts], seeds)
    for (name, prompt), own, completion in zip(prompts, seeds, texts, strict=True):
        rows.append(Sample(f"{name}#{times.get(name, 0)}", prompt, completion, own))
        times[name] = times.get(name, 0) + 1
    return rows
