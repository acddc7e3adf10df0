"""Files that are either whole or not there: written beside, synced, then renamed into place.

What is written beside has a name that says by which process; when that one was killed, the next one that writes into
the same folder sweeps its half-written files away.
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
STALE_SECONDS = 7 * 86_400.0  # seconds after which nobody, on whatever machine, is still writing
_cleaned: set[Path] = set()


def fsync(path: Path) -> None:
    """Ask the operating system to put a file or a folder on the disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a path to write to; when the block ends well, it becomes `path` in one step."""
    part = _part_path(path)
    try:
        part.touch(exist_ok=False)
        yield part
        fsync(part)
        part.replace(path)
        fsync(path.parent)
    except OSError as error:
        if error.filename in (part, str(part)):
            error.filename = str(path)  # the name that means something to whoever reads it
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill; when the block ends well, it becomes `path`, and is whole.

    No system swaps folders in one step: a folder that stood there is moved aside first, and then dropped.
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
    """Whether a path is a file, or a pipe, that can be read to its end: a device may have none."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # not there, or no path at all
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def make_private_folder(folder: Path) -> Path:
    """A folder that only its owner may look into, made if need be: what teachers answer may be private."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def _part_path(path: Path) -> Path:
    """A new name in the same folder, which says who writes and has the rights that the user's umask gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(path.parent)
    return path.with_name(f".{path.name}.{_host_tag()}-{os.getpid()}-{uuid4().hex[:8]}.part")


def _host_tag() -> str:
    return hashlib.sha256(host_id().encode()).hexdigest()[:8]


def remove_stale_parts(folder: Path) -> None:
    """Drop what processes that were killed left half-written in a folder; each process looks once."""
    if folder.absolute() in _cleaned:
        return
    _cleaned.add(folder.absolute())
    for part in folder.glob(".*.part"):
        if (owner := PART_NAME.search(part.name)) and _is_stale(part, *owner.groups()):
            shutil.rmtree(part, ignore_errors=True)  # it may be another user's: then it stays
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _is_stale(part: Path, where: str, pid: str) -> bool:
    """Whether nobody writes it any more: its process has ended, or is elsewhere and was last here long ago."""
    if where == _host_tag():
        return not is_alive(int(pid))
    try:
        return time.time() - part.lstat().st_mtime > STALE_SECONDS
    except OSError:  # another process was first
        return False


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is never seen with half of its files; another process may be first."""
    aside = _part_path(folder)
    with suppress(FileNotFoundError):
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def file_lock(path: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a place against other processes, and say so before waiting for one.

    The lock goes with the process, so a crash leaves none behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people to read too, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return _parse_json(path.read_text(encoding="utf-8"))


def _parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, or a ValueError, also of one that is nested deeper than anything of ours."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a file of JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, none where there is none; a last line cut short by a crash is left out."""
    try:
        *lines, _ = path.read_bytes().split(b"\n")  # bytes: the cut may go through a character
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
    """A value as it will be when it has been written as JSON and read again."""
    return json.loads(json.dumps(value))


def digest(value: Any) -> str:
    """The SHA-256 of a value's canonical JSON: neither the order of keys nor tuple or list matters."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
