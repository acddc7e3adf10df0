"""Schedules the calls of an asynchronous teacher: many at once, within the rate limits, each retried while that helps.

A teacher only raises `TryAgain` or `SlowDown` and reports the limits that its provider names. Everything else happens
here, so that no teacher can forget it. When an error stops the stage, calls in flight are awaited, because they cost
money. Knows neither providers nor what answers are used for.
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

MAX_FAILURES_IN_A_ROW = 5  # requests that failed in every attempt, before the remaining ones are given up
PROBE_TOKENS = 16
HANDED_OVER_AT_ONCE = 16  # answers, before the event loop runs again
ASYNC_TIMEOUT, LOCAL_TIMEOUT = 120.0, 3600.0  # default seconds for one answer: asynchronous teachers, and local ones


class EmptyAnswerError(TryAgain):
    """An answer without text, or one that a content filter removed. Another attempt may give a better one."""

    def __init__(self, answer: Answer) -> None:
        filtered = answer.finish == "content_filter"
        super().__init__("the answer was removed by a content filter" if filtered else "the answer is empty")
        self.answer = answer


class RequestScheduler:
    """One session with one teacher, on its own event loop. Whoever creates it calls `close`."""

    def __init__(
        self, teacher: Teacher, policy: RequestPolicy, cache: DiskAnswerStore, console: Console | None = None
    ) -> None:
        self.teacher, self.policy, self.cache = teacher, policy, cache
        self.budget = policy.budget(teacher)
        self.limiter = RateLimiter(
            self.budget,
            policy.concurrency,
            recipe_limits=policy.rate_limits,
            wait=policy.wait,
            clock=policy.clock,
            rate_state=policy.rate_state,
            announce=(console or Console()).print,
        )
        self.usage_log = self._open_usage_log()
        self.runner = asyncio.Runner()  # one loop for the whole session: connections and locks belong to it
        self.in_flight: set[asyncio.Task[Any]] = set()  # tasks whose call was sent and may cost money
        self.ended: list[asyncio.Task[Answer]] = []
        self.received: deque[tuple[Request, Answer]] = deque()  # answers that the caller has not finished handling
        self.task_ended = asyncio.Event()
        self.error: BaseException | None = None  # that stops the session
        self.failures: list[TeacherError] = []
        self.failures_in_a_row = 0

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """Yield every answer when it arrives. Raises the errors afterwards."""
        groups = self._answers(requests)
        try:
            while self.runner.run(_next(groups)):
                while self.received:
                    for _ in range(min(HANDED_OVER_AT_ONCE, len(self.received))):
                        yield self.received[0]
                        self.received.popleft()
                    self.runner.run(asyncio.sleep(0))  # the loop is not running while the caller handles answers
        finally:
            self.runner.run(groups.aclose())

    def probe(self, requests: Sequence[Request]) -> None:
        """Learn what the teacher needs to know of its endpoint before these requests, without sending them."""
        self.runner.run(self._probe(requests))

    def close(self) -> None:
        """Close the teacher's connections and the event loop."""
        self.teacher.listener = None
        try:
            self.runner.run(self._close_teacher())
        finally:
            self.runner.close()

    async def _close_teacher(self) -> None:
        async with asyncio.timeout(self.policy.timeout or ASYNC_TIMEOUT):
            await self.teacher.close()

    async def _answers(self, requests: Sequence[Request]) -> AsyncGenerator[bool]:
        """Collect answers in `received`, and yield for each group of them, so that the caller can take it."""
        waiting = iter(requests)
        tasks: dict[asyncio.Task[Answer], Request] = {}
        try:
            await self._probe(requests)
            while self._start_calls(tasks, waiting):
                self.task_ended.clear()
                if not self.ended:  # asyncio.wait would look at every task for each one that ends
                    await self.task_ended.wait()
                pairs = [(tasks.pop(task), task) for task in self._take_ended() if task in tasks]
                self.received += [(request, task.result()) for request, task in pairs if self._has_answer(task)]
                yield True
                if self.error is not None:
                    self._cancel_waiting(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            late = [(request, task) for task, request in tasks.items() if not (task.cancelled() or task.exception())]
            self.received += [(request, task.result()) for request, task in late]
        if self.error is not None:
            raise self.error
        if self.failures:
            raise self._failures_error(len(requests))

    def _start_calls(self, tasks: dict[asyncio.Task[Answer], Request], waiting: Iterator[Request]) -> bool:
        """Start as many calls as the concurrency allows. Returns whether any task is running."""
        while self.error is None and len(tasks) < max(1, int(self.limiter.rate_state.concurrency)):
            request = next(waiting, None)
            if request is None:
                break
            task = asyncio.ensure_future(self._call_with_retries(self.teacher.answer, request))
            task.add_done_callback(self._on_task_end)
            tasks[task] = request
        return bool(tasks)

    def _on_task_end(self, task: asyncio.Task[Answer]) -> None:
        self.ended.append(task)
        self.task_ended.set()

    def _take_ended(self) -> list[asyncio.Task[Answer]]:
        """The tasks that ended since the last call."""
        ended, self.ended = self.ended, []
        return ended

    def _has_answer(self, task: asyncio.Task[Answer]) -> bool:
        """Whether a task returned an answer. If not, record its error as a failure, or as what stops the session."""
        if task.cancelled():
            self.error = self.error or asyncio.CancelledError("the plugin cancelled its own call")
            return False
        error = task.exception()
        if error is None:
            self.failures_in_a_row = 0
            return True
        if isinstance(error, TryAgain):
            self.failures.append(error)
            self.failures_in_a_row += 1
            if self.failures_in_a_row < MAX_FAILURES_IN_A_ROW:
                return False
        self.error = self.error or error
        return False

    def _cancel_waiting(self, tasks: dict[asyncio.Task[Answer], Request]) -> None:
        """Cancel the tasks that wait for a permit. Calls in flight continue."""
        for task in [task for task in tasks if task not in self.in_flight and not task.done()]:
            task.cancel()
            del tasks[task]

    def _failures_error(self, requests: int) -> TeacherError:
        last = self.failures[-1]
        count = f"{len(self.failures)} of {requests} requests"
        return TeacherError(f"{count} got no answer; the last: {last.message}", last.hint)

    # ------------------------------------------------------------------------------------------ one request

    async def _call_with_retries(self, call: Callable[[Request], Any], request: Request) -> Any:
        """Call until there is an answer or the attempts are used up. An answer that stays empty becomes refused."""
        try:
            return await retry_request(
                self._attempt,
                call,
                request,
                attempts=self.policy.attempts,
                sleep=self.policy.clock.sleep,
                is_stopped=lambda: self.error is not None,
            )
        except EmptyAnswerError as error:
            if self.error is not None:  # the session stopped before all attempts were made
                raise
            return replace(error.answer, text="", tokens=(), finish=REFUSED)
        except TryAgain as error:
            attempts = f"in {self.policy.attempts} attempts: "
            raise TryAgain(f"no answer {attempts if self.error is None else ''}{error.message}", error.hint) from error

    async def _attempt(self, call: Callable[[Request], Any], request: Request) -> Any:
        """One attempt: call until the provider processes the request. Rate-limited calls do not count."""
        bound = max_usage(request)
        while True:
            permit = await self.limiter.acquire(bound)
            try:
                answer = await self._call(call, request)
            except SlowDown as error:
                self.limiter.record_rate_limit(permit, error.message, error.seconds, error.daily)
                continue
            except (ConnectionError, TimeoutError) as error:
                self.limiter.record_failure(permit)
                raise TryAgain(f"{type(error).__name__}: {error}") from error
            except BaseException as error:
                self._record_error(permit, error)
                raise
            usage = getattr(answer, "usage", None)
            self.limiter.record_success(permit, usage)
            if self.usage_log:
                self.usage_log.append(self.policy.clock.wall(), usage or bound)
            if isinstance(answer, Answer) and is_empty(request, answer):
                raise EmptyAnswerError(answer)
            return answer

    def _record_error(self, permit: CallPermit, error: BaseException) -> None:
        """Settle a failed call. A rejected one was not billed; one that broke off may have been."""
        if isinstance(error, TryAgain) or not isinstance(error, Exception):
            self.limiter.record_failure(permit)
        else:
            self.limiter.record_rejection(permit)

    async def _call(self, call: Callable[[Request], Any], request: Request) -> Any:
        """Make one call, within the time-out."""
        task = asyncio.current_task()
        assert task is not None
        self.in_flight.add(task)
        seconds = self.policy.timeout or ASYNC_TIMEOUT
        try:
            async with asyncio.timeout(seconds) as timeout:
                return await call(request)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise TryAgain(
                f"no answer within {seconds:g} s", "Raise teacher.timeout (seconds) to wait longer."
            ) from error
        except SystemExit as error:  # it would end the loop, and lose the answers in flight
            raise RuntimeError(f"the plugin called exit(): SystemExit: {error}") from error
        finally:
            self.in_flight.discard(task)

    # ------------------------------------------------------------------------------------------ before the requests

    async def _probe(self, requests: Sequence[Request]) -> None:
        """Learn what the teacher needs to know of its endpoint, once per cache. Then it may refuse requests."""
        self.teacher.listener = self.limiter.update_allowance
        if requests:
            self.teacher.check(requests)
            for need, request in self.teacher.needs(requests).items():
                await self._probe_need(need, request)
            self.teacher.check(requests)

    async def _probe_need(self, need: str, example: Request) -> None:
        """Put one finding into `teacher.found`: from the cache, or else by a short call."""
        fields = probe_key_fields(self.teacher, need)
        finding = self.cache.get(answer_key(fields))
        if finding is None or finding.raw is None:
            small = replace(example, max_tokens=min(example.max_tokens, PROBE_TOKENS))

            async def probe(request: Request) -> Any:
                return await self.teacher.probe(need, request)

            finding = Answer("", raw={"found": await self._call_with_retries(probe, small)})
            self.cache.put(answer_key(fields), fields, finding)
        self.teacher.found[need] = (finding.raw or {})["found"]

    def _open_usage_log(self) -> UsageLog | None:
        """The log of the last day's calls, if the recipe has a limit per day."""
        if not any(span >= DAY for _, span in self.policy.rate_limits):
            return None
        teacher = digest([self.teacher.name, self.teacher.identity()])[:16]
        log = UsageLog(self.cache.folder / "usage.jsonl", teacher)
        log.load_into(self.limiter)
        return log


def is_empty(request: Request, answer: Answer) -> bool:
    """Whether an answer has nothing to learn from. A scored text (max_tokens = 0) may be white space."""
    is_blank = isinstance(answer.text, str) and not answer.text.strip()
    return answer.finish == "content_filter" or (is_blank and request.max_tokens > 0)


def probe_key_fields(teacher: Teacher, need: str) -> dict[str, Any]:
    """The values that the cache key of a finding is made of."""
    return {"format": FORMAT, "provider": teacher.name, "identity": teacher.identity(), "probe": need}


def is_asynchronous(teacher: Teacher) -> bool:
    """Whether the teacher's `answer` is a coroutine function."""
    return inspect.iscoroutinefunction(teacher.answer)


async def _next(groups: AsyncIterator[bool]) -> bool:
    return await anext(groups, False)
