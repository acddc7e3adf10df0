"""The tables of a recipe: the host's keys, what may stand under them, and what they are when nobody says.

Knows which tables name a plugin. Does not know any plugin, nor where a table was written.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from .blame import Loc

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
PositiveReal = Annotated[float, Field(gt=0)]
Real = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Nucleus = Annotated[float, Field(gt=0, le=1)]

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$"
NAME_WORDS = "at most 80 letters, digits, '_', '.' and '-', beginning with a letter or a digit"
NEWEST = "latest"  # what commands call the newest run, so no recipe may be called it


def _not_the_newest(name: str) -> str:
    if name == NEWEST:
        raise ValueError(f"{name!r} means the newest run, so a recipe needs another name")
    return name


Name = Annotated[
    str,
    Field(pattern=NAME, json_schema_extra={"x-expected": NAME_WORDS, "not": {"const": NEWEST}}),
    AfterValidator(_not_the_newest),
]


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


class TeacherTable(PluginTable):
    """Who answers requests, how many are made, and how."""

    provider: str
    signal: Literal["text", "top_logprobs", "logits"] | None = None
    prompts: Natural = 0
    prompt_tokens: Positive = 32
    max_tokens: Positive = 96
    temperature: Real = 1.0
    top_p: Nucleus = 1.0
    top_logprobs: Natural = 0
    repeats: Positive = 1
    stop: list[str] = []
    learn_prompts: bool = False
    concurrency: Positive = 8


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


NO_TEACHER = "none"  # the provider by which a recipe drops the teacher of the one that it extends


def _no_teacher(values: Any) -> Any:
    return None if isinstance(values, dict) and values.get("provider") == NO_TEACHER else values


OptionalTeacher = Annotated[TeacherTable | None, BeforeValidator(_no_teacher)]


class JudgeTable(PluginTable):
    """One judge, with a teacher of its own if it asks one."""

    name: str
    teacher: OptionalTeacher = None


class TrackerTable(PluginTable):
    """One tracker."""

    name: str


# ------------------------------------------------------------------------------------------------------ roles

TABLES: dict[str, type[PluginTable]] = {
    "sources": DataTable,
    "students": StudentTable,
    "teachers": TeacherTable,
    "mixers": MixerTable,
    "judges": JudgeTable,
    "trackers": TrackerTable,
}
_NAMED_BY = {"sources": "source", "students": "arch", "teachers": "provider"}  # the others: by "name"
_PLACES: dict[Loc, str] = {
    ("data",): "sources",
    ("student",): "students",
    ("teacher",): "teachers",
    ("mixer",): "mixers",
    ("judge",): "judges",
    ("judge", "teacher"): "teachers",
    ("tracker",): "trackers",
}


def host_keys(role: str) -> frozenset[str]:
    """The keys of a role's table that are the host's, so no plugin may use them for its own."""
    return keys_of(TABLES[role]) if role in TABLES else frozenset()


def keys_of(model: type[BaseModel]) -> frozenset[str]:
    """The keys that a recipe uses for a model's fields."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def plugin_key(role: str) -> str:
    """The key that names the plugin in a role's table."""
    return _NAMED_BY.get(role, "name")


def role_at(loc: Loc) -> str | None:
    """The role whose table stands at a place; where there is a list of them, at any of its places."""
    return _PLACES.get(tuple(key for key in loc if isinstance(key, str)))


def plugin_of(values: dict[str, Any], role: str) -> Any:
    """The plugin that a role's table names, by default if need be."""
    key = plugin_key(role)
    return values.get(key, TABLES[role].model_fields[key].default)


def without_options(values: dict[str, Any], role: str) -> dict[str, Any]:
    """A role's table without its plugin's options: those of one plugin mean nothing to another."""
    return {key: value for key, value in values.items() if key in host_keys(role)}
