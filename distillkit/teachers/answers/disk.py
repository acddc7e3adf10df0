"""The answer cache on disk: every answer once, for all runs. Content-addressed JSON in `cache/teachers/` (diskcache).

The key is the digest of the canonical JSON of everything that decides an answer: the teacher (provider and identity)
and the request without its id. Only text is stored and read back: a foreign cache folder may give wrong answers, but it
never runs code. Failures are not stored, and nothing expires.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...core.errors import CorruptError, DistillkitError
from ...core.files import digest, make_private_folder
from ...core.records import Answer, Request
from .leases import LEASE_SECONDS, Leases

FORMAT = 1
MIN_FILE_SIZE = 1 << 40  # bytes: diskcache writes larger values to separate files, so none is
ROWS_PER_QUERY = 500
WAL_PAGES, MANY_WAL_PAGES = 1000, 16_000  # pages of SQLite's log at which a writer checkpoints: default, background
CHECKPOINT_SECONDS = 0.25  # between two checkpoints of the background thread
CHECKSUM = "sha256"  # the last key of a row
SQLITE_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_REPAIR = "distillkit cache verify --repair"
_SALVAGE = "SQLite can recover what is left: sqlite3 cache.db .recover"
_CHECKSUM_START, _CHECKSUM_END = f', "{CHECKSUM}": "', '"}'
_CHECKSUM_LENGTH = len(_CHECKSUM_START) + 64 + len(_CHECKSUM_END)
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)  # errors from damaged JSON


@dataclass(frozen=True)
class StoredRow:
    """One row of the database, valid or not. `text` is None if the value is not text; it was not read then."""

    number: int
    key: str
    text: str | None
    stored: float | None = None
    bytes: int = 0

    def without_text(self) -> StoredRow:
        """A copy without the text, which takes less memory."""
        return replace(self, text=None)


class DiskAnswerStore:
    """A store of answers, on local disk. Processes on one machine may share it."""

    def __init__(self, folder: Path, lease: float = LEASE_SECONDS) -> None:
        self.folder = folder.absolute()
        self._lease = lease
        self._leases: Leases | None = None
        with self._io_errors("opened"):
            self._rows = self._open()

    def _open(self) -> Any:
        """The database. All of its settings are given here; those stored in the file are not trusted."""
        try:
            return _text_cache()(str(make_private_folder(self.folder)), disk=_text_disk(), **_settings())
        except (*DAMAGE, CorruptError) as error:
            raise CorruptError(
                f"the cache {self.folder} is damaged in its settings: {error}",
                "The answers may be valid. Reset the settings:"
                f" sqlite3 {self.folder / 'cache.db'} 'DELETE FROM Settings'; then: distillkit cache verify",
            ) from error

    # ------------------------------------------------------------------------------------------ answers

    def get(self, key: str) -> Answer | None:
        """The answer under a key, or None."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The stored answers among these keys. A refused one has `finish = "refused"`."""
        answers = {}
        for key, text in self._texts(keys):
            with self._row_errors(key):
                answers[key] = Answer.from_json(parse_row(text)["answer"])
        return answers

    def row(self, key: str) -> Any:
        """The row under a key as JSON (`asked`, `answer`, `time`), or None."""
        row = None
        for _, text in self._texts([key]):
            with self._row_errors(key):
                row = parse_row(text)
        return row

    @contextmanager
    def _row_errors(self, key: str) -> Iterator[None]:
        """Turn errors of parsing into a CorruptError that names the row."""
        try:
            yield
        except DAMAGE as error:
            raise CorruptError(
                f"the cached answer {key[:12]} in {self.folder} is damaged: {type(error).__name__}: {error}",
                f"Drop it, so that it is requested again: {_REPAIR}",
            ) from error

    def _texts(self, keys: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """The stored texts of keys, many with one query; as bytes, because SQLite accepts invalid text.

        The key is checked both in the index and in the row, so that a damaged index returns no other request's answer.
        """
        keys = list(keys)
        for start in range(0, len(keys), ROWS_PER_QUERY):
            some = keys[start : start + ROWS_PER_QUERY]
            query = (
                "SELECT found.key, own.key, own.mode = 1 AND typeof(own.value) = 'text', CAST(own.value AS BLOB)"
                " FROM Cache found JOIN Cache own ON own.rowid = found.rowid WHERE found.raw = 1"
                f" AND found.key IN ({', '.join('?' * len(some))}) AND (own.expire_time IS NULL OR own.expire_time > ?)"
            )
            with self._io_errors("read"):
                rows = self._rows._sql(query, (*some, time.time())).fetchall()
            for key, own, readable, value in rows:
                if own != key:
                    raise CorruptError(
                        f"the cache {self.folder} is damaged: its index finds another row under {key[:12]}",
                        f"Rebuild the index: sqlite3 {self.folder / 'cache.db'} REINDEX; then: {_REPAIR}",
                    )
                if not readable:
                    raise CorruptError(
                        f"the cache {self.folder} holds a row that is not text, {key[:12]}; it was not read",
                        f"Drop it: {_REPAIR}",
                    )
                yield key, value

    def put(self, key: str, fields: dict[str, Any], answer: Answer) -> Answer:
        """Store an answer with the fields of its key and the time, as ASCII, which can hold lone surrogates.

        Returns the answer as `get` will return it: with packed tokens, which take a hundredth of the memory.
        """
        values = answer.to_json()
        with self._io_errors("written"):
            self._rows.set(key, serialise_row({"asked": fields, "answer": values, "time": round(time.time(), 3)}))
        return Answer.from_json(values)

    def __contains__(self, key: str) -> bool:
        with self._io_errors("read"):
            return key in self._rows

    def __len__(self) -> int:
        with self._io_errors("read"):
            return int(self._rows._sql("SELECT count(*) FROM Cache").fetchone()[0])

    @contextmanager
    def background_checkpoints(self) -> Iterator[None]:
        """Within this context a thread writes SQLite's log back, so that `put` rarely waits for the disk."""
        stop = threading.Event()
        thread = threading.Thread(target=self._checkpoint, args=(stop,), name="checkpoints", daemon=True)
        with self._io_errors("written"):
            self._rows._sql(f"PRAGMA wal_autocheckpoint = {MANY_WAL_PAGES}")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with self._io_errors("written"):
                self._rows._sql(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")

    def _checkpoint(self, stop: threading.Event) -> None:
        """Write the log back until stopped. Errors are ignored and retried: `put` meets and reports the same errors."""
        import diskcache

        while not stop.wait(CHECKPOINT_SECONDS):
            with suppress(diskcache.Timeout, sqlite3.Error):
                self._rows._sql("PRAGMA wal_checkpoint(PASSIVE)")
        self._rows.close()  # this thread's connection

    # ------------------------------------------------------------------------------------------ leases

    def claim(self, keys: Iterable[str]) -> set[str]:
        """Acquire leases on keys. Returns those that this store holds now, until it releases them or its process ends.

        Read the cache after claiming: another process may have answered and released a key just before.
        """
        with self._io_errors("written"):
            if self._leases is None:
                self._leases = Leases(self._rows, self._lease)
            return self._leases.claim(keys)

    def release(self) -> None:
        """Release all leases."""
        if self._leases is not None:
            self._leases.close()
            self._leases = None

    # ------------------------------------------------------------------------------------------ maintenance

    def rows(self) -> Iterator[StoredRow]:
        """Every row, valid or not, from a snapshot at the first one. Other processes may go on writing."""
        query = (  # as bytes: SQLite accepts invalid text
            "SELECT rowid, raw = 1 AND mode = 1 AND typeof(value) = 'text' AND typeof(key) = 'text',"
            " CAST(key AS BLOB), CAST(value AS BLOB), store_time FROM Cache WHERE rowid > ? ORDER BY rowid LIMIT ?"
        )
        last = -1 << 63
        with self.snapshot():
            while rows := self._page(query, last):
                last = rows[-1][0]
                for number, readable, key, value, stored in rows:
                    yield StoredRow(
                        number, _printable(key), _decode(value) if readable else None, stored, len(value or b"")
                    )

    def _page(self, query: str, last: int) -> list[Any]:
        with self._io_errors("read"):
            return self._rows._sql(query, (last, ROWS_PER_QUERY)).fetchall()  # type: ignore[no-any-return]

    def since(self, keys: Iterable[str], moment: float) -> list[str]:
        """The keys whose rows were written at this time (seconds since the epoch) or later."""
        keys, found = list(keys), list[str]()
        for start in range(0, len(keys), ROWS_PER_QUERY):
            some = keys[start : start + ROWS_PER_QUERY]
            query = f"SELECT key FROM Cache WHERE raw = 1 AND key IN ({', '.join('?' * len(some))}) AND store_time >= ?"
            with self._io_errors("read"):
                found += [key for (key,) in self._rows._sql(query, (*some, moment)).fetchall()]
        return found

    def keys_with_prefix(self, prefix: str) -> list[str]:
        """The keys that start with a prefix."""
        query = "SELECT key FROM Cache WHERE raw = 1 AND substr(key, 1, ?) = ? ORDER BY key"
        with self._io_errors("read"):
            return [key for (key,) in self._rows._sql(query, (len(prefix), prefix)).fetchall()]

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Within this context all reads see one state of the database. Do not write in it."""
        if self._rows._con.in_transaction:
            yield
            return
        with self._io_errors("read"):
            self._rows._sql("BEGIN")
        try:
            with self._io_errors("read"):
                self._rows._sql("SELECT count(*) FROM Settings").fetchall()  # the first read fixes the state
            yield
        finally:
            with self._io_errors("read"):
                self._rows._sql("COMMIT")

    def drop(self, rows: Iterable[StoredRow]) -> int:
        """Remove rows, unless they were rewritten since they were read. Returns the number of removed rows."""
        query = "DELETE FROM Cache WHERE rowid = ? AND store_time IS ?"
        with self._io_errors("written"), self._rows.transact():
            return sum(self._rows._sql(query, (row.number, row.stored)).rowcount for row in rows)

    def add(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> int:
        """Add rows of another cache whose keys are new, and return their number. Nothing is overwritten."""
        with self._io_errors("written"), self._rows.transact():
            return sum(self._rows.add(key, serialise_row(row)) for key, row in rows)

    def __enter__(self) -> DiskAnswerStore:
        return self

    def __exit__(self, *reason: object) -> None:
        with self._io_errors("closed"):
            self.release()
            self._rows.close()

    @contextmanager
    def _io_errors(self, action: str) -> Iterator[None]:
        """Turn errors of the disk and the database into messages that name the cache."""
        import diskcache

        try:
            yield
        except diskcache.Timeout as error:  # diskcache raises it whenever a write cannot begin
            raise DistillkitError(
                f"the cache {self.folder} cannot be {action}: it is read-only, full or held by another process"
            ) from error
        except (OSError, sqlite3.Error) as error:
            if getattr(error, "sqlite_errorname", "").startswith(SQLITE_DAMAGE):
                raise CorruptError(
                    f"the cache {self.folder} is damaged: {error}",
                    f"Move that folder away, and import an export: distillkit cache import FILE. {_SALVAGE}",
                ) from error
            raise DistillkitError(
                f"the cache {self.folder} cannot be {action}: {getattr(error, 'strerror', None) or error}",
                "Free disk space, or set DISTILLKIT_HOME to a folder that you can write to.",
            ) from error


def key_fields(provider: str, identity: Any, request: Request) -> dict[str, Any]:
    """The values that the key of an answer is made of, as plain JSON."""
    fields = request.canonical()
    numbers = {name: float(fields[name]) for name in ("temperature", "top_p")}  # 1 and 1.0 give one key
    return {"format": FORMAT, "provider": provider, "identity": identity, "request": {**fields, **numbers}}


def answer_key(fields: dict[str, Any]) -> str:
    """The key of an answer: the digest of its key fields."""
    return digest(fields)


def serialise_row(row: Mapping[str, Any]) -> str:
    """A row as JSON text. The last key is the SHA-256 of the text before it."""
    text = json.dumps({name: value for name, value in row.items() if name != CHECKSUM})
    return f"{text[:-1]}{_CHECKSUM_START}{sha256(text.encode()).hexdigest()}{_CHECKSUM_END}"


def parse_row(text: bytes | str) -> Any:
    """The row of a JSON text, once its checksum is verified. Rows of old versions have no checksum."""
    whole = text.encode() if isinstance(text, str) else text
    body, end = whole[:-_CHECKSUM_LENGTH], whole[-_CHECKSUM_LENGTH:]
    if end.startswith(_CHECKSUM_START.encode()):
        expected = f"{_CHECKSUM_START}{sha256(body + b'}').hexdigest()}{_CHECKSUM_END}"
        if end != expected.encode():
            raise ValueError("its checksum is not the one that was written")
    return json.loads(whole)


def _decode(value: bytes) -> str | None:
    """UTF-8 bytes as text, or None if they are invalid."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _printable(key: bytes | None) -> str:
    """A key with unprintable characters escaped."""
    text = (key or b"").decode("ascii", "backslashreplace")
    return text if text.isprintable() else ascii(text)


def _settings() -> dict[str, Any]:
    """Every setting of diskcache, so that it reads none from the file."""
    import diskcache

    changed = {"disk_min_file_size": MIN_FILE_SIZE, "eviction_policy": "none", "cull_limit": 0}
    return {**diskcache.DEFAULT_SETTINGS, **changed}


def _text_cache() -> Any:
    """A `diskcache.Cache` with fixed settings. The original sets any attribute or pragma that the file's rows name."""
    import diskcache

    settings = _settings()

    class TextCache(diskcache.Cache):  # type: ignore[misc]
        """Uses the given settings and refuses unknown ones, which could redirect it to another folder."""

        def reset(self, key: str, value: Any = diskcache.core.ENOVAL, update: bool = True) -> Any:
            if key not in settings and key not in diskcache.core.METADATA:
                raise CorruptError(f"unknown setting {key!r}")
            return super().reset(key, settings.get(key, value), update)

    return TextCache


def _text_disk() -> Any:
    """A `diskcache.Disk` that keeps text in the database, and neither unpickles nor touches other files."""
    import diskcache

    class TextDisk(diskcache.Disk):  # type: ignore[misc]
        """Stores and returns strings only. The original pickles everything else, and opens any file name in a row."""

        def store(self, value: Any, read: bool, key: Any = diskcache.UNKNOWN) -> Any:
            if not isinstance(value, str):
                raise TypeError("the cache stores text only")
            return super().store(value, read, key=key)

        def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> str:
            if mode != diskcache.core.MODE_RAW or not isinstance(value, str):
                raise CorruptError("the cache holds a row that is not text; it was not read")
            return value

        def get(self, key: Any, raw: bool) -> Any:
            if not raw:
                raise CorruptError("the cache holds a pickled key, not text; it was not read")
            return super().get(key, raw)

        def remove(self, file_path: str) -> None:
            """Delete nothing: rows have no files."""

    return TextDisk
