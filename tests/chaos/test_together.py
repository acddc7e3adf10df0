"""Several processes on one folder at once: each has its number, all have one cache, and nothing is mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from distillkit.core.files import read_json
from distillkit.core.run_folder import Run
from support.fork_server import Ended, ForkServer
from support.scenarios import Scene, Stage, newest, of_run, outcome, whole
from support.trust_ledger import held, size

pytestmark = [pytest.mark.slow, pytest.mark.trust]


@pytest.fixture(scope="module")
def second(stage: Stage) -> Iterator[ForkServer]:
    folder = stage.folder / "second"
    folder.mkdir()
    with ForkServer(folder) as fork_server:
        yield fork_server


@pytest.fixture(autouse=True)
def _slowly(stage: Stage) -> Iterator[None]:
    stage.provider.delay = 0.05
    stage.provider.forget()
    yield
    stage.provider.delay = 0.0


def both(stage: Stage, second: ForkServer, home: Path, one: tuple[str, ...], other: tuple[str, ...]) -> list[Ended]:
    """Two commands at once, each in a process of its own."""
    with ThreadPoolExecutor(2) as threads:
        ends = [
            threads.submit(fork_server.run, home, *words)
            for fork_server, words in ((stage.fork_server, one), (second, other))
        ]
        return [end.result() for end in ends]


def without_asking(run: Run) -> dict:
    """What a run has come to, but for how many answers it had to ask for."""
    found = of_run(run)
    for key in ("asked", "cached"):
        del found["report"]["teacher"][key]
    return found


def test_two_runs_of_one_recipe_have_two_numbers_and_ask_once(stage: Stage, second: ForkServer) -> None:
    tries = size(1, 5)
    (_, undisturbed), good = stage.expected(Scene("run", "empty", ("run", "tiny.toml", "--yes"))), 0
    assert undisturbed.code == 0
    for _ in range(tries):
        home = stage.copy("empty")
        stage.provider.forget()
        ends = both(stage, second, home, ("run", "tiny.toml", "--yes"), ("run", "tiny.toml", "--yes"))
        assert [end.code for end in ends] == [0, 0], [end.err for end in ends]
        runs = [Run(home / "reports" / "tiny" / number) for number in "12"]
        assert without_asking(runs[0]) == without_asking(runs[1])
        assert sum(read_json(run.report)["teacher"]["asked"] for run in runs) == 6
        assert whole(home)
        good += stage.asked() == stage.needed["run"]  # of one
    held(
        "Concurrent processes: two runs of one recipe get two numbers, send each prompt once and have equal results",
        tries,
        good,
    )


def test_two_labellers_ask_each_prompt_once(stage: Stage, second: ForkServer) -> None:
    tries, good = size(1, 5), 0
    words = ("label", "tiny.toml", "--yes", "--set", "teacher.prompts=30")
    for _ in range(tries):
        home = stage.copy("empty")
        stage.provider.forget()
        ends = both(stage, second, home, words, words)
        assert [end.code for end in ends] == [0, 0], [end.err for end in ends]
        asked = stage.asked()
        good += len(asked) == 30 and set(asked.values()) == {1} and whole(home)
    held(
        "Concurrent processes: two labelling processes share one cache and send each prompt once",
        tries,
        good,
        f"{30 * tries} prompts",
    )


def test_judging_while_it_trains_disturbs_neither(stage: Stage, second: ForkServer) -> None:
    train = ("train", "tiny", "--set", "train.steps=150")
    expected, _ = stage.expected(Scene("long", "labelled", train))
    home = stage.copy("labelled")
    judged = 0
    with ThreadPoolExecutor(1) as threads:
        training: Future[Ended] = threads.submit(stage.fork_server.run, home, *train)
        while not training.done():
            run = newest(home)
            assert run is not None
            if any(run.checkpoints.glob("step-*")):
                ended = second.run(home, "judge", "tiny", "--yes")
                assert ended.code == 0, ended.err
                judged += not training.done()
                over = training.done()  # between the last word of the record and the end of a process there is time
                assert run.info["status"] in (("done",) if over else ("running", "done"))
    assert training.result().code == 0, training.result().err
    found = outcome(home)["runs"]["tiny"]
    assert found["status"] == "done"
    assert found["training"] == expected["runs"]["tiny"]["training"]
    assert found["checkpoints"] == expected["runs"]["tiny"]["checkpoints"]
    assert run.info.keys() >= {"judges", "training", "sampling"}
    assert run.info["seconds"].keys() >= {"train", "judge", "label"}
    assert judged
    held("Concurrent processes: judging during training disturbs neither, and run.json records both", judged, judged)


def test_of_two_that_train_one_run_the_second_is_refused(stage: Stage, second: ForkServer) -> None:
    words = ("train", "tiny", "--set", "train.steps=100")
    home = stage.copy("labelled")
    ends = sorted(both(stage, second, home, words, words), key=lambda end: end.code)
    assert [end.code for end in ends] == [0, 2], [end.err for end in ends]
    assert "is being trained by another process" in ends[1].err
    assert whole(home)
    held("Concurrent processes: of two processes that train one run, the second is refused", 1, 1)


@pytest.mark.parametrize("name", ["judge", "report", "export", "cache import"])
def test_two_that_do_the_same_do_not_mix_it_up(stage: Stage, second: ForkServer, name: str) -> None:
    from support.scenarios import SCENES

    scene = next(scene for scene in SCENES if scene.name == name)
    expected, _ = stage.expected(scene)
    home = stage.copy(scene.home)
    ends = both(stage, second, home, scene.words, scene.words)
    assert min(end.code for end in ends) == 0, [end.err for end in ends]
    assert all(end.code in (0, 2) for end in ends), [end.err for end in ends]  # one finds what the other has made
    assert outcome(home) == expected
    held("Concurrent processes: two processes that judge, report, export or import the same do not corrupt it", 1, 1)
