"""The label stage: requests in, answers out, each asked once in the life of the cache.

Plain teachers answer on this thread, in their own batches; asynchronous ones several at a time on one loop.
An answer is on disk before the next one is looked at. Does not know what answers are for.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..errors import DistillkitError, Interrupted, TeacherError
from ..files import digest
from ..progress import Voice
from ..records import Answer, Request
from ..roles import Teacher
from .cache import Cache, asked, key_of

PAUSE = 0.25  # seconds between two looks at what another process has answered


class Identified(Protocol):
    """What of a teacher decides the keys of its answers."""

    @property
    def name(self) -> str:
        """The name of its plugin."""

    def identity(self) -> Any:
        """What decides the answers beside the request."""


@dataclass
class Labelled:
    """What a label stage came to: answers in the order of the requests, and how they were come by."""

    requests: list[Request]
    keys: list[str]
    answers: list[Answer] = field(default_factory=list)
    asked: int = 0
    cached: int = 0

    @property
    def truncated(self) -> int:
        """How many answers were cut at their length."""
        return sum(answer.finish == "length" for answer in self.answers)

    @property
    def counts(self) -> dict[str, int]:
        """The figures for the record of the run."""
        usages = [answer.usage for answer in self.answers if answer.usage]
        return {
            "prompts": len(self.requests),
            "asked": self.asked,
            "cached": self.cached,
            "truncated": self.truncated,
            "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
            "completion_tokens": sum(usage.completion_tokens for usage in usages),
        }


def label(
    teacher: Teacher,
    requests: Sequence[Request],
    cache: Cache,
    *,
    concurrency: int = 8,
    voice: Voice | None = None,
) -> Labelled:
    """Answer every request, from the cache or by asking."""
    voice = voice or Voice()
    whats = whats_of(teacher, requests)
    done = Labelled(list(requests), [key_of(what) for what in whats])
    wanted = dict(zip(done.keys, zip(requests, whats, strict=True), strict=True))
    found = cache.get_many(wanted)
    waiting = {key: request for key, (request, _) in wanted.items() if key not in found}
    due, before = len(waiting), len(found)
    try:
        for mine in _shares(cache, waiting, found, voice):
            with closing(_ask(teacher, mine, concurrency)) as answers:
                for key, answer in answers:
                    cache.put(key, wanted[key][1], answer)
                    found[key] = answer
                    done.asked += 1
                    voice.progress(f"  {len(found) - before}/{due} answers", last=len(found) - before == due)
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped after {done.asked} of {due} answers; they are kept") from error
    except DistillkitError as error:
        kept = f"{done.asked} of {due} answers are kept; asking again asks only for the others."
        error.hint = f"{error.hint} {kept}".strip()
        raise
    finally:
        cache.free()
    done.cached = len(requests) - done.asked
    done.answers = [found[key] for key in done.keys]
    return done


def _shares(
    cache: Cache, waiting: dict[str, Request], found: dict[str, Answer], voice: Voice
) -> Iterator[dict[str, Request]]:
    """What this process is to ask for: all that no other one is asking for. What others ask for is waited for."""
    while waiting:
        claimed = cache.claim(waiting)
        found |= cache.get_many(waiting)  # after claiming: others may have answered just before
        mine = {key: request for key, request in waiting.items() if key in claimed and key not in found}
        if mine:
            yield mine
            cache.free()  # before waiting for others, who may be waiting for these
        waiting = {key: request for key, request in waiting.items() if key not in found}
        if waiting and not mine:
            voice.progress(f"  waiting for {len(waiting)} answers that another process is asking for")
            time.sleep(PAUSE)


def keys_of(teacher: Teacher, requests: Sequence[Request]) -> list[str]:
    """Under which keys the answers are kept."""
    return [key_of(what) for what in whats_of(teacher, requests)]


def known(teacher: Teacher, requests: Sequence[Request], cache: Cache) -> int:
    """How many of the requests need not be asked again."""
    return sum(key in cache for key in keys_of(teacher, requests))


def whats_of(teacher: Identified, requests: Sequence[Request]) -> list[dict[str, Any]]:
    """What is asked of whom. Who that is, only plain JSON can say."""
    if not requests:
        return []
    identity = teacher.identity()
    try:
        digest(identity)
    except (TypeError, ValueError) as error:
        raise TeacherError(
            f"the identity of the teacher {teacher.name!r} is not made of plain JSON values: {error}"
        ) from error
    return [asked(teacher.name, identity, request) for request in requests]


def _ask(teacher: Teacher, waiting: dict[str, Request], concurrency: int) -> Generator[tuple[str, Answer]]:
    """Ask for what is missing; whatever goes wrong is said in the teacher's name."""
    if not waiting:
        return
    named = [replace(request, id=key) for key, request in waiting.items()]
    due = set(waiting)
    who = f"the teacher {teacher.name!r}"
    ask = _concurrently if inspect.iscoroutinefunction(teacher.answer) else _in_turn
    try:
        for request, answer in ask(teacher, named, concurrency):
            if request.id not in due:
                raise TeacherError(f"{who} answered a request twice, or one that it was not asked")
            due.remove(request.id)
            yield request.id, checked(who, answer)
    except DistillkitError:
        raise
    except (Exception, asyncio.CancelledError) as error:
        raise TeacherError(f"{who} failed: {type(error).__name__}: {error}") from error
    if due:
        raise TeacherError(f"{who} left {len(due)} of {len(waiting)} requests without an answer")


def _in_turn(teacher: Teacher, requests: list[Request], concurrency: int) -> Iterator[tuple[Request, Any]]:
    """One after another on this thread, or in the teacher's own batches."""
    if type(teacher).answers is Teacher.answers:
        return ((request, teacher.answer(request)) for request in requests)
    return iter(teacher.answers(requests))


def _concurrently(teacher: Teacher, requests: list[Request], concurrency: int) -> Iterator[tuple[Request, Answer]]:
    """Drive an asynchronous teacher from here: one loop, a bounded number of calls at once."""
    with asyncio.Runner() as runner:
        answers = _as_answered(teacher, requests, concurrency)
        try:
            while (pair := runner.run(_next(answers))) is not None:
                yield pair
        finally:
            runner.run(answers.aclose())


async def _next(answers: AsyncIterator[tuple[Request, Answer]]) -> tuple[Request, Answer] | None:
    return await anext(answers, None)


async def _as_answered(teacher: Teacher, requests: list[Request], concurrency: int) -> Any:
    """Answers as they come, the failed one raised once those that had come are handed over."""
    ask: Callable[[Request], Any] = teacher.answer
    waiting = iter(requests)
    tasks: dict[asyncio.Task[Answer], Request] = {}
    try:
        while True:
            for request in waiting:
                tasks[asyncio.ensure_future(ask(request))] = request
                if len(tasks) >= concurrency:
                    break
            if not tasks:
                return
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: task.cancelled() or task.exception() is not None):
                request = tasks.pop(task)
                yield request, task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def checked(who: str, answer: object) -> Answer:
    """An answer, or the plugin's fault said plainly. Half an emoji is no text: it becomes U+FFFD."""
    if not isinstance(answer, Answer) or not isinstance(answer.text, str):
        found = "an Answer without text" if isinstance(answer, Answer) else f"a {type(answer).__name__}"
        raise TeacherError(f"{who} gave {found} where an Answer was due")
    whole = answer.text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return answer if whole == answer.text else replace(answer, text=whole)
