"""Atomic writes: a file is written under a temporary name, synced, and renamed into place.

The temporary name identifies the process. If that process is killed, the next process that writes to the same folder
removes its partial files.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from .errors import CorruptError
from .processes import host_id, is_alive

PART_NAME = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part$")
STALE_SECONDS = 7 * 86_400.0  # age at which a partial file of another machine is considered abandoned
_cleaned: set[Path] = set()


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. If the block succeeds, it atomically replaces `path`."""
    part = _part_path(path)
    try:
        part.touch(exist_ok=False)
        yield part
        fsync(part)
        part.replace(path)
        fsync(path.parent)
    except OSError as error:
        if error.filename in (part, str(part)):
            error.filename = str(path)  # the name that the user knows
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill. If the block succeeds, it is renamed to `path`, so `path` is always complete.

    A folder cannot be replaced atomically: an existing one is first renamed and then deleted.
    """
    part = _part_path(path)
    try:
        part.mkdir()
        yield part
        for file in sorted(part.rglob("*")):
            fsync(file)
        fsync(part)
        while True:
            try:
                part.rename(path)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                remove_folder(path)
        fsync(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_readable_file(path: Path) -> bool:
    """Whether a path is a file or a pipe. Devices are excluded, because reading one may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # missing, or not a valid path
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def make_private_folder(folder: Path) -> Path:
    """Create a folder that only its owner can access, if needed. Answers of teachers may be private."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def _part_path(path: Path) -> Path:
    """A new temporary path in the same folder, with a name that identifies this process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(path.parent)
    return path.with_name(f".{path.name}.{_host_tag()}-{os.getpid()}-{uuid4().hex[:8]}.part")


def _host_tag() -> str:
    return hashlib.sha256(host_id().encode()).hexdigest()[:8]


def remove_stale_parts(folder: Path) -> None:
    """Remove partial files of killed processes from a folder. Each process checks a folder once."""
    if folder.absolute() in _cleaned:
        return
    _cleaned.add(folder.absolute())
    for part in folder.glob(".*.part"):
        if (owner := PART_NAME.search(part.name)) and _is_stale(part, *owner.groups()):
            shutil.rmtree(part, ignore_errors=True)  # fails for files of another user, which stay
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _is_stale(part: Path, where: str, pid: str) -> bool:
    """Whether a partial file is abandoned: its process has ended, or it is old and from another host."""
    if where == _host_tag():
        return not is_alive(int(pid))
    try:
        return time.time() - part.lstat().st_mtime > STALE_SECONDS
    except OSError:  # removed by another process
        return False


def remove_folder(folder: Path) -> None:
    """Remove a folder without exposing a state with missing files. It may already be gone."""
    renamed = _part_path(folder)
    with suppress(FileNotFoundError):
        folder.rename(renamed)
        shutil.rmtree(renamed, ignore_errors=True)


@contextmanager
def file_lock(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Lock a path against other processes. Calls `on_wait` before waiting for another process.

    The lock is released when the process ends, also by a crash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return _parse_json(path.read_text(encoding="utf-8"))


def _parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError, also for text that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a JSON Lines file atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSON Lines file. A missing file is empty; an incomplete last line, left by a crash, is ignored."""
    try:
        *lines, _ = path.read_bytes().split(b"\n")  # bytes: the last line may end within a character
    except (FileNotFoundError, NotADirectoryError):
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                rows.append(_parse_json(line))
        except ValueError as error:
            raise CorruptError(f"{path} cannot be read: line {number} is not JSON: {error}") from error
    return rows


def json_roundtrip(value: Any) -> Any:
    """The value after a round trip through JSON."""
    return json.loads(json.dumps(value))


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value. Key order, and tuple or list, make no difference."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of the contents of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
