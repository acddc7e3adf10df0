"""A long stream of texts, kept in shards as it comes, so that what was fetched once is never fetched again.

Whoever reads decides how much is fetched: iteration gives what lies on the disk first, and opens the stream
where that ends. Whatever stops it, a budget, Ctrl-C or a network that goes away, what has come is kept.
Knows nothing of where a stream comes from.
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
    """A stream at some place: it gives texts, and says where it stands, as JSON, to be opened there again."""

    def __iter__(self) -> Iterator[str]:
        """The texts that are still to come."""

    def state(self) -> Any:
        """Where it stands."""


@dataclass
class DownloadIndex:
    """What the index says: the shards, and from where on the stream is to be read."""

    shards: list[dict[str, Any]] = field(default_factory=list)
    state: Any = None
    skip: int = 0  # texts that come after `state` and are kept already
    done: bool = False
    origin: Any = None  # what the stream said of itself when it was opened first

    @property
    def documents(self) -> int:
        """How many texts there are."""
        return sum(shard["documents"] for shard in self.shards)


class Download:
    """The texts of one stream. `open_at(origin, state)` opens it; `origin` is what `ask` said the first time."""

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
        """Whether all of it is here."""
        return self._kept().done

    def __iter__(self) -> Iterator[str]:
        kept = self._kept()
        for shard in kept.shards:
            yield from self._read(shard)
        if kept.done:
            return
        with self._alone():
            now = self._kept()  # another process may have gone on since
            for shard in now.shards[len(kept.shards) :]:
                yield from self._read(shard)
            yield from self._fetched(now)

    def _fetched(self, kept: DownloadIndex) -> Iterator[str]:
        """What is not here yet, kept as it comes."""
        if kept.done:
            return
        if kept.state is None and not kept.skip:
            kept.origin = self.ask()
        stream = self.open_at(kept.origin, kept.state)
        texts: list[str] = []
        chars = 0
        try:
            for text in islice(stream, kept.skip, None):
                texts.append(text)
                chars += len(text)
                if chars >= self.shard_chars:
                    state = stream.state()
                    self._keep(kept, texts)
                    kept.state, kept.skip, texts, chars = state, 0, [], 0  # before the note, which may be interrupted
                    self._note(kept)
                yield text
            kept.done = True
        finally:
            if texts:
                self._keep(kept, texts)
                kept.skip += len(texts)
            self._note(kept)

    # ------------------------------------------------------------------------------------------------ files

    def _keep(self, kept: DownloadIndex, texts: list[str]) -> None:
        """One shard more; the index does not know it yet."""
        path = self.folder / f"texts-{len(kept.shards):05d}.jsonl.gz"
        with atomic_write(path) as part, part.open("wb") as raw, gzip.GzipFile("", "wb", 4, raw, mtime=0) as file:
            for text in texts:
                file.write(json.dumps(text).encode() + b"\n")
        kept.shards.append({"name": path.name, "documents": len(texts), "sha256": file_digest(path)})

    def _note(self, kept: DownloadIndex) -> None:
        write_json(self.folder / "index.json", {"schema": SCHEMA, **vars(kept)})

    def _kept(self) -> DownloadIndex:
        file = self.folder / "index.json"
        try:
            values = read_json(file)
            if values.pop("schema") != SCHEMA:
                raise ValueError("it was written by another version")
            return DownloadIndex(**values)
        except FileNotFoundError:
            return DownloadIndex()
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptError(f"{file} cannot be read: {error}", self._again) from error

    def _read(self, shard: dict[str, Any]) -> Iterator[str]:
        path = self.folder / shard["name"]
        try:
            if file_digest(path) != shard["sha256"]:
                raise CorruptError(f"{path} has changed since it was fetched", self._again)
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)
        except OSError as error:
            raise CorruptError(f"{path} cannot be read: {error}", self._again) from error

    @property
    def _again(self) -> str:
        return f"Delete {self.folder}; it is fetched again when it is needed."

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder while fetching; the lock goes with the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(
                    f"{self.folder} is being filled by another process", "Wait for it, then run this again."
                ) from error
            yield
