"""The tables of a recipe: the host's keys, what may stand under them, and what they are when nobody says.

Knows which tables name a plugin. Does not know any plugin, nor where a table was written.
"""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..core.errors import did_you_mean
from .messages import Loc
from .schedules import ScheduleName

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
PositiveReal = Annotated[float, Field(gt=0)]
Real = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Nucleus = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$"
NAME_WORDS = "at most 80 letters, digits, '_', '.' and '-', beginning with a letter or a digit"
LATEST = "latest"  # what commands call the newest run, so no recipe may be called it


def _not_the_newest(name: str) -> str:
    if name == LATEST:
        raise ValueError(f"{name!r} means the newest run, so a recipe needs another name")
    return name


Name = Annotated[
    str,
    Field(pattern=NAME, json_schema_extra={"x-expected": NAME_WORDS, "not": {"const": LATEST}}),
    AfterValidator(_not_the_newest),
]


class Table(BaseModel):
    """A table of the recipe that is all the host's: unknown keys are refused here."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class PluginTable(Table):
    """A table that names a plugin: keys that are not the host's are the plugin's options."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The plugin's options, as the recipe has them."""
        return dict(self.model_extra or {})


class DataTable(PluginTable):
    """Where documents come from, and which are held out."""

    source: str = Field(default="tales", description="a source plugin")
    documents: Positive | None = Field(default=None, description="how many to take; all if not set")
    tokens: Positive | None = Field(
        default=None, description="stop with the document in which there are so many tokens to train on"
    )
    held_out: Fraction = Field(default=0.05, description="share of documents kept from training, by the hash of each")
    block_chars: Positive | None = Field(
        default=None, description="cut longer documents into blocks of at most this many characters"
    )


class TokenizerTable(Table):
    """What turns text into tokens."""

    kind: str = Field(
        default="bpe",
        description="bpe or sentencepiece (trained on the corpus), gpt2, a tiktoken name, a folder, a run "
        "or a bundled student",
    )
    vocab_size: Positive | None = Field(
        default=None, description="for bpe and sentencepiece: how many tokens; 2048 if not set"
    )
    ranks: str | None = Field(
        default=None, description="for a tiktoken name: its ranks, from a file instead of the network"
    )
    model: str | None = Field(default=None, description="for sentencepiece: a model that is trained already")

    @model_validator(mode="before")
    @classmethod
    def _size_of_what_is_trained(cls, values: Any) -> Any:
        trained = isinstance(values, dict) and values.get("kind", "bpe") in ("bpe", "sentencepiece")
        return {"vocab_size": 2048, **values} if trained and "model" not in values else values


class StudentTable(PluginTable):
    """What is trained, and from whose weights it begins."""

    arch: str = Field(default="gpt", description="a student plugin")
    from_: str | None = Field(
        default=None,
        alias="from",
        description="begin with the weights of this run, checkpoint, or recipe, which is run first",
    )


BUILTIN_SLOTS = ("verb", "noun", "adjective")  # those that bundled lists of words fill
TEMPLATE = (
    "Write a short story of three to five paragraphs that a three-year-old understands, in very simple words. "
    'Use the verb "{verb}", the noun "{noun}" and the adjective "{adjective}" in it. {features} '
    "Reply with the story only."
)
FEATURES = {
    "dialogue": "The story has dialogue.",
    "twist": "Something unexpected happens.",
    "bad_ending": "The story ends badly.",
    "moral": "The story teaches a lesson.",
    "conflict": "Two characters do not agree at first.",
    "foreshadowing": "Something early in the story hints at how it ends.",
}


class TemplateTable(Table):
    """Prompts drawn from a text with slots: no two alike."""

    text: Annotated[str, Field(min_length=1)] = Field(
        default=TEMPLATE, description="{verb} and the like are drawn from words, {features} from features"
    )
    words: dict[str, list[str] | str] = Field(
        default={}, description="for each slot a list of words, or a file with one a line"
    )
    features: dict[str, str] = Field(default=FEATURES, description="sentences that a prompt may have, by name")
    most_features: Natural = Field(default=2, description="at most so many of them in one prompt")

    @property
    def slots(self) -> list[str]:
        """The slots of the text, in their order, but for that of features."""
        named = (name for _, name, _, _ in Formatter().parse(self.text) if name is not None)
        return [name for name in dict.fromkeys(named) if name != "features"]

    @model_validator(mode="after")
    def _slots_are_plain(self) -> TemplateTable:
        for _, name, spec, conversion in Formatter().parse(self.text):
            if name is not None and (spec or conversion or not name.isidentifier()):
                raise ValueError("the text has a slot that is no plain name; write {verb}, and {{ }} for braces")
        return self

    @model_validator(mode="after")
    def _slots_are_filled(self) -> TemplateTable:
        for slot in self.slots:
            if slot not in self.words and slot not in BUILTIN_SLOTS:
                near = did_you_mean(slot, {*BUILTIN_SLOTS, *self.words, "features"})
                raise ValueError(f"the slot {{{slot}}} of the text has no words. {near}")
        for name, words in self.words.items():
            if name not in self.slots:
                raise ValueError(f"the text has no slot {{{name}}} for these words. {did_you_mean(name, self.slots)}")
            if not words:
                raise ValueError(f"words.{name} is empty")
        return self


class PriceTable(Table):
    """What a million tokens cost, in US dollars."""

    input: Real = Field(description="a million tokens of prompts")
    output: Real = Field(description="a million tokens of answers")


class TeacherTable(PluginTable):
    """Who answers requests, how many are made, and how.

    A request goes on from a training document, or is drawn from `template`, or stands in `prompts_file`.
    """

    provider: str = Field(description="a teacher plugin, or none")
    signal: Literal["text", "top_logprobs", "logits"] | None = Field(
        default=None, description="use no more of the teacher than this"
    )
    prompts: Natural = Field(
        default=0, description="how many prompts: documents to go on from, draws, or lines; of a file all if not set"
    )
    prompt_tokens: Positive = Field(default=32, description="how much of each it is shown")
    max_tokens: Positive = Field(default=96, description="the most it may write")
    temperature: Real = Field(default=1.0, description="how freely it writes")
    top_p: Nucleus = Field(default=1.0, description="draw from the fewest tokens that hold this share")
    top_logprobs: Natural = Field(default=0, description="how many log-probabilities a token to ask for")
    repeats: Annotated[int, Field(gt=0, le=10_000)] = Field(default=1, description="answers a prompt")
    stop: list[str] = Field(default=[], description="words that end an answer")
    on_policy: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="share of each batch's rows that the student goes on with itself, after prompt_tokens of each, "
        "while its teacher judges every word of it: by logits, or by the top_logprobs of a server that reads given "
        "text; such rows carry no hard loss",
    )
    learn_prompts: bool = Field(default=False, description="learn the prompts of answers too, not only the answers")
    share: Share | None = Field(
        default=None, description="share of the rows of each step that are answers; as many as there are if not set"
    )
    held_out: BelowOne = Field(
        default=0.0, description="share of prompts whose answers are kept from training and validated on, by their hash"
    )
    store: bool = Field(
        default=False, description="ask a teacher with logits once, before training, and keep its top_logprobs (or 20)"
    )
    store_samples: Annotated[int, Field(gt=0, le=255)] | None = Field(
        default=None, description="keep so many draws a position in the store instead of the likeliest tokens"
    )
    concurrency: Positive = Field(default=8, description="how many requests at once, for teachers that are waited for")
    system: str | None = Field(
        default=None,
        description="what a teacher that chats is told first; for documents, to go on from them, if not set",
    )
    template: TemplateTable | None = Field(default=None, description="draw the prompts from a text with slots")
    prompts_file: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="take the prompts from a file: one a line, or .jsonl with prompt or messages"
    )
    timeout: PositiveReal | None = Field(
        default=None, description="seconds one answer may take: 120 if it is waited for, 3600 if it is made here"
    )
    attempts: Positive = Field(default=5, description="how often a request that fails is made, or answered by nothing")
    requests_per_minute: Positive | None = Field(default=None, description="learnt from the provider if not set")
    tokens_per_minute: Positive | None = Field(default=None, description="learnt from the provider if not set")
    requests_per_day: Positive | None = Field(default=None, description="learnt from the provider if not set")
    tokens_per_day: Positive | None = Field(default=None, description="learnt from the provider if not set")
    max_usd: PositiveReal | None = Field(default=None, description="stop before a run has spent more")
    max_requests: Positive | None = Field(default=None, description="stop before a run has made more calls")
    max_tokens_total: Positive | None = Field(default=None, description="stop before a run has used more tokens")
    price: PriceTable | None = Field(default=None, description="what tokens cost, if not what the plugin knows")

    @model_validator(mode="after")
    def _one_kind_of_prompts(self) -> TeacherTable:
        if self.template and self.prompts_file:
            raise ValueError("has both a template and a prompts_file, expected one of them")
        if self.template and not self.prompts:
            raise ValueError("has a template but prompts = 0, expected how many prompts to draw from it")
        if self.store_samples and not self.store:
            raise ValueError("has store_samples without store = true, expected both or neither")
        if self.max_usd is not None and self.price is not None and self.price.input == self.price.output == 0:
            raise ValueError("has max_usd, but a price of 0, which never reaches it")
        return self


class MixerTable(PluginTable):
    """How hard and soft targets become one loss."""

    name: str = Field(default="hard", description="a mixer plugin")


class TrainTable(Table):
    """How long, how fast and how carefully. Without `final_learning_rate` it ends at a tenth."""

    steps: Positive = Field(default=600, description="how many steps; raise it to extend a run")
    batch_size: Positive = Field(default=16, description="rows of tokens at once, on all machines together")
    accumulate: Positive = Field(default=1, description="batches whose gradients make one step")
    learning_rate: PositiveReal = Field(default=3e-4, description="at its peak")
    final_learning_rate: Real | None = Field(default=None, description="at the end; a tenth of the peak if not set")
    warmup: Natural = Field(default=50, description="steps until the peak")
    schedule: ScheduleName = Field(
        default="cosine", description="how it falls from the peak; of warm-stable-decay in the last fifth alone"
    )
    betas: Annotated[list[BelowOne], Field(min_length=2, max_length=2)] = Field(
        default=[0.9, 0.95], description="AdamW's memory of gradients and of their squares"
    )
    epsilon: PositiveReal = Field(default=1e-8, description="AdamW's guard against division by nothing")
    weight_decay: Real = Field(default=0.1, description="of matrices; norms, biases and positions are left alone")
    clip: PositiveReal = Field(default=1.0, description="the longest a gradient may be")
    evaluate_every: Positive = Field(default=100, description="steps between looks at held-out text")
    evaluate_batches: Positive = Field(default=20, description="batches a look")
    sample_every: Positive | None = Field(default=None, description="steps between samples shown while training")
    checkpoint_every: Positive = Field(default=200, description="steps between checkpoints")
    keep: Positive = Field(default=2, description="how many of the last checkpoints to keep, beside the best")
    streams: Positive | Literal["auto"] = Field(
        default="auto", description="parts of a batch computed at once: as many as cores"
    )
    chunk: Positive | Literal["auto"] = Field(default="auto", description="rows of logits held at once")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the network while it learns: bfloat16 on a GPU, float32 on a CPU"
    )
    checkpointing: bool = Field(
        default=False, description="compute each block again for its gradient, instead of keeping what it made"
    )

    @property
    def rows(self) -> int:
        """The rows of a step, on all machines together."""
        return self.batch_size * self.accumulate


class SamplingTable(Table):
    """What the student writes for judges and the report: samples to beginnings that ship with distillkit, or to others.

    With `repeats`, each prompt is written to so often, and fewer prompts are needed. At each of several temperatures
    `count` samples are written.
    """

    count: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=8, description="how many samples, at each temperature"
    )
    prompts: Annotated[str, Field(min_length=1)] = Field(
        default="stories", description="stories (those that ship), held_out documents, or a file with one prompt a line"
    )
    prompt_tokens: Positive = Field(default=16, description="how much of a held-out document is the prompt")
    repeats: Positive = Field(default=1, description="samples of each prompt")
    max_tokens: Positive = Field(default=96, description="the most the student writes")
    temperature: Real | Annotated[list[Real], Field(min_length=1)] = Field(
        default=1.0, description="how freely; 0 takes the likeliest word. One, or a list of several"
    )
    top_k: Natural = Field(default=0, description="draw from this many tokens; 0 from all")
    top_p: Nucleus = Field(default=1.0, description="draw from the fewest tokens that hold this share")
    min_p: Share = Field(default=0.0, description="draw from tokens at least this share as likely as the likeliest")
    repetition_penalty: PositiveReal = Field(
        default=1.0, description="above 1, tokens that were written are less likely to come again"
    )

    @property
    def temperatures(self) -> list[float]:
        """All temperatures, each once."""
        several = self.temperature if isinstance(self.temperature, list) else [self.temperature]
        return list(dict.fromkeys(several))

    @property
    def sampler_options(self) -> dict[str, Any]:
        """How tokens are drawn at any temperature, by the names that a student knows."""
        names = ("top_k", "top_p", "min_p", "repetition_penalty")
        return {name: getattr(self, name) for name in names}


BUILTIN_PROMPTS = ("stories", "held_out")  # words for prompts that are no file


NO_TEACHER = "none"  # the provider by which a recipe drops the teacher of the one that it extends


def _no_teacher(values: Any) -> Any:
    return None if isinstance(values, dict) and values.get("provider") == NO_TEACHER else values


OptionalTeacher = Annotated[TeacherTable | None, BeforeValidator(_no_teacher)]


class JudgeTable(PluginTable):
    """One judge, with a teacher of its own if it asks one. Without any, `perplexity` judges; a list replaces it."""

    name: str = Field(description="a judge plugin")
    teacher: OptionalTeacher = None


class TrackerTable(PluginTable):
    """One tracker."""

    name: str = Field(description="a tracker plugin")


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


def plugin_name(values: dict[str, Any], role: str) -> Any:
    """The plugin that a role's table names, by default if need be."""
    key = plugin_key(role)
    return values.get(key, TABLES[role].model_fields[key].default)


def drop_incompatible(values: dict[str, Any], loc: Loc, chosen: dict[str, Any]) -> dict[str, Any]:
    """What still means something of a table's values when others are written over it.

    Options of one plugin mean nothing to another; a size or a file of one tokenizer means nothing to another kind.
    """
    role = role_at(loc)
    if role and plugin_key(role) in chosen and chosen[plugin_key(role)] != plugin_name(values, role):
        return without_options(values, role)
    if loc == ("tokenizer",) and "kind" in chosen and chosen["kind"] != values.get("kind", "bpe"):
        return {}
    return values


def without_options(values: dict[str, Any], role: str) -> dict[str, Any]:
    """A role's table without its plugin's options: those of one plugin mean nothing to another."""
    return {key: value for key, value in values.items() if key in host_keys(role)}
