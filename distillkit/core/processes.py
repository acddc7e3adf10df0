"""Processes, as those that share a folder see each other: which one it was, where, and whether it has surely ended.

Knows no file. A number alone names no process: numbers are used again, and mean something else on another machine.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

STAT = "/proc/{}/stat"  # on Linux


@cache
def host_id() -> str:
    """Where process numbers mean the same: this machine since it started, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()


def start_time(pid: int) -> str:
    """When a process began, in the system's own count, or nothing where it does not say: numbers are used again."""
    try:
        return Path(STAT.format(pid)).read_text().rpartition(")")[2].split()[19]
    except OSError:
        return _start_time_from_ps(pid)


def _start_time_from_ps(pid: int) -> str:
    """The same where there is no /proc, as on a Mac: to the second."""
    import subprocess

    command, always = ["ps", "-o", "lstart=", "-p", str(pid)], {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    try:
        return subprocess.run(command, env=always, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def is_alive(pid: int) -> bool:
    """Whether a process of this place has that number now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def current_process() -> tuple[str, int, str]:
    """What names this process."""
    return host_id(), os.getpid(), start_time(os.getpid())


def has_ended(where: str, pid: int, since: str) -> bool:
    """Whether a process has surely ended; one of another place may live."""
    if where != host_id():
        return False
    if not is_alive(pid):
        return True
    now = start_time(pid)
    return bool(now and since) and now != since  # else nobody knows whether the number was used again
