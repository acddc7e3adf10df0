"""Answers are asked for once and kept for good; whatever goes wrong, what was paid for is there tomorrow."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pickle
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distillkit_plugins.checkpoint import Checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core.console import PlainConsole
from distillkit.core.errors import CorruptError, DistillkitError, Interrupted, LimitReached, TeacherError, UsageError
from distillkit.core.records import Answer, Request, Usage
from distillkit.data.tokenizer import Tokenizer, train_bpe
from distillkit.plugins.interfaces import Teacher
from distillkit.teachers.answers.disk import DiskAnswerStore, answer_key, key_fields
from distillkit.teachers.asking.label import count_known, label
from support.paths import TESTS
from support.teachers import ANSWERS, TEXTS, Bomb, Counting, Sleeping, full_answer, plant, prompts


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskAnswerStore]:
    with DiskAnswerStore(tmp_path / "cache") as opened:
        yield opened


# -------------------------------------------------------------------------------------- the cache: what goes in

NASTY = [
    "",
    "plain",
    "\x00 NUL \x00",
    "\U0001f98a\U0001f468\u200d\U0001f469\u200d\U0001f467 漢字 ünï",
    "half a fox \ud83e",
    "the other half \udd8a",
    "lines\r\n\r\n\u2028\x0b\x85",
    '"quotes" \\ {braces} \\ud83e\\udd8a',
    "long " * 50_000,
]


def test_an_answer_survives_into_a_new_process_byte_for_byte(tmp_path: Path) -> None:
    with DiskAnswerStore(tmp_path / "cache") as cache:
        for i, text in enumerate(NASTY):
            cache.put(str(i), {}, full_answer(text))
    code = (
        "import hashlib, pickle, sys; from pathlib import Path\n"
        "from distillkit.teachers.answers.disk import DiskAnswerStore\n"
        f"answers = [DiskAnswerStore(Path({str(tmp_path / 'cache')!r})).get(str(i)) for i in range({len(NASTY)})]\n"
        "print(repr([answer.to_json() for answer in answers]).encode('ascii', 'backslashreplace').decode())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    expected = repr([full_answer(text).to_json() for text in NASTY])
    assert said == expected.encode("ascii", "backslashreplace").decode() + "\n"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(TEXTS, ANSWERS), min_size=1, max_size=5))
def test_any_answer_to_any_prompt_is_read_back_by_whoever_opens_the_cache_next(
    pairs: list[tuple[str, Answer]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kept = {}
        with DiskAnswerStore(Path(folder)) as cache:
            for text, answer in pairs:
                what = key_fields("p", {"model": text}, Request("r", prompt=text))
                cache.put(answer_key(what), what, answer)
                kept[answer_key(what)] = answer
        with DiskAnswerStore(Path(folder)) as cache:
            assert {key: cache.get(key) for key in kept} == kept
            assert len(cache) == len(kept)


def test_what_is_not_in_the_cache_is_none(cache: DiskAnswerStore) -> None:
    assert cache.get("0" * 64) is None
    assert "0" * 64 not in cache
    assert len(cache) == 0


def test_a_later_answer_replaces_an_earlier_one(cache: DiskAnswerStore) -> None:
    for text in ("one", "two"):
        cache.put("key", {}, Answer(text))
    assert cache.get("key") == Answer("two")
    assert len(cache) == 1


# --------------------------------------------------------------------------------------------- the cache: keys

BASE = Request("a", prompt="Once", seed=1)
OTHERS: dict[str, Any] = {
    "prompt": "Once ",
    "max_tokens": 129,
    "temperature": 0.9,
    "top_p": 0.9,
    "stop": (".",),
    "seed": 2,
    "top_logprobs": 1,
    "repeat": 1,
    "schema": {"type": "object"},
}


def key(request: Request = BASE, provider: str = "p", identity: Any = None) -> str:
    return answer_key(key_fields(provider, identity or {"model": "m", "url": "u"}, request))


def test_a_key_changes_with_every_field_of_the_request_but_its_id() -> None:
    assert set(OTHERS) | {"id", "messages"} == set(vars(BASE))
    keys = [key(), *(key(replace(BASE, **{name: value})) for name, value in OTHERS.items())]
    keys += [key(replace(BASE, prompt=None, messages=({"role": "user", "content": "Once"},)))]
    keys += [key(replace(BASE, prompt=None, messages=({"role": "system", "content": "Once"},)))]
    keys += [key(replace(BASE, seed=None)), key(replace(BASE, stop=("", ".")))]
    assert len(set(keys)) == len(keys)
    assert key(replace(BASE, id="another name")) == key()


def test_a_key_changes_with_who_is_asked() -> None:
    keys = {key(), key(provider="q"), key(identity={"model": "m"}), key(identity={"model": "m", "url": "v"})}
    assert len(keys) == 4


def test_a_key_does_not_change_with_how_the_same_is_written() -> None:
    assert key(identity={"url": "u", "model": "m"}) == key()
    assert key(replace(BASE, temperature=1, top_p=1)) == key()  # 1 and 1.0
    turns = [({"role": "user", "content": "Hi"},), ({"content": "Hi", "role": "user"},)]
    one, other = (key(replace(BASE, prompt=None, messages=messages)) for messages in turns)
    assert one == other
    assert key(replace(BASE, stop=["."])) == key(replace(BASE, stop=(".",)))  # type: ignore[arg-type]


def test_keys_never_change_between_versions() -> None:
    """Answers that somebody paid for hang on it; raise `FORMAT` to change it on purpose."""
    assert key() == "2f66c407d2311b9f3baacd88209c3c41d276ddfd5aa1793c39e0b0c2b5d3f246"


# -------------------------------------------------------------------------------------------- the cache: trust


def test_a_pickled_row_is_refused_and_nothing_of_it_runs(tmp_path: Path, cache: DiskAnswerStore) -> None:
    """CVE-2025-69872."""
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    (cache.folder / "bomb.val").write_bytes(bomb)
    plant(cache.folder, key="in row", raw=1, mode=4, value=bomb)
    plant(cache.folder, key="in file", raw=1, mode=4, filename="bomb.val")
    for planted in ("in row", "in file"):
        with pytest.raises(CorruptError, match="not text"):
            cache.get(planted)
    assert not (tmp_path / "ran").exists()
    pickle.loads(bomb).close()  # the bomb is a live one
    assert (tmp_path / "ran").exists()


def test_a_pickled_key_is_refused_and_nothing_of_it_runs(tmp_path: Path, cache: DiskAnswerStore) -> None:
    cache.put("good", {}, Answer("good"))
    plant(cache.folder, key=pickle.dumps(Bomb(tmp_path / "ran")), raw=0, mode=1, value="{}")
    assert cache.get("good") == Answer("good")
    with pytest.raises(CorruptError, match="a pickled key"):
        list(cache._rows)
    assert not (tmp_path / "ran").exists()


def test_a_teacher_is_not_asked_past_a_refused_row(tmp_path: Path, cache: DiskAnswerStore) -> None:
    teacher, (request,) = Counting(), prompts(1)
    planted = answer_key(key_fields(teacher.name, teacher.identity(), request))
    plant(cache.folder, key=planted, raw=1, mode=4, value=pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(CorruptError):
        label(teacher, [request], cache)
    assert not teacher.asked
    assert not (tmp_path / "ran").exists()


def test_a_planted_file_name_neither_reads_nor_deletes_what_is_elsewhere(
    tmp_path: Path, cache: DiskAnswerStore
) -> None:
    (tmp_path / "secret").write_text(json.dumps({"answer": Answer("secret").to_json()}))
    plant(cache.folder, key="read", raw=1, mode=3, filename="../secret")
    plant(cache.folder, key="expired", raw=1, mode=3, filename="../secret", expire_time=1.0)
    with pytest.raises(CorruptError, match="not text"):
        cache.get("read")
    assert cache.get("expired") is None
    cache.put("expired", {}, Answer("asked again"))
    cache.put("read", {}, Answer("asked again"))
    assert (tmp_path / "secret").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"answer": 1}', '{"answer": {"text": "a"}}', "[" * 100_000], ids=range(7)
)
def test_a_damaged_answer_is_said_with_its_place(cache: DiskAnswerStore, text: str) -> None:
    plant(cache.folder, key="key", raw=1, mode=1, value=text)
    with pytest.raises(CorruptError, match="damaged") as error:
        cache.get("key")
    assert str(cache.folder) in str(error.value)


def test_a_database_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache.db").write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(DistillkitError, match="is damaged: file is not a database"):
        DiskAnswerStore(tmp_path)


def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    for name in ("new", "there"):
        with DiskAnswerStore(tmp_path / name):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700


def test_nothing_expires_and_nothing_is_culled(tmp_path: Path) -> None:
    """diskcache would cull from 1 GiB on, and forgets what is set with an expiry."""
    with DiskAnswerStore(tmp_path) as cache:
        for i in range(50):
            cache.put(str(i), {}, Answer("a"))
        with contextlib.closing(sqlite3.connect(tmp_path / "cache.db")) as rows, rows:
            rows.execute("UPDATE Settings SET value = 1 WHERE key = 'size_limit'")
            assert rows.execute("SELECT count(*) FROM Cache WHERE expire_time IS NULL").fetchone() == (50,)
    with DiskAnswerStore(tmp_path) as cache:
        assert (cache._rows.eviction_policy, cache._rows.cull_limit) == ("none", 0)
        cache.put("one more", {}, Answer("a" * 100_000))
        assert len(cache) == 51
        assert all(str(i) in cache for i in range(50))


def test_answers_are_rows_of_one_database_and_no_files_of_their_own(cache: DiskAnswerStore) -> None:
    cache.put("long", {}, Answer("a" * 1_000_000))
    assert {path.name for path in cache.folder.iterdir()} <= {"cache.db", "cache.db-wal", "cache.db-shm"}


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """As somebody whom file modes hold back: root is not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may look into; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


def test_a_folder_that_cannot_be_made_is_said(public: Path) -> None:
    public.chmod(0o555)
    with without_privileges(), pytest.raises(DistillkitError, match="cannot be opened: Permission denied") as error:
        DiskAnswerStore(public / "cache")
    assert "DISTILLKIT_HOME" in error.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of somebody else's")
def test_a_cache_of_somebody_else_is_said(public: Path) -> None:
    with DiskAnswerStore(public / "cache"):
        pass
    with without_privileges(), pytest.raises(DistillkitError, match="cannot be opened: Operation not permitted"):
        DiskAnswerStore(public / "cache")


def test_a_cache_in_the_place_of_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DistillkitError, match="cannot be opened"):
        DiskAnswerStore(tmp_path / "file")


def test_a_database_that_became_read_only_is_said(cache: DiskAnswerStore) -> None:
    cache._rows._sql("PRAGMA query_only = 1")
    with pytest.raises(DistillkitError, match="cannot be written"):
        cache.put("key", {}, Answer("a"))


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


# -------------------------------------------------------------------------------------------------- asking


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


# --------------------------------------------------------------------------------------- the checkpoint teacher

CONTEXT = 32


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(iter([f"Story {i}: the fox ran {'far and ' * (i % 5)}home." for i in range(200)]), 280)


def save_student(folder: Path, tokenizer: Tokenizer, seed: int = 0) -> Path:
    """A student whose random weights are large enough that it prefers some tokens over others."""
    import mlx.core as mx
    from distillkit_plugins.gpt import Gpt

    from distillkit.student import checkpoint
    from distillkit.student.training.optimizers import flatten

    options = {"layers": 2, "heads": 2, "width": 16, "context": CONTEXT}
    model = Gpt(Gpt.Options(**options)).build(tokenizer.vocab_size)
    rng = np.random.default_rng(seed)
    weights = {
        name: mx.array(rng.normal(0, 0.3, value.shape).astype(np.float32))
        for name, value in flatten(model.parameters()).items()
    }
    student = {"arch": "gpt", "options": options, "vocab_size": tokenizer.vocab_size}
    checkpoint.save(folder, weights, None, student, {"step": 0})
    tokenizer.save(folder / "tokenizer")
    return folder


def teacher_of(folder: Path) -> Checkpoint:
    return Checkpoint(Checkpoint.Options(model=str(folder)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return save_student(tmp_path_factory.mktemp("student") / "one", tokenizer)


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Checkpoint:
    return teacher_of(folder)


def stories(count: int, **same: Any) -> list[Request]:
    """Prompts of different lengths."""
    texts = [f"Story {i}:{' the fox ran' * (i % 4)}" for i in range(count)]
    return [Request(str(i), prompt=text, seed=100 + i, **same) for i, text in enumerate(texts)]


def said(teacher: Checkpoint, requests: Sequence[Request]) -> dict[str, Answer]:
    return {request.id: answer for request, answer in teacher.answers(requests)}


def test_an_answer_depends_on_its_seed_and_on_nothing_before_it(folder: Path, teacher: Checkpoint) -> None:
    (request, *_) = stories(1, max_tokens=16)
    assert teacher.answer(request) == teacher.answer(request) == teacher_of(folder).answer(request)
    others = {teacher.answer(replace(request, seed=seed)).text for seed in range(8)}
    assert len(others) == 8
    repeats = {teacher.answer(replace(request, repeat=repeat)).text for repeat in range(4)}
    assert len(repeats) == 4
    greedy = {teacher.answer(replace(request, seed=seed, temperature=0.0)).text for seed in range(4)}
    assert len(greedy) == 1


BEYOND = pytest.param(60, id="beyond the context", marks=pytest.mark.slow)


@pytest.mark.parametrize("max_tokens", [pytest.param(8, id="within the context"), BEYOND])
def test_an_answer_does_not_depend_on_the_batch_that_it_is_in(teacher: Checkpoint, max_tokens: int) -> None:
    requests = stories(8, max_tokens=max_tokens)
    alone = {request.id: teacher.answer(request) for request in requests}
    assert said(teacher, requests) == alone
    assert said(teacher, requests[::-1]) == alone
    assert said(teacher, requests[1::5]) == {request.id: alone[request.id] for request in requests[1::5]}


def test_each_of_many_requests_is_answered_as_it_was_asked(teacher: Checkpoint) -> None:
    base = stories(6, max_tokens=8)
    mixed = [
        replace(request, id=f"{request.id}/{i}", **change)
        for request in base
        for i, change in enumerate([{}, {"temperature": 0.0}, {"max_tokens": 3}, {"top_p": 0.5}])
    ]
    answers = said(teacher, mixed)
    assert len(answers) == len(mixed) == 24
    assert all(answers[request.id] == teacher.answer(request) for request in mixed)


def test_an_answer_says_why_it_ended_and_how_long_it_is(teacher: Checkpoint) -> None:
    requests = [replace(stories(1)[0], id=str(i), seed=i, max_tokens=40) for i in range(64)]
    answers = said(teacher, requests).values()
    assert {answer.finish for answer in answers} == {"stop", "length"}
    for answer in answers:
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(teacher.tokenizer.encode("Story 0:"))
        assert (answer.usage.completion_tokens == 40) >= (answer.finish == "length")
        assert answer.usage.completion_tokens <= 40
        assert "<|endoftext|>" not in answer.text
        assert answer.model == teacher.options.model


def test_an_answer_ends_before_the_first_stop_word(teacher: Checkpoint) -> None:
    (request,) = stories(1, max_tokens=24)
    whole = teacher.answer(request).text
    word, late = whole[6:9], whole[12:14]
    for stop in ((word,), (late, word), ("not in it", word)):
        answer = teacher.answer(replace(request, stop=stop))
        assert answer.text == whole[: min(whole.find(w) for w in stop if w in whole)]
        assert answer.finish == "stop"
    for stop in (("not in it",), ("",)):
        assert teacher.answer(replace(request, stop=stop)).text == whole


def test_messages_are_refused_before_anything_is_written(teacher: Checkpoint, cache: DiskAnswerStore) -> None:
    chat = Request("chat", messages=({"role": "user", "content": "Hi"},))
    with pytest.raises(UsageError, match="continues prompts, but was given messages"):
        label(teacher, [*stories(3, max_tokens=4), chat], cache)
    assert len(cache) == 0


def test_an_empty_prompt_begins_a_document(teacher: Checkpoint) -> None:
    answer = teacher.answer(Request("r", prompt="", max_tokens=4, seed=1))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 0


def test_an_identity_is_of_weights_and_not_of_names(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    same, other = save_student(tmp_path / "same", tokenizer), save_student(tmp_path / "other", tokenizer, 1)
    wider = save_student(tmp_path / "wider", train_bpe(iter(["other words, far off"] * 9), 270), 0)
    identities = [teacher_of(path).identity() for path in (folder, same, other, wider)]
    assert identities[0] == identities[1]
    assert len({json.dumps(identity) for identity in identities}) == 3
    assert str(tmp_path) not in json.dumps(identities)


def test_answers_of_a_student_that_was_moved_are_still_known(
    folder: Path, tmp_path: Path, tokenizer: Tokenizer, cache: DiskAnswerStore
) -> None:
    requests = stories(5, max_tokens=4)
    label(teacher_of(folder), requests, cache)
    assert count_known(teacher_of(save_student(tmp_path / "moved", tokenizer)), requests, cache) == 5
    assert count_known(teacher_of(save_student(tmp_path / "other", tokenizer, 1)), requests, cache) == 0


def test_answers_are_kept_under_the_weights_that_gave_them(
    tmp_path: Path, tokenizer: Tokenizer, cache: DiskAnswerStore
) -> None:
    """Another process may train the teacher, and save, while it is asked."""
    trained = save_student(tmp_path / "trained", tokenizer)
    early, other = teacher_of(trained), teacher_of(trained)
    before = early.identity()
    label(early, stories(2, max_tokens=4), cache)
    save_student(trained, tokenizer, 1)
    late = stories(5, max_tokens=4)
    label(early, late, cache)
    assert early.identity() == before != other.identity()
    assert count_known(other, late, cache) == 0


def test_weights_that_change_before_they_are_loaded_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, cache: DiskAnswerStore
) -> None:
    trained = save_student(tmp_path / "trained", tokenizer)
    teacher = teacher_of(trained)
    teacher.identity()
    save_student(trained, tokenizer, 1)
    with pytest.raises(UsageError, match="changed during this run"):
        label(teacher, stories(2, max_tokens=4), cache)
    assert len(cache) == 0


def test_its_logits_are_those_of_its_network(teacher: Checkpoint) -> None:
    import mlx.core as mx

    tokens = mx.array([teacher.tokenizer.encode("the fox ran")[:3], [1, 2, 3]])
    network = teacher.trained.model
    logits = np.array(teacher.logits(tokens))
    assert logits.shape == (2, 3, teacher.tokenizer.vocab_size)
    assert np.array_equal(logits, np.array(network(tokens) @ network.tokens.weight.T))


def test_it_writes_what_its_logits_say(teacher: Checkpoint) -> None:
    """Greedily, token by token, over the whole text again each time."""
    import mlx.core as mx

    (request,) = stories(1, max_tokens=12, temperature=0.0)
    tokenizer = teacher.tokenizer
    begun = [tokenizer.end_of_text, *tokenizer.encode(request.prompt or "")]
    tokens = list(begun)
    while len(tokens) - len(begun) < 12:
        best = int(np.array(teacher.logits(mx.array([tokens])))[0, -1].argmax())
        if best == tokenizer.end_of_text:
            break
        tokens.append(best)
    assert teacher.answer(request).text == tokenizer.decode(tokens[len(begun) :])


def test_a_student_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="no student 'no-such-student'"):
        teacher_of(Path("no-such-student")).identity()


def test_damaged_weights_do_not_teach(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = save_student(tmp_path / "damaged", tokenizer) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptError, match="damaged"):
        teacher_of(tmp_path / "damaged").answer(stories(1)[0])
