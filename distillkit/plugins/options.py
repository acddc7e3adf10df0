"""Plugin options: parsed from a recipe, described for `distillkit plugins`, added to the recipe's JSON Schema.

Works on pydantic models. Does not know what an option means or where its plugin comes from.
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
from ..recipe.recipe import Recipe, resolve_path
from ..recipe.schema import NO_TEACHER, TABLES, keys_of, plugin_key
from .validation import Registration

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


def parse_options(model: type[BaseModel], options: Mapping[str, Any], folder: Path) -> BaseModel:
    """Validate options as strict JSON: "3" is not a number, but a list may become a tuple and text a path."""
    text = json.dumps(resolve_paths(model, options, folder), default=str)
    return model.model_validate_json(text, strict=True)


def resolve_paths(model: type[BaseModel], options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Make the options that the plugin lists in `paths` absolute, where the files exist in `folder`."""

    def resolve(value: Any) -> Any:
        if isinstance(value, list):
            return [resolve(item) for item in value]
        return resolve_path(value, folder) if isinstance(value, str) and value else value

    paths: Iterable[str] = getattr(model, "paths", ())
    return {key: resolve(value) if key in paths else value for key, value in options.items()}


def missing_files(model: type[BaseModel], options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The key and value of each resolved option that names a file that does not exist."""
    paths: Iterable[str] = getattr(model, "paths", ())
    given = [(key, options[key]) for key in paths if key in options]
    pairs = [(key, item) for key, value in given for item in (value if isinstance(value, list) else [value])]
    return [(key, item) for key, item in pairs if isinstance(item, str) and not Path(item).is_absolute()]


# ------------------------------------------------------------------------------------------- descriptions


def describe_options(model: type[BaseModel]) -> list[dict[str, Any]]:
    """The options of a plugin as rows of plain JSON: name, type, default, whether required, description."""
    return [
        {
            "name": field.alias or name,
            "type": _type_name(field),
            "default": _default(field),
            "required": field.is_required(),
            "about": field.description or "",
        }
        for name, field in model.model_fields.items()
    ]


def _type_name(field: FieldInfo) -> str:
    annotation = field.annotation
    return annotation.__name__ if isinstance(annotation, type) else re.sub(r"\b\w+(\.\w+)*\.", "", str(annotation))


def _default(field: FieldInfo) -> Any:
    """The default as plain JSON; None if there is none or if it depends on the recipe."""
    try:
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        return to_jsonable_python(value, fallback=str)
    except Exception:  # noqa: BLE001 - a default factory is the plugin's code
        return None


# ------------------------------------------------------------------------------------------------ JSON Schema


def recipe_schema(registrations: Sequence[Registration]) -> Tree:
    """The JSON Schema of a recipe file, with the options of all plugins.

    Only `name` or `extends` is required, because a recipe that extends another omits what it inherits.
    """
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"]["extends"] = {"type": "string", "description": "A path or a bundled recipe's name."}
    del schema["required"]
    schema["anyOf"] = [{"required": ["name"]}, {"required": ["extends"]}]
    for role, table in TABLES.items():
        _add_branches(schema["$defs"], table.__name__, role, [each for each in registrations if each.role == role])
    return schema


def _add_branches(defs: Tree, table: str, role: str, registrations: Sequence[Registration]) -> None:
    """Add a branch for each plugin to a table: it allows the plugin's own options and no others."""
    key, host = plugin_key(role), defs[table]
    branches: dict[str, Tree] = {NO_TEACHER: {}} if role == "teachers" else {}
    for i, registration in enumerate(registrations):
        own = _options_schema(registration.cls.Options, f"{role}.{i}.")
        defs |= own.get("$defs", {})
        branches[registration.name] = own.get("properties", {})
    if branches:  # an empty `allOf` is not a valid schema
        host["allOf"] = [_branch(key, name, host["properties"], own) for name, own in branches.items()]
    host.pop("required", None)
    host["properties"][key] = {**host["properties"][key], "enum": list(branches)}
    all_options = {option: True for own in branches.values() for option in own}
    host["properties"] = all_options | host["properties"]
    host["additionalProperties"] = False


def _branch(key: str, name: str, host: Tree, own: Tree) -> Tree:
    """The keys that a table allows when it names one plugin."""
    return {
        "if": {"properties": {key: {"const": name}}, "required": [key]},
        "then": {"properties": dict.fromkeys(host, True) | own, "additionalProperties": False},
    }


def _options_schema(model: type[BaseModel], prefix: str) -> Tree:
    """The schema of a plugin's options. Its definitions are prefixed, so that plugins cannot clash."""
    try:
        own = model.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
    except Exception:  # noqa: BLE001 - some types have no schema: list the options, allow any value
        return {"properties": dict.fromkeys(sorted(keys_of(model)), True)}
    own["$defs"] = {prefix + name: inner for name, inner in own.get("$defs", {}).items()}
    return own
