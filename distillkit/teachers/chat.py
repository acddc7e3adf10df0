"""`ChatTeacher`: the client of OpenAI-compatible endpoints, on top of the official SDKs with their retries turned off.

A provider's plugin is a subclass that sets the SDK, the address and the variable of the API key. One call returns one
answer or raises one exception: retries, rate limits, budgets and the cache are the host's work and not known here.
Probes find out which parameters an endpoint refuses and how many log-probabilities it returns; requests follow that.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from ..core.errors import TeacherError, TryAgain, UsageError
from ..core.records import MINUTE, Answer, Price, Request, Usage
from ..plugins.interfaces import Teacher, signal_suffices
from .client import api_keys, logprobs, replies

FINISH_REASONS = {"stop": "stop", "eos": "stop", "eos_token": "stop", "end_turn": "stop", "length": "length"}
FINISH_REASONS |= {"max_tokens": "length", "content_filter": "content_filter"}
FINISH_REASONS |= {"tool_calls": "stop", "function_call": "stop"}
SDK_TIMEOUT = 120.0  # seconds; for the Batch API
NO_TIMEOUT = 86400.0  # seconds; longer than the host's time-out, which is the one that applies
DEFAULT_SAMPLING = {"temperature": 1.0, "top_p": 1.0}  # of an endpoint that does not accept these parameters
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
SCHEMA_NEED = "json_schema"
OTHER_MAX_TOKENS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


class RefusedError(TeacherError):
    """The endpoint refused a request. `parameter` is the parameter that it names, or None."""

    def __init__(self, message: str, hint: str, parameter: str | None) -> None:
        super().__init__(message, hint)
        self.parameter = parameter


class RanOutError(TeacherError):
    """The endpoint accepted the request, but its model used all of max_tokens for reasoning and wrote no answer."""


class ChatTeacher(Teacher):
    """A teacher behind an OpenAI-compatible endpoint. Subclasses set the SDK, the key's variable and defaults."""

    sdk: ClassVar[str] = "openai"  # the module of the SDK
    sdk_class: ClassVar[str] = "AsyncOpenAI"
    variable: ClassVar[str] = ""  # environment variable of the API key
    needs_key: ClassVar[bool] = True
    spans: ClassVar[Mapping[str, float]] = {
        "requests": MINUTE,
        "tokens": MINUTE,
    }  # seconds that its rate-limit headers refer to
    max_tokens_name: ClassVar[str] = "max_tokens"
    batches: ClassVar[bool] = False  # whether it has a Batch API like OpenAI's
    prices: ClassVar[
        Mapping[str, tuple[float, float]]
    ] = {}  # of known models: US dollars per million tokens, input and output

    class Options(Teacher.Options):
        """Options of every such teacher."""

        model: str = Field(min_length=1, description="the model's name at the provider")
        base_url: str = Field(description="base URL of the API, up to and including /v1")
        api: Literal["chat", "plain"] = Field(
            "chat", description="chat: chat completions; plain: completions, for models without chat"
        )
        reasoning_effort: str | None = Field(None, description="effort of reasoning models: low, medium or high")
        extra: dict[str, Any] = Field({}, description="additional keys for the body of each request")

        @field_validator("base_url")
        @classmethod
        def _validate_url(cls, value: str) -> str:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError('expected an address such as "http://127.0.0.1:8000/v1"')
            if parts.username or parts.password:
                raise ValueError("an address must not contain a password, which would be stored; use an API key")
            if parts.query or parts.fragment:
                raise ValueError("an address must not have a query or fragment, which may contain a key and be stored")
            return value.rstrip("/")

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._client: Any = None
        self._loop: Any = None
        self._secret: str | None = None

    # ------------------------------------------------------------------------------------------ identity and price

    def identity(self) -> Any:
        """All options: they decide the answers."""
        return self.options.model_dump(mode="json", exclude_defaults=False)

    @property
    def chats(self) -> bool:
        """Whether it uses chat completions."""
        return bool(self.options.api == "chat")

    @property
    def reads(self) -> bool:
        """Whether it can score text: plain completions with `echo` return the log-probabilities of the prompt."""
        return not self.chats and signal_suffices(self.signal, "top_logprobs")

    @property
    def paid(self) -> bool:
        """Whether it may cost money: true unless the server runs on this machine."""
        return urlsplit(self.options.base_url).hostname not in ("127.0.0.1", "localhost", "::1")

    def price(self) -> Price | None:
        """The price of a known model, or None if it is unknown."""
        if self.options.model in self.prices:
            return Price(*self.prices[self.options.model])
        return super().price()

    # ------------------------------------------------------------------------------------------ capabilities

    def needs(self, requests: Sequence[Request]) -> Mapping[str, Request]:
        """One probe for each combination of parameters in the requests, and one for JSON schemas if needed."""
        needs = {_need(parameters): request for parameters, request in _by_parameters(requests).items()}
        with_schema = [request for request in requests if request.schema is not None]
        return {**needs, SCHEMA_NEED: with_schema[0]} if with_schema and self.chats else needs

    async def probe(self, need: str, request: Request) -> Any:
        """Which parameters of a request the endpoint accepts, by a short call; or whether it accepts a JSON schema.

        Returns the refused parameters, the name of the max_tokens parameter, and the number of log-probabilities.
        """
        small = replace(request, prompt=None, messages=({"role": "user", "content": "Count: one, two,"},), schema=None)
        if not self.chats:
            small = replace(request, prompt="one, two,", messages=None, schema=None)
        if need == SCHEMA_NEED:
            return await self._accepts({**self.body(small), "response_format": _json_schema_format(SCHEMA)})
        finding: dict[str, Any] = {"refused": [], "max_tokens": self._default_max_tokens_name, "top_logprobs": 0}
        top_logprobs = request.top_logprobs
        while True:
            body = self._body(replace(small, top_logprobs=top_logprobs), finding)
            try:
                return {**finding, "top_logprobs": _count_alternatives(await self._post(body), small)}
            except RanOutError:  # so the endpoint accepted the parameters
                return {**finding, "top_logprobs": top_logprobs}
            except RefusedError as error:
                top_logprobs = self._handle_refusal(error, body, finding, top_logprobs)

    @property
    def _default_max_tokens_name(self) -> str:
        """The name of the max_tokens parameter before any probe. Plain completions have only one."""
        return self.max_tokens_name if self.chats else "max_tokens"

    async def _accepts(self, body: Mapping[str, Any]) -> bool:
        try:
            await self._post(body)
        except RanOutError:
            return True
        except RefusedError:
            return False
        return True

    def _handle_refusal(
        self, error: RefusedError, body: Mapping[str, Any], finding: dict[str, Any], top_logprobs: int
    ) -> int:
        """Record the refused parameter in the finding. Returns the number of log-probabilities to try next."""
        name = _refused_parameter(error, body)
        tried_both_names = finding["max_tokens"] != self._default_max_tokens_name
        if name is None or (name == finding["max_tokens"] and tried_both_names):  # never send a request without a limit
            raise error
        if name == finding["max_tokens"]:
            finding["max_tokens"] = OTHER_MAX_TOKENS[name]
        elif name in ("top_logprobs", "logprobs") and name not in self.options.extra:  # values in extra are not changed
            numbers = [int(n) for n in re.findall(r"\b\d+\b", error.message.partition(":")[2])]
            return max((n for n in numbers if 0 < n < top_logprobs), default=0)
        else:
            finding["refused"].append(name)
        return top_logprobs

    def check(self, requests: Sequence[Request]) -> None:
        """Raise a UsageError if the key is missing, or if the endpoint lacks what the requests need, by its probes."""
        self._key()
        for parameters, request in _by_parameters(requests).items():
            finding = self.found.get(_need(parameters), {})
            for name in finding.get("refused", ()):
                self._check_refused(name, request)
            gives_any = signal_suffices(self.signal, "top_logprobs")
            available = finding.get("top_logprobs", request.top_logprobs) if gives_any else 0
            if request.top_logprobs > available and not request.max_tokens:
                raise self._unsupported(
                    f"does not return {request.top_logprobs} log-probabilities for each token of a given text",
                    "Leave out teacher.on_policy, or serve the teacher with vLLM, which can (echo with logprobs).",
                )
            if request.top_logprobs > available:
                offered = (
                    f"{available} log-probabilities per token, not {request.top_logprobs}"
                    if available
                    else "no log-probabilities"
                )
                instead = "" if available else ", and use a mixer that needs none"
                raise self._unsupported(f"returns {offered}", f"Set teacher.top_logprobs = {available}{instead}.")

    def _check_refused(self, name: str, request: Request) -> None:
        """Raise a UsageError if the recipe sets a refused parameter. The seed and default values are left out."""
        value = getattr(request, name, None)
        is_needed = value and value != DEFAULT_SAMPLING.get(name) and name != "seed"
        if name in self.options.extra:
            raise self._unsupported(f"does not accept {name}", f"Leave out teacher.extra.{name}.")
        if is_needed or name in self.options.model_fields_set:
            raise self._unsupported(f"does not accept {name}", f"Leave out teacher.{name}.")

    def _unsupported(self, what: str, hint: str) -> UsageError:
        return UsageError(f"the teacher {self.name!r}: {self.options.model} {what}", hint)

    # ------------------------------------------------------------------------------------------ requests

    async def answer(self, request: Request) -> Answer:
        """Send one request."""
        return self.answer_of(await self._post(self.body(request)), request)

    def body(self, request: Request) -> dict[str, Any]:
        """The JSON body of a request, according to what the probes found."""
        return self._body(request, self.found.get(_need(_parameters_of(request))) or {})

    @property
    def endpoint(self) -> str | None:
        """The path of single requests, which the Batch API needs. None if there is no Batch API."""
        path = "/v1/chat/completions" if self.chats else "/v1/completions"
        return path if self.batches else None

    def _body(self, request: Request, finding: Mapping[str, Any]) -> dict[str, Any]:
        options, refused = self.options, finding.get("refused", ())
        body = {"model": options.model, **self._input(request), **self._sampling(request)}
        body[finding.get("max_tokens", self._default_max_tokens_name)] = request.max_tokens
        if options.reasoning_effort is not None:
            body["reasoning_effort"] = options.reasoning_effort
        if request.schema is not None and self.found.get(SCHEMA_NEED):
            body["response_format"] = _json_schema_format(request.schema)
        return {key: value for key, value in {**body, **options.extra}.items() if key not in refused}

    def _input(self, request: Request) -> dict[str, Any]:
        """The messages of a chat, or the prompt to continue."""
        if self.chats:
            return {"messages": list(request.messages or ({"role": "user", "content": request.prompt or ""},))}
        if request.prompt is None:
            raise UsageError(
                f'the teacher {self.name!r} with api = "plain" continues prompts and cannot reply to messages'
            )
        return {"prompt": request.prompt}

    def _sampling(self, request: Request) -> dict[str, Any]:
        """The parameters of sampling, log-probabilities and echo."""
        sampling: dict[str, Any] = {"temperature": request.temperature, "top_p": request.top_p}
        if request.stop:
            sampling["stop"] = list(request.stop)
        if request.seed is not None:
            sampling["seed"] = request.seed + request.repeat
        top_k = request.top_logprobs
        if top_k:
            sampling |= {"logprobs": True, "top_logprobs": top_k} if self.chats else {"logprobs": top_k}
        return sampling if request.max_tokens else {**sampling, "echo": True}

    async def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The response of one call as JSON. Raises the exception that tells the host what to do."""
        completions = self._sdk_client().chat.completions if self.chats else self._sdk_client().completions
        # Everything is in extra_body, which is sent unchanged: validating known parameters takes the SDK a while.
        required: dict[str, Any] = {"messages": []} if self.chats else {"prompt": ""}
        create = completions.with_raw_response.create
        return await self._response(create(model=body["model"], **required, extra_body=body, timeout=NO_TIMEOUT))

    async def models(self) -> list[str]:
        """The names of the endpoint's models, sorted."""
        rows = (await self._response(self._sdk_client().models.with_raw_response.list())).get("data")
        names = [row.get("id") for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        return sorted(name for name in names if isinstance(name, str))

    async def _response(self, call: Awaitable[Any]) -> dict[str, Any]:
        """The response of an SDK call as JSON. Raises the exception that tells the host what to do.

        The SDK's exceptions are not chained, because they may contain the key.
        """
        sdk = importlib.import_module(self.sdk)
        try:
            response = (await call).http_response
        except sdk.APIStatusError as error:
            failure = self._failure(error)
        except sdk.APIError as error:
            hint = f"Is there a server at {self.options.base_url}?"
            failure = TryAgain(f"the connection failed: {_cause(error)}", hint)
        else:
            self._report_limits(response.headers)
            return self._json(response.content)
        raise failure from None

    def _failure(self, error: Any) -> Any:
        """The exception for an error response, with the provider's message, without the key."""
        headers = error.response.headers
        self._report_limits(headers)
        message = replies.error_message(
            error.body, error.response.text, lambda text: api_keys.redact(text, self._secret)
        )
        failure = replies.error_of_response(error.status_code, headers, error.body, message, self.variable, time.time())
        if error.status_code == 400 and replies.is_output_limit_error(message):
            return RanOutError(failure.message, "Raise teacher.max_tokens: reasoning tokens count, too.")
        if error.status_code in (400, 422):
            return RefusedError(failure.message, failure.hint, getattr(error, "param", None) or _parameter(error.body))
        return failure

    def _json(self, content: bytes) -> dict[str, Any]:
        try:
            value = api_keys.parse_json(content.decode(), self._secret)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            text = api_keys.redact(content.decode(errors="replace"), self._secret)
            raise TryAgain(f"the response is not a JSON object: {text[:60]!r}")
        return value

    def _report_limits(self, headers: Mapping[str, str]) -> None:
        for allowance in replies.parse_allowances(headers, self.spans):
            self.heard(allowance)

    # ------------------------------------------------------------------------------------------ answers

    def answer_of(self, body: dict[str, Any], request: Request) -> Answer:
        """The answer in a response's body. Raises TryAgain if any part of it is malformed."""
        try:
            choice = body["choices"][0]
            text = choice["message"]["content"] if self.chats else choice["text"]
            finish = FINISH_REASONS[choice["finish_reason"]]
            if text is not None and not isinstance(text, str):
                raise TypeError(f"the text is a {type(text).__name__}")
            if not (request.max_tokens or (text or "").startswith(str(request.prompt))):
                raise ValueError("the prompt that was to be scored was not returned")
            top_k, is_prompt = request.top_logprobs, not request.max_tokens
            tokens = logprobs.parse_tokens(choice.get("logprobs"), text, top_k, is_prompt) if text and top_k else ()
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise TryAgain(f"the answer is malformed: {type(error).__name__}: {error}") from None
        model = body.get("model")
        text = request.prompt if is_prompt else text  # a server may generate a token all the same
        return Answer(
            text or "", tokens, finish, _usage(body), model if isinstance(model, str) else None, _raw(body, choice)
        )

    # ------------------------------------------------------------------------------------------ connection

    def _key(self) -> str | None:
        """The API key. It is looked up and held only here."""
        key = api_keys.find_key(self.variable)
        if key is None and self.needs_key:
            raise UsageError(
                f"there is no key for the teacher {self.name!r}", f"Set {self.variable}, or write it to .env."
            )
        return key

    def _sdk_client(self) -> Any:
        """The SDK's client, one for each event loop, because its connections belong to one."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._secret, self._loop = self._key(), loop
            self._client = self.client()
        return self._client

    def client(self) -> Any:
        """A new SDK client. The caller closes it."""
        sdk_class = getattr(importlib.import_module(self.sdk), self.sdk_class)
        return sdk_class(
            api_key=self._key() or api_keys.PLACEHOLDER_KEY,
            base_url=self._sdk_base_url(),
            max_retries=0,
            timeout=SDK_TIMEOUT,
        )

    def _sdk_base_url(self) -> str:
        """The base URL in the form that the SDK expects."""
        return str(self.options.base_url)

    async def close(self) -> None:
        """Close the SDK client and its connections."""
        client, self._client, self._secret = self._client, None, None
        if client is not None:
            await client.close()


def _json_schema_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The `response_format` for an answer that follows a schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def _parameters_of(request: Request) -> tuple[Any, ...]:
    """The parameters of a request that an endpoint may refuse."""
    sampling = request.temperature, request.top_p, bool(request.stop), request.seed is not None, request.top_logprobs
    return sampling if request.max_tokens else (*sampling, "read")


def _need(parameters: tuple[Any, ...]) -> str:
    """The name of the finding about parameters. Old findings, under "parameters" alone, may lack the limit's name."""
    return f"parameters and limit {json.dumps(parameters)}"


def _by_parameters(requests: Iterable[Request]) -> dict[tuple[Any, ...], Request]:
    """One request for each combination of parameters."""
    return {_parameters_of(request): request for request in requests}


def _count_alternatives(body: Mapping[str, Any], request: Request) -> int:
    """The largest number of alternatives of any token in a response. 0 if a prompt was to be scored and was not."""
    try:
        choice, is_prompt = body["choices"][0], not request.max_tokens
        if is_prompt and not choice["text"].startswith(request.prompt):
            return 0
        tokens = logprobs.parse_tokens(choice["logprobs"], "", 1000, is_prompt)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return 0
    return max((len(token.top) for token in tokens), default=0)


def _refused_parameter(error: RefusedError, body: Mapping[str, Any]) -> str | None:
    """The optional parameter of a request that a refusal names, or None."""
    names = [name for name in body if name not in ("model", "messages", "prompt")]
    if error.parameter in names:
        return error.parameter
    named = [name for name in names if re.search(rf"(?<![a-z_]){re.escape(name)}(?![a-z_])", error.message)]
    return max(named, key=len, default=None)


def _parameter(body: Any) -> str | None:
    error = body.get("error", body) if isinstance(body, Mapping) else {}
    return error.get("param") if isinstance(error, Mapping) else None


def _cause(error: BaseException) -> str:
    """The class name of what broke a connection. Its message may contain headers."""
    cause = error.__cause__ or error
    return type(cause).__name__


def _usage(body: Mapping[str, Any]) -> Usage | None:
    """The token counts of a response, or None if they are missing."""
    usage = body.get("usage")
    counts = [usage.get(f"{kind}_tokens") for kind in ("prompt", "completion")] if isinstance(usage, Mapping) else []
    valid = [count for count in counts if isinstance(count, int) and count >= 0]
    return Usage(valid[0], valid[1]) if len(valid) == 2 else None


def _raw(body: Mapping[str, Any], choice: Mapping[str, Any]) -> dict[str, Any]:
    """The response without the log-probabilities, which are stored as tokens."""
    rest = {key: value for key, value in choice.items() if key != "logprobs"}
    return {**body, "choices": [rest]}
