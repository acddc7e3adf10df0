"""The program as a user meets it: real processes, real files, exit codes and messages."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from distillkit.cli.common import confirm
from distillkit.core.errors import UsageError
from support.cli_process import TINY, distillkit, program


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student (tiny/1), a student that it taught (pupil/1), and the recipes of both."""
    home = tmp_path_factory.mktemp("made")
    (home / "tiny.toml").write_text(TINY)
    (home / "pupil.toml").write_text(
        'extends = "tiny.toml"\nname = "pupil"\n[tokenizer]\nkind = "tiny"\n[mixer]\nname = "alpha-temperature"\n'
        '[teacher]\nprovider = "checkpoint"\nmodel = "tiny"\nprompts = 3\nprompt_tokens = 4\nmax_tokens = 6\n'
    )
    for name in ("tiny", "pupil"):
        done = distillkit(home, "run", f"{name}.toml")
        assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty folder with the tiny recipe; afterwards nothing in it may be half-written."""
    (tmp_path / "tiny.toml").write_text(TINY)
    yield tmp_path
    assert not list(tmp_path.rglob("*.part"))


# Runs.


def test_a_run_ends_with_its_table_and_a_whole_folder(made: Path) -> None:
    folder = made / "reports/pupil/1"
    report = json.loads((folder / "report.json").read_text())
    assert report["status"] == "done"
    assert report["teacher"]["asked"] == 3
    assert set(report["judges"]["perplexity"]) == {"loss", "bits_per_byte", "perplexity"}
    metric = report["judges"]["perplexity"]["bits_per_byte"]
    assert metric["low"] <= metric["value"] <= metric["high"]
    for name in ("recipe.toml", "run.json", "plan.json", "metrics.jsonl", "samples.jsonl", "grades.jsonl"):
        assert (folder / name).is_file()
    for name in ("report.md", "report.html", "tables/judges.csv", "tokenizer/spec.json", "answers/index.jsonl"):
        assert (folder / name).is_file()


def test_a_second_run_asks_the_teacher_nothing_and_takes_the_next_number(made: Path, tmp_path: Path) -> None:
    home = shutil.copytree(made, tmp_path / "copy")
    done = distillkit(home, "run", "pupil.toml")
    assert done.returncode == 0, done.stderr
    assert "pupil/2" in done.stdout
    report = json.loads((home / "reports/pupil/2/report.json").read_text())
    assert (report["teacher"]["asked"], report["teacher"]["cached"]) == (0, 3)
    before = json.loads((home / "reports/pupil/1/report.json").read_text())
    assert report["training"]["weights_sha256"] == before["training"]["weights_sha256"]


def test_stages_can_be_run_one_by_one(home: Path) -> None:
    assert distillkit(home, "run", "tiny.toml", "--until", "train").returncode == 0
    assert not (home / "reports/tiny/1/grades.jsonl").exists()
    done = distillkit(home, "judge", "--samples", "3")
    assert done.returncode == 0, done.stderr
    assert len((home / "reports/tiny/1/samples.jsonl").read_text().splitlines()) == 3
    (home / "reports/tiny/1/report.html").unlink()
    assert distillkit(home, "report", "tiny").returncode == 0
    assert (home / "reports/tiny/1/report.html").is_file()
    assert not (home / "reports/tiny/2").exists()


def test_set_changes_a_key_for_one_run(home: Path) -> None:
    done = distillkit(home, "run", "tiny.toml", "--set", "train.steps=2")
    assert done.returncode == 0, done.stderr
    assert json.loads((home / "reports/tiny/1/run.json").read_text())["training"]["steps"] == 2


def test_a_run_goes_on_by_its_name_with_its_own_teacher_and_no_fewer_steps(made: Path, tmp_path: Path) -> None:
    home = shutil.copytree(made, tmp_path / "copy")
    done = distillkit(home, "run", "pupil", "--set", "train.steps=8", "--resume")
    assert done.returncode == 0, done.stderr
    report = json.loads((home / "reports/pupil/1/report.json").read_text())
    assert report["training"]["steps"] == 8
    assert (report["teacher"]["asked"], report["teacher"]["cached"]) == (3, 0)  # in all sittings
    kept = (home / "reports/pupil/1/recipe.toml").read_text()
    other = distillkit(home, "run", "pupil", "--set", "teacher.max_tokens=5", "--resume")
    assert (other.returncode, "the teacher" in other.stderr) == (2, True)
    fewer = distillkit(home, "run", "pupil", "--set", "train.steps=4", "--resume")
    assert (fewer.returncode, "8 steps already" in fewer.stderr) == (2, True)
    assert (home / "reports/pupil/1/recipe.toml").read_text() == kept


def test_a_failed_run_says_failed(home: Path) -> None:
    done = distillkit(home, "run", "tiny.toml", "--set", "train.learning_rate=1e30", "--set", "train.warmup=0")
    assert done.returncode == 1
    assert "learning_rate" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((home / "reports/tiny/1/run.json").read_text())["status"] == "failed"


# Looking around.


def test_plan_counts_and_writes_no_run(made: Path) -> None:
    done = distillkit(made, "plan", "pupil.toml", "--json")
    foreseen = json.loads(done.stdout)
    assert foreseen["teacher"]["calls"] == 0
    assert foreseen["teacher"]["cached"] == 3
    parameters = foreseen["student"]["parameters"]
    assert parameters["total"] == parameters["unique"] + 300 * 16
    assert sorted(path.name for path in (made / "reports/pupil").iterdir()) == ["1"]
    assert "parameters" in distillkit(made, "plan", "pupil.toml").stdout


def test_compare_sets_runs_side_by_side(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    files = ("--html", str(page), "--markdown", str(tmp_path / "page.md"), "--csv", str(tmp_path / "tables"))
    done = distillkit(made, "compare", "tiny", "pupil/1", "--json", *files)
    rows = {row["metric"]: row for row in json.loads(done.stdout)["rows"]}
    row = rows["bits_per_byte"]
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["verdict"] in ("better", "worse", "not distinguishable")
    assert "<html" in page.read_text()
    assert "tiny/1" in (tmp_path / "page.md").read_text()
    assert "bits_per_byte" in (tmp_path / "tables" / "differences.csv").read_text()
    assert "bits per byte" in distillkit(made, "compare", "tiny", "pupil").stdout


def test_runs_are_listed(made: Path) -> None:
    rows = json.loads(distillkit(made, "runs", "--json").stdout)
    assert [row["run"] for row in rows] == ["pupil/1", "tiny/1"]
    assert "pupil/1" in distillkit(made, "runs").stdout


def test_generate_writes_the_same_for_the_same_seed(made: Path) -> None:
    words = ("generate", "tiny", "--prompt", "One day", "--max-tokens", "12", "--top-k", "5", "--top-p", "0.9")
    words += ("--min-p", "0.01", "--repetition-penalty", "1.2")
    texts = [distillkit(made, *words, "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert texts[0].startswith("One day")
    assert texts[0] == texts[1] != texts[2]


def test_plugins_are_listed_with_what_is_broken(made: Path, tmp_path: Path) -> None:
    rows = json.loads(distillkit(made, "plugins", "--json").stdout)
    names = {(row["role"], row["name"]) for row in rows if row["status"] == "ok"}
    assert {("teacher", "checkpoint"), ("source", "tales"), ("mixer", "hard"), ("judge", "perplexity")} <= names
    package = tmp_path / "broken-0.1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.1\n")
    (package / "entry_points.txt").write_text("[distillkit]\nworse = no_such_module\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "distillkit", "plugins"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0
    assert "broken 0.1 is broken" in done.stdout
    assert "no_such_module" in done.stdout
    assert "checkpoint" in done.stdout


def test_a_plugin_file_teaches(home: Path) -> None:
    (home / "hello.py").write_text(
        "from distillkit import Answer, Request, Teacher, hookimpl\n"
        "class Hello(Teacher):\n"
        '    """Answers every prompt with the same words."""\n'
        '    name = "hello"\n'
        '    signal = "text"\n'
        "    class Options(Teacher.Options):\n"
        '        words: str = "and they all went home."\n'
        "    def answer(self, request: Request) -> Answer:\n"
        "        return Answer(text=self.options.words)\n"
        "@hookimpl\n"
        "def register_teachers():\n"
        "    return [Hello]\n"
    )
    teacher = ["--set", "teacher.provider=hello", "--set", "teacher.prompts=4"]
    done = distillkit(home, "-p", "hello.py", "run", "tiny.toml", *teacher)
    assert done.returncode == 0, done.stderr
    assert json.loads((home / "reports/tiny/1/run.json").read_text())["teacher"]["asked"] == 4
    unknown = distillkit(home, "run", "tiny.toml", *teacher)
    assert unknown.returncode == 2
    assert "hello" in unknown.stderr


def test_a_recipe_is_checked_shown_and_described(home: Path) -> None:
    assert distillkit(home, "recipe", "check", "tiny.toml").returncode == 0
    shown = distillkit(home, "recipe", "show", "tiny.toml").stdout
    (home / "again.toml").write_text(shown)
    assert distillkit(home, "recipe", "show", "again.toml").stdout == shown
    assert "tales" in json.dumps(json.loads(distillkit(home, "recipe", "schema").stdout))


def test_a_recipe_is_named_by_any_path(home: Path) -> None:
    for path in ("tiny.toml", "./tiny.toml", str(home / "tiny.toml"), f"../{home.name}/tiny.toml"):
        done = distillkit(home, "plan", path)
        assert done.returncode == 0, done.stderr


def test_init_writes_a_recipe_that_is_fine(home: Path) -> None:
    assert distillkit(home, "init", "mine").returncode == 0
    assert distillkit(home, "recipe", "check", "mine.toml").returncode == 0
    again = distillkit(home, "init", "mine")
    assert again.returncode == 2
    assert "mine.toml" in again.stderr


def test_bundled_recipes_are_fine(home: Path) -> None:
    for name in ("quickstart", "quickstart_alone", "tales_teacher"):
        done = distillkit(home, "recipe", "check", name)
        assert done.returncode == 0, done.stderr


# Wrong input.

WRONG = {
    "a missing recipe": (["run", "nothere.toml"], "nothere.toml"),
    "a misspelt bundled recipe": (["run", "quickstrat"], "quickstart"),
    "bad TOML": (["run", "bad.toml"], "bad.toml"),
    "an unknown key": (["run", "tiny.toml", "--set", "train.stpes=3"], "'steps'"),
    "a wrong value": (["run", "tiny.toml", "--set", "train.steps=many"], "whole number"),
    "an unknown teacher": (["run", "tiny.toml", "--set", "teacher.provider=grok"], "grok"),
    "heads that do not divide width": (["run", "tiny.toml", "--set", "student.heads=3"], "must divide width"),
    "a mixer that needs more than there is": (["run", "tiny.toml", "--set", "mixer.name=alpha-temperature"], "logprob"),
    "a missing text file": (["run", "text.toml", "--set", "data.path=gone.txt"], "gone.txt"),
    "an empty corpus": (["run", "text.toml", "--set", "data.path=empty.txt"], "empty.txt"),
    "a binary corpus": (["run", "text.toml", "--set", "data.path=binary.txt"], "binary.txt"),
    "one document only": (
        ["run", "text.toml", "--set", "data.path=short.txt", "--set", "tokenizer.vocab_size=260"],
        "data.held_out",
    ),
    "an unknown student to begin from": (["run", "tiny.toml", "--set", "student.from=nobody"], "nobody"),
    "an unknown student, when checked": (["recipe", "check", "tiny.toml", "--set", "student.from=nobody"], "nobody"),
    "an unknown student that teaches": (
        ["recipe", "check", "quickstart", "--set", "teacher.model=tales-techer"],
        "tales-teacher",
    ),
    "an unknown command": (["rnu"], "'run'"),
    "an unknown run": (["judge", "nobody/7"], "nobody"),
    "a missing plugin": (["-p", "gone.py", "plugins"], "gone.py"),
    "no prompt": (["generate", "tales-teacher"], "--prompt"),
    "an unknown student": (["generate", "tales-techer", "--prompt", "a"], "tales-teacher"),
    "bad syntax in --set": (["run", "tiny.toml", "--set", "train.steps"], "key.path=value"),
    "an unknown tokenizer": (["run", "tiny.toml", "--set", "tokenizer.kind=gtp2"], "gpt2"),
    "a tokenizer too large for the corpus": (["run", "tiny.toml", "--set", "tokenizer.vocab_size=60000"], "vocab_size"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_input_gives_one_clear_message_and_exit_2(home: Path, fault: str) -> None:
    (home / "bad.toml").write_text('name = "bad\n')
    (home / "text.toml").write_text(TINY.replace('source = "tales"\nstories = 60', 'source = "text"'))
    (home / "empty.txt").write_text("")
    (home / "short.txt").write_text("One short text.")
    (home / "binary.txt").write_bytes(b"text\x00\xff\xfe" * 50)
    words, expected = WRONG[fault]
    done = distillkit(home, *words)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 8
    assert not list(home.rglob("reports/*/*"))


def test_a_home_that_cannot_be_written_exits_2(home: Path) -> None:
    (home / "file").write_text("")
    done = program(["run", "tiny.toml"], home, {**os.environ, "DISTILLKIT_HOME": str(home / "file" / "inside")})
    assert done.returncode == 2
    assert "DISTILLKIT_HOME" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [2, 20, 60])
def test_a_full_disk_gives_one_clear_message_and_no_half_written_file(home: Path, kilobytes: int) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes << 10, kilobytes << 10))

    done = distillkit(home, "run", "tiny.toml", preexec_fn=limit)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr
    again = distillkit(home, "run", "tiny.toml")
    assert again.returncode == 0, again.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("kilobytes", [40, 150])
def test_a_disk_that_is_really_full_is_told(home: Path, kilobytes: int) -> None:
    disk = home / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        done = program(["run", "tiny.toml"], home, {**os.environ, "DISTILLKIT_HOME": str(disk)})
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert not list(disk.rglob("*.part"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="on a Mac MLX is whole by itself")
def test_mlx_without_a_backend_says_in_a_line_what_to_install(home: Path) -> None:
    package = home / "site" / "mlx"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(home / "site"), "DISTILLKIT_HOME": str(home)}
    command = [sys.executable, "-m", "distillkit", "run", "tiny.toml"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home)
    assert done.returncode == 2
    assert "distillkit[cpu]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_who_has_gone_ends_the_program_without_a_word(home: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "distillkit", "recipe", "schema"]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, cwd=home, timeout=60, check=False)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("yes", "terminal", "answer", "said"),
    [
        (True, False, None, ""),
        (False, False, None, "nobody is there"),
        (False, True, False, "declined"),
        (False, True, True, ""),
    ],
)
def test_nobodys_silence_is_a_yes(
    monkeypatch: pytest.MonkeyPatch, yes: bool, terminal: bool, answer: bool | None, said: str
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setattr("click.confirm", lambda question, err: {(question, err): answer}["Continue?", True])
    ends = {"without_terminal": UsageError("nobody is there"), "declined": UsageError("declined")}
    with pytest.raises(UsageError, match=said) if said else nullcontext():
        confirm("Continue?", yes, **ends)


def test_debug_shows_the_traceback(home: Path) -> None:
    done = distillkit(home, "--debug", "run", "nothere.toml")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
