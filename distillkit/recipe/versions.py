"""Recipe versions: an old recipe keeps its meaning when a default changes.

A recipe says `recipe_version = N` for the defaults it was written for; without it, version 1. To change a default,
raise `CURRENT_VERSION` and list the former default here. It is filled in for recipes of older versions that do not
set the key, and run folders record the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..core.errors import RecipeError
from .messages import Loc, Tree

CURRENT_VERSION = 1
FIRST_VERSION = 1
VERSION_KEY = "recipe_version"


class FormerDefault(NamedTuple):
    """A default that held up to and including a version. `plugin`: only where the table names that plugin."""

    last_version: int
    loc: Loc
    value: Any
    plugin: tuple[Loc, str, str] | None = None  # location of the key that names the plugin, its default, the plugin


FORMER_DEFAULTS: tuple[FormerDefault, ...] = ()


def apply_former_defaults(tree: Tree, file: str) -> None:
    """Fill in the defaults of the recipe's version where they have changed since; refuses newer versions."""
    version = tree.get(VERSION_KEY, FIRST_VERSION)
    if not isinstance(version, int) or isinstance(version, bool):
        return  # the schema reports it
    if version > CURRENT_VERSION:
        raise RecipeError(
            f"{file}: {VERSION_KEY} = {version}, and this version of distillkit knows versions up to {CURRENT_VERSION}",
            "Upgrade: pip install --upgrade distillkit",
        )
    for former in FORMER_DEFAULTS:
        if version <= former.last_version and _applies(tree, former):
            _fill(tree, former.loc, former.value)


def _applies(tree: Tree, former: FormerDefault) -> bool:
    if former.plugin is None:
        return True
    loc, default, name = former.plugin
    return bool(_get(tree, loc, default) == name)


def _get(tree: Tree, loc: Loc, default: Any) -> Any:
    at: Any = tree
    for key in loc:
        if not isinstance(at, dict) or key not in at:
            return default
        at = at[key]
    return at


def _fill(tree: Tree, loc: Loc, value: Any) -> None:
    """Set a value where the key is missing. A table that is no table is the schema's to report."""
    at: Any = tree
    for key in loc[:-1]:
        if not isinstance(at, dict):
            return
        at = at.setdefault(key, {})
    if isinstance(at, dict):
        at.setdefault(loc[-1], value)
