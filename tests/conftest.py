"""What all rooms share: a fast BLAS before any test imports mlx, with one thread, and peers to compare with."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from distillkit.student import blas

blas.load()


@pytest.fixture
def peer() -> Callable[[str], ModuleType]:
    """Import an optional package. Without it a test is skipped and says so; where peers are required, it fails."""

    def find(name: str) -> ModuleType:
        if os.environ.get("DISTILLKIT_PEERS") == "required":
            return importlib.import_module(name)
        return pytest.importorskip(name, reason=f"the peer {name} is not installed")

    return find
