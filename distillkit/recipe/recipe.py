"""From TOML to a validated Recipe: the front of four files.

`tables` says what may stand in one, `layers` reads a file and what it extends, `overrides` writes `--set`
over it, `blame` says what is wrong. Knows no plugin, nor what its options mean: they are kept beside the
host's keys, under `options`, for `plugins` to check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError

from ..core.errors import RecipeError
from ..core.files import digest, is_readable_file
from .loading import (
    Layer,
    Origin,
    bundled_recipes,
    check_values,
    get_at,
    load_layers,
    merge_layers,
    refers_to_recipe,
    resolve_path,
)
from .messages import Loc, Tree, dotted_key, quote, recipe_error
from .overrides import apply_overrides
from .schema import (
    BUILTIN_PROMPTS,
    NAME,
    TABLES,
    DataTable,
    JudgeTable,
    MixerTable,
    Name,
    OptionalTeacher,
    SamplingTable,
    StudentTable,
    Table,
    TeacherTable,
    TokenizerTable,
    TrackerTable,
    TrainTable,
    host_keys,
)

__all__ = [
    "NAME",
    "TABLES",
    "JudgeTable",
    "PluginUse",
    "Recipe",
    "bundled_recipes",
    "recipe_error",
    "host_keys",
    "load",
    "resolve_path",
    "check_start_chain",
    "refers_to_recipe",
    "starter_recipe",
]


class PluginUse(NamedTuple):
    """One place of a recipe where a plugin is named."""

    loc: Loc
    role: str
    name: str
    options: dict[str, Any]


def _each_once(judges: list[JudgeTable]) -> list[JudgeTable]:
    """What a judge says is kept under its name, so a second one of that name would write over the first."""
    names = [judge.name for judge in judges]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        several = ", ".join(map(quote, twice))
        raise ValueError(f"{several} judges twice, expected each judge once; with other options, judge a second run")
    return judges


class Recipe(Table):
    """A whole recipe, resolved and validated, but for the options of its plugins."""

    name: Name = Field(description="what its runs are called")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=42, description="what all chance is drawn from")
    plugins: list[str] = Field(default=[], description="packages that must be installed: distillkit-x>=0.2")
    data: DataTable = Field(default_factory=DataTable)
    tokenizer: TokenizerTable = Field(default_factory=TokenizerTable)
    student: StudentTable = Field(default_factory=StudentTable)
    teacher: OptionalTeacher = None
    mixer: MixerTable = Field(default_factory=MixerTable)
    train: TrainTable = Field(default_factory=TrainTable)
    sampling: SamplingTable = Field(default_factory=SamplingTable)
    judge: Annotated[list[JudgeTable], AfterValidator(_each_once)] = Field(
        default_factory=lambda: [JudgeTable(name="perplexity")]
    )
    tracker: list[TrackerTable] = Field(default=[])

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @property
    def file(self) -> str:
        """The recipe file, as messages name it."""
        return self._origin.layers[0].file

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the recipe start from."""
        return self._origin.layers[0].folder

    def layer_of(self, loc: Loc) -> Layer:
        """Which file (or `--set`) a value comes from; what nobody said is the recipe's own."""
        return self._origin.of(loc)

    @property
    def starts_from_recipe(self) -> bool:
        """Whether its student begins as that of another recipe, which is run first."""
        return refers_to_recipe(self.student.from_ or "")

    def plugin_uses(self) -> Iterator[PluginUse]:
        """Every place where a plugin is named."""
        yield PluginUse(("data",), "sources", self.data.source, self.data.options)
        yield PluginUse(("student",), "students", self.student.arch, self.student.options)
        if self.teacher:
            yield PluginUse(("teacher",), "teachers", self.teacher.provider, self.teacher.options)
        yield PluginUse(("mixer",), "mixers", self.mixer.name, self.mixer.options)
        for i, judge in enumerate(self.judge):
            yield PluginUse(("judge", i), "judges", judge.name, judge.options)
            if judge.teacher:
                teacher = judge.teacher
                yield PluginUse(("judge", i, "teacher"), "teachers", teacher.provider, teacher.options)
        for i, tracker in enumerate(self.tracker):
            yield PluginUse(("tracker", i), "trackers", tracker.name, tracker.options)

    def missing_files(self) -> Iterator[RecipeError]:
        """The host's own files that are not there."""
        files: dict[Loc, str | None] = {("tokenizer", key): getattr(self.tokenizer, key) for key in ("ranks", "model")}
        if self.sampling.prompts not in BUILTIN_PROMPTS:
            files["sampling", "prompts"] = self.sampling.prompts
        for at, teacher in self._teachers():
            files[*at, "prompts_file"] = teacher.prompts_file
            words = teacher.template.words if teacher.template else {}
            files |= {(*at, "template", "words", slot): one for slot, one in words.items() if isinstance(one, str)}
        for loc, file in files.items():
            if file is not None and not is_readable_file(Path(file)):
                wrong = f"{dotted_key(loc)}: found {quote(file)}, expected a file that exists"
                yield RecipeError(f"{self.layer_of(loc).file}: {wrong}")

    def _teachers(self) -> Iterator[tuple[Loc, TeacherTable]]:
        """Every table of a teacher, and where it stands."""
        if self.teacher:
            yield ("teacher",), self.teacher
        for i, judge in enumerate(self.judge):
            if judge.teacher:
                yield ("judge", i, "teacher"), judge.teacher

    def with_values(self, values: Mapping[Loc, Any]) -> Recipe:
        """The same recipe with some values replaced."""
        tree = self.values()
        for loc, value in values.items():
            get_at(tree, loc[:-1])[loc[-1]] = value
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


def load(spec: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at a path, or the bundled one of that name, with `key.path=value` overrides applied."""
    layers = load_layers(spec)
    tree = merge_layers(layers)
    written = apply_overrides(tree, overrides)
    check_values(tree, "--set")
    return _validated(tree, Origin(layers, written))


def check_start_chain(recipe: Recipe) -> None:
    """Follow `student.from` from recipe to recipe: each must be there, and none may begin with itself."""
    at, seen = recipe, [_file_of(recipe)]
    while at.starts_from_recipe:
        at = load(str(at.student.from_))
        seen.append(_file_of(at))
        if seen[-1] in seen[:-1]:
            names = " -> ".join(file.name for file in seen)
            told = f"{recipe.file}: student.from goes in a circle: {names}"
            raise RecipeError(told, "Let one of them begin with a run, or with nothing.")


def _file_of(recipe: Recipe) -> Path:
    return recipe.folder.resolve() / Path(recipe.file).name


def _validated(tree: Tree, origin: Origin) -> Recipe:
    """The recipe of a tree of values, or everything that is wrong with it."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        said_by = lambda loc: origin.of(loc).file  # noqa: E731
        raise recipe_error(error, said_by, (), Recipe.model_fields, model=Recipe) from error
    recipe._origin = origin
    return recipe


def starter_recipe(name: str) -> str:
    """The text of a first recipe of one's own, for `distillkit init`."""
    _validated({"name": name}, Origin((Layer("distillkit init"),)))
    return STARTER.format(name=name)


STARTER = """\
# {name}: a recipe of your own. It says only what differs from the quickstart; change one thing at a time.
# All that it inherits:  distillkit recipe show {name}.toml
# What a run will take:  distillkit plan {name}.toml
# Is it better?          distillkit compare quickstart {name}
extends = "quickstart"
name = "{name}"

# Texts of your own instead of the bundled tales: .txt, .jsonl or .parquet.
# [data]
# source = "text"
# path = "stories/*.txt"
# separator = "---"  # what stands between the texts of one file, where it is not <|endoftext|>

[student]
layers = 4              # more layers and a greater width learn more, and take longer
width = 128             # a multiple of heads, of which there are 4

[mixer]
alpha = 0.3             # 1 learns from the texts alone, 0 from the teacher's opinion alone
temperature = 1.0       # above 1, what the teacher holds for less likely counts for more

[train]
steps = 600             # more steps learn more, up to a point, and take as much longer
"""
