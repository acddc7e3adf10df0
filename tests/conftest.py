"""What all rooms share: a fast BLAS before any test imports mlx, with one thread, and peers to compare with."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from distillkit.student import blas

blas.load()
# The processes that tests start find our modules compiled; otherwise each would spend half a second on that.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.fsync = lambda handle: None  # no test cuts the power, and a busy disk takes long
gc.set_threshold(20_000, 20, 20)  # with all peers imported a whole collection is slow, and many are started


@pytest.fixture
def peer() -> Callable[[str], ModuleType]:
    """Import an optional package. Without it a test is skipped and says so; where peers are required, it fails."""

    def find(name: str) -> ModuleType:
        if os.environ.get("DISTILLKIT_PEERS") == "required":
            return importlib.import_module(name)
        return pytest.importorskip(name, reason=f"the peer {name} is not installed")

    return find
