"""API keys from the environment and .env."""

from __future__ import annotations

from pathlib import Path

import pytest
from distillkit_plugins.compatible import Compatible
from distillkit_plugins.groq import Groq
from distillkit_plugins.openai import OpenAI

from distillkit.core.errors import UsageError
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking.label import label
from distillkit.teachers.client import api_keys
from support.paths import ROOT
from support.provider_faults import requests


def test_a_key_that_is_missing_is_said_before_anything(cache: DiskAnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UsageError, match="there is no key for the teacher 'openai'") as missing:
        label(OpenAI(), requests(1), cache)
    assert "OPENAI_API_KEY" in missing.value.hint


def test_the_environment_wins_over_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("# keys\nexport A_KEY='one'\nB_KEY=two\nEMPTY=\n\nno line of ours\n")
    monkeypatch.setenv("B_KEY", "three")
    monkeypatch.delenv("A_KEY", raising=False)
    assert [api_keys.find_key(name) for name in ("A_KEY", "B_KEY", "EMPTY", "NONE")] == ["one", "three", None, None]
    monkeypatch.setenv("A_KEY", "not a key\n")
    with pytest.raises(UsageError, match="A_KEY contains characters"):
        api_keys.find_key("A_KEY")


def test_the_example_of_dotenv_lists_every_key() -> None:
    text = (ROOT / ".env.example").read_text()
    assert all(f"{plugin.variable}=" in text for plugin in (Groq, OpenAI, Compatible))
