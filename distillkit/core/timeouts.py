"""Cuts what takes too long on this thread: a call that hangs must not hold a night's run.

After so many seconds whatever Python does here is broken off by a TimeoutError, also a sleep or a read that waits.
Compiled code that never comes back to Python cannot be broken off: it gets a little longer, and then the process is
ended by a thread that needs no Python, and shows where it hung. Nothing is lost by that: what is on disk is whole at
any time. Knows nothing of what is called.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GRACE_SECONDS = 60.0  # seconds that compiled code gets beside


@contextmanager
def time_limit(seconds: float | None, what: str = "no answer", grace: float = GRACE_SECONDS) -> Iterator[None]:
    """Break off what takes longer. Only the main thread can; within another nothing is done."""
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
