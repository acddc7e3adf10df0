"""Files that are either whole or not there: written beside, synced, then renamed into place."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from .errors import CorruptError


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
                _drop(path)
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
    """A new name in the same folder, which ends in `.part` and has the rights that the user's umask gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid4().hex[:12]}.part")


def _drop(folder: Path) -> None:
    """Remove a folder so that it is never seen with half of its files; another process may be first."""
    aside = _beside(folder)
    with suppress(FileNotFoundError):
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def alone(path: Path, waits: Callable[[], None]) -> Iterator[None]:
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
    """Read a file of JSON lines; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")  # bytes: the cut may go through a character
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                rows.append(_loads(line))
        except ValueError as error:
            raise CorruptError(f"{path} cannot be read: line {number} is not JSON: {error}") from error
    return rows


def digest(value: Any) -> str:
    """The SHA-256 of a value's canonical JSON: neither the order of keys nor tuple or list matters."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
