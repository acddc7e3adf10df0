"""Every answer on disk, once, for all runs: content-addressed JSON in `cache/teachers/`.

The key is the canonical JSON of all that decides an answer: who is asked (provider and identity) and what
(the request without its id). Only text is stored and only text is read back: a foreign cache folder may
give wrong answers, but it never runs code. Failures are not answers, and nothing here expires.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CorruptError, DistillkitError
from ..files import digest
from ..records import Answer, Request

FORMAT = 1
NO_FILES = 1 << 40  # bytes from which diskcache would put a value in a file of its own


class Cache:
    """Answers under the digest of what was asked of whom."""

    def __init__(self, folder: Path) -> None:
        import diskcache

        self.folder = folder.absolute()
        with self._said("opened"):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chmod(self.folder, 0o700)  # noqa: PTH101 - answers may be private
            self._rows = diskcache.Cache(
                str(self.folder),
                disk=_text_disk(),
                disk_min_file_size=NO_FILES,
                eviction_policy="none",
                cull_limit=0,
            )

    def get(self, key: str) -> Answer | None:
        """The answer under a key, or None."""
        with self._said("read"):
            text = self._rows.get(key)
        if text is None:
            return None
        try:
            return Answer.from_json(json.loads(text)["answer"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptError(
                f"the cached answer {key[:12]} in {self.folder} is damaged: {type(error).__name__}: {error}",
                "Move that folder away to ask everything again.",
            ) from error

    def put(self, key: str, asked: dict[str, Any], answer: Answer) -> None:
        """Keep an answer, with what was asked and when; as ASCII, which holds even half an emoji."""
        row = {"asked": asked, "answer": answer.to_json(), "time": round(time.time(), 3)}
        with self._said("written"):
            self._rows.set(key, json.dumps(row))

    def __contains__(self, key: str) -> bool:
        with self._said("read"):
            return key in self._rows

    def __len__(self) -> int:
        with self._said("read"):
            return len(self._rows)

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *reason: object) -> None:
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
            raise DistillkitError(
                f"the cache {self.folder} cannot be {done}: {getattr(error, 'strerror', None) or error}",
                "Make room there, or set DISTILLKIT_HOME to a folder of yours.",
            ) from error


def asked(provider: str, identity: Any, request: Request) -> dict[str, Any]:
    """All that decides an answer, as plain JSON values."""
    what = request.canonical()
    numbers = {name: float(what[name]) for name in ("temperature", "top_p")}  # 1 and 1.0 ask the same
    return {"format": FORMAT, "provider": provider, "identity": identity, "request": {**what, **numbers}}


def key_of(what: dict[str, Any]) -> str:
    """The key of what was asked."""
    return digest(what)


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
