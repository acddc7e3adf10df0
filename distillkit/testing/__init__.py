"""Conformance checks that a plugin's own tests call: they verify what the host relies on.

    from distillkit.testing import check_teacher

    def test_conformance():
        check_teacher(Hello, {"words": "bye."})

Each function runs all checks of a role. It returns the names of the checks, or raises an AssertionError that lists
every failed check with what was found and how to fix it. It does not depend on a test framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..student import blas  # the fast BLAS must be loaded before a plugin's test imports mlx

if TYPE_CHECKING:
    from .exporters import check_exporter
    from .judges import check_judge
    from .mixers import check_mixer
    from .optimizers import check_optimizer
    from .sources import check_source
    from .students import check_student
    from .teachers import check_teacher
    from .trackers import check_tracker

_HOME = {
    "check_exporter": "exporters",
    "check_judge": "judges",
    "check_mixer": "mixers",
    "check_optimizer": "optimizers",
    "check_source": "sources",
    "check_student": "students",
    "check_teacher": "teachers",
    "check_tracker": "trackers",
}

__all__ = [
    "check_exporter",
    "check_judge",
    "check_mixer",
    "check_optimizer",
    "check_source",
    "check_student",
    "check_teacher",
    "check_tracker",
]

blas.load()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
