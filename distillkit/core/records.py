"""The frozen nouns that travel down the line. They know their own JSON, and nothing else.

What tokens look like in JSON is `packing`'s affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from .errors import CorruptError
from .packing import Columns, is_packed, pack, unpack, unpack_columns

_Bytes = bytes  # a token has a field of that name
LOG_ZERO = -1e4  # the log-probability of what has none; stores of soft targets hold it in their files


@dataclass(frozen=True)
class Document:
    """One text of the corpus."""

    id: str
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What a teacher is asked: a prompt to continue, or messages to reply to."""

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
    schema: Mapping[str, Any] | None = None  # a JSON schema that the answer should keep to, where the teacher can

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("a request has either a prompt or messages")

    def canonical(self) -> dict[str, Any]:
        """All that decides the answer: everything but the id, which is only a name."""
        values = dict(vars(self))  # not asdict: it copies every value, and keys are made of many thousand requests
        del values["id"]
        if self.schema is None:  # keys of answers from before there were schemas stay as they were
            del values["schema"]
        return {**values, "messages": self.messages and tuple(dict(message) for message in self.messages)}


@dataclass(frozen=True)
class Token:
    """One token of an answer: its bytes, its log-probability, and the likeliest tokens there."""

    bytes: bytes
    logprob: float
    top: tuple[tuple[_Bytes, float], ...] = ()

    @classmethod
    def from_json(cls, row: list[Any]) -> Token:
        """A token of a row as it was once kept: bytes as text, log-probability, alternatives."""
        piece, logprob, top = row
        pairs = tuple((other.encode("latin-1"), float(value)) for other, value in top)
        return cls(piece.encode("latin-1"), float(logprob), pairs)


@dataclass(frozen=True)
class Usage:
    """What an answer cost, in tokens."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Price:
    """What a million tokens cost, in US dollars."""

    input: float
    output: float

    def of(self, usage: Usage) -> float:
        """What this many tokens cost."""
        return (usage.prompt_tokens * self.input + usage.completion_tokens * self.output) / 1e6

    def times(self, factor: float) -> Price:
        """The price of tokens that cost more, or less, by a factor."""
        return Price(factor * self.input, factor * self.output)


MINUTE, DAY = 60.0, 86400.0


@dataclass(frozen=True)
class Allowance:
    """What a provider allows: so many requests or tokens in a span of seconds, and what is left of them."""

    of: str
    span: float
    limit: float
    remaining: float | None = None
    reset: float | None = None


REFUSED = "refused"


@dataclass(frozen=True)
class Answer:
    """What a teacher said. `finish` is "stop" when it ended by itself, "length" when it was cut.

    "content_filter" says that the teacher held it back. The host writes "refused" when asking again did not help: such
    a record says that there is no answer, and is never given out as one.

    Tokens that were read from JSON stay packed until somebody looks at them: most readers want the text alone.
    """

    text: str
    tokens: tuple[Token, ...] = field(default_factory=tuple)
    finish: str = "stop"
    usage: Usage | None = None
    model: str | None = None
    raw: Mapping[str, Any] | None = None

    if not TYPE_CHECKING:  # a type checker would take any name for an attribute

        def __getattr__(self, name: str) -> Any:
            """The tokens, when they are looked at for the first time."""
            if name != "tokens" or "_packed" not in self.__dict__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            try:
                tokens = tuple(Token(*row) for row in unpack(self.__dict__["_packed"]))
            except ValueError as error:
                raise CorruptError(f"the tokens of an answer are damaged: {error}") from error
            self.__dict__["tokens"] = tokens
            return tokens

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
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
        """The tokens as arrays, for those who count millions of them: no object is made for any."""
        try:
            return unpack_columns(self._packed_tokens() or pack(()))
        except ValueError as error:
            raise CorruptError(f"the tokens of an answer are damaged: {error}") from error

    def _packed_tokens(self) -> Any:
        """The tokens as text, not unpacked first when they still are."""
        if "_packed" in self.__dict__:
            return self.__dict__["_packed"]
        return pack((token.bytes, token.logprob, token.top) for token in self.tokens) if self.tokens else []


@dataclass(frozen=True)
class Sample:
    """What the student wrote to a prompt. Ids read `prompt#k`, so samples of one prompt share its name."""

    id: str
    prompt: str
    completion: str
    seed: int
    temperature: float | None = None  # None where nobody recorded it

    @property
    def prompt_id(self) -> str:
        """The name of its prompt: what is resampled together."""
        return self.id.rpartition("#")[0] or self.id

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`; a temperature that nobody recorded is left out."""
        values = {**asdict(self), "prompt_id": self.prompt_id}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sample:
        """The inverse of `to_json`; keys that are not a sample's own are left out."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


@dataclass(frozen=True)
class Grade:
    """What a judge said of a sample, of a document, or (with neither) of the student."""

    criterion: str
    score: float
    sample: str | None = None
    document: str | None = None
    weight: float = 1.0
    note: str = ""

    @property
    def cluster(self) -> str | None:
        """What is resampled together: a document, or all samples of one prompt."""
        if self.document is not None:
            return self.document
        return None if self.sample is None else self.sample.rpartition("#")[0] or self.sample

    def to_json(self) -> dict[str, Any]:
        """Plain values, without those left at their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Grade:
        """The inverse of `to_json`; keys that are not a grade's own (the judge's name) are left out."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


@dataclass(frozen=True)
class Metric:
    """One figure of a report, with its 95% interval where one can be given."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
        return asdict(self)
