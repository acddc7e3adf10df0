"""Every answer on disk, once, for all runs: content-addressed JSON in `cache/teachers/`.

The key is the canonical JSON of all that decides an answer: who is asked (provider and identity) and what
(the request without its id). Only text is stored and only text is read back: a foreign cache folder may
give wrong answers, but it never runs code. Failures are not answers, and nothing here expires.
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
NO_FILES = 1 << 40  # bytes from which diskcache would put a value in a file of its own
AT_ONCE = 500  # rows of one query
LOG, LONG_LOG = 1000, 16_000  # pages of SQLite's log from which whoever writes must empty it: SQLite's own, and ours
EMPTIED = 0.25  # seconds between two times that a thread empties it
SEAL = "sha256"  # the last key of a row
DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_REPAIR = "distillkit cache verify --repair"
_SALVAGE = "SQLite's own tool reads what is left: sqlite3 cache.db .recover"
_SEALED, _END = f', "{SEAL}": "', '"}'
_LONG = len(_SEALED) + 64 + len(_END)
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)  # what damaged JSON leads to


@dataclass(frozen=True)
class Row:
    """One row as it lies there, whatever it holds. `text` is None where it is not text, and was not read."""

    number: int
    key: str
    text: str | None
    stored: float | None = None
    bytes: int = 0

    def empty(self) -> Row:
        """The same without its text, for whoever keeps many."""
        return replace(self, text=None)


class DiskAnswerStore:
    """Answers under the digest of what was asked of whom."""

    def __init__(self, folder: Path, lease: float = LEASE_SECONDS) -> None:
        self.folder = folder.absolute()
        self._lease = lease
        self._claims: Leases | None = None
        with self._said("opened"):
            self._rows = self._opened()

    def _opened(self) -> Any:
        """The database, which is told all of its settings: of those that lie in it none is believed."""
        try:
            return _text_cache()(str(make_private_folder(self.folder)), disk=_text_disk(), **_settings())
        except (*DAMAGE, CorruptError) as error:
            raise CorruptError(
                f"the cache {self.folder} is damaged in its settings: {error}",
                "Its answers may be sound. Have the settings made again:"
                f" sqlite3 {self.folder / 'cache.db'} 'DELETE FROM Settings'; then: distillkit cache verify",
            ) from error

    # ------------------------------------------------------------------------------------------ answers

    def get(self, key: str) -> Answer | None:
        """The answer under a key, or None."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Those answers that are there, by their keys; a refusal says of itself that it is one."""
        found = {}
        for key, text in self._texts(keys):
            with self._whole(key):
                found[key] = Answer.from_json(opened(text)["answer"])
        return found

    def row(self, key: str) -> Any:
        """The whole row under a key: what was asked, what was answered and when; or None."""
        row = None
        for _, text in self._texts([key]):
            with self._whole(key):
                row = opened(text)
        return row

    @contextmanager
    def _whole(self, key: str) -> Iterator[None]:
        """Say of which row it is that something is wrong."""
        try:
            yield
        except DAMAGE as error:
            raise CorruptError(
                f"the cached answer {key[:12]} in {self.folder} is damaged: {type(error).__name__}: {error}",
                f"Ask for it again: {_REPAIR}",
            ) from error

    def _texts(self, keys: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """What is stored under keys: many rows with one query, as bytes, for SQLite takes any for text.

        The index says where a key's row is, and the row whose it is: a damaged index gives nobody another's answer.
        """
        keys = list(keys)
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            query = (
                "SELECT found.key, own.key, own.mode = 1 AND typeof(own.value) = 'text', CAST(own.value AS BLOB)"
                " FROM Cache found JOIN Cache own ON own.rowid = found.rowid WHERE found.raw = 1"
                f" AND found.key IN ({', '.join('?' * len(some))}) AND (own.expire_time IS NULL OR own.expire_time > ?)"
            )
            with self._said("read"):
                rows = self._rows._sql(query, (*some, time.time())).fetchall()
            for key, own, readable, value in rows:
                if own != key:
                    raise CorruptError(
                        f"the cache {self.folder} is damaged: its index finds another row under {key[:12]}",
                        f"Have it made again: sqlite3 {self.folder / 'cache.db'} REINDEX; then: {_REPAIR}",
                    )
                if not readable:
                    raise CorruptError(
                        f"the cache {self.folder} holds a row that is not text, {key[:12]}; it was not read",
                        f"Drop it: {_REPAIR}",
                    )
                yield key, value

    def put(self, key: str, key_fields: dict[str, Any], answer: Answer) -> Answer:
        """Keep an answer, with what was asked and when; as ASCII, which holds even half an emoji.

        Returns it as it will be read again: its tokens packed, which takes a hundredth of the memory.
        """
        values = answer.to_json()
        with self._said("written"):
            self._rows.set(key, sealed({"asked": key_fields, "answer": values, "time": round(time.time(), 3)}))
        return Answer.from_json(values)

    def __contains__(self, key: str) -> bool:
        with self._said("read"):
            return key in self._rows

    def __len__(self) -> int:
        with self._said("read"):
            return int(self._rows._sql("SELECT count(*) FROM Cache").fetchone()[0])

    @contextmanager
    def emptied_aside(self) -> Iterator[None]:
        """Meanwhile a thread empties SQLite's log into the database, so that `put` hardly ever waits for the disk."""
        stop = threading.Event()
        thread = threading.Thread(target=self._empty, args=(stop,), name="log", daemon=True)
        with self._said("written"):
            self._rows._sql(f"PRAGMA wal_autocheckpoint = {LONG_LOG}")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with self._said("written"):
                self._rows._sql(f"PRAGMA wal_autocheckpoint = {LOG}")

    def _empty(self, stop: threading.Event) -> None:
        """What the disk refuses is tried again; whoever puts answers away meets the same disk, and says so."""
        import diskcache

        while not stop.wait(EMPTIED):
            with suppress(diskcache.Timeout, sqlite3.Error):
                self._rows._sql("PRAGMA wal_checkpoint(PASSIVE)")
        self._rows.close()  # the connection of this thread

    # ------------------------------------------------------------------------------------------ claims

    def claim(self, keys: Iterable[str]) -> set[str]:
        """Those keys that nobody else is asking for: they are this cache's own until it frees them or dies.

        Look into the cache after claiming: another process may have answered and freed them just before.
        """
        with self._said("written"):
            if self._claims is None:
                self._claims = Leases(self._rows, self._lease)
            return self._claims.claim(keys)

    def free(self) -> None:
        """Give up all claims."""
        if self._claims is not None:
            self._claims.close()
            self._claims = None

    # ------------------------------------------------------------------------------------------ upkeep

    def rows(self) -> Iterator[Row]:
        """Every row, sound or not, of the moment when the first is read; others may go on writing."""
        query = (  # as bytes: SQLite takes any for text
            "SELECT rowid, raw = 1 AND mode = 1 AND typeof(value) = 'text' AND typeof(key) = 'text',"
            " CAST(key AS BLOB), CAST(value AS BLOB), store_time FROM Cache WHERE rowid > ? ORDER BY rowid LIMIT ?"
        )
        last = -1 << 63
        with self.snapshot():
            while rows := self._page(query, last):
                last = rows[-1][0]
                for number, readable, key, value, stored in rows:
                    yield Row(number, _name(key), _text(value) if readable else None, stored, len(value or b""))

    def _page(self, query: str, last: int) -> list[Any]:
        with self._said("read"):
            return self._rows._sql(query, (last, AT_ONCE)).fetchall()  # type: ignore[no-any-return]

    def since(self, keys: Iterable[str], moment: float) -> list[str]:
        """Those of the keys whose rows were written at a moment or later."""
        keys, found = list(keys), list[str]()
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            query = f"SELECT key FROM Cache WHERE raw = 1 AND key IN ({', '.join('?' * len(some))}) AND store_time >= ?"
            with self._said("read"):
                found += [key for (key,) in self._rows._sql(query, (*some, moment)).fetchall()]
        return found

    def starting(self, prefix: str) -> list[str]:
        """The keys that begin so."""
        query = "SELECT key FROM Cache WHERE raw = 1 AND substr(key, 1, ?) = ? ORDER BY key"
        with self._said("read"):
            return [key for (key,) in self._rows._sql(query, (len(prefix), prefix)).fetchall()]

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is of one moment. Nothing may be written inside."""
        if self._rows._con.in_transaction:
            yield
            return
        with self._said("read"):
            self._rows._sql("BEGIN")
        try:
            with self._said("read"):
                self._rows._sql("SELECT count(*) FROM Settings").fetchall()  # the moment is that of the first look
            yield
        finally:
            with self._said("read"):
                self._rows._sql("COMMIT")

    def drop(self, rows: Iterable[Row]) -> int:
        """Remove rows, unless they were written again since they were read; how many were removed."""
        query = "DELETE FROM Cache WHERE rowid = ? AND store_time IS ?"
        with self._said("written"), self._rows.transact():
            return sum(self._rows._sql(query, (row.number, row.stored)).rowcount for row in rows)

    def add(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> int:
        """Keep rows of other caches under keys that are new here; how many were. Nothing is overwritten."""
        with self._said("written"), self._rows.transact():
            return sum(self._rows.add(key, sealed(row)) for key, row in rows)

    def __enter__(self) -> DiskAnswerStore:
        return self

    def __exit__(self, *reason: object) -> None:
        with self._said("closed"):
            self.free()
            self._rows.close()

    @contextmanager
    def _said(self, done: str) -> Iterator[None]:
        """Say plainly what the disk refuses to do."""
        import diskcache

        try:
            yield
        except diskcache.Timeout as error:  # so diskcache calls every refusal to begin writing
            raise DistillkitError(
                f"the cache {self.folder} cannot be {done}: it is read-only, full or held by another process"
            ) from error
        except (OSError, sqlite3.Error) as error:
            if getattr(error, "sqlite_errorname", "").startswith(DAMAGED):
                raise CorruptError(
                    f"the cache {self.folder} is damaged: {error}",
                    f"Move that folder away; what was exported comes back by: distillkit cache import FILE. {_SALVAGE}",
                ) from error
            raise DistillkitError(
                f"the cache {self.folder} cannot be {done}: {getattr(error, 'strerror', None) or error}",
                "Make room there, or set DISTILLKIT_HOME to a folder of yours.",
            ) from error


def key_fields(provider: str, identity: Any, request: Request) -> dict[str, Any]:
    """All that decides an answer, as plain JSON values."""
    what = request.canonical()
    numbers = {name: float(what[name]) for name in ("temperature", "top_p")}  # 1 and 1.0 ask the same
    return {"format": FORMAT, "provider": provider, "identity": identity, "request": {**what, **numbers}}


def answer_key(what: dict[str, Any]) -> str:
    """The key of what was asked."""
    return digest(what)


def sealed(row: Mapping[str, Any]) -> str:
    """A row as text, whose last key is the SHA-256 of all that stands before it."""
    text = json.dumps({name: value for name, value in row.items() if name != SEAL})
    return f"{text[:-1]}{_SEALED}{sha256(text.encode()).hexdigest()}{_END}"


def opened(text: bytes | str) -> Any:
    """The row that a text holds, if it is what was written; rows from before there were seals have none."""
    whole = text.encode() if isinstance(text, str) else text
    body, seal = whole[:-_LONG], whole[-_LONG:]
    if seal.startswith(_SEALED.encode()) and not seal == f"{_SEALED}{sha256(body + b'}').hexdigest()}{_END}".encode():
        raise ValueError("its checksum is not the one that was written")
    return json.loads(whole)


def _text(value: bytes) -> str | None:
    """Bytes as text, if they are."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _name(key: bytes | None) -> str:
    """A key as it can be shown."""
    text = (key or b"").decode("ascii", "backslashreplace")
    return text if text.isprintable() else ascii(text)


def _settings() -> dict[str, Any]:
    """Every setting that diskcache knows, so that it takes none from the file."""
    import diskcache

    ours = {"disk_min_file_size": NO_FILES, "eviction_policy": "none", "cull_limit": 0}
    return {**diskcache.DEFAULT_SETTINGS, **ours}


def _text_cache() -> Any:
    """A `diskcache.Cache` with our settings; its own sets whatever attribute or pragma a row of the file names."""
    import diskcache

    settings = _settings()

    class TextCache(diskcache.Cache):  # type: ignore[misc]
        """Knows its settings, and refuses others: one more could send it to another folder."""

        def reset(self, key: str, value: Any = diskcache.core.ENOVAL, update: bool = True) -> Any:
            if key not in settings and key not in diskcache.core.METADATA:
                raise CorruptError(f"it has none of the name {key!r}")
            return super().reset(key, settings.get(key, value), update)

    return TextCache


def _text_disk() -> Any:
    """A `diskcache` disk that keeps text in the database, and neither unpickles nor touches other files."""
    import diskcache

    class TextDisk(diskcache.Disk):  # type: ignore[misc]
        """Strings only, in and out: diskcache would pickle everything else, and follow any file name."""

        def store(self, value: Any, read: bool, key: Any = diskcache.UNKNOWN) -> Any:
            if not isinstance(value, str):
                raise TypeError("the cache keeps text only")
            return super().store(value, read, key=key)

        def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> str:
            if mode != diskcache.core.MODE_RAW or not isinstance(value, str):
                raise CorruptError("the cache holds a row that is not text; it was not read")
            return value

        def get(self, key: Any, raw: bool) -> Any:
            if not raw:
                raise CorruptError("the cache holds a key that is code, not text; it was not read")
            return super().get(key, raw)

        def remove(self, file_path: str) -> None:
            """Delete nothing: no row of ours has a file."""

    return TextDisk
