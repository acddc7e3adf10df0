"""A time limit for calls on the main thread, so that a call that hangs does not block a run.

After the limit, a signal handler raises TimeoutError in Python code, which also interrupts sleeps and blocking reads.
Compiled code that does not return to Python cannot be interrupted: after a grace period, a watchdog thread prints the
traceback and ends the process. No data is lost, because files on disk are complete at any time.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GRACE_SECONDS = 60.0  # additional seconds for compiled code


@contextmanager
def time_limit(seconds: float | None, what: str = "no answer", grace: float = GRACE_SECONDS) -> Iterator[None]:
    """Raise TimeoutError if the block takes longer. Has no effect outside the main thread."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        raise TimeoutError(f"{what} within {seconds:g} s")

    former = signal.signal(signal.SIGALRM, ring)
    if screen := sys.__stderr__:
        faulthandler.dump_traceback_later(seconds + grace, exit=True, file=screen)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if screen:
            faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, former)
