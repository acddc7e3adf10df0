"""Who is asking for what, so that two processes with one recipe ask each prompt once.

A claim is a row beside the answers: this key is asked for by that owner. An owner is a process; it beats every few
seconds. A claim whose owner's process is gone, or has not beaten for a lease, is free for whoever finds it. Both
are seen without a clock that two machines would have to share: whoever waits counts the beats by a clock of its own.
Does not know answers.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from uuid import uuid4

from ...core.processes import current_process, has_ended

LEASE_SECONDS = 30.0  # seconds without a beat after which an owner counts as dead
BEATS = 6  # of one lease
AT_ONCE = 500

TABLES = (
    "CREATE TABLE IF NOT EXISTS Claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS Owners (owner TEXT PRIMARY KEY, place TEXT NOT NULL, pid INTEGER NOT NULL,"
    " born TEXT NOT NULL, beat INTEGER NOT NULL) WITHOUT ROWID",
)


class Leases:
    """The claims of one owner, in the database of a cache."""

    def __init__(self, rows: Any, lease: float = LEASE_SECONDS) -> None:
        self.rows, self.lease, self.owner = rows, lease, uuid4().hex
        self.seen: dict[str, tuple[int, float]] = {}  # the last beat of each other owner, and when it was new
        self.stop = threading.Event()
        self.heart: threading.Thread | None = None

    def claim(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that are now this owner's, new ones and old ones."""
        wanted = list(keys)
        if self.heart is None:
            self._begin()
        self._bury()
        taken = self._taken(wanted)
        free = [key for key in wanted if key not in taken]
        if free:
            with self.rows.transact():
                rows = ((key, self.owner) for key in free)
                self.rows._con.executemany("INSERT OR IGNORE INTO Claims VALUES (?, ?)", rows)
            taken = self._taken(wanted)
        # A key that another owner freed between the two looks is nobody's now, and for the next claim to take.
        return {key for key in wanted if taken.get(key) == self.owner}

    def close(self) -> None:
        """Free everything. Where the disk refuses even that, the claims end with this process, or a lease later."""
        import diskcache

        self.stop.set()
        if self.heart is not None:
            self.heart.join()
            with suppress(diskcache.Timeout, sqlite3.Error):
                self._remove([self.owner])

    def _begin(self) -> None:
        with self.rows.transact():
            for table in TABLES:
                self.rows._sql(table)
            mine = (self.owner, *current_process())
            self.rows._sql("INSERT INTO Owners VALUES (?, ?, ?, ?, 0)", mine)
        self.heart = threading.Thread(target=self._beat, name="claims", daemon=True)
        self.heart.start()

    def _beat(self) -> None:
        """Say that this owner lives. What a full or locked disk refuses is tried again at the next beat."""
        import diskcache

        while not self.stop.wait(self.lease / BEATS):
            try:
                self.rows._sql("UPDATE Owners SET beat = beat + 1 WHERE owner = ?", (self.owner,))
            except (diskcache.Timeout, sqlite3.Error):
                continue  # whoever puts answers away meets the same disk, and says so
        self.rows.close()  # the connection of this thread

    def _taken(self, keys: list[str]) -> dict[str, str]:
        """Who asks for which of the keys."""
        taken: dict[str, str] = {}
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            query = f"SELECT key, owner FROM Claims WHERE key IN ({', '.join('?' * len(some))})"
            taken.update(self.rows._sql(query, some).fetchall())
        return taken

    def _bury(self) -> None:
        """Free what the dead had claimed."""
        query = "SELECT owner, place, pid, born, beat FROM Owners WHERE owner != ?"
        others = self.rows._sql(query, (self.owner,)).fetchall()
        dead = [owner for owner, *process, beat in others if has_ended(*process) or self._silent(owner, beat)]
        if dead:
            self._remove(dead)

    def _silent(self, owner: str, beat: int) -> bool:
        """Whether an owner has not beaten for a lease, since this one first looked."""
        now = time.monotonic()
        last, since = self.seen.get(owner, (None, now))
        if last != beat:
            self.seen[owner] = (beat, now)
            return False
        return now - since > self.lease

    def _remove(self, owners: list[str]) -> None:
        with self.rows.transact():
            for owner in owners:
                self.rows._sql("DELETE FROM Claims WHERE owner = ?", (owner,))
                self.rows._sql("DELETE FROM Owners WHERE owner = ?", (owner,))
