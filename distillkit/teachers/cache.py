"""Every answer on disk, once, for all runs: content-addressed JSON in `cache/teachers/`.

The key is the canonical JSON of all that decides an answer: who is asked (provider and identity) and what (the
request without its id). Only text is stored and only text is read back, so that a foreign cache folder can give
wrong answers but never run code. Failures are not answers, and nothing here expires.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ..errors import CorruptError, DistillkitError
from ..files import digest
from ..records import Answer, Request

FORMAT = 1


class Cache:
    """Answers under the digest of what was asked of whom."""

    def __init__(self, folder: Path) -> None:
        import diskcache

        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.chmod(folder, 0o700)  # noqa: PTH101 - answers may be private
            self._rows = diskcache.Cache(str(folder), disk=_text_disk(), eviction_policy="none", cull_limit=0)
        except OSError as error:
            raise DistillkitError(
                f"the cache {folder} cannot be written: {error.strerror}",
                "Set DISTILLKIT_HOME to a folder of yours.",
            ) from error

    def get(self, key: str) -> Answer | None:
        """The answer under a key, or None."""
        text = self._rows.get(key)
        if text is None:
            return None
        try:
            return Answer.from_json(json.loads(text)["answer"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError(
                f"the cached answer {key[:12]} in {self.folder} is damaged: {error}",
                "Delete that folder's cache.db to ask again.",
            ) from error

    def put(self, key: str, asked: dict[str, Any], answer: Answer) -> None:
        """Keep an answer, with what was asked and when."""
        row = {"asked": asked, "answer": answer.to_json(), "time": round(time.time(), 3)}
        self._rows.set(key, json.dumps(row, ensure_ascii=False))

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *reason: object) -> None:
        self._rows.close()


def asked(provider: str, identity: Any, request: Request) -> dict[str, Any]:
    """All that decides an answer, as plain JSON values."""
    return {"format": FORMAT, "provider": provider, "identity": identity, "request": request.canonical()}


def key_of(what: dict[str, Any]) -> str:
    """The key of what was asked."""
    return digest(what)


def _text_disk() -> Any:
    """A `diskcache` disk that stores text and refuses to unpickle."""
    import diskcache

    class TextDisk(diskcache.Disk):  # type: ignore[misc]
        """Strings only, in and out: diskcache would pickle everything else."""

        def store(self, value: Any, read: bool, key: Any = diskcache.UNKNOWN) -> Any:
            if not isinstance(value, str):
                raise TypeError("the cache keeps text only")
            return super().store(value, read, key=key)

        def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
            if mode == diskcache.core.MODE_PICKLE:
                raise CorruptError("the cache holds a row that is code, not text; it was not read")
            return super().fetch(mode, filename, value, read)

        def get(self, key: Any, raw: bool) -> Any:
            if not raw:
                raise CorruptError("the cache holds a key that is code, not text; it was not read")
            return super().get(key, raw)

    return TextDisk
