"""Prompts that do not come from the corpus: drawn from a template, or read from a file of one's own.

Knows neither teachers nor requests. Equal seeds, equal prompts; a draw never comes twice.
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
    """So many prompts, no two with the same words and features."""
    lists = [_words(template, slot) for slot in template.slots]
    choices = _feature_choices(template)
    sizes = [*map(len, lists), len(choices)]
    if (possible := math.prod(sizes)) < count:
        raise RecipeError(
            f"teacher.prompts = {count}, but the template has {possible:,} different draws",
            "Give it more words, or ask for fewer prompts.",
        )
    rng = random.Random(f"template:{seed}")
    return [_filled(template, lists, choices, draw) for draw in _distinct(sizes, count, rng)]


def _distinct(sizes: Sequence[int], count: int, rng: random.Random) -> list[list[int]]:
    """Different choices of one from each list; each choice is one number."""
    numbers = _numbers(math.prod(sizes), count, rng)
    return [[number // math.prod(sizes[:i]) % size for i, size in enumerate(sizes)] for number in numbers]


def _numbers(possible: int, count: int, rng: random.Random) -> Sequence[int]:
    """Different numbers below one that may be larger than Python lets a range be."""
    if possible <= sys.maxsize:
        return rng.sample(range(possible), count)
    numbers: dict[int, None] = {}  # a set that keeps its order
    while len(numbers) < count:
        numbers[rng.randrange(possible)] = None
    return list(numbers)


def _filled(
    template: TemplateTable, lists: Sequence[Sequence[str]], choices: Sequence[Sequence[str]], draw: Sequence[int]
) -> str:
    words = {slot: words[at] for slot, words, at in zip(template.slots, lists, draw, strict=False)}
    features = " ".join(template.features[name] for name in choices[draw[-1]])
    return template.text.format(**words, features=features).replace("  ", " ").strip()


def _feature_choices(template: TemplateTable) -> list[tuple[str, ...]]:
    """The sets of features that a prompt may have, up to the most; none where the text has no place for them."""
    from itertools import combinations

    if "{features}" not in template.text:
        return [()]
    sizes = range(min(template.most_features, len(template.features)) + 1)
    return [chosen for size in sizes for chosen in combinations(template.features, size)]


def _words(template: TemplateTable, slot: str) -> list[str]:
    """The words of a slot: the recipe's list, a file, or the bundled ones."""
    words = template.words.get(slot, WORDS.get(slot, []))
    found = _lines(Path(words)) if isinstance(words, str) else words
    return list(dict.fromkeys(word for word in map(str.strip, found) if word))


def read_prompts(path: Path, count: int) -> list[Prompt]:
    """The first prompts of a file, or all with a count of 0: lines of text, or JSON lines with prompt or messages."""
    rows: list[tuple[int, str]] = [(number, line) for number, line in enumerate(_lines(path), 1) if line.strip()]
    if not rows:
        raise DataError(f"{path} holds no prompts", "Write one a line.")
    wanted = islice(rows, count or None)
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        return [line for _, line in wanted]
    return [_row(line, f"{path}, line {number}") for number, line in wanted]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").replace("\r\n", "\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "Is it a file of text?") from error


def _row(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}", "Mend or remove it.") from error
    if isinstance(row, str):
        return row
    if isinstance(row, Mapping) and isinstance(row.get("prompt"), str):
        return str(row["prompt"])
    turns = row.get("messages") if isinstance(row, Mapping) else None
    if isinstance(turns, list) and turns and all(map(_is_turn, turns)):
        return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)
    raise DataError(f"{where} has neither prompt nor messages", 'Write {"prompt": "..."} in each line.')


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
