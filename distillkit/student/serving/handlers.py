"""One request from its words to its answer: texts to tokens, tokens to the engine, and what comes back into words.

A text is read as the beginning of a document, and messages as one text; tokens are taken as they are. Knows nothing
of connections.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ..generation.batching import Ended, Engine, Writing
from ..generation.detokenizer import Wording
from ..trained import Trained
from ..training.logprobs import Pick, Reading
from .requests import Asked, Refusal, fault
from .responses import Shape


@dataclass
class Prompt:
    """What is gone on from: its tokens, those that the student reads, and what it thought of them if that was asked."""

    tokens: list[int]
    read: list[int]
    picks: list[Pick] = field(default_factory=list)


@dataclass
class Choice:
    """One of the texts that a request is answered with."""

    index: int
    prompt: Prompt
    wording: Wording
    work: Writing | None = None
    finish: str | None = None
    count: int = 0  # tokens before anything was written

    def heard(self, event: Pick | Ended | Exception) -> None:
        """Take in what the engine tells, and let go of the row when enough was said."""
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Ended):
            self.wording.end()
        else:
            self.wording.add(event)
        if self.wording.stopped:
            self.finish = "stop"
        elif isinstance(event, Ended):
            self.finish = event.finish
        if self.finish and self.work:
            self.work.dropped = True


class Job:
    """One request on its way: its prompts, its choices, and the way to the engine and back."""

    def __init__(self, asked: Asked, shape: Shape, student: Trained, engine: Engine, head: dict[str, Any]) -> None:
        self.asked, self.shape, self.student, self.engine, self.head = asked, shape, student, engine, head
        self.prompts = [self._prompt(prompt) for prompt in asked.prompts]
        each = [prompt for prompt in self.prompts for _ in range(asked.n or 1)]
        self.choices = [Choice(i, prompt, Wording(student.tokenizer, asked.stops)) for i, prompt in enumerate(each)]
        self.works: list[Writing | Reading] = []
        self.greeted: set[int] = set()

    def _prompt(self, prompt: str | list[int]) -> Prompt:
        """A text begins a document; tokens are taken as they are."""
        tokenizer = self.student.tokenizer
        if isinstance(prompt, str):
            tokens = tokenizer.encode(prompt)
            return Prompt(tokens, [tokenizer.end_of_text, *tokens])
        wrong = [token for token in prompt if not 0 <= token < tokenizer.vocab_size]
        if wrong:
            raise Refusal(400, f"there is no token {wrong[0]}: the student has {tokenizer.vocab_size:,}", "prompt")
        return Prompt(prompt, prompt)

    # --------------------------------------------------------------------------------- to the engine and back

    async def news(self) -> AsyncGenerator[Choice, None]:
        """Choices, each whenever there is something new of it, until all have ended."""
        try:
            if self.asked.echoes:
                await self._echo()
            for choice in self.choices:
                yield choice
            async for choice in self._written():
                yield choice
        finally:
            for work in self.works:
                work.dropped = True

    async def _echo(self) -> None:
        """Begin each choice with its prompt, judged where log-probabilities are asked for."""
        for prompt in self.prompts:
            prompt.picks = [Pick(token) for token in prompt.tokens]
        if self.asked.top is not None:
            judged = await asyncio.gather(*map(self._judged, self.prompts))
            for prompt, found in zip(self.prompts, judged, strict=True):
                prompt.picks[len(prompt.tokens) - len(found) :] = found
        for choice in self.choices:
            choice.wording.echo(choice.prompt.picks)
            choice.count = len(choice.prompt.picks)

    def _judged(self, prompt: Prompt) -> asyncio.Future[list[Pick]]:
        """What the student thinks of a prompt's tokens; of the first one only if it read something before it."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Pick]] = loop.create_future()

        def settle(told: list[Pick] | Exception) -> None:
            if found.done():
                return
            found.set_exception(told) if isinstance(told, Exception) else found.set_result(told)

        def tell(told: list[Pick] | Exception) -> None:
            loop.call_soon_threadsafe(settle, told)

        self._submit(Reading(prompt.read, self.asked.top or 0, tell))
        return found

    async def _written(self) -> AsyncIterator[Choice]:
        events: asyncio.Queue[tuple[Choice, Pick | Ended | Exception]] = asyncio.Queue()
        most = self.student.context if self.asked.most is None else self.asked.most
        seed = random.getrandbits(32) if self.asked.seed is None else self.asked.seed
        for choice in self.choices:
            tell = _teller(events, choice)
            read, own = choice.prompt.read, (seed + choice.index) % 2**32
            choice.work = Writing(read, own, self.asked.sampling, most, tell, self.asked.top)
            self._submit(choice.work) if most else tell(Ended("length"))
        left = len(self.choices)
        while left:
            choice, event = await events.get()
            if choice.finish is None:
                choice.heard(event)
                left -= choice.finish is not None
                yield choice

    def _submit(self, work: Writing | Reading) -> None:
        self.works.append(work)
        self.engine.submit(work)

    # ------------------------------------------------------------------------------------------ the answer

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        async for _ in self.news():
            pass
        choices = [
            {**self._choice(choice), **self.shape.whole(choice.wording.text, self._logprobs(choice.wording.picks))}
            for choice in self.choices
        ]
        return {**self.head, "object": self.shape.kind, "choices": choices, "usage": self._usage()}

    async def pieces(self) -> AsyncGenerator[dict[str, Any] | str, None]:
        """The answer in pieces, as they come. What goes wrong on the way is the last one."""
        head = {**self.head, "object": self.shape.piece_kind}
        try:
            async with aclosing(self.news()) as news:
                async for choice in news:
                    for piece in self._said(choice):
                        yield {**head, "choices": [piece]}
        except Exception as error:  # noqa: BLE001 - the client is told in the stream, which has begun
            yield fault(error).body
            return
        if self.asked.with_usage:
            yield {**head, "choices": [], "usage": self._usage()}
        yield "[DONE]"

    def _said(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """What is new of a choice."""
        if choice.index not in self.greeted:
            self.greeted.add(choice.index)
            if (first := self.shape.first()) is not None:
                yield {**self._choice(choice), **first}
        text, placed = choice.wording.piece()
        if text or placed or choice.finish:
            yield {**self._choice(choice), **self.shape.piece(text, self._logprobs(placed))}

    def _choice(self, choice: Choice) -> dict[str, Any]:
        return {"index": choice.index, "finish_reason": choice.finish}

    def _logprobs(self, placed: Sequence[tuple[Pick, int]]) -> Any:
        return None if self.asked.top is None else self.shape.logprobs(placed)

    def _usage(self) -> dict[str, int]:
        read = sum(len(prompt.tokens) for prompt in self.prompts)
        written = sum(len(choice.wording.picks) - choice.count for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _teller(events: asyncio.Queue[Any], choice: Choice) -> Callable[[Pick | Ended | Exception], None]:
    """How the engine's thread tells this one."""
    loop = asyncio.get_running_loop()

    def tell(event: Pick | Ended | Exception) -> None:
        loop.call_soon_threadsafe(events.put_nowait, (choice, event))

    return tell
