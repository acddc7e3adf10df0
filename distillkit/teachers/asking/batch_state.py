"""Records of submitted batches on disk: the requests and the state of each, so that another process can continue.

The state of a batch is written atomically before and after every step. `submitting` remains if a process ended between
submitting a batch and receiving its id; a `queued` batch waits for other batches to end. Knows no provider, and does
not know which recipe needs which request.
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
    """The state of one batch. A collected batch is kept as long as `failed` or `owed` has entries.

    `failed`: key to [reason, whether to retry] of requests without an answer. `owed`: key to usage of answers that the
    collecting recipe does not need. The recipe that needs such an answer counts its cost.
    """

    folder: Path
    id: str
    teacher: str
    identity: str  # digest of the teacher's identity
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
        """The file of the state."""
        return self.folder / f"{self.id}.json"

    @property
    def requests(self) -> dict[str, dict[str, Any]]:
        """The key fields of the batch's requests, by key."""
        requests = _read_requests(self._requests_file)
        if len(requests) != self.count and self.path.exists():  # else another process has just deleted it
            raise CorruptError(
                f"{self._requests_file} names {len(requests)} of the {self.count} requests of its batch",
                f"Restore it, or look for the batch at the provider and delete {self.path}; "
                "its requests are then sent again.",
            )
        return requests

    @property
    def _requests_file(self) -> Path:
        return self.folder / f"{self.id}.asked.jsonl"

    def save(self, **changes: Any) -> BatchRecord:
        """A changed copy of the record, which is on disk when this returns."""
        changed = replace(self, **changes)
        write_json(changed.path, {"format": FORMAT, **{k: v for k, v in asdict(changed).items() if k != "folder"}})
        return changed

    def save_collected(self, failed: Mapping[str, tuple[str, bool]], owed: Mapping[str, dict[str, int] | None]) -> None:
        """Record that the results were collected. Without failed and unbilled requests the record is deleted."""
        if failed or owed:
            self.save(status="collected", failed=failed, owed=owed)
        else:
            self.delete()

    def clear_failures(self, keys: Iterable[str]) -> None:
        """Remove keys from the failed ones."""
        if cleared := self.failed.keys() & set(keys):
            self.save_collected({key: why for key, why in self.failed.items() if key not in cleared}, self.owed)

    def reload(self) -> BatchRecord | None:
        """The record as it is on disk now, or None if it was deleted."""
        return _read(self.path)

    def delete(self) -> None:
        """Delete the files: the state first, because the other one means nothing without it."""
        for path in (self.path, self._requests_file):
            path.unlink(missing_ok=True)


def new_id() -> str:
    """An id for a new record. Claim a lease on it before `create`: other processes see it as soon as it exists."""
    return uuid4().hex[:16]


def create(folder: Path, requests: Mapping[str, dict[str, Any]], **values: Any) -> BatchRecord:
    """Write a new record. Its state is written last."""
    make_private_folder(folder)
    record = BatchRecord(folder=folder, count=len(requests), **values)
    with atomic_write(record._requests_file) as file:
        file.write_bytes(to_json_lines({"key": key, "asked": fields} for key, fields in requests.items()))
    return record.save()


def to_json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """JSON lines as ASCII, which can hold lone surrogates."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")


def load_all(folder: Path) -> list[BatchRecord]:
    """All records, oldest first, without those that another process deletes meanwhile."""
    files = [path for path in folder.glob("*.json") if not path.name.startswith(".")] if folder.is_dir() else []
    return [record for path in sorted(files, key=_modified) if (record := _read(path)) is not None]


def _modified(path: Path) -> tuple[int, str]:
    """The sort key of records. For a deleted file any value will do."""
    try:
        return path.stat().st_mtime_ns, path.name
    except FileNotFoundError:
        return 0, path.name


@lru_cache(maxsize=64)
def _read_requests(file: Path) -> dict[str, dict[str, Any]]:
    """The requests of a batch, cached because their file never changes."""
    return {row["key"]: row["asked"] for row in read_jsonl(file)}


def _read(path: Path) -> BatchRecord | None:
    """The record in a file, or None if the file was deleted."""
    try:
        values = read_json(path)
        if values.pop("format") != FORMAT or values["status"] not in STATES:
            raise ValueError("unknown format or status")
        record = BatchRecord(folder=path.parent, **values)
        if record.id != path.stem:
            raise ValueError("the file has the name of another batch")
        return record
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(
            f"{path} is not a valid record of a batch: {error}",
            "Look for the batch at the provider, then delete the file; its requests are then sent again.",
        ) from error


def keys_in_batches(folder: Path, keys: Iterable[str], states: Iterable[str] = STATES[:-1]) -> dict[str, Path]:
    """The keys that are in a batch with one of these states, by default all but "collected"; and its file."""
    wanted, states = set(keys), set(states)
    records = [record for record in load_all(folder) if record.status in states]
    return {key: record.path for record in records for key in record.requests if key in wanted}


def unbilled_keys(folder: Path) -> set[str]:
    """The keys of answers whose cost no recipe has counted yet."""
    return {key for record in load_all(folder) for key in record.owed}


def refuse_batched(folder: Path, cache: DiskAnswerStore, keys: Iterable[str]) -> None:
    """Raise UsageError if keys that are about to be requested are in a batch: they would be paid for twice."""
    found = keys_in_batches(folder, keys, SUBMITTED_STATES)
    answered = {key for key, answer in cache.get_many(found).items() if answer.finish != REFUSED}
    if waiting := found.keys() - answered:
        raise UsageError(
            f"{len(waiting):,} of the requests are in a batch that has not been collected ({found[min(waiting)]})",
            "Collect it: distillkit label RECIPE --batch. To send them again all the same, delete that file.",
        )


def split_lines(
    lines: Iterable[tuple[str, dict[str, Any]]], max_lines: int, max_bytes: int
) -> Iterable[list[tuple[str, dict[str, Any]]]]:
    """Split lines into groups within both limits. A line that is longer than `max_bytes` gets its own group."""
    group: list[tuple[str, dict[str, Any]]] = []
    size = 0
    for key, line in lines:
        length = len(json.dumps(line)) + 1
        if group and (len(group) >= max_lines or size + length > max_bytes):
            yield group
            group, size = [], 0
        group.append((key, line))
        size += length
    if group:
        yield group
