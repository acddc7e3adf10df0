"""The label stage: requests in, answers out, each asked once in the life of the cache.

Plain teachers answer on this thread, in their own batches; asynchronous ones are driven by `asking`.
An answer is on disk before the next one is looked at. Does not know what answers are for.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Protocol

from ...core.console import Console
from ...core.errors import DistillkitError, Interrupted, TeacherError
from ...core.files import digest
from ...core.records import REFUSED, Answer, Request
from ...core.timeouts import time_limit
from ...plugins.interfaces import Teacher
from ..answers.disk import DiskAnswerStore, answer_key, key_fields
from .policy import RequestPolicy
from .scheduler import MADE_HERE, RequestScheduler, is_asynchronous

Row = tuple[Request, str, dict[str, Any]]
Check = Callable[[Iterable[str]], None]
SETTLED = 1000  # answers
PAUSE = 0.25  # seconds between two looks at what another process has answered


class Identified(Protocol):
    """What of a teacher decides the keys of its answers."""

    @property
    def name(self) -> str:
        """The name of its plugin."""

    def identity(self) -> Any:
        """What decides the answers beside the request."""


@dataclass
class LabelResult:
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
    cache: DiskAnswerStore,
    *,
    concurrency: int = 8,
    policy: RequestPolicy | None = None,
    console: Console | None = None,
    done: LabelResult | None = None,
    check: Check = lambda keys: None,
) -> LabelResult:
    """Answer every request, from the cache or by asking. `done` is filled as answers come, even if it ends badly.

    `check` may refuse keys that are about to be asked for; while it looks at them nobody else can.
    """
    console, policy = console or Console(), policy or RequestPolicy(concurrency=concurrency)
    rows = keyed_requests(teacher, requests, policy.shard)
    done = done or LabelResult([], [])
    done.requests, done.keys = [request for request, _, _ in rows], [key for _, key, _ in rows]
    wanted = {key: (request, what) for request, key, what in rows}
    done.found = known_answers(cache, wanted, policy)
    waiting = {key: request for key, (request, _) in wanted.items() if key not in done.found}
    due, before = len(waiting), len(done.found)
    asking = _TeacherCalls(teacher, policy, cache, console, done)

    def keep(key: str, answer: Answer) -> None:
        done.found[key] = cache.put(key, wanted[key][1], answer)
        done.asked += 1

    try:
        for mine in _portions(cache, waiting, policy, done, console, check):
            with _short_pauses(cache, len(mine)) as settle, closing(asking.ask(mine)) as answers:
                for key, answer in answers:
                    settle()
                    keep(key, answer)
                    there = len(done.found) - before
                    console.progress(asking.progress(there, due), last=there == due)
    except KeyboardInterrupt as error:
        for key, answer in asking.left():
            if key not in done.found:
                keep(key, answer)
        raise Interrupted(f"stopped after {done.asked} of {due} answers; they are kept") from error
    except DistillkitError as error:
        if done.asked:
            kept = f"{done.asked} of {due} answers are kept; asking again asks only for the others."
            error.hint = f"{error.hint} {kept}".strip()
        raise
    finally:
        cache.free()
        asking.close()
    done.cached = len(done.requests) - done.asked
    return done


@contextmanager
def _short_pauses(cache: DiskAnswerStore, requests: int) -> Iterator[Callable[[], None]]:
    """Of many requests, have Python look for garbage only among what is new since some thousand answers.

    A look through a hundred thousand that wait takes most of a second, in which nobody is listened to; and whoever
    empties the cache's log waits for the disk, so that is done aside.
    """
    if requests < SETTLED:
        yield lambda: None
        return
    came = count(1)

    def settle() -> None:
        if next(came) % SETTLED == 0:
            gc.collect()
            gc.freeze()

    gc.collect()
    gc.freeze()
    try:
        with cache.emptied_aside():
            yield settle
    finally:
        gc.unfreeze()


def known_answers(cache: DiskAnswerStore, keys: Iterable[str], policy: RequestPolicy) -> dict[str, Answer]:
    """What is known and need not be asked again: refusals too, unless they are to be."""
    found = cache.get_many(keys)
    return {key: answer for key, answer in found.items() if not (policy.retry_refused and answer.finish == REFUSED)}


def _portions(
    cache: DiskAnswerStore,
    waiting: dict[str, Request],
    policy: RequestPolicy,
    done: LabelResult,
    console: Console,
    check: Check,
) -> Iterator[dict[str, Request]]:
    """What this process is to ask for: all that no other one is asking for. What others ask for is waited for."""
    while waiting:
        claimed = cache.claim(waiting)
        check(claimed - done.found.keys())  # before looking: who collects a batch keeps its answers, then drops it
        done.found |= known_answers(cache, waiting, policy)  # after claiming: others may have answered just before
        mine = {key: request for key, request in waiting.items() if key in claimed and key not in done.found}
        if mine:
            yield mine
            cache.free()  # before waiting for others, who may be waiting for these
        waiting = {key: request for key, request in waiting.items() if key not in done.found}
        if waiting and not mine:
            console.progress(f"  waiting for {len(waiting)} answers that another process is asking for")
            time.sleep(PAUSE)


def answer_keys(teacher: Identified, requests: Sequence[Request], shard: tuple[int, int] | None = None) -> list[str]:
    """Under which keys the answers are kept."""
    return [key for _, key, _ in keyed_requests(teacher, requests, shard)]


def count_known(
    teacher: Identified, requests: Sequence[Request], cache: DiskAnswerStore, policy: RequestPolicy | None = None
) -> int:
    """How many of the requests need not be asked again."""
    keys = answer_keys(teacher, requests)
    found = known_answers(cache, keys, policy) if policy and policy.retry_refused else cache
    return sum(key in found for key in keys)


def keyed_requests(teacher: Identified, requests: Sequence[Request], shard: tuple[int, int] | None = None) -> list[Row]:
    """Each request, its key and what that is made of: all, or one of several shares by the hash of what is asked."""
    whats = key_fields_of(teacher, requests)
    rows = [(request, answer_key(what), what) for request, what in zip(requests, whats, strict=True)]
    if shard is None:
        return rows
    part, of = shard
    return [row for row in rows if int(row[1], 16) % of == part - 1]


def key_fields_of(teacher: Identified, requests: Sequence[Request]) -> list[dict[str, Any]]:
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
    return [key_fields(teacher.name, identity, request) for request in requests]


class _TeacherCalls:
    """Asks for what is missing; whatever goes wrong is said in the teacher's name."""

    def __init__(
        self, teacher: Teacher, policy: RequestPolicy, cache: DiskAnswerStore, console: Console, done: LabelResult
    ) -> None:
        self.teacher, self.done = teacher, done
        self.seconds = policy.timeout or MADE_HERE
        self.who = f"the teacher {teacher.name!r}"
        self.driven = RequestScheduler(teacher, policy, cache, console) if is_asynchronous(teacher) else None

    def ask(self, waiting: dict[str, Request]) -> Generator[tuple[str, Answer]]:
        """Every answer under its key, as it comes."""
        if not waiting:
            return
        due = set(waiting)
        named = [replace(request, id=key) for key, request in waiting.items()]
        try:
            for request, answer in self.driven.answers(named) if self.driven else self._in_turn(named):
                if request.id not in due:
                    raise TeacherError(f"{self.who} answered a request twice, or one that it was not asked")
                due.remove(request.id)
                yield request.id, checked(self.who, answer)
        except DistillkitError:
            raise
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            hint = "teacher.timeout says how long it may take." if isinstance(error, TimeoutError) else ""
            raise TeacherError(f"{self.who} failed: {type(error).__name__}: {error}", hint) from error
        finally:
            self._spent()
        if due:
            raise TeacherError(f"{self.who} left {len(due)} of {len(waiting)} requests without an answer")

    def progress(self, there: int, due: int) -> str:
        """How far it is, and what it cost so far."""
        self._spent()
        money = f", ${self.done.spent['usd']:.4f}" if self.done.spent.get("usd") else ""
        return f"  {there}/{due} answers{money}"

    def left(self) -> Iterator[tuple[str, Answer]]:
        """What had come when asking was broken off, and was paid for."""
        for request, answer in self.driven.came if self.driven else ():
            yield request.id, checked(self.who, answer)

    def close(self) -> None:
        """Let go of what asking had opened."""
        if self.driven:
            try:
                self.driven.close()
            except (Exception, SystemExit) as error:
                raise TeacherError(f"{self.who} failed to close: {type(error).__name__}: {error}") from error

    def _in_turn(self, requests: list[Request]) -> Iterator[tuple[Request, Any]]:
        """One after another on this thread, or in the teacher's own batches; each within its time."""
        alone = type(self.teacher).answers is Teacher.answers
        pairs = ((request, self.teacher.answer(request)) for request in requests)
        coming = pairs if alone else iter(self.teacher.answers(requests))
        while True:
            with time_limit(self.seconds):
                pair = next(coming, None)
            if pair is None:
                return
            yield pair

    def _spent(self) -> None:
        if self.driven:
            self.done.spent = self.driven.budget.spent


def checked(who: str, answer: object) -> Answer:
    """An answer, or the plugin's fault said plainly. Half an emoji is no text: it becomes U+FFFD."""
    if not isinstance(answer, Answer) or not isinstance(answer.text, str):
        found = "an Answer without text" if isinstance(answer, Answer) else f"a {type(answer).__name__}"
        raise TeacherError(f"{who} gave {found} where an Answer was due")
    whole = answer.text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return answer if whole == answer.text else replace(answer, text=whole)
