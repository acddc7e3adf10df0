"""Processes, as those that share a folder see each other: which one it was, where, and whether it has surely ended.

Knows no file. A number alone names no process: numbers are used again, and mean something else on another machine.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path


@cache
def place() -> str:
    """Where process numbers mean the same: this machine since it started, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()


def born(pid: int) -> str:
    """When a process began, in the system's own count, or nothing where it does not say: numbers are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Whether a process of this place has that number now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def this() -> tuple[str, int, str]:
    """What names this process."""
    return place(), os.getpid(), born(os.getpid())


def gone(where: str, pid: int, since: str) -> bool:
    """Whether a process has surely ended; one of another place may live."""
    return where == place() and (not alive(pid) or born(pid) != since)
