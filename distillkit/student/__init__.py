"""The student: its network, its losses, its training. The fast BLAS is loaded before anything imports mlx.

Names are looked up when they are used, so that loading the BLAS does not load mlx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import blas

if TYPE_CHECKING:
    from .drawing import Sampling
    from .trained import Trained, fingerprint

_HOME = {"Sampling": "drawing", "Trained": "trained", "fingerprint": "trained"}

__all__ = ["Sampling", "Trained", "fingerprint"]

blas.load()
blas.feed_streams()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
