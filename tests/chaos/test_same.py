"""The same recipe on the same machine comes to the same report, but for times: twice, stage by stage, interrupted."""

from __future__ import annotations

import random
import re
import shlex

import pytest

from support.disk_faults import Fault
from support.scenarios import SCENES, Stage, difference, newest, of_run, outcome
from support.trust_ledger import held, size

pytestmark = [pytest.mark.slow, pytest.mark.trust]
RUN = SCENES[0]


def test_twice_in_a_row_it_comes_to_the_same(stage: Stage) -> None:
    expected, _ = stage.expected(RUN)
    tries, good = size(1, 4), 0
    for _ in range(tries):
        home = stage.copy("empty")
        stage.well(home, *RUN.words)
        good += outcome(home) == expected
    held("Determinism: running a recipe again gives equal reports, samples, grades and weights", tries, good)


def test_run_again_with_all_answers_cached_only_the_asking_differs(stage: Stage) -> None:
    home = stage.copy("empty")
    stage.well(home, *RUN.words)
    first = of_run(newest(home))
    stage.well(home, *RUN.words)
    second = of_run(newest(home))
    told = difference(first, second)
    assert set(re.findall(r"(/[/\w]+):", told)) == {"/report/teacher/asked", "/report/teacher/cached"}, told
    held("Determinism: with all answers cached, only the counts of requested and cached answers differ", 1, 1)


def test_stage_by_stage_it_comes_to_the_same(stage: Stage) -> None:
    expected, _ = stage.expected(RUN)
    found = outcome(stage.look(stage.folder / "done"))
    assert found == expected, difference(expected, found)
    held("Determinism: running stage by stage gives the same results as one command", 1, 1)


def test_interrupted_and_resumed_as_its_last_words_say_it_comes_to_the_same(stage: Stage) -> None:
    expected, undisturbed = stage.expected(RUN)
    chance, good, tries = random.Random(5), 0, 0
    for _ in range(size(3, 20)):
        home = stage.copy("empty")
        at = chance.randrange(len(undisturbed.spots))
        ended = stage.fork_server.run(home, *RUN.words, fault=Fault("interrupt", at))
        if ended.code == 0:  # the training had one step left, and took it
            continue
        assert ended.code == 130, ended.err
        tries += 1
        said = re.search(r"Continue: distillkit (.*)", ended.err)
        again = (*shlex.split(said[1]), "--yes") if said and newest(home) else RUN.words
        stage.well(home, *again)
        if (found := outcome(home)) == expected:
            good += 1
        else:
            print(at, undisturbed.spots[at], difference(expected, found))
    held("Determinism: interrupting anywhere and resuming gives the same results", tries, good)
