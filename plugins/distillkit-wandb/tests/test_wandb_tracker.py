"""Runs in Weights & Biases, offline: real recipes, the files that wandb wrote, and no network at all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
name = "watched"
[data]
source = "tales"
stories = 80
held_out = 0.2
[tokenizer]
vocab_size = 300
[student]
layers = 1
heads = 2
width = 16
context = 16
[train]
steps = 6
batch_size = 2
evaluate_every = 3
checkpoint_every = 3
[sampling]
count = 3
max_tokens = 8
[[tracker]]
name = "wandb"
mode = "offline"
project = "foxes"
tags = ["small"]
"""
KEYS = {"GROQ_API_KEY": "canary.in.the.mine.1", "WANDB_API_KEY": "c" * 40, "MY_SECRET": "canary-number-three"}


class Listener:
    """Counts whoever connects to it."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port, self.calls = self.socket.getsockname()[1], 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.calls += 1
            connection.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.socket.close()


def distillkit(home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DISTILLKIT_HOME": str(home), "COLUMNS": "100", **variables}
    more = [] if _installed() else ["-p", "distillkit_wandb"]
    command = [sys.executable, "-m", "distillkit", *more, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, timeout=300)


def _installed() -> bool:
    from importlib.metadata import entry_points

    return any(entry.value == "distillkit_wandb" for entry in entry_points(group="distillkit"))


def records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format, wandb's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            record = Record()
            record.ParseFromString(part)
            yield record
            part = b""


def history(home: Path) -> list[dict[str, Any]]:
    """What was logged, in all sittings, a row a step."""
    rows = []
    for file in sorted(home.glob("reports/watched/1/wandb/offline-run-*/run-*.wandb")):
        for record in records(file):
            if record.HasField("history"):
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def test_an_offline_run_holds_all_that_was_logged_and_nothing_private(tmp_path: Path, listener: Listener) -> None:
    (tmp_path / "watched.toml").write_text(RECIPE)
    proxy = f"http://127.0.0.1:{listener.port}"
    network = {"WANDB_BASE_URL": proxy, "HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "https_proxy": proxy}
    done = distillkit(tmp_path, "run", "watched.toml", **KEYS, **network)
    assert done.returncode == 0, done.stderr
    assert listener.calls == 0

    run = tmp_path / "reports/watched/1"
    logged = {row["_step"]: row for row in history(tmp_path)}
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in metrics:
        seen = logged[row["step"]]
        if row["kind"] == "train":
            assert seen["train/loss"] == pytest.approx(row["loss"])
            assert seen["train/terms/hard"] == pytest.approx(row["terms"]["hard"])
            assert seen["train/learning_rate"] == pytest.approx(row["learning_rate"])
        else:
            assert seen["evaluation/loss"] == pytest.approx(row["loss"])
    assert {row["step"] for row in metrics} == set(range(1, 7))

    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    summary = {}
    for record in records(file):
        if record.HasField("summary"):
            summary |= {(item.key or "/".join(item.nested_key)): item.value_json for item in record.summary.update}
    report = json.loads((run / "report.json").read_text())
    metric = report["judges"]["perplexity"]["bits_per_byte"]
    assert json.loads(summary["judges/perplexity/bits_per_byte"]) == pytest.approx(metric["value"])
    assert json.loads(summary["judges/perplexity/bits_per_byte/low"]) == pytest.approx(metric["low"])
    assert json.loads(summary["training/steps"]) == 6
    sample = json.loads((run / "samples.jsonl").read_text().splitlines()[0])
    (table,) = run.glob("wandb/offline-run-*/files/media/table/samples*.json")
    assert json.loads(table.read_text())["data"][0] == [sample["id"], sample["prompt"], sample["completion"]]

    assert [record.run.host for record in records(file) if record.HasField("run")] == ["-"]
    sent = [file, *(path for path in (file.parent / "files").rglob("*") if path.is_file())]
    told = b"".join(path.read_bytes() for path in sent)
    assert b"tales" in told  # the recipe is there
    assert not [private for private in (*KEYS.values(), sys.executable) if private.encode() in told]
    kept = b"".join(path.read_bytes() for path in (run / "wandb").rglob("*") if path.is_file())
    assert not [key for key in KEYS.values() if key.encode() in kept]


def test_a_key_in_a_recipe_is_not_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from distillkit_wandb import redact_keys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GROQ_API_KEY", KEYS["GROQ_API_KEY"])
    (tmp_path / ".env").write_text("OPENAI_API_KEY='canary.from.a.file'\nNAME=harmless\n")
    told = {"teacher": {"extra": ["Bearer " + KEYS["GROQ_API_KEY"], "canary.from.a.file", "harmless"]}, "n": 1}
    assert redact_keys(told) == {"teacher": {"extra": ["Bearer ***", "***", "harmless"]}, "n": 1}


def test_a_run_that_goes_on_keeps_its_id_and_says_no_step_twice(tmp_path: Path) -> None:
    (tmp_path / "watched.toml").write_text(RECIPE)
    assert distillkit(tmp_path, "run", "watched.toml").returncode == 0
    done = distillkit(tmp_path, "run", "watched.toml", "--set", "train.steps=9", "--resume")
    assert done.returncode == 0, done.stderr
    files = list(tmp_path.glob("reports/watched/1/wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
    steps = [row["_step"] for row in history(tmp_path) if "train/loss" in row]
    assert sorted(steps) == list(range(1, 10))


def test_without_a_key_it_says_what_to_do_and_asks_nothing(tmp_path: Path) -> None:
    (tmp_path / "watched.toml").write_text(RECIPE.replace('mode = "offline"\n', ""))
    clean = {name: "" for name in os.environ if name.startswith("WANDB")}
    done = distillkit(tmp_path, "run", "watched.toml", HOME=str(tmp_path), NETRC=str(tmp_path / "none"), **clean)
    assert done.returncode == 2
    assert 'mode = "offline"' in done.stderr


def test_it_keeps_the_promises_of_a_tracker() -> None:
    from distillkit_wandb import WandB

    from distillkit.testing import check_tracker

    check_tracker(WandB, {"mode": "offline"})
