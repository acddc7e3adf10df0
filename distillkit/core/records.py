"""The immutable records that are passed between stages, with their JSON form.

`packing` defines the JSON form of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from .errors import CorruptError
from .packing import Columns, is_packed, pack, unpack, unpack_columns

_Bytes = bytes  # `Token` has a field named `bytes`
LOG_ZERO = -1e4  # log-probability of zero mass; also stored in soft-target files


@dataclass(frozen=True)
class Document:
    """A text of the corpus."""

    id: str
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """A request to a teacher: a prompt to continue, or chat messages to reply to."""

    id: str
    prompt: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    max_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int = 0
    repeat: int = 0
    schema: Mapping[str, Any] | None = None  # a JSON schema of the answer, for teachers that support it

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("a request has either a prompt or messages")

    def canonical(self) -> dict[str, Any]:
        """Everything that determines the answer: all fields but the id."""
        values = dict(vars(self))  # not asdict, which copies every value: this is called for many thousand requests
        del values["id"]
        if self.schema is None:  # keeps the cache keys of answers from before there were schemas
            del values["schema"]
        return {**values, "messages": self.messages and tuple(dict(message) for message in self.messages)}


@dataclass(frozen=True)
class Token:
    """A token of an answer: its bytes, its log-probability, and the most likely tokens at its position."""

    bytes: bytes
    logprob: float
    top: tuple[tuple[_Bytes, float], ...] = ()

    @classmethod
    def from_json(cls, row: list[Any]) -> Token:
        """A token from the former JSON form: bytes as text, log-probability, alternatives."""
        piece, logprob, top = row
        pairs = tuple((other.encode("latin-1"), float(value)) for other, value in top)
        return cls(piece.encode("latin-1"), float(logprob), pairs)


@dataclass(frozen=True)
class Usage:
    """The tokens that an answer used."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Price:
    """Price in US dollars per million tokens."""

    input: float
    output: float

    def of(self, usage: Usage) -> float:
        """The cost of this usage in US dollars."""
        return (usage.prompt_tokens * self.input + usage.completion_tokens * self.output) / 1e6

    def times(self, factor: float) -> Price:
        """This price multiplied by a factor."""
        return Price(factor * self.input, factor * self.output)


MINUTE, DAY = 60.0, 86400.0


@dataclass(frozen=True)
class Allowance:
    """A rate limit of a provider: the limit of requests or tokens in a span of seconds, and what remains of it."""

    of: str
    span: float
    limit: float
    remaining: float | None = None
    reset: float | None = None


REFUSED = "refused"


@dataclass(frozen=True)
class Answer:
    """The answer of a teacher. `finish` is "stop" if it ended by itself, and "length" if it reached the token limit.

    "content_filter" means that the provider withheld the answer. The host stores "refused" when retries did not help:
    such a record marks a request without an answer, and is never returned as an answer.

    Tokens that were read from JSON are unpacked on first access, because most readers need only the text.
    """

    text: str
    tokens: tuple[Token, ...] = field(default_factory=tuple)
    finish: str = "stop"
    usage: Usage | None = None
    model: str | None = None
    raw: Mapping[str, Any] | None = None

    if not TYPE_CHECKING:  # a type checker would accept any attribute name

        def __getattr__(self, name: str) -> Any:
            """Unpack the tokens on first access."""
            if name != "tokens" or "_packed" not in self.__dict__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            try:
                tokens = tuple(Token(*row) for row in unpack(self.__dict__["_packed"]))
            except ValueError as error:
                raise CorruptError(f"the tokens of an answer are damaged: {error}") from error
            self.__dict__["tokens"] = tokens
            return tokens

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {
            "text": self.text,
            "tokens": self._packed_tokens(),
            "finish": self.finish,
            "usage": None if self.usage is None else asdict(self.usage),
            "model": self.model,
            "raw": None if self.raw is None else dict(self.raw),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Answer:
        """The inverse of `to_json`."""
        usage, tokens = values["usage"], values["tokens"]
        packed = is_packed(tokens)
        answer = cls(
            text=values["text"],
            tokens=() if packed else tuple(Token.from_json(row) for row in tokens),
            finish=values["finish"],
            usage=None if usage is None else Usage(**usage),
            model=values["model"],
            raw=values["raw"],
        )
        if packed:
            del answer.__dict__["tokens"]
            answer.__dict__["_packed"] = tokens
        return answer

    def columns(self) -> Columns:
        """The tokens as arrays, without an object per token."""
        try:
            return unpack_columns(self._packed_tokens() or pack(()))
        except ValueError as error:
            raise CorruptError(f"the tokens of an answer are damaged: {error}") from error

    def _packed_tokens(self) -> Any:
        """The tokens in packed form."""
        if "_packed" in self.__dict__:
            return self.__dict__["_packed"]
        return pack((token.bytes, token.logprob, token.top) for token in self.tokens) if self.tokens else []


@dataclass(frozen=True)
class Sample:
    """A text that the student generated from a prompt. Ids have the form `prompt#k`, with the id of the prompt."""

    id: str
    prompt: str
    completion: str
    seed: int
    temperature: float | None = None  # None in samples from before it was recorded

    @property
    def prompt_id(self) -> str:
        """The id of its prompt: the cluster of the sample in statistics."""
        return self.id.rpartition("#")[0] or self.id

    def to_json(self) -> dict[str, Any]:
        """The sample as JSON values. Omits an unknown temperature."""
        values = {**asdict(self), "prompt_id": self.prompt_id}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sample:
        """The inverse of `to_json`. Ignores other keys."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


@dataclass(frozen=True)
class Grade:
    """A grade of a judge for a sample, a document or (with neither) the student."""

    criterion: str
    score: float
    sample: str | None = None
    document: str | None = None
    weight: float = 1.0
    note: str = ""

    @property
    def cluster(self) -> str | None:
        """The cluster of the grade in statistics: its document, or the prompt of its sample."""
        if self.document is not None:
            return self.document
        return None if self.sample is None else self.sample.rpartition("#")[0] or self.sample

    def to_json(self) -> dict[str, Any]:
        """The grade as JSON values. Omits defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Grade:
        """The inverse of `to_json`. Ignores other keys, such as the name of the judge."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


@dataclass(frozen=True)
class Metric:
    """A value of a report, with its 95% confidence interval if there is one."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return asdict(self)
