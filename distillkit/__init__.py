"""The plugin author's door: everything a plugin may import, nothing heavy.

Names are looked up when they are used, so that `import distillkit` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import DataError, DistillkitError, SlowDown, TeacherError, TryAgain, UsageError
    from .hookspecs import API_VERSION, hookimpl
    from .records import Allowance, Answer, Document, Grade, Metric, Price, Request, Sample, Token, Usage
    from .roles import Exporter, Judge, Mixer, Source, Student, Subject, Teacher, Tracker
    from .schedules import Schedule, Within

__version__ = "0.1.0"

_HOME = {
    "errors": ("DataError", "DistillkitError", "SlowDown", "TeacherError", "TryAgain", "UsageError"),
    "hookspecs": ("API_VERSION", "hookimpl"),
    "records": (
        *("Allowance", "Answer", "Document", "Grade", "Metric", "Price"),
        *("Request", "Sample", "Token", "Usage"),
    ),
    "roles": ("Exporter", "Judge", "Mixer", "Source", "Student", "Subject", "Teacher", "Tracker"),
    "schedules": ("Schedule", "Within"),
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
    for module, names in _HOME.items():
        if name in names:
            value = getattr(importlib.import_module(f".{module}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
