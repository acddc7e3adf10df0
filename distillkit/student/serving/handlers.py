"""Handling of one request: prompts to tokens, tokens to the engine, and the engine's events to a response.

A text prompt is encoded after the end-of-text token, as the beginning of a document; the messages of a chat are one
text; token prompts are used as they are. Independent of HTTP.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ..generation.batching import Engine, Finished, GenerationTask
from ..generation.detokenizer import Detokenizer
from ..generation.logprobs import ScoringTask, TokenLogprob
from ..trained import Trained
from .requests import ApiError, GenerationRequest, server_error
from .responses import ResponseFormat

Event = TokenLogprob | Finished | Exception


@dataclass
class EncodedPrompt:
    """A prompt's tokens, the tokens that the network reads (with end-of-text), and the echoed tokens."""

    tokens: list[int]
    inputs: list[int]
    echoed: list[TokenLogprob] = field(default_factory=list)


@dataclass
class GeneratedChoice:
    """One choice of the response, while it is generated."""

    index: int
    prompt: EncodedPrompt
    output: Detokenizer
    task: GenerationTask | None = None
    finish_reason: str | None = None
    num_echoed: int = 0  # tokens of the output that belong to the prompt

    def handle(self, event: Event) -> None:
        """Apply an event of the engine, and cancel the task when a stop string was generated."""
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Finished):
            self.output.finish()
        else:
            self.output.add(event)
        if self.output.stopped:
            self.finish_reason = "stop"
        elif isinstance(event, Finished):
            self.finish_reason = event.reason
        if self.finish_reason and self.task:
            self.task.cancelled = True


class GenerationHandler:
    """Handles one request of either endpoint: `respond` returns the response, `stream` yields it in chunks."""

    def __init__(
        self,
        request: GenerationRequest,
        response_format: ResponseFormat,
        student: Trained,
        engine: Engine,
        head: dict[str, Any],
    ) -> None:
        self.request, self.format, self.head = request, response_format, head
        self.student, self.engine = student, engine
        self.prompts = [self._encode(prompt) for prompt in request.prompts]
        repeated = [prompt for prompt in self.prompts for _ in range(request.n or 1)]
        self.choices = [
            GeneratedChoice(i, prompt, Detokenizer(student.tokenizer, request.stops))
            for i, prompt in enumerate(repeated)
        ]
        self.tasks: list[GenerationTask | ScoringTask] = []
        self.started: set[int] = set()  # indices of choices whose first chunk was sent

    def _encode(self, prompt: str | list[int]) -> EncodedPrompt:
        tokenizer = self.student.tokenizer
        if isinstance(prompt, str):
            tokens = tokenizer.encode(prompt)
            return EncodedPrompt(tokens, [tokenizer.end_of_text, *tokens])
        invalid = [token for token in prompt if not 0 <= token < tokenizer.vocab_size]
        if invalid:
            size = f"the vocabulary has {tokenizer.vocab_size:,} tokens"
            raise ApiError(400, f"there is no token {invalid[0]}: {size}", "prompt")
        return EncodedPrompt(prompt, prompt)

    # ------------------------------------------------------------------------------------------- generation

    async def updates(self) -> AsyncGenerator[GeneratedChoice, None]:
        """Yield a choice whenever it has changed, until all have finished."""
        try:
            if self.request.echo_prompt:
                await self._echo_prompts()
            for choice in self.choices:
                yield choice
            async for choice in self._generate():
                yield choice
        finally:
            for task in self.tasks:
                task.cancelled = True

    async def _echo_prompts(self) -> None:
        """Start each choice with its prompt, scored if log-probabilities are requested."""
        for prompt in self.prompts:
            prompt.echoed = [TokenLogprob(token) for token in prompt.tokens]
        if self.request.num_logprobs is not None:
            scores = await asyncio.gather(*map(self._score, self.prompts))
            for prompt, scored in zip(self.prompts, scores, strict=True):
                prompt.echoed[len(prompt.tokens) - len(scored) :] = scored
        for choice in self.choices:
            choice.output.echo(choice.prompt.echoed)
            choice.num_echoed = len(choice.prompt.echoed)

    def _score(self, prompt: EncodedPrompt) -> asyncio.Future[list[TokenLogprob]]:
        """The scored tokens of a prompt: all inputs but the first, which has no preceding context."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[TokenLogprob]] = loop.create_future()

        def set_result(result: list[TokenLogprob] | Exception) -> None:
            if future.done():
                return
            future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)

        def on_result(result: list[TokenLogprob] | Exception) -> None:
            loop.call_soon_threadsafe(set_result, result)

        self._submit(ScoringTask(prompt.inputs, self.request.num_logprobs or 0, on_result))
        return future

    async def _generate(self) -> AsyncIterator[GeneratedChoice]:
        """Submit a task for each choice, and yield a choice after each of its events."""
        events: asyncio.Queue[tuple[GeneratedChoice, Event]] = asyncio.Queue()
        limit = self.student.context if self.request.token_limit is None else self.request.token_limit
        seed = random.getrandbits(32) if self.request.seed is None else self.request.seed
        for choice in self.choices:
            on_event = _event_callback(events, choice)
            choice.task = GenerationTask(
                choice.prompt.inputs,
                (seed + choice.index) % 2**32,
                self.request.sampling,
                limit,
                on_event,
                self.request.num_logprobs,
            )
            self._submit(choice.task) if limit else on_event(Finished("length"))
        unfinished = len(self.choices)
        while unfinished:
            choice, event = await events.get()
            if choice.finish_reason is None:
                choice.handle(event)
                unfinished -= choice.finish_reason is not None
                yield choice

    def _submit(self, task: GenerationTask | ScoringTask) -> None:
        self.tasks.append(task)
        self.engine.submit(task)

    # ------------------------------------------------------------------------------------------- the response

    async def respond(self) -> dict[str, Any]:
        """The complete response."""
        async for _ in self.updates():
            pass
        choices = [
            self._choice_head(choice) | self.format.choice(choice.output.text, self._logprobs(choice.output.tokens))
            for choice in self.choices
        ]
        return {**self.head, "object": self.format.object_name, "choices": choices, "usage": self._usage()}

    async def stream(self) -> AsyncGenerator[dict[str, Any] | str, None]:
        """Yield the response in chunks. An error ends the stream as its last chunk."""
        head = {**self.head, "object": self.format.chunk_object_name}
        try:
            async with aclosing(self.updates()) as updates:
                async for choice in updates:
                    for chunk in self._new_chunks(choice):
                        yield {**head, "choices": [chunk]}
        except Exception as error:  # noqa: BLE001 - sent in the stream, whose status 200 was sent already
            yield server_error(error).body
            return
        if self.request.include_usage:
            yield {**head, "choices": [], "usage": self._usage()}
        yield "[DONE]"

    def _new_chunks(self, choice: GeneratedChoice) -> Iterator[dict[str, Any]]:
        """The chunks of a choice that were not sent yet."""
        if choice.index not in self.started:
            self.started.add(choice.index)
            if (first := self.format.first_chunk()) is not None:
                yield {**self._choice_head(choice), **first}
        text, tokens = choice.output.take()
        if text or tokens or choice.finish_reason:
            yield {**self._choice_head(choice), **self.format.chunk(text, self._logprobs(tokens))}

    def _choice_head(self, choice: GeneratedChoice) -> dict[str, Any]:
        return {"index": choice.index, "finish_reason": choice.finish_reason}

    def _logprobs(self, tokens: Sequence[tuple[TokenLogprob, int]]) -> Any:
        return None if self.request.num_logprobs is None else self.format.logprobs(tokens)

    def _usage(self) -> dict[str, int]:
        prompt = sum(len(prompt.tokens) for prompt in self.prompts)
        completion = sum(len(choice.output.tokens) - choice.num_echoed for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _event_callback(events: asyncio.Queue[Any], choice: GeneratedChoice) -> Callable[[Event], None]:
    """A callback for the engine's thread that puts events into this event loop's queue."""
    loop = asyncio.get_running_loop()

    def on_event(event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, (choice, event))

    return on_event
