"""Samples: what the student writes to a set of beginnings. Knows no network; a writer is handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..errors import UsageError
from ..records import Document, Sample

Write = Callable[[Sequence[str], Sequence[int]], Iterable[str]]
Beginning = Callable[[str], str]


def held_out_prompts(documents: Sequence[Document], count: int, beginning: Beginning) -> list[tuple[str, str]]:
    """Ids and beginnings of held-out documents, spread evenly; all serve once before one serves twice."""
    if not documents:
        raise UsageError("there are no held-out documents to begin samples with", "Raise data.held_out.")
    rounds, rest = divmod(count, len(documents))
    spread = [documents[i * len(documents) // rest] for i in range(rest)]
    chosen = [*documents] * rounds + spread
    return [(document.id, beginning(document.text)) for document in chosen]


def file_prompts(path: Path, count: int) -> list[tuple[str, str]]:
    """Ids and prompts from a file with one prompt a line, from the top again when there are too few."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
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
