"""Rate limits: windows, limits learned from headers, daily limits, and limits that others use up."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

import pytest
from distillkit_plugins.groq import Groq
from distillkit_plugins.openai import OpenAI

from distillkit.core.errors import LimitReached
from distillkit.core.records import DAY, MINUTE, Allowance, Usage
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking.label import label
from distillkit.teachers.asking.policy import RequestPolicy
from distillkit.teachers.asking.rate_limits import Budget, Clock, RateLimiter, SlidingWindow
from distillkit.teachers.client import replies
from support.chat_provider import Act, Call, PerMinute, Provider, error, serving
from support.provider_faults import fast, requests, teacher


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving() as served:
        yield served


def test_a_window_spreads_and_is_never_overfull() -> None:
    window, now, starts = SlidingWindow(600, 60.0), 0.0, []
    for _ in range(2000):
        now += window.wait(1, now) + random.Random(len(starts)).random() * 0.02
        window.reserve(1, now)
        starts.append(now)
    rate = (len(starts) - 1) / (starts[-1] - starts[0]) * 60
    assert 0.95 * 600 <= rate <= 600
    assert max(sum(start <= at < start + 60 for at in starts) for start in starts) <= 600


def test_a_burst_before_the_limit_was_known_is_counted() -> None:
    window = SlidingWindow(10, 60.0)
    for _ in range(10):
        window.reserve(1, 0.0)
    assert window.wait(1, 50.0) >= 10.0


def test_what_others_use_is_believed() -> None:
    window = SlidingWindow(100, 60.0)
    window.update(Allowance("requests", 60.0, 100, remaining=0, reset=12.0), 0.0)
    assert 11.9 <= window.wait(1, 0.0) <= 12.1
    assert window.wait(1, 12.5) == 0


def shared(given: float, span: float, *heard: Allowance) -> RateLimiter:
    """After one call under a recipe's limit of requests, and what the provider then said."""
    at = [0.0]

    async def sleep(seconds: float) -> None:
        at[0] += seconds

    limits = RateLimiter(Budget(), 8, recipe_limits={("requests", span): given}, clock=Clock(lambda: at[0], sleep))
    limits.record_success(asyncio.run(limits.acquire(Usage(1, 1))), Usage(1, 1))
    for allowance in heard:
        limits.update_allowance(allowance)
    at[0] = 3.0
    return limits


def test_what_others_use_of_the_providers_limit_is_not_charged_to_the_recipes() -> None:
    limits = shared(30, MINUTE, Allowance("requests", MINUTE, 500, remaining=399, reset=12.0))
    assert asyncio.run(limits.acquire(Usage(1, 1))).started_at == 3.0
    limits = shared(1000, DAY, Allowance("requests", DAY, 14_400, remaining=9_399, reset=179.0))
    assert asyncio.run(limits.acquire(Usage(1, 1))).started_at == 3.0


def test_a_limit_of_the_providers_that_others_use_up_is_the_one_that_is_named() -> None:
    limits = shared(1000, DAY, Allowance("requests", DAY, 14_400, remaining=0, reset=179.0))
    with pytest.raises(LimitReached, match="14,400 requests a day are allowed"):
        asyncio.run(limits.acquire(Usage(1, 1)))


def test_what_was_asked_before_the_provider_said_anything_is_not_taken_for_that_of_others() -> None:
    window = SlidingWindow(1000, DAY)
    window.reserve(990, -DAY + 3600)
    window.update(Allowance("requests", DAY, 1000, remaining=10, reset=DAY), 0.0)
    window.reserve(10, 0.0)
    assert 3600 <= window.wait(1, 0.0) <= 3601


def test_tokens_are_settled_when_they_are_known() -> None:
    window = SlidingWindow(1000, 60.0)
    entry = window.reserve(900, 0.0)
    assert window.wait(100, 0.0) > 50
    window.settle(entry, 100)
    assert window.wait(100, 0.0) < 7


@pytest.mark.slow
def test_the_rate_at_a_learnt_limit_is_just_below_it(cache: DiskAnswerStore) -> None:
    """600 a minute, where a minute takes a quarter of its time."""

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / 4)

    with serving(0.005) as provider:
        provider.rule = limited = PerMinute(600, minute=15.0)
        clock = Clock(now=lambda: time.monotonic() * 4, sleep=sleep)
        label(teacher(provider.url), requests(1500), cache, policy=RequestPolicy(concurrency=32, clock=clock))
        at = [call.at for call in provider.calls if call.status == 200]
    assert limited.refused <= 1
    assert 0.95 <= (len(at) - 1) / (at[-1] - at[0]) * 15 / 600 <= 1.005


def test_limits_of_a_day_stop_the_stage_and_wait_sleeps_instead(provider: Provider, cache: DiskAnswerStore) -> None:
    policy = fast(requests_per_day=5)
    with pytest.raises(LimitReached, match="5 requests a day") as stopped:
        label(teacher(provider.url), requests(12), cache, policy=policy)
    assert stopped.value.exit_code == 3
    assert "Continue after 20" in stopped.value.hint
    assert "of 12 answers are kept" in stopped.value.hint
    asked = len(provider.calls)
    assert asked == 5
    with pytest.raises(LimitReached):  # another process knows what this one asked
        label(teacher(provider.url), requests(12), cache, policy=policy)
    assert len(provider.calls) == asked


def test_a_daily_limit_is_slept_through_when_told_to(provider: Provider, cache: DiskAnswerStore) -> None:
    provider.on("prompt 2", error(429, "requests per day (RPD)", retry_after="50"))
    done = label(teacher(provider.url), requests(), cache, policy=fast(wait=True))
    assert len(done.answers) == 6


def test_groqs_requests_are_by_the_day_and_openais_by_the_minute() -> None:
    headers = {
        "x-ratelimit-limit-requests": "14400",
        "x-ratelimit-remaining-requests": "14370",
        "x-ratelimit-reset-requests": "2m59.56s",
        "x-ratelimit-limit-tokens": "18000",
    }
    day, minute = replies.parse_allowances(headers, Groq.spans)
    assert (day.span, day.limit, day.remaining, day.reset) == (86400.0, 14400.0, 14370.0, pytest.approx(179.56))
    assert (minute.span, minute.remaining) == (60.0, None)
    assert {allowance.span for allowance in replies.parse_allowances(headers, OpenAI.spans)} == {60.0}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20", 20), ("0.5", 0.5), ("2m59.56s", 179.56), ("250ms", 0.25), ("1h2m", 3720), ("1d", 86400), ("soon", None)],
)
def test_durations_as_providers_write_them(text: str, seconds: float | None) -> None:
    assert replies.parse_duration(text) == (None if seconds is None else pytest.approx(seconds))


def test_fewer_calls_are_out_after_a_plea(provider: Provider, cache: DiskAnswerStore) -> None:
    """Sixteen at once are too many for this server; in the end it is asked no more than it bears."""

    def bears(call: Call) -> Act | None:
        recent = sum(other.at > call.at - 0.05 for other in provider.calls)
        return error(429, "too many at once", retry_after="0.5") if recent > 20 else Act(delay=0.05)

    provider.rule = bears
    done = label(teacher(provider.url), requests(200), cache, policy=fast(concurrency=64))
    assert len(done.answers) == 200
    assert sum(call.status == 429 for call in provider.calls) < 100
