"""`--set key.path=value`: values from the command line, written over those of a recipe.

Knows how a place is spelt. Does not know whether a value is right: that is `recipe`'s to say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import UsageError
from .loading import get_at, parse_toml, resolve_host_paths
from .messages import Loc, Tree, dotted_key, format_value, parse_key
from .schema import drop_incompatible


def apply_overrides(tree: Tree, overrides: Sequence[str]) -> frozenset[Loc]:
    """Write every `key.path=value` into the tree; returns the places written."""
    written: set[Loc] = set()
    for override in overrides:
        loc, value = _parse(override)
        if loc[0] == "judge" and len(loc) > 1:
            tree.setdefault("judge", [{"name": "perplexity"}])
        _write(tree, loc, _settled(loc, value), override, written)
        written.add(loc)
    return frozenset(written)


def _parse(override: str) -> tuple[Loc, Any]:
    """A place and a value: TOML where it is TOML, plain text otherwise."""
    key, equals, text = override.partition("=")
    words = key.strip().split(".")
    try:
        override.encode("utf-8")
        if not equals or not all(re.fullmatch(r"[A-Za-z0-9_-]+", word) for word in words):
            raise ValueError
    except ValueError as error:
        example = "Write it as --set train.steps=100 or --set judge.0.samples=50"
        raise UsageError(f"--set {format_value(override)}: expected key.path=value", example) from error
    try:
        parsed = parse_toml(f"value = {text.strip()}")
    except RecursionError as error:
        raise UsageError(f"--set {key.strip()}: the value is nested too deeply") from error
    except ValueError:
        parsed = {}
    return parse_key(key.strip()), parsed["value"] if set(parsed) == {"value"} else text


def _settled(loc: Loc, value: Any) -> Any:
    """The value with its paths made absolute: on a command line they start from the current folder."""
    tree: Any = value
    for key in reversed(loc):
        tree = {key: tree}
    resolve_host_paths(tree, Path())
    return get_at(tree, loc)


def _write(tree: Tree, loc: Loc, value: Any, override: str, written: set[Loc]) -> None:
    """Put one value into the tree, making tables on the way."""
    *parents, last = loc
    here: Any = tree
    for depth, key in enumerate(parents):
        here = _entered(here, _key(here, key, loc[:depth], override))
    key = _key(here, last, loc[:-1], override)
    if isinstance(here, dict):
        _forget(here, loc[:-1], {key: value}, written)
    here[key] = value


def _key(here: Any, key: str | int, loc: Loc, override: str) -> Any:
    """The key as a table or a list has it; a list takes the number of an item, or the next."""
    if isinstance(here, dict):
        return str(key)
    if not isinstance(here, list):
        raise UsageError(f"--set {format_value(override)}: {dotted_key(loc)} is {format_value(here)}, not a table")
    if not isinstance(key, int) or key > len(here):
        raise UsageError(
            f"--set {format_value(override)}: {dotted_key(loc)} is a list of {len(here)}, and has no {str(key)!r}",
            f"Write it as {dotted_key(loc)}.0.key=value",
        )
    if key == len(here):
        here.append({})
    return key


def _entered(here: Any, key: Any) -> Any:
    """What stands under a key, made if need be."""
    if isinstance(here, dict):
        return here.setdefault(key, [] if key == "tracker" else {})
    return here[key]


def _forget(here: Tree, loc: Loc, chosen: Tree, written: set[Loc]) -> None:
    """Forget what means nothing beside what is chosen, but not what this same command gave."""
    keep = drop_incompatible(here, loc, chosen)
    for key in list(here):
        if key not in keep and not any(at[: len(loc) + 1] == (*loc, key) for at in written):
            del here[key]
