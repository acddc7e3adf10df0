"""The one client of OpenAI-style endpoints, over the official SDKs, whose own retries are off.

A provider's plugin is a subclass that says which SDK, which address, which key. One call in, one answer or one
exception out: retries, limits, budgets and the cache are the host's and not known here. What was found out about an
endpoint (which parameters it refuses, how many log-probabilities it gives) decides what is sent.
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

FINISHES = {"stop": "stop", "eos": "stop", "eos_token": "stop", "end_turn": "stop", "length": "length"}
FINISHES |= {"max_tokens": "length", "content_filter": "content_filter", "tool_calls": "stop", "function_call": "stop"}
SDK_SECONDS = 120.0  # for batches
GIVEN_UP = 86400.0  # later than the host gives a call up, which is the only one to decide
NEUTRAL = {"temperature": 1.0, "top_p": 1.0}  # what an endpoint does that takes no such parameter
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
SCHEMA_NEED = "json_schema"
OTHER_LIMIT = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}  # of an answer's length


class RefusedError(TeacherError):
    """The endpoint does not take a request as it is; `parameter` names what it complains of, if it does."""

    def __init__(self, message: str, hint: str, parameter: str | None) -> None:
        super().__init__(message, hint)
        self.parameter = parameter


class RanOutError(TeacherError):
    """The endpoint took the request, and its model came to no word within the limit: it was still thinking."""


class ChatTeacher(Teacher):
    """An OpenAI-style endpoint. A plugin gives it a name, an SDK, a key's variable and options with an address."""

    sdk: ClassVar[str] = "openai"  # the module of the SDK
    sdk_class: ClassVar[str] = "AsyncOpenAI"
    variable: ClassVar[str] = ""  # where its key is
    needs_key: ClassVar[bool] = True
    spans: ClassVar[Mapping[str, float]] = {"requests": MINUTE, "tokens": MINUTE}  # of its rate-limit headers
    max_tokens_name: ClassVar[str] = "max_tokens"
    batches: ClassVar[bool] = False  # whether it has OpenAI's Batch API
    prices: ClassVar[Mapping[str, tuple[float, float]]] = {}  # US dollars a million tokens, in and out

    class Options(Teacher.Options):
        """What every such endpoint takes."""

        model: str = Field(min_length=1, description="the model's name at the provider")
        base_url: str = Field(description="the address, up to and with /v1")
        api: Literal["chat", "plain"] = Field(
            "chat", description="chat, or plain completions for models that only go on"
        )
        reasoning_effort: str | None = Field(None, description="for reasoning models: low, medium, high")
        extra: dict[str, Any] = Field({}, description="further keys of the request's body, as the endpoint wants them")

        @field_validator("base_url")
        @classmethod
        def _an_address(cls, value: str) -> str:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError('expected an address such as "http://127.0.0.1:8000/v1"')
            if parts.username or parts.password:
                raise ValueError("an address with a password in it would be kept with the answers; use a key")
            if parts.query or parts.fragment:
                raise ValueError("what stands after the path of an address may hold a key, which would be kept")
            return value.rstrip("/")

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._client: Any = None
        self._loop: Any = None
        self._secret: str | None = None

    # ------------------------------------------------------------------------------------------ who it is

    def identity(self) -> Any:
        """Everything that decides the answers."""
        return self.options.model_dump(mode="json", exclude_defaults=False)

    @property
    def chats(self) -> bool:
        """Whether it is asked as a chat."""
        return bool(self.options.api == "chat")

    @property
    def reads(self) -> bool:
        """Plain completions can give a prompt back, with what was likely at each of its tokens: `echo`."""
        return not self.chats and signal_suffices(self.signal, "top_logprobs")

    @property
    def paid(self) -> bool:
        """Whether it may cost money: a server on this machine does not."""
        return urlsplit(self.options.base_url).hostname not in ("127.0.0.1", "localhost", "::1")

    def price(self) -> Price | None:
        """What the table of known models says, or None for one that is not in it."""
        if self.options.model in self.prices:
            return Price(*self.prices[self.options.model])
        return super().price()

    # ------------------------------------------------------------------------------------------ what it can

    def needs(self, requests: Sequence[Request]) -> Mapping[str, Request]:
        """For each way of asking among the requests: what the endpoint takes of it. And whether it takes a schema."""
        needs = {_need(way): request for way, request in _ways(requests).items()}
        with_schema = [request for request in requests if request.schema is not None]
        return {**needs, SCHEMA_NEED: with_schema[0]} if with_schema and self.chats else needs

    async def probe(self, need: str, request: Request) -> Any:
        """What of a request the endpoint takes, by asking it for a few words; or whether it takes a JSON schema."""
        small = replace(request, prompt=None, messages=({"role": "user", "content": "Count: one, two,"},), schema=None)
        if not self.chats:
            small = replace(request, prompt="one, two,", messages=None, schema=None)
        if need == SCHEMA_NEED:
            return await self._takes({**self.body(small), "response_format": _strictly(SCHEMA)})
        facts: dict[str, Any] = {"refused": [], "max_tokens": self._limit, "top_logprobs": 0}
        asked = request.top_logprobs
        while True:
            body = self._body(replace(small, top_logprobs=asked), facts)
            try:
                return {**facts, "top_logprobs": _most_given(await self._post(body), small)}
            except RanOutError:  # so what was asked for was taken
                return {**facts, "top_logprobs": asked}
            except RefusedError as error:
                asked = self._without(error, body, facts, asked)

    @property
    def _limit(self) -> str:
        """What the limit of an answer is called, as far as is known unasked; plain completions know but one name."""
        return self.max_tokens_name if self.chats else "max_tokens"

    async def _takes(self, body: Mapping[str, Any]) -> bool:
        try:
            await self._post(body)
        except RanOutError:
            return True
        except RefusedError:
            return False
        return True

    def _without(self, error: RefusedError, body: Mapping[str, Any], facts: dict[str, Any], asked: int) -> int:
        """Note what a refusal complains of; returns how many log-probabilities to ask for next."""
        name = _complained_of(error, body)
        both_tried = facts["max_tokens"] != self._limit
        if name is None or (name == facts["max_tokens"] and both_tried):  # without a limit nothing is asked
            raise error
        if name == facts["max_tokens"]:
            facts["max_tokens"] = OTHER_LIMIT[name]
        elif name in ("top_logprobs", "logprobs") and name not in self.options.extra:  # what extra says stays as it is
            lower = [int(n) for n in re.findall(r"\b\d+\b", error.message.partition(":")[2]) if 0 < int(n) < asked]
            return max(lower, default=0)
        else:
            facts["refused"].append(name)
        return asked

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse what the endpoint lacks, going by what is known of it, and a key that is not there."""
        self._key()
        for way, request in _ways(requests).items():
            facts = self.found.get(_need(way), {})
            for name in facts.get("refused", ()):
                self._can_do_without(name, request)
            most = (
                facts.get("top_logprobs", request.top_logprobs) if signal_suffices(self.signal, "top_logprobs") else 0
            )
            if request.top_logprobs > most and not request.max_tokens:
                raise self._lacks(
                    f"does not say how likely {request.top_logprobs} tokens are at each place of a given text",
                    "Leave out teacher.on_policy, or serve the teacher with vLLM, which does (echo with logprobs).",
                )
            if request.top_logprobs > most:
                told = (
                    f"{most} log-probabilities a token, not {request.top_logprobs}" if most else "no log-probabilities"
                )
                instead = "" if most else ", and a mixer that needs none"
                raise self._lacks(f"gives {told}", f"Set teacher.top_logprobs = {most}{instead}.")

    def _can_do_without(self, name: str, request: Request) -> None:
        """Refuse a recipe that says what the endpoint does not take; a seed and our own defaults are left out."""
        value = getattr(request, name, None)
        asked = value and value != NEUTRAL.get(name) and name != "seed"
        if name in self.options.extra:
            raise self._lacks(f"does not take {name}", f"Leave out teacher.extra.{name}.")
        if asked or name in self.options.model_fields_set:
            raise self._lacks(f"does not take {name}", f"Leave out teacher.{name}.")

    def _lacks(self, what: str, remedy: str) -> UsageError:
        return UsageError(f"the teacher {self.name!r}: {self.options.model} {what}", remedy)

    # ------------------------------------------------------------------------------------------ asking

    async def answer(self, request: Request) -> Answer:
        """Ask once."""
        return self.answer_of(await self._post(self.body(request)), request)

    def body(self, request: Request) -> dict[str, Any]:
        """The request as the endpoint takes it, going by what was found out."""
        return self._body(request, self.found.get(_need(_way(request))) or {})

    @property
    def endpoint(self) -> str | None:
        """The path that batches name, or None where there are none."""
        path = "/v1/chat/completions" if self.chats else "/v1/completions"
        return path if self.batches else None

    def _body(self, request: Request, facts: Mapping[str, Any]) -> dict[str, Any]:
        options, refused = self.options, facts.get("refused", ())
        body = {"model": options.model, **self._words(request), **self._parameters(request)}
        body[facts.get("max_tokens", self._limit)] = request.max_tokens
        if options.reasoning_effort is not None:
            body["reasoning_effort"] = options.reasoning_effort
        if request.schema is not None and self.found.get(SCHEMA_NEED):
            body["response_format"] = _strictly(request.schema)
        return {key: value for key, value in {**body, **options.extra}.items() if key not in refused}

    def _words(self, request: Request) -> dict[str, Any]:
        """What is said: messages of a chat, or a prompt to go on from."""
        if self.chats:
            return {"messages": list(request.messages or ({"role": "user", "content": request.prompt or ""},))}
        if request.prompt is None:
            raise UsageError(f'the teacher {self.name!r} with api = "plain" goes on from prompts, not messages')
        return {"prompt": request.prompt}

    def _parameters(self, request: Request) -> dict[str, Any]:
        """How words are drawn, and what is told of it."""
        drawn: dict[str, Any] = {"temperature": request.temperature, "top_p": request.top_p}
        if request.stop:
            drawn["stop"] = list(request.stop)
        if request.seed is not None:
            drawn["seed"] = request.seed + request.repeat
        most = request.top_logprobs
        if most:
            drawn |= {"logprobs": True, "top_logprobs": most} if self.chats else {"logprobs": most}
        return drawn if request.max_tokens else {**drawn, "echo": True}

    async def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """One call: what came back as JSON, or an exception that says what to do about it."""
        ask = self._connected().chat.completions if self.chats else self._connected().completions
        # Everything is in extra_body, which is sent as it is: the SDK takes a while to look over what it knows.
        known: dict[str, Any] = {"messages": []} if self.chats else {"prompt": ""}
        return await self._response(
            ask.with_raw_response.create(model=body["model"], **known, extra_body=body, timeout=GIVEN_UP)
        )

    async def models(self) -> list[str]:
        """The names of the models that the endpoint lists."""
        rows = (await self._response(self._connected().models.with_raw_response.list())).get("data")
        names = [row.get("id") for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        return sorted(name for name in names if isinstance(name, str))

    async def _response(self, call: Awaitable[Any]) -> dict[str, Any]:
        """What a call of the SDK brings as JSON, or an exception that says what to do about it.

        The SDK's exceptions end here: what they carry may hold the key.
        """
        sdk = importlib.import_module(self.sdk)
        try:
            response = (await call).http_response
        except sdk.APIStatusError as error:
            fault = self._fault(error)
        except sdk.APIError as error:
            there = f"Is there a server at {self.options.base_url}?"
            fault = TryAgain(f"the connection failed: {_cause(error)}", there)
        else:
            self._hear(response.headers)
            return self._json(response.content)
        raise fault from None

    def _fault(self, error: Any) -> Any:
        """What a refusal means, in the provider's words, without the key."""
        headers = error.response.headers
        self._hear(headers)
        words = replies.error_message(error.body, error.response.text, lambda said: api_keys.redact(said, self._secret))
        fault = replies.error_of_response(error.status_code, headers, error.body, words, self.variable, time.time())
        if error.status_code == 400 and replies.is_output_limit_error(words):
            return RanOutError(fault.message, "Raise teacher.max_tokens: what a model thinks counts, too.")
        if error.status_code in (400, 422):
            return RefusedError(fault.message, fault.hint, getattr(error, "param", None) or _parameter(error.body))
        return fault

    def _json(self, content: bytes) -> dict[str, Any]:
        try:
            value = api_keys.parse_json(content.decode(), self._secret)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            said = api_keys.redact(content.decode(errors="replace"), self._secret)
            raise TryAgain(f"what came is not a JSON object: {said[:60]!r}")
        return value

    def _hear(self, headers: Mapping[str, str]) -> None:
        for allowance in replies.parse_allowances(headers, self.spans):
            self.heard(allowance)

    # ------------------------------------------------------------------------------------------ the answer

    def answer_of(self, body: dict[str, Any], request: Request) -> Answer:
        """An answer that is whole, or TryAgain: what is misshapen is never taken for one."""
        try:
            choice = body["choices"][0]
            text = choice["message"]["content"] if self.chats else choice["text"]
            finish = FINISHES[choice["finish_reason"]]
            if text is not None and not isinstance(text, str):
                raise TypeError(f"its text is a {type(text).__name__}")
            if not (request.max_tokens or (text or "").startswith(str(request.prompt))):
                raise ValueError("the text that was to be read did not come back")
            wanted, given = request.top_logprobs, not request.max_tokens
            tokens = logprobs.parse_tokens(choice.get("logprobs"), text, wanted, given) if text and wanted else ()
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise TryAgain(f"the answer is misshapen: {type(error).__name__}: {error}") from None
        model = body.get("model")
        text = request.prompt if given else text  # a server may write a word all the same
        return Answer(
            text or "", tokens, finish, _usage(body), model if isinstance(model, str) else None, _raw(body, choice)
        )

    # ------------------------------------------------------------------------------------------ the connection

    def _key(self) -> str | None:
        """The key, looked up and held only here."""
        found = api_keys.find_key(self.variable)
        if found is None and self.needs_key:
            raise UsageError(
                f"there is no key for the teacher {self.name!r}", f"Set {self.variable}, or write it to .env."
            )
        return found

    def _connected(self) -> Any:
        """The SDK's client; its connections belong to one loop."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._secret, self._loop = self._key(), loop
            self._client = self.client()
        return self._client

    def client(self) -> Any:
        """A new client of the SDK, for whoever closes it."""
        made = getattr(importlib.import_module(self.sdk), self.sdk_class)
        return made(
            api_key=self._key() or api_keys.PLACEHOLDER_KEY,
            base_url=self._address(),
            max_retries=0,
            timeout=SDK_SECONDS,
        )

    def _address(self) -> str:
        """The address as the SDK wants it."""
        return str(self.options.base_url)

    async def close(self) -> None:
        """Close the connections of this loop."""
        client, self._client, self._secret = self._client, None, None
        if client is not None:
            await client.close()


def _strictly(schema: Mapping[str, Any]) -> dict[str, Any]:
    """How one asks for an answer that keeps to a schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def _way(request: Request) -> tuple[Any, ...]:
    """What of a request an endpoint may not take."""
    drawn = request.temperature, request.top_p, bool(request.stop), request.seed is not None, request.top_logprobs
    return drawn if request.max_tokens else (*drawn, "read")


def _need(way: tuple[Any, ...]) -> str:
    """What the finding about a way is called; under "parameters" alone are older ones, which may lack a limit."""
    return f"parameters and limit {json.dumps(way)}"


def _ways(requests: Iterable[Request]) -> dict[tuple[Any, ...], Request]:
    return {_way(request): request for request in requests}


def _most_given(body: Mapping[str, Any], request: Request) -> int:
    """The most alternatives that any token of an answer came with; none where a text was to be read, and was not."""
    try:
        choice, given = body["choices"][0], not request.max_tokens
        if given and not choice["text"].startswith(request.prompt):
            return 0
        told = logprobs.parse_tokens(choice["logprobs"], "", 1000, given)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return 0
    return max((len(token.top) for token in told), default=0)


def _complained_of(error: RefusedError, body: Mapping[str, Any]) -> str | None:
    """The parameter that a refusal names, of those that were sent and can be left out."""
    names = [name for name in body if name not in ("model", "messages", "prompt")]
    if error.parameter in names:
        return error.parameter
    named = [name for name in names if re.search(rf"(?<![a-z_]){re.escape(name)}(?![a-z_])", error.message)]
    return max(named, key=len, default=None)


def _parameter(body: Any) -> str | None:
    error = body.get("error", body) if isinstance(body, Mapping) else {}
    return error.get("param") if isinstance(error, Mapping) else None


def _cause(error: BaseException) -> str:
    """What broke a connection, by name: messages of that kind may quote headers."""
    cause = error.__cause__ or error
    return type(cause).__name__


def _usage(body: Mapping[str, Any]) -> Usage | None:
    """What the provider counted, where it did."""
    usage = body.get("usage")
    counts = [usage.get(f"{kind}_tokens") for kind in ("prompt", "completion")] if isinstance(usage, Mapping) else []
    known = [count for count in counts if isinstance(count, int) and count >= 0]
    return Usage(known[0], known[1]) if len(known) == 2 else None


def _raw(body: Mapping[str, Any], choice: Mapping[str, Any]) -> dict[str, Any]:
    """What came, but for the log-probabilities: they are kept as tokens."""
    rest = {key: value for key, value in choice.items() if key != "logprobs"}
    return {**body, "choices": [rest]}
