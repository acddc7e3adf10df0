"""The label stage: requests in, answers out, each asked once in the life of the cache.

Plain teachers answer on this thread, in their own batches; asynchronous ones are driven by `asking`.
An answer is on disk before the next one is looked at. Does not know what answers are for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import DistillkitError, Interrupted, TeacherError
from ..files import digest
from ..progress import Voice
from ..records import REFUSED, Answer, Request
from ..roles import Teacher
from .asking import Asking, Terms, is_asynchronous
from .cache import Cache, asked, key_of


@dataclass
class Labelled:
    """What a label stage came to: the requests, their keys, what is known of them now, and how it was come by."""

    requests: list[Request]
    keys: list[str]
    found: dict[str, Answer] = field(default_factory=dict)
    asked: int = 0
    cached: int = 0
    spent: dict[str, float] = field(default_factory=dict)  # usd, requests, tokens: of all sittings

    @property
    def answered(self) -> list[tuple[Request, str, Answer]]:
        """The requests that have an answer, its key and the answer, in the order of the requests."""
        rows = ((r, key, self.found.get(key)) for r, key in zip(self.requests, self.keys, strict=True))
        return [(r, key, answer) for r, key, answer in rows if answer is not None and answer.finish != REFUSED]

    @property
    def answers(self) -> list[Answer]:
        """The answers, in the order of the requests; a refusal is none."""
        return [answer for _, _, answer in self.answered]

    @property
    def replies(self) -> list[Answer]:
        """One a request, for those who count on it: where there is no answer, one without text that says "refused"."""
        return [self.found.get(key, Answer("", finish=REFUSED)) for key in self.keys]

    @property
    def refused(self) -> int:
        """How many requests are known to get no answer."""
        return sum(key in self.found and self.found[key].finish == REFUSED for key in self.keys)

    @property
    def truncated(self) -> int:
        """How many answers were cut at their length."""
        return sum(answer.finish == "length" for answer in self.answers)

    @property
    def counts(self) -> dict[str, Any]:
        """The figures for the record of the run; those that are nothing out of the ordinary are left out."""
        usages = [answer.usage for answer in self.answers if answer.usage]
        extra = {"refused": self.refused, "usd": round(self.spent.get("usd", 0.0), 6)}
        return {
            "prompts": len(self.requests),
            "asked": self.asked,
            "cached": self.cached,
            "truncated": self.truncated,
            "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
            "completion_tokens": sum(usage.completion_tokens for usage in usages),
            **{name: value for name, value in extra.items() if value},
        }


def label(
    teacher: Teacher,
    requests: Sequence[Request],
    cache: Cache,
    *,
    concurrency: int = 8,
    terms: Terms | None = None,
    voice: Voice | None = None,
    done: Labelled | None = None,
) -> Labelled:
    """Answer every request, from the cache or by asking. `done` is filled as answers come, even if it ends badly."""
    voice, terms = voice or Voice(), terms or Terms(concurrency=concurrency)
    done = done or Labelled([], [])
    whats = _share(done, _asked(teacher, requests), requests, terms.shard)
    wanted = dict(zip(done.keys, zip(done.requests, whats, strict=True), strict=True))
    found = {key: answer for key in wanted if (answer := cache.get(key)) is not None}
    again = {key for key, answer in found.items() if terms.retry_refused and answer.finish == REFUSED}
    done.found = {key: answer for key, answer in found.items() if key not in again}
    waiting = {key: request for key, (request, _) in wanted.items() if key not in done.found}
    done.cached = len(done.requests) - len(waiting)
    asking = _Asking(teacher, terms, cache, voice, done)
    try:
        with closing(asking.ask(waiting)) as answers:
            for key, answer in answers:
                cache.put(key, wanted[key][1], answer)
                done.found[key] = answer
                done.asked += 1
                voice.progress(asking.progress(len(waiting)), last=done.asked == len(waiting))
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped after {done.asked} of {len(waiting)} answers; they are kept") from error
    except DistillkitError as error:
        kept = f"{done.asked} of {len(waiting)} answers are kept; asking again asks only for the others."
        error.hint = f"{error.hint} {kept}".strip()
        raise
    return done


def known(teacher: Teacher, requests: Sequence[Request], cache: Cache) -> int:
    """How many of the requests need not be asked again."""
    return sum(key_of(what) in cache for what in _asked(teacher, requests))


def _share(
    done: Labelled, whats: list[dict[str, Any]], requests: Sequence[Request], shard: tuple[int, int] | None
) -> list[dict[str, Any]]:
    """Put into `done` what is to be done here: everything, or one of several shares by the hash of what is asked."""
    rows = [(request, key_of(what), what) for request, what in zip(requests, whats, strict=True)]
    if shard is not None:
        part, of = shard
        rows = [row for row in rows if int(row[1], 16) % of == part - 1]
    done.requests, done.keys = [row[0] for row in rows], [row[1] for row in rows]
    return [row[2] for row in rows]


def _asked(teacher: Teacher, requests: Sequence[Request]) -> list[dict[str, Any]]:
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


class _Asking:
    """Asks for what is missing; whatever goes wrong is said in the teacher's name."""

    def __init__(self, teacher: Teacher, terms: Terms, cache: Cache, voice: Voice, done: Labelled) -> None:
        self.teacher, self.done = teacher, done
        self.who = f"the teacher {teacher.name!r}"
        self.driven = Asking(teacher, terms, cache, voice) if is_asynchronous(teacher) else None

    def ask(self, waiting: dict[str, Request]) -> Generator[tuple[str, Answer]]:
        """Every answer under its key, as it comes."""
        if not waiting:
            return
        due = set(waiting)
        named = [replace(request, id=key) for key, request in waiting.items()]
        try:
            for request, answer in self.driven.answers(named) if self.driven else _in_turn(self.teacher, named):
                if request.id not in due:
                    raise TeacherError(f"{self.who} answered a request twice, or one that it was not asked")
                due.remove(request.id)
                yield request.id, _checked(self.who, answer)
        except DistillkitError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            raise TeacherError(f"{self.who} failed: {type(error).__name__}: {error}") from error
        finally:
            self._spent()
        if due:
            raise TeacherError(f"{self.who} left {len(due)} of {len(waiting)} requests without an answer")

    def progress(self, waiting: int) -> str:
        """How far it is, and what it cost so far."""
        self._spent()
        money = f", ${self.done.spent['usd']:.4f}" if self.done.spent.get("usd") else ""
        return f"  {self.done.asked}/{waiting} answers{money}"

    def _spent(self) -> None:
        if self.driven:
            self.done.spent = self.driven.budget.spent


def _in_turn(teacher: Teacher, requests: list[Request]) -> Iterator[tuple[Request, Any]]:
    """One after another on this thread, or in the teacher's own batches."""
    if type(teacher).answers is Teacher.answers:
        return ((request, teacher.answer(request)) for request in requests)
    return iter(teacher.answers(requests))


def _checked(who: str, answer: object) -> Answer:
    """An answer, or the plugin's fault said plainly. Half an emoji is no text: it becomes U+FFFD."""
    if not isinstance(answer, Answer) or not isinstance(answer.text, str):
        found = "an Answer without text" if isinstance(answer, Answer) else f"a {type(answer).__name__}"
        raise TeacherError(f"{who} gave {found} where an Answer was due")
    whole = answer.text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return answer if whole == answer.text else replace(answer, text=whole)
