"""Fixtures of the crash and disk tests: homes that are made once, a provider, and a fork server."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from support.chat_provider import serving
from support.fork_server import ForkServer
from support.scenarios import Stage


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("chaos")
    work = folder / "fork_server"
    work.mkdir()
    with serving() as provider, ForkServer(work) as fork_server:
        made = Stage(folder, fork_server, provider)
        made.prepare()
        yield made


@pytest.fixture(autouse=True)
def _at_home() -> None:
    os.environ.pop("DISTILLKIT_HOME", None)
