"""The type of the file system of a path, and whether it is a network or FUSE file system.

Locks and shared memory of SQLite are not reliable on network and FUSE file systems. Standard library only.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# Types that are served by another machine, by the host of a virtual machine, or by a user-space program.
REMOTE = re.compile(
    r"nfs\d?|cifs|smb\w*|smbfs|9p|afs|afpfs|webdav|ncpfs|ceph|lustre|beegfs|gpfs|pvfs2|ocfs2|gfs2?|glusterfs|orangefs"
    r"|virtiofs|vboxsf|vmhgfs|prl_fs|fuse(\..+)?|osxfuse|macfuse"
)


def filesystem_type(path: Path) -> str:
    """The type of the file system that holds a path, such as "ext4" or "nfs4"; "" if unknown."""
    where = os.path.realpath(path)
    inside = [(point, kind) for point, kind in _mounts() if _contains(point, where)]
    return max(inside, key=lambda mount: len(mount[0]), default=("", ""))[1]


def is_remote(kind: str) -> bool:
    """Whether a type is that of a network or FUSE file system."""
    return REMOTE.fullmatch(kind) is not None and kind != "fuseblk"  # NTFS and exFAT disks of this machine


def _contains(point: str, path: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _mounts() -> Iterator[tuple[str, str]]:
    """Mount points and types, newest first, because later mounts hide earlier ones."""
    if sys.platform == "darwin":
        for line in reversed(_mount_command().splitlines()):
            if match := re.fullmatch(r".* on (/.*) \((\w+)[,)].*", line):
                yield match[1], match[2]
        return
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in reversed(lines):
        fields, _, rest = line.partition(" - ")
        yield _unescape(fields.split()[4]), rest.split()[0]


def _mount_command() -> str:
    try:
        return subprocess.run(["/sbin/mount"], capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _unescape(text: str) -> str:
    """Decode characters that are written as three octal digits, such as spaces."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
