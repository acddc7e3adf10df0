"""Labelling: requests in, answers out. Each request is sent once per cache.

Synchronous teachers answer on this thread; asynchronous teachers are driven by `scheduler`. Every answer is on disk
before the next one is handled. Does not know what answers are used for.
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
from .scheduler import LOCAL_TIMEOUT, RequestScheduler, is_asynchronous

KeyedRequest = tuple[Request, str, dict[str, Any]]  # a request, its key, and the fields that the key is made of
CheckKeys = Callable[[Iterable[str]], None]
GC_INTERVAL = 1000  # answers
POLL_SECONDS = 0.25  # between two checks for answers that another process requests


class HasIdentity(Protocol):
    """The part of a teacher that decides the keys of its answers."""

    @property
    def name(self) -> str:
        """The name of its plugin."""

    def identity(self) -> Any:
        """What decides the answers beside the request."""


@dataclass
class LabelResult:
    """The result of labelling: the requests, their keys, the answers known so far, and how they were obtained."""

    requests: list[Request]
    keys: list[str]
    by_key: dict[str, Answer] = field(default_factory=dict)
    asked: int = 0  # answers that the teacher gave now
    cached: int = 0  # answers that were in the cache
    spent: dict[str, float] = field(default_factory=dict)  # usd, requests, tokens; earlier sessions included

    @property
    def answered(self) -> list[tuple[Request, str, Answer]]:
        """Each request that has an answer, its key and its answer, in the order of the requests."""
        rows = ((r, key, self.by_key.get(key)) for r, key in zip(self.requests, self.keys, strict=True))
        return [(r, key, answer) for r, key, answer in rows if answer is not None and answer.finish != REFUSED]

    @property
    def answers(self) -> list[Answer]:
        """The answers, in the order of the requests, without refused ones."""
        return [answer for _, _, answer in self.answered]

    @property
    def replies(self) -> list[Answer]:
        """One answer for each request. Where there is none, an empty one with `finish = "refused"`."""
        return [self.by_key.get(key, Answer("", finish=REFUSED)) for key in self.keys]

    @property
    def refused(self) -> int:
        """The number of requests that are recorded as refused."""
        return sum(key in self.by_key and self.by_key[key].finish == REFUSED for key in self.keys)

    @property
    def truncated(self) -> int:
        """The number of answers that were cut at max_tokens."""
        return sum(answer.finish == "length" for answer in self.answers)

    @property
    def counts(self) -> dict[str, Any]:
        """The counts for run.json; `refused` and `usd` only if they are not 0."""
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
    result: LabelResult | None = None,
    check: CheckKeys = lambda keys: None,
) -> LabelResult:
    """Answer every request, from the cache or by the teacher.

    `result` is filled as answers arrive, also if the call ends with an error. `check` may refuse keys that are about to
    be requested; while it runs, this process has the lease on them.
    """
    console, policy = console or Console(), policy or RequestPolicy(concurrency=concurrency)
    rows = keyed_requests(teacher, requests, policy.shard)
    result = result or LabelResult([], [])
    result.requests, result.keys = [request for request, _, _ in rows], [key for _, key, _ in rows]
    wanted = {key: (request, fields) for request, key, fields in rows}
    result.by_key = known_answers(cache, wanted, policy)
    missing = {key: request for key, (request, _) in wanted.items() if key not in result.by_key}
    total, before = len(missing), len(result.by_key)
    calls = _TeacherCalls(teacher, policy, cache, console, result)

    def store(key: str, answer: Answer) -> None:
        result.by_key[key] = cache.put(key, wanted[key][1], answer)
        result.asked += 1

    try:
        for leased in _leased_groups(cache, missing, policy, result, console, check):
            with _short_pauses(cache, len(leased)) as on_answer, closing(calls.answers(leased)) as answers:
                for key, answer in answers:
                    on_answer()
                    store(key, answer)
                    done = len(result.by_key) - before
                    console.progress(calls.progress(done, total), last=done == total)
    except KeyboardInterrupt as error:
        for key, answer in calls.received():
            if key not in result.by_key:
                store(key, answer)
        raise Interrupted(f"stopped after {result.asked} of {total} answers; they are kept") from error
    except DistillkitError as error:
        if result.asked:
            kept = f"{result.asked} of {total} answers are kept; the same command requests only the others."
            error.hint = f"{error.hint} {kept}".strip()
        raise
    finally:
        cache.release()
        calls.close()
    result.cached = len(result.requests) - result.asked
    return result


@contextmanager
def _short_pauses(cache: DiskAnswerStore, requests: int) -> Iterator[Callable[[], None]]:
    """For many requests, avoid long pauses of the event loop. Yields a function to call for each answer.

    A garbage collection over a hundred thousand waiting requests takes most of a second, so only what is new since the
    last thousand answers is collected. SQLite's log is written back by a thread, because it waits for the disk.
    """
    if requests < GC_INTERVAL:
        yield lambda: None
        return
    answers = count(1)

    def on_answer() -> None:
        if next(answers) % GC_INTERVAL == 0:
            gc.collect()
            gc.freeze()

    gc.collect()
    gc.freeze()
    try:
        with cache.background_checkpoints():
            yield on_answer
    finally:
        gc.unfreeze()


def known_answers(cache: DiskAnswerStore, keys: Iterable[str], policy: RequestPolicy) -> dict[str, Answer]:
    """The cached answers that need not be requested again: refused ones too, unless the policy retries them."""
    found = cache.get_many(keys)
    return {key: answer for key, answer in found.items() if not (policy.retry_refused and answer.finish == REFUSED)}


def _leased_groups(
    cache: DiskAnswerStore,
    missing: dict[str, Request],
    policy: RequestPolicy,
    result: LabelResult,
    console: Console,
    check: CheckKeys,
) -> Iterator[dict[str, Request]]:
    """Yield the requests that this process has the lease on. Waits for answers that other processes request."""
    while missing:
        leased = cache.claim(missing)
        check(leased - result.by_key.keys())  # before reading: who collects a batch stores its answers, then drops it
        result.by_key |= known_answers(cache, missing, policy)  # after claiming: others may just have answered
        mine = {key: request for key, request in missing.items() if key in leased and key not in result.by_key}
        if mine:
            yield mine
            cache.release()  # before waiting for others, who may be waiting for these
        missing = {key: request for key, request in missing.items() if key not in result.by_key}
        if missing and not mine:
            console.progress(f"  waiting for {len(missing)} answers that another process requests")
            time.sleep(POLL_SECONDS)


def answer_keys(teacher: HasIdentity, requests: Sequence[Request], shard: tuple[int, int] | None = None) -> list[str]:
    """The keys under which the answers are stored."""
    return [key for _, key, _ in keyed_requests(teacher, requests, shard)]


def count_known(
    teacher: HasIdentity, requests: Sequence[Request], cache: DiskAnswerStore, policy: RequestPolicy | None = None
) -> int:
    """The number of requests whose answers are cached and need not be requested again."""
    keys = answer_keys(teacher, requests)
    known = known_answers(cache, keys, policy) if policy and policy.retry_refused else cache
    return sum(key in known for key in keys)


def keyed_requests(
    teacher: HasIdentity, requests: Sequence[Request], shard: tuple[int, int] | None = None
) -> list[KeyedRequest]:
    """Each request with its key and the key's fields. With a shard (i, n), those whose key modulo n is i - 1."""
    every = key_fields_of(teacher, requests)
    rows = [(request, answer_key(fields), fields) for request, fields in zip(requests, every, strict=True)]
    if shard is None:
        return rows
    index, shards = shard
    return [row for row in rows if int(row[1], 16) % shards == index - 1]


def key_fields_of(teacher: HasIdentity, requests: Sequence[Request]) -> list[dict[str, Any]]:
    """The values that the key of each request's answer is made of. The teacher's identity must be plain JSON."""
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
    """Gets missing answers from a teacher. Errors name the teacher."""

    def __init__(
        self, teacher: Teacher, policy: RequestPolicy, cache: DiskAnswerStore, console: Console, result: LabelResult
    ) -> None:
        self.teacher, self.result = teacher, result
        self.timeout = policy.timeout or LOCAL_TIMEOUT
        self.title = f"the teacher {teacher.name!r}"
        self.scheduler = RequestScheduler(teacher, policy, cache, console) if is_asynchronous(teacher) else None

    def answers(self, requests: dict[str, Request]) -> Generator[tuple[str, Answer]]:
        """Yield each key and its answer, when it arrives."""
        if not requests:
            return
        missing = set(requests)
        by_key = [replace(request, id=key) for key, request in requests.items()]
        try:
            for request, answer in self.scheduler.answers(by_key) if self.scheduler else self._local_answers(by_key):
                if request.id not in missing:
                    raise TeacherError(f"{self.title} answered a request twice, or one that was not sent")
                missing.remove(request.id)
                yield request.id, validate_answer(self.title, answer)
        except DistillkitError:
            raise
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            hint = "Raise teacher.timeout (seconds) to wait longer." if isinstance(error, TimeoutError) else ""
            raise TeacherError(f"{self.title} failed: {type(error).__name__}: {error}", hint) from error
        finally:
            self._update_spent()
        if missing:
            raise TeacherError(f"{self.title} left {len(missing)} of {len(requests)} requests without an answer")

    def progress(self, done: int, total: int) -> str:
        """The progress message: answers, and the cost so far."""
        self._update_spent()
        cost = f", ${self.result.spent['usd']:.4f}" if self.result.spent.get("usd") else ""
        return f"  {done}/{total} answers{cost}"

    def received(self) -> Iterator[tuple[str, Answer]]:
        """The answers that had arrived, and may have been paid for, when an interrupt came."""
        for request, answer in self.scheduler.received if self.scheduler else ():
            yield request.id, validate_answer(self.title, answer)

    def close(self) -> None:
        """Close the teacher's connections."""
        if self.scheduler:
            try:
                self.scheduler.close()
            except (Exception, SystemExit) as error:
                raise TeacherError(f"{self.title} failed to close: {type(error).__name__}: {error}") from error

    def _local_answers(self, requests: list[Request]) -> Iterator[tuple[Request, Any]]:
        """Answers of a synchronous teacher, one by one or as its `answers` yields them, each within the time-out."""
        has_own_batches = type(self.teacher).answers is not Teacher.answers
        one_by_one = ((request, self.teacher.answer(request)) for request in requests)
        answers = iter(self.teacher.answers(requests)) if has_own_batches else one_by_one
        while True:
            with time_limit(self.timeout):
                pair = next(answers, None)
            if pair is None:
                return
            yield pair

    def _update_spent(self) -> None:
        if self.scheduler:
            self.result.spent = self.scheduler.budget.spent


def validate_answer(title: str, answer: object) -> Answer:
    """The answer, or a TeacherError if it is not an `Answer` with text. Lone surrogates in the text become U+FFFD."""
    if not isinstance(answer, Answer) or not isinstance(answer.text, str):
        found = "an Answer without text" if isinstance(answer, Answer) else f"a {type(answer).__name__}"
        raise TeacherError(f"{title} returned {found} instead of an Answer")
    text = answer.text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return answer if text == answer.text else replace(answer, text=text)
