"""The stage of chaos: homes that are made once, a provider, and a nursery."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from support.chat_provider import serving
from support.fork_server import Nursery
from support.scenarios import Stage


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("chaos")
    work = folder / "nursery"
    work.mkdir()
    with serving() as provider, Nursery(work) as nursery:
        made = Stage(folder, nursery, provider)
        made.prepare()
        yield made


@pytest.fixture(autouse=True)
def _at_home() -> None:
    os.environ.pop("DISTILLKIT_HOME", None)
