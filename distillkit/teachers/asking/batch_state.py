"""Batches that were sent off, on disk: what each asks, and how far it has come. Another process goes on another day.

A part is one batch. Its state is written before and after every step, each time whole or not at all; `submitting` is
what remains of a process that ended between asking the provider and hearing from it; `queued` waits for other parts.
Knows no provider, and not whose recipe wants what.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from ...core.errors import CorruptError, UsageError
from ...core.files import atomic_write, make_private_folder, read_json, read_jsonl, write_json
from ...core.records import REFUSED
from ..answers.disk import DiskAnswerStore

FORMAT = 1
STATES = ("new", "submitting", "submitted", "queued", "collected")
SUBMITTED_STATES = ("submitting", "submitted")


@dataclass(frozen=True)
class BatchRecord:
    """One batch. A collected one is kept for what is still to be said of it.

    `failed` is what was not answered: key to [reason, whether to ask again]. `owed` is what an answer cost, by its
    usage, that only another recipe wants than the one that collected it: whoever wants it counts it.
    """

    folder: Path
    id: str
    teacher: str
    identity: str  # the digest of it
    endpoint: str
    count: int
    attempt: int = 1
    status: str = "new"
    file: str | None = None
    batch: str | None = None
    failed: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    owed: Mapping[str, dict[str, int] | None] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where its state stands."""
        return self.folder / f"{self.id}.json"

    @property
    def asked(self) -> dict[str, dict[str, Any]]:
        """What was asked, under its keys."""
        found = _asked(self._asked_file)
        if len(found) != self.count and self.path.exists():  # else another process has just dropped it
            raise CorruptError(
                f"{self._asked_file} names {len(found)} of the {self.count} requests of its batch",
                f"Bring it back, or look for the batch at the provider and delete {self.path}; "
                "what it asked is asked again.",
            )
        return found

    @property
    def _asked_file(self) -> Path:
        return self.folder / f"{self.id}.asked.jsonl"

    def save(self, **changes: Any) -> BatchRecord:
        """The part one step further, on disk before anything else is done."""
        after = replace(self, **changes)
        write_json(after.path, {"format": FORMAT, **{k: v for k, v in asdict(after).items() if k != "folder"}})
        return after

    def collected(self, failed: Mapping[str, tuple[str, bool]], owed: Mapping[str, dict[str, int] | None]) -> None:
        """Keep what is still to be said of it; when that is nothing, it goes."""
        if failed or owed:
            self.save(status="collected", failed=failed, owed=owed)
        else:
            self.drop()

    def forget(self, keys: Iterable[str]) -> None:
        """Forget that some keys failed."""
        if gone := self.failed.keys() & set(keys):
            self.collected({key: why for key, why in self.failed.items() if key not in gone}, self.owed)

    def read(self) -> BatchRecord | None:
        """The part as it stands on disk now, or None when it is gone."""
        return _read(self.path)

    def drop(self) -> None:
        """Forget it: first the state, without which the rest means nothing."""
        for path in (self.path, self._asked_file):
            path.unlink(missing_ok=True)


def new_id() -> str:
    """An id for a new part. Claim it before the part begins: as soon as that is on disk, another process may see it."""
    return uuid4().hex[:16]


def create(folder: Path, asked: Mapping[str, dict[str, Any]], **facts: Any) -> BatchRecord:
    """A new part on disk; its state is written last."""
    make_private_folder(folder)
    part = BatchRecord(folder=folder, count=len(asked), **facts)
    with atomic_write(part._asked_file) as file:
        file.write_bytes(to_json_lines({"key": key, "asked": what} for key, what in asked.items()))
    return part.save()


def to_json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """JSON lines as ASCII, which holds even half an emoji."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")


def load_all(folder: Path) -> list[BatchRecord]:
    """All parts, oldest first, without those that another process drops meanwhile."""
    files = [path for path in folder.glob("*.json") if not path.name.startswith(".")] if folder.is_dir() else []
    return [part for path in sorted(files, key=_age) if (part := _read(path)) is not None]


def _age(path: Path) -> tuple[int, str]:
    """What parts are sorted by; for one that is gone anything will do."""
    try:
        return path.stat().st_mtime_ns, path.name
    except FileNotFoundError:
        return 0, path.name


@lru_cache(maxsize=64)
def _asked(file: Path) -> dict[str, dict[str, Any]]:
    """What was asked in a part; the file of a part never changes."""
    return {row["key"]: row["asked"] for row in read_jsonl(file)}


def _read(path: Path) -> BatchRecord | None:
    """The part whose state a file holds, or None when it is gone."""
    try:
        values = read_json(path)
        if values.pop("format") != FORMAT or values["status"] not in STATES:
            raise ValueError("its format or its status is unknown")
        part = BatchRecord(folder=path.parent, **values)
        if part.id != path.stem:
            raise ValueError("it has another part's name")
        return part
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(
            f"{path} does not say how far its batch has come: {error}",
            "Look for the batch at the provider, then delete the file; what it asked is asked again.",
        ) from error


def keys_in_batches(folder: Path, keys: Iterable[str], states: Iterable[str] = STATES[:-1]) -> dict[str, Path]:
    """Which of the keys are in a batch that may still answer, or is in one of some states; and in which."""
    wanted, states = set(keys), set(states)
    return {key: part.path for part in load_all(folder) if part.status in states for key in part.asked if key in wanted}


def unbilled_keys(folder: Path) -> set[str]:
    """The keys whose answers nobody has counted yet who wants them."""
    return {key for part in load_all(folder) for key in part.owed}


def refuse_batched(folder: Path, cache: DiskAnswerStore, keys: Iterable[str]) -> None:
    """Refuse to ask one by one for what is in a batch: it would be paid for twice."""
    found = keys_in_batches(folder, keys, SUBMITTED_STATES)
    answered = {key for key, answer in cache.get_many(found).items() if answer.finish != REFUSED}
    if waiting := found.keys() - answered:
        raise UsageError(
            f"{len(waiting):,} of the requests are in a batch that has not been collected ({found[min(waiting)]})",
            "Collect it: distillkit label RECIPE --batch. To ask for them again all the same, delete that file.",
        )


def split_lines(
    lines: Iterable[tuple[str, dict[str, Any]]], most: int, most_bytes: int
) -> Iterable[list[tuple[str, dict[str, Any]]]]:
    """Lines in groups, none with too many or too long in all. A line that is too long alone is alone."""
    group: list[tuple[str, dict[str, Any]]] = []
    size = 0
    for key, line in lines:
        length = len(json.dumps(line)) + 1
        if group and (len(group) >= most or size + length > most_bytes):
            yield group
            group, size = [], 0
        group.append((key, line))
        size += length
    if group:
        yield group
