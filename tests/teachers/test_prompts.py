"""Prompts drawn from templates, and prompts from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distillkit.core.errors import RecipeError, UsageError
from distillkit.recipe.schema import BUILTIN_SLOTS, TemplateTable
from distillkit.teachers.asking import prompts
from distillkit.teachers.asking.template_words import WORDS


def test_draws_are_seeded_and_no_two_are_alike() -> None:
    template = TemplateTable(text="{verb} {noun}{features}", words={"verb": ["go", "run"], "noun": ["fox", "owl"]})
    few = TemplateTable(text="{verb} {noun}", words={"verb": ["go", "run"], "noun": ["fox", "owl"]})
    assert sorted(prompts.sample_prompts(few, 4, 1)) == ["go fox", "go owl", "run fox", "run owl"]
    assert (
        prompts.sample_prompts(template, 20, 1)
        == prompts.sample_prompts(template, 20, 1)
        != prompts.sample_prompts(template, 20, 2)
    )
    many = prompts.sample_prompts(TemplateTable(), 5000, 7)
    assert len(set(many)) == 5000
    assert not any("{" in text or "  " in text for text in many)
    with pytest.raises(RecipeError, match="has only 4 different prompts"):
        prompts.sample_prompts(few, 5, 1)


def test_a_template_may_have_more_draws_than_a_range_has_numbers() -> None:
    slots = [f"s{i}" for i in range(9)]
    words = {slot: [f"{slot}-{i}" for i in range(200)] for slot in slots}
    template = TemplateTable(text=" ".join(f"{{{slot}}}" for slot in slots), words=words)
    many = prompts.sample_prompts(template, 1000, 7)
    assert len(set(many)) == 1000
    assert (
        len({word for text in many for word in text.split(" ")}) > 1700
    )  # of 1,800: no slot keeps to some of its words
    assert prompts.sample_prompts(template, 1000, 7) == many != prompts.sample_prompts(template, 1000, 8)


def test_draws_never_change_between_versions() -> None:
    """Cached answers hang on them."""
    words = {"verb": [f"v{i}" for i in range(50)], "noun": [f"n{i}" for i in range(50)]}
    assert prompts.sample_prompts(TemplateTable(text="{verb} {noun}", words=words), 4, 1) == [
        "v48 n36",
        "v41 n47",
        "v5 n8",
        "v29 n30",
    ]


def test_bundled_words_fill_the_bundled_slots() -> None:
    assert set(WORDS) == set(BUILTIN_SLOTS)
    assert all(len(words) == len(set(words)) > 100 for words in WORDS.values())


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"text": "{verp}"}, "Did you mean 'verb'?"),
        ({"text": "{verb}", "words": {"vreb": ["a"]}}, "Did you mean 'verb'?"),
        ({"text": "{verb}", "words": {"verb": []}}, "words.verb is empty"),
        ({"text": "{verb"}, "expected '}'"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("?", r"\?").replace("{", r"\{")):
        TemplateTable(**table)


def test_prompts_of_a_file_are_lines_or_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\r\n\ntwo\n")
    assert prompts.read_prompts(tmp_path / "a.txt", 0) == ["one", "two"]
    assert prompts.read_prompts(tmp_path / "a.txt", 1) == ["one"]
    turn = {"role": "user", "content": "hi"}
    rows = ['"one"', '{"prompt": "two"}', json.dumps({"messages": [turn]})]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert prompts.read_prompts(tmp_path / "a.jsonl", 0) == ["one", "two", (turn,)]
    (tmp_path / "a.jsonl").write_text('{"prompts": "one"}')
    with pytest.raises(UsageError, match="line 1 has neither prompt nor messages"):
        prompts.read_prompts(tmp_path / "a.jsonl", 0)
