"""A home folder and recipes for runs that train on soft targets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from distillkit.core.run_folder import Run, newest_run
from distillkit.pipeline.checks import check
from distillkit.pipeline.context import Context
from distillkit.pipeline.new_run import create_run
from distillkit.pipeline.pipeline import Pipeline
from distillkit.plugins.manager import Plugins, current_plugins
from distillkit.recipe.recipe import load
from support.small_recipe import small

TINY = small(
    "tiny",
    """
[train]
steps = 4
batch_size = 4
warmup = 2
checkpoint_every = 4
""",
    top="judge = []",
)
PUPIL = """
extends = "tiny.toml"
name = "pupil"
[tokenizer]
kind = "tiny"
[teacher]
provider = "checkpoint"
model = "tiny"
prompts = 12
prompt_tokens = 8
max_tokens = 20
[mixer]
name = "peek"
"""
PLUGIN = '''
from distillkit import Mixer, hookimpl

class Peek(Mixer):
    """Requires soft targets, but learns from the hard ones."""
    name = "peek"
    signal = "top_logprobs"
    class Options(Mixer.Options):
        temperature: float = 1.0
    def rows(self, logits, targets, step):
        return {"hard": -targets.log_prob(logits)}

@hookimpl
def register_mixers():
    return [Peek]
'''
FOREIGN = ("tokenizer.kind=bpe", "tokenizer.vocab_size=340", "teacher.signal=top_logprobs", "teacher.top_logprobs=10")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny trained teacher."""
    folder = tmp_path_factory.mktemp("soft")
    (folder / "tiny.toml").write_text(TINY)
    (folder / "pupil.toml").write_text(PUPIL)
    (folder / "plugin.py").write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILLKIT_HOME", str(folder))
        patch.chdir(folder)
        sit(recipe="tiny")
    return folder


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder for one test."""
    shutil.copytree(trained, tmp_path / "home")
    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def assemble(*overrides: str, recipe: str = "pupil") -> Context:
    plugins = Plugins.load(("plugin.py",))
    return Context(plugins.check(load(f"{recipe}.toml", overrides)), current_plugins())


def sit(
    *overrides: str, stages: tuple[str, ...] = ("label", "train"), resume: bool = False, recipe: str = "pupil"
) -> Run:
    parts = assemble(*overrides, recipe=recipe)
    check(parts)
    run = newest_run(recipe) if resume else create_run(parts, {})
    Pipeline(parts, run).execute(stages)
    return run
