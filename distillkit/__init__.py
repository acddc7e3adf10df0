"""The public API for plugin authors.

Names are imported when they are first used, so that `import distillkit` is fast and loads no heavy package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.errors import DataError, DistillkitError, SlowDown, TeacherError, TryAgain, UsageError
    from .core.records import Allowance, Answer, Document, Grade, Metric, Price, Request, Sample, Token, Usage
    from .plugins.hookspecs import API_VERSION, hookimpl
    from .plugins.interfaces import (
        Exporter,
        Judge,
        Mixer,
        Optimizer,
        OptimizerStep,
        Source,
        Student,
        Subject,
        Teacher,
        Tracker,
    )
    from .recipe.schedules import Schedule, Within

__version__ = "0.1.0"

_MODULES = {
    "core.errors": ("DataError", "DistillkitError", "SlowDown", "TeacherError", "TryAgain", "UsageError"),
    "plugins.hookspecs": ("API_VERSION", "hookimpl"),
    "core.records": (
        *("Allowance", "Answer", "Document", "Grade", "Metric", "Price"),
        *("Request", "Sample", "Token", "Usage"),
    ),
    "plugins.interfaces": (
        *("Exporter", "Judge", "Mixer", "Optimizer", "OptimizerStep"),
        *("Source", "Student", "Subject", "Teacher", "Tracker"),
    ),
    "recipe.schedules": ("Schedule", "Within"),
}

__all__ = [
    "API_VERSION",
    "Allowance",
    "Answer",
    "DataError",
    "DistillkitError",
    "Document",
    "Exporter",
    "Grade",
    "Judge",
    "Metric",
    "Mixer",
    "Optimizer",
    "OptimizerStep",
    "Price",
    "Request",
    "Sample",
    "Schedule",
    "SlowDown",
    "Source",
    "Student",
    "Subject",
    "Teacher",
    "TeacherError",
    "Token",
    "Tracker",
    "TryAgain",
    "Usage",
    "UsageError",
    "Within",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(importlib.import_module(f".{module}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
