"""For all tests: load a fast BLAS before any test imports mlx, with one thread; optional packages to compare with."""

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
# Let child processes of tests find compiled modules; otherwise each would spend half a second on compiling.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.fsync = lambda handle: None  # no test cuts the power, and fsync on a busy disk is slow
gc.set_threshold(20_000, 20, 20)  # full collections are slow with all peers imported, and frequent


@pytest.fixture
def peer() -> Callable[[str], ModuleType]:
    """Import an optional package or skip the test; with DISTILLKIT_PEERS=required a missing package is an error."""

    def find(name: str) -> ModuleType:
        if os.environ.get("DISTILLKIT_PEERS") != "required":
            pytest.importorskip(name.partition(".")[0], reason=f"the peer {name} is not installed")
        return importlib.import_module(name)

    return find
