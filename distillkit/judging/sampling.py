"""Samples: what the student writes to a set of beginnings. Knows no network; a writer is handed in.

What is to be written is a list of rows first, each with its prompt, its seed and its temperature, so that rows which
somebody wrote before need not be written again, and a plan can count them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.errors import UsageError
from ..core.records import Document, Sample

Write = Callable[[Sequence[str], Sequence[int], float], Iterable[str]]
Beginning = Callable[[str], str]
STORIES = "stories"  # the word for the beginnings that ship with distillkit


@dataclass(frozen=True)
class Row:
    """One sample that is to be written."""

    id: str
    prompt: str
    seed: int
    temperature: float

    @property
    def key(self) -> tuple[str, int, float]:
        """What decides the sample, beside the student and how it draws."""
        return self.prompt, self.seed, self.temperature

    def sample(self, completion: str) -> Sample:
        """The sample, once it is written."""
        return Sample(self.id, self.prompt, completion, self.seed, self.temperature)


def held_out_prompts(documents: Sequence[Document], count: int, beginning: Beginning) -> list[tuple[str, str]]:
    """Ids and beginnings of held-out documents, spread evenly; all serve once before one serves twice."""
    if not documents:
        raise UsageError("there are no held-out documents to begin samples with", "Raise data.held_out.")
    rounds, rest = divmod(count, len(documents))
    spread = [documents[i * len(documents) // rest] for i in range(rest)]
    chosen = [*documents] * rounds + spread
    return [(document.id, beginning(document.text)) for document in chosen]


def story_prompts(count: int) -> list[tuple[str, str]]:
    """Ids and texts of the beginnings that ship with distillkit, from the top again when there are too few."""
    return _numbered(STORIES, stories(), count)


def stories() -> list[str]:
    """The beginnings of children's stories that ship with distillkit; most are cut in the middle of a sentence."""
    text = resources.files("distillkit.judging").joinpath("stories.txt").read_text(encoding="utf-8")
    return text.splitlines()


def file_prompts(path: Path, count: int) -> list[tuple[str, str]]:
    """Ids and prompts from a file with one prompt a line, from the top again when there are too few."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the prompts in {path} cannot be read: {error}") from error
    if not lines:
        raise UsageError(f"{path} holds no prompts", "Write one a line.")
    return _numbered(path.name, lines, count)


def _numbered(name: str, lines: Sequence[str], count: int) -> list[tuple[str, str]]:
    return [(f"{name}:{i % len(lines) + 1}", lines[i % len(lines)]) for i in range(count)]


def rows(
    prompts: Sequence[tuple[str, str]], count: int, seed: int, repeats: int = 1, temperatures: Sequence[float] = (1.0,)
) -> list[Row]:
    """At each temperature `count` samples, `repeats` of each prompt in turn; a prompt that occurs again goes on.

    A sample's seed hangs on its id alone, so that what is written to a prompt stays when more prompts are asked for.
    """
    times: dict[str, int] = {}
    found = []
    for temperature in temperatures:
        for name, prompt in islice((pair for pair in prompts for _ in range(repeats)), count):
            own = f"{name}#{times.get(name, 0)}"
            times[name] = times.get(name, 0) + 1
            found.append(Row(own, prompt, seed_of(seed, own), temperature))
    return found


def seed_of(seed: int, name: str) -> int:
    """A seed for one sample, unlike its neighbours'."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")


def samples(wanted: Sequence[Row], write: Write, kept: Mapping[Any, str] | None = None) -> list[Sample]:
    """A sample a row: those that are kept, by their keys, and the others written now, a temperature at a time."""
    known = dict(kept or {})
    for temperature in dict.fromkeys(row.temperature for row in wanted):
        due = [row for row in wanted if row.temperature == temperature and row.key not in known]
        texts = write([row.prompt for row in due], [row.seed for row in due], temperature) if due else []
        known |= {row.key: text for row, text in zip(due, texts, strict=True)}
    return [row.sample(known[row.key]) for row in wanted]
