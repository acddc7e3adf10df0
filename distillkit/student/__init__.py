"""The student: its network, training, generation, serving and export. Importing it loads a fast BLAS before mlx.

Public names are imported on first use, so that loading the BLAS does not import mlx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import blas

if TYPE_CHECKING:
    from .generation.sampling import Sampling
    from .trained import Trained, fingerprint
    from .training.optimizers import AdamW

_HOME = {
    "AdamW": "training.optimizers",
    "Sampling": "generation.sampling",
    "Trained": "trained",
    "fingerprint": "trained",
}
_MODULES = {"exporting": "interchange.exporting"}  # the name that exporter plugins use

__all__ = ["AdamW", "Sampling", "Trained", "fingerprint"]

blas.load()
blas.widen_graph_evaluation()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{_MODULES[name]}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
