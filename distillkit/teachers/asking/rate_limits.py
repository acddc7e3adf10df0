"""How fast, how many at once, and how much: requests and tokens a minute and a day, and a budget.

Allowances come from the recipe or from what a provider says of itself. Time is monotonic, and handed in. Knows
neither requests' texts nor providers: who asks says how many tokens a call may take, and hears when it may.
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

OF_THE_LIMIT = 0.99  # of what is allowed: clocks and networks differ by a little
SLACK = 0.005  # of a span: how far a late start may be made up for
MARGIN = 0.25  # seconds by which a start may reach the server later than the one before it did
GLANCE = 1.0  # seconds after which a waiting call looks again at what is allowed
PATIENCE = 900.0  # seconds without any answer, only with pleas to slow down
FIRST_WIDTH = 8


@dataclass(frozen=True)
class Clock:
    """Time, and how it passes; tests bring their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    wall: Callable[[], float] = time.time


class Reservation:
    """What one call takes of a window: reckoned when it starts, known when it has ended."""

    __slots__ = ("amount", "at", "counts")

    def __init__(self, at: float, amount: float) -> None:
        self.at, self.amount, self.counts = at, amount, True


class SlidingWindow:
    """So much in a span of seconds: no stretch of that length ever holds more, and starts are spread evenly.

    The recipe's limit, `given`, is for its own calls alone; of the provider's, `heard`, others with the same key use a
    part.
    """

    def __init__(self, given: float, span: float) -> None:
        self.given, self.heard, self.span = given, math.inf, span
        self.log: deque[Reservation] = deque()
        self.used = 0.0
        self.theirs, self.theirs_until = 0.0, 0.0  # what others take, by what the provider says
        self.next = float("-inf")

    @property
    def limit(self) -> float:
        """The lower of the two."""
        return min(self.given, self.heard)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until this much may start."""
        return self.held(amount, now)[0]

    def held(self, amount: float, now: float) -> tuple[float, float]:
        """Seconds until this much may start, and the limit for which it waits."""
        self._forget(now)
        amount = min(amount, self.limit)
        theirs = self.theirs if now < self.theirs_until else 0.0
        paced = max(0.0, self.next - now)
        alone = self._until_freed(self.used + amount - self.given, 0.0, now)
        shared = self._until_freed(self.used + theirs + amount - self.heard, theirs, now)
        return max((paced, self.limit), (alone, self.given), (shared, self.heard))

    def take(self, amount: float, now: float) -> Reservation:
        """Note a start."""
        entry = Reservation(now, amount)
        self.log.append(entry)
        self.used += amount
        if self.span < DAY:  # a day is not spread: what it holds may be asked as fast as minutes allow
            self.next = max(self.next, now - SLACK * self.span) + min(amount, self.limit) * self._each
        return entry

    @property
    def _each(self) -> float:
        """Seconds from one start to the next, for each unit that it takes."""
        return self.span / (self.limit * OF_THE_LIMIT)

    def settle(self, entry: Reservation, amount: float) -> None:
        """Put what a call really took in the place of what was reckoned."""
        if entry.counts:
            self.used += amount - entry.amount
            self.next += (min(amount, self.limit) - min(entry.amount, self.limit)) * self._each
        entry.amount = amount

    def hear(self, allowance: Allowance, now: float) -> None:
        """Believe the provider: its limit, and what it says is left of it."""
        self.heard = allowance.limit
        if allowance.remaining is None:
            return
        self._forget(now)
        self.theirs = max(0.0, allowance.limit - allowance.remaining - self.used)
        self.theirs_until = now + (self.span if allowance.reset is None else min(allowance.reset, self.span))

    def _until_freed(self, over: float, theirs: float, now: float) -> float:
        """Seconds until enough of what was taken is as old as the span; none where nothing is over."""
        if over <= 0:
            return 0.0
        for entry in self.log:
            over -= entry.amount
            if over <= 0:
                return max(0.0, entry.at + self.span + MARGIN - now)
        return max(0.0, self.theirs_until - now) if theirs else 0.0

    def _forget(self, now: float) -> None:
        while self.log and self.log[0].at + self.span + MARGIN <= now:
            gone = self.log.popleft()
            gone.counts = False
            self.used -= gone.amount


@dataclass
class Budget:
    """What may be spent: dollars, requests, tokens. What a call may cost at most is set aside before it starts."""

    max_usd: float | None = None
    max_requests: int | None = None
    max_tokens: int | None = None
    price: Price | None = None
    usd: float = 0.0
    requests: float = 0
    tokens: float = 0
    aside: int = 0  # calls that are out

    @property
    def spent(self) -> dict[str, float]:
        """What was spent so far, in all sittings."""
        return {"usd": round(self.usd, 9), "requests": self.requests, "tokens": self.tokens}

    def short_of(self, most: Usage) -> str | None:
        """The limit that a call would pass, in words; None when it fits."""
        asked = most.prompt_tokens + most.completion_tokens
        if self.max_requests is not None and self.requests + 1 > self.max_requests:
            return f"teacher.max_requests = {self.max_requests}"
        if self.max_tokens is not None and self.tokens + asked > self.max_tokens:
            return f"teacher.max_tokens_total = {self.max_tokens}"
        if self.max_usd is not None and self.usd + self._cost(most) > self.max_usd:
            return f"teacher.max_usd = {self.max_usd:g}"
        return None

    def set_aside(self, most: Usage) -> None:
        """Count a call at the most that it may cost."""
        self.aside += 1
        self.requests += 1
        self._add(most, 1)

    def settle(self, most: Usage, really: Usage | None) -> None:
        """The call is over. Without a bill it stays counted at the most: it may have been billed all the same."""
        self.aside -= 1
        if really is not None:
            self._add(most, -1)
            self._add(really, 1)

    def give_back(self, most: Usage) -> None:
        """The call was turned away, and cost nothing."""
        self.settle(most, Usage(0, 0))
        self.requests -= 1

    def _add(self, usage: Usage, sign: int) -> None:
        self.tokens += sign * (usage.prompt_tokens + usage.completion_tokens)
        self.usd += sign * self._cost(usage)

    def _cost(self, usage: Usage) -> float:
        return self.price.of(usage) if self.price else 0.0


@dataclass
class CallPermit:
    """Leave to make one call, and what was reckoned for it."""

    most: Usage
    began: float
    entries: list[tuple[SlidingWindow, str, Reservation]] = field(default_factory=list)


@dataclass
class RateState:
    """How fast a teacher may be asked, as far as it is known; whoever asks it again and again hands it on."""

    windows: dict[tuple[str, float], SlidingWindow] = field(default_factory=dict)
    width: float = float(FIRST_WIDTH)  # how many calls may be out at once
    threshold: float = float("inf")  # up to which that grows quickly
    paused_until: float = float("-inf")
    slowed_at: float = float("-inf")

    def begin(self, given: Mapping[tuple[str, float], float], concurrency: int) -> None:
        """A sitting by the limits of a recipe. A day outlasts processes: it is not kept here but in a `Past`."""
        minutes = {key: window for key, window in self.windows.items() if window.span < DAY}
        self.windows = {key: SlidingWindow(limit, key[1]) for key, limit in given.items()} | minutes
        self.width, self.threshold = (min(float(concurrency), most) for most in (self.width, self.threshold))


class RateLimiter:
    """Gives leave to call, one at a time, and learns from what comes back how many calls may be out at once."""

    def __init__(
        self,
        budget: Budget,
        concurrency: int,
        *,
        given: dict[tuple[str, float], float] | None = None,
        patient: bool = False,
        clock: Clock | None = None,
        rate_state: RateState | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.budget, self.patient, self.clock, self.say = budget, patient, clock or Clock(), say
        self.most, self.rate_state = concurrency, rate_state or RateState()
        self.rate_state.begin(given or {}, concurrency)
        self.fine_at = self.clock.now()
        self.pleas = 0
        self.said = ""
        self._door, self._settled = asyncio.Lock(), asyncio.Event()

    # ------------------------------------------------------------------------------------------ leave to call

    async def turn(self, most: Usage) -> CallPermit:
        """Wait until a call may start. Raises LimitReached when that is too long to wait for, or never."""
        async with self._door:
            await self._affordable(most)
            while (wait := self._wait(most)) > 0:
                await self.clock.sleep(min(wait, GLANCE))
            now = self.clock.now()
            self.budget.set_aside(most)
            entries = [(w, key[0], w.take(_amount(key[0], most), now)) for key, w in self.rate_state.windows.items()]
            return CallPermit(most, now, entries)

    async def _affordable(self, most: Usage) -> None:
        """Wait for calls that are out to be billed, if only their highest price stands in the way."""
        while (limit := self.budget.short_of(most)) is not None:
            if not self.budget.aside:
                raise LimitReached(f"the budget is used up: {limit}", "Raise it to go on.")
            self._settled.clear()
            await self._settled.wait()

    def _wait(self, most: Usage) -> float:
        now = self.clock.now()
        wait = max(0.0, self.rate_state.paused_until - now)
        for (of, span), window in self.rate_state.windows.items():
            own, limit = window.held(_amount(of, most), now)
            if own > MAX_WAIT or (own > 0 and span >= DAY):
                self._too_long(own, f"{limit:,.0f} {of} {'a day' if span >= DAY else 'a minute'} are allowed")
            wait = max(wait, own)
        return wait

    def _too_long(self, seconds: float, why: str) -> None:
        """Stop, or say for how long nothing will happen."""
        at = datetime.fromtimestamp(self.clock.wall()).astimezone() + timedelta(seconds=seconds)
        until = f"{at:%Y-%m-%d %H:%M}"
        if not self.patient:
            raise LimitReached(f"a limit of the teacher is reached: {why}", f"Go on after {until}, or with --wait now.")
        if until != self.said:  # once, however often one looks
            self.said = until
            self.say(f"  waiting until {until}: {why}")

    # ------------------------------------------------------------------------------------------ what came back

    def fine(self, ticket: CallPermit, usage: Usage | None) -> None:
        """A call was answered: let one more be out, quickly at first, then carefully."""
        rate_state = self.rate_state
        rate_state.width = min(
            float(self.most),
            rate_state.width + (1.0 if rate_state.width < rate_state.threshold else 1.0 / rate_state.width),
        )
        self.fine_at, self.pleas = self.clock.now(), 0
        self._settle(ticket, usage)
        self.budget.settle(ticket.most, usage)
        self._settled.set()

    def failed(self, ticket: CallPermit) -> None:
        """A call went wrong; whether it was billed is not known, so it counts as if it was."""
        self.rate_state.width = max(1.0, self.rate_state.width - 0.5)
        self.budget.settle(ticket.most, None)
        self._settled.set()

    def turned_away(self, ticket: CallPermit) -> None:
        """A call was refused unread."""
        self.budget.give_back(ticket.most)
        self._settle(ticket, Usage(0, 0))
        self._settled.set()

    def slow(self, ticket: CallPermit, words: str, seconds: float | None, daily: bool) -> None:
        """The provider asks for patience: everybody waits, and half as many calls are out afterwards."""
        now = self.clock.now()
        self.turned_away(ticket)
        if ticket.began >= self.rate_state.slowed_at:  # calls that were out together are one lesson, not sixty-four
            self.rate_state.threshold = max(1.0, self.rate_state.width / 2)
            self.rate_state.width = self.rate_state.threshold
            self.pleas += 1
        self.rate_state.slowed_at = now
        wait = rate_limit_backoff(self.pleas) if seconds is None else seconds
        self.rate_state.paused_until = max(self.rate_state.paused_until, now + wait)
        if wait > MAX_WAIT or daily:
            self._too_long(wait, words)
        elif now - self.fine_at > PATIENCE:
            self._too_long(wait, f"nothing else came for {PATIENCE / 60:.0f} minutes: {words}")

    def hear(self, allowance: Allowance) -> None:
        """What the provider says it allows, from now on."""
        if allowance.limit <= 0:
            return
        key = (allowance.of, allowance.span)
        window = self.rate_state.windows.setdefault(key, SlidingWindow(math.inf, allowance.span))
        window.hear(allowance, self.clock.now())

    def _settle(self, ticket: CallPermit, usage: Usage | None) -> None:
        if usage is None:
            return
        for window, of, entry in ticket.entries:
            if of == "tokens":
                window.settle(entry, usage.prompt_tokens + usage.completion_tokens)


def _amount(of: str, most: Usage) -> float:
    """What a call is reckoned to take of a window, until it is known: a token of a prompt has some three bytes."""
    return 1.0 if of == "requests" else most.prompt_tokens / 3 + most.completion_tokens


# ---------------------------------------------------------------------------------------------------- by the day


@dataclass(frozen=True)
class UsageLog:
    """What was asked of one teacher in the last day, by any process: a file with one line a call."""

    path: Path
    who: str

    def load(self, limits: RateLimiter) -> None:
        """Fill the windows of a day with what was asked before."""
        now, wall = limits.clock.now(), limits.clock.wall()
        rows = [row for row in self._rows() if row.get("who") == self.who]
        ages = [max(0.0, wall - row["time"]) for row in rows]  # a clock that was set back makes nothing younger
        for row, age in zip(rows, ages, strict=True):
            for (of, span), window in limits.rate_state.windows.items():
                if age < DAY <= span:
                    window.take(float(row[of]), now - age)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The lines, but for what a full disk cut short: that is no reason to ask nobody any more."""
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        for line in lines:
            with suppress(ValueError):
                if isinstance(row := json.loads(line), dict):
                    yield row

    def note(self, wall: float, usage: Usage) -> None:
        """Add a call, in one write that begins a line, so that processes do not mix up theirs."""
        tokens = usage.prompt_tokens + usage.completion_tokens
        line = json.dumps({"who": self.who, "time": round(wall, 3), "requests": 1, "tokens": tokens})
        with self.path.open("ab", buffering=0) as stream:
            stream.write(f"\n{line}\n".encode())
