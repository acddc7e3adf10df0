"""Servers that restart, processes that are killed, two processes with the same prompts: nothing is asked twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distillkit_plugins.compatible import Compatible

from distillkit.core.records import Answer, Request
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking.label import LabelResult, answer_keys, count_known, label
from distillkit.teachers.asking.policy import RequestPolicy
from support.chat_provider import Provider, serving
from support.paths import TESTS
from support.provider_faults import fast, requests, teacher


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving() as served:
        yield served


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
