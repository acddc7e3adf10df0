"""The page about the Python API, from the code itself: what the doors offer, with signatures and docstrings.

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

DOORS = {
    "distillkit": "What a plugin imports. It is light: `import distillkit` loads neither MLX nor pandas.",
    "distillkit.testing": "What a plugin's tests call.",
    "distillkit.student": "A trained student: to write with, to ask how likely a text is.",
    "distillkit.data": "From documents to tokens.",
    "distillkit.stats": "Intervals and tests, for judges.",
    "distillkit.teachers.chat": "What a teacher behind an OpenAI-style server is made of.",
}
INSIDE = {  # a folder, and what of its modules is for others
    "distillkit.data": {
        "distillkit.data.corpus": ("Corpus", "cut", "held_out", "prepare", "training_texts"),
        "distillkit.data.tokenizer": ("END_OF_TEXT", "Tokenizer", "build", "train_bpe"),
        "distillkit.data.shards": ("Packer", "Stream"),
        "distillkit.data.batches": ("Batch", "Batches"),
        "distillkit.data.tales": ("story",),
    },
}
CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")  # an annotation that is no text
PARAGRAPH = "\n\n"
VALUES = {"hookimpl": "Marks a function as a hook: `@hookimpl` stands above `def register_teachers():` and its like."}
INTRODUCTION = """\
What Python code of your own may import. Names of `distillkit` and `distillkit.testing` are only added to
([the promise](plugins.md#versions)); the toolboxes below them may gain arguments and lose nothing within a version.
All else that the package holds is its own affair. The command line does the same things: [commands](commands.md).
"""


def page() -> str:
    """All doors."""
    parts = [f"# Python API\n\n{INTRODUCTION}"]
    for door, about in DOORS.items():
        parts.append(f"\n## `{door}`\n\n{about}\n")
        for name, names in INSIDE.get(door, {}).items():
            module = importlib.import_module(name)
            parts += [
                f"\n### `{name}`\n\n{_text(module).partition(PARAGRAPH)[0]}\n",
                *_described(module, names, "####"),
            ]
        if door not in INSIDE:
            module = importlib.import_module(door)
            parts += _described(module, _names(module), "###")
    return CLASS.sub(r"\1", "".join(parts))


def _described(module: ModuleType, names: Iterable[str], level: str) -> Iterator[str]:
    for name in names:
        yield f"\n{level} `{name}`\n\n{_named(name, getattr(module, name))}"


def _names(module: ModuleType) -> list[str]:
    """What it says that it offers, or else the classes and functions that it defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=str.lower)
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return sorted((name for name in own if not name.startswith("_")), key=str.lower)


def _named(name: str, value: Any) -> str:
    if inspect.isclass(value):
        return f"```python\n{_class(name, value)}\n```\n\n{_text(value)}\n{_methods(value)}"
    if inspect.isroutine(value) or hasattr(value, "__wrapped__"):
        return f"```python\n{surface.signature(name, value)}\n```\n\n{_text(value)}\n"
    if isinstance(value, (int, str)):
        return f"```python\n{name} = {json.dumps(value)}\n```\n"
    return f"{VALUES.get(name) or _text(value)}\n"


def _class(name: str, cls: type) -> str:
    """How an object of it is made: its fields, where it has some."""
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
    """What it can do, a line each."""
    rows = [
        f"| `{line.replace('|', chr(92) + '|')}` | {about} |\n"
        for line, about in surface.members(cls)
        if line.endswith("(property)") or ("(" in line.split(":")[0] and not line.startswith("__init__"))
    ]
    return "".join(["\n| | |\n| --- | --- |\n", *rows]) if rows else ""


def _text(thing: Any) -> str:
    """A docstring; a role's particulars stand on the page about plugins."""
    text = inspect.getdoc(thing) or ""
    if inspect.isclass(thing) and text.startswith(f"{thing.__name__}("):
        text = ""  # what dataclasses write themselves
    return re.sub(r"\n{3,}", "\n\n", text).strip()
