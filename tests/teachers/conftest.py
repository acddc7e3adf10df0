"""Fixtures that several test modules of this folder use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distillkit.teachers.answers.disk import DiskAnswerStore


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskAnswerStore]:
    with DiskAnswerStore(tmp_path / "cache") as opened:
        yield opened
