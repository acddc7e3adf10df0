"""Several processes at one run: they compute what one process computes, leave one set of files, and end together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillkit.core.errors import PeerProcessError, UsageError
from distillkit.core.files import read_jsonl
from distillkit.core.run_folder import Run, find_run
from distillkit.student import checkpoint as checkpoints
from distillkit.student.training.distributed import (
    BUCKET_SIZE,
    SINGLE_PROCESS,
    BatchShard,
    _buckets,
    _is_launched,
)
from support.training import Fake, RecordingConsole, prepare_home, sit, steps_of, train_steps

LAUNCHER = Path(sys.executable).parent / "mlx.launch"
FIFTY = ("train.steps=50", "train.evaluate_every=10", "train.checkpoint_every=25", "train.batch_size=4")
needs_launcher = pytest.mark.skipif(not LAUNCHER.exists(), reason="mlx.launch is not installed")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    prepare_home(tmp_path, monkeypatch)
    return tmp_path


# ------------------------------------------------------------------------------------------ the parts


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 20))
def test_shares_are_whole_parts_of_a_cut_that_does_not_depend_on_the_processes(size: int, each: int, more: int) -> None:
    parts = size * each
    rows = parts + more
    alone, found, places = BatchShard.of(SINGLE_PROCESS, rows, parts), list[int](), list[int]()
    for rank in range(size):
        group = Fake(rank)
        group.world_size = size
        shard = BatchShard.of(group, rows, parts)
        found += [shard.rows.start + end for end in shard.part_ends]
        places += [shard.first_part + i for i in range(len(shard.part_ends))]
        assert shard.part_ends[-1] == len(shard.rows)
    assert found == list(alone.part_ends)
    assert places == list(range(parts))
    assert np.diff([0, *found]).tolist() == [len(part) for part in np.array_split(np.arange(rows), parts)]


@given(st.lists(st.integers(1, BUCKET_SIZE), max_size=20))
def test_buckets_are_few_and_keep_the_order(sizes: list[int]) -> None:
    names = {str(i): size for i, size in enumerate(sizes)}
    buckets = list(_buckets(names))
    assert [name for bucket in buckets for name in bucket] == list(names)
    totals = [sum(names[name] for name in bucket) for bucket in buckets]
    assert all(total <= BUCKET_SIZE for total in totals)
    assert all(one + two > BUCKET_SIZE for one, two in pairwise(totals))


def test_only_a_launcher_makes_processes_look_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("\n")
    (tmp_path / "two").write_text('[["127.0.0.1:1"], ["127.0.0.1:2"]]')
    assert not _is_launched({})
    assert not _is_launched({"MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "one")})
    assert _is_launched({"MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "two")})
    assert _is_launched({"OMPI_COMM_WORLD_SIZE": "2"})
    assert not _is_launched({"PMI_SIZE": "1"})


def test_one_process_alone_needs_nobody() -> None:
    arrays = {"a": mx.ones(3)}
    assert SINGLE_PROCESS.is_main
    assert SINGLE_PROCESS.sum(arrays)["a"] is arrays["a"]
    assert SINGLE_PROCESS.run_on_main(lambda: 5) == SINGLE_PROCESS.broadcast(5) == 5
    assert SINGLE_PROCESS.local_world_size() == 1
    with SINGLE_PROCESS.barrier() as vote:
        vote.stop = True
    assert vote.stop


def test_looking_for_others_does_not_import_mlx() -> None:
    code = (
        "import sys; from distillkit.student.training.distributed import init_process_group; "
        "init_process_group(); print('mlx' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_anybodys_wish_to_stop_is_everybodys() -> None:
    with Fake(0, [0, 1]).barrier() as vote:
        pass
    assert vote.stop


def test_the_failure_of_another_is_told_once() -> None:
    with pytest.raises(PeerProcessError, match="process 1 of 2 failed") as caught, Fake(0, [3, 0]).barrier():
        pass
    assert caught.value.exit_code == 3
    with pytest.raises(PeerProcessError, match=r"^$"), Fake(1, [3, 0]).barrier():
        pass
    with pytest.raises(PeerProcessError, match=r"^$"), Fake(1, [2, 0]).barrier():  # the first one speaks for both
        raise UsageError("the same here")
    with pytest.raises(UsageError), Fake(1, [0, 0]).barrier():
        raise UsageError("only here")


# ------------------------------------------------------------------------------------------ two processes


def start_two(home: Path, *words: str) -> subprocess.Popen[str]:
    """The program in two processes on this machine, on a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = min(probe.getsockname()[1], 65000)
    command = [str(LAUNCHER), "-n", "2", "--starting-port", str(port), "--", sys.executable, "-m", "distillkit", *words]
    environment = {**os.environ, "DISTILLKIT_HOME": str(home)}
    return subprocess.Popen(
        command,
        cwd=home,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C goes to all of a terminal's processes
    )


def two(home: Path, *overrides: str, resume: bool = False) -> str:
    """A run, up to its training, in two processes; what was said."""
    words = [word for override in overrides for word in ("--set", override)]
    child = start_two(home, "run", "tiny.toml", "--until", "train", *words, *(["--resume"] if resume else []))
    return child.communicate(timeout=240)[1]


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in read_jsonl(run.metrics)]


def assert_close(one: Run, other: Run) -> None:
    """The same losses and the same weights, but for the order of additions."""
    assert losses(one) == pytest.approx(losses(other), rel=1e-4)
    ours, theirs = (checkpoints.list_checkpoints(run.checkpoints)[-1].weights() for run in (one, other))
    for name, value in ours.items():
        np.testing.assert_allclose(np.array(value), np.array(theirs[name]), atol=1e-4, rtol=1e-3, err_msg=name)


def files_of(run: Run) -> set[str]:
    return {str(path.relative_to(run.path)) for path in run.path.rglob("*")}


@needs_launcher
@pytest.mark.slow
def test_two_processes_learn_what_one_learns_and_leave_one_set_of_files(home: Path) -> None:
    alone = sit(*FIFTY, "train.streams=2")
    said = two(home, *FIFTY, "train.streams=1")  # the batch is cut into the same four parts, dropout's masks included
    crowd = find_run("tiny/2")
    assert "in 2 processes" in said
    assert said.count("Training to step 50") == 1
    assert train_steps(crowd) == list(range(1, 51))
    assert_close(alone, crowd)
    assert files_of(crowd) == files_of(alone)
    assert [path.name for path in sorted((home / "reports" / "tiny").iterdir())] == ["1", "2"]
    numerics = checkpoints.list_checkpoints(crowd.checkpoints)[-1].state["numerics"]
    assert (numerics["processes"], numerics["parts"]) == (2, 4)
    assert crowd.info["status"] == "done"


@needs_launcher
@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(home: Path) -> None:
    constant = (*FIFTY, "train.streams=1", "train.final_learning_rate=0.01", "train.warmup=0")
    alone, told = sit(*constant, "student.dropout=0.0"), RecordingConsole()
    two(home, *constant, "student.dropout=0.0", "train.steps=20")
    run = find_run("tiny/2")
    sit(*constant, "student.dropout=0.0", "train.steps=35", resume=True, console=told)
    assert told.warnings("not identical: processes was 2 and is 1")
    assert "processes was 1 and is 2" in two(home, *constant, "student.dropout=0.0", resume=True)
    assert train_steps(run) == list(range(1, 51))
    steps = [[row["loss"] for row in read_jsonl(one.metrics) if row["kind"] == "train"] for one in (alone, run)]
    assert steps[0] == pytest.approx(steps[1], rel=1e-4)


@needs_launcher
@pytest.mark.slow
def test_a_student_with_a_teacher_learns_the_same_in_two_processes(home: Path) -> None:
    sit()
    alone = sit(*FIFTY, "train.streams=2", recipe="pupil")
    words = [word for override in (*FIFTY, "train.streams=1") for word in ("--set", override)]
    start_two(home, "run", "pupil.toml", "--until", "train", *words).communicate(timeout=240)
    assert_close(alone, find_run("pupil/2"))


@needs_launcher
@pytest.mark.slow
def test_a_student_that_goes_on_with_its_own_words_writes_the_same_in_two_processes(home: Path) -> None:
    sit()
    own = ("train.batch_size=4", "train.steps=12", "mixer.name=reverse-kl", "teacher.on_policy=0.5")
    alone = sit(*own, "train.streams=2", recipe="pupil")
    words = [word for override in (*own, "train.streams=1") for word in ("--set", override)]
    start_two(home, "run", "pupil.toml", "--until", "train", *words).communicate(timeout=240)
    assert_close(alone, find_run("pupil/2"))


@needs_launcher
@pytest.mark.slow
def test_a_whole_run_is_judged_and_reported_once(home: Path) -> None:
    said, errors = start_two(home, "run", "tiny.toml").communicate(timeout=240)
    assert said.count("Full report") == 1, errors
    assert find_run("tiny/1").report.is_file()


@needs_launcher
@pytest.mark.slow
def test_what_cannot_be_done_is_said_once_and_ends_both(home: Path) -> None:
    said = two(home, "train.batch_size=1", "train.accumulate=1")
    assert said.count("cannot be divided among 2 processes") == 1
    said = two(home, "train.learning_rate=1e30")
    assert said.count("the loss is no longer a number") == 1
    assert [find_run(f"tiny/{i}").info["status"] for i in (1, 2)] == ["failed", "failed"]


def training_two(home: Path, step: int) -> subprocess.Popen[str]:
    """Two processes in the midst of a long training."""
    child = start_two(home, "run", "tiny.toml", "--until", "train", "--set", "train.steps=20000")
    metrics, deadline = home / "reports" / "tiny" / "1" / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b'"train"') < step:
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return child


def children_of(child: subprocess.Popen[str]) -> list[int]:
    """The processes that a launcher started."""
    return [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()] + [
        int(pid)
        for task in Path(f"/proc/{child.pid}/task").iterdir()
        if task.name != str(child.pid)
        for pid in (task / "children").read_text().split()
    ]


@needs_launcher
@pytest.mark.slow
def test_ctrl_c_stops_both_after_the_same_step(home: Path) -> None:
    child = training_two(home, 10)
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=60)
    run = find_run("tiny/1")
    assert run.info["status"] == "interrupted", said
    assert train_steps(run)[-1] == max(steps_of(run)) < 20000
    assert "Training is complete" not in two(home, f"train.steps={max(steps_of(run)) + 5}", resume=True)


@needs_launcher
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize("which", [0, 1])
def test_when_one_process_dies_the_other_ends_too(home: Path, which: int) -> None:
    child = training_two(home, 10)
    pids = sorted(children_of(child))
    assert len(pids) == 2
    os.kill(pids[which], signal.SIGKILL)
    child.communicate(timeout=60)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert checkpoints.newest_valid(find_run("tiny/1").checkpoints)[0] is not None
