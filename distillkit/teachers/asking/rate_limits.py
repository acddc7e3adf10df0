"""Rate limits, concurrency and budget: requests and tokens per minute and per day, calls in flight, money.

Limits come from the recipe and from the provider's responses. Concurrency is adapted as in TCP: slow start, additive
increase, halved after a rate-limit response. `Clock` is injected. Knows neither the texts of requests nor providers:
the caller says how many tokens a call may use, and waits in `RateLimiter.acquire`.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ...core.errors import LimitReached
from ...core.records import DAY, Allowance, Price, Usage
from .retries import MAX_WAIT, rate_limit_backoff

LIMIT_FRACTION = 0.99  # of a limit that is used: clocks and networks differ a little
CATCH_UP = 0.005  # of a span: by how much later starts may move closer together after a late one
MARGIN = 0.25  # seconds: a start may reach the server this much later than the one before it did
POLL_SECONDS = 1.0  # after which a waiting call checks the limits again
MAX_SECONDS_WITHOUT_ANSWER = 900.0  # with nothing but rate-limit responses
INITIAL_CONCURRENCY = 8


@dataclass(frozen=True)
class Clock:
    """Monotonic time, sleep and wall-clock time. Tests replace it."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    wall: Callable[[], float] = time.time


class Reservation:
    """The amount of one call in a window: estimated when the call starts, corrected when it has ended."""

    __slots__ = ("amount", "at", "is_current")

    def __init__(self, at: float, amount: float) -> None:
        self.at, self.amount, self.is_current = at, amount, True


class SlidingWindow:
    """A limit per span of seconds. No interval of that length holds more, and starts are spread evenly.

    `recipe_limit` applies to our own calls alone. `provider_limit` is shared with others who use the same key.
    """

    def __init__(self, recipe_limit: float, span: float) -> None:
        self.recipe_limit, self.provider_limit, self.span = recipe_limit, math.inf, span
        self.reservations: deque[Reservation] = deque()
        self.used = 0.0
        self.used_by_others, self.others_until = 0.0, 0.0  # according to the provider
        self.next_start = float("-inf")

    @property
    def limit(self) -> float:
        """The lower of the two limits."""
        return min(self.recipe_limit, self.provider_limit)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until a call of this amount may start."""
        return self.wait_and_limit(amount, now)[0]

    def wait_and_limit(self, amount: float, now: float) -> tuple[float, float]:
        """Seconds until a call of this amount may start, and the limit that causes the wait."""
        self._expire(now)
        amount = min(amount, self.limit)
        used_by_others = self.used_by_others if now < self.others_until else 0.0
        spread = max(0.0, self.next_start - now)
        own = self._until_freed(self.used + amount - self.recipe_limit, 0.0, now)
        shared = self._until_freed(self.used + used_by_others + amount - self.provider_limit, used_by_others, now)
        return max((spread, self.limit), (own, self.recipe_limit), (shared, self.provider_limit))

    def reserve(self, amount: float, now: float) -> Reservation:
        """Record the start of a call."""
        reservation = Reservation(now, amount)
        self.reservations.append(reservation)
        self.used += amount
        if self.span < DAY:  # calls are not spread over a day: they may start as fast as the minute's limit allows
            earliest = max(self.next_start, now - CATCH_UP * self.span)
            self.next_start = earliest + min(amount, self.limit) * self._seconds_per_unit
        return reservation

    @property
    def _seconds_per_unit(self) -> float:
        """Seconds between two starts, for each unit of the amount."""
        return self.span / (self.limit * LIMIT_FRACTION)

    def settle(self, reservation: Reservation, amount: float) -> None:
        """Replace the estimated amount of a call by the real one."""
        if reservation.is_current:
            self.used += amount - reservation.amount
            self.next_start += (min(amount, self.limit) - min(reservation.amount, self.limit)) * self._seconds_per_unit
        reservation.amount = amount

    def update(self, allowance: Allowance, now: float) -> None:
        """Take over the provider's limit, and what it says is left of it."""
        self.provider_limit = allowance.limit
        if allowance.remaining is None:
            return
        self._expire(now)
        self.used_by_others = max(0.0, allowance.limit - allowance.remaining - self.used)
        self.others_until = now + (self.span if allowance.reset is None else min(allowance.reset, self.span))

    def _until_freed(self, excess: float, used_by_others: float, now: float) -> float:
        """Seconds until reservations of at least `excess` have left the window; 0 if there is no excess."""
        if excess <= 0:
            return 0.0
        for reservation in self.reservations:
            excess -= reservation.amount
            if excess <= 0:
                return max(0.0, reservation.at + self.span + MARGIN - now)
        return max(0.0, self.others_until - now) if used_by_others else 0.0

    def _expire(self, now: float) -> None:
        """Remove the reservations that have left the window."""
        while self.reservations and self.reservations[0].at + self.span + MARGIN <= now:
            expired = self.reservations.popleft()
            expired.is_current = False
            self.used -= expired.amount


@dataclass
class Budget:
    """Limits on dollars, requests and tokens. The highest possible cost of a call is reserved before it starts."""

    max_usd: float | None = None
    max_requests: int | None = None
    max_tokens: int | None = None
    price: Price | None = None
    usd: float = 0.0
    requests: float = 0
    tokens: float = 0
    in_flight: int = 0  # calls that have not ended

    @property
    def spent(self) -> dict[str, float]:
        """What was spent so far, earlier sessions included."""
        return {"usd": round(self.usd, 9), "requests": self.requests, "tokens": self.tokens}

    def exceeded_limit(self, bound: Usage) -> str | None:
        """The limit that a call with at most this usage would exceed, as `key = value`; None if it fits."""
        tokens = bound.prompt_tokens + bound.completion_tokens
        if self.max_requests is not None and self.requests + 1 > self.max_requests:
            return f"teacher.max_requests = {self.max_requests}"
        if self.max_tokens is not None and self.tokens + tokens > self.max_tokens:
            return f"teacher.max_tokens_total = {self.max_tokens}"
        if self.max_usd is not None and self.usd + self._cost(bound) > self.max_usd:
            return f"teacher.max_usd = {self.max_usd:g}"
        return None

    def reserve(self, bound: Usage) -> None:
        """Count a call that starts at its highest possible usage."""
        self.in_flight += 1
        self.requests += 1
        self._add(bound, 1)

    def settle(self, bound: Usage, usage: Usage | None) -> None:
        """Count a call that ended. Without a known usage it stays counted at the bound: it may have been billed."""
        self.in_flight -= 1
        if usage is not None:
            self._add(bound, -1)
            self._add(usage, 1)

    def release(self, bound: Usage) -> None:
        """Uncount a call that was rejected and cost nothing."""
        self.settle(bound, Usage(0, 0))
        self.requests -= 1

    def _add(self, usage: Usage, sign: int) -> None:
        self.tokens += sign * (usage.prompt_tokens + usage.completion_tokens)
        self.usd += sign * self._cost(usage)

    def _cost(self, usage: Usage) -> float:
        return self.price.of(usage) if self.price else 0.0


@dataclass
class CallPermit:
    """Permission to make one call, and what was reserved for it."""

    bound: Usage
    started_at: float
    reservations: list[tuple[SlidingWindow, str, Reservation]] = field(default_factory=list)


@dataclass
class RateState:
    """What is known of how fast a teacher may be called. A process with several sessions hands it on."""

    windows: dict[tuple[str, float], SlidingWindow] = field(default_factory=dict)
    concurrency: float = float(INITIAL_CONCURRENCY)  # how many calls may be in flight
    slow_start_threshold: float = float("inf")  # up to which the concurrency grows by 1 with each answer
    paused_until: float = float("-inf")
    slowed_at: float = float("-inf")  # time of the last rate-limit response

    def start_session(self, recipe_limits: Mapping[tuple[str, float], float], max_concurrency: int) -> None:
        """Apply a recipe's limits. Windows of a day are not kept here but in a `UsageLog`: they outlast processes."""
        minutes = {key: window for key, window in self.windows.items() if window.span < DAY}
        self.windows = {key: SlidingWindow(limit, key[1]) for key, limit in recipe_limits.items()} | minutes
        self.concurrency = min(float(max_concurrency), self.concurrency)
        self.slow_start_threshold = min(float(max_concurrency), self.slow_start_threshold)


class RateLimiter:
    """Permits calls one at a time, and adapts the concurrency to the responses."""

    def __init__(
        self,
        budget: Budget,
        max_concurrency: int,
        *,
        recipe_limits: dict[tuple[str, float], float] | None = None,
        wait: bool = False,
        clock: Clock | None = None,
        rate_state: RateState | None = None,
        announce: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`wait`: sleep through long waits, which are given to `announce`, instead of raising LimitReached."""
        self.budget, self.wait, self.clock, self.announce = budget, wait, clock or Clock(), announce
        self.max_concurrency, self.rate_state = max_concurrency, rate_state or RateState()
        self.rate_state.start_session(recipe_limits or {}, max_concurrency)
        self.answered_at = self.clock.now()
        self.rejections = 0  # rate-limit responses since the last answer
        self.announced = ""
        self._lock, self._settled = asyncio.Lock(), asyncio.Event()

    # ------------------------------------------------------------------------------------------ permits

    async def acquire(self, bound: Usage) -> CallPermit:
        """Wait until a call with at most this usage may start. Raises LimitReached if the wait is too long."""
        async with self._lock:
            await self._wait_for_budget(bound)
            while (wait := self._seconds_to_wait(bound)) > 0:
                await self.clock.sleep(min(wait, POLL_SECONDS))
            now = self.clock.now()
            self.budget.reserve(bound)
            windows = self.rate_state.windows.items()
            reservations = [(w, unit, w.reserve(_estimate(unit, bound), now)) for (unit, _), w in windows]
            return CallPermit(bound, now, reservations)

    async def _wait_for_budget(self, bound: Usage) -> None:
        """Wait for calls in flight to be billed, if only their reserved highest cost exceeds the budget."""
        while (limit := self.budget.exceeded_limit(bound)) is not None:
            if not self.budget.in_flight:
                raise LimitReached(f"the budget is used up: {limit}", "Raise it to continue.")
            self._settled.clear()
            await self._settled.wait()

    def _seconds_to_wait(self, bound: Usage) -> float:
        now = self.clock.now()
        wait = max(0.0, self.rate_state.paused_until - now)
        for (unit, span), window in self.rate_state.windows.items():
            window_wait, limit = window.wait_and_limit(_estimate(unit, bound), now)
            if window_wait > MAX_WAIT or (window_wait > 0 and span >= DAY):
                reason = f"{limit:,.0f} {unit} a {'day' if span >= DAY else 'minute'} are allowed"
                self._stop_or_announce(window_wait, reason)
            wait = max(wait, window_wait)
        return wait

    def _stop_or_announce(self, seconds: float, reason: str) -> None:
        """Raise LimitReached, or announce how long nothing will happen."""
        end = datetime.fromtimestamp(self.clock.wall()).astimezone() + timedelta(seconds=seconds)
        until = f"{end:%Y-%m-%d %H:%M}"
        if not self.wait:
            raise LimitReached(
                f"a limit of the teacher is reached: {reason}", f"Continue after {until}, or wait for it with --wait."
            )
        if until != self.announced:  # once, however often it is checked
            self.announced = until
            self.announce(f"  waiting until {until}: {reason}")

    # ------------------------------------------------------------------------------------------ outcomes of calls

    def record_success(self, permit: CallPermit, usage: Usage | None) -> None:
        """A call was answered: raise the concurrency, by 1 in slow start, then by 1 for each round of answers."""
        state = self.rate_state
        step = 1.0 if state.concurrency < state.slow_start_threshold else 1.0 / state.concurrency
        state.concurrency = min(float(self.max_concurrency), state.concurrency + step)
        self.answered_at, self.rejections = self.clock.now(), 0
        self._settle_windows(permit, usage)
        self.budget.settle(permit.bound, usage)
        self._settled.set()

    def record_failure(self, permit: CallPermit) -> None:
        """A call failed. It may have been billed, so it stays counted."""
        self.rate_state.concurrency = max(1.0, self.rate_state.concurrency - 0.5)
        self.budget.settle(permit.bound, None)
        self._settled.set()

    def record_rejection(self, permit: CallPermit) -> None:
        """A call was rejected unprocessed, so it cost nothing."""
        self.budget.release(permit.bound)
        self._settle_windows(permit, Usage(0, 0))
        self._settled.set()

    def record_rate_limit(self, permit: CallPermit, message: str, seconds: float | None, daily: bool) -> None:
        """The provider asked to slow down: pause all calls, and halve the concurrency."""
        now, state = self.clock.now(), self.rate_state
        self.record_rejection(permit)
        if permit.started_at >= state.slowed_at:  # calls that were in flight together count once
            state.slow_start_threshold = max(1.0, state.concurrency / 2)
            state.concurrency = state.slow_start_threshold
            self.rejections += 1
        state.slowed_at = now
        wait = rate_limit_backoff(self.rejections) if seconds is None else seconds
        state.paused_until = max(state.paused_until, now + wait)
        if wait > MAX_WAIT or daily:
            self._stop_or_announce(wait, message)
        elif now - self.answered_at > MAX_SECONDS_WITHOUT_ANSWER:
            minutes = MAX_SECONDS_WITHOUT_ANSWER / 60
            self._stop_or_announce(wait, f"no answer for {minutes:.0f} minutes, only: {message}")

    def update_allowance(self, allowance: Allowance) -> None:
        """Take over what the provider says it allows."""
        if allowance.limit <= 0:
            return
        key = (allowance.of, allowance.span)
        window = self.rate_state.windows.setdefault(key, SlidingWindow(math.inf, allowance.span))
        window.update(allowance, self.clock.now())

    def _settle_windows(self, permit: CallPermit, usage: Usage | None) -> None:
        if usage is None:
            return
        for window, unit, reservation in permit.reservations:
            if unit == "tokens":
                window.settle(reservation, usage.prompt_tokens + usage.completion_tokens)


def _estimate(unit: str, bound: Usage) -> float:
    """The estimated amount of a call in a window, until it is known: about three bytes of a prompt are a token."""
    return 1.0 if unit == "requests" else bound.prompt_tokens / 3 + bound.completion_tokens


# ---------------------------------------------------------------------------------------------------- daily usage


@dataclass(frozen=True)
class UsageLog:
    """The calls to one teacher in the last day, by all processes: a file of JSON lines, one for each call."""

    path: Path
    teacher: str  # digest of its name and identity

    def load_into(self, limiter: RateLimiter) -> None:
        """Fill the limiter's windows of a day with earlier calls."""
        now, wall = limiter.clock.now(), limiter.clock.wall()
        rows = [row for row in self._rows() if row.get("who") == self.teacher]
        ages = [max(0.0, wall - row["time"]) for row in rows]  # 0 at least: the clock may have been set back
        for row, age in zip(rows, ages, strict=True):
            for (unit, span), window in limiter.rate_state.windows.items():
                if age < DAY <= span:
                    window.reserve(float(row[unit]), now - age)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The valid lines. A line that a full disk cut short is skipped."""
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        for line in lines:
            with suppress(ValueError):
                if isinstance(row := json.loads(line), dict):
                    yield row

    def append(self, wall: float, usage: Usage) -> None:
        """Add a call, in one write that starts with a new line, so that lines of several processes stay apart."""
        tokens = usage.prompt_tokens + usage.completion_tokens
        line = json.dumps({"who": self.teacher, "time": round(wall, 3), "requests": 1, "tokens": tokens})
        with self.path.open("ab", buffering=0) as stream:
            stream.write(f"\n{line}\n".encode())
