"""Batches over real sockets, through the real SDKs: nothing is sent off twice, nothing that came back is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from distillkit_plugins.compatible import Compatible
from distillkit_plugins.groq import PATH, Groq
from distillkit_plugins.openai import OpenAI
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core import files
from distillkit.core.console import Console
from distillkit.core.errors import CorruptError, DistillkitError, LimitReached, TeacherError, UsageError
from distillkit.core.records import REFUSED, Answer, Price, Request, Token, Usage
from distillkit.plugins.interfaces import Teacher
from distillkit.teachers.answers import maintenance
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking import batch_api as batch
from distillkit.teachers.asking import batch_state
from distillkit.teachers.asking.batch_api import BatchLimits, label_in_batches
from distillkit.teachers.asking.counting import max_usage
from distillkit.teachers.asking.label import LabelResult, answer_keys, count_known, keyed_requests, label
from distillkit.teachers.asking.policy import RequestPolicy
from support.batch_provider import Provider, batcher, serving
from support.cli_process import program
from support.paths import TESTS
from support.small_recipe import small
from support.teachers import Counting, prompts

QUICK = (0.01, 0.05)


@pytest.fixture
def provider() -> Iterator[tuple[Provider, str]]:
    with serving() as found:
        yield found


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskAnswerStore]:
    with DiskAnswerStore(tmp_path / "teachers") as opened:
        yield opened


class Said(Console):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, text: str) -> None:
        self.lines.append(text)

    warn = print


def send(
    teacher: Teacher,
    requests: list[Request],
    cache: DiskAnswerStore,
    console: Console | None = None,
    wait: bool = True,
    policy: RequestPolicy | None = None,
) -> LabelResult:
    folder, policy = cache.folder.parent / "batches", policy or RequestPolicy(wait=wait)
    return label_in_batches(teacher, requests, cache, folder, policy=policy, console=console, poll_interval=QUICK)


def sat(
    teacher: Teacher, requests: list[Request], cache: DiskAnswerStore, **policy: Any
) -> tuple[LabelResult, DistillkitError | None]:
    """What a sitting came to, however it ended."""
    done, folder = LabelResult([], []), cache.folder.parent / "batches"
    try:
        label_in_batches(
            teacher, requests, cache, folder, policy=RequestPolicy(**policy), result=done, poll_interval=QUICK
        )
    except DistillkitError as error:
        return done, error
    return done, None


def others(count: int) -> list[Request]:
    """What another recipe asks the same teacher."""
    return [replace(request, prompt=f"other {i}") for i, request in enumerate(prompts(count))]


def left(cache: DiskAnswerStore) -> list[Path]:
    """What is left of batches on disk."""
    return sorted((cache.folder.parent / "batches").glob("*"))


def texts(done: LabelResult) -> list[str]:
    return [answer.text for answer in done.answers]


TO = [f"to prompt {i}" for i in range(100)]


# ------------------------------------------------------------------------------------------------ all is well


@pytest.mark.parametrize("sdk", ["openai", "openai async", "groq", "groq async"])
def test_answers_of_a_batch_are_in_the_cache_as_if_asked_one_by_one(
    provider: Any, cache: DiskAnswerStore, sdk: str
) -> None:
    there, url = provider
    there.looks = 3
    done = send(batcher(url, sdk=sdk), prompts(7), cache)
    assert texts(done) == TO[:7]
    assert (done.asked, done.cached, done.counts["completion_tokens"]) == (7, 0, 21)
    assert there.asked == [f"prompt {i}" for i in range(7)]
    assert len(there.batches) == 1
    assert left(cache) == []
    assert texts(label(batcher(url), prompts(7), cache)) == TO[:7]  # which would fail if it asked
    again = send(batcher(url, sdk=sdk), prompts(7), cache)
    assert (again.asked, again.cached, len(there.batches)) == (0, 7, 1)


def test_only_what_is_not_known_is_sent(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    send(batcher(url), prompts(3), cache)
    done = send(batcher(url), [*prompts(5), *prompts(5)], cache)
    assert there.asked[3:] == ["prompt 3", "prompt 4"]
    assert texts(done) == TO[:5] * 2
    assert (done.asked, done.cached) == (2, 8)


def test_nothing_asked_is_nothing_sent(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    assert send(batcher(url), [], cache).answers == []
    assert there.files == {}


def test_a_batch_is_split_by_the_sizes_that_the_teacher_says(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    teacher = batcher(url)
    teacher.batch_limits = BatchLimits(requests=3)  # type: ignore[attr-defined]
    assert texts(send(teacher, prompts(10), cache)) == TO[:10]
    assert [batch["request_counts"]["total"] for batch in there.batches.values()] == [3, 3, 3, 1]
    teacher.batch_limits = BatchLimits(bytes=1000)  # type: ignore[attr-defined]
    send(teacher, prompts(20, temperature=0.5), cache)
    sizes = [len(content) for content in there.files.values() if b'"body": {"model"' in content]
    assert max(sizes[4:]) <= 1000
    assert len(sizes[4:]) > 2


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=30), st.integers(1, 7), st.integers(20, 200))
def test_a_split_loses_nothing_and_keeps_to_its_limits(words: list[str], most: int, most_bytes: int) -> None:
    lines = [(str(i), {"body": word}) for i, word in enumerate(words)]
    groups = list(batch_state.split_lines(lines, most, most_bytes))
    assert [line for group in groups for line in group] == lines
    for group in groups:
        size = sum(len(json.dumps(line)) + 1 for _, line in group)
        assert len(group) <= most
        assert size <= most_bytes or len(group) == 1


def test_half_an_emoji_in_a_prompt_is_sent_and_answered(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    there.fate = lambda key, body: 200
    done = send(batcher(url), [Request("r", prompt="a fox \ud83e")], cache)
    assert texts(done) == ["to a fox \ufffd"]


def test_half_the_price(provider: Any) -> None:
    teacher = batcher(provider[1])
    assert RequestPolicy(price=Price(3.0, 5.0), batch=True).price_of(teacher) == Price(1.5, 2.5)
    assert RequestPolicy(price=Price(3.0, 5.0)).price_of(teacher) == Price(3.0, 5.0)


def test_a_teacher_without_batches_is_refused(cache: DiskAnswerStore) -> None:
    with pytest.raises(UsageError, match="'counting' does not support the Batch API"):
        label_in_batches(Counting(), prompts(1), cache, cache.folder)


# ------------------------------------------------------------------------------------------- today and tomorrow


def test_without_wait_it_says_what_is_pending_and_the_next_sitting_collects(
    provider: Any, cache: DiskAnswerStore
) -> None:
    there, url = provider
    there.looks = 2
    for _ in range(2):
        with pytest.raises(LimitReached, match="0 of 5 answers are available; 1 batch is pending") as stopped:
            send(batcher(url), prompts(5), cache, wait=False)
        assert "--wait" in stopped.value.hint
    assert texts(send(batcher(url), prompts(5), cache, wait=False)) == TO[:5]
    assert len(there.batches) == 1


def test_what_another_recipe_sent_off_is_collected_too(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    with pytest.raises(LimitReached):
        send(batcher(url), prompts(5), cache, wait=False)
    assert texts(send(batcher(url), prompts(2), cache, wait=False)) == TO[:2]
    assert count_known(batcher(url), prompts(5), cache) == 5
    assert len(there.batches) == 1


def test_what_is_in_a_batch_is_not_asked_for_one_by_one(provider: Any, cache: DiskAnswerStore) -> None:
    _, url = provider
    folder, teacher = cache.folder.parent / "batches", batcher(url)
    with pytest.raises(LimitReached):
        send(teacher, prompts(5), cache, wait=False)
    with pytest.raises(UsageError, match="5 of the requests are in a batch"):
        batch_state.refuse_batched(folder, cache, answer_keys(teacher, prompts(9)))
    batch_state.refuse_batched(folder, cache, answer_keys(teacher, prompts(9, temperature=0.5)))
    send(teacher, prompts(5), cache)
    batch_state.refuse_batched(folder, cache, answer_keys(teacher, prompts(9)))


def test_what_was_refused_and_is_in_a_batch_again_is_not_asked_for_one_by_one(
    provider: Any, cache: DiskAnswerStore
) -> None:
    _, url = provider
    folder, teacher = cache.folder.parent / "batches", batcher(url)
    for _, key, what in (rows := keyed_requests(teacher, prompts(3))):
        cache.put(key, what, Answer("", finish=REFUSED))
    check = partial(batch_state.refuse_batched, folder, cache)
    sat(teacher, prompts(3), cache, retry_refused=True)
    with pytest.raises(UsageError, match="3 of the requests are in a batch"):
        label(batcher(url), prompts(3), cache, policy=RequestPolicy(retry_refused=True), check=check)
    assert label(batcher(url), prompts(3), cache, check=check).refused == 3  # they are not to be asked again
    sat(teacher, prompts(3), cache, retry_refused=True)
    check(key for _, key, _ in rows)


class Alone(Teacher):
    """Answers one by one, and counts."""

    name = "alone"
    asked = 0

    def answer(self, request: Request) -> Answer:
        Alone.asked += 1
        return Answer("alone")


def test_what_another_process_sends_off_while_it_is_waited_for_is_not_asked_for_one_by_one(tmp_path: Path) -> None:
    folder, rows = tmp_path / "batches", keyed_requests(Alone(), prompts(4))
    keys, check = [key for _, key, _ in rows], partial(batch_state.refuse_batched, folder)
    with DiskAnswerStore(tmp_path / "teachers") as batching, DiskAnswerStore(tmp_path / "teachers") as cache:
        batching.claim(keys)
        check(cache, keys)  # it has not begun

        class SentMeanwhile(Console):
            """Sends them off as soon as it is waited for."""

            def progress(self, text: str, last: bool = False) -> None:
                whats = {key: what for _, key, what in rows}
                part = batch_state.create(folder, whats, id="a", teacher="alone", identity="i", endpoint="e")
                part.save(status="submitted", batch="batch-1")
                batching.release()

        with pytest.raises(UsageError, match="4 of the requests are in a batch") as error:
            label(Alone(), prompts(4), cache, console=SentMeanwhile(), check=partial(check, cache))
    assert Alone.asked == 0
    assert error.value.hint.endswith("delete that file.")


# ----------------------------------------------------------------------------------------- each pays for its own


def test_what_a_recipe_could_not_send_off_no_other_one_sends_off_for_it(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    there.replies["POST /v1/batches"] = [429]
    with pytest.raises(TeacherError, match="could not make a batch"):
        send(batcher(url), prompts(9), cache)
    done, error = sat(batcher(url), others(2), cache, wait=True, max_requests=5)
    assert (error, there.asked, done.spent["requests"]) == (None, ["other 0", "other 1"], 2)
    assert texts(send(batcher(url), prompts(9), cache)) == TO[:9]
    assert len(there.asked) == len(set(there.asked)) == 11
    assert left(cache) == []


def test_of_what_two_recipes_want_and_none_could_send_off_each_sends_its_own(
    provider: Any, cache: DiskAnswerStore
) -> None:
    there, url = provider
    there.replies["POST /v1/batches"] = [429]
    with pytest.raises(TeacherError, match="could not make a batch"):
        send(batcher(url), prompts(5), cache)
    assert texts(send(batcher(url), prompts(2), cache)) == TO[:2]
    assert there.asked == ["prompt 0", "prompt 1"]
    assert texts(send(batcher(url), prompts(5), cache)) == TO[:5]
    assert there.asked[2:] == ["prompt 2", "prompt 3", "prompt 4"]
    assert left(cache) == []


def test_what_was_not_sent_off_is_sent_as_far_as_a_later_sitting_can_afford(
    provider: Any, cache: DiskAnswerStore
) -> None:
    there, url = provider
    there.replies["POST /v1/batches"] = [429]
    with pytest.raises(TeacherError, match="could not make a batch"):
        send(batcher(url), prompts(5), cache)
    keys, folder = answer_keys(batcher(url), prompts(5)), cache.folder.parent / "batches"
    assert batch_state.keys_in_batches(folder, keys, batch_state.SUBMITTED_STATES) == {}
    batch_state.refuse_batched(folder, cache, keys)  # they may be asked one by one as well
    done, error = sat(batcher(url), prompts(5), cache, wait=True, max_requests=3)
    assert "teacher.max_requests = 3" in str(error)
    assert (len(there.asked), done.spent["requests"]) == (3, 3)
    assert texts(send(batcher(url), prompts(5), cache)) == TO[:5]
    assert left(cache) == []


def test_tries_are_counted_on_by_a_sitting_that_sends_what_another_one_could_not(
    provider: Any, cache: DiskAnswerStore
) -> None:
    there, url = provider
    there.fate = lambda key, body: 500 if body["prompt"] == "prompt 1" else 200
    there.replies["POST /v1/batches"] = [200, 429]
    for told in ("could not make a batch", "1 of 3 requests were not answered"):
        with pytest.raises(TeacherError, match=told):
            send(batcher(url), prompts(3), cache)
    assert there.asked.count("prompt 1") == batch.MAX_ATTEMPTS


def test_the_batch_of_another_recipe_takes_nothing_of_a_budget(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    there.looks = 3
    _, stopped = sat(batcher(url), prompts(9), cache)
    assert "1 batch is pending" in str(stopped)
    done, error = sat(batcher(url), others(2), cache, wait=True, max_requests=5)
    assert (error, done.asked, done.spent["requests"]) == (None, 2, 2)
    assert count_known(batcher(url), prompts(9), cache) == 0  # it is left to its own recipe
    assert texts(send(batcher(url), prompts(9), cache)) == TO[:9]
    assert len(there.batches) == 2


def test_what_another_recipe_collects_is_paid_for_once_by_the_one_that_wants_it(
    provider: Any, cache: DiskAnswerStore
) -> None:
    there, url = provider
    price = Price(1000.0, 1000.0)
    sat(batcher(url), prompts(5), cache, price=price)
    also, _ = sat(batcher(url), [*prompts(2), *others(1)], cache, wait=True, price=price)
    assert (also.asked, also.spent["requests"]) == (3, 3)
    assert batch_state.unbilled_keys(cache.folder.parent / "batches") == {*answer_keys(batcher(url), prompts(5)[2:])}
    done, error = sat(batcher(url), prompts(5), cache, price=price)
    assert (error, texts(done)) == (None, TO[:5])
    assert (done.asked, done.cached, done.spent["requests"], done.spent["tokens"]) == (3, 2, 3, 15)
    assert done.spent["usd"] == pytest.approx(also.spent["usd"])
    again, _ = sat(batcher(url), prompts(5), cache, price=price)
    assert (again.asked, again.spent["requests"]) == (0, 0)
    assert (len(there.batches), left(cache)) == (2, [])


def test_a_refused_batch_ends_the_sitting_of_its_own_recipe_only(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    sat(batcher(url), prompts(3), cache)
    there.batches["batch-1"] |= {"status": "failed", "errors": {"object": "list", "data": [{"message": "no"}]}}
    assert texts(send(batcher(url), others(1), cache)) == ["to other 0"]
    _, error = sat(batcher(url), prompts(3), cache)
    assert "the provider refused the batch" in str(error)
    assert texts(send(batcher(url), prompts(3), cache)) == TO[:3]
    assert left(cache) == []


def test_tries_are_counted_though_another_recipe_sits_between(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    there.fate = lambda key, body: 500 if body["prompt"] == "prompt 1" else 200
    sat(batcher(url), prompts(3), cache)
    assert texts(send(batcher(url), others(1), cache)) == ["to other 0"]
    _, error = sat(batcher(url), prompts(3), cache, wait=True)
    assert "1 of 3 requests were not answered in batches" in str(error)
    assert there.asked.count("prompt 1") == batch.MAX_ATTEMPTS
    assert left(cache) == []


@pytest.mark.parametrize("step", ["stat", "read_text", "read_bytes"])
def test_a_part_that_another_process_drops_during_a_look_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    gone, there = (
        batch_state.create(tmp_path, {key: {}}, id=key, teacher="t", identity="i", endpoint="e") for key in ("a", "b")
    )
    plain = getattr(Path, step)

    def dropped_first(path: Path, *given: Any, **named: Any) -> Any:
        if path.name.startswith(gone.id):
            gone.delete()
        return plain(path, *given, **named)

    monkeypatch.setattr(Path, step, dropped_first)
    assert batch_state.keys_in_batches(tmp_path, ["a", "b"]) == {"b": there.path}
    assert not gone.path.exists()
    assert batch_state.load_all(tmp_path) == [there]


def test_a_part_that_is_dropped_before_it_is_read_again_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = batch_state.create(tmp_path, {"a": {}}, id="a", teacher="t", identity="i", endpoint="e")
    assert part.reload() == part

    def read_json(path: Path) -> Any:
        part.delete()
        return files.read_json(path)

    monkeypatch.setattr(batch_state, "read_json", read_json)
    assert part.reload() is None


# ------------------------------------------------------------------------------------------------- what fails


def test_what_expired_is_collected_and_the_rest_is_asked_again(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    there.end, console = "expired", Said()

    def fate(key: str, body: dict[str, Any]) -> Any:
        if there.asked.count(body["prompt"]) > 4:  # it expires more often than a failure may be tried
            return 200
        return "expired" if body["prompt"] > "prompt 2" else 200

    there.fate = fate
    assert texts(send(batcher(url), prompts(5), cache, console)) == TO[:5]
    assert Counter(there.asked) == {f"prompt {i}": 1 if i < 3 else 5 for i in range(5)}
    assert "  batch batch-1 expired: 3 of 5 answered" in console.lines
    assert left(cache) == []


def test_what_failed_is_asked_again_but_not_for_ever(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    there.fate = lambda key, body: 500 if body["prompt"] == "prompt 1" else 200
    with pytest.raises(TeacherError, match="1 of 3 requests were not answered in batches; the first: status 500: no"):
        send(batcher(url), prompts(3), cache)
    assert Counter(there.asked) == {"prompt 0": 1, "prompt 1": 3, "prompt 2": 1}
    assert count_known(batcher(url), prompts(3), cache) == 2
    assert left(cache) == []
    there.fate = lambda key, body: 200
    assert texts(send(batcher(url), prompts(3), cache)) == TO[:3]
    assert there.asked.count("prompt 1") == 4


def test_what_is_wrong_in_itself_is_not_asked_again(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    there.fate = lambda key, body: (
        {"prompt 0": 400, "prompt 1": 429}.get(body["prompt"], 200) if len(there.batches) == 1 else 200
    )
    with pytest.raises(TeacherError, match="status 400: no, 400"):
        send(batcher(url), prompts(3), cache)
    assert Counter(there.asked) == {"prompt 0": 1, "prompt 1": 2, "prompt 2": 1}
    assert count_known(batcher(url), prompts(3), cache) == 2
    assert left(cache) == []


def test_what_is_left_out_or_is_no_answer_is_asked_again(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider

    def fate(key: str, body: dict[str, Any]) -> Any:
        empty = {"custom_id": key, "response": {"status_code": 200, "body": {}}, "error": None}
        return {"prompt 0": "forgotten", "prompt 1": empty}.get(body["prompt"], 200) if len(there.batches) == 1 else 200

    there.fate = fate
    assert texts(send(batcher(url), prompts(3), cache)) == TO[:3]
    assert there.asked[3:] == ["prompt 0", "prompt 1"]


def test_an_answer_that_is_misshapen_is_paid_for_at_the_most_that_it_may_cost(
    provider: Any, cache: DiskAnswerStore
) -> None:
    there, url = provider
    misshapen = {"response": {"status_code": 200, "body": {}}, "error": None}
    there.fate = lambda key, body: {"custom_id": key, **misshapen} if len(there.batches) == 1 else 200
    done = send(batcher(url), prompts(1), cache)
    most, billed = max_usage(prompts(1)[0]), done.answers[0].usage
    assert billed is not None
    paid = [usage.prompt_tokens + usage.completion_tokens for usage in (most, billed)]
    assert (done.spent["requests"], done.spent["tokens"]) == (2, sum(paid))


def test_what_is_empty_every_time_is_kept_as_refused_and_never_as_an_answer(
    provider: Any, cache: DiskAnswerStore
) -> None:
    there, url = provider

    def fate(key: str, body: dict[str, Any]) -> Any:
        said = {"text": " ", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        empty = {"custom_id": key, "response": {"status_code": 200, "body": said}, "error": None}
        return empty if body["prompt"] == "prompt 1" else 200

    there.fate = fate
    done = send(batcher(url), prompts(3), cache)
    assert texts(done) == ["to prompt 0", "to prompt 2"]
    assert [answer.finish for answer in done.replies] == ["stop", REFUSED, "stop"]
    assert Counter(there.asked) == {"prompt 0": 1, "prompt 1": 3, "prompt 2": 1}
    found = maintenance.stats(cache)
    assert (found["answers"], found["refused"]) == (2, 1)
    assert send(batcher(url), prompts(3), cache).refused == 1
    assert len(there.asked) == 5
    there.fate = lambda key, body: 200
    retried = send(batcher(url), prompts(3), cache, policy=RequestPolicy(wait=True, retry_refused=True))
    assert (texts(retried), retried.refused, there.asked[5:]) == (TO[:3], 0, ["prompt 1"])


def test_answers_to_what_was_not_asked_are_not_kept(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    body = {"text": "planted", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    planted = {"custom_id": "f" * 64, "response": {"status_code": 200, "body": body}, "error": None}
    there.fate = lambda key, body: planted if body["prompt"] == "prompt 0" and len(there.batches) == 1 else 200
    console = Said()
    assert texts(send(batcher(url), prompts(2), cache, console)) == TO[:2]
    assert any("one that was not sent" in line for line in console.lines)
    assert len(cache) == 2


def test_a_batch_that_is_refused_is_said_in_the_providers_words(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    there.end = "failed"
    with pytest.raises(TeacherError, match="refused the batch batch-1: no such model"):
        send(batcher(url), prompts(2), cache)
    there.end = "completed"
    assert texts(send(batcher(url), prompts(2), cache)) == TO[:2]


def test_what_the_providers_queue_has_no_room_for_is_sent_when_another_has_ended(
    provider: Any, cache: DiskAnswerStore
) -> None:
    there, url = provider
    there.at_once, there.looks = 1, 6
    teacher, console = batcher(url), Said()
    teacher.batch_limits = BatchLimits(requests=2)  # type: ignore[attr-defined]
    assert texts(send(teacher, prompts(6), cache, console)) == TO[:6]
    assert sum("queue is full" in line for line in console.lines) == len(there.batches) - 3 <= 3
    there.at_once = 0
    with pytest.raises(TeacherError, match="too many tokens are enqueued"):
        send(teacher, prompts(2, temperature=0.5), cache)


@pytest.mark.parametrize("status", [429, 404])
def test_what_waited_for_the_queue_and_was_then_refused_is_uploaded_again(
    provider: Any, cache: DiskAnswerStore, status: int
) -> None:
    there, url = provider
    there.at_once, there.looks = 1, 6
    there.replies["POST /v1/batches"] = [200, 200, status]
    teacher = batcher(url)
    teacher.batch_limits = BatchLimits(requests=2)  # type: ignore[attr-defined]
    with pytest.raises(TeacherError, match="could not make a batch"):
        send(teacher, prompts(4), cache)
    assert texts(send(teacher, prompts(4), cache)) == TO[:4]
    assert left(cache) == []


@pytest.mark.usefixtures("keys")
def test_what_the_provider_turned_away_is_uploaded_again_as_it_was(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    there.refuses = {"seed"}
    there.replies["POST /v1/batches"] = [429]
    wanted = [replace(request, seed=5) for request in prompts(3)]
    with pytest.raises(TeacherError, match="could not make a batch"):
        send(built_in("openai", url), wanted, cache)
    probes = len(there.alone)
    assert texts(send(built_in("openai", url), wanted, cache)) == TO[:3]
    assert (there.files["file-2"], len(there.alone)) == (there.files["file-1"], probes)


@pytest.mark.parametrize("what", ["POST /v1/files", "GET /v1/batches/batch-1", "GET /v1/files/file-2/content"])
@pytest.mark.parametrize("status", [500, 429, 599])
def test_what_may_be_asked_twice_is_tried_again(provider: Any, cache: DiskAnswerStore, what: str, status: int) -> None:
    there, url = provider
    there.replies[what] = [status]
    assert texts(send(batcher(url), prompts(2), cache)) == TO[:2]
    assert len(there.batches) == 1


def test_a_result_that_cannot_be_read_is_fetched_again(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    finish, whole = there.finish, {}

    def half(batch: dict[str, Any]) -> None:
        finish(batch)
        name = batch["output_file_id"]
        whole[name] = there.files[name]
        there.files[name] = whole[name][:-30]

    there.finish = half
    cut, error = sat(batcher(url), prompts(2), cache, wait=True)
    assert "cannot be read: line 2 of file-2" in str(error)
    there.files |= whole
    there.finish = lambda batch: batch.update(status="completed")
    done = send(batcher(url), prompts(2), cache, policy=RequestPolicy(wait=True, spent=cut.spent))
    assert texts(done) == TO[:2]
    assert len(there.batches) == 1
    assert (cut.spent["requests"], done.spent["requests"]) == (1, 2)  # what had been read is not paid for twice


def test_a_refused_submit_leaves_nothing_behind_but_the_way_on(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    there.replies["POST /v1/batches"] = [400]
    with pytest.raises(TeacherError, match="could not make a batch: BadRequestError") as error:
        send(batcher(url), prompts(2), cache)
    assert "No batch was made" in error.value.hint
    assert texts(send(batcher(url), prompts(2), cache)) == TO[:2]
    assert len(there.batches) == 1


def test_a_submit_whose_reply_was_lost_is_found_and_not_repeated(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    for i in range(5):  # the list has pages
        there.make({"input_file_id": there.upload(b"")["id"], "endpoint": "/v1/completions", "n": i})
    there.replies["POST /v1/batches"] = [599]
    with pytest.raises(TeacherError, match="could not make a batch: APIConnectionError") as error:
        send(batcher(url), prompts(2), cache)
    assert "first looks whether" in error.value.hint
    for i in range(5):
        there.make({"input_file_id": there.upload(b"")["id"], "endpoint": "/v1/completions", "n": i})
    console = Said()
    assert texts(send(batcher(url), prompts(2), cache, console)) == TO[:2]
    assert any("it is not sent again" in line for line in console.lines)
    assert Counter(there.asked) == {"prompt 0": 1, "prompt 1": 1}


def test_where_nobody_says_whether_a_batch_was_made_it_is_not_made_again(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    there.replies = {"POST /v1/batches": [599], "GET /v1/batches": [404]}
    for told in ("could not make a batch", "could not list batches"):
        with pytest.raises(TeacherError, match=told) as error:
            send(batcher(url), prompts(2), cache)
    assert "not known whether a batch was made of the file file-1" in error.value.hint
    assert texts(send(batcher(url), prompts(2), cache)) == TO[:2]
    assert len(there.batches) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9}', '{"format": 1, "status": "lost"}'])
def test_a_damaged_state_is_said_and_nothing_is_sent(provider: Any, cache: DiskAnswerStore, text: str) -> None:
    there, url = provider
    (cache.folder.parent / "batches").mkdir()
    (cache.folder.parent / "batches" / "abc.json").write_text(text)
    with pytest.raises(CorruptError, match=r"abc\.json is not a valid record") as error:
        send(batcher(url), prompts(1), cache)
    assert "delete the file" in error.value.hint
    assert there.files == {}


def test_what_another_process_collects_during_a_look_is_not_given_up(
    provider: Any, cache: DiskAnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, url = provider
    there.looks = 1
    with pytest.raises(LimitReached, match="1 batch is pending"):
        send(batcher(url), prompts(5), cache, wait=False)
    look, looks = batch._BatchSession._is_pending, []

    with DiskAnswerStore(cache.folder) as other:
        (part,) = batch_state.load_all(cache.folder.parent / "batches")
        assert other.claim([part.id])  # it is at it

        def late(stage: Any) -> bool:
            looks.append(stage)
            if len(looks) == 1:
                send(batcher(url), prompts(5), other)
            return look(stage)

        monkeypatch.setattr(batch._BatchSession, "_is_pending", late)
        assert texts(send(batcher(url), prompts(5), cache)) == TO[:5]
    assert len(there.batches) == 1


def test_what_another_process_finds_as_it_is_about_to_be_sent_off_is_sent_once(
    provider: Any, cache: DiskAnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, url = provider
    begin = batch_state.create

    def found(*given: Any, **facts: Any) -> batch_state.BatchRecord:
        part = begin(*given, **facts)
        with DiskAnswerStore(cache.folder) as other, pytest.raises(LimitReached, match="1 batch is pending"):
            send(batcher(url), prompts(3), other, wait=False)
        return part

    monkeypatch.setattr(batch_state, "create", found)
    assert texts(send(batcher(url), prompts(3), cache)) == TO[:3]
    assert Counter(there.asked) == {f"prompt {i}": 1 for i in range(3)}


@pytest.mark.parametrize("left", [0, 3], ids=["lost", "cut short"])
def test_what_was_paid_for_is_not_dropped_where_nobody_knows_what_was_asked(
    provider: Any, cache: DiskAnswerStore, left: int
) -> None:
    there, url = provider
    there.looks = 1
    with pytest.raises(LimitReached, match="1 batch is pending"):
        send(batcher(url), prompts(5), cache, wait=False)
    (asked,) = (cache.folder.parent / "batches").glob("*.asked.jsonl")
    whole = asked.read_bytes()
    asked.unlink() if left == 0 else asked.write_bytes(b"".join(whole.splitlines(keepends=True)[:left]))
    batch_state._read_requests.cache_clear()  # as another process finds it
    with pytest.raises(CorruptError, match=rf"names {left} of the 5 requests of its batch"):
        send(batcher(url), prompts(5), cache)
    asked.write_bytes(whole)
    batch_state._read_requests.cache_clear()
    assert texts(send(batcher(url), prompts(5), cache)) == TO[:5]
    assert len(there.batches) == 1


# ------------------------------------------------------------------------------------------- other processes

SITTING = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from support.batch_provider import batcher
from support.teachers import prompts
from distillkit.core.errors import DistillkitError
from distillkit.teachers.asking.policy import RequestPolicy
from distillkit.teachers.asking.batch_api import label_in_batches
from distillkit.teachers.answers.disk import DiskAnswerStore
folder = Path({folder!r})
with DiskAnswerStore(folder / "teachers") as cache:
    try:
        policy, polls = RequestPolicy(wait=True), (0.05, 0.1)
        batches = folder / "batches"
        done = label_in_batches(batcher({url!r}), prompts(6), cache, batches, policy=policy, poll_interval=polls)
        print(len(done.answers))
    except DistillkitError as error:
        print(error)
        sys.exit(error.exit_code)
"""


def sitting(folder: Path, url: str) -> subprocess.Popen[str]:
    code = SITTING.format(tests=str(TESTS), folder=str(folder), url=url)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "uploads"),
    [("POST /v1/files", 2), ("POST /v1/batches", 1), ("GET /v1/batches/batch-1", 1)],
    ids=["after the upload", "after the submit", "while looking"],
)
def test_a_killed_sitting_is_gone_on_with_and_sends_nothing_twice(
    provider: Any, tmp_path: Path, where: str, uploads: int
) -> None:
    """Killed when the provider has done what it was asked, and the process has not yet heard of it."""
    there, url = provider
    there.hold[where] = (reached, go_on) = threading.Event(), threading.Event()
    child = sitting(tmp_path, url)
    assert reached.wait(30)
    child.kill()
    child.communicate()
    go_on.set()
    del there.hold[where]
    said, _ = sitting(tmp_path, url).communicate(timeout=60)
    assert said == "6\n"
    assert (
        sum(b'"body"' in content and b"custom_id" in content and b"url" in content for content in there.files.values())
        == uploads
    )
    assert Counter(there.asked) == {f"prompt {i}": 1 for i in range(6)}
    assert list((tmp_path / "batches").iterdir()) == []


@pytest.mark.slow
def test_two_sittings_at_once_send_each_request_once(provider: Any, tmp_path: Path) -> None:
    there, url = provider
    there.looks = 5
    children = [sitting(tmp_path, url) for _ in range(2)]
    assert [child.communicate(timeout=60)[0] for child in children] == ["6\n", "6\n"]
    assert Counter(there.asked) == {f"prompt {i}": 1 for i in range(6)}


# ------------------------------------------------------------------------------------------------ the command

RECIPE = small(
    "batched",
    """
[teacher]
provider = "batcher"
base_url = "{url}"
prompts = 4
prompt_tokens = 4
max_tokens = 6
""",
)


@pytest.mark.slow
def test_label_batch_as_a_user_meets_it(provider: Any, tmp_path: Path) -> None:
    there, url = provider
    there.looks = 2
    (tmp_path / "batched.toml").write_text(RECIPE.format(url=url))
    plugin = str(TESTS / "support" / "batch_provider.py")

    def distillkit(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DISTILLKIT_HOME": str(tmp_path)}
        return program(["-p", plugin, *words], tmp_path, environment)

    said = distillkit("label", "batched.toml", "--batch")
    assert (said.returncode, "1 batch is pending" in said.stderr) == (3, True), said.stderr
    on = f"label {tmp_path / 'reports/batched/1'} --batch"
    assert said.stderr.endswith(f"Continue: distillkit {on}\n")
    plan = distillkit("plan", "batched.toml", "--batch").stdout
    assert "0 (0 of 4 answers are cached, 4 are in batches)" in plan
    said = distillkit("label", "batched.toml")
    assert (said.returncode, "in a batch that has not been collected" in said.stderr) == (2, True), said.stderr
    said = distillkit("run", "batched/1", "--resume")
    assert (said.returncode, "in a batch that has not been collected" in said.stderr) == (2, True), said.stderr
    said = distillkit(*on.split())
    assert (said.returncode, "1 batch is pending" in said.stderr) == (3, True), said.stderr
    said = distillkit("label", "batched.toml", "--batch", "--wait")
    assert said.returncode == 0, said.stderr
    assert len(there.batches) == 1
    assert not (tmp_path / "reports/batched/2").exists()
    info = json.loads((tmp_path / "reports/batched/1/run.json").read_text())
    assert info["teacher"]["prompts"] == 4
    assert distillkit("label", "batched.toml").returncode == 0
    said = distillkit("label", "batched.toml", "--wait")
    assert said.returncode == 0, said.stderr


# ------------------------------------------------------------------------------------------- the built-in teachers

KEY = "sk-" + "no-real-key" * 3


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GROQ_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(variable, KEY)


def built_in(name: str, url: str, **options: Any) -> Teacher:
    kind = {"groq": Groq, "openai": OpenAI}[name]
    base_url = url.replace("/v1", PATH) if name == "groq" else url
    return kind(kind.Options(base_url=base_url, **options))


@pytest.mark.parametrize("name", ["groq", "openai"])
@pytest.mark.usefixtures("keys")
def test_a_batch_of_chats_asks_and_answers_as_one_by_one(provider: Any, tmp_path: Path, name: str) -> None:
    there, url = provider
    there.refuses = {"seed"}
    wanted = [replace(request, seed=5, top_logprobs=2 * (name == "openai")) for request in prompts(3)]
    with DiskAnswerStore(tmp_path / "teachers") as cache:
        together = send(built_in(name, url), wanted, cache)
        assert label(built_in(name, url), wanted, cache).answers == together.answers
    lines = [line["body"] for line in there.lines()]
    assert [line["body"]["messages"][-1]["content"] for line in there.lines()] == [f"prompt {i}" for i in range(3)]
    assert {line["url"] for line in there.lines()} == {"/v1/chat/completions"}
    probes = len(there.alone)
    assert (probes, ["seed" in body for body in there.alone]) == (2, [True, False])
    with DiskAnswerStore(tmp_path / "alone") as cache:
        alone = label(built_in(name, url), wanted, cache)
    assert alone.answers == together.answers
    assert together.answers[1].usage == Usage(2, 3)
    assert sorted(json.dumps(body, sort_keys=True) for body in there.alone[-3:]) == sorted(
        json.dumps(body, sort_keys=True) for body in lines
    )
    if name == "openai":
        top = ((b"other", -1.0), (b"to prompt 1", -2.0))
        assert together.answers[1].tokens == (Token(b"to prompt 1", -0.5, top),)


@pytest.mark.usefixtures("keys")
def test_a_budget_keeps_what_it_has_no_room_for_out_of_batches(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    most = max_usage(Request("r", prompt="prompt 0", max_tokens=prompts(1)[0].max_tokens))
    policy = RequestPolicy(wait=True, max_usd=3 * Price(1.0, 1.0).of(most), price=Price(2.0, 2.0))
    done, folder = LabelResult([], []), cache.folder.parent / "batches"
    with pytest.raises(LimitReached, match=r"teacher\.max_usd"):
        label_in_batches(
            built_in("openai", url), prompts(120), cache, folder, policy=policy, result=done, poll_interval=QUICK
        )
    assert 1 <= len(there.asked) < 120
    assert len(there.batches) > 1  # what was really used made room for more
    assert done.spent["usd"] <= policy.max_usd
    assert len(done.answers) == len(there.asked) == len(set(there.asked))


@pytest.mark.usefixtures("keys")
def test_a_key_is_in_no_file_and_no_message(provider: Any, cache: DiskAnswerStore) -> None:
    there, url = provider
    echo = {"model": "m", "choices": [{"message": {"content": f"key {KEY}"}, "finish_reason": "stop"}], "usage": None}
    there.fate = lambda key, body: {"custom_id": key, "response": {"status_code": 200, "body": echo}, "error": None}
    assert texts(send(built_in("openai", url), prompts(1), cache)) == ["key [key]"]
    there.fate = lambda key, body: {"custom_id": key, "response": None, "error": {"message": f"bad {KEY}"}}
    with pytest.raises(TeacherError, match=r"bad \[key\]") as error:
        send(built_in("openai", url), prompts(2), cache)
    there.words, there.replies["POST /v1/files"] = f"Incorrect API key: {KEY}", [401]
    with pytest.raises(TeacherError, match=r"AuthenticationError.*\[key\]") as other:
        send(built_in("openai", url), prompts(2), cache)
    told = [line for one in (error, other) for line in traceback.format_exception(one.value)]
    assert KEY not in "".join(told)
    files = [path for path in cache.folder.parent.rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_compatible_server_has_no_batches(provider: Any, cache: DiskAnswerStore) -> None:
    teacher = Compatible(Compatible.Options(model="m", base_url=provider[1]))
    with pytest.raises(UsageError, match="'compatible' does not support the Batch API"):
        send(teacher, prompts(1), cache)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["groq", "openai"])
def test_label_batch_with_a_built_in_teacher(provider: Any, tmp_path: Path, name: str) -> None:
    there, url = provider
    there.looks = 2
    recipe = RECIPE.format(url=url.replace("/v1", PATH) if name == "groq" else url).replace("batcher", name)
    (tmp_path / "batched.toml").write_text(recipe)
    environment = {**os.environ, "DISTILLKIT_HOME": str(tmp_path), "GROQ_API_KEY": KEY, "OPENAI_API_KEY": KEY}

    def distillkit(*words: str) -> subprocess.CompletedProcess[str]:
        return program(words, tmp_path, environment)

    costs = [json.loads(distillkit("plan", "batched.toml", "--json", *more).stdout) for more in ((), ("--batch",))]
    assert costs[1]["teacher"]["usd"]["high"] == pytest.approx(costs[0]["teacher"]["usd"]["high"] / 2, rel=0.05)
    said = distillkit("label", "batched.toml", "--batch")
    assert (said.returncode, "may cost $" in said.stderr) == (2, True), said.stderr
    said = distillkit("label", "batched.toml", "--batch", "--yes")
    assert (said.returncode, "1 batch is pending" in said.stderr) == (3, True), said.stderr
    said = distillkit("label", "batched.toml", "--batch", "--wait")  # nothing more is paid for, so nothing is asked
    assert said.returncode == 0, said.stderr
    assert (len(there.batches), len(there.asked)) == (1, 4)
    info = json.loads((tmp_path / "reports/batched/1/run.json").read_text())
    assert (info["teacher"]["prompts"], info["teacher"]["asked"], info["spent"]["requests"] >= 4) == (4, 4, True)
    assert KEY not in said.stderr
