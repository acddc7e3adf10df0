"""Drives an asynchronous teacher: many calls at once, each tried again while that helps, none faster than allowed.

Knows nothing of providers or of what answers are for. A teacher says `TryAgain` or `SlowDown` and what it was told of
limits; everything else is done here, so that no teacher can forget it. When one call must stop the stage, those that
are out are waited for: they were paid for.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...core.console import Console
from ...core.errors import SlowDown, TeacherError, TryAgain
from ...core.files import digest
from ...core.records import DAY, REFUSED, Answer, Request
from ...plugins.interfaces import Teacher
from ..answers.disk import FORMAT, DiskAnswerStore, answer_key
from .counting import max_usage
from .policy import RequestPolicy
from .rate_limits import CallPermit, RateLimiter, UsageLog
from .retries import retry_request

HOPELESS = 5  # requests that failed for good, one after another, before the others are not even tried
PROBE_TOKENS = 16
AT_ONCE = 16  # answers that are handed over before the loop goes on
AWAITED, MADE_HERE = 120.0, 3600.0  # seconds that an answer may take, from elsewhere or from this machine


class EmptyAnswerError(TryAgain):
    """An answer without a word, or one that was held back; asked again, it may be better."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("the answer is empty" if answer.finish != "content_filter" else "the answer was held back")
        self.answer = answer


class RequestScheduler:
    """One sitting with one teacher; whoever begins it closes it."""

    def __init__(
        self, teacher: Teacher, policy: RequestPolicy, cache: DiskAnswerStore, console: Console | None = None
    ) -> None:
        self.teacher, self.policy, self.cache = teacher, policy, cache
        self.budget = policy.budget(teacher)
        self.limits = RateLimiter(
            self.budget,
            policy.concurrency,
            given=policy.rate_limits,
            patient=policy.wait,
            clock=policy.clock,
            rate_state=policy.rate_state,
            say=(console or Console()).print,
        )
        self.past = self._past()
        self.runner = asyncio.Runner()  # one loop for the whole sitting: connections and locks belong to it
        self.out: set[asyncio.Task[Any]] = set()  # tasks whose call is out, and may have been paid for
        self.ended: list[asyncio.Task[Answer]] = []
        self.came: deque[tuple[Request, Answer]] = deque()  # whatever was not handed over and kept is still in it
        self.bell = asyncio.Event()
        self.fault: BaseException | None = None
        self.failed: list[TeacherError] = []
        self.in_a_row = 0

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """Every answer as it comes; afterwards what went wrong is raised."""
        coming = self._answers(requests)
        try:
            while self.runner.run(_next(coming)):
                while self.came:
                    for _ in range(min(AT_ONCE, len(self.came))):
                        yield self.came[0]
                        self.came.popleft()
                    self.runner.run(asyncio.sleep(0))  # while answers are kept nobody listens to those that are out
        finally:
            self.runner.run(coming.aclose())

    def find_out(self, requests: Sequence[Request]) -> None:
        """Learn what the teacher must know of its endpoint, and ask nothing else."""
        self.runner.run(self._find_out(requests))

    def close(self) -> None:
        """Nothing stays open: neither connections nor the loop."""
        self.teacher.listener = None
        try:
            self.runner.run(self._closed())
        finally:
            self.runner.close()

    async def _closed(self) -> None:
        async with asyncio.timeout(self.policy.timeout or AWAITED):
            await self.teacher.close()

    async def _answers(self, requests: Sequence[Request]) -> AsyncGenerator[bool]:
        """Collect answers, and stop for them to be handed over, in the groups in which they come."""
        waiting = iter(requests)
        tasks: dict[asyncio.Task[Answer], Request] = {}
        try:
            await self._find_out(requests)
            while self._more(tasks, waiting):
                self.bell.clear()
                if not self.ended:  # asyncio.wait would look at every task for each one that ends
                    await self.bell.wait()
                pairs = [(tasks.pop(task), task) for task in self._taken() if task in tasks]
                self.came += [(request, task.result()) for request, task in pairs if self._succeeded(task)]
                yield True
                if self.fault is not None:
                    self._call_off(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            over = [(request, task) for task, request in tasks.items() if not (task.cancelled() or task.exception())]
            self.came += [(request, task.result()) for request, task in over]
        if self.fault is not None:
            raise self.fault
        if self.failed:
            raise self._gave_up(len(requests))

    def _more(self, tasks: dict[asyncio.Task[Answer], Request], waiting: Iterator[Request]) -> bool:
        """Start what may be started; whether anything is under way."""
        while self.fault is None and len(tasks) < max(1, int(self.limits.rate_state.width)):
            request = next(waiting, None)
            if request is None:
                break
            task = asyncio.ensure_future(self._insist(self.teacher.answer, request))
            task.add_done_callback(self._rung)
            tasks[task] = request
        return bool(tasks)

    def _rung(self, task: asyncio.Task[Answer]) -> None:
        self.ended.append(task)
        self.bell.set()

    def _taken(self) -> list[asyncio.Task[Answer]]:
        """The tasks that ended since the last look."""
        ended, self.ended = self.ended, []
        return ended

    def _succeeded(self, task: asyncio.Task[Answer]) -> bool:
        """Whether a task brought an answer. If not, it is one failure of many, or what stops everything."""
        if task.cancelled():
            self.fault = self.fault or asyncio.CancelledError("it cancelled its own call")
            return False
        error = task.exception()
        if error is None:
            self.in_a_row = 0
            return True
        if isinstance(error, TryAgain):
            self.failed.append(error)
            self.in_a_row += 1
            if self.in_a_row < HOPELESS:
                return False
        self.fault = self.fault or error
        return False

    def _call_off(self, tasks: dict[asyncio.Task[Answer], Request]) -> None:
        """Drop what only waits for its turn; what is out is waited for."""
        for task in [task for task in tasks if task not in self.out and not task.done()]:
            task.cancel()
            del tasks[task]

    def _gave_up(self, asked: int) -> TeacherError:
        last = self.failed[-1]
        count = f"{len(self.failed)} of {asked} requests"
        return TeacherError(f"{count} got no answer; the last: {last.message}", last.hint)

    # ------------------------------------------------------------------------------------------ one request

    async def _insist(self, call: Callable[[Request], Any], request: Request) -> Any:
        """Ask until there is an answer, or asking again is no use."""
        try:
            return await retry_request(
                self._once,
                call,
                request,
                attempts=self.policy.attempts,
                sleep=self.policy.clock.sleep,
                is_stopped=lambda: self.fault is not None,
            )
        except EmptyAnswerError as error:
            if self.fault is not None:  # it was not asked as often as it should have been
                raise
            return replace(error.answer, text="", tokens=(), finish=REFUSED)
        except TryAgain as error:
            tries = f"in {self.policy.attempts} attempts: "
            raise TryAgain(f"no answer {tries if self.fault is None else ''}{error.message}", error.hint) from error

    async def _once(self, call: Callable[[Request], Any], request: Request) -> Any:
        """One attempt: as many calls as the provider turns away unread, and one that it answers."""
        most = max_usage(request)
        while True:
            ticket = await self.limits.turn(most)
            try:
                answer = await self._out(call, request)
            except SlowDown as error:
                self.limits.slow(ticket, error.message, error.seconds, error.daily)
                continue
            except (ConnectionError, TimeoutError) as error:
                self.limits.failed(ticket)
                raise TryAgain(f"{type(error).__name__}: {error}") from error
            except BaseException as error:
                self._close_ticket(ticket, error)
                raise
            usage = getattr(answer, "usage", None)
            self.limits.fine(ticket, usage)
            if self.past:
                self.past.note(self.policy.clock.wall(), usage or most)
            if isinstance(answer, Answer) and is_empty(request, answer):
                raise EmptyAnswerError(answer)
            return answer

    def _close_ticket(self, ticket: CallPermit, error: BaseException) -> None:
        """What was turned away was not billed; what broke off may have been."""
        if isinstance(error, TryAgain) or not isinstance(error, Exception):
            self.limits.failed(ticket)
        else:
            self.limits.turned_away(ticket)

    async def _out(self, call: Callable[[Request], Any], request: Request) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self.out.add(task)
        seconds = self.policy.timeout or AWAITED
        try:
            async with asyncio.timeout(seconds) as patience:
                return await call(request)
        except TimeoutError as error:
            if not patience.expired():
                raise
            raise TryAgain(f"no answer within {seconds:g} s", "teacher.timeout says how long to wait.") from error
        except SystemExit as error:  # which would end the loop, and with it the answers that are out
            raise RuntimeError(f"it wanted to leave the program: SystemExit: {error}") from error
        finally:
            self.out.discard(task)

    # ------------------------------------------------------------------------------------------ before and after

    async def _find_out(self, requests: Sequence[Request]) -> None:
        """Learn what the teacher must know of its endpoint, once in the life of the cache; then let it refuse."""
        self.teacher.listener = self.limits.hear
        if requests:
            self.teacher.check(requests)
            for need, request in self.teacher.needs(requests).items():
                await self._learn(need, request)
            self.teacher.check(requests)

    async def _learn(self, need: str, like: Request) -> None:
        what = probe_key_fields(self.teacher, need)
        known = self.cache.get(answer_key(what))
        if known is None or known.raw is None:
            small = replace(like, max_tokens=min(like.max_tokens, PROBE_TOKENS))

            async def probe(request: Request) -> Any:
                return await self.teacher.probe(need, request)

            known = Answer("", raw={"found": await self._insist(probe, small)})
            self.cache.put(answer_key(what), what, known)
        self.teacher.found[need] = (known.raw or {})["found"]

    def _past(self) -> UsageLog | None:
        """The record of the last day, if a limit of the recipe's needs one."""
        if not any(span >= DAY for _, span in self.policy.rate_limits):
            return None
        past = UsageLog(self.cache.folder / "usage.jsonl", digest([self.teacher.name, self.teacher.identity()])[:16])
        past.load(self.limits)
        return past


def is_empty(request: Request, answer: Answer) -> bool:
    """Whether an answer says nothing that a student could learn. A text that was only to be read may be a space."""
    silent = isinstance(answer.text, str) and not answer.text.strip()
    return answer.finish == "content_filter" or (silent and request.max_tokens > 0)


def probe_key_fields(teacher: Teacher, need: str) -> dict[str, Any]:
    """What a probe is kept under in the cache."""
    return {"format": FORMAT, "provider": teacher.name, "identity": teacher.identity(), "probe": need}


def is_asynchronous(teacher: Teacher) -> bool:
    """Whether a teacher is awaited."""
    return inspect.iscoroutinefunction(teacher.answer)


async def _next(coming: AsyncIterator[bool]) -> bool:
    return await anext(coming, False)
