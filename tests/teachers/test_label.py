"""Asking a teacher for answers: each request once, failures, interruptions, progress."""

from __future__ import annotations

import asyncio
import io
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distillkit.core.console import PlainConsole
from distillkit.core.errors import DistillkitError, Interrupted, LimitReached, TeacherError
from distillkit.core.records import Answer, Request, Usage
from distillkit.plugins.interfaces import Teacher
from distillkit.teachers.answers.disk import DiskAnswerStore, answer_key, key_fields
from distillkit.teachers.asking.label import count_known, label
from support.paths import TESTS
from support.teachers import Counting, Sleeping, prompts

FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from support.teachers import Counting, prompts
from distillkit.core.errors import DistillkitError
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking.label import label
with DiskAnswerStore(Path({folder!r})) as cache:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    try:
        label(Counting(), prompts(3000), cache)
    except DistillkitError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_full_disk_is_said_and_what_was_kept_is_whole(tmp_path: Path) -> None:
    code = FULL.format(tests=str(TESTS), folder=str(tmp_path))
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"the cache {tmp_path} cannot be written: " in said
    kept = int(said.split(" of 3000 answers are kept")[0].split()[-1])
    assert 0 < kept < 3000
    with DiskAnswerStore(tmp_path) as cache:
        assert count_known(Counting(), prompts(3000), cache) == kept
        teacher = Counting()
        assert label(teacher, prompts(3000), cache).asked == 3000 - kept == len(teacher.asked)


TWO = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from support.teachers import Counting, prompts
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking.label import label
print("ready", flush=True)
sys.stdin.read()
with DiskAnswerStore(Path({folder!r})) as cache:
    answers = label(Counting(), prompts(300), cache).answers
    print([answer.text for answer in answers] == [f"to prompt {{i}}" for i in range(300)])
"""


@pytest.mark.slow
def test_two_processes_that_label_the_same_at_once_both_get_all_answers(tmp_path: Path) -> None:
    code = TWO.format(tests=str(TESTS), folder=str(tmp_path))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    children = [subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    assert [child.communicate("", timeout=60)[0] for child in children] == ["True\n", "True\n"]
    with DiskAnswerStore(tmp_path) as cache:
        assert len(cache) == 300
        assert label(Counting(), prompts(300), cache).asked == 0
        assert cache._rows.check() == []


@pytest.mark.slow
@pytest.mark.timing
def test_ten_thousand_cached_answers_are_read_in_two_seconds(cache: DiskAnswerStore) -> None:
    requests, teacher = prompts(10_000), Counting()
    words = random.Random(0).choices(["the", "fox", "ran", "home", "and"], k=96)
    with cache._rows.transact():  # one transaction: only reading is timed
        for request in requests:
            what = key_fields(teacher.name, teacher.identity(), request)
            cache.put(answer_key(what), what, Answer(" ".join(words), usage=Usage(32, 96)))
    began = time.process_time()  # of this process: others may keep the machine busy
    labelled = label(teacher, requests, cache)
    seconds = time.process_time() - began
    assert (labelled.asked, labelled.cached) == (0, 10_000)
    assert seconds < 2


def both(**options: Any) -> list[Teacher]:
    return [Counting(**options), Sleeping(**options)]


@pytest.mark.parametrize("teacher", both(), ids=lambda teacher: teacher.name)
def test_each_request_is_asked_once_and_a_second_label_asks_nothing(teacher: Any, cache: DiskAnswerStore) -> None:
    requests = prompts(20)
    first = label(teacher, requests, cache)
    second = label(teacher, requests, cache)
    assert sorted(teacher.asked) == sorted(request.prompt or "" for request in requests)
    assert [answer.text for answer in first.answers] == [f"to prompt {i}" for i in range(20)]
    assert second.answers == first.answers
    assert (first.asked, first.cached, second.asked, second.cached) == (20, 0, 0, 20)
    assert first.requests == requests


def test_what_was_answered_once_needs_no_teacher_any_more(tmp_path: Path) -> None:
    with DiskAnswerStore(tmp_path) as cache:
        label(Counting(), prompts(3), cache)
    with DiskAnswerStore(tmp_path) as cache:
        never = Counting(fails_on="prompt 0")
        assert label(never, prompts(3), cache).answers[0].text == "to prompt 0"


@pytest.mark.parametrize("teacher", both(), ids=lambda teacher: teacher.name)
def test_requests_alike_but_for_their_ids_are_asked_once(teacher: Any, cache: DiskAnswerStore) -> None:
    requests = [Request(f"r{i}", prompt=f"prompt {i % 2}") for i in range(6)]
    labelled = label(teacher, requests, cache)
    assert len(teacher.asked) == labelled.asked == 2
    assert [answer.text for answer in labelled.answers] == [f"to prompt {i % 2}" for i in range(6)]


def test_repeats_of_a_request_are_asked_each(cache: DiskAnswerStore) -> None:
    teacher = Counting()
    label(teacher, [Request("r", prompt="p", repeat=i) for i in range(4)], cache)
    assert len(teacher.asked) == 4


def test_known_counts_what_need_not_be_asked(cache: DiskAnswerStore) -> None:
    label(Counting(), prompts(3), cache)
    assert count_known(Counting(), prompts(5), cache) == 3
    assert count_known(Sleeping(), prompts(5), cache) == 0
    assert count_known(Counting(), prompts(5, temperature=0.5), cache) == 0
    assert count_known(Counting(), [], cache) == 0


def test_the_figures_of_a_label_stage_add_up(cache: DiskAnswerStore) -> None:
    label(Counting(), prompts(2), cache)
    labelled = label(Counting(), prompts(5), cache)
    assert labelled.counts == {
        "prompts": 5,
        "asked": 3,
        "cached": 2,
        "truncated": 0,
        "prompt_tokens": 10,
        "completion_tokens": 15,
    }


def test_nothing_asked_is_nothing_done(cache: DiskAnswerStore) -> None:
    for teacher in both():
        labelled = label(teacher, [], cache)
        assert (labelled.answers, labelled.asked, labelled.counts["prompts"]) == ([], 0, 0)


@pytest.mark.parametrize("teacher", both(fails_on="prompt 6"), ids=lambda teacher: teacher.name)
def test_a_failure_in_the_middle_keeps_what_was_answered(teacher: Any, cache: DiskAnswerStore) -> None:
    with pytest.raises(TeacherError, match="ValueError: no such luck") as error:
        label(teacher, prompts(10), cache, concurrency=2)
    assert repr(teacher.name) in error.value.message
    kept = count_known(teacher, prompts(10), cache)
    assert 5 <= kept <= 7
    assert f"{kept} of 10 answers are kept" in error.value.hint
    teacher.fails_on = ""
    teacher.asked.clear()
    labelled = label(teacher, prompts(10), cache)
    assert (labelled.asked, labelled.cached, len(teacher.asked)) == (10 - kept, kept, 10 - kept)


@pytest.mark.parametrize("kind", [Counting, Sleeping])
@pytest.mark.parametrize(
    "error", [LimitReached("out of money", "Raise teacher.max_usd."), TeacherError("no such model")]
)
def test_an_error_that_is_already_clear_stays_what_it_is(
    kind: Any, error: DistillkitError, cache: DiskAnswerStore
) -> None:
    fresh = type(error)(error.message, error.hint)
    with pytest.raises(type(error)) as raised:
        label(kind(fails_on="prompt 3", error=fresh), prompts(5), cache, concurrency=1)
    assert raised.value.message == error.message
    assert raised.value.hint.startswith(error.hint)
    assert raised.value.hint.endswith("3 of 5 answers are kept; the same command requests only the others.")


def test_a_failure_is_never_kept_as_an_answer(cache: DiskAnswerStore) -> None:
    for teacher in both(fails_on="prompt 0"):
        with pytest.raises(TeacherError):
            label(teacher, prompts(1), cache)
    assert len(cache) == 0


def test_answers_that_come_together_with_a_failure_are_kept(cache: DiskAnswerStore) -> None:
    class Together(Teacher):
        """All answers become known at the same moment."""

        name = "together"

        async def answer(self, request: Request) -> Answer:
            if request.prompt == "prompt 2":
                raise ValueError("no such luck")
            return Answer("a")

    with pytest.raises(TeacherError, match="no such luck") as error:
        label(Together(), prompts(8), cache)
    assert "7 of 8 answers are kept" in error.value.hint
    assert len(cache) == 7


def test_a_task_that_cancels_itself_is_a_failure_like_any_other(cache: DiskAnswerStore) -> None:
    teacher = Sleeping(fails_on="prompt 1", error=asyncio.CancelledError())
    with pytest.raises(TeacherError, match="CancelledError"):
        label(teacher, prompts(3), cache)
    assert len(cache) == 2


def test_after_a_failure_nothing_goes_on_asking(cache: DiskAnswerStore) -> None:
    teacher = Sleeping(0.02, fails_on="prompt 0")
    with pytest.raises(TeacherError):
        label(teacher, prompts(100), cache, concurrency=4)
    assert len(teacher.asked) <= 8
    assert teacher.now == 0


def test_asynchronous_answers_are_awaited_together(cache: DiskAnswerStore) -> None:
    teacher = Sleeping(0.1)
    label(teacher, prompts(8), cache, concurrency=8)
    assert teacher.most == 8


@pytest.mark.parametrize("concurrency", [1, 3])
def test_there_are_never_more_calls_at_once_than_allowed(cache: DiskAnswerStore, concurrency: int) -> None:
    teacher = Sleeping(0.005)
    label(teacher, prompts(20), cache, concurrency=concurrency)
    assert teacher.most == concurrency


def test_a_slow_answer_does_not_hold_up_the_others(cache: DiskAnswerStore) -> None:
    class Uneven(Sleeping):
        """Its first answer comes when all others have been given, or too late."""

        async def answer(self, request: Request) -> Answer:
            if request.prompt == "prompt 0":
                await asyncio.wait_for(others.wait(), 30)
            answer = await super().answer(request)
            if len(self.asked) == 19:
                others.set()
            return answer

    others = asyncio.Event()
    labelled = label(Uneven(), prompts(20), cache, concurrency=2)
    assert [answer.text for answer in labelled.answers] == [f"to prompt {i}" for i in range(20)]


def test_plain_teachers_are_asked_one_at_a_time_on_the_calling_thread(cache: DiskAnswerStore) -> None:
    teacher = Counting()
    label(teacher, prompts(5), cache, concurrency=8)
    assert teacher.asked == [f"prompt {i}" for i in range(5)]
    assert teacher.threads == {threading.get_ident()}


def test_an_answer_is_kept_before_the_next_is_asked_for(cache: DiskAnswerStore) -> None:
    class Looking(Counting):
        def answer(self, request: Request) -> Answer:
            assert len(cache) == len(self.asked)
            return super().answer(request)

    label(Looking(), prompts(5), cache)


def test_a_teacher_sees_everything_of_a_request_but_its_id(cache: DiskAnswerStore) -> None:
    class Seeing(Teacher):
        """Gives back what it saw."""

        name = "seeing"
        seen: Request

        def answer(self, request: Request) -> Answer:
            self.seen = request
            return Answer("")

    teacher, request = Seeing(), Request("mine", prompt="p", stop=(".",), seed=5, repeat=2, top_p=0.5)
    label(teacher, [request], cache)
    assert replace(teacher.seen, id="mine") == request


@pytest.mark.parametrize("given", ["text", None, {"text": "a"}, Answer(None), 7], ids=repr)  # type: ignore[arg-type]
def test_a_teacher_that_gives_no_answer_is_blamed_by_name(cache: DiskAnswerStore, given: Any) -> None:
    class Wrong(Teacher):
        """A plain one."""

        name = "wrong"

        def answer(self, request: Request) -> Answer:
            return given  # type: ignore[no-any-return]

    class WrongLater(Wrong):
        """An asynchronous one."""

        async def answer(self, request: Request) -> Answer:  # type: ignore[override]
            return given  # type: ignore[no-any-return]

    for teacher in (Wrong(), WrongLater()):
        with pytest.raises(TeacherError, match=r"the teacher 'wrong' returned an? .* instead of an Answer"):
            label(teacher, prompts(1), cache)
    assert len(cache) == 0


class Batching(Teacher):
    """Answers in its own order, or not at all."""

    name = "batching"

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.how = how

    def answer(self, request: Request) -> Answer:
        raise AssertionError("it has a way of its own for many")

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        yield from self.how([(request, Answer(f"to {request.prompt}")) for request in requests])


def test_a_teacher_may_answer_in_batches_and_in_any_order(cache: DiskAnswerStore) -> None:
    labelled = label(Batching(reversed), prompts(5), cache)
    assert [answer.text for answer in labelled.answers] == [f"to prompt {i}" for i in range(5)]


@pytest.mark.parametrize(
    ("how", "said", "kept"),
    [
        (lambda pairs: pairs[:3], "left 2 of 5 requests without an answer", 3),
        (lambda pairs: [*pairs, pairs[0]], "answered a request twice", 5),
        (lambda pairs: [(Request("x", prompt="x"), Answer("x"))], "one that was not sent", 0),
        (lambda pairs: [answer for _, answer in pairs], "failed: TypeError", 0),
    ],
)
def test_a_teacher_that_answers_what_was_not_asked_is_blamed(
    cache: DiskAnswerStore, how: Any, said: str, kept: int
) -> None:
    with pytest.raises(TeacherError, match=f"the teacher 'batching' .*{said}"):
        label(Batching(how), prompts(5), cache)
    assert len(cache) == kept


def test_a_teacher_whose_identity_is_not_json_is_blamed(cache: DiskAnswerStore) -> None:
    class Strange(Counting):
        def identity(self) -> Any:
            return {"folder": Path()}

    with pytest.raises(TeacherError, match="the identity of the teacher 'counting'"):
        label(Strange(), prompts(1), cache)


def test_half_an_emoji_becomes_a_replacement_character_before_it_is_kept(cache: DiskAnswerStore) -> None:
    """Tokenizers refuse it, and the answer was paid for."""

    class Halving(Teacher):
        """Some servers cut an answer in the middle of a surrogate pair."""

        name = "halving"

        def answer(self, request: Request) -> Answer:
            return Answer("a fox \ud83e\udd8a, a \ufeff and half a fox \ud83e")

    (answer,) = label(Halving(), prompts(1), cache).answers
    assert answer.text == "a fox \U0001f98a, a \ufeff and half a fox \ufffd"
    assert label(Halving(), prompts(1), cache).answers == [answer]


def test_progress_ends_with_the_last_answer(cache: DiskAnswerStore) -> None:
    stream = io.StringIO()
    label(Counting(), prompts(7), cache, console=PlainConsole(stream))
    assert stream.getvalue().splitlines()[-1].strip() == "7/7 answers"


INTERRUPTED = """
import asyncio, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have us ignore it
from pathlib import Path
sys.path.insert(0, {tests!r})
from support.teachers import Counting, Sleeping, prompts
from distillkit.core.errors import DistillkitError
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking.label import label

class Plain(Counting):
    def answer(self, request):
        if request.prompt == "prompt 3":
            print("asking", flush=True)
            time.sleep(60)
        return super().answer(request)

class Later(Sleeping):
    async def answer(self, request):
        if request.prompt >= "prompt 3":
            self.seconds = 60
            print("asking", flush=True)
        return await super().answer(request)

with DiskAnswerStore(Path({folder!r})) as cache:
    try:
        label({teacher}(), prompts(10), cache, concurrency={concurrency})
    except DistillkitError as error:
        print(type(error).__name__, error)
        sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(("teacher", "asks"), [("Plain", Counting), ("Later", Sleeping)])
def test_ctrl_c_keeps_what_was_answered_and_says_so(tmp_path: Path, teacher: str, asks: Any) -> None:
    code = INTERRUPTED.format(tests=str(TESTS), folder=str(tmp_path), teacher=teacher, concurrency=1)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "asking\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=10)
    assert said == "Interrupted stopped after 3 of 10 answers; they are kept\n"
    assert child.returncode == Interrupted.exit_code == 130
    with DiskAnswerStore(tmp_path) as cache:
        assert count_known(asks(), prompts(10), cache) == 3
        assert label(asks(), prompts(10), cache).asked == 7


def test_ctrl_c_while_an_answer_is_put_away_is_the_same(cache: DiskAnswerStore) -> None:
    class Pressing(PlainConsole):
        def progress(self, text: str, last: bool = False) -> None:
            if "2/" in text:
                raise KeyboardInterrupt

    for teacher in both():
        with pytest.raises(Interrupted, match="stopped after 2 of 5 answers"):
            label(teacher, prompts(5), cache, console=Pressing(io.StringIO()), concurrency=1)
        assert count_known(teacher, prompts(5), cache) == 2


@pytest.mark.parametrize("late", [False, True])
def test_ctrl_c_while_an_answer_is_put_away_keeps_all_that_had_come(
    cache: DiskAnswerStore, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """They were paid for: those that came with it, and those that came while it was put away."""
    teacher, inner, puts = Sleeping(), cache.put, []

    def put(*of: Any) -> Answer:
        puts.append(of)
        kept = inner(*of) if late or len(puts) != 30 else None
        if len(puts) == 30:
            raise KeyboardInterrupt
        assert kept is not None
        return kept

    monkeypatch.setattr(cache, "put", put)
    with pytest.raises(Interrupted) as stopped:
        label(teacher, prompts(100), cache, concurrency=64)
    kept = count_known(teacher, prompts(100), cache)
    assert stopped.value.message == f"stopped after {kept} of 100 answers; they are kept"
    assert len(teacher.asked) >= kept > 30
    assert kept == teacher.given
