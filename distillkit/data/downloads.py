"""Downloads of long streams of texts, stored in shards, so that nothing is fetched twice.

Iteration yields the stored texts first, and then opens the stream where they end. The reader decides how much is
fetched. Everything received is kept, whatever stops the download: a budget, Ctrl-C or a network failure. Does not know
where a stream comes from.
"""

from __future__ import annotations

import fcntl
import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from ..core.errors import CorruptError, DataError
from ..core.files import atomic_write, digest, file_digest, read_json, write_json
from ..core.run_folder import cache_folder

SCHEMA = 1
SHARD_CHARS = 16 << 20


class ResumableStream(Protocol):
    """An open stream of texts, with its state as JSON, from which it can be reopened."""

    def __iter__(self) -> Iterator[str]:
        """The remaining texts."""

    def state(self) -> Any:
        """The current state."""


@dataclass
class DownloadIndex:
    """The contents of the index file: the shards, and the state from which the stream continues."""

    shards: list[dict[str, Any]] = field(default_factory=list)
    state: Any = None
    skip: int = 0  # texts after `state` that are already stored
    done: bool = False
    origin: Any = None  # the result of `ask` when the download began

    @property
    def documents(self) -> int:
        """The number of stored texts."""
        return sum(shard["documents"] for shard in self.shards)


class Download:
    """The texts of one stream. `open_at(origin, state)` opens it; `origin` is the result of the first call of `ask`."""

    def __init__(
        self,
        name: str,
        identity: Any,
        open_at: Callable[[Any, Any], ResumableStream],
        ask: Callable[[], Any] = lambda: None,
        shard_chars: int = SHARD_CHARS,
    ) -> None:
        self.folder = cache_folder() / "downloads" / f"{name}-{digest(identity)[:12]}"
        self.open_at, self.ask, self.shard_chars = open_at, ask, shard_chars

    @property
    def done(self) -> bool:
        """Whether the download is complete."""
        return self._read_index().done

    def __iter__(self) -> Iterator[str]:
        index = self._read_index()
        for shard in index.shards:
            yield from self._read_shard(shard)
        if index.done:
            return
        with self._lock():
            now = self._read_index()  # another process may have gone on since
            for shard in now.shards[len(index.shards) :]:
                yield from self._read_shard(shard)
            yield from self._fetch(now)

    def _fetch(self, index: DownloadIndex) -> Iterator[str]:
        """Fetch the remaining texts, storing them in shards."""
        if index.done:
            return
        if index.state is None and not index.skip:
            index.origin = self.ask()
        stream = self.open_at(index.origin, index.state)
        texts: list[str] = []
        chars = 0
        try:
            for text in islice(stream, index.skip, None):
                texts.append(text)
                chars += len(text)
                if chars >= self.shard_chars:
                    state = stream.state()
                    self._write_shard(index, texts)
                    # Updated before the index is written, which may be interrupted.
                    index.state, index.skip, texts, chars = state, 0, [], 0
                    self._write_index(index)
                yield text
            index.done = True
        finally:
            if texts:
                self._write_shard(index, texts)
                index.skip += len(texts)
            self._write_index(index)

    # ------------------------------------------------------------------------------------------------ files

    def _write_shard(self, index: DownloadIndex, texts: list[str]) -> None:
        """Write one more shard. The index is written separately."""
        path = self.folder / f"texts-{len(index.shards):05d}.jsonl.gz"
        with atomic_write(path) as part, part.open("wb") as raw, gzip.GzipFile("", "wb", 4, raw, mtime=0) as file:
            for text in texts:
                file.write(json.dumps(text).encode() + b"\n")
        index.shards.append({"name": path.name, "documents": len(texts), "sha256": file_digest(path)})

    def _write_index(self, index: DownloadIndex) -> None:
        write_json(self.folder / "index.json", {"schema": SCHEMA, **vars(index)})

    def _read_index(self) -> DownloadIndex:
        file = self.folder / "index.json"
        try:
            values = read_json(file)
            if values.pop("schema") != SCHEMA:
                raise ValueError("it was written by another version")
            return DownloadIndex(**values)
        except FileNotFoundError:
            return DownloadIndex()
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptError(f"{file} cannot be read: {error}", self._recovery_hint) from error

    def _read_shard(self, shard: dict[str, Any]) -> Iterator[str]:
        path = self.folder / shard["name"]
        try:
            if file_digest(path) != shard["sha256"]:
                raise CorruptError(f"{path} has changed since it was downloaded", self._recovery_hint)
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)
        except OSError as error:
            raise CorruptError(f"{path} cannot be read: {error}", self._recovery_hint) from error

    @property
    def _recovery_hint(self) -> str:
        return f"Delete {self.folder}; it is downloaded again when it is needed."

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Lock the folder while fetching. The lock is released when the process ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(
                    f"{self.folder} is being filled by another process", "Wait for it, then run this again."
                ) from error
            yield
