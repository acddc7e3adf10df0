"""The error tree. Every message says what happened and, after it, what to do next.

DistillkitError            exit 1
├── UsageError             exit 2: can be known before anything is spent
│   ├── RecipeError        a recipe, or a value in it
│   ├── PluginError        a plugin, or a name that none offers
│   └── DataError          a corpus or tokenizer that cannot be used
├── TeacherError           a teacher did not answer, and asking again would not help: the host stops
│   ├── TryAgain           this time it failed: the host asks again, a bounded number of times
│   └── SlowDown           it asks for patience: the host waits and asks again, and no attempt is lost
├── TrainingError          training cannot go on
├── CorruptError           a file is not what its checksum says
├── PeerProcessError       another process of the same run failed; exits as that one does
├── LimitReached           exit 3: stopped at a budget or quota, resumable
└── Interrupted            exit 130: stopped by the user, resumable
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DistillkitError(Exception):
    """A failure that is told in a few lines, without a traceback."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(DistillkitError):
    """Something asked for cannot be done as it was asked."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is missing, unreadable or says something that cannot be."""


class PluginError(UsageError):
    """A plugin is broken, or nobody offers what was named."""


class DataError(UsageError):
    """A corpus or a tokenizer cannot be used."""


class TeacherError(DistillkitError):
    """A teacher did not give an answer. Failures are never answers, and never cached."""


class TryAgain(TeacherError):
    """A failure that may pass. `seconds`, if known, says when asking again makes sense."""

    def __init__(self, message: str, hint: str = "", *, seconds: float | None = None) -> None:
        super().__init__(message, hint)
        self.seconds = seconds


class SlowDown(TeacherError):
    """The teacher is asked too much. `seconds`, if known, says for how long to wait.

    `daily` says that it is a day's share that is used up. It costs no attempt, and everybody waits, not only
    the request that met it.
    """

    def __init__(self, message: str, hint: str = "", *, seconds: float | None = None, daily: bool = False) -> None:
        super().__init__(message, hint)
        self.seconds, self.daily = seconds, daily


class TrainingError(DistillkitError):
    """Training met something that it cannot go on from."""


class CorruptError(DistillkitError):
    """A file on disk is not what was written there."""


class PeerProcessError(DistillkitError):
    """Another process of the same run failed, and says why. Without a message there is nothing left to say."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LimitReached(DistillkitError):
    """A budget or quota is used up; the same command goes on from here later."""

    exit_code = 3


class Interrupted(DistillkitError):
    """The user asked to stop; the same run can be resumed."""

    exit_code = 130


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known word, or all of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(names)}." if names else "None are known."
