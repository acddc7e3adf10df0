"""The validated `Recipe`, and loading one from TOML.

`schema` defines the tables, `loading` reads a file and the recipes it extends, `overrides` applies `--set`, and
`messages` formats validation errors. Knows no plugin: options of plugins are kept as they are, under `options`, and
validated by `distillkit.plugins`.
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
    OptimizerTable,
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
from .versions import CURRENT_VERSION, FIRST_VERSION, VERSION_KEY, apply_former_defaults

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
    """A plugin that a recipe names: its role, its name, its options, and its path in the recipe."""

    loc: Loc
    role: str
    name: str
    options: dict[str, Any]


def _check_unique(judges: list[JudgeTable]) -> list[JudgeTable]:
    """Refuse two judges of one name, because grades are stored under the name of the judge."""
    names = [judge.name for judge in judges]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        several = ", ".join(map(quote, twice))
        raise ValueError(f"{several} is listed twice, expected each judge once; use a second run for other options")
    return judges


class Recipe(Table):
    """A resolved recipe. Everything but the options of plugins is validated."""

    name: Name = Field(description="name of the recipe and of its folder of runs")
    recipe_version: Annotated[int, Field(ge=FIRST_VERSION)] = Field(
        default=FIRST_VERSION, description="version of the defaults that apply; the first one if not set"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=42, description="random seed of the run")
    plugins: list[str] = Field(
        default=[], description="plugin packages that must be installed, such as distillkit-x>=0.2"
    )
    data: DataTable = Field(default_factory=DataTable)
    tokenizer: TokenizerTable = Field(default_factory=TokenizerTable)
    student: StudentTable = Field(default_factory=StudentTable)
    teacher: OptionalTeacher = None
    mixer: MixerTable = Field(default_factory=MixerTable)
    optimizer: OptimizerTable = Field(default_factory=OptimizerTable)
    train: TrainTable = Field(default_factory=TrainTable)
    sampling: SamplingTable = Field(default_factory=SamplingTable)
    judge: Annotated[list[JudgeTable], AfterValidator(_check_unique)] = Field(
        default_factory=lambda: [JudgeTable(name="perplexity")]
    )
    tracker: list[TrackerTable] = Field(default=[])

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @property
    def file(self) -> str:
        """The name of the recipe file in messages."""
        return self._origin.layers[0].file

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the recipe refer to."""
        return self._origin.layers[0].folder

    def layer_of(self, loc: Loc) -> Layer:
        """The file (or `--set`) that set a value; the recipe file itself for defaults."""
        return self._origin.of(loc)

    @property
    def starts_from_recipe(self) -> bool:
        """Whether the student starts from the weights of another recipe, which is run first."""
        return refers_to_recipe(self.student.from_ or "")

    def plugin_uses(self) -> Iterator[PluginUse]:
        """Every plugin that the recipe names."""
        yield PluginUse(("data",), "sources", self.data.source, self.data.options)
        yield PluginUse(("student",), "students", self.student.arch, self.student.options)
        if self.teacher:
            yield PluginUse(("teacher",), "teachers", self.teacher.provider, self.teacher.options)
        yield PluginUse(("mixer",), "mixers", self.mixer.name, self.mixer.options)
        yield PluginUse(("optimizer",), "optimizers", self.optimizer.name, self.optimizer.options)
        for i, judge in enumerate(self.judge):
            yield PluginUse(("judge", i), "judges", judge.name, judge.options)
            if judge.teacher:
                teacher = judge.teacher
                yield PluginUse(("judge", i, "teacher"), "teachers", teacher.provider, teacher.options)
        for i, tracker in enumerate(self.tracker):
            yield PluginUse(("tracker", i), "trackers", tracker.name, tracker.options)

    def missing_files(self) -> Iterator[RecipeError]:
        """An error for each missing file that a host key names."""
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
        """Every teacher table, with its path."""
        if self.teacher:
            yield ("teacher",), self.teacher
        for i, judge in enumerate(self.judge):
            if judge.teacher:
                yield ("judge", i, "teacher"), judge.teacher

    def with_values(self, values: Mapping[Loc, Any]) -> Recipe:
        """A copy of the recipe with some values replaced."""
        tree = self.values()
        for loc, value in values.items():
            get_at(tree, loc[:-1])[loc[-1]] = value
        return _validate(tree, self._origin)

    def values(self) -> Tree:
        """The recipe as plain values under TOML keys. Includes defaults, omits None."""
        return self.model_dump(by_alias=True, exclude_none=True)

    def to_toml(self) -> str:
        """The resolved recipe as TOML. Loading it gives an equal recipe."""
        import tomli_w

        return tomli_w.dumps(self.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the values; independent of where the recipe file is."""
        return digest(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.values() == other.values()

    __hash__ = None  # type: ignore[assignment]


def load(spec: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe file, or the bundled recipe of that name, and apply `key.path=value` overrides."""
    layers = load_layers(spec)
    tree = merge_layers(layers)
    written = apply_overrides(tree, overrides)
    check_values(tree, "--set")
    origin = Origin(layers, written)
    apply_former_defaults(tree, origin.of((VERSION_KEY,)).file)
    return _validate(tree, origin)


def check_start_chain(recipe: Recipe) -> None:
    """Check that every recipe in the chain of `student.from` exists, and that the chain has no cycle."""
    at, seen = recipe, [_file_of(recipe)]
    while at.starts_from_recipe:
        at = load(str(at.student.from_))
        seen.append(_file_of(at))
        if seen[-1] in seen[:-1]:
            names = " -> ".join(file.name for file in seen)
            message = f"{recipe.file}: student.from forms a cycle: {names}"
            raise RecipeError(message, "Let one of these recipes start from a run, or remove its student.from.")


def _file_of(recipe: Recipe) -> Path:
    return recipe.folder.resolve() / Path(recipe.file).name


def _validate(tree: Tree, origin: Origin) -> Recipe:
    """The recipe of a tree of values. Raises one RecipeError that lists all validation errors."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        file_of = lambda loc: origin.of(loc).file  # noqa: E731
        raise recipe_error(error, file_of, (), Recipe.model_fields, model=Recipe) from error
    recipe._origin = origin
    return recipe


def starter_recipe(name: str) -> str:
    """The text of the recipe that `distillkit init` writes."""
    _validate({"name": name}, Origin((Layer("distillkit init"),)))
    return STARTER.format(name=name, version=CURRENT_VERSION)


STARTER = """\
# {name}: your recipe. It contains only the differences from the quickstart. Change one thing at a time.
# Show all values:           distillkit recipe show {name}.toml
# Estimate cost and time:    distillkit plan {name}.toml
# Compare with quickstart:   distillkit compare quickstart {name}
extends = "quickstart"
name = "{name}"
recipe_version = {version}

# Your own texts instead of the generated tales: .txt, .jsonl or .parquet.
# [data]
# source = "text"
# path = "stories/*.txt"
# separator = "---"  # separator of the texts in one file, if it is not <|endoftext|>

[student]
layers = 4              # more layers and a larger width learn more and take longer
width = 128             # a multiple of the number of heads, which is 4

[mixer]
alpha = 0.3             # weight of the texts; 1 - alpha is the weight of the teacher's probabilities
temperature = 1.0       # above 1, unlikely tokens of the teacher count more

[train]
steps = 600             # more steps learn more, up to a point, and take longer
"""
