"""The ground floor: files are whole or not there, runs are found again, and progress leaves no half lines."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillkit.core import console as console_module
from distillkit.core import run_folder
from distillkit.core.console import Console, LiveConsole, PlainConsole, format_duration
from distillkit.core.errors import CorruptError, DistillkitError, UsageError
from distillkit.core.files import (
    atomic_folder,
    atomic_write,
    digest,
    file_digest,
    read_json,
    read_jsonl,
    remove_stale_parts,
    write_json,
    write_jsonl,
    write_text,
)
from distillkit.core.run_folder import Run
from distillkit.core.timeouts import time_limit

# ---------------------------------------------------------------------------------------- whole or not there


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def break_off(writing: AbstractContextManager[Path]) -> None:
    """Write half of what is due, then fail."""
    with writing as part:
        (part / "b" if part.is_dir() else part).write_text("half")
        raise RuntimeError("broken off")


def killed_while(code: str, cwd: Path) -> None:
    """Run code in a process of its own, and kill it as soon as it says that it is in the middle."""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=cwd, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "middle\n"
    child.send_signal(signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
    child.stdout.close()


def test_a_file_is_replaced_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    for text in ("old", "new ünï 漢"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert names(path.parent) == ["a.txt"]


def test_a_failure_inside_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="broken off"):
        break_off(atomic_write(path))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_until_the_end_of_the_block_readers_see_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with atomic_write(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_process_killed_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    killed_while(
        "import time; from pathlib import Path; from distillkit.core.files import atomic_write\n"
        "with atomic_write(Path('a.txt')) as part:\n"
        "    part.write_text('half'); print('middle', flush=True); time.sleep(60)",
        tmp_path,
    )
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_process_killed_in_the_middle_leaves_the_old_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "f") as part:
        (part / "a").write_text("old")
    killed_while(
        "import time; from pathlib import Path; from distillkit.core.files import atomic_folder\n"
        "with atomic_folder(Path('f')) as part:\n"
        "    (part / 'b').write_text('half'); print('middle', flush=True); time.sleep(60)",
        tmp_path,
    )
    assert names(tmp_path / "f") == ["a"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with atomic_folder(tmp_path / "f") as part:
            (part / "deep").mkdir()
            (part / "deep" / name).write_text(name)
    assert names(tmp_path / "f" / "deep") == ["b"]
    assert names(tmp_path) == ["f"]


def test_a_failure_inside_leaves_the_old_folder_and_no_part(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "f") as part:
        (part / "a").write_text("old")
    with pytest.raises(RuntimeError, match="broken off"):
        break_off(atomic_folder(tmp_path / "f"))
    assert names(tmp_path / "f") == ["a"]
    assert names(tmp_path) == ["f"]


def test_of_two_that_write_one_folder_at_once_both_succeed_and_the_last_stays(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "f") as slow:
        (slow / "slow").write_text("")
        with atomic_folder(tmp_path / "f") as quick:
            (quick / "quick").write_text("")
        assert names(tmp_path / "f") == ["quick"]
    assert names(tmp_path / "f") == ["slow"]
    assert names(tmp_path) == ["f"]


def test_what_a_killed_process_left_is_swept_away_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from distillkit.core.files import atomic_folder, atomic_write\n"
        "with atomic_write(Path('a.txt')), atomic_folder(Path('f')):\n"
        "    print('middle', flush=True); time.sleep(60)"
    )
    killed_while(code, tmp_path)
    left = {path.name for path in tmp_path.glob(".*.part")}
    assert len(left) == 2
    here = next(iter(left)).split(".")[-2].split("-")[0]
    alive = f".b.{here}-{os.getpid()}-00000000.part"
    elsewhere, long_ago = ".c.00000000-1-00000000.part", ".d.00000000-1-00000000.part"
    others = {alive, elsewhere, ".mine.part", "e.part"}
    for name in (*others, long_ago):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / long_ago, (1, 1))
    remove_stale_parts(tmp_path)
    assert set(names(tmp_path)) == others


def test_a_folder_that_its_writer_lost_does_not_cost_the_old_one(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "f") as part:
        (part / "a").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "f") as part:
        part.rmdir()
    assert names(tmp_path / "f") == ["a"]


def test_a_file_in_the_place_of_a_folder_is_not_dropped(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "precious")
    with pytest.raises(OSError), atomic_folder(tmp_path / "f") as part:
        (part / "a").write_text("")
    assert (tmp_path / "f").read_text() == "precious"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_who_may_read_is_for_the_umask_to_say(tmp_path: Path, umask: int, file: int, folder: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "")
        with atomic_folder(tmp_path / "f"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == file
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == folder


# --------------------------------------------------------------------------------------------- JSON and lines

ROWS = [{"text": "漢字 \U0001f98a", "n": 1}, {"text": "line\nbreak\r\u2028", "n": None}]


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert read_jsonl(tmp_path / "a.jsonl") == ROWS
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_wherever_a_crash_cuts_the_last_line_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ROWS)
    whole = path.read_bytes()
    for end in range(len(whole)):  # also through the middle of a character
        path.write_bytes(whole[:end])
        assert read_jsonl(path) == ROWS[: whole[:end].count(b"\n")]


@pytest.mark.parametrize("line", [b"{", b"\xff\xfe", b"{'a': 1}"])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(CorruptError, match=r"a\.jsonl cannot be read: line 2 "):
        read_jsonl(path)


def test_what_is_not_json_never_replaces_what_is(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, "ü"]})
    for wrong in (float("nan"), {"a": Path()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "a.json", wrong)
    assert read_json(tmp_path / "a.json") == {"a": [1, "ü"]}
    assert names(tmp_path) == ["a.json"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def backwards(value: object) -> object:
    """The same value, its keys in another order and its lists as tuples."""
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(list(value))}
    return tuple(backwards(item) for item in value) if isinstance(value, list) else value


@given(VALUES)
def test_a_digest_sees_values_and_neither_order_nor_kind_of_sequence(value: object) -> None:
    assert digest(value) == digest(backwards(value)) == digest(json.loads(json.dumps(value)))


@given(VALUES, VALUES)
def test_different_values_have_different_digests(one: object, other: object) -> None:
    if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        assert digest(one) != digest(other)


def test_a_digest_never_changes() -> None:
    """Keys of paid answers hang on it."""
    value = {"b": [1, 2.5, None, True], "a": "ü\U0001f98a\x00"}
    assert digest(value) == "f3939e557cc19e962f28e8ac49145fd55b29a5115a8241cd36c43b7b95586be5"


def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def create(recipe: str, info: dict[str, object]) -> Run:
    with run_folder.creating(recipe, info) as (run, _):
        pass
    return run


def facts(run: Run) -> dict[str, object]:
    """What a run records, but for which process is at work on it."""
    return {key: value for key, value in run.info.items() if key != "process"}


def test_runs_are_numbered_and_never_overwritten(home: Path) -> None:
    made = [create("tales", {"seed": i}) for i in range(3)]
    assert [run.name for run in made] == ["tales/1", "tales/2", "tales/3"]
    assert facts(made[1]) == {"schema": 1, "run": "tales/2", "status": "running", "seed": 1}
    assert run_folder.runs_of("tales") == made
    (home / "reports" / "tales" / "notes").mkdir()
    (home / "reports" / "tales" / "9").mkdir()
    assert create("tales", {}).name == "tales/10"


def test_eight_processes_get_eight_numbers(home: Path) -> None:
    code = (
        "import sys; from distillkit.core.run_folder import creating; sys.stdin.read()\n"
        "with creating('r', {}) as (run, _): print(run.name)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    children = [subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) for _ in range(8)]  # type: ignore[call-overload]
    for child in children:
        child.stdin.close()
        child.stdin = None
    said = {child.communicate(timeout=30)[0].strip() for child in children}
    assert said == {f"r/{i}" for i in range(1, 9)}
    assert [run.info["run"] for run in run_folder.runs_of("r")] == [f"r/{i}" for i in range(1, 9)]


def test_a_run_is_there_whole_or_not_at_all(home: Path) -> None:
    with run_folder.creating("tales", {"seed": 1}) as (run, part):
        part.recipe.write_text("name = 'tales'")
        assert not list(run.path.iterdir())
        assert run_folder.runs_of("tales") == []
    assert facts(run) == {"schema": 1, "run": "tales/1", "status": "running", "seed": 1}
    assert run.recipe.is_file()
    with pytest.raises(RuntimeError), run_folder.creating("tales", {}) as (failed, _):
        raise RuntimeError
    assert not failed.path.exists()
    assert names(home / "reports" / "tales") == ["1"]


def test_a_run_whose_process_was_killed_is_cut_off(home: Path, tmp_path: Path) -> None:
    killed_while(
        "import time; from distillkit.core.run_folder import creating\nwith creating('tales', {}) as (run, _): pass\n"
        "print('middle', flush=True); time.sleep(60)",
        tmp_path,
    )
    run = run_folder.find("tales")
    assert run.info["status"] == "cut off"
    run.begins()
    assert run.info["status"] == "running"
    run.ends("failed", error="no reason")
    run.begins()
    run.ends("done")
    assert "error" not in run.info


def test_a_number_that_a_crash_left_empty_is_no_run_and_is_not_used_again(home: Path) -> None:
    (home / "reports" / "tales" / "1").mkdir(parents=True)
    assert run_folder.runs_of("tales") == run_folder.every_run() == []
    with pytest.raises(UsageError, match="no run of 'tales'"):
        run_folder.newest("tales")
    assert create("tales", {}).name == "tales/2"


def test_a_run_is_found_by_folder_number_name_and_latest(home: Path) -> None:
    old, new, other = (create(name, {}) for name in ("tales", "tales", "others"))
    assert run_folder.find(str(old.path)) == old
    assert run_folder.find("tales/1") == old
    assert run_folder.find("tales") == new
    assert run_folder.newest("tales") == new
    for run, second in ((old, 3), (new, 1), (other, 2)):
        os.utime(run.path / "run.json", (second, second))
    assert run_folder.find() == run_folder.find("latest") == old


def test_a_run_knows_its_name_from_wherever_it_is_looked_at(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create("tales", {})
    monkeypatch.chdir(run.path)
    assert run_folder.find(".").name == "tales/1"
    assert run_folder.find("../1").name == "tales/1"


def test_a_folder_without_a_record_is_no_run(home: Path) -> None:
    run = create("tales", {})
    (home / "reports" / "tales" / "2").mkdir()
    assert run_folder.find("tales") == run
    assert run_folder.find("latest") == run
    with pytest.raises(UsageError):
        run_folder.find("tales/2")


def test_what_is_not_there_is_said_with_the_nearest_name(home: Path) -> None:
    with pytest.raises(UsageError, match="there are no runs") as none:
        run_folder.find()
    assert "distillkit run" in none.value.hint
    create("quickstart", {})
    with pytest.raises(UsageError, match="'quikstart'") as wrong:
        run_folder.find("quikstart")
    assert wrong.value.hint == "Did you mean 'quickstart'?"
    with pytest.raises(UsageError) as number:
        run_folder.find("quickstart/2")
    assert number.value.hint == "Did you mean 'quickstart/1'?"
    with pytest.raises(UsageError, match="no run of 'other'"):
        run_folder.newest("other")


def test_recording_adds_and_replaces(home: Path) -> None:
    run = create("tales", {"seed": 1})
    run.record(status="done", figures={"a": 1})
    assert facts(run) == {"schema": 1, "run": "tales/1", "status": "done", "seed": 1, "figures": {"a": 1}}
    assert Run(home / "nowhere").info == {}


def test_of_many_who_record_at_once_none_is_overwritten(home: Path) -> None:
    run = create("tales", {"counts": {}})
    code = (
        "import sys; from pathlib import Path\n"
        "from distillkit.core.run_folder import Run\nrun = Run(Path(sys.argv[1]))\n"
        "for i in range(10): run.revise(lambda info: {**info, 'counts': {**info['counts'], sys.argv[2] + str(i): i}})"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(run.path), name]) for name in "abc"]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert len(run.info["counts"]) == 30


def test_a_record_that_was_altered_is_told_by_its_checksum(home: Path) -> None:
    run = create("tales", {"seed": 41, "of": [1, 2.5, None, "ü"], "counts": {10: 1, 9: 2}})
    (run.checkpoints / "step-00000002").mkdir(parents=True)
    written = (run.path / "run.json").read_text()
    for old, new in (('"seed": 41', '"seed": 43'), ('"checksum": "', '"checksum": "0')):
        (run.path / "run.json").write_text(written.replace(old, new))
        with pytest.raises(CorruptError, match=r"run\.json is damaged: its checksum") as error:
            run.record(status="done")
        assert "step-00000002" in error.value.hint
    before_checksums = json.dumps({key: value for key, value in json.loads(written).items() if key != "checksum"})
    (run.path / "run.json").write_text(before_checksums)
    assert run.info["seed"] == 41


@pytest.mark.parametrize("text", [b"", b'{"a"', b"\xff", b"[1]", b'"run"'])
def test_a_damaged_record_is_said_and_not_written_over(home: Path, text: bytes) -> None:
    run = create("tales", {})
    (run.path / "run.json").write_bytes(text)
    for touch in (lambda: run.info, lambda: run.record(status="done")):
        with pytest.raises(DistillkitError, match=r"tales/1/run\.json "):
            touch()
    assert (run.path / "run.json").read_bytes() == text


# --------------------------------------------------------------------------------------------------- progress


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list: set the first element to let it pass."""
    time_is = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: time_is[0])
    return time_is


def screen(written: str) -> list[str]:
    """What a terminal shows after these characters."""
    return [line.rpartition("\r\x1b[K")[2] for line in written.split("\n")]


def test_a_log_gets_progress_at_most_every_five_seconds_and_always_the_last(now: list[float]) -> None:
    stream = io.StringIO()
    console = PlainConsole(stream)
    for i in range(101):
        now[0] = 1000 + i / 10
        console.progress(f"step {i}", last=i == 100)
    assert stream.getvalue().splitlines() == ["step 0", "step 50", "step 100"]


def test_a_log_gets_every_line_that_was_said(now: list[float]) -> None:
    stream = io.StringIO()
    console = PlainConsole(stream)
    console.print("one")
    console.warn("two")
    assert stream.getvalue() == "one\nwarning: two\n"


def test_the_first_progress_is_shown_even_on_a_machine_just_started(now: list[float]) -> None:
    now[0] = 0.05
    for console in (PlainConsole(io.StringIO()), LiveConsole(io.StringIO())):
        console.progress("step 1")
        assert "step 1" in console.stream.getvalue()  # type: ignore[attr-defined]


def test_a_terminal_shows_one_line_rewritten(now: list[float]) -> None:
    stream = io.StringIO()
    console = LiveConsole(stream)
    for i in range(11):
        now[0] = 1000 + i
        console.progress(f"step {10 ** (10 - i)}")
        assert screen(stream.getvalue()) == [f"step {10 ** (10 - i)}"]
    assert "\n" not in stream.getvalue()


def test_a_terminal_never_shows_half_a_line_before_what_is_said(now: list[float]) -> None:
    stream = io.StringIO()
    console = LiveConsole(stream)
    console.print("begun")
    console.progress("a long line of progress")
    console.print("said")
    console.progress("too soon to be shown")
    console.warn("mind")
    now[0] += 1
    console.progress("more progress")
    console.progress("all done", last=True)
    console.print("end")
    assert screen(stream.getvalue()) == ["begun", "said", "warning: mind", "all done", "end", ""]


def test_a_terminal_is_not_written_to_more_than_ten_times_a_second(now: list[float]) -> None:
    stream = io.StringIO()
    console = LiveConsole(stream)
    for i in range(1000):
        now[0] = 1000 + i / 1000
        console.progress(f"{i}")
    assert stream.getvalue().count("\r") <= 11


def test_a_live_line_is_never_wider_than_the_terminal(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    LiveConsole(stream).progress("x" * 100)
    assert screen(stream.getvalue()) == ["x" * 19]


def test_a_live_line_is_wiped_before_a_result_and_a_file_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    console_module.clear_live_line()
    assert stream.getvalue() == ""
    monkeypatch.setattr(stream, "isatty", lambda: True)
    console_module.default_console().progress("packing: 2,000 documents")
    console_module.clear_live_line()
    assert screen(stream.getvalue() + "parameters") == ["parameters"]


def test_where_errors_go_decides_who_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert type(console_module.default_console()) is PlainConsole
    monkeypatch.setattr(stream, "isatty", lambda: True)
    assert type(console_module.default_console()) is LiveConsole
    Console().print("nothing")
    Console().progress("nothing")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (190, "3m10s"),
        (3599.6, "1h00m"),
        (7500, "2h05m"),
        (360000, "100h00m"),
    ],
)
def test_a_duration_is_said_as_people_say_it(seconds: float, said: str) -> None:
    assert format_duration(seconds) == said


# ---------------------------------------------------------------------------------------- what takes too long


@pytest.mark.parametrize("busy", ["while True: pass", "time.sleep(30)", "os.read(os.pipe()[0], 1)"])
def test_what_python_does_for_too_long_is_broken_off(busy: str) -> None:
    former = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"), time_limit(0.05):
        exec(busy, {"time": time, "os": os})
    assert signal.getsignal(signal.SIGALRM) is former
    time.sleep(0.06)  # nothing rings any more
    with time_limit(0.05):
        pass
    time.sleep(0.06)


def test_another_thread_and_no_limit_go_on_undisturbed() -> None:
    done = []

    def work() -> None:
        with time_limit(0.01):
            time.sleep(0.03)
            done.append("there")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with time_limit(None):
        assert done == ["there"]


def test_code_that_never_comes_back_to_python_ends_with_its_process() -> None:
    code = """
        import itertools
        from distillkit.core.timeouts import time_limit

        with time_limit(0.1, grace=0.2):
            sum(itertools.repeat(0))  # in C, without end
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "Timeout (0:00:00.3" in ran.stderr
    assert "line 6 in <module>" in ran.stderr
