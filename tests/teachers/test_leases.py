"""Leases: which process asks for which answer, and what happens when one is killed."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distillkit.core.console import Console
from distillkit.core.errors import DistillkitError
from distillkit.core.records import Answer
from distillkit.teachers.answers.disk import WAL_PAGES, DiskAnswerStore, answer_key, key_fields
from distillkit.teachers.answers.leases import LEASE_SECONDS, Leases
from distillkit.teachers.asking.label import count_known, label
from support.paths import TESTS
from support.stored_answers import keep
from support.teachers import Counting, prompts

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
