"""Faults in words: where a value stands, what was found, what was expected, what to do.

Knows pydantic's complaints and JSON Schema. Does not know recipes or plugins: whoever asks says whose value
it was.
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
    """A RecipeError that says file, key, what was found and what was expected, one line a fault.

    `table` is where the model's keys stand in the recipe, `known` its keys, for those that are misspelt.
    """
    at, schema = parse_key(table), _schema(model)
    faults: dict[Loc, tuple[str, str]] = {}
    for fault in error.errors(include_url=False):
        if len(faults) >= MAX_ERRORS:  # no more are told, only counted: there may be thousands
            faults.setdefault((*at, *fault["loc"]), ("", ""))
            continue
        loc, expected, siblings = _walk(schema, fault["loc"])
        if loc and (*at, *loc) not in faults:
            near = known if len(loc) == 1 else siblings
            faults[(*at, *loc)] = _fault((*at, *loc), fault, expected, near)
        elif not loc:
            faults.setdefault(at, (f"{dotted_key(at) or 'it'}: {_message(fault)}", ""))
    name = file if callable(file) else lambda _: file
    return combine_errors([(f"{name(loc)}: {text}", hint) for loc, (text, hint) in faults.items()])


def combine_errors(lines: Sequence[tuple[str, str]]) -> RecipeError:
    """One error for all that is wrong: a message and a hint each."""
    if len(lines) == 1:
        return RecipeError(*lines[0])
    told = [f"{text}. {hint}" if hint else text for text, hint in lines[:MAX_ERRORS]]
    more = len(lines) - len(told)
    return RecipeError("\n".join([*told, f"and {more} more"] if more else told))


def format_value(value: Any) -> str:
    """A value as a recipe would have it, cut to fit a message."""
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
    """A name or a path in quotes, cut to fit a message."""
    return repr(text if len(text) <= MAX_NAME_LENGTH else f"{text[:MAX_NAME_LENGTH]}...")


def dotted_key(loc: Loc) -> str:
    """A place in one word, as `--set` has it."""
    words = (secrets.redact(str(key)) for key in loc)
    return ".".join(word if word.isprintable() else ascii(word) for word in words)


def parse_key(word: str | Loc) -> Loc:
    """The place that a dotted word means."""
    if not isinstance(word, str):
        return word
    return tuple(int(key) if key.isdecimal() else key for key in word.split(".") if key)


# -------------------------------------------------------------------------------------------------- one fault


def _fault(loc: Loc, fault: Any, schema: Tree, known: Iterable[str]) -> tuple[str, str]:
    """One fault in words, and what to do about it."""
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
    except Exception:  # noqa: BLE001 - a plugin's own types may have no schema; its messages must do then
        return {}


def _walk(root: Tree, loc: Loc) -> tuple[Loc, Tree, list[str]]:
    """The part of a place that is keys (the rest names a union's branches), its schema, its neighbours."""
    here, known = root, list(root.get("properties", ()))
    for depth, key in enumerate(loc):
        choices = [_deref(choice, root) for choice in here.get("anyOf", [here])]
        inside = next((choice for choice in choices if _inner(choice, key) is not None), None)
        tables = [choice for choice in choices if "properties" in choice]
        if inside is None:
            # An unknown key of a table, or the name of a union's branch.
            unknown = depth == len(loc) - 1 and tables
            return (loc, {}, list(tables[0]["properties"])) if unknown else (loc[:depth], here, known)
        known = list(inside.get("properties", ()))
        here = _deref(_inner(inside, key) or {}, root)
    return loc, here, known


def _inner(schema: Tree, key: str | int) -> Tree | None:
    """The schema of what stands under a key or an index."""
    if isinstance(key, int):
        inner = schema.get("items")
    else:
        inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
    return inner if isinstance(inner, dict) else None


def _deref(schema: Tree, root: Tree) -> Tree:
    """What a reference stands for."""
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
    """A schema in words."""
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
