"""The options of plugins: read from a recipe, described to people, put into the recipe's JSON Schema.

Knows pydantic models. Does not know what an option means, nor who offers the plugin that it belongs to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from ..recipe.messages import Tree
from ..recipe.recipe import Recipe, locate
from ..recipe.schema import NO_TEACHER, TABLES, keys_of, plugin_key
from .validation import Offer

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


def read(model: type[BaseModel], options: Mapping[str, Any], folder: Path) -> BaseModel:
    """Validated options. Strict JSON: "3" is not a number, yet lists may become tuples and text a path."""
    text = json.dumps(located(model, options, folder), default=str)
    return model.model_validate_json(text, strict=True)


def located(model: type[BaseModel], options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The options, with those that the plugin lists as `paths` made absolute where they exist."""

    def place(value: Any) -> Any:
        if isinstance(value, list):
            return [place(item) for item in value]
        return locate(value, folder) if isinstance(value, str) and value else value

    paths: Iterable[str] = getattr(model, "paths", ())
    return {key: place(value) if key in paths else value for key, value in options.items()}


def missing(model: type[BaseModel], options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Those of the located options that name files that are not there: key and value."""
    paths: Iterable[str] = getattr(model, "paths", ())
    named = [(key, options[key]) for key in paths if key in options]
    flat = [(key, one) for key, value in named for one in (value if isinstance(value, list) else [value])]
    return [(key, one) for key, one in flat if isinstance(one, str) and not Path(one).is_absolute()]


# ------------------------------------------------------------------------------------------------- for people


def described(model: type[BaseModel]) -> list[dict[str, Any]]:
    """The options of a plugin, for people and machines."""
    return [
        {
            "name": field.alias or name,
            "type": _type_of(field),
            "default": _default_of(field),
            "required": field.is_required(),
            "about": field.description or "",
        }
        for name, field in model.model_fields.items()
    ]


def _type_of(field: FieldInfo) -> str:
    kind = field.annotation
    return kind.__name__ if isinstance(kind, type) else re.sub(r"\b\w+(\.\w+)*\.", "", str(kind))


def _default_of(field: FieldInfo) -> Any:
    """A default as plain JSON; None where there is none, or where it depends on the recipe."""
    try:
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        return to_jsonable_python(value, fallback=str)
    except Exception:  # noqa: BLE001 - a factory is the plugin's code
        return None


# ------------------------------------------------------------------------------------------------ for editors


def schema(offers: Sequence[Offer]) -> Tree:
    """The JSON Schema of a recipe file, with the options of all plugins.

    Nothing but the name is required, since a recipe that extends another leaves out what it inherits.
    """
    whole = Recipe.model_json_schema()
    whole["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    whole["properties"]["extends"] = {"type": "string", "description": "A path or a bundled recipe's name."}
    del whole["required"]
    whole["anyOf"] = [{"required": ["name"]}, {"required": ["extends"]}]
    for role, table in TABLES.items():
        _specialise(whole["$defs"], table.__name__, role, [o for o in offers if o.role == role])
    return whole


def _specialise(defs: Tree, table: str, role: str, offers: Sequence[Offer]) -> None:
    """Give a table a branch for each plugin: its own options, and no other's."""
    key, host = plugin_key(role), defs[table]
    branches: dict[str, Tree] = {NO_TEACHER: {}} if role == "teachers" else {}
    for i, offer in enumerate(offers):
        own = _schema_of(offer.offered.Options, f"{role}.{i}.")
        defs |= own.get("$defs", {})
        branches[offer.name] = own.get("properties", {})
    if branches:  # an empty list of rules is no valid schema
        host["allOf"] = [_branch(key, name, host["properties"], own) for name, own in branches.items()]
    host.pop("required", None)
    host["properties"][key] = {**host["properties"][key], "enum": list(branches)}
    of_any = {option: True for own in branches.values() for option in own}
    host["properties"] = of_any | host["properties"]
    host["additionalProperties"] = False


def _branch(key: str, name: str, host: Tree, own: Tree) -> Tree:
    """What a table may say when it names one plugin."""
    return {
        "if": {"properties": {key: {"const": name}}, "required": [key]},
        "then": {"properties": dict.fromkeys(host, True) | own, "additionalProperties": False},
    }


def _schema_of(model: type[BaseModel], prefix: str) -> Tree:
    """The schema of a plugin's options; its definitions get names of their own."""
    try:
        own = model.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
    except Exception:  # noqa: BLE001 - types without a schema: name the options, say nothing of their values
        return {"properties": dict.fromkeys(sorted(keys_of(model)), True)}
    own["$defs"] = {prefix + name: inner for name, inner in own.get("$defs", {}).items()}
    return own
