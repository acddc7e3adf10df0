"""Leases on keys, so that two processes with one recipe send each request once.

A lease is a row in the database of the answers: this key is being requested by that owner. An owner is one store of one
process; a thread of it increments a heartbeat counter every few seconds. A lease is free again when its owner's process
has ended, or when the counter has not changed for `lease` seconds. Neither needs clocks that agree between machines:
each process times the others' heartbeats with its own clock. Does not know answers.
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

LEASE_SECONDS = 30.0  # without a heartbeat, after which an owner counts as dead
HEARTBEATS_PER_LEASE = 6
KEYS_PER_QUERY = 500

TABLES = (
    "CREATE TABLE IF NOT EXISTS Claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS Owners (owner TEXT PRIMARY KEY, place TEXT NOT NULL, pid INTEGER NOT NULL,"
    " born TEXT NOT NULL, beat INTEGER NOT NULL) WITHOUT ROWID",
)


class Leases:
    """The leases of one owner, in the database of an answer store."""

    def __init__(self, rows: Any, lease: float = LEASE_SECONDS) -> None:
        """`rows`: the diskcache database. `lease`: seconds."""
        self.rows, self.lease, self.owner = rows, lease, uuid4().hex
        self.heartbeats: dict[
            str, tuple[int, float]
        ] = {}  # of other owners: the last count, and when it was first seen
        self.stop = threading.Event()
        self.thread: threading.Thread | None = None

    def claim(self, keys: Iterable[str]) -> set[str]:
        """Acquire leases on keys. Returns the keys that this owner holds now, new and old."""
        wanted = list(keys)
        if self.thread is None:
            self._register()
        self._free_dead_owners()
        owners = self._owners(wanted)
        free = [key for key in wanted if key not in owners]
        if free:
            with self.rows.transact():
                rows = ((key, self.owner) for key in free)
                self.rows._con.executemany("INSERT OR IGNORE INTO Claims VALUES (?, ?)", rows)
            owners = self._owners(wanted)
        # A key that another owner released between the two queries is free, and is left for the next call.
        return {key for key in wanted if owners.get(key) == self.owner}

    def close(self) -> None:
        """Release all leases. If the disk refuses the write, they end with this process, or when they expire."""
        import diskcache

        self.stop.set()
        if self.thread is not None:
            self.thread.join()
            with suppress(diskcache.Timeout, sqlite3.Error):
                self._remove([self.owner])

    def _register(self) -> None:
        """Add this owner to the database, and start its heartbeat."""
        with self.rows.transact():
            for table in TABLES:
                self.rows._sql(table)
            owner = (self.owner, *current_process())
            self.rows._sql("INSERT INTO Owners VALUES (?, ?, ?, ?, 0)", owner)
        self.thread = threading.Thread(target=self._send_heartbeats, name="leases", daemon=True)
        self.thread.start()

    def _send_heartbeats(self) -> None:
        """Increment the heartbeat until stopped. A write that a full or locked disk refuses is retried next time."""
        import diskcache

        while not self.stop.wait(self.lease / HEARTBEATS_PER_LEASE):
            try:
                self.rows._sql("UPDATE Owners SET beat = beat + 1 WHERE owner = ?", (self.owner,))
            except (diskcache.Timeout, sqlite3.Error):
                continue  # storing answers meets and reports the same error
        self.rows.close()  # this thread's connection

    def _owners(self, keys: list[str]) -> dict[str, str]:
        """The owner of each key that is leased."""
        owners: dict[str, str] = {}
        for start in range(0, len(keys), KEYS_PER_QUERY):
            some = keys[start : start + KEYS_PER_QUERY]
            query = f"SELECT key, owner FROM Claims WHERE key IN ({', '.join('?' * len(some))})"
            owners.update(self.rows._sql(query, some).fetchall())
        return owners

    def _free_dead_owners(self) -> None:
        """Remove the owners whose process has ended or whose heartbeat stopped, with their leases."""
        query = "SELECT owner, place, pid, born, beat FROM Owners WHERE owner != ?"
        others = self.rows._sql(query, (self.owner,)).fetchall()
        dead = [owner for owner, *process, beat in others if has_ended(*process) or self._has_expired(owner, beat)]
        if dead:
            self._remove(dead)

    def _has_expired(self, owner: str, beat: int) -> bool:
        """Whether an owner's heartbeat has not changed for a lease, since this owner first saw it."""
        now = time.monotonic()
        last, since = self.heartbeats.get(owner, (None, now))
        if last != beat:
            self.heartbeats[owner] = (beat, now)
            return False
        return now - since > self.lease

    def _remove(self, owners: list[str]) -> None:
        with self.rows.transact():
            for owner in owners:
                self.rows._sql("DELETE FROM Claims WHERE owner = ?", (owner,))
                self.rows._sql("DELETE FROM Owners WHERE owner = ?", (owner,))
