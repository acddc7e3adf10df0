"""Prompts that are not from the corpus: sampled from a template, or read from a file.

Equal seeds give equal prompts, and no prompt is sampled twice. Knows neither teachers nor requests.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ...core.errors import DataError, RecipeError
from ...recipe.schema import TemplateTable
from .template_words import WORDS

Prompt = str | tuple[dict[str, str], ...]  # text, or messages


def sample_prompts(template: TemplateTable, count: int, seed: int) -> list[str]:
    """`count` prompts, no two with the same words and features."""
    word_lists = [_slot_words(template, slot) for slot in template.slots]
    feature_sets = _feature_sets(template)
    sizes = [*map(len, word_lists), len(feature_sets)]
    if (possible := math.prod(sizes)) < count:
        raise RecipeError(
            f"teacher.prompts = {count}, but the template has only {possible:,} different prompts",
            "Add words to its slots, or lower teacher.prompts.",
        )
    rng = random.Random(f"template:{seed}")
    return [_fill(template, word_lists, feature_sets, indices) for indices in _distinct_indices(sizes, count, rng)]


def _distinct_indices(sizes: Sequence[int], count: int, rng: random.Random) -> list[list[int]]:
    """`count` different combinations of one index into each list."""
    numbers = _distinct_numbers(math.prod(sizes), count, rng)
    return [[number // math.prod(sizes[:i]) % size for i, size in enumerate(sizes)] for number in numbers]


def _distinct_numbers(stop: int, count: int, rng: random.Random) -> Sequence[int]:
    """Different numbers in [0, stop), where `stop` may be too large for random.sample of a range."""
    if stop <= sys.maxsize:
        return rng.sample(range(stop), count)
    numbers: dict[int, None] = {}  # an ordered set
    while len(numbers) < count:
        numbers[rng.randrange(stop)] = None
    return list(numbers)


def _fill(
    template: TemplateTable,
    word_lists: Sequence[Sequence[str]],
    feature_sets: Sequence[Sequence[str]],
    indices: Sequence[int],
) -> str:
    """The template's text with one word for each slot and one set of features."""
    words = {slot: words[at] for slot, words, at in zip(template.slots, word_lists, indices, strict=False)}
    features = " ".join(template.features[name] for name in feature_sets[indices[-1]])
    return template.text.format(**words, features=features).replace("  ", " ").strip()


def _feature_sets(template: TemplateTable) -> list[tuple[str, ...]]:
    """All sets of at most `most_features` features; only the empty set if the text has no {features}."""
    from itertools import combinations

    if "{features}" not in template.text:
        return [()]
    sizes = range(min(template.most_features, len(template.features)) + 1)
    return [names for size in sizes for names in combinations(template.features, size)]


def _slot_words(template: TemplateTable, slot: str) -> list[str]:
    """The words of a slot without duplicates: the recipe's list or file, or else the bundled list."""
    given = template.words.get(slot, WORDS.get(slot, []))
    words = _lines(Path(given)) if isinstance(given, str) else given
    return list(dict.fromkeys(word for word in map(str.strip, words) if word))


def read_prompts(path: Path, count: int) -> list[Prompt]:
    """The first `count` prompts of a file, or all if it is 0: lines of text, or JSON lines with prompt or messages."""
    rows: list[tuple[int, str]] = [(number, line) for number, line in enumerate(_lines(path), 1) if line.strip()]
    if not rows:
        raise DataError(f"{path} contains no prompts", "Write one prompt per line.")
    wanted = islice(rows, count or None)
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        return [line for _, line in wanted]
    return [_row(line, f"{path}, line {number}") for number, line in wanted]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").replace("\r\n", "\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "Is it a text file?") from error


def _row(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON: {error}", "Correct or remove the line.") from error
    if isinstance(row, str):
        return row
    if isinstance(row, Mapping) and isinstance(row.get("prompt"), str):
        return str(row["prompt"])
    turns = row.get("messages") if isinstance(row, Mapping) else None
    if isinstance(turns, list) and turns and all(map(_is_turn, turns)):
        return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)
    raise DataError(f"{where} has neither prompt nor messages", 'Write {"prompt": "..."} on each line.')


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
