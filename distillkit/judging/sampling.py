"""Plans and generates the samples that judges grade. Knows no network; the caller passes a generate function.

Samples are planned first, each with prompt, seed and temperature, so that a plan can count them and samples that were
generated before can be reused.
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

Generate = Callable[[Sequence[str], Sequence[int], float], Iterable[str]]  # prompts, seeds, temperature -> completions
TakePrompt = Callable[[str], str]  # a document's text -> its beginning
STORIES = "stories"  # the value of `sampling.prompts` for the prompts that ship with distillkit


@dataclass(frozen=True)
class PlannedSample:
    """A sample that is to be generated."""

    id: str
    prompt: str
    seed: int
    temperature: float

    @property
    def key(self) -> tuple[str, int, float]:
        """What determines the sample besides the student and its sampling options."""
        return self.prompt, self.seed, self.temperature

    def sample(self, completion: str) -> Sample:
        """The sample with its completion."""
        return Sample(self.id, self.prompt, completion, self.seed, self.temperature)


def held_out_prompts(documents: Sequence[Document], count: int, take_prompt: TakePrompt) -> list[tuple[str, str]]:
    """Ids and beginnings of evenly spaced held-out documents. No document repeats before all were used."""
    if not documents:
        raise UsageError("there are no held-out documents to take prompts from", "Raise data.held_out.")
    rounds, rest = divmod(count, len(documents))
    spread = [documents[i * len(documents) // rest] for i in range(rest)]
    chosen = [*documents] * rounds + spread
    return [(document.id, take_prompt(document.text)) for document in chosen]


def story_prompts(count: int) -> list[tuple[str, str]]:
    """Ids and texts of the prompts that ship with distillkit, repeated if there are too few."""
    return _numbered(STORIES, load_story_prompts(), count)


def load_story_prompts() -> list[str]:
    """The beginnings of children's stories that ship with distillkit; most end in the middle of a sentence."""
    text = resources.files("distillkit.judging").joinpath("stories.txt").read_text(encoding="utf-8")
    return text.splitlines()


def file_prompts(path: Path, count: int) -> list[tuple[str, str]]:
    """Ids and prompts from a file with one prompt per line, repeated if there are too few."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the prompts in {path} cannot be read: {error}") from error
    if not lines:
        raise UsageError(f"{path} contains no prompts", "Write one prompt per line.")
    return _numbered(path.name, lines, count)


def _numbered(name: str, lines: Sequence[str], count: int) -> list[tuple[str, str]]:
    return [(f"{name}:{i % len(lines) + 1}", lines[i % len(lines)]) for i in range(count)]


def plan_samples(
    prompts: Sequence[tuple[str, str]], count: int, seed: int, repeats: int = 1, temperatures: Sequence[float] = (1.0,)
) -> list[PlannedSample]:
    """`count` samples at each temperature, `repeats` of each prompt in turn. Samples of a prompt are numbered.

    The seed of a sample depends only on `seed` and the sample's id, so that samples stay the same if more are planned.
    """
    numbers: dict[str, int] = {}
    planned = []
    for temperature in temperatures:
        for name, prompt in islice((pair for pair in prompts for _ in range(repeats)), count):
            sample_id = f"{name}#{numbers.get(name, 0)}"
            numbers[name] = numbers.get(name, 0) + 1
            planned.append(PlannedSample(sample_id, prompt, derive_seed(seed, sample_id), temperature))
    return planned


def derive_seed(seed: int, name: str) -> int:
    """A 32-bit seed derived from a seed and a name by SHA-256."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")


def generate_samples(
    planned: Sequence[PlannedSample], generate: Generate, existing: Mapping[Any, str] | None = None
) -> list[Sample]:
    """The planned samples. Existing completions are reused by key, the others are generated per temperature."""
    completions = dict(existing or {})
    for temperature in dict.fromkeys(one.temperature for one in planned):
        missing = [one for one in planned if one.temperature == temperature and one.key not in completions]
        texts = generate([one.prompt for one in missing], [one.seed for one in missing], temperature) if missing else []
        completions |= {one.key: text for one, text in zip(missing, texts, strict=True)}
    return [one.sample(completions[one.key]) for one in planned]
