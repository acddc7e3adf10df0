"""How a run talks while it works: a live line on a terminal, plain lines elsewhere.

The rooms call a `Voice`; only the command line knows which one is speaking.
"""

from __future__ import annotations

import math
import sys
import time
from typing import TextIO

from .text import clean

PLAIN_SECONDS = 5.0
LIVE_SECONDS = 0.1


class Voice:
    """Says nothing: the voice of tests and of programs that call the rooms themselves."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def warn(self, text: str) -> None:
        """A line that stays, and that the reader should act on."""

    def progress(self, text: str, last: bool = False) -> None:
        """A line that the next one may replace; the last of its kind stays."""


class Plain(Voice):
    """Lines, with progress no more often than a reader of a log would want."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.spoke = -math.inf

    def say(self, text: str) -> None:
        """A line, at once."""
        print(clean(text), file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        """A line that begins with "warning"."""
        self.say(f"warning: {text}")

    def progress(self, text: str, last: bool = False) -> None:
        """A line, unless another was just written."""
        now = time.monotonic()
        if last or now - self.spoke >= PLAIN_SECONDS:
            self.spoke = now
            self.say(text)


class Live(Plain):
    """One line that is rewritten in place, for a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.open = False

    def say(self, text: str) -> None:
        """A line, in place of the live one."""
        self.stream.write("\r\x1b[K" if self.open else "")
        self.open = False
        super().say(text)

    def progress(self, text: str, last: bool = False) -> None:
        """The live line, no wider than the terminal."""
        now = time.monotonic()
        if last:
            self.say(text)
        elif now - self.spoke >= LIVE_SECONDS:
            self.spoke = now
            width = _columns() - 1
            self.stream.write(f"\r\x1b[K{clean(text)[:width]}")
            self.stream.flush()
            self.open = True


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def wipe() -> None:
    """Take away a live line that may stand on the terminal, before something else is written there."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def voice() -> Voice:
    """The voice that suits where standard error goes."""
    return Live() if sys.stderr.isatty() else Plain()


def clock(seconds: float) -> str:
    """A duration as people say it: 42s, 3m10s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
