"""The exception hierarchy. Every message says what happened, and its hint what to do.

DistillkitError            exit code 1
├── UsageError             exit code 2: detected before anything is spent
│   ├── RecipeError        a recipe, or a value in it, is invalid
│   ├── PluginError        a plugin is broken, or no plugin has the given name
│   └── DataError          a corpus or tokenizer cannot be used
├── TeacherError           a request failed permanently: the stage stops
│   ├── TryAgain           a request failed temporarily: the host retries a limited number of times
│   └── SlowDown           rate limit: the host waits and retries without counting an attempt
├── TrainingError          training cannot continue
├── CorruptError           a file on disk is damaged
├── PeerProcessError       another process of the same run failed; exits with the same code
├── LimitReached           exit code 3: stopped at a budget or quota, resumable
└── Interrupted            exit code 130: stopped by the user, resumable
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DistillkitError(Exception):
    """An error that is reported in a few lines, without a traceback."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(DistillkitError):
    """The request is invalid: wrong options, a wrong recipe, a missing file or package."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is missing, unreadable or invalid."""


class PluginError(UsageError):
    """A plugin is broken, or no plugin has the given name."""


class DataError(UsageError):
    """A corpus or a tokenizer cannot be used."""


class TeacherError(DistillkitError):
    """A teacher gave no answer. Failures are never stored as answers."""


class TryAgain(TeacherError):
    """A temporary failure. `seconds`, if known, is the time to wait before the next attempt."""

    def __init__(self, message: str, hint: str = "", *, seconds: float | None = None) -> None:
        super().__init__(message, hint)
        self.seconds = seconds


class SlowDown(TeacherError):
    """A rate limit of the teacher was reached. `seconds`, if known, is the time to wait.

    `daily` means that a daily quota is used up. No attempt is counted, and all requests wait, not only this one.
    """

    def __init__(self, message: str, hint: str = "", *, seconds: float | None = None, daily: bool = False) -> None:
        super().__init__(message, hint)
        self.seconds, self.daily = seconds, daily


class TrainingError(DistillkitError):
    """Training cannot continue."""


class CorruptError(DistillkitError):
    """A file on disk is damaged: it is not what was written."""


class PeerProcessError(DistillkitError):
    """Another process of the same run failed and reports the reason. An empty message prints nothing."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LimitReached(DistillkitError):
    """A budget or quota is used up. The same command resumes the run later."""

    exit_code = 3


class Interrupted(DistillkitError):
    """The user interrupted the run. It can be resumed."""

    exit_code = 130


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint with the closest known word, or with all known words if none is close."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(names)}." if names else "None are known."
