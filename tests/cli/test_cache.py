"""The cache commands as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distillkit.core.records import Answer, Usage
from distillkit.teachers.answers.disk import DiskAnswerStore
from support.cli_process import program
from support.small_recipe import small
from support.stored_answers import keep
from support.teachers import plant


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskAnswerStore]:
    with DiskAnswerStore(tmp_path / "cache") as opened:
        yield opened


def command(home: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """The program itself, in a folder of its own."""
    environment = {**os.environ, "DISTILLKIT_HOME": str(home), "COLUMNS": "100"}
    return program(["cache", *words], home, environment, **more)


def test_the_commands_of_the_cache_as_a_user_meets_them(tmp_path: Path) -> None:
    with DiskAnswerStore(tmp_path / "cache" / "teachers") as cache:
        keys = [keep(cache, Answer("a", usage=Usage(3, 4)), i) for i in range(3)]
        keep(cache, Answer("a"), 0, provider="q")
    said = command(tmp_path, "stats")
    assert said.returncode == 0
    assert "4 answers" in said.stdout.splitlines()[0]
    assert json.loads(command(tmp_path, "stats", "--json").stdout)["prompt_tokens"] == 9
    assert command(tmp_path, "verify").returncode == 0
    assert command(tmp_path, "export", "a.jsonl.gz").returncode == 0
    said = command(tmp_path, "prune", "--provider", "q")
    assert (said.returncode, "--yes" in said.stderr) == (2, True)
    assert "1 rows" in command(tmp_path, "prune", "--provider", "q", "--dry-run").stdout
    assert json.loads(command(tmp_path, "prune", "--provider", "q", "--yes", "--json").stdout)["dropped"] == 1
    assert "1 of 4 rows are new" in command(tmp_path, "import", "a.jsonl.gz").stdout
    said = command(tmp_path, "explain", keys[0][:12], keys[1][:12])
    assert said.stdout.splitlines()[-1] == 'request.prompt  "prompt 0"  |  "prompt 1"'
    plant(tmp_path / "cache" / "teachers", key="bad", raw=1, mode=1, value="{")
    said = command(tmp_path, "verify")
    assert (said.returncode, "bad" in said.stdout, "--repair" in said.stderr) == (1, True, True)
    assert command(tmp_path, "verify", "--repair").returncode == 0
    assert command(tmp_path, "verify").returncode == 0


ASKING = small(
    "asking",
    """
[teacher]
provider = "checkpoint"
prompts = 3
prompt_tokens = 4
max_tokens = 6
""",
)


def test_explain_says_what_of_a_recipe_is_not_there_and_why(tmp_path: Path) -> None:
    (tmp_path / "asking.toml").write_text(ASKING)
    said = command(tmp_path, "explain", "asking.toml")
    assert (said.returncode, said.stdout.splitlines()[0]) == (0, "0 of 3 requests are in the cache, 3 are not.")
    environment = {**os.environ, "DISTILLKIT_HOME": str(tmp_path)}
    assert program(["label", "asking.toml"], tmp_path, environment).returncode == 0
    assert "3 of 3 requests" in command(tmp_path, "explain", "asking.toml").stdout
    (tmp_path / "asking.toml").write_text(ASKING + "temperature = 0.5\n")
    found = json.loads(command(tmp_path, "explain", "asking.toml", "--json").stdout)
    assert found["differ_in"] == {"request.temperature": 3}


WITHOUT = """
import sys
sys.modules["zstandard"] = None
from pathlib import Path
from distillkit.core.errors import UsageError
from distillkit.teachers.answers import archive
from distillkit.teachers.answers.disk import DiskAnswerStore
with DiskAnswerStore(Path("cache")) as cache:
    try:
        archive.export_answers(cache, Path("a.jsonl.zst"))
    except UsageError as error:
        print(error)
"""


def test_without_zstandard_it_is_said_what_to_install(tmp_path: Path) -> None:
    run = [sys.executable, "-c", WITHOUT]
    said = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True).stdout
    assert "distillkit[zstd]" in said
    assert not (tmp_path / "a.jsonl.zst").exists()
