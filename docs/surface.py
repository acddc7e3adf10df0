"""The public surface in text: every name that a plugin may import, with its signature, from the code itself.

`docs/api.txt` records it, and `docs/plugins.md` shows hooks and roles; `generate.py` writes both.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import distillkit
from distillkit.plugins import hookspecs
from distillkit.plugins.interfaces import ROLES, Role

DOORS = ("distillkit", "distillkit.testing")
INHERITED = {*dir(object), *dir(Exception), "_abc_impl"}


def recorded() -> str:
    """All doors, name by name."""
    parts = ["# The public surface. Made by docs/generate.py: `make docs`. What stands here is only ever added to.\n"]
    for door in DOORS:
        module = importlib.import_module(door)
        parts.append(f"\n[{door}]\n")
        parts += [f"{line}\n" for name in sorted(module.__all__) for line in _named(name, getattr(module, name))]
    parts.append("\n[hooks]\n")
    parts += [f"{signature(name, hook)}\n" for name, hook in hooks().items()]
    return "".join(parts)


def hooks() -> dict[str, Any]:
    """Every hook, by its name."""
    return {name: hook for name, hook in vars(hookspecs).items() if name.startswith("register_")}


def _named(name: str, value: Any) -> Iterator[str]:
    """The lines about one name: those of a class with its fields and methods."""
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        yield f"class {name}({bases})" if bases else f"class {name}"
        yield from (f"    {line}" for line in _members(value))
    elif callable(value) and not isinstance(value, type(distillkit.hookimpl)):
        yield signature(name, value)
    else:
        yield f"{name} = {value!r}" if isinstance(value, int) else f"{name}: {type(value).__name__}"


def _members(cls: type) -> Iterator[str]:
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            made = " = ..." if field.default_factory is not dataclasses.MISSING else ""
            yield f"{field.name}: {field.type}{default}{made}"
    yield from (line for line, _ in members(cls))


def members(cls: type, inherited: bool = False) -> Iterator[tuple[str, str]]:
    """What a class offers beside fields: a line for each name, and the first words about it."""
    known = {name for one in (cls.__mro__ if inherited else (cls,)) for name in vars(one)}
    fields = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    notes = {name: kind for one in reversed(cls.__mro__) for name, kind in vars(one).get("__annotations__", {}).items()}
    built = (
        {"__init__"} & vars(cls).keys()
        if not fields and "Protocol" not in {one.__name__ for one in cls.__bases__}
        else set()
    )
    for name in sorted(known - INHERITED - fields | built):
        value = inspect.getattr_static(cls, name)
        about = (
            (inspect.getdoc(value) or "").partition("\n")[0]
            if not isinstance(value, (str, tuple, int, frozenset))
            else ""
        )
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(value, property):
            returns = inspect.signature(value.fget).return_annotation if value.fget else "Any"
            yield f"{name}: {returns}  (property)", about
        elif inspect.isfunction(value):
            yield signature(name, value), about
        elif isinstance(value, classmethod):
            yield f"{signature(name, value.__func__)}  (classmethod)", about
        elif name in notes and not inspect.isclass(value):
            yield f"{name}: {notes[name]} = {value!r}", about
    yield from ((f"{name}: {notes[name]}", "") for name in sorted(notes) if name not in known and name not in fields)


def signature(name: str, function: Any) -> str:
    """A function as it is called; annotations as they are written."""
    shown, star = [], False
    whole = inspect.signature(function)
    for one in whole.parameters.values():
        if one.kind is one.KEYWORD_ONLY and not star:
            shown.append("*")
        star = star or one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        prefix = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        kind = "" if one.annotation is one.empty else f": {one.annotation}"
        default = "" if one.default is one.empty else f" = {one.default!r}"
        shown.append(f"{prefix}{one.name}{kind}{default}")
    returns = "" if whole.return_annotation is whole.empty else f" -> {whole.return_annotation}"
    waited = "async " if inspect.iscoroutinefunction(function) else ""
    return f"{waited}{name}({', '.join(shown)}){returns}"


# ------------------------------------------------------------------------------------------- for the page


def hooks_table() -> str:
    """Every hook and what it is for."""
    rows = ["| hook | offers |", "| --- | --- |"]
    rows += [f"| `{signature(name, hook)}` | {_plain(hook)} |" for name, hook in hooks().items()]
    return "\n".join(rows) + "\n"


def roles_text() -> str:
    """Every base class: what it is, and what it offers or wants."""
    return "\n".join(_role(cls) for cls in ROLES.values())


def _role(cls: type[Role]) -> str:
    """A base class: what it is, what must be there, and all else that may."""
    must = "`, `".join(sorted(getattr(cls, "__abstractmethods__", ())))
    article = "An" if cls.__name__[0] in "AEIOU" else "A"
    head = f"### `{cls.__name__}`\n\n{inspect.getdoc(cls)}\n\n{article} {cls.__name__.lower()} must have `{must}`.\n"
    rows = [
        f"| `{line.replace('|', chr(92) + '|')}` | {about} |\n"
        for line, about in members(cls)
        if not line.startswith(("name:", "__init__", "listener:"))  # which all have, or only the host looks at
    ]
    return "".join([head, "\n| | |\n| --- | --- |\n", *rows])


def _plain(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").split())
