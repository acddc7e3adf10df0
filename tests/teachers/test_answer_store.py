"""What the cache promises beyond a place to put answers: quick to read, shared by processes, and kept in order."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core import processes
from distillkit.core.console import Console
from distillkit.core.errors import CorruptError, DistillkitError, UsageError
from distillkit.core.packing import pack, unpack
from distillkit.core.records import Answer, Request, Token, Usage
from distillkit.teachers.answers import archive, explain, maintenance
from distillkit.teachers.answers.disk import WAL_PAGES, DiskAnswerStore, answer_key, key_fields
from distillkit.teachers.answers.leases import LEASE_SECONDS, Leases
from distillkit.teachers.asking.label import count_known, label
from support.cli_process import program
from support.paths import TESTS
from support.small_recipe import small
from support.teachers import ANSWERS, Bomb, Counting, full_answer, plant, prompts


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskAnswerStore]:
    with DiskAnswerStore(tmp_path / "cache") as opened:
        yield opened


def keep(cache: DiskAnswerStore, answer: Answer, i: int = 0, provider: str = "p", **identity: Any) -> str:
    """Put an answer under the key that belongs to it."""
    what = key_fields(provider, {"model": "m", **identity}, Request("r", prompt=f"prompt {i}"))
    cache.put(answer_key(what), what, answer)
    return answer_key(what)


def stored(cache: DiskAnswerStore, key: str) -> Any:
    """The text of a row, as it lies there."""
    return cache._rows._sql("SELECT value FROM Cache WHERE key = ?", (key,)).fetchone()[0]


# ----------------------------------------------------------------------------------------------------- reading


@settings(deadline=None, max_examples=100)
@given(ANSWERS)
def test_an_answer_comes_back_from_json_as_it_was_looked_at_or_not(answer: Answer) -> None:
    text = json.dumps(answer.to_json())
    assert Answer.from_json(json.loads(text)) == answer
    untouched = Answer.from_json(json.loads(text))
    assert json.dumps(untouched.to_json()) == text  # not unpacked, and packed again, in between
    assert hash(untouched.tokens) == hash(answer.tokens)
    assert replace(Answer.from_json(json.loads(text)), finish="cut").tokens == answer.tokens
    assert pickle.loads(pickle.dumps(Answer.from_json(json.loads(text)))) == answer


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(), min_size=1, max_size=30), st.integers(1, 300))
def test_packing_rounds_nothing(numbers: list[float], pieces: int) -> None:
    rows = [(str(i % pieces).encode(), number, ((b"", number), (b"x" * i, 0.0))) for i, number in enumerate(numbers)]
    assert repr(list(unpack(pack(rows)))) == repr(rows)  # by repr: a nan is no nan's equal, and -0.0 is 0.0's


def test_more_pieces_than_two_bytes_can_count_are_packed() -> None:
    rows = [(i.to_bytes(3, "big"), -0.5, ()) for i in range(70_000)]
    assert list(unpack(pack(rows))) == rows


def test_log_probabilities_in_singles_take_half_the_room_of_doubles() -> None:
    single, double = -1.25, -1.3
    sizes = [len(pack([(b"a", value, ())] * 300)["logprobs"]) for value in (single, double)]
    assert sizes[1] / sizes[0] > 1.9


def test_rows_as_the_first_version_kept_them_are_still_read(cache: DiskAnswerStore) -> None:
    answer = full_answer("old")
    rows = [
        [token.bytes.decode("latin-1"), token.logprob, [[piece.decode("latin-1"), value] for piece, value in token.top]]
        for token in answer.tokens
    ]
    old = {"asked": {}, "answer": {**answer.to_json(), "tokens": rows}, "time": 1.5}
    plant(cache.folder, key="old", raw=1, mode=1, value=json.dumps(old))
    assert cache.get("old") == answer


def test_a_row_whose_bit_was_flipped_is_never_believed(cache: DiskAnswerStore) -> None:
    what = key_fields("p", {}, Request("r", prompt="a fox"))
    key = answer_key(what)
    cache.put(key, what, Answer("met a hen.", finish="stop"))
    ((value,),) = cache._rows._sql("SELECT CAST(value AS BLOB) FROM Cache WHERE key = ?", (key,)).fetchall()
    chance, seal = random.Random(3), value.rindex(b', "sha256": ')
    for at in range(seal):  # behind it stands the checksum itself: what it is of is whole
        spoilt = bytearray(value)
        spoilt[at] ^= 1 << chance.randrange(8)
        cache._rows._sql("UPDATE Cache SET value = CAST(? AS TEXT) WHERE key = ?", (bytes(spoilt), key))
        with pytest.raises(CorruptError):
            cache.get(key)
        with pytest.raises(CorruptError):
            maintenance.validate_row(key, spoilt.decode("utf-8", "replace"))
    assert json.loads(value)["sha256"] == hashlib.sha256(value[:seal] + b"}").hexdigest()


def test_a_row_keeps_its_checksum_wherever_it_is_taken(cache: DiskAnswerStore, tmp_path: Path) -> None:
    what = key_fields("p", {}, Request("r", prompt="ünï \ud83e"))
    cache.put(answer_key(what), what, Answer("half an emoji: \ud83e", usage=Usage(1, 2)))
    archive.export_answers(cache, tmp_path / "a.jsonl")
    with DiskAnswerStore(tmp_path / "other") as other:
        archive.import_answers(other, tmp_path / "a.jsonl")
        assert [row.text for row in other.rows()] == [row.text for row in cache.rows()]
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(text.replace("half an", "half my"))
    with (
        DiskAnswerStore(tmp_path / "third") as third,
        pytest.raises(CorruptError, match=r"line 2 is not a valid row: .*checksum"),
    ):
        archive.import_answers(third, tmp_path / "a.jsonl")


def test_a_database_that_is_none_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "cache.db").write_bytes(b"x" * 8192)
    with pytest.raises(CorruptError, match="is damaged: file is not a database") as error:
        DiskAnswerStore(tmp_path)
    assert "cache import" in error.value.hint


def test_rows_are_found_by_when_they_were_written(cache: DiskAnswerStore) -> None:
    began = time.time()
    cache.put("old", {}, Answer("a"))
    cache._rows._sql("UPDATE Cache SET store_time = ? WHERE key = 'old'", (began - 9,))
    cache.put("new", {}, Answer("b"))
    assert cache.since(["old", "new", "none"], began) == ["new"]


@pytest.mark.parametrize(
    "fields",
    [
        {"pieces": "!"},
        {"pieces": "YQ"},
        {"lengths": ""},
        {"lengths": "BAQ=="},
        {"ids": "BCQ=="},
        {"alternatives": "B//8="},
        {"logprobs": "Z"},
        {"logprobs": "fAAA="},
    ],
    ids=str,
)
def test_tokens_that_are_damaged_are_said_when_they_are_looked_at(
    cache: DiskAnswerStore, fields: dict[str, str]
) -> None:
    packed = pack([(b"ab", -1.25, ((b"c", -2.5),))])
    row = {"answer": {**Answer("a").to_json(), "tokens": {**packed, **fields}}}
    plant(cache.folder, key="key", raw=1, mode=1, value=json.dumps(row))
    answer = cache.get("key")
    assert answer is not None
    assert answer.text == "a"
    with pytest.raises(CorruptError, match="tokens of an answer are damaged"):
        _ = answer.tokens


def test_an_answer_has_no_other_attributes_than_its_own() -> None:
    with pytest.raises(AttributeError, match="no attribute 'token'"):
        _ = Answer("a").token  # type: ignore[attr-defined]


def test_many_keys_are_read_as_one_by_one(cache: DiskAnswerStore) -> None:
    keys = [keep(cache, Answer(f"answer {i}"), i) for i in range(1234)]
    several = cache.get_many([*keys, "no such key", keys[0]])
    assert several == {key: cache.get(key) for key in keys}
    assert cache.get_many([]) == {}


def test_text_that_is_none_is_said_with_what_to_do(cache: DiskAnswerStore) -> None:
    cache._rows._sql("INSERT INTO Cache (key, raw, mode, value) VALUES ('key', 1, 1, CAST(x'7b80ff' AS TEXT))")
    with pytest.raises(CorruptError, match="damaged: UnicodeDecodeError") as error:
        cache.get("key")
    assert "verify --repair" in error.value.hint


def test_answers_with_log_probabilities_are_read_almost_as_fast_as_text(tmp_path: Path) -> None:
    """The figure itself is `benchmarks/cache.py`'s. Here a bound that no busy machine breaks: rows of 2,016
    log-probabilities, as the first version kept them, took some 3 ms to read; reading must not parse them."""
    rng = random.Random(0)
    alternatives = [[(b"word %d" % rng.randrange(3000), rng.random() * -9) for _ in range(20)] for _ in range(96)]
    tokens = tuple(Token(*top[0], tuple(top)) for top in alternatives)
    answer = Answer("a story", tokens, usage=Usage(32, 96))
    with DiskAnswerStore(tmp_path) as cache:
        with cache._rows.transact():
            keys = [keep(cache, answer, i) for i in range(300)]
        began = time.process_time()
        assert len(cache.get_many(keys)) == 300
        reading = time.process_time() - began
        began = time.process_time()
        for key in keys[:30]:
            row = json.loads(stored(cache, key))
            json.loads(json.dumps([[t.bytes.decode(), t.logprob, [[p.decode(), v] for p, v in t.top]] for t in tokens]))
            assert row["answer"]["text"] == "a story"
        parsing = 10 * (time.process_time() - began)
    assert reading < parsing / 3


# ------------------------------------------------------------------------------------------------------ claims


def test_a_claim_is_of_one_owner_until_it_is_freed(tmp_path: Path) -> None:
    with DiskAnswerStore(tmp_path) as one, DiskAnswerStore(tmp_path) as two:
        assert one.claim(["a", "b"]) == {"a", "b"}
        assert two.claim(["b", "c"]) == {"c"}
        assert one.claim(["a", "b", "c"]) == {"a", "b"}
        one.release()
        assert two.claim(["a", "b", "c"]) == {"a", "b", "c"}
        assert one.claim(["a"]) == set()
    with DiskAnswerStore(tmp_path) as three:
        assert three.claim(["a", "b", "c"]) == {"a", "b", "c"}


def test_what_is_freed_while_others_are_claimed_is_for_the_next_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Leases._owners

    with DiskAnswerStore(tmp_path) as one, DiskAnswerStore(tmp_path) as two:

        def then_freed(self: Leases, keys: list[str]) -> dict[str, str]:
            found = taken(self, keys)
            two.release()
            return found

        assert two.claim(["a"]) == {"a"}
        monkeypatch.setattr(Leases, "_owners", then_freed)
        assert one.claim(["a", "b"]) == {"b"}
        assert one.claim(["a", "b"]) == {"a", "b"}
        assert two.claim(["a", "b"]) == set()


def test_claims_are_no_answers(cache: DiskAnswerStore) -> None:
    assert cache.claim(map(str, range(1200))) == {str(i) for i in range(1200)}
    assert len(cache) == 0
    assert cache.get("1") is None
    assert cache._rows.check() == []


def test_an_owner_that_lives_keeps_its_claims_beyond_the_lease(tmp_path: Path) -> None:
    with DiskAnswerStore(tmp_path, lease=1.0) as one, DiskAnswerStore(tmp_path, lease=1.0) as two:
        assert one.claim(["a"])
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert two.claim(["a"]) == set()
            time.sleep(0.05)


CLAIMER = """
import sys, time
from pathlib import Path
from distillkit.teachers.answers.disk import DiskAnswerStore
with DiskAnswerStore(Path({folder!r}), lease={lease}) as cache:
    print(*sorted(cache.claim(["a", "b"])), flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def claimer(folder: Path, lease: float = 30.0) -> Iterator[subprocess.Popen[str]]:
    """Another process, which claims a and b, and sleeps."""
    code = CLAIMER.format(folder=str(folder), lease=lease)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "a b\n"
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process is known by its beats alone")
def test_what_a_killed_process_had_claimed_is_free_at_once(tmp_path: Path) -> None:
    with claimer(tmp_path) as child, DiskAnswerStore(tmp_path) as cache:
        assert cache.claim(["a", "c"]) == {"c"}
        child.kill()
        child.wait()
        assert cache.claim(["a", "b"]) == {"a", "b"}


def test_what_a_process_that_stopped_beating_had_claimed_is_free_after_the_lease(tmp_path: Path) -> None:
    with claimer(tmp_path, lease=0.5) as child, DiskAnswerStore(tmp_path, lease=0.5) as cache:
        child.send_signal(signal.SIGSTOP)
        assert cache.claim(["a"]) == set()
        until = time.monotonic() + 20
        while not cache.claim(["a"]):
            assert time.monotonic() < until
            time.sleep(0.1)
        child.send_signal(signal.SIGCONT)


def test_an_owner_of_another_machine_is_judged_by_its_beats(tmp_path: Path) -> None:
    """Its process numbers mean nothing here."""
    with claimer(tmp_path) as child, DiskAnswerStore(tmp_path, lease=0.5) as cache:
        cache._rows._sql("UPDATE Owners SET place = 'elsewhere'")
        child.kill()
        child.wait()
        assert cache.claim(["a"]) == set()
        time.sleep(0.6)
        assert cache.claim(["a"]) == {"a"}


def test_a_process_number_that_was_used_again_is_nobodys_claim(tmp_path: Path) -> None:
    with claimer(tmp_path), DiskAnswerStore(tmp_path) as cache:
        cache._rows._sql("UPDATE Owners SET born = '1'")
        assert cache.claim(["a"]) == {"a"}


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps")
def test_where_there_is_no_proc_a_number_that_was_used_again_is_known_by_ps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STAT", "/nowhere/{}")
    where, pid, since = processes.current_process()
    assert since
    assert not processes.has_ended(where, pid, since)
    assert processes.has_ended(where, pid, "Thu Jan  1 00:00:00 1970")
    monkeypatch.setenv("PATH", "")  # nobody says when it began
    assert processes.current_process() == (where, pid, "")
    assert not processes.has_ended(where, pid, since)
    assert not processes.has_ended(where, pid, "")


# ------------------------------------------------------------------------------------------ two that label at once

LABELLER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from support.teachers import ANSWERS, Bomb, Counting, full_answer, plant, prompts
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking.label import label

class Telling(Counting):
    def answer(self, request):
        print("asking", request.prompt, flush=True)
        time.sleep({pause})
        return super().answer(request)

print("ready", flush=True)
sys.stdin.readline()
with DiskAnswerStore(Path({folder!r}), lease=5.0) as cache:
    done = label(Telling(), prompts({count}), cache)
    assert [answer.text for answer in done.answers] == [f"to prompt {{i}}" for i in range({count})]
    print("done", done.asked, done.cached, flush=True)
"""


def labellers(folder: Path, count: int, pause: float, how_many: int = 2) -> list[subprocess.Popen[str]]:
    """Processes that are ready to label the same prompts."""
    code = LABELLER.format(tests=str(TESTS), folder=str(folder), count=count, pause=pause)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(how_many)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    return children


@pytest.mark.slow
def test_two_processes_ask_each_prompt_once(tmp_path: Path) -> None:
    children = labellers(tmp_path, 60, 0.005)
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    said = [child.communicate(timeout=60)[0].splitlines() for child in children]
    prompts_asked = [line for lines in said for line in lines if line.startswith("asking")]
    assert sorted(prompts_asked) == sorted(f"asking prompt {i}" for i in range(60))
    counts = [lines[-1].split() for lines in said]
    assert sum(int(asked_) for _, asked_, _ in counts) == 60
    assert sum(int(cached) for *_, cached in counts) == 60


@pytest.mark.slow
def test_when_one_is_killed_the_other_asks_for_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    first, second = labellers(tmp_path, 40, 0.02)
    assert first.stdin is not None
    assert first.stdout is not None
    first.stdin.write("go\n")
    first.stdin.flush()
    begun = [first.stdout.readline() for _ in range(10)]
    assert second.stdin is not None
    second.stdin.write("go\n")
    second.stdin.flush()
    begun += [first.stdout.readline() for _ in range(5)]
    first.kill()
    begun += first.communicate()[0].splitlines(keepends=True)
    said = second.communicate(timeout=60)[0].splitlines(keepends=True)
    again = set(begun) & set(said)
    assert len(again) <= 1  # the one that was in flight
    assert set(begun) | {line for line in said if line.startswith("asking")} == {
        f"asking prompt {i}\n" for i in range(40)
    }
    with DiskAnswerStore(tmp_path) as cache:
        assert count_known(Counting(), prompts(40), cache) == 40
        assert cache._rows.check() == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments_cost_no_more_than_what_was_in_flight(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    asked_for: list[str] = []
    for kill in (True, True, True, False):
        children = labellers(tmp_path, 50, 0.01)
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        if kill:
            time.sleep(rng.random() * 0.5)
            for child in children:
                child.send_signal(signal.SIGKILL)
        said = [child.communicate(timeout=60)[0].splitlines() for child in children]
        asked_for += [line for lines in said for line in lines if line.startswith("asking")]
    assert set(asked_for) == {f"asking prompt {i}" for i in range(50)}
    assert len(asked_for) <= 50 + 3  # of two processes only one is asking
    with DiskAnswerStore(tmp_path) as cache:
        assert count_known(Counting(), prompts(50), cache) == 50
        assert cache._rows.check() == []


def test_two_that_wait_for_each_other_free_what_they_have_asked_for(tmp_path: Path) -> None:
    """One holds a and waits for b, the other holds b and waits for a."""
    with DiskAnswerStore(tmp_path) as one, DiskAnswerStore(tmp_path) as two:
        requests = prompts(4)
        mine = [answer_key(key_fields("counting", Counting().identity(), request)) for request in requests[:2]]
        assert two.claim(mine) == set(mine)
        teacher = Counting()

        class Freeing(Console):
            """Looks at what is free when it is said that one waits."""

            def progress(self, text: str, last: bool = False) -> None:
                if "waiting" in text:
                    others = answer_key(key_fields("counting", teacher.identity(), requests[3]))
                    free.append(two.claim([others]) == {others})
                    two.release()

        free: list[bool] = []
        assert label(teacher, requests, one, console=Freeing()).asked == 4
        assert free == [True]


def test_a_thread_empties_the_log_so_that_whoever_writes_need_not(cache: DiskAnswerStore) -> None:
    database = cache.folder / "cache.db"
    often = "PRAGMA wal_autocheckpoint"
    with cache.background_checkpoints():
        [[pages]] = cache._rows._sql(often).fetchall()
        for i in range(50):
            keep(cache, Answer("x" * 40_000), i)  # 2 MB, which SQLite alone would leave in the log
        until = time.monotonic() + 30
        while database.stat().st_size < 2_000_000 and time.monotonic() < until:
            time.sleep(0.05)
    assert database.stat().st_size > 2_000_000
    assert pages > WAL_PAGES
    assert len(cache) == 50
    assert cache._rows._sql(often).fetchall() == [(WAL_PAGES,)]
    assert "log" not in {thread.name for thread in threading.enumerate()}


def test_a_failure_frees_what_was_claimed(tmp_path: Path) -> None:
    with DiskAnswerStore(tmp_path) as one, DiskAnswerStore(tmp_path) as two:
        with pytest.raises(DistillkitError, match="no such luck"):
            label(Counting(fails_on="prompt 2"), prompts(5), one)
        began = time.monotonic()
        assert label(Counting(), prompts(5), two).asked == 3
        assert time.monotonic() - began < LEASE_SECONDS / 2  # it waits for no lease to end


# ---------------------------------------------------------------------------------------------------- upkeep

BAD = {
    "not JSON": "{",
    "no row": "[]",
    "nothing asked": json.dumps({"answer": Answer("a").to_json(), "time": 1}),
    "half an answer": json.dumps({"asked": {}, "answer": {"text": "a"}, "time": 1}),
    "another key's": json.dumps({"asked": {}, "answer": Answer("a").to_json(), "time": 1}),
    "no time": json.dumps({"asked": {}, "answer": Answer("a").to_json(), "time": "now"}),
    "never": json.dumps({"asked": {}, "answer": Answer("a").to_json(), "time": float("nan")}),
    "text that is none": json.dumps({"asked": {}, "answer": {**Answer("a").to_json(), "text": 7}, "time": 1}),
    "deep": "[" * 100_000,
}


def spoil(cache: DiskAnswerStore, ran: Path) -> list[str]:
    """Every kind of damaged row, code too; their keys."""
    for key, text in BAD.items():
        plant(cache.folder, key=key, raw=1, mode=1, value=text)
    plant(cache.folder, key="pickled", raw=1, mode=4, value=pickle.dumps(Bomb(ran)))
    plant(cache.folder, key="bytes", raw=1, mode=1, value=b"{}")
    plant(cache.folder, key=b"\x80code", raw=0, mode=1, value="{}")
    cache._rows._sql("INSERT INTO Cache (key, raw, mode, value) VALUES ('no text', 1, 1, CAST(x'80ff' AS TEXT))")
    packed = {**Answer("a").to_json(), "tokens": {**pack([(b"a", -1.0, ())]), "ids": "BCQ=="}}
    what = key_fields("p", {}, Request("r", prompt="packed badly"))
    cache.add([(answer_key(what), {"asked": what, "answer": packed, "time": 1})])
    return [*BAD, "pickled", "bytes", "\\x80code", "no text", answer_key(what)]


def test_verify_names_what_is_damaged_and_repair_drops_nothing_else(cache: DiskAnswerStore, tmp_path: Path) -> None:
    good = [keep(cache, full_answer(f"answer {i}"), i) for i in range(3)]
    refused = key_fields("p", {}, Request("r", prompt="refused"))
    cache.add([(answer_key(refused), {"asked": refused, "answer": Answer("", finish="refused").to_json(), "time": 1})])
    assert maintenance.verify(cache)["damaged"] == []
    bad = spoil(cache, tmp_path / "ran")
    found = maintenance.verify(cache)
    assert [row["key"] for row in found["damaged"]] == bad
    assert all(row["fault"] for row in found["damaged"])
    assert (found["rows"], found["dropped"]) == (4 + len(bad), 0)
    assert maintenance.verify(cache, repair=True)["dropped"] == len(bad)
    assert maintenance.verify(cache)["rows"] == len(cache) == 4
    assert len(cache.get_many(good)) == 3
    assert not (tmp_path / "ran").exists()
    assert cache._rows.check() == []


def test_a_row_that_was_written_again_is_not_dropped(cache: DiskAnswerStore) -> None:
    key = keep(cache, Answer("one"))
    rows = list(cache.rows())
    keep(cache, Answer("two"))
    assert cache.drop(rows) == 0
    assert cache.get(key) == Answer("two")


def test_stats_count_by_provider_and_model(cache: DiskAnswerStore, tmp_path: Path) -> None:
    usage = Usage(10, 5)
    keep(cache, Answer("a", usage=usage), 0)
    keep(cache, Answer("a", usage=usage, finish="length"), 1)
    keep(cache, Answer("a", model="by itself"), 2, provider="q", model=None)
    refused = key_fields("p", {"model": "m"}, Request("r", prompt="refused"))
    held = key_fields("p", {"model": "m"}, Request("r", prompt="held back"))
    cache.add([(answer_key(held), {"asked": held, "answer": Answer("", finish="refused").to_json(), "time": 6.0})])
    probe = {"provider": "p", "probe": True}
    cache.add(
        [(answer_key(refused), {"asked": refused, "answer": Answer("", finish="refused").to_json(), "time": 5.0})]
    )
    cache.add([(answer_key(probe), {"asked": probe, "answer": Answer("").to_json(), "time": 5.0})])
    bad = len(spoil(cache, tmp_path / "ran")) - 5  # of which some say who was asked
    found = maintenance.stats(cache)
    rows = {(row["provider"], row["model"]): row for row in found["by"]}
    row = rows["p", "m"]
    assert (row["answers"], row["refused"], row["truncated"]) == (2, 2, 1)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (20, 10)
    assert row["oldest"] == "1970-01-01T00:00:05Z"
    assert row["newest"] > "2020"
    assert rows["q", "by itself"]["answers"] == 1
    assert rows["p", ""]["other"] == 1
    assert found["damaged"] >= bad
    assert found["bytes"] > 100


UNCOUNTED: dict[str, dict[str, Any]] = {
    "later than all dates": {"time": 1e20},
    "earlier than all dates": {"time": -1e15},
    "a time without end": {"time": 10**400},
    "words for tokens": {"usage": {"prompt_tokens": "x", "completion_tokens": 1}},
    "half a token": {"usage": {"prompt_tokens": 1, "completion_tokens": 0.5}},
    "fewer tokens than none": {"usage": {"prompt_tokens": -1, "completion_tokens": 1}},
    "endlessly many tokens": {"usage": {"prompt_tokens": float("inf"), "completion_tokens": 1}},
}


@pytest.mark.parametrize("wrong", UNCOUNTED)
def test_a_row_whose_date_or_cost_cannot_be_counted_is_named_and_not_let_in(
    tmp_path: Path, cache: DiskAnswerStore, wrong: str
) -> None:
    how = {"time": 1, "usage": None, **UNCOUNTED[wrong]}
    what = key_fields("p", {"model": "m"}, Request("r", prompt="a"))
    row = {"asked": what, "answer": {**Answer("a").to_json(), "usage": how["usage"]}, "time": how["time"]}
    header, *_ = exported(tmp_path, 1)
    file = tmp_path / "foreign.jsonl"
    file.write_bytes(header + json.dumps({"key": answer_key(what), **row}).encode() + b"\n")
    with pytest.raises(CorruptError, match="line 2 is not a valid row"):
        archive.import_answers(cache, file)
    cache.add([(answer_key(what), row)])  # as versions before this one did
    assert [bad["key"] for bad in maintenance.verify(cache)["damaged"]] == [answer_key(what)]
    assert (maintenance.stats(cache)["damaged"], maintenance.stats(cache)["answers"]) == (1, 0)


def test_tokens_may_be_counted_in_whole_floats(cache: DiskAnswerStore) -> None:
    keep(cache, Answer("a", usage=Usage(3.0, 4)))  # type: ignore[arg-type]
    assert maintenance.verify(cache)["damaged"] == []
    assert maintenance.stats(cache)["prompt_tokens"] == 3


def test_prune_drops_what_all_its_conditions_name(cache: DiskAnswerStore) -> None:
    keep(cache, Answer("a"), 0)
    keep(cache, Answer("a", model="m-2026"), 1)
    keep(cache, Answer("a"), 2, provider="q")
    what = key_fields("p", {"model": "m"}, Request("r", prompt="long ago"))
    cache.add([(answer_key(what), {"asked": what, "answer": Answer("a").to_json(), "time": time.time() - 40 * 86_400})])

    def many(**conditions: str) -> int:
        return len(list(maintenance.select_rows(cache, **conditions)))

    assert (many(provider="p"), many(provider="q"), many(model="m"), many(model="m-2026")) == (3, 1, 4, 1)
    assert many(older_than="30d") == many(older_than="1w", provider="p") == 1
    assert many(older_than="30d", provider="q") == 0
    assert cache.drop(maintenance.select_rows(cache, older_than="6w")) == 0
    assert cache.drop(list(maintenance.select_rows(cache, older_than="960h"))) == 1
    assert len(cache) == 3
    with pytest.raises(UsageError, match="no rows were selected for deletion"):
        many()
    for age in ("30", "d", "30 d", "-1d", "3m"):
        with pytest.raises(UsageError, match="is not an age"):
            many(older_than=age)


# --------------------------------------------------------------------------------------------------- archives

ENDINGS = [".jsonl", ".jsonl.gz", pytest.param(".jsonl.zst", marks=pytest.mark.peer)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_answers_travel_in_a_file_and_nothing_is_overwritten(tmp_path: Path, ending: str, peer: Any) -> None:
    if ending.endswith("zst"):
        peer("zstandard")
    file = tmp_path / f"answers{ending}"
    with DiskAnswerStore(tmp_path / "from") as one, DiskAnswerStore(tmp_path / "to") as two:
        kept = {key: one.get(key) for key in [keep(one, full_answer(f"answer {i}"), i) for i in range(5)]}
        refused = key_fields("p", {"model": "m"}, Request("r", prompt="refused"))
        one.add(
            [(answer_key(refused), {"asked": refused, "answer": Answer("", finish="refused").to_json(), "time": 1})]
        )
        spoil(one, tmp_path / "ran")
        before = {row.key: row.text for row in one.rows() if row.key in kept}
        header = archive.export_answers(one, file, "CC0")
        assert (header["rows"], header["left_out"], header["licence"]) == (6, len(BAD) + 5, "CC0")
        assert header["sources"] == [
            {"provider": "p", "model": "m", "kind": "answer", "rows": 5},
            {"provider": "p", "model": "m", "kind": "refused", "rows": 1},
        ]
        mine = keep(two, Answer("mine, and first"), 0)
        found = archive.import_answers(two, file)
        assert (found["rows"], found["new"], found["known"]) == (6, 5, 1)
        assert two.get(mine) == Answer("mine, and first")
        assert {key: two.get(key) for key in kept if key != mine} == {k: v for k, v in kept.items() if k != mine}
        assert {
            row.key: row.text for row in two.rows() if row.key in kept and row.key != mine
        }.items() <= before.items()
        assert archive.import_answers(two, file)["new"] == 0
        assert maintenance.verify(two)["damaged"] == []
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob(".*part"))


def exported(tmp_path: Path, count: int = 3) -> list[bytes]:
    """The lines of an export."""
    with DiskAnswerStore(tmp_path / "from") as cache:
        for i in range(count):
            keep(cache, full_answer(f"answer {i}"), i)
        archive.export_answers(cache, tmp_path / "whole.jsonl")
    return (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)


SPOILT: dict[str, Any] = {
    "empty": lambda lines: b"",
    "a pickle": lambda lines: pickle.dumps({"format": "distillkit-answers"}),
    "no header": lambda lines: b"".join(lines[1:]),
    "a header of tomorrow": lambda lines: b"".join([lines[0].replace(b'"version": 1', b'"version": 2'), *lines[1:]]),
    "a row too few": lambda lines: b"".join(lines[:-1]),
    "a row too many": lambda lines: b"".join([*lines, lines[-1]]),
    "half a row": lambda lines: b"".join(lines)[:-40],
    "another answer's key": lambda lines: b"".join([*lines[:2], lines[2].replace(b"prompt 1", b"prompt 7"), lines[3]]),
    "no key": lambda lines: b"".join([*lines[:3], b'{"asked": {}}\n']),
    "a list": lambda lines: b"".join([*lines[:3], b"[]\n"]),
    "a pickled row": lambda lines: b"".join([*lines[:3], pickle.dumps("row") + b"\n"]),
    "a deep row": lambda lines: b"".join([*lines[:3], b"[" * 200_000 + b"\n"]),
    "half a gzip": lambda lines: gzip.compress(b"".join(lines))[:-20],
    "a damaged gzip": lambda lines: gzip.compress(b"".join(lines))[:30] + b"damage" * 50,
    "a bare zstd": lambda lines: b"\x28\xb5\x2f\xfd" + b"damage" * 50,
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_bad_file_leaves_the_cache_as_it_was(tmp_path: Path, cache: DiskAnswerStore, how: str, peer: Any) -> None:
    if "zstd" in how:
        peer("zstandard")
    file = tmp_path / "spoilt.jsonl"
    file.write_bytes(SPOILT[how](exported(tmp_path)))
    with pytest.raises(CorruptError, match=r"spoilt\.jsonl"):
        archive.import_answers(cache, file)
    assert len(cache) == 0


def test_a_line_without_end_is_refused_before_it_is_all_in_memory(
    tmp_path: Path, cache: DiskAnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_LINE_BYTES", 10_000)
    lines = exported(tmp_path, 1)
    file = tmp_path / "long.jsonl.gz"
    file.write_bytes(gzip.compress(lines[0] + b" " * 20_000 + lines[1]))
    with pytest.raises(CorruptError, match="line 2 is longer than 10,000 bytes"):
        archive.import_answers(cache, file)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_change_of_a_byte_brings_in_what_was_not_asked(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = bytearray(b"".join(exported(folder, 1)))
        content[data.draw(st.integers(0, 10_000)) % len(content)] = data.draw(st.integers(0, 255))
        (folder / "changed.jsonl").write_bytes(content)
        with DiskAnswerStore(folder / "to") as cache:
            with contextlib.suppress(CorruptError):
                archive.import_answers(cache, folder / "changed.jsonl")
            assert maintenance.verify(cache)["damaged"] == []


def test_an_ending_that_nobody_knows_is_refused(cache: DiskAnswerStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an unknown suffix") as error:
        archive.export_answers(cache, tmp_path / "answers.zip")
    assert ".jsonl.gz" in error.value.hint


def test_what_is_written_during_an_export_is_not_half_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DiskAnswerStore(tmp_path / "cache") as one, DiskAnswerStore(tmp_path / "cache") as two:
        keep(one, Answer("a"), 0)
        counted = archive._header

        def then_another(*given: Any) -> Any:
            found = counted(*given)
            keep(two, Answer("b"), 1)
            return found

        monkeypatch.setattr(archive, "_header", then_another)
        archive.export_answers(one, tmp_path / "a.jsonl")
    with DiskAnswerStore(tmp_path / "to") as cache:
        assert archive.import_answers(cache, tmp_path / "a.jsonl")["new"] == 1


# ---------------------------------------------------------------------------------------------------- explain


def test_explain_names_the_fields_in_which_two_requests_differ(cache: DiskAnswerStore, tmp_path: Path) -> None:
    one = key_fields("p", {"model": "m"}, Request("r", prompt="Once", stop=("a",)))
    other = key_fields("p", {"model": "n"}, Request("r", prompt="Once", temperature=0.5, stop=("a", "b")))
    cache.put(answer_key(one), one, Answer("a"))
    (tmp_path / "other.json").write_text(json.dumps(other))
    found = explain.compare_requests(cache, answer_key(one)[:10], str(tmp_path / "other.json"))
    assert (found["one"]["key"], found["other"]["key"]) == (answer_key(one), answer_key(other))
    assert [(row["field"], row["one"], row["other"]) for row in found["differences"]] == [
        ("identity.model", "m", "n"),
        ("request.stop.1", None, "b"),
        ("request.temperature", 1.0, 0.5),
    ]
    assert explain.compare_requests(cache, answer_key(one), answer_key(one))["differences"] == []


@settings(deadline=None, max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-2, 2) | st.text("ab", max_size=2),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    ),
    st.data(),
)
def test_there_is_a_difference_exactly_where_the_keys_differ(value: Any, data: st.DataObject) -> None:
    other = data.draw(st.just(value) | st.lists(st.integers(0, 1), max_size=2))
    assert bool(explain.differences({"a": value}, {"a": other})) == (
        answer_key({"a": value}) != answer_key({"a": other})
    )


def test_true_differs_from_one_as_in_the_key() -> None:
    assert answer_key({"a": [True]}) != answer_key({"a": [1]})
    assert explain.differences({"a": [True]}, {"a": [1]}) == [{"field": "a.0", "one": True, "other": 1}]


def test_an_empty_list_is_a_field_too() -> None:
    assert explain.differences({"a": {"a": []}}, {"a": []}) == [
        {"field": "a", "one": None, "other": []},
        {"field": "a.a", "one": [], "other": None},
    ]


@pytest.mark.parametrize("spec", ["abc", "000000", "no/such/file.json"])
def test_a_request_that_is_not_there_is_said(cache: DiskAnswerStore, spec: str) -> None:
    with pytest.raises(UsageError, match="matches no rows"):
        explain.find_request(cache, spec)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[]", b'{"request": 1' + b"0" * 5000 + b"}"])
def test_a_file_that_cannot_be_read_is_said_with_its_name(
    cache: DiskAnswerStore, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CorruptError, match=r"a\.json cannot be read"):
        explain.find_request(cache, str(tmp_path / "a.json"))


def test_long_texts_are_shown_where_they_part() -> None:
    base = "Once upon a time there was a fox who lived by the river, and "
    rows = explain.differences({"request.prompt": base + "slept."}, {"request.prompt": base + "ran."})
    (line,) = explain.format_differences(rows)
    assert "slept." in line
    assert "ran." in line
    assert "Once" not in line
    assert "from character" in line


def test_the_nearest_row_to_each_request_that_is_missing_is_found(cache: DiskAnswerStore) -> None:
    teacher = Counting()
    label(teacher, prompts(20, temperature=0.5), cache)
    label(teacher, prompts(3), cache)
    found = explain.explain_missing(cache, teacher, prompts(22), show=18)
    assert (found["requests"], found["cached"], found["missing"]) == (22, 3, 19)
    assert found["differ_in"] == {"request.temperature": 17, "request.prompt": 2}
    assert found["examples"][0]["differences"] == [{"field": "request.temperature", "one": 1.0, "other": 0.5}]
    assert len(found["examples"]) == 18
    assert explain.explain_missing(cache, teacher, prompts(3))["examples"] == []


# --------------------------------------------------------------------------------------------------- commands


def command(home: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """The program itself, in a folder of its own."""
    environment = {**os.environ, "DISTILLKIT_HOME": str(home), "COLUMNS": "100"}
    return program(["cache", *words], home, environment, **more)


def test_the_commands_of_the_cache_as_a_user_meets_them(tmp_path: Path) -> None:
    with DiskAnswerStore(tmp_path / "cache" / "teachers") as cache:
        keys = [keep(cache, Answer("a", usage=Usage(3, 4)), i) for i in range(3)]
        keep(cache, Answer("a"), 0, provider="q")
    said = command(tmp_path, "stats")
    assert said.returncode == 0
    assert "4 answers" in said.stdout.splitlines()[0]
    assert json.loads(command(tmp_path, "stats", "--json").stdout)["prompt_tokens"] == 9
    assert command(tmp_path, "verify").returncode == 0
    assert command(tmp_path, "export", "a.jsonl.gz").returncode == 0
    said = command(tmp_path, "prune", "--provider", "q")
    assert (said.returncode, "--yes" in said.stderr) == (2, True)
    assert "1 rows" in command(tmp_path, "prune", "--provider", "q", "--dry-run").stdout
    assert json.loads(command(tmp_path, "prune", "--provider", "q", "--yes", "--json").stdout)["dropped"] == 1
    assert "1 of 4 rows are new" in command(tmp_path, "import", "a.jsonl.gz").stdout
    said = command(tmp_path, "explain", keys[0][:12], keys[1][:12])
    assert said.stdout.splitlines()[-1] == 'request.prompt  "prompt 0"  |  "prompt 1"'
    plant(tmp_path / "cache" / "teachers", key="bad", raw=1, mode=1, value="{")
    said = command(tmp_path, "verify")
    assert (said.returncode, "bad" in said.stdout, "--repair" in said.stderr) == (1, True, True)
    assert command(tmp_path, "verify", "--repair").returncode == 0
    assert command(tmp_path, "verify").returncode == 0


ASKING = small(
    "asking",
    """
[teacher]
provider = "checkpoint"
prompts = 3
prompt_tokens = 4
max_tokens = 6
""",
)


def test_explain_says_what_of_a_recipe_is_not_there_and_why(tmp_path: Path) -> None:
    (tmp_path / "asking.toml").write_text(ASKING)
    said = command(tmp_path, "explain", "asking.toml")
    assert (said.returncode, said.stdout.splitlines()[0]) == (0, "0 of 3 requests are in the cache, 3 are not.")
    environment = {**os.environ, "DISTILLKIT_HOME": str(tmp_path)}
    assert program(["label", "asking.toml"], tmp_path, environment).returncode == 0
    assert "3 of 3 requests" in command(tmp_path, "explain", "asking.toml").stdout
    (tmp_path / "asking.toml").write_text(ASKING + "temperature = 0.5\n")
    found = json.loads(command(tmp_path, "explain", "asking.toml", "--json").stdout)
    assert found["differ_in"] == {"request.temperature": 3}


WITHOUT = """
import sys
sys.modules["zstandard"] = None
from pathlib import Path
from distillkit.core.errors import UsageError
from distillkit.teachers.answers import archive
from distillkit.teachers.answers.disk import DiskAnswerStore
with DiskAnswerStore(Path("cache")) as cache:
    try:
        archive.export_answers(cache, Path("a.jsonl.zst"))
    except UsageError as error:
        print(error)
"""


def test_without_zstandard_it_is_said_what_to_install(tmp_path: Path) -> None:
    run = [sys.executable, "-c", WITHOUT]
    said = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True).stdout
    assert "distillkit[zstd]" in said
    assert not (tmp_path / "a.jsonl.zst").exists()
