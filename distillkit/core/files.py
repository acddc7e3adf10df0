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
from .processes import alive, place

PART = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part$")
LONG_AGO = 7 * 86_400.0  # seconds after which nobody, on whatever machine, is still writing
_swept: set[Path] = set()


def sync(path: Path) -> None:
    """Ask the operating system to put a file or a folder on the disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; when the block ends well, it becomes `path` in one step."""
    part = _beside(path)
    try:
        part.touch(exist_ok=False)
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.filename in (part, str(part)):
            error.filename = str(path)  # the name that means something to whoever reads it
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill; when the block ends well, it becomes `path`, and is whole.

    No system swaps folders in one step: a folder that stood there is moved aside first, and then dropped.
    """
    part = _beside(path)
    try:
        part.mkdir()
        yield part
        for file in sorted(part.rglob("*")):
            sync(file)
        sync(part)
        while True:
            try:
                part.rename(path)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                drop_folder(path)
        sync(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def ends(path: Path) -> bool:
    """Whether a path is a file, or a pipe, that can be read to its end: a device may have none."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # not there, or no path at all
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def private(folder: Path) -> Path:
    """A folder that only its owner may look into, made if need be: what teachers answer may be private."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def _beside(path: Path) -> Path:
    """A new name in the same folder, which says who writes and has the rights that the user's umask gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    return path.with_name(f".{path.name}.{_here()}-{os.getpid()}-{uuid4().hex[:8]}.part")


def _here() -> str:
    return hashlib.sha256(place().encode()).hexdigest()[:8]


def sweep(folder: Path) -> None:
    """Drop what processes that were killed left half-written in a folder; each process looks once."""
    if folder.absolute() in _swept:
        return
    _swept.add(folder.absolute())
    for part in folder.glob(".*.part"):
        if (owner := PART.search(part.name)) and _abandoned(part, *owner.groups()):
            shutil.rmtree(part, ignore_errors=True)  # it may be another user's: then it stays
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _abandoned(part: Path, where: str, pid: str) -> bool:
    """Whether nobody writes it any more: its process has ended, or is elsewhere and was last here long ago."""
    if where == _here():
        return not alive(int(pid))
    try:
        return time.time() - part.lstat().st_mtime > LONG_AGO
    except OSError:  # another process was first
        return False


def drop_folder(folder: Path) -> None:
    """Remove a folder so that it is never seen with half of its files; another process may be first."""
    aside = _beside(folder)
    with suppress(FileNotFoundError):
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def alone(path: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
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
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people to read too, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return _loads(path.read_text(encoding="utf-8"))


def _loads(text: str | bytes) -> Any:
    """The value of a JSON text, or a ValueError, also of one that is nested deeper than anything of ours."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a file of JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, none where there is none; a last line cut short by a crash is left out."""
    try:
        *lines, _ = path.read_bytes().split(b"\n")  # bytes: the cut may go through a character
    except (FileNotFoundError, NotADirectoryError):
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                rows.append(_loads(line))
        except ValueError as error:
            raise CorruptError(f"{path} cannot be read: line {number} is not JSON: {error}") from error
    return rows


def plain(value: Any) -> Any:
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
