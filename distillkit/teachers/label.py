"""The label stage: requests in, answers out, each asked once in the life of the cache.

Plain teachers answer on this thread, in their own batches; asynchronous ones several at a time on one loop. An
answer is on disk before the next one is looked at. Does not know what answers are for.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import DistillkitError, Interrupted, TeacherError
from ..progress import Voice
from ..records import Answer, Request
from ..roles import Teacher
from .cache import Cache, asked, key_of


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
    identity = teacher.identity()
    done = Labelled(list(requests), [key_of(asked(teacher.name, identity, request)) for request in requests])
    found: dict[str, Answer] = {key: answer for key in dict.fromkeys(done.keys) if (answer := cache.get(key))}
    waiting = {key: request for key, request in zip(done.keys, requests, strict=True) if key not in found}
    done.cached = len(requests) - len(waiting)
    for key, answer in _ask(teacher, waiting, concurrency, done, voice):
        cache.put(key, asked(teacher.name, identity, waiting[key]), answer)
        found[key] = answer
        done.asked += 1
        voice.progress(f"  {done.asked}/{len(waiting)} answers", last=done.asked == len(waiting))
    done.answers = [found[key] for key in done.keys]
    return done


def known(teacher: Teacher, requests: Sequence[Request], cache: Cache) -> int:
    """How many of the requests need not be asked again."""
    identity = teacher.identity() if requests else None
    return sum(key_of(asked(teacher.name, identity, request)) in cache for request in requests)


def _ask(
    teacher: Teacher, waiting: dict[str, Request], concurrency: int, done: Labelled, voice: Voice
) -> Iterator[tuple[str, Answer]]:
    """Ask for what is missing; whatever goes wrong, what was answered is kept, and the message says how much."""
    if not waiting:
        return
    named = [replace(request, id=key) for key, request in waiting.items()]
    ask = _concurrently if inspect.iscoroutinefunction(teacher.answer) else _in_turn
    try:
        for request, answer in ask(teacher, named, concurrency):
            yield request.id, _checked(teacher, answer)
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped after {done.asked} of {len(waiting)} answers; they are kept") from error
    except DistillkitError:
        raise
    except Exception as error:
        raise TeacherError(
            f"the teacher {teacher.name!r} failed after {done.asked} of {len(waiting)} answers: {type(error).__name__}: {error}",
            "What it answered is kept; the same command goes on from there.",
        ) from error


def _in_turn(teacher: Teacher, requests: list[Request], concurrency: int) -> Iterator[tuple[Request, Answer]]:
    yield from teacher.answers(requests)


def _concurrently(
    teacher: Teacher, requests: list[Request], concurrency: int
) -> Iterator[tuple[Request, Answer]]:
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
            for task in sorted(done, key=lambda task: task.exception() is not None):
                request = tasks.pop(task)
                yield request, task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _checked(teacher: Teacher, answer: object) -> Answer:
    """An answer, or the plugin's fault said plainly."""
    if not isinstance(answer, Answer):
        raise TeacherError(
            f"the teacher {teacher.name!r} gave a {type(answer).__name__} where an Answer was due"
        )
    return answer
