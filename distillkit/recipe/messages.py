"""Messages for validation errors: the path of a value, what was found, what was expected, and what to do.

Knows pydantic's errors and JSON Schema, but no recipe and no plugin: callers pass the file and the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ..core import secrets
from ..core.errors import RecipeError, did_you_mean

Loc = tuple[str | int, ...]
Tree = dict[str, Any]

MAX_ERRORS = 10
MAX_NAME_LENGTH = 300


def recipe_error(
    error: ValidationError,
    file: str | Callable[[Loc], str],
    table: str | Loc,
    known: Iterable[str],
    *,
    model: type[BaseModel],
) -> RecipeError:
    """A RecipeError with one line per validation error: file, key, what was found and what was expected.

    `table` is the path of the model's table in the recipe. `known` are its keys, for suggestions.
    """
    at, schema = parse_key(table), _schema(model)
    faults: dict[Loc, tuple[str, str]] = {}
    for fault in error.errors(include_url=False):
        if len(faults) >= MAX_ERRORS:  # the rest, maybe thousands, are only counted
            faults.setdefault((*at, *fault["loc"]), ("", ""))
            continue
        loc, expected, siblings = _walk(schema, fault["loc"])
        if loc and (*at, *loc) not in faults:
            near = known if len(loc) == 1 else siblings
            faults[(*at, *loc)] = _format_error((*at, *loc), fault, expected, near)
        elif not loc:
            faults.setdefault(at, (f"{dotted_key(at) or 'it'}: {_message(fault)}", ""))
    name = file if callable(file) else lambda _: file
    return combine_errors([(f"{name(loc)}: {text}", hint) for loc, (text, hint) in faults.items()])


def combine_errors(lines: Sequence[tuple[str, str]]) -> RecipeError:
    """One error for several messages, each with a hint."""
    if len(lines) == 1:
        return RecipeError(*lines[0])
    shown = [f"{text}. {hint}" if hint else text for text, hint in lines[:MAX_ERRORS]]
    more = len(lines) - len(shown)
    return RecipeError("\n".join([*shown, f"and {more} more"] if more else shown))


def format_value(value: Any) -> str:
    """A value in TOML syntax, shortened to fit a message."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        text = f"[{', '.join(format_value(item) for item in value[:4])}{', ...' if value[4:] else ''}]"
    else:
        text = f'"{secrets.redact(value)[:80]}"' if isinstance(value, str) else str(value)
    return ascii(text)[1:-1].replace("\\'", "'") if not text.isprintable() else text


def quote(text: str) -> str:
    """A name or a path in quotes, shortened to fit a message."""
    return repr(text if len(text) <= MAX_NAME_LENGTH else f"{text[:MAX_NAME_LENGTH]}...")


def dotted_key(loc: Loc) -> str:
    """A path as a dotted key, as in `--set`."""
    words = (secrets.redact(str(key)) for key in loc)
    return ".".join(word if word.isprintable() else ascii(word) for word in words)


def parse_key(word: str | Loc) -> Loc:
    """The path of a dotted key."""
    if not isinstance(word, str):
        return word
    return tuple(int(key) if key.isdecimal() else key for key in word.split(".") if key)


# -------------------------------------------------------------------------------------------------- one error


def _format_error(loc: Loc, fault: Any, schema: Tree, known: Iterable[str]) -> tuple[str, str]:
    """The message and the hint of one validation error."""
    if fault["type"] == "extra_forbidden":
        return f"unknown key {dotted_key(loc)}", did_you_mean(str(loc[-1]), known)
    found = "nothing" if fault["type"] == "missing" else format_value(fault["input"])
    if fault["type"] in ("value_error", "assertion_error") or not schema:
        about = "" if found == "a table" else f" found {found}:"
        return f"{dotted_key(loc)}:{about} {_message(fault)}", ""
    what = f" ({schema['description']})" if found == "nothing" and "description" in schema else ""
    return f"{dotted_key(loc)}: found {found}, expected {_expected(schema)}{what}", ""


def _message(fault: Any) -> str:
    return str(fault["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")


# ------------------------------------------------------------------------------------------------- the schema


def _schema(model: type[BaseModel]) -> Tree:
    try:
        return model.model_json_schema()
    except Exception:  # noqa: BLE001 - types of a plugin may have no schema; its messages must do then
        return {}


def _walk(root: Tree, loc: Loc) -> tuple[Loc, Tree, list[str]]:
    """The part of an error's location that consists of keys, without union branches; its schema; its sibling keys."""
    here, known = root, list(root.get("properties", ()))
    for depth, key in enumerate(loc):
        choices = [_deref(choice, root) for choice in here.get("anyOf", [here])]
        inside = next((choice for choice in choices if _inner(choice, key) is not None), None)
        tables = [choice for choice in choices if "properties" in choice]
        if inside is None:
            # An unknown key of a table, or the name of a union branch.
            unknown = depth == len(loc) - 1 and tables
            return (loc, {}, list(tables[0]["properties"])) if unknown else (loc[:depth], here, known)
        known = list(inside.get("properties", ()))
        here = _deref(_inner(inside, key) or {}, root)
    return loc, here, known


def _inner(schema: Tree, key: str | int) -> Tree | None:
    """The schema of the value under a key or an index."""
    if isinstance(key, int):
        inner = schema.get("items")
    else:
        inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
    return inner if isinstance(inner, dict) else None


def _deref(schema: Tree, root: Tree) -> Tree:
    """A schema with its `$ref` resolved."""
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    return {**root["$defs"][name], "$defs": root["$defs"]} if name else schema


_NOUNS = {"integer": "a whole number", "number": "a number", "string": "text in quotes"}
_NOUNS |= {"boolean": "true or false", "object": "a table", "array": "a list"}
_BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}


def _expected(schema: Tree) -> str:
    """A description of a schema."""
    if "x-expected" in schema:
        return str(schema["x-expected"])
    if "$ref" in schema:
        return "a table"
    if "anyOf" in schema:
        return " or ".join(_expected(choice) for choice in schema["anyOf"] if choice.get("type") != "null")
    if "const" in schema or "enum" in schema:
        return " or ".join(format_value(value) for value in schema.get("enum", [schema.get("const")]))
    noun = _NOUNS.get(schema.get("type", ""), "something else")
    if schema.get("minLength"):
        noun += " that is not empty"
    if noun == "a list" and "items" in schema:
        size = schema.get("minItems") if schema.get("minItems") == schema.get("maxItems") else None
        return f"a list{f' of {size}' if size else ''}, each {_expected(schema['items'])}"
    bounds = [f"{word} {schema[key]:g}" for key, word in _BOUNDS.items() if key in schema]
    return f"{noun} {' and '.join(bounds)}".rstrip()
