"""OpenAI request bodies: their parameters, validation and errors.

A parameter of both endpoints is a field of `GenerationRequest`; one of a single endpoint is a field of
`CompletionRequest` or `ChatCompletionRequest`. Sampling parameters also go into `GenerationRequest.sampling`.
Parameters that are not supported are refused, not ignored, because a result without them would be wrong.
Independent of the network and of HTTP.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ...core.errors import did_you_mean
from ..generation.sampling import Sampling

MAX_TOP_LOGPROBS = 1000
MAX_CHOICES = 128  # n, for one prompt
MAX_TEXTS = 2048  # choices of all prompts of one request
MAX_STOPS = 16
MAX_TOKENS = 1 << 20
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens in /v1/completions


class ApiError(Exception):
    """An error response, with OpenAI's error object as its body."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = {401: "authentication_error", 500: "server_error"}.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def server_error(error: Exception) -> ApiError:
    """An internal error as a response with status 500."""
    return ApiError(500, f"{type(error).__name__}: {error}")


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False


class GenerationRequest(BaseModel, ABC):
    """The parameters of both endpoints."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str | None = None
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Accepted for compatibility, at values that change nothing:
    user: str | None = None
    presence_penalty: float | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    logit_bias: dict[str, float] | None = Field(None, max_length=0)

    @field_validator("stop")
    @classmethod
    def _check_stops(cls, stop: str | list[str] | None) -> list[str]:
        stops = [stop] if isinstance(stop, str) else list(stop or ())
        if len(stops) > MAX_STOPS or "" in stops:
            raise ValueError(f"expected at most {MAX_STOPS} stop strings, none of them empty")
        return stops

    @property
    def stops(self) -> Sequence[str]:
        """The stop strings."""
        return self.stop or ()

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(0, self.top_k or 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
        )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """The number of alternatives per token; None requests no log-probabilities."""

    @property
    @abstractmethod
    def prompts(self) -> list[str | list[int]]:
        """The prompts to continue, each as text or as token ids."""

    @property
    @abstractmethod
    def echo_prompt(self) -> bool:
        """Whether a choice starts with its prompt."""

    @property
    @abstractmethod
    def token_limit(self) -> int | None:
        """The maximum number of new tokens; None means the student's context."""


class CompletionRequest(GenerationRequest):
    """The body of `/v1/completions`."""

    prompt: Any = ""
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: int | None = None
    suffix: str | None = Field(None, max_length=0)

    @field_validator("prompt")
    @classmethod
    def _to_prompt_list(cls, prompt: Any) -> list[str | list[int]]:
        prompts = [prompt] if isinstance(prompt, str) or _is_token_list(prompt) else prompt
        is_list = isinstance(prompts, list) and bool(prompts)
        if not is_list or not all(isinstance(one, str) or _is_token_list(one) for one in prompts):
            raise ValueError("expected a text, a list of tokens, or a list of either")
        return prompts

    @model_validator(mode="after")
    def _check_best_of(self) -> CompletionRequest:
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of is only supported if it equals n")
        return self

    @model_validator(mode="after")
    def _check_number_of_texts(self) -> CompletionRequest:
        texts = len(self.prompt) * (self.n or 1)
        if texts > MAX_TEXTS:
            raise ValueError(
                f"the number of prompts times n is {texts:,}: one request may ask for at most {MAX_TEXTS:,} texts"
            )
        return self

    @property
    def num_logprobs(self) -> int | None:
        """The number of alternatives per token; None requests no log-probabilities."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts to continue, each as text or as token ids."""
        return list(self.prompt)

    @property
    def echo_prompt(self) -> bool:
        """Whether a choice starts with its prompt."""
        return bool(self.echo)

    @property
    def token_limit(self) -> int:
        """The maximum number of new tokens."""
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens


class ChatMessage(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(str(part["text"]) for part in self.content)
        return self.content or ""

    @field_validator("content")
    @classmethod
    def _check_text_only(cls, content: Any) -> Any:
        if isinstance(content, list) and not all(isinstance(part.get("text"), str) for part in content):
            raise ValueError("only text content is supported")
        return content


class ChatCompletionRequest(GenerationRequest):
    """The body of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    max_completion_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    response_format: dict[str, Any] | None = None

    @field_validator("response_format")
    @classmethod
    def _check_text_only(cls, response_format: dict[str, Any] | None) -> dict[str, Any] | None:
        if response_format not in (None, {"type": "text"}):
            raise ValueError("only the response format text is supported")
        return response_format

    @property
    def num_logprobs(self) -> int | None:
        """The number of alternatives per token; None requests no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One prompt: the texts of all messages joined by line breaks. No chat template is applied."""
        return ["\n".join(message.text for message in self.messages)]

    @property
    def echo_prompt(self) -> bool:
        """Always False: a chat response never repeats the messages."""
        return False

    @property
    def token_limit(self) -> int | None:
        """The maximum number of new tokens; None means the student's context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def _is_token_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


RequestT = TypeVar("RequestT", bound=GenerationRequest)


def parse_request(request_class: type[RequestT], body: bytes) -> RequestT:
    """Parse and validate a request body. Raises `ApiError` with status 400."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, Mapping):
        raise ApiError(400, "the body is not a JSON object")
    try:
        return request_class.model_validate(value)
    except ValidationError as error:
        raise _validation_error(request_class, error) from None


def _validation_error(request_class: type[GenerationRequest], error: ValidationError) -> ApiError:
    """The first validation error, with the name of its parameter."""
    first = error.errors(include_url=False)[0]
    param = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        hint = did_you_mean(str(param), request_class.model_fields)
        return ApiError(400, f"{param} is not supported. {hint}", param)
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{'.'.join(map(str, first['loc']))}: {message}" if param else message, param)
