"""The vocabulary: words that the field's terms have replaced occur neither in names nor in texts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from distillkit.cli.main import cli
from distillkit.recipe import schema
from support.paths import ROOT

CODE = ("distillkit", "plugins", "tests/support", "benchmarks")

# Words that no name and no text may contain, and what to use instead.
WORDS = {
    "opinion": "logits, distribution",
    "opinions": "logits, distributions",
    "chances": "probabilities",
    "surprise": "cross-entropy, KL(teacher ‖ student)",
    "heat": "temperature",
    "heats": "temperatures",
    "slope": "gradient",
    "slopes": "gradients",
    "lane": "CPU stream, worker thread",
    "lanes": "CPU streams, worker threads",
    "voice": "console, progress",
}
# Words that no name may contain; in a text they are ordinary English.
NAMES = {
    "nobody": "None, or what is missing",
    "begun": "started",
    "drawing": "sampler",
    "furnish": "prepare",
    "grown": "unflatten",
    "manner": "request policy",
    "proving": "verification",
    "recalled": "restore",
    "spelling": "conversion",
    "wording": "detokenizer",
    "came_to": "result",
}
# Phrases that no text may contain.
PHRASES = {
    "what it thinks": "logits, distribution",
    "beyond its own": "KL(teacher ‖ student)",
    "what it came to": "result",
    "came to nothing": "failed",
    "what it is made of": "config, settings",
    "of the house": "of the package",
    "ground floor": "level",
    "by the door": "through the public API",
    "nobody else": "no other process, plugin or run",
    "at hand": "available",
    "gone on with": "resumed",
    "go on with it": "resume it",
}
# The guide explains the terms to learners in everyday words.
EVERYDAY_WORDS = {"chances", "opinion", "opinions", "surprise", "what it thinks"}
# Other ordinary uses of the words above, as (file, word).
ALLOWED: set[tuple[str, str]] = set()
# The stories of the tales are no technical text.
STORIES = "distillkit/data/tales/"
# Generated from docstrings, command help and recipe keys, which are tested themselves.
GENERATED_PAGES = ("docs/api.md", "docs/commands.md", "docs/recipes.md", "docs/study.md")


def code_files() -> list[Path]:
    files = [file for folder in CODE for file in (ROOT / folder).rglob("*.py")]
    return [file for file in sorted(files) if not file.relative_to(ROOT).as_posix().startswith(STORIES)]


def pages() -> list[Path]:
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    return [file for file in sorted(files) if not file.relative_to(ROOT).as_posix().startswith(GENERATED_PAGES)]


@cache
def syntax_tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def names_in(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every identifier of a module with its line: variables, attributes, functions, classes, parameters, keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
            yield node.lineno, str(node.arg)


def parts_of(name: str) -> list[str]:
    """The words of a name in lower case: `soft_targets`, `SoftTargets` -> soft, targets."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def words_in(text: str) -> Iterator[str]:
    """The replaced words and phrases that a text contains."""
    plain = " ".join(text.lower().split())
    for word in WORDS:
        if re.search(rf"\b{word}\b", plain):
            yield word
    for phrase in PHRASES:
        if re.search(rf"\b{re.escape(phrase)}\b", plain):
            yield phrase


def report(found: list[tuple[str, str, str]]) -> None:
    """Fail with a line for each place that isn't allowed: (place, file, word)."""
    advice = {**WORDS, **NAMES, **PHRASES}
    wrong = [f"{place}: {word!r} (use {advice[word]})" for place, file, word in found if (file, word) not in ALLOWED]
    assert not wrong, "\n".join(wrong)


def test_no_name_has_a_replaced_word() -> None:
    found = []
    for file in code_files():
        path = file.relative_to(ROOT).as_posix()
        for line, name in names_in(syntax_tree(file)):
            parts = parts_of(name)
            banned = [word for word in (*WORDS, *NAMES) if word in parts or word == name]
            found += [(f"{path}:{line}: {name}", path, word) for word in banned]
    report(found)


def test_no_docstring_has_a_replaced_word() -> None:
    found = []
    for file in code_files():
        path = file.relative_to(ROOT).as_posix()
        for node in ast.walk(syntax_tree(file)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                found += [(f"{path}:{getattr(node, 'lineno', 1)}", path, word) for word in words_in(text)]
    report(found)


def test_no_page_has_a_replaced_word() -> None:
    found = []
    for file in pages():
        path = file.relative_to(ROOT).as_posix()
        for paragraph in file.read_text(encoding="utf-8").split("\n\n"):
            words = [
                word for word in words_in(paragraph) if not (path.startswith("docs/guide/") and word in EVERYDAY_WORDS)
            ]
            found += [(f"{path}: {paragraph[:60]!r}", path, word) for word in words]
    report(found)


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, each with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            if inner := command.get_command(context, name):
                yield from commands(inner, f"{path} {name}")


def test_no_help_of_a_command_has_a_replaced_word() -> None:
    found = []
    for path, command in commands(cli, "distillkit"):
        options = [getattr(option, "help", None) or "" for option in command.params]
        texts = [command.help or "", command.epilog or "", *options]
        found += [(path, path, word) for text in texts for word in words_in(text)]
    assert len(list(commands(cli, "distillkit"))) > 20
    report(found)


def test_no_description_of_a_recipe_key_has_a_replaced_word() -> None:
    tables = [table for table in vars(schema).values() if isinstance(table, type) and issubclass(table, BaseModel)]
    keys = [
        (f"{table.__name__}.{key}", field.description or "")
        for table in tables
        for key, field in table.model_fields.items()
    ]
    assert len([key for key, text in keys if text]) > 40
    report([(key, key, word) for key, text in keys for word in words_in(text)])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("soft_targets", ["soft", "targets"]),
        ("SoftTargets", ["soft", "targets"]),
        ("_LANES2", ["lanes"]),
        ("KLTerm", ["kl", "term"]),
    ],
)
def test_names_are_split_into_words(name: str, parts: list[str]) -> None:
    assert parts_of(name) == parts
