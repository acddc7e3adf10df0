"""What clients may ask for, in OpenAI's words: read, checked, and refused in OpenAI's words, too.

What is not offered is refused, not ignored, for an answer that lacks what was asked for would be a wrong one. Knows no
network and no connection.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ...core.errors import did_you_mean
from ..generation.sampling import Sampling

TOP = 1000  # alternatives to a token, at most
CHOICES = 128
TEXTS = 2048  # choices of all prompts of a request together, at most
USUAL = 16  # tokens of a completion that names no number, as at OpenAI's
LONGEST = 1 << 20  # tokens of an answer, at most


class Refusal(Exception):
    """A request that is not served, as HTTP and OpenAI's SDKs put it."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = {401: "authentication_error", 500: "server_error"}.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def fault(error: Exception) -> Refusal:
    """A failure of ours, as clients read it."""
    return Refusal(500, f"{type(error).__name__}: {error}")


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False


class Asked(BaseModel, ABC):
    """What both endpoints take."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str | None = None
    max_tokens: int | None = Field(None, ge=0, le=LONGEST)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=CHOICES)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    presence_penalty: float | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    logit_bias: dict[str, float] | None = Field(None, max_length=0)

    @field_validator("stop")
    @classmethod
    def _words(cls, stop: str | list[str] | None) -> list[str]:
        stops = [stop] if isinstance(stop, str) else list(stop or ())
        if len(stops) > 16 or "" in stops:
            raise ValueError("at most 16 stop words, none of them empty")
        return stops

    @property
    def stops(self) -> Sequence[str]:
        """The stop words."""
        return self.stop or ()

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        heat = 1.0 if self.temperature is None else self.temperature
        return Sampling(heat, max(0, self.top_k or 0), 1.0 if self.top_p is None else self.top_p, self.min_p or 0.0)

    @property
    @abstractmethod
    def top(self) -> int | None:
        """How many alternatives to each token; None asks for no log-probabilities."""

    @property
    @abstractmethod
    def prompts(self) -> list[str | list[int]]:
        """What to go on from."""

    @property
    def echoes(self) -> bool:
        """Whether the prompt is to be shown before what follows it."""
        return False

    @property
    def most(self) -> int | None:
        """How many tokens may follow."""
        return self.max_tokens

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what was used."""
        return self.stream_options is not None and self.stream_options.include_usage


class AskedCompletion(Asked):
    """A body of `/v1/completions`."""

    prompt: Any = ""
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=TOP)
    best_of: int | None = None
    suffix: str | None = Field(None, max_length=0)

    @field_validator("prompt")
    @classmethod
    def _prompts(cls, prompt: Any) -> list[str | list[int]]:
        """One or many, of text or of tokens."""
        one = isinstance(prompt, str) or _tokens(prompt)
        many = [prompt] if one else prompt
        if not isinstance(many, list) or not many or not all(isinstance(p, str) or _tokens(p) for p in many):
            raise ValueError("a text, a list of tokens, or a list of either")
        return many

    @model_validator(mode="after")
    def _as_many_as_are_shown(self) -> AskedCompletion:
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of other than n is not offered")
        return self

    @model_validator(mode="after")
    def _not_too_many_together(self) -> AskedCompletion:
        texts = len(self.prompt) * (self.n or 1)
        if texts > TEXTS:
            raise ValueError(f"prompts times n is {texts:,}, and one request gets at most {TEXTS:,} texts")
        return self

    @property
    def top(self) -> int | None:
        """How many alternatives to each token; None asks for no log-probabilities."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """What to go on from."""
        return list(self.prompt)

    @property
    def echoes(self) -> bool:
        """Whether the prompt is to be shown before what follows it."""
        return bool(self.echo)

    @property
    def most(self) -> int:
        """How many tokens may follow."""
        return USUAL if self.max_tokens is None else self.max_tokens


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """What it says."""
        if isinstance(self.content, list):
            return "".join(str(part["text"]) for part in self.content)
        return self.content or ""

    @field_validator("content")
    @classmethod
    def _only_text(cls, content: Any) -> Any:
        if isinstance(content, list) and not all(isinstance(part.get("text"), str) for part in content):
            raise ValueError("a student reads text only")
        return content


class AskedChat(Asked):
    """A body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=TOP)
    max_completion_tokens: int | None = Field(None, ge=0, le=LONGEST)
    response_format: dict[str, Any] | None = None

    @field_validator("response_format")
    @classmethod
    def _only_text(cls, wanted: dict[str, Any] | None) -> dict[str, Any] | None:
        if wanted not in (None, {"type": "text"}):
            raise ValueError("a student writes text only")
        return wanted

    @property
    def top(self) -> int | None:
        """How many alternatives to each token; None asks for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def prompts(self) -> list[str | list[int]]:
        """What to go on from: the messages one after another, for a student does not chat."""
        return ["\n".join(message.text for message in self.messages)]

    @property
    def most(self) -> int | None:
        """How many tokens may follow; None leaves that to the student's context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def _tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


A = TypeVar("A", bound=Asked)


def read(kind: type[A], body: bytes) -> A:
    """A request, or why it is refused."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, Mapping):
        raise Refusal(400, "the body is not a JSON object")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _refusal(kind, error) from None


def _refusal(kind: type[Asked], error: ValidationError) -> Refusal:
    """The first fault, with the name of its key."""
    fault = error.errors(include_url=False)[0]
    param = str(fault["loc"][0]) if fault["loc"] else None
    if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
        return Refusal(400, f"{param} is not offered here. {did_you_mean(str(param), kind.model_fields)}", param)
    told = fault["msg"].removeprefix("Value error, ")
    return Refusal(400, f"{'.'.join(map(str, fault['loc']))}: {told}" if param else told, param)
