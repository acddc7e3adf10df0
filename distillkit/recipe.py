"""From TOML to a validated Recipe.

Knows the host's keys and which tables name a plugin. Does not know any plugin, nor what its options mean:
they are kept beside the host's keys, under `options`, for `plugins.py` to check.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from math import isfinite
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from .errors import RecipeError, UsageError, did_you_mean
from .files import digest

Loc = tuple[str | int, ...]
Tree = dict[str, Any]

MOST_BYTES = 256 * 1024  # a recipe is a page of text; more is a mistake
MOST_LEVELS = 16
MOST_FAULTS = 10

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
PositiveReal = Annotated[float, Field(gt=0)]
Real = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Nucleus = Annotated[float, Field(gt=0, le=1)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$"
NAME_WORDS = "at most 80 letters, digits, '_', '.' and '-', beginning with a letter or a digit"


# ------------------------------------------------------------------------------------------------- the tables


class Table(BaseModel):
    """A table of the recipe that is all the host's: unknown keys are refused here."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class PluginTable(Table):
    """A table that names a plugin: keys that are not the host's are the plugin's options."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The plugin's options, as the recipe has them."""
        return dict(self.model_extra or {})


class DataTable(PluginTable):
    """Where documents come from, and which are held out."""

    source: str = "tales"
    documents: Positive | None = None
    held_out: Fraction = 0.05
    block_chars: Positive | None = None


class TokenizerTable(Table):
    """What turns text into tokens."""

    kind: str = "bpe"
    vocab_size: Positive | None = None
    ranks: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _size_of_bpe(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind", "bpe") == "bpe":
            return {"vocab_size": 2048, **values}
        return values


class StudentTable(PluginTable):
    """What is trained. `from` is a run, a checkpoint, or a recipe that is run first."""

    arch: str = "gpt"
    from_: str | None = Field(default=None, alias="from")


class TemplateTable(Table):
    """Prompts made of words: each `{key}` in the text becomes one of the list under that key."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[list[str], Field(min_length=1)]]

    text: str

    @property
    def words(self) -> dict[str, list[str]]:
        """The lists to choose from."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _every_name_has_words(self) -> TemplateTable:
        named = {name for _, name, _, _ in Formatter().parse(self.text) if name is not None}
        if missing := sorted(named - set(self.words)):
            raise ValueError(
                f"the text names {{{missing[0]}}}, but there is no list {missing[0]!r} beside it"
            )
        return self


class TeacherTable(PluginTable):
    """Who answers requests, how many are made, and what they may cost."""

    provider: str
    signal: Literal["text", "top_logprobs", "logits"] | None = None
    store: bool = False
    prompts: Natural = 0
    prompt_tokens: Positive = 32
    template: TemplateTable | None = None
    max_tokens: Positive = 96
    temperature: Real = 1.0
    top_p: Nucleus = 1.0
    top_logprobs: Natural = 0
    repeats: Positive = 1
    stop: list[str] = []
    learn_prompts: bool = False
    concurrency: Positive = 8
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    max_usd: PositiveReal | None = None


class MixerTable(PluginTable):
    """How hard and soft targets become one loss."""

    name: str = "hard"


class TrainTable(Table):
    """How long, how fast and how carefully. Without `final_learning_rate` it ends at a tenth."""

    steps: Positive = 600
    batch_size: Positive = 16
    accumulate: Positive = 1
    learning_rate: PositiveReal = 3e-4
    final_learning_rate: Real | None = None
    warmup: Natural = 50
    betas: Annotated[list[BelowOne], Field(min_length=2, max_length=2)] = [0.9, 0.95]
    epsilon: PositiveReal = 1e-8
    weight_decay: Real = 0.1
    clip: PositiveReal = 1.0
    evaluate_every: Positive = 100
    evaluate_batches: Positive = 20
    sample_every: Positive | None = None
    checkpoint_every: Positive = 200
    keep: Positive = 2
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    streams: Positive | Literal["auto"] = "auto"
    chunk: Positive | Literal["auto"] = "auto"


class SamplingTable(Table):
    """What the student writes for judges and the report. `prompts` is "held_out" or a file, one a line."""

    count: Natural = 8
    prompts: Annotated[str, Field(min_length=1)] = "held_out"
    prompt_tokens: Positive = 16
    max_tokens: Positive = 96
    temperature: Real = 0.8
    top_k: Natural = 0
    top_p: Nucleus = 1.0


def _none_is_no_teacher(values: Any) -> Any:
    """`provider = "none"` is how a recipe drops the teacher of the one that it extends."""
    return None if isinstance(values, dict) and values.get("provider") == "none" else values


OptionalTeacher = Annotated[TeacherTable | None, BeforeValidator(_none_is_no_teacher)]


class JudgeTable(PluginTable):
    """One judge, with a teacher of its own if it asks one."""

    name: str
    teacher: OptionalTeacher = None


class TrackerTable(PluginTable):
    """One tracker."""

    name: str


class Part(NamedTuple):
    """One place of a recipe where a plugin is named."""

    loc: Loc
    role: str
    name: str
    options: dict[str, Any]


class Recipe(Table):
    """A whole recipe, resolved and validated, but for the options of its plugins."""

    name: Annotated[str, Field(pattern=NAME, json_schema_extra={"x-expected": NAME_WORDS})]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    plugins: list[str] = []
    data: DataTable = Field(default_factory=DataTable)
    tokenizer: TokenizerTable = Field(default_factory=TokenizerTable)
    student: StudentTable = Field(default_factory=StudentTable)
    teacher: OptionalTeacher = None
    mixer: MixerTable = Field(default_factory=MixerTable)
    train: TrainTable = Field(default_factory=TrainTable)
    sampling: SamplingTable = Field(default_factory=SamplingTable)
    judge: list[JudgeTable] = Field(default_factory=lambda: [JudgeTable(name="perplexity")])
    tracker: list[TrackerTable] = []

    _origin: Origin = PrivateAttr(default_factory=lambda: Origin())

    @property
    def file(self) -> str:
        """The recipe file, as messages name it."""
        return self._origin.layers[0].file

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the recipe start from."""
        return self._origin.layers[0].folder

    def said_by(self, loc: Loc) -> Layer:
        """Which file (or `--set`) a value comes from; what nobody said is the recipe's own."""
        return self._origin.of(loc)

    def parts(self) -> Iterator[Part]:
        """Every place where a plugin is named."""
        yield Part(("data",), "sources", self.data.source, self.data.options)
        yield Part(("student",), "students", self.student.arch, self.student.options)
        if self.teacher:
            yield Part(("teacher",), "teachers", self.teacher.provider, self.teacher.options)
        yield Part(("mixer",), "mixers", self.mixer.name, self.mixer.options)
        for i, judge in enumerate(self.judge):
            yield Part(("judge", i), "judges", judge.name, judge.options)
            if judge.teacher:
                teacher = judge.teacher
                yield Part(("judge", i, "teacher"), "teachers", teacher.provider, teacher.options)
        for i, tracker in enumerate(self.tracker):
            yield Part(("tracker", i), "trackers", tracker.name, tracker.options)

    def replacing(self, values: Mapping[Loc, Any]) -> Recipe:
        """The same recipe with some values replaced."""
        tree = self.values()
        for loc, value in values.items():
            *parents, key = loc
            _dig(tree, parents)[key] = value
        return _validated(tree, self._origin)

    def values(self) -> Tree:
        """Plain values under the keys of TOML, defaults included; what is None is left out."""
        return self.model_dump(by_alias=True, exclude_none=True)

    def to_toml(self) -> str:
        """The resolved recipe: it loads back to an equal one."""
        import tomli_w

        return tomli_w.dumps(self.values())

    @cached_property
    def digest(self) -> str:
        """Equal recipes, equal digests, wherever their files lie."""
        return digest(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.values() == other.values()

    __hash__ = None  # type: ignore[assignment]


TABLES: dict[str, type[PluginTable]] = {
    "sources": DataTable,
    "students": StudentTable,
    "teachers": TeacherTable,
    "mixers": MixerTable,
    "judges": JudgeTable,
    "trackers": TrackerTable,
}
# Which key of a role's table names the plugin, and where such tables stand.
_KEYS = {"sources": "source", "students": "arch", "teachers": "provider"}
_KEYS |= {"mixers": "name", "judges": "name", "trackers": "name"}
_PLACES: dict[Loc, str] = {
    ("data",): "sources",
    ("student",): "students",
    ("teacher",): "teachers",
    ("mixer",): "mixers",
}
_PLACES |= {("judge",): "judges", ("judge", "teacher"): "teachers", ("tracker",): "trackers"}


def host_keys(role: str) -> frozenset[str]:
    """The keys of a role's table that are the host's, so no plugin may use them for its own."""
    model = TABLES.get(role)
    return frozenset(f.alias or name for name, f in model.model_fields.items()) if model else frozenset()


def plugin_key(role: str) -> str:
    """The key that names the plugin in a role's table."""
    return _KEYS[role]


# ------------------------------------------------------------------------------------------------- loading


@dataclass(frozen=True)
class Layer:
    """One file of a chain of `extends`: its name in messages, its folder, what it says."""

    file: str = "recipe"
    folder: Path = field(default_factory=Path)
    tree: Tree = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Who said what: the layers, the recipe itself first, and the places that `--set` wrote to."""

    layers: tuple[Layer, ...] = (Layer(),)
    written: frozenset[Loc] = frozenset()

    def of(self, loc: Loc) -> Layer:
        """The layer that decided a value."""
        if any(loc[:n] in self.written for n in range(1, len(loc) + 1)):
            return Layer("--set", Path())
        return next((layer for layer in self.layers if _has(layer.tree, loc)), self.layers[0])


def load(spec: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at a path, or the bundled one of that name, with `key.path=value` overrides applied."""
    layers = _chain(spec)
    tree: Tree = {}
    for layer in reversed(layers):
        tree = _merge(tree, layer.tree)
    tree.pop("extends", None)
    written = _apply(tree, overrides)
    _check_shape(tree, "--set")
    return _validated(tree, Origin(tuple(layers), written))


def bundled() -> dict[str, Path]:
    """The recipes that ship with the package."""
    try:
        folder = Path(str(resources.files("distillkit_recipes")))
    except ModuleNotFoundError:
        return {}
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def locate(value: str, folder: Path) -> str:
    """The absolute path of what exists in a folder, or else in the current one; otherwise the value."""
    try:
        for base in (folder, Path()):
            path = base / Path(value).expanduser()
            if path.exists() or (set("*?[") & set(value) and any(base.glob(value))):
                return str(path.absolute())
    except (OSError, ValueError, RuntimeError, NotImplementedError):
        pass  # not a path at all: whoever uses it will say so in its own words
    return value


def _chain(spec: str) -> list[Layer]:
    """A recipe and all that it extends, itself first."""
    layers: list[Layer] = []
    seen: list[Path] = []
    folder, wanted = Path(), spec
    while True:
        path, label = _find(wanted, folder, layers[-1].file if layers else "")
        if path.resolve() in seen:
            names = " -> ".join([layer.file for layer in layers] + [label])
            raise RecipeError(f"{layers[0].file}: extends goes in a circle: {names}")
        seen.append(path.resolve())
        tree = _read(path, label)
        _settle(tree, path.parent)
        layers.append(Layer(label, path.parent, tree))
        if "extends" not in tree:
            return layers
        folder, wanted = path.parent, tree["extends"]
        if not isinstance(wanted, str) or not wanted:
            raise RecipeError(
                f"{label}: extends: found {_shown(wanted)}, expected a path or the name of a bundled recipe"
            )


def _find(spec: str, folder: Path, asked_by: str) -> tuple[Path, str]:
    """The file that a path or a name means, and what messages call it."""
    path = folder / spec
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
        special = path.exists() and not is_folder  # a pipe, say: `<(...)` in a shell
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RecipeError(f"{_shown(spec)} cannot be a recipe: {why}") from error
    known = bundled()
    if not is_file and spec in known:
        return known[spec], known[spec].name
    if is_file or special:
        return path, str(path)
    if is_folder:
        raise RecipeError(f"{path} is a folder, expected a recipe file", "Name the .toml file in it.")
    by = f"{asked_by}: extends: " if asked_by else ""
    names = {*known, *(near.name for near in folder.glob("*.toml"))}
    hint = did_you_mean(spec, names) if names else "Make one: distillkit init"
    raise RecipeError(f"{by}there is no recipe {spec!r}", hint)


def _read(path: Path, file: str) -> Tree:
    """The values of a TOML file that is small, readable and sane."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise RecipeError(f"{file} is larger than {MOST_BYTES // 1024} KiB, expected a recipe")
        text = raw.decode("utf-8-sig")
        tree = tomllib.loads(text)
    except OSError as error:
        raise RecipeError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{file}: line {line}: not UTF-8 text, expected TOML") from error
    except RecursionError as error:
        raise RecipeError(f"{file}: values are nested too deeply") from error
    except ValueError as error:
        raise _bad_toml(file, text, error) from error
    if not tree:
        raise RecipeError(f"{file} is empty, expected a recipe", 'The least that will do: name = "my-recipe"')
    _check_shape(tree, file)
    return tree


def _bad_toml(file: str, text: str, error: ValueError) -> RecipeError:
    """What is wrong, where, and the line itself."""
    what = str(error)
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", what)
    if not place:
        return RecipeError(f"{file}: not TOML: {what.partition(';')[0]}")
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    line = int(place[1] or len(lines))
    column = int(place[2] or len(lines[-1]) + 1)
    shown = lines[line - 1].strip()[:100] if line <= len(lines) else ""
    return RecipeError(f"{file}: line {line}, column {column}: {what[: place.start()]}\n    {shown}".rstrip())


def _check_shape(tree: Tree, file: str) -> None:
    """Refuse what no recipe needs and later code would choke on; without recursion, as it may be deep."""
    todo: list[tuple[Loc, Any]] = [((), tree)]
    while todo:
        loc, value = todo.pop()
        if len(loc) > MOST_LEVELS:
            raise RecipeError(f"{file}: {_dotted(loc[:2])}...: values are nested too deeply")
        if isinstance(value, dict):
            todo += [((*loc, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            todo += [((*loc, i), inner) for i, inner in enumerate(value)]
        elif isinstance(value, float) and not isfinite(value):
            raise RecipeError(f"{file}: {_dotted(loc)}: found {value}, expected a finite number")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise RecipeError(
                f"{file}: {_dotted(loc)}: found a number beyond 64 bits, expected a smaller one"
            )


def _settle(tree: Tree, folder: Path) -> None:
    """Make the host's own paths absolute, while it is known which file they came from."""

    def settle(table: str, key: str, meant: Callable[[str], bool]) -> None:
        values = tree.get(table)
        if isinstance(values, dict) and isinstance(value := values.get(key), str) and value and meant(value):
            values[key] = locate(value, folder)

    def is_folder(value: str) -> bool:
        return value != "bpe" and Path(locate(value, folder)).is_absolute() and (folder / value).is_dir()

    settle("tokenizer", "ranks", lambda value: True)
    settle("tokenizer", "kind", is_folder)
    settle("sampling", "prompts", lambda value: value != "held_out")
    settle("student", "from", lambda value: "/" in value or value.endswith(".toml"))


def _merge(parent: Tree, child: Tree, loc: Loc = ()) -> Tree:
    """The parent's values under the child's: tables merge, everything else is replaced."""
    role = _role_at(loc)
    if role and _KEYS[role] in child and child[_KEYS[role]] != _plugin_of(parent, role):
        parent = _without_options(parent, role)
    merged = dict(parent)
    for key, value in child.items():
        both = isinstance(value, dict) and isinstance(parent.get(key), dict)
        merged[key] = _merge(parent[key], value, (*loc, key)) if both else value
    return merged


def _role_at(loc: Loc) -> str | None:
    """The role whose table stands at a place."""
    return _PLACES.get(tuple(key for key in loc if isinstance(key, str)))


def _plugin_of(values: Tree, role: str) -> Any:
    """The plugin that a table names, by default if need be."""
    return values.get(_KEYS[role], TABLES[role].model_fields[_KEYS[role]].default)


def _without_options(values: Tree, role: str) -> Tree:
    """A table's host keys: options of one plugin mean nothing to another."""
    return {key: value for key, value in values.items() if key in host_keys(role)}


# ------------------------------------------------------------------------------------------------- overrides


def _apply(tree: Tree, overrides: Sequence[str]) -> frozenset[Loc]:
    """Write every `key.path=value` into the tree; returns the places written."""
    written: set[Loc] = set()
    for override in overrides:
        loc, value = _parse(override)
        if loc[0] == "judge" and len(loc) > 1:
            tree.setdefault("judge", [{"name": "perplexity"}])
        _write(tree, loc, value, override, written)
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
        raise UsageError(f"--set {_shown(override)}: expected key.path=value", example) from error
    try:
        parsed = tomllib.loads(f"value = {text.strip()}")
    except RecursionError as error:
        raise UsageError(f"--set {key.strip()}: the value is nested too deeply") from error
    except ValueError:
        parsed = {}
    value = parsed["value"] if set(parsed) == {"value"} else text
    return tuple(int(word) if word.isdecimal() else word for word in words), value


def _write(tree: Tree, loc: Loc, value: Any, override: str, written: set[Loc]) -> None:
    """Put one value into the tree, making tables on the way."""
    here: Any = tree
    for depth, key in enumerate(loc):
        last = depth == len(loc) - 1
        if isinstance(here, list):
            _check_index(here, key, loc[:depth], override)
            if key == len(here):
                here.append({})
        elif not isinstance(here, dict):
            raise UsageError(
                f"--set {_shown(override)}: {_dotted(loc[:depth])} is {_shown(here)}, not a table"
            )
        else:
            key = str(key)
        if last:
            role = _role_at(loc[:-1]) if isinstance(here, dict) else None
            if role and key == _KEYS[role] and value != _plugin_of(here, role):
                _drop_options(here, role, loc[:-1], written)
            here[key] = _settled(loc, value)
        else:
            here = (
                here.setdefault(key, [] if key == "tracker" else {}) if isinstance(here, dict) else here[key]
            )


def _check_index(items: list[Any], key: str | int, loc: Loc, override: str) -> None:
    """A list is indexed by a number: one that is there, or the next."""
    if not isinstance(key, int) or key > len(items):
        raise UsageError(
            f"--set {_shown(override)}: {_dotted(loc)} is a list of {len(items)}, and has no {str(key)!r}",
            f"Write it as {_dotted(loc)}.0.key=value",
        )


def _drop_options(here: Tree, role: str, loc: Loc, written: set[Loc]) -> None:
    """Forget the options of the former plugin, but not those that this same command gave."""
    keep = _without_options(here, role)
    for key in list(here):
        if key not in keep and not any(place[: len(loc) + 1] == (*loc, key) for place in written):
            del here[key]


def _settled(loc: Loc, value: Any) -> Any:
    """The value with its paths made absolute: on a command line they start from the current folder."""
    tree: Any = value
    for key in reversed(loc):
        tree = {key: tree}
    _settle(tree, Path())
    return _dig(tree, loc)


# ------------------------------------------------------------------------------------------------- blame


def explain(
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
    at = _loc(table)
    try:
        schema = model.model_json_schema()
    except Exception:  # noqa: BLE001 - a plugin's own types may have no schema; its messages must do then
        schema = {}
    faults: dict[Loc, tuple[str, str]] = {}
    for fault in error.errors(include_url=False):
        loc, kind, siblings = _walk(schema, fault["loc"])
        if loc and (*at, *loc) not in faults:
            faults[(*at, *loc)] = _fault((*at, *loc), fault, kind, known if len(loc) == 1 else siblings)
        elif not loc:
            faults.setdefault(at, (f"{_dotted(at) or 'it'}: {_message(fault)}", ""))
    lines = [
        (f"{file if isinstance(file, str) else file(loc)}: {text}", hint)
        for loc, (text, hint) in faults.items()
    ]
    return refusal(lines)


def refusal(lines: Sequence[tuple[str, str]]) -> RecipeError:
    """One error for all that is wrong: a message and a hint each."""
    if len(lines) == 1:
        return RecipeError(*lines[0])
    shown = [f"{text}. {hint}" if hint else text for text, hint in lines[:MOST_FAULTS]]
    more = len(lines) - len(shown)
    return RecipeError("\n".join([*shown, f"and {more} more"] if more else shown))


def _validated(tree: Tree, origin: Origin) -> Recipe:
    """The recipe of a tree of values, or everything that is wrong with it."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise explain(
            error, lambda loc: origin.of(loc).file, (), Recipe.model_fields, model=Recipe
        ) from error
    recipe._origin = origin
    return recipe


def _fault(loc: Loc, fault: Any, schema: Tree, known: Iterable[str]) -> tuple[str, str]:
    """One fault in words, and what to do about it."""
    if fault["type"] == "extra_forbidden":
        return f"unknown key {_dotted(loc)}", did_you_mean(str(loc[-1]), known)
    found = "nothing" if fault["type"] == "missing" else _shown(fault["input"])
    if fault["type"] in ("value_error", "assertion_error") or not schema:
        about = "" if found == "a table" else f" found {found}:"
        return f"{_dotted(loc)}:{about} {_message(fault)}", ""
    return f"{_dotted(loc)}: found {found}, expected {_expected(schema)}", ""


def _message(fault: Any) -> str:
    return str(fault["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")


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
        return " or ".join(_shown(value) for value in schema.get("enum", [schema.get("const")]))
    noun = _NOUNS.get(schema.get("type", ""), "something else")
    if schema.get("minLength"):
        noun += " that is not empty"
    if noun == "a list" and "items" in schema:
        size = schema.get("minItems") if schema.get("minItems") == schema.get("maxItems") else None
        return f"a list{f' of {size}' if size else ''}, each {_expected(schema['items'])}"
    bounds = [f"{word} {schema[key]:g}" for key, word in _BOUNDS.items() if key in schema]
    return f"{noun} {' and '.join(bounds)}".rstrip()


def _shown(value: Any) -> str:
    """A value as a recipe would have it, cut to fit a message."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        text = f"[{', '.join(_shown(item) for item in value[:4])}{', ...' if value[4:] else ''}]"
    else:
        text = f'"{value[:80]}"' if isinstance(value, str) else str(value)
    return ascii(text)[1:-1].replace("\\'", "'") if not text.isprintable() else text


def _dotted(loc: Loc) -> str:
    return ".".join(str(key) if str(key).isprintable() else ascii(key) for key in loc)


def _loc(table: str | Loc) -> Loc:
    if not isinstance(table, str):
        return table
    return tuple(int(word) if word.isdecimal() else word for word in table.split(".") if word)


def _dig(tree: Any, loc: Iterable[str | int]) -> Any:
    for key in loc:
        tree = tree[key]
    return tree


def _has(tree: Any, loc: Loc) -> bool:
    try:
        _dig(tree, loc)
    except (KeyError, IndexError, TypeError):
        return False
    return True
