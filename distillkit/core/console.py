"""Output of a run while it works: a live status line on a terminal, plain lines everywhere else.

Modules print through a `Console`. Only the command line decides which implementation they get.
"""

from __future__ import annotations

import math
import sys
import time
from typing import TextIO

from .text import printable

PLAIN_SECONDS = 5.0  # minimum time between two progress lines in a log
LIVE_SECONDS = 0.1  # minimum time between two updates of a live line


class Console:
    """Prints nothing. The base class, and the default for tests and for programs that use distillkit as a library."""

    def print(self, text: str) -> None:
        """Print a line."""

    def warn(self, text: str) -> None:
        """Print a warning that the user should act on."""

    def progress(self, text: str, last: bool = False) -> None:
        """Show progress. The next progress line may replace this one, unless it is the `last` of its kind."""


class PlainConsole(Console):
    """Prints lines to a stream, with progress lines at most every `PLAIN_SECONDS`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.last_progress = -math.inf

    def print(self, text: str) -> None:
        """Print a line immediately."""
        print(printable(text), file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        """Print a line that begins with "warning"."""
        self.print(f"warning: {text}")

    def progress(self, text: str, last: bool = False) -> None:
        """Print a line, unless another progress line was printed just before."""
        now = time.monotonic()
        if last or now - self.last_progress >= PLAIN_SECONDS:
            self.last_progress = now
            self.print(text)


class LiveConsole(PlainConsole):
    """Shows progress on one line that is rewritten in place, for terminals."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.has_live_line = False

    def print(self, text: str) -> None:
        """Print a line in place of the live line."""
        self.stream.write("\r\x1b[K" if self.has_live_line else "")
        self.has_live_line = False
        super().print(text)

    def progress(self, text: str, last: bool = False) -> None:
        """Rewrite the live line, cut to the width of the terminal."""
        now = time.monotonic()
        if last:
            self.print(text)
        elif now - self.last_progress >= LIVE_SECONDS:
            self.last_progress = now
            width = _terminal_width() - 1
            self.stream.write(f"\r\x1b[K{printable(text)[:width]}")
            self.stream.flush()
            self.has_live_line = True


def _terminal_width() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def clear_live_line() -> None:
    """Erase a live line that may be on the terminal, before other code prints there."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def default_console() -> Console:
    """The console for standard error: live on a terminal, plain otherwise."""
    return LiveConsole() if sys.stderr.isatty() else PlainConsole()


def format_duration(seconds: float) -> str:
    """A duration in short form: 42s, 3m10s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
