"""Identifies processes that share a folder, and tells whether one of them has ended.

A process ID alone is not enough: IDs are reused, and are local to a machine or a container. So a process is identified
by its host, its ID and its start time.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

STAT = "/proc/{}/stat"  # Linux


@cache
def host_id() -> str:
    """The scope of process IDs: this machine since it booted, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()


def start_time(pid: int) -> str:
    """The start time of a process in the units of the system; empty if unknown."""
    try:
        return Path(STAT.format(pid)).read_text().rpartition(")")[2].split()[19]
    except OSError:
        return _start_time_from_ps(pid)


def _start_time_from_ps(pid: int) -> str:
    """The start time from `ps`, in seconds, for systems without /proc such as macOS."""
    import subprocess

    command, always = ["ps", "-o", "lstart=", "-p", str(pid)], {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    try:
        return subprocess.run(command, env=always, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def is_alive(pid: int) -> bool:
    """Whether a process with this ID exists on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        return True
    return True


def current_process() -> tuple[str, int, str]:
    """The host, ID and start time of this process."""
    return host_id(), os.getpid(), start_time(os.getpid())


def has_ended(host: str, pid: int, since: str) -> bool:
    """Whether a process has certainly ended. A process of another host may still run."""
    if host != host_id():
        return False
    if not is_alive(pid):
        return True
    now = start_time(pid)
    return bool(now and since) and now != since  # without a start time, the ID may have been reused
