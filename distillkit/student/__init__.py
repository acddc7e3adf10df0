"""The student: its network, its losses, its training. The fast BLAS is loaded before anything imports mlx.

Names are looked up when they are used, so that loading the BLAS does not load mlx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import blas

if TYPE_CHECKING:
    from .generation.sampling import Sampling
    from .trained import Trained, fingerprint

_HOME = {"Sampling": "generation.sampling", "Trained": "trained", "fingerprint": "trained"}
_MODULES = {"exporting": "interchange.exporting"}  # under the name that authors of exporters know

__all__ = ["Sampling", "Trained", "fingerprint"]

blas.load()
blas.feed_streams()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{_MODULES[name]}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
