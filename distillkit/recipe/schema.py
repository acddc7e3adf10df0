"""The schema of a recipe: pydantic models of its tables, with the type and default of every host key.

Knows which tables name a plugin, but no plugin, and not which file a table comes from.
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
LATEST = "latest"  # the newest run, in commands: no recipe can have this name


def _check_not_reserved(name: str) -> str:
    if name == LATEST:
        raise ValueError(f"{name!r} is reserved for the newest run, expected another name")
    return name


Name = Annotated[
    str,
    Field(pattern=NAME, json_schema_extra={"x-expected": NAME_WORDS, "not": {"const": LATEST}}),
    AfterValidator(_check_not_reserved),
]


class Table(BaseModel):
    """A table with host keys only. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class PluginTable(Table):
    """A table that names a plugin. Keys that are not host keys are options of the plugin."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The plugin's options, not yet validated."""
        return dict(self.model_extra or {})


class DataTable(PluginTable):
    """The source of the documents, and the split into training and held-out text."""

    source: str = Field(default="tales", description="name of a source plugin")
    documents: Positive | None = Field(default=None, description="number of documents to read; all if not set")
    tokens: Positive | None = Field(
        default=None, description="stop after the document with which the training split has this many tokens"
    )
    held_out: Fraction = Field(
        default=0.05, description="share of documents held out from training, chosen by the hash of their text"
    )
    block_chars: Positive | None = Field(
        default=None, description="split longer documents into blocks of at most this many characters"
    )


class TokenizerTable(Table):
    """The tokenizer of the student."""

    kind: str = Field(
        default="bpe",
        description="bpe or sentencepiece (trained on the corpus), gpt2 or another tiktoken encoding, a folder, a run "
        "or a bundled student",
    )
    vocab_size: Positive | None = Field(
        default=None, description="vocabulary size of bpe and sentencepiece; 2048 if not set"
    )
    ranks: str | None = Field(
        default=None, description="for a tiktoken encoding: read its ranks from this file instead of the network"
    )
    model: str | None = Field(default=None, description="for sentencepiece: use this trained model file")

    @model_validator(mode="before")
    @classmethod
    def _default_vocab_size(cls, values: Any) -> Any:
        trained = isinstance(values, dict) and values.get("kind", "bpe") in ("bpe", "sentencepiece")
        return {"vocab_size": 2048, **values} if trained and "model" not in values else values


class StudentTable(PluginTable):
    """The model that is trained, and its initial weights."""

    arch: str = Field(default="gpt", description="name of a student plugin")
    from_: str | None = Field(
        default=None,
        alias="from",
        description="start from the weights of this run, checkpoint or recipe (the recipe is run first)",
    )


BUILTIN_SLOTS = ("verb", "noun", "adjective")  # slots with bundled word lists
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
    """Prompts generated from a text with slots. No two prompts are equal."""

    text: Annotated[str, Field(min_length=1)] = Field(
        default=TEMPLATE,
        description="template text; slots such as {verb} are filled from `words`, {features} from `features`",
    )
    words: dict[str, list[str] | str] = Field(
        default={}, description="for each slot, a list of words or a file with one word per line"
    )
    features: dict[str, str] = Field(default=FEATURES, description="optional sentences of a prompt, by name")
    most_features: Natural = Field(default=2, description="maximum number of features in one prompt")

    @property
    def slots(self) -> list[str]:
        """The slots of the text in order, without `features`."""
        named = (name for _, name, _, _ in Formatter().parse(self.text) if name is not None)
        return [name for name in dict.fromkeys(named) if name != "features"]

    @model_validator(mode="after")
    def _check_slot_names(self) -> TemplateTable:
        for _, name, spec, conversion in Formatter().parse(self.text):
            if name is not None and (spec or conversion or not name.isidentifier()):
                raise ValueError(
                    "the text has a slot that is not a plain name; write slots as {verb}, and braces as {{ }}"
                )
        return self

    @model_validator(mode="after")
    def _check_slot_words(self) -> TemplateTable:
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
    """Price in US dollars per million tokens."""

    input: Real = Field(description="price of a million prompt tokens")
    output: Real = Field(description="price of a million completion tokens")


class TeacherTable(PluginTable):
    """The teacher, its prompts, and the limits of the requests to it.

    Prompts are beginnings of training documents, unless they come from `template` or `prompts_file`.
    """

    provider: str = Field(description="name of a teacher plugin, or none")
    signal: Literal["text", "top_logprobs", "logits"] | None = Field(
        default=None, description="use at most this signal of the teacher; the strongest it offers if not set"
    )
    prompts: Natural = Field(
        default=0,
        description="number of prompts: documents to continue, prompts from the template, or lines of the file (all "
        "lines if not set)",
    )
    prompt_tokens: Positive = Field(default=32, description="length of a prompt that is taken from a document")
    max_tokens: Positive = Field(default=96, description="maximum number of tokens of an answer")
    temperature: Real = Field(default=1.0, description="sampling temperature")
    top_p: Nucleus = Field(default=1.0, description="nucleus sampling: smallest set of tokens with this probability")
    top_logprobs: Natural = Field(default=0, description="number of log-probabilities to request per token")
    repeats: Annotated[int, Field(gt=0, le=10_000)] = Field(default=1, description="number of answers per prompt")
    stop: list[str] = Field(default=[], description="strings that end an answer")
    on_policy: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="share of the rows of each batch that the student continues itself after prompt_tokens tokens, "
        "with soft targets from the teacher for every token: its logits, or the top_logprobs of a server that scores "
        "given text; these rows have no hard loss",
    )
    learn_prompts: bool = Field(default=False, description="train on the tokens of prompts too, not only of answers")
    share: Share | None = Field(
        default=None,
        description="share of the rows of each step that are answers; in proportion to their number if not set",
    )
    held_out: BelowOne = Field(
        default=0.0,
        description="share of prompts whose answers are used for validation instead of training, chosen by hash",
    )
    store: bool = Field(
        default=False,
        description="compute the logits of a local teacher once, before training, and store top_logprobs (or 20) of "
        "them per position",
    )
    store_samples: Annotated[int, Field(gt=0, le=255)] | None = Field(
        default=None, description="store this many sampled tokens per position instead of the most likely ones"
    )
    concurrency: Positive = Field(default=8, description="number of concurrent requests to an asynchronous teacher")
    system: str | None = Field(
        default=None,
        description="system message of a chat teacher; if not set, prompts from documents get one that asks for a "
        "continuation",
    )
    template: TemplateTable | None = Field(default=None, description="generate the prompts from a text with slots")
    prompts_file: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="read the prompts from a file: one per line, or .jsonl with prompt or messages"
    )
    timeout: PositiveReal | None = Field(
        default=None, description="seconds per answer; if not set, 120 for a remote and 3600 for a local teacher"
    )
    attempts: Positive = Field(
        default=5, description="maximum number of attempts for a request that fails or returns an empty answer"
    )
    requests_per_minute: Positive | None = Field(
        default=None, description="rate limit; taken from the provider's responses if not set"
    )
    tokens_per_minute: Positive | None = Field(
        default=None, description="rate limit; taken from the provider's responses if not set"
    )
    requests_per_day: Positive | None = Field(
        default=None, description="daily quota; taken from the provider's responses if not set"
    )
    tokens_per_day: Positive | None = Field(
        default=None, description="daily quota; taken from the provider's responses if not set"
    )
    max_usd: PositiveReal | None = Field(default=None, description="budget of a run in US dollars")
    max_requests: Positive | None = Field(default=None, description="maximum number of requests of a run")
    max_tokens_total: Positive | None = Field(default=None, description="maximum number of tokens of a run")
    price: PriceTable | None = Field(default=None, description="price of tokens, instead of the plugin's")

    @model_validator(mode="after")
    def _check_combinations(self) -> TeacherTable:
        if self.template and self.prompts_file:
            raise ValueError("has both a template and a prompts_file, expected one of them")
        if self.template and not self.prompts:
            raise ValueError("has a template but prompts = 0, expected the number of prompts to generate from it")
        if self.store_samples and not self.store:
            raise ValueError("has store_samples without store = true, expected both or neither")
        if self.max_usd is not None and self.price is not None and self.price.input == self.price.output == 0:
            raise ValueError("has max_usd and a price of 0, so the budget would never apply")
        return self


class MixerTable(PluginTable):
    """The loss: how hard and soft targets are combined."""

    name: str = Field(default="hard", description="name of a mixer plugin")


class OptimizerTable(PluginTable):
    """What updates the weights. AdamW updates the parameters that another optimizer leaves to it; its settings are in
    `[train]`."""

    name: str = Field(default="adamw", description="an optimizer plugin")
    learning_rate: PositiveReal | None = Field(
        default=None,
        description="peak learning rate of this optimizer; train.learning_rate if not set, which is also AdamW's",
    )


class TrainTable(Table):
    """Length, batch size, optimizer and evaluation of training."""

    steps: Positive = Field(default=600, description="number of optimizer steps; raise it to extend a run")
    batch_size: Positive = Field(default=16, description="rows per batch, over all machines")
    accumulate: Positive = Field(default=1, description="gradient accumulation: batches per optimizer step")
    learning_rate: PositiveReal = Field(default=3e-4, description="peak learning rate")
    final_learning_rate: Real | None = Field(
        default=None, description="learning rate at the last step; a tenth of the peak if not set"
    )
    warmup: Natural = Field(default=50, description="steps of linear warmup to the peak learning rate")
    schedule: ScheduleName = Field(
        default="cosine", description="decay after the warmup; warm-stable-decay decays in the last fifth only"
    )
    betas: Annotated[list[BelowOne], Field(min_length=2, max_length=2)] = Field(
        default=[0.9, 0.95], description="AdamW: decay rates of the first and second moments"
    )
    epsilon: PositiveReal = Field(default=1e-8, description="AdamW: term added to the denominator")
    weight_decay: Real = Field(default=0.1, description="decoupled weight decay, applied to matrices only")
    clip: PositiveReal = Field(default=1.0, description="maximum global gradient norm")
    evaluate_every: Positive = Field(default=100, description="steps between evaluations on held-out text")
    evaluate_batches: Positive = Field(default=20, description="batches per evaluation")
    sample_every: Positive | None = Field(
        default=None, description="steps between samples that are printed during training; none if not set"
    )
    checkpoint_every: Positive = Field(default=200, description="steps between checkpoints")
    keep: Positive = Field(default=2, description="number of recent checkpoints to keep, in addition to the best")
    streams: Positive | Literal["auto"] = Field(
        default="auto", description="parts of a batch computed in parallel on a CPU; the number of cores if auto"
    )
    chunk: Positive | Literal["auto"] = Field(default="auto", description="rows of logits in memory at once")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="data type of training; auto is bfloat16 on a GPU and float32 on a CPU"
    )
    checkpointing: bool = Field(
        default=False, description="gradient checkpointing: recompute activations to save memory"
    )

    @property
    def rows(self) -> int:
        """Rows per optimizer step, over all machines."""
        return self.batch_size * self.accumulate


class SamplingTable(Table):
    """The samples that the student generates for judges and the report.

    `count` samples are generated at each temperature. With `repeats`, there are several samples per prompt and fewer
    prompts.
    """

    count: Annotated[int, Field(ge=0, le=100_000)] = Field(default=8, description="number of samples per temperature")
    prompts: Annotated[str, Field(min_length=1)] = Field(
        default="stories",
        description="stories (bundled prompts), held_out (beginnings of held-out documents), or a file with one prompt "
        "per line",
    )
    prompt_tokens: Positive = Field(default=16, description="length of a prompt that is taken from a document")
    repeats: Positive = Field(default=1, description="samples per prompt")
    max_tokens: Positive = Field(default=96, description="maximum number of tokens per sample")
    temperature: Real | Annotated[list[Real], Field(min_length=1)] = Field(
        default=1.0, description="sampling temperature, or a list of several; 0 is greedy"
    )
    top_k: Natural = Field(default=0, description="sample from the k most likely tokens; 0 for all tokens")
    top_p: Nucleus = Field(default=1.0, description="nucleus sampling: smallest set of tokens with this probability")
    min_p: Share = Field(
        default=0.0, description="minimum probability of a token, relative to that of the most likely one"
    )
    repetition_penalty: PositiveReal = Field(
        default=1.0, description="above 1, tokens that have occurred become less likely"
    )

    @property
    def temperatures(self) -> list[float]:
        """All temperatures, without duplicates."""
        several = self.temperature if isinstance(self.temperature, list) else [self.temperature]
        return list(dict.fromkeys(several))

    @property
    def sampler_options(self) -> dict[str, Any]:
        """The sampler options other than temperature, as keyword arguments of `Sampling`."""
        names = ("top_k", "top_p", "min_p", "repetition_penalty")
        return {name: getattr(self, name) for name in names}


BUILTIN_PROMPTS = ("stories", "held_out")  # values of sampling.prompts that are not files


NO_TEACHER = "none"  # provider = "none" removes the teacher of an extended recipe


def _none_to_null(values: Any) -> Any:
    return None if isinstance(values, dict) and values.get("provider") == NO_TEACHER else values


OptionalTeacher = Annotated[TeacherTable | None, BeforeValidator(_none_to_null)]


class JudgeTable(PluginTable):
    """A judge, with its teacher if it needs one. The default is `perplexity` alone; a list replaces it."""

    name: str = Field(description="name of a judge plugin")
    teacher: OptionalTeacher = None


class TrackerTable(PluginTable):
    """A tracker."""

    name: str = Field(description="name of a tracker plugin")


# ------------------------------------------------------------------------------------------------------ roles

TABLES: dict[str, type[PluginTable]] = {
    "sources": DataTable,
    "students": StudentTable,
    "teachers": TeacherTable,
    "mixers": MixerTable,
    "optimizers": OptimizerTable,
    "judges": JudgeTable,
    "trackers": TrackerTable,
}
_PLUGIN_KEYS = {"sources": "source", "students": "arch", "teachers": "provider"}  # all other roles: "name"
_ROLE_BY_PATH: dict[Loc, str] = {
    ("data",): "sources",
    ("student",): "students",
    ("teacher",): "teachers",
    ("mixer",): "mixers",
    ("optimizer",): "optimizers",
    ("judge",): "judges",
    ("judge", "teacher"): "teachers",
    ("tracker",): "trackers",
}


def host_keys(role: str) -> frozenset[str]:
    """The host keys of a role's table, which plugins cannot use for their options."""
    return keys_of(TABLES[role]) if role in TABLES else frozenset()


def keys_of(model: type[BaseModel]) -> frozenset[str]:
    """The recipe keys of a model's fields."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def plugin_key(role: str) -> str:
    """The key of a role's table that names the plugin."""
    return _PLUGIN_KEYS.get(role, "name")


def role_at(loc: Loc) -> str | None:
    """The role whose table is at this path; list indices are ignored."""
    return _ROLE_BY_PATH.get(tuple(key for key in loc if isinstance(key, str)))


def plugin_name(values: dict[str, Any], role: str) -> Any:
    """The name of the plugin of a role's table, or its default."""
    key = plugin_key(role)
    return values.get(key, TABLES[role].model_fields[key].default)


def drop_incompatible(values: dict[str, Any], loc: Loc, chosen: dict[str, Any]) -> dict[str, Any]:
    """The values of a table that stay valid when the `chosen` values are merged over them.

    If `chosen` selects another plugin, or another kind of tokenizer, the options of the former one are dropped.
    """
    role = role_at(loc)
    if role and plugin_key(role) in chosen and chosen[plugin_key(role)] != plugin_name(values, role):
        return without_options(values, role)
    if loc == ("tokenizer",) and "kind" in chosen and chosen["kind"] != values.get("kind", "bpe"):
        return {}
    return values


def without_options(values: dict[str, Any], role: str) -> dict[str, Any]:
    """A role's table without the options of its plugin."""
    return {key: value for key, value in values.items() if key in host_keys(role)}
