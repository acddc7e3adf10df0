"""Generates the Python API page: the public names of each public module, with signatures and docstrings.

`generate.py` writes it to docs/api.md.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import surface

PUBLIC_MODULES = {
    "distillkit": "The API for plugins. `import distillkit` is light: it loads neither MLX nor pandas.",
    "distillkit.testing": "Conformance checks for plugin tests.",
    "distillkit.student": "A trained student: generates text and scores it.",
    "distillkit.data": "Corpora, tokenizers and batches.",
    "distillkit.stats": "Confidence intervals and tests, for judges.",
    "distillkit.teachers.chat": "Building blocks for teachers behind OpenAI-compatible servers.",
}
SUBMODULES = {  # public names of the submodules of a package
    "distillkit.data": {
        "distillkit.data.corpus": ("Corpus", "cut", "held_out", "prepare", "training_texts"),
        "distillkit.data.tokenizer": ("END_OF_TEXT", "Tokenizer", "build", "train_bpe"),
        "distillkit.data.shards": ("Packer", "Stream"),
        "distillkit.data.batches": ("Batch", "Batches"),
        "distillkit.data.tales": ("story",),
    },
}
CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")  # an annotation that is not a string
PARAGRAPH = "\n\n"
VALUES = {"hookimpl": "Decorator that marks a function such as `register_teachers` as a hook implementation."}
INTRODUCTION = """\
The public modules. Names in `distillkit` and `distillkit.testing` are only added, never removed
([versions](plugins.md#versions)); the other modules may gain arguments and lose nothing within a version.
Everything else in the package is internal. The [command line](commands.md) offers the same functions.
"""


def page() -> str:
    """The page."""
    parts = [f"# Python API\n\n{INTRODUCTION}"]
    for public, about in PUBLIC_MODULES.items():
        parts.append(f"\n## `{public}`\n\n{about}\n")
        for name, names in SUBMODULES.get(public, {}).items():
            module = importlib.import_module(name)
            parts += [
                f"\n### `{name}`\n\n{_text(module).partition(PARAGRAPH)[0]}\n",
                *_describe_all(module, names, "####"),
            ]
        if public not in SUBMODULES:
            module = importlib.import_module(public)
            parts += _describe_all(module, _names(module), "###")
    return CLASS.sub(r"\1", "".join(parts))


def _describe_all(module: ModuleType, names: Iterable[str], level: str) -> Iterator[str]:
    for name in names:
        yield f"\n{level} `{name}`\n\n{_describe(name, getattr(module, name))}"


def _names(module: ModuleType) -> list[str]:
    """The names in `__all__`, or else the public classes and functions that the module defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=str.lower)
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return sorted((name for name in own if not name.startswith("_")), key=str.lower)


def _describe(name: str, value: Any) -> str:
    if inspect.isclass(value):
        return f"```python\n{_class(name, value)}\n```\n\n{_text(value)}\n{_methods(value)}"
    if inspect.isroutine(value) or hasattr(value, "__wrapped__"):
        return f"```python\n{surface.signature(name, value)}\n```\n\n{_text(value)}\n"
    if isinstance(value, (int, str)):
        return f"```python\n{name} = {json.dumps(value)}\n```\n"
    return f"{VALUES.get(name) or _text(value)}\n"


def _class(name: str, cls: type) -> str:
    """The class statement with its constructor or fields."""
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    lines = [f"class {name}({bases})" if bases else f"class {name}"]
    if "__init__" in vars(cls) and not dataclasses.is_dataclass(cls) and bases != "Protocol":
        lines.append(f"    {surface.signature('__init__', cls.__init__)}")
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            if field.name.startswith("_"):
                continue
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            made = " = ..." if field.default_factory is not dataclasses.MISSING else ""
            lines.append(f"    {field.name}: {field.type}{default}{made}")
    return "\n".join(lines)


def _methods(cls: type) -> str:
    """A table of methods and properties."""
    rows = [
        f"| `{line.replace('|', chr(92) + '|')}` | {about} |\n"
        for line, about in surface.members(cls)
        if line.endswith("(property)") or ("(" in line.split(":")[0] and not line.startswith("__init__"))
    ]
    return "".join(["\n| | |\n| --- | --- |\n", *rows]) if rows else ""


def _text(thing: Any) -> str:
    """The docstring, without those that dataclasses generate."""
    text = inspect.getdoc(thing) or ""
    if inspect.isclass(thing) and text.startswith(f"{thing.__name__}("):
        text = ""  # generated by dataclasses
    return re.sub(r"\n{3,}", "\n\n", text).strip()
