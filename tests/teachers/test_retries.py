"""Failed calls: which are retried, which stop the stage, and that no answer is lost or asked twice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import cache as once

import pytest

from distillkit.core.errors import TeacherError, TryAgain
from distillkit.core.records import MINUTE, REFUSED, Allowance, Answer, Request, Usage
from distillkit.plugins.interfaces import Teacher
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking.label import count_known, label
from support.chat_provider import PROBE, Act, Provider, error, serving
from support.paths import ROOT
from support.provider_faults import FAULTS, FAULTY, KEY, PAGE, FaultResult, fast, page, requests, run_fault, teacher


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving() as served:
        yield served


# ------------------------------------------------------------------------------------------------------ faults


@once
def row(index: int) -> FaultResult:
    os.environ["DISTILLKIT_API_KEY"] = KEY
    try:
        return run_fault(FAULTS[index])
    finally:
        del os.environ["DISTILLKIT_API_KEY"]


@pytest.mark.parametrize("index", range(len(FAULTS)), ids=lambda index: FAULTS[index].name)
def test_nothing_is_lost_asked_twice_or_wrong_whatever_the_provider_does(index: int) -> None:
    fault, came = FAULTS[index], row(index)
    assert came.outcome == fault.expected, came.message
    assert (came.lost, came.twice, came.wrong) == (0, 0, 0)
    stops = fault.expected.startswith("exit")
    assert came.calls == (fault.calls or len(fault.responses) + (0 if stops else 1))
    assert fault.error_text in came.message
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
