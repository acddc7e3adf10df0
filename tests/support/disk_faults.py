"""Where a command meets the disk below a folder, and what befalls it there: it is killed, torn in a write, or refused.

For a process of its own: what is patched here stays patched. A boundary is whatever changes the disk: a file opened for
writing, each write to it, fsync, rename, link, mkdir, unlink, and each statement that changes a database. Being killed
before a boundary is being killed after the one before it. Inside of MLX and of SQLite only a moment can be chosen.
"""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import os
import signal
import sqlite3
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHANGES = {  # events of the interpreter that change a disk, by the arguments that are paths and the folders they are in
    "os.mkdir": ((0, 2),),
    "os.rename": ((1, 3),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
STATEMENTS = {"BEGIN", "INSERT", "UPDATE", "DELETE", "CREATE", "COMMIT", "REPLACE"}
NEEDS_ROOM = {"open", "os.mkdir", "write", "save", "os.link", "os.symlink"}


@dataclass
class Fault:
    """A fault at one of a process's boundaries.

    "kill", "tear" (killed in the middle of a write), "interrupt" (as by Ctrl-C), "fail" (this once), "full" (from then
    on nothing can be written) or "read-only" (from then on nothing can be changed at all).
    """

    what: str = ""
    at: int = -1

    def befalls(self, number: int, kind: str) -> bool:
        """Whether the fault applies to a boundary of this kind."""
        if self.what == "full":
            return number >= self.at and (kind in NEEDS_ROOM or kind.startswith("sqlite"))
        return number >= self.at if self.what == "read-only" else number == self.at


@dataclass
class Boundaries:
    """Counts the boundaries of this process below a folder."""

    root: str
    fault: Fault
    spots: list[tuple[str, str]] = field(default_factory=list)
    numbers: Any = field(default_factory=itertools.count)

    def meet(self, kind: str, path: str) -> bool:
        """Record a boundary and apply the fault. Returns whether the write is to be torn."""
        number = next(self.numbers)
        self.spots.append((kind, os.path.relpath(path, self.root)))
        if not self.fault.befalls(number, kind):
            return False
        if self.fault.what == "kill" or (self.fault.what == "tear" and kind not in ("write", "save")):
            die()
        if self.fault.what == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            return False
        if self.fault.what == "tear" or (self.fault.what == "full" and kind in ("write", "save")):
            return True
        raise refusal(self.fault.what, kind, path)

    def holds(self, path: Any, folder: Any = None) -> str | None:
        """The absolute path if it lies below the root, or None."""
        if isinstance(path, int):
            return None
        name = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0:
            name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
        name = os.path.abspath(name)
        return name if name.startswith(f"{self.root}/") else None


def die() -> None:
    """End at once, as in a power failure."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def refusal(what: str, kind: str, path: str) -> Exception:
    """The error that the operating system would raise."""
    if kind.startswith("sqlite"):
        told = {"full": "database or disk is full", "read-only": "attempt to write a readonly database"}
        return sqlite3.OperationalError(told.get(what, "disk I/O error"))
    if kind == "save":  # MLX says no more than this
        return RuntimeError(f"[save] Failed to open {path}")
    number = {"full": errno.ENOSPC, "read-only": errno.EROFS}.get(what, errno.EIO)
    return OSError(number, os.strerror(number), path)


# ------------------------------------------------------------------------------------------------- what is watched


def watch(root: Path, fault: Fault) -> Boundaries:
    """Count every boundary of this process below a folder from now on, and apply the fault."""
    boundaries = Boundaries(str(root), fault)
    _watch_events(boundaries)
    _watch_writes(boundaries)
    _watch_syncs(boundaries)
    _watch_databases(boundaries)
    _watch_arrays(boundaries)
    return boundaries


def _watch_events(boundaries: Boundaries) -> None:
    """Watch audit events: files opened for writing, and changes of folders."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            places = ((0, None),)
        else:
            places = CHANGES.get(event, ())
        for path, folder in places:
            if whole := boundaries.holds(arguments[path], None if folder is None else arguments[folder]):
                boundaries.meet(event, whole)

    sys.addaudithook(hook)


def _watch_writes(boundaries: Boundaries) -> None:
    """Watch each write to a file, as Python's buffers pass it to the system."""
    real = io.open

    class Watched(io.FileIO):
        def write(self, content: Any, /) -> int:
            if boundaries.meet("write", str(self.name)):
                whole = bytes(content)
                super().write(whole[: len(whole) // 2])
                if boundaries.fault.what == "tear":
                    die()
                raise refusal(boundaries.fault.what, "write", str(self.name))
            return super().write(content)

    def opened(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if not set(mode) & set("wax+") or boundaries.holds(file) is None:
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Watched(os.fspath(file), mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        buffered = io.BufferedRandom(raw, size) if raw.readable() else io.BufferedWriter(raw, size)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    io.open = builtins.open = opened


def _watch_syncs(boundaries: Boundaries) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if whole := boundaries.holds(os.readlink(f"/proc/self/fd/{handle}")):
            boundaries.meet("fsync", whole)
        real(handle)

    os.fsync = fsync


def _watch_databases(boundaries: Boundaries) -> None:
    real = sqlite3.connect

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> Any:
            self._met(sql)
            return super().execute(sql, *arguments)

        def executemany(self, sql: str, *arguments: Any) -> Any:
            self._met(sql)
            return super().executemany(sql, *arguments)

        def _met(self, sql: str) -> None:
            if (word := sql.split(None, 1)[0].upper()) in STATEMENTS:
                boundaries.meet(f"sqlite {word}", boundaries.root + "/database")

    def connect(database: Any, *arguments: Any, **options: Any) -> Any:
        return real(database, *arguments, **{"factory": Watched, **options})

    sqlite3.connect = connect


def _watch_arrays(boundaries: Boundaries) -> None:
    """MLX writes files without Python."""
    import mlx.core as mx

    real = mx.save_safetensors

    def save(file: str, *arguments: Any) -> None:
        torn = boundaries.holds(file) and boundaries.meet("save", file)
        real(file, *arguments)
        if torn:
            os.truncate(file, os.path.getsize(file) // 2)
            if boundaries.fault.what == "tear":
                die()
            raise refusal(boundaries.fault.what, "save", file)

    mx.save_safetensors = save
