"""`--set key.path=value`: overrides from the command line, applied to the values of a recipe.

Does not validate values; `recipe` does.
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
    """Apply every `key.path=value` to the tree. Returns the paths that were set."""
    written: set[Loc] = set()
    for override in overrides:
        loc, value = _parse(override)
        if loc[0] == "judge" and len(loc) > 1:
            tree.setdefault("judge", [{"name": "perplexity"}])
        _write(tree, loc, _resolve_value_paths(loc, value), override, written)
        written.add(loc)
    return frozenset(written)


def _parse(override: str) -> tuple[Loc, Any]:
    """The path and the value of an override. A value that is not TOML is plain text."""
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


def _resolve_value_paths(loc: Loc, value: Any) -> Any:
    """The value with absolute paths. On the command line, paths are relative to the current folder."""
    tree: Any = value
    for key in reversed(loc):
        tree = {key: tree}
    resolve_host_paths(tree, Path())
    return get_at(tree, loc)


def _write(tree: Tree, loc: Loc, value: Any, override: str, written: set[Loc]) -> None:
    """Set one value in the tree, creating tables as needed."""
    *parents, last = loc
    here: Any = tree
    for depth, key in enumerate(parents):
        here = _enter(here, _key(here, key, loc[:depth], override))
    key = _key(here, last, loc[:-1], override)
    if isinstance(here, dict):
        _drop_incompatible(here, loc[:-1], {key: value}, written)
    here[key] = value


def _key(here: Any, key: str | int, loc: Loc, override: str) -> Any:
    """The key for a table, or the index for a list. The index may be one past the end."""
    if isinstance(here, dict):
        return str(key)
    if not isinstance(here, list):
        raise UsageError(f"--set {format_value(override)}: {dotted_key(loc)} is {format_value(here)}, not a table")
    if not isinstance(key, int) or key > len(here):
        raise UsageError(
            f"--set {format_value(override)}: {dotted_key(loc)} is a list of {len(here)}, and has no item {str(key)!r}",
            f"Write it as {dotted_key(loc)}.0.key=value",
        )
    if key == len(here):
        here.append({})
    return key


def _enter(here: Any, key: Any) -> Any:
    """The value under a key, created if missing."""
    if isinstance(here, dict):
        return here.setdefault(key, [] if key == "tracker" else {})
    return here[key]


def _drop_incompatible(here: Tree, loc: Loc, chosen: Tree, written: set[Loc]) -> None:
    """Drop options that do not fit the chosen plugin or kind, unless `--set` of this command set them."""
    keep = drop_incompatible(here, loc, chosen)
    for key in list(here):
        if key not in keep and not any(at[: len(loc) + 1] == (*loc, key) for at in written):
            del here[key]
