"""Recipe files as plain values: finding and reading them, and merging a recipe with the recipes it extends.

Records which file set which value. Does not validate values; `recipe` does.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any

from ..core import secrets
from ..core.errors import RecipeError, did_you_mean
from .messages import Loc, Tree, dotted_key, format_value
from .schema import BUILTIN_PROMPTS, drop_incompatible

MAX_BYTES = 256 * 1024  # recipes are short; a larger file is a mistake
MAX_DEPTH = 16
# A key with very many parts. tomllib is quadratic in their number, so such a file would take minutes.
DEEP_KEY = re.compile(r"""(?:^|[\[{,])[ \t]*(?:[\w"'-]+[ \t]*\.[ \t]*){64}""", re.MULTILINE)


@dataclass(frozen=True)
class Layer:
    """One file of a chain of `extends`: its name in messages, its folder and its values."""

    file: str = "recipe"
    folder: Path = field(default_factory=Path)
    tree: Tree = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Where values come from: the layers, with the recipe itself first, and the paths set by `--set`."""

    layers: tuple[Layer, ...] = (Layer(),)
    written: frozenset[Loc] = frozenset()

    def of(self, loc: Loc) -> Layer:
        """The layer that set a value."""
        if any(loc[:n] in self.written for n in range(1, len(loc) + 1)):
            return Layer("--set", Path())
        return next((layer for layer in self.layers if _has(layer.tree, loc)), self.layers[0])


def load_layers(spec: str) -> tuple[Layer, ...]:
    """Read a recipe and all recipes it extends. The recipe itself is first."""
    layers: list[Layer] = []
    seen: list[Path] = []
    folder, wanted = Path(), spec
    while True:
        path, label = _find_file(wanted, folder, layers[-1].file if layers else "")
        if path.resolve() in seen:
            names = " -> ".join([layer.file for layer in layers] + [label])
            raise RecipeError(f"{layers[0].file}: extends forms a cycle: {names}")
        seen.append(path.resolve())
        layers.append(_read_layer(path, label))
        if "extends" not in layers[-1].tree:
            return tuple(layers)
        folder, wanted = path.parent, layers[-1].tree["extends"]


def merge_layers(layers: tuple[Layer, ...]) -> Tree:
    """The values of a chain of recipes. The values of a layer override those of the layers it extends."""
    tree: Tree = {}
    for layer in reversed(layers):
        tree = _merge(tree, layer.tree)
    tree.pop("extends", None)
    return tree


def get_at(tree: Any, loc: Loc) -> Any:
    """The value at a path."""
    for key in loc:
        tree = tree[key]
    return tree


def _has(tree: Any, loc: Loc) -> bool:
    try:
        get_at(tree, loc)
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _merge(parent: Tree, child: Tree, loc: Loc = ()) -> Tree:
    """Override values of the parent by those of the child. Tables are merged, all other values replaced."""
    both = drop_incompatible(parent, loc, child).copy()
    for key, value in child.items():
        tables = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = _merge(both[key], value, (*loc, key)) if tables else value
    return both


# ---------------------------------------------------------------------------------------------------- finding


def bundled_recipes() -> dict[str, Path]:
    """The recipes bundled with the package, by name."""
    try:
        folder = Path(str(resources.files("distillkit_recipes")))
    except ModuleNotFoundError:
        return {}
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def refers_to_recipe(word: str) -> bool:
    """Whether a word refers to a recipe: the name of a bundled recipe or a path that ends in .toml."""
    return word.endswith(".toml") or word in bundled_recipes()


def _find_file(spec: str, folder: Path, asked_by: str) -> tuple[Path, str]:
    """The file of a path or of a bundled name, and its name in messages."""
    path = folder / spec
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
        is_special = path.exists() and not is_folder  # such as a pipe: `<(...)` in a shell
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RecipeError(f"{format_value(spec)} cannot be a recipe: {why}") from error
    known = bundled_recipes()
    if not is_file and spec in known:
        return known[spec], known[spec].name
    if is_file or is_special:
        return path, str(path)
    if is_folder:
        raise RecipeError(f"{path} is a folder, expected a recipe file", "Give the path of the .toml file.")
    by = f"{asked_by}: extends: " if asked_by else ""
    names = {*known, *(near.name for near in folder.glob("*.toml"))}
    hint = did_you_mean(spec, names) if names else "Create one: distillkit init"
    raise RecipeError(f"{by}there is no recipe {spec!r}", hint)


def resolve_path(value: str, folder: Path) -> str:
    """The absolute path of a value that exists in `folder` or in the current folder; otherwise the value itself."""
    try:
        for base in (folder, Path()):
            path = base / Path(value).expanduser()
            if path.exists() or (set("*?[") & set(value) and any(base.glob(value))):
                return str(path.absolute())
    except (OSError, ValueError, RuntimeError, NotImplementedError):
        pass  # not a path: the code that uses it will report that
    return value


def resolve_host_paths(tree: Tree, folder: Path) -> None:
    """Make the paths under host keys absolute, relative to the folder of the file they come from."""

    def is_folder(value: str) -> bool:
        return (
            value not in ("bpe", "sentencepiece")
            and Path(resolve_path(value, folder)).is_absolute()
            and (folder / value).is_dir()
        )

    path_keys: dict[tuple[str, str], Callable[[str], bool]] = {
        ("tokenizer", "ranks"): lambda value: True,
        ("tokenizer", "model"): lambda value: True,
        ("tokenizer", "kind"): is_folder,
        ("sampling", "prompts"): lambda value: value not in BUILTIN_PROMPTS,
        ("student", "from"): lambda value: "/" in value or value.endswith(".toml"),
    }
    for (table, key), is_path in path_keys.items():
        values = tree.get(table)
        if isinstance(values, dict) and isinstance(value := values.get(key), str) and value and is_path(value):
            values[key] = resolve_path(value, folder)
    for teacher in _teachers(tree):
        _resolve_prompt_paths(teacher, folder)


def _teachers(tree: Tree) -> list[Tree]:
    """Every teacher table of a layer. Types are not validated yet."""
    judges = tree.get("judge")
    tables = [tree, *(judges if isinstance(judges, list) else [])]
    found = [table.get("teacher") for table in tables if isinstance(table, dict)]
    return [teacher for teacher in found if isinstance(teacher, dict)]


def _resolve_prompt_paths(teacher: Tree, folder: Path) -> None:
    """Make the paths of prompt and word files absolute."""
    template = teacher.get("template")
    words = template.get("words") if isinstance(template, dict) else None
    for values, keys in ((teacher, ["prompts_file"]), (words, list(words) if isinstance(words, dict) else [])):
        for key in keys:
            if isinstance(values, dict) and isinstance(value := values.get(key), str) and value:
                values[key] = resolve_path(value, folder)


# ---------------------------------------------------------------------------------------------------- reading


def _read_layer(path: Path, file: str) -> Layer:
    """Read one file and check what every layer must fulfil."""
    tree = _read_toml(path, file)
    if not tree:
        raise RecipeError(f"{file} is empty, expected a recipe", 'A minimal recipe: name = "my-recipe"')
    check_values(tree, file)
    if "extends" in tree and not (isinstance(tree["extends"], str) and tree["extends"]):
        found = f"found {format_value(tree['extends'])}, expected a path or the name of a bundled recipe"
        raise RecipeError(f"{file}: extends: {found}")
    resolve_host_paths(tree, path.parent)
    return Layer(file, path.parent, tree)


def _read_toml(path: Path, file: str) -> Tree:
    """The values of a TOML file."""
    text = ""
    try:
        text = _read_text(path, file)
        return parse_toml(text)
    except OSError as error:
        raise RecipeError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{file}: line {line}: not UTF-8 text, expected TOML") from error
    except RecursionError as error:
        raise RecipeError(f"{file}: values are nested too deeply") from error
    except ValueError as error:
        raise _syntax_error(file, text, error) from error


def parse_toml(text: str) -> Tree:
    """Parse TOML. Raises RecursionError for keys that tomllib would take minutes to parse."""
    if DEEP_KEY.search(text):
        raise RecursionError
    return tomllib.loads(text)


def _read_text(path: Path, file: str) -> str:
    with path.open("rb") as stream:
        raw = stream.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{file} is larger than {MAX_BYTES // 1024} KiB, expected a recipe")
    return raw.decode("utf-8-sig")


def _syntax_error(file: str, text: str, error: ValueError) -> RecipeError:
    """An error with the position, the problem and the line."""
    what = str(error)
    at = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", what)
    if not at:
        return RecipeError(f"{file}: not TOML: {what.partition(';')[0]}")
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    line = int(at[1] or len(lines))
    column = int(at[2] or len(lines[-1]) + 1)
    quoted = secrets.redact(lines[line - 1].strip())[:100] if line <= len(lines) else ""
    return RecipeError(f"{file}: line {line}, column {column}: {what[: at.start()]}\n    {quoted}".rstrip())


def check_values(tree: Tree, file: str) -> None:
    """Refuse deep nesting, non-finite numbers, large integers and API keys. Iterative, because the tree may be deep."""
    todo: list[tuple[Loc, Any]] = [((), tree)]
    while todo:
        loc, value = todo.pop()
        if len(loc) > MAX_DEPTH:
            raise RecipeError(f"{file}: {dotted_key(loc[:2])}...: values are nested too deeply")
        if isinstance(value, dict):
            todo += [((*loc, key), inner) for key, inner in value.items()] + [(loc, key) for key in value]
        elif isinstance(value, list):
            todo += [((*loc, i), inner) for i, inner in enumerate(value)]
        elif isinstance(value, float) and not isfinite(value):
            raise RecipeError(f"{file}: {dotted_key(loc)}: found {value}, expected a finite number")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            found = "found a number beyond 64 bits, expected a smaller one"
            raise RecipeError(f"{file}: {dotted_key(loc)}: {found}")
        elif isinstance(value, str):
            _refuse_secret(loc, value, file)


def _refuse_secret(loc: Loc, value: str, file: str) -> None:
    """Refuse a value that looks like an API key or is under the name of one. Words of a template may have any name."""
    kind = secrets.find_secret(value)
    name = next((key for key in reversed(loc) if isinstance(key, str)), "")
    if kind is None and value and "template" not in loc and secrets.is_secret_name(name):
        kind = "a key"
    if kind is not None:
        raise RecipeError(f"{file}: {dotted_key(loc)}: contains what looks like {kind}", secrets.ADVICE)
