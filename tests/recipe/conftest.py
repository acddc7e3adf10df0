"""Each test runs in a folder of its own; `shipped` stands in for the recipes of the package."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A stand-in for the recipes that ship with the package."""
    folder = tmp_path / "site" / "distillkit_recipes"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "quickstart.toml").write_text('name = "quickstart"\n[train]\nsteps = 7\n')
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "distillkit_recipes", raising=False)
    yield folder
    sys.modules.pop("distillkit_recipes", None)
