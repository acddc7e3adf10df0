"""Run folders: numbering, lookup, and the run's record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distillkit.core import run_folder
from distillkit.core.errors import CorruptError, DistillkitError, UsageError
from distillkit.core.run_folder import Run
from support.killed_process import killed_while, names


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def create(recipe: str, info: dict[str, object]) -> Run:
    with run_folder.new_run_folder(recipe, info) as (run, _):
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
        "import sys; from distillkit.core.run_folder import new_run_folder; sys.stdin.read()\n"
        "with new_run_folder('r', {}) as (run, _): print(run.name)"
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
    with run_folder.new_run_folder("tales", {"seed": 1}) as (run, part):
        part.recipe.write_text("name = 'tales'")
        assert not list(run.path.iterdir())
        assert run_folder.runs_of("tales") == []
    assert facts(run) == {"schema": 1, "run": "tales/1", "status": "running", "seed": 1}
    assert run.recipe.is_file()
    with pytest.raises(RuntimeError), run_folder.new_run_folder("tales", {}) as (failed, _):
        raise RuntimeError
    assert not failed.path.exists()
    assert names(home / "reports" / "tales") == ["1"]


def test_a_run_whose_process_was_killed_is_cut_off(home: Path, tmp_path: Path) -> None:
    killed_while(
        "import time; from distillkit.core.run_folder import new_run_folder\n"
        "with new_run_folder('tales', {}) as (run, _): pass\n"
        "print('middle', flush=True); time.sleep(60)",
        tmp_path,
    )
    run = run_folder.find_run("tales")
    assert run.info["status"] == "cut off"
    run.mark_running()
    assert run.info["status"] == "running"
    run.mark_ended("failed", error="no reason")
    run.mark_running()
    run.mark_ended("done")
    assert "error" not in run.info


def test_a_number_that_a_crash_left_empty_is_no_run_and_is_not_used_again(home: Path) -> None:
    (home / "reports" / "tales" / "1").mkdir(parents=True)
    assert run_folder.runs_of("tales") == run_folder.all_runs() == []
    with pytest.raises(UsageError, match="no run of 'tales'"):
        run_folder.newest_run("tales")
    assert create("tales", {}).name == "tales/2"


def test_a_run_is_found_by_folder_number_name_and_latest(home: Path) -> None:
    old, new, other = (create(name, {}) for name in ("tales", "tales", "others"))
    assert run_folder.find_run(str(old.path)) == old
    assert run_folder.find_run("tales/1") == old
    assert run_folder.find_run("tales") == new
    assert run_folder.newest_run("tales") == new
    for run, second in ((old, 3), (new, 1), (other, 2)):
        os.utime(run.path / "run.json", (second, second))
    assert run_folder.find_run() == run_folder.find_run("latest") == old


def test_a_run_knows_its_name_from_wherever_it_is_looked_at(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create("tales", {})
    monkeypatch.chdir(run.path)
    assert run_folder.find_run(".").name == "tales/1"
    assert run_folder.find_run("../1").name == "tales/1"


def test_a_folder_without_a_record_is_no_run(home: Path) -> None:
    run = create("tales", {})
    (home / "reports" / "tales" / "2").mkdir()
    assert run_folder.find_run("tales") == run
    assert run_folder.find_run("latest") == run
    with pytest.raises(UsageError):
        run_folder.find_run("tales/2")


def test_what_is_not_there_is_said_with_the_nearest_name(home: Path) -> None:
    with pytest.raises(UsageError, match="there are no runs") as none:
        run_folder.find_run()
    assert "distillkit run" in none.value.hint
    create("quickstart", {})
    with pytest.raises(UsageError, match="'quikstart'") as wrong:
        run_folder.find_run("quikstart")
    assert wrong.value.hint == "Did you mean 'quickstart'?"
    with pytest.raises(UsageError) as number:
        run_folder.find_run("quickstart/2")
    assert number.value.hint == "Did you mean 'quickstart/1'?"
    with pytest.raises(UsageError, match="no run of 'other'"):
        run_folder.newest_run("other")


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
        "for i in range(10):\n"
        "    run.update_info(lambda info: {**info, 'counts': {**info['counts'], sys.argv[2] + str(i): i}})"
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
