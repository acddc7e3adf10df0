"""What the cache promises beyond a place to put answers: quick to read, shared by processes, and kept in order."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_teachers import ANSWERS, Counting, full_answer, plant, prompts

from distillkit.errors import CorruptError, DistillkitError
from distillkit.packing import pack, unpack
from distillkit.records import Answer, Request, Token, Usage
from distillkit.teachers.cache import Cache, asked, key_of
from distillkit.teachers.label import known, label


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as opened:
        yield opened


def keep(cache: Cache, answer: Answer, i: int = 0, provider: str = "p", **identity: Any) -> str:
    """Put an answer under the key that belongs to it."""
    what = asked(provider, {"model": "m", **identity}, Request("r", prompt=f"prompt {i}"))
    cache.put(key_of(what), what, answer)
    return key_of(what)


def stored(cache: Cache, key: str) -> Any:
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


def test_rows_as_the_first_version_kept_them_are_still_read(cache: Cache) -> None:
    answer = full_answer("old")
    rows = [
        [token.bytes.decode("latin-1"), token.logprob, [[piece.decode("latin-1"), value] for piece, value in token.top]]
        for token in answer.tokens
    ]
    old = {"asked": {}, "answer": {**answer.to_json(), "tokens": rows}, "time": 1.5}
    plant(cache.folder, key="old", raw=1, mode=1, value=json.dumps(old))
    assert cache.get("old") == answer


def spoil(packed: dict[str, str], **fields: str) -> dict[str, str]:
    return {**packed, **fields}


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
def test_tokens_that_are_damaged_are_said_when_they_are_looked_at(cache: Cache, fields: dict[str, str]) -> None:
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


def test_many_keys_are_read_as_one_by_one(cache: Cache) -> None:
    keys = [keep(cache, Answer(f"answer {i}"), i) for i in range(1234)]
    several = cache.get_many([*keys, "no such key", keys[0]])
    assert several == {key: cache.get(key) for key in keys}
    assert cache.get_many([]) == {}


def test_a_refusal_is_not_an_answer(cache: Cache) -> None:
    plant(cache.folder, key="key", raw=1, mode=1, value=json.dumps({"asked": {}, "refused": "filtered", "time": 1}))
    assert cache.get("key") is None
    assert "key" in cache


def test_answers_with_log_probabilities_are_read_almost_as_fast_as_text(tmp_path: Path) -> None:
    """The figure itself is `benchmarks/cache.py`'s. Here a bound that no busy machine breaks: rows of 2,016
    log-probabilities, as the first version kept them, took some 3 ms to read; reading must not parse them."""
    rng = random.Random(0)
    alternatives = [[(b"word %d" % rng.randrange(3000), rng.random() * -9) for _ in range(20)] for _ in range(96)]
    tokens = tuple(Token(*top[0], tuple(top)) for top in alternatives)
    answer = Answer("a story", tokens, usage=Usage(32, 96))
    with Cache(tmp_path) as cache:
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
    with Cache(tmp_path) as one, Cache(tmp_path) as two:
        assert one.claim(["a", "b"]) == {"a", "b"}
        assert two.claim(["b", "c"]) == {"c"}
        assert one.claim(["a", "b", "c"]) == {"a", "b"}
        one.free()
        assert two.claim(["a", "b", "c"]) == {"a", "b", "c"}
        assert one.claim(["a"]) == set()
    with Cache(tmp_path) as three:
        assert three.claim(["a", "b", "c"]) == {"a", "b", "c"}


def test_claims_are_no_answers(cache: Cache) -> None:
    assert cache.claim(map(str, range(1200))) == {str(i) for i in range(1200)}
    assert len(cache) == 0
    assert cache.get("1") is None
    assert cache._rows.check() == []


def test_an_owner_that_lives_keeps_its_claims_beyond_the_lease(tmp_path: Path) -> None:
    with Cache(tmp_path, lease=0.3) as one, Cache(tmp_path, lease=0.3) as two:
        assert one.claim(["a"])
        until = time.monotonic() + 1
        while time.monotonic() < until:
            assert two.claim(["a"]) == set()
            time.sleep(0.05)


CLAIMER = """
import sys, time
from pathlib import Path
from distillkit.teachers.cache import Cache
with Cache(Path({folder!r}), lease={lease}) as cache:
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
    with claimer(tmp_path) as child, Cache(tmp_path) as cache:
        assert cache.claim(["a", "c"]) == {"c"}
        child.kill()
        child.wait()
        assert cache.claim(["a", "b"]) == {"a", "b"}


def test_what_a_process_that_stopped_beating_had_claimed_is_free_after_the_lease(tmp_path: Path) -> None:
    with claimer(tmp_path, lease=0.5) as child, Cache(tmp_path, lease=0.5) as cache:
        child.send_signal(signal.SIGSTOP)
        assert cache.claim(["a"]) == set()
        until = time.monotonic() + 20
        while not cache.claim(["a"]):
            assert time.monotonic() < until
            time.sleep(0.1)
        child.send_signal(signal.SIGCONT)


def test_an_owner_of_another_machine_is_judged_by_its_beats(tmp_path: Path) -> None:
    """Its process numbers mean nothing here."""
    with claimer(tmp_path) as child, Cache(tmp_path, lease=0.5) as cache:
        cache._rows._sql("UPDATE Owners SET place = 'elsewhere'")
        child.kill()
        child.wait()
        assert cache.claim(["a"]) == set()
        time.sleep(0.6)
        assert cache.claim(["a"]) == {"a"}


def test_a_process_number_that_was_used_again_is_nobodys_claim(tmp_path: Path) -> None:
    with claimer(tmp_path), Cache(tmp_path) as cache:
        cache._rows._sql("UPDATE Owners SET born = '1'")
        assert cache.claim(["a"]) == {"a"}


# ------------------------------------------------------------------------------------------ two that label at once

LABELLER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_teachers import Counting, Sleeping, prompts
from distillkit.teachers.cache import Cache
from distillkit.teachers.label import label

class Telling(Counting):
    def answer(self, request):
        print("asking", request.prompt, flush=True)
        time.sleep({pause})
        return super().answer(request)

print("ready", flush=True)
sys.stdin.readline()
with Cache(Path({folder!r}), lease=1.0) as cache:
    done = label(Telling(), prompts({count}), cache)
    assert [answer.text for answer in done.answers] == [f"to prompt {{i}}" for i in range({count})]
    print("done", done.asked, done.cached, flush=True)
"""


def labellers(folder: Path, count: int, pause: float, how_many: int = 2) -> list[subprocess.Popen[str]]:
    """Processes that are ready to label the same prompts."""
    code = LABELLER.format(tests=str(Path(__file__).parent), folder=str(folder), count=count, pause=pause)
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(how_many)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    return children


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
    with Cache(tmp_path) as cache:
        assert known(Counting(), prompts(40), cache) == 40
        assert cache._rows.check() == []


def test_a_failure_frees_what_was_claimed(tmp_path: Path) -> None:
    with Cache(tmp_path) as one, Cache(tmp_path) as two:
        with pytest.raises(DistillkitError, match="no such luck"):
            label(Counting(fails_on="prompt 2"), prompts(5), one)
        began = time.monotonic()
        assert label(Counting(), prompts(5), two).asked == 3
        assert time.monotonic() - began < 5
