"""The soft-target store, next to a packed stream: one record for each token of the stream, read by position.

A record is the distribution of that token given the tokens before it in its row. It lists a few tokens, or none if
there is no soft target. Two formats: the top-k tokens with their log-probabilities (float16) and the mass of all
others, or counts of sampled tokens. A folder contains `soft-*.bin` and `manifest.json`, which has their checksums and
the binding to a tokenizer, a teacher, a stream and its windows. An interrupted store is continued after its last
complete shard.
Knows neither teachers nor students, only tokens and numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...core.errors import CorruptError, UsageError
from ...core.files import atomic_write, digest, file_digest, read_json, write_json
from ...core.records import LOG_ZERO

SCHEMA = 1
SHARD_POSITIONS = 1 << 16
SMALL_VOCABULARY = 1 << 16
BLOCK = 256  # positions between two precomputed offsets
MIN_LOGPROB = -6e4  # float16 ends at -65,504
ENTRY_COLUMNS = ("ids", "values")  # with one number for each listed token, not for each position

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Array = NDArray[Any]


class SoftTargetRows(NamedTuple):
    """Soft targets of consecutive positions: the number of tokens that each lists, then all ids and values in a row.

    A value is a log-probability or, in a store of samples, a count. `residuals` are the logs of the remaining mass.
    """

    counts: Array
    ids: Array
    values: Array
    residuals: Array

    @classmethod
    def concatenate(cls, parts: Sequence[SoftTargetRows]) -> SoftTargetRows:
        """Several parts, one after another."""
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    @classmethod
    def blank(cls, positions: int) -> SoftTargetRows:
        """Positions without a soft target."""
        none = np.zeros(0)
        return cls(np.zeros(positions, np.int64), none.astype(np.int64), none, np.full(positions, LOG_ZERO))

    def dense(self, width: int) -> tuple[Ints, Floats]:
        """Ids and values as matrices [N, width]. Unused entries have the value LOG_ZERO."""
        size = len(self.counts)
        ids, values = np.zeros((size, width), np.int32), np.full((size, width), LOG_ZERO, np.float32)
        at = np.repeat(np.arange(size), self.counts)
        column = np.arange(len(self.ids)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        ids[at, column], values[at, column] = self.ids, self.values
        return ids, values


@dataclass(frozen=True)
class Binding:
    """What a store belongs to, and its format. Stores with equal bindings are equal."""

    tokenizer: str
    vocab_size: int
    teacher: Any
    stream: str
    tokens: int
    context: int | None = None  # of the windows that the teacher read; None for its own answers
    most: int = 20  # maximum number of tokens in a record
    samples: int | None = None  # samples per position, in a store of counts
    seed: int | None = None
    temperature: float = 1.0
    rule: str = ""  # version of the alignment of the tokenizers

    @property
    def key(self) -> str:
        """The digest of the binding."""
        return digest(vars(self))

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """The columns of a shard in order: first those with one number per position, then those per listed token."""
        id_type = "<u2" if self.vocab_size <= SMALL_VOCABULARY else "<u4"
        if self.samples:
            return {"counts": np.dtype("<u2"), "ids": np.dtype(id_type), "values": np.dtype("u1")}
        types = {"counts": "<u2", "residuals": "<f2", "ids": id_type, "values": "<f2"}
        return {name: np.dtype(kind) for name, kind in types.items()}

    @property
    def min_bytes_per_position(self) -> int:
        """The size of a position without a soft target."""
        return sum(dtype.itemsize for name, dtype in self.dtypes.items() if name not in ENTRY_COLUMNS)

    @property
    def max_bytes_per_position(self) -> int:
        """The maximum size of a position."""
        each = sum(dtype.itemsize for name, dtype in self.dtypes.items() if name in ENTRY_COLUMNS)
        return self.min_bytes_per_position + each * (self.samples or self.most)


# Writing ---------------------------------------------------------------------------------------------------


class SoftTargetWriter:
    """Writes a store. Complete shards of an interrupted one are kept; `done` is the number of their positions."""

    def __init__(self, folder: Path, binding: Binding, limit: int = SHARD_POSITIONS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.binding, self.limit = folder, binding, limit
        self.shards = _complete_shards(folder, binding)
        self.done = sum(shard["positions"] for shard in self.shards)
        self._buffer: list[SoftTargetRows] = []
        self._weights: list[Floats] = []

    def add(self, rows: SoftTargetRows, weights: Floats) -> None:
        """Append soft targets, with the loss weight of each position. Statistics count positions with a weight."""
        self._buffer.append(rows)
        self._weights.append(weights)
        if sum(len(some.counts) for some in self._buffer) >= self.limit:
            self._flush()

    def close(self) -> SoftTargetStore:
        """Write the last shard, and mark the store as complete."""
        self._flush()
        if self.done != self.binding.tokens:
            raise ValueError(f"a store for {self.binding.tokens} tokens got {self.done}")
        self._write_manifest(complete=True)
        return SoftTargetStore(self.folder, self.binding)

    def _flush(self) -> None:
        if not self._buffer:
            return
        rows, weights = SoftTargetRows.concatenate(self._buffer), np.concatenate(self._weights)
        name = f"soft-{len(self.shards):05d}.bin"
        with atomic_write(self.folder / name) as file:
            file.write_bytes(_shard_bytes(rows, self.binding))
            checksum = file_digest(file)
        sizes = {"positions": len(rows.counts), "entries": int(rows.counts.sum()), "most": int(rows.counts.max())}
        self.shards.append({"name": name, **sizes, "sha256": checksum, **_statistics(rows, weights)})
        self.done += len(rows.counts)
        self._buffer, self._weights = [], []
        self._write_manifest(complete=False)

    def _write_manifest(self, complete: bool) -> None:
        manifest = {"schema": SCHEMA, "binding": vars(self.binding), "shards": self.shards, "complete": complete}
        write_json(self.folder / "manifest.json", {**manifest, "digest": digest(manifest)})


def _complete_shards(folder: Path, binding: Binding) -> list[dict[str, Any]]:
    """The shards that an earlier session completed, up to the first one that is missing or damaged."""
    if not (folder / "manifest.json").exists():
        return []
    manifest = _manifest(folder)
    _check_binding(folder, manifest["binding"], binding)
    complete = []
    for shard in manifest["shards"]:
        file = folder / shard["name"]
        if not file.is_file() or file_digest(file) != shard["sha256"]:
            break
        complete.append(shard)
    return complete


def _shard_bytes(rows: SoftTargetRows, binding: Binding) -> bytes:
    """The bytes of a shard: one column after another, each padded to a multiple of eight."""
    values = rows.values if binding.samples else np.clip(rows.values, MIN_LOGPROB, 0)
    columns = {
        "counts": rows.counts,
        "residuals": np.clip(rows.residuals, MIN_LOGPROB, 0),
        "ids": rows.ids,
        "values": values,
    }
    parts = [columns[name].astype(dtype).tobytes() for name, dtype in binding.dtypes.items()]
    return b"".join(part.ljust(_padded_size(len(part)), b"\0") for part in parts)


def _padded_size(size: int) -> int:
    return -(-size // 8) * 8


def _statistics(rows: SoftTargetRows, weights: Floats) -> dict[str, Any]:
    """Over positions with a weight: their number, those with a soft target, the probability mass that those list."""
    soft = (weights > 0) & (rows.counts > 0)
    mass = float((1 - np.exp(rows.residuals[soft].astype(np.float64))).sum())
    return {"learnt": int((weights > 0).sum()), "soft": int(soft.sum()), "mass": mass}


# Reading ---------------------------------------------------------------------------------------------------


class SoftTargetStore:
    """A complete store, memory-mapped. Raises UsageError if it has another binding."""

    def __init__(self, folder: Path, binding: Binding) -> None:
        self.folder, self.binding = folder, binding
        manifest = _manifest(folder)
        _check_binding(folder, manifest["binding"], binding)
        if not manifest["complete"]:
            raise UsageError(f"the soft targets in {folder} are incomplete", _CONTINUE)
        _check_files(folder, manifest["shards"], binding)
        self.shards: list[dict[str, Any]] = manifest["shards"]
        self.fingerprint: str = manifest["digest"]
        self.width = max((shard["most"] for shard in self.shards), default=0)
        self._firsts = [0, *accumulate(shard["positions"] for shard in self.shards)]
        self._shards = [_Shard(folder / shard["name"], shard, binding) for shard in self.shards]

    def __repr__(self) -> str:
        return f"SoftTargetStore({str(self.folder)!r}, {self.binding.tokens:,} tokens)"

    def read(self, start: int, stop: int) -> tuple[Ints, Floats, Floats, Floats]:
        """For a range of positions: ids and log-probabilities [N, width], residuals [N], has_soft (0 or 1) [N].

        Probabilities are normalised again after rounding to float16, so that each row sums to 1.
        """
        parts = [
            shard.rows(max(0, start - first), min(stop - first, shard.positions))
            for first, shard in zip(self._firsts, self._shards, strict=False)
            if start < first + shard.positions and first < stop
        ]
        return self._dense(SoftTargetRows.concatenate(parts) if parts else SoftTargetRows.blank(0))

    def _dense(self, rows: SoftTargetRows) -> tuple[Ints, Floats, Floats, Floats]:
        ids, logs = rows.dense(self.width)
        used, has = logs > LOG_ZERO, rows.counts > 0
        if self.binding.samples:
            logs[used] = np.log(logs[used] / np.float32(self.binding.samples))
            residuals = np.full(len(has), LOG_ZERO, np.float32)
        else:
            residuals = np.where(has, rows.residuals, LOG_ZERO).astype(np.float32)
            total = np.where(has, np.log(np.exp(logs).sum(axis=1) + np.exp(residuals) + ~has), 0)
            logs = np.where(used, logs - total[:, None], LOG_ZERO).astype(np.float32)
            residuals = np.where(residuals > LOG_ZERO, residuals - total, LOG_ZERO).astype(np.float32)
        return ids, logs, residuals, has.astype(np.float32)

    @property
    def summary(self) -> dict[str, Any]:
        """Over positions with a weight: their number, those with a soft target, the listed mass; and the bytes."""
        learnt, soft = (sum(shard[key] for shard in self.shards) for key in ("learnt", "soft"))
        size = sum((self.folder / shard["name"]).stat().st_size for shard in self.shards)
        return {
            "positions": learnt,
            "with_soft": soft,
            "mass": round(sum(shard["mass"] for shard in self.shards) / soft, 6) if soft else 0.0,
            "bytes": size,
        }

    def verify(self) -> None:
        """Read every file and compare its SHA-256 with the manifest's."""
        for shard in self.shards:
            if file_digest(self.folder / shard["name"]) != shard["sha256"]:
                raise CorruptError(f"{self.folder / shard['name']} has changed since it was written", _RECREATE)


class _Shard:
    """One file of a store."""

    def __init__(self, file: Path, entry: Mapping[str, Any], binding: Binding) -> None:
        self.positions: int = entry["positions"]
        self._columns: dict[str, Array] = {}
        offset = 0
        for name, dtype in binding.dtypes.items():
            length = entry["entries" if name in ENTRY_COLUMNS else "positions"]
            if length:
                self._columns[name] = np.memmap(file, dtype, "r", offset, (length,))
            else:
                self._columns[name] = np.zeros(0, dtype)
            offset += _padded_size(length * dtype.itemsize)

    @cached_property
    def _blocks(self) -> Array:
        """The number of listed tokens before each block of positions."""
        starts = np.arange(0, self.positions, BLOCK)
        sums = np.add.reduceat(self._columns["counts"].astype(np.int64), starts)
        return np.cumsum(sums) - sums

    def rows(self, start: int, stop: int) -> SoftTargetRows:
        """The records of a range of positions."""
        counts = self._columns["counts"]
        block = start // BLOCK
        first = int(self._blocks[block] + counts[block * BLOCK : start].sum(dtype=np.int64))
        some = counts[start:stop].astype(np.int64)
        entries = slice(first, first + int(some.sum()))
        values = self._columns["values"][entries].astype(np.float32)
        residuals = self._columns.get("residuals")
        rest = np.zeros(len(some), np.float32) if residuals is None else residuals[start:stop].astype(np.float32)
        return SoftTargetRows(some, self._columns["ids"][entries].astype(np.int32), values, rest)


_RECREATE = "Delete that folder, and create it again: distillkit label RUN"
_CONTINUE = "Continue: distillkit label RUN"
_NAMES = {
    "tokenizer": "the tokenizer",
    "vocab_size": "the vocabulary size",
    "teacher": "the teacher",
    "stream": "the text or its order",
    "tokens": "the number of tokens",
    "context": "the student's context",
    "most": "the maximum number of tokens per position",
    "samples": "the number of samples per position",
    "rule": "the alignment rule",
}


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store, with its digest and schema verified. Does not check the shards."""
    try:
        manifest: dict[str, Any] = read_json(folder / "manifest.json")
        content = {key: value for key, value in manifest.items() if key != "digest"}
        if manifest["digest"] != digest(content):
            raise ValueError("the manifest was changed")
        if manifest["schema"] != SCHEMA:
            raise ValueError(f"they have schema {manifest['schema']}, and this version of distillkit reads {SCHEMA}")
    except FileNotFoundError as error:
        raise UsageError(f"there are no soft targets in {folder}", _CREATE) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"the soft targets in {folder} cannot be used: {error}", _RECREATE) from error
    return manifest


_CREATE = "Create them: distillkit label RUN"


def _check_files(folder: Path, shards: Sequence[Mapping[str, Any]], binding: Binding) -> None:
    """Raise CorruptError if a shard is missing or has the wrong size. A writer replaces such shards."""
    for shard in shards:
        file = folder / shard["name"]
        lengths = {name: shard["entries" if name in ENTRY_COLUMNS else "positions"] for name in binding.dtypes}
        expected = sum(_padded_size(lengths[name] * dtype.itemsize) for name, dtype in binding.dtypes.items())
        if not file.is_file():
            raise CorruptError(f"the soft targets in {folder} are incomplete: {file.name} is missing", _CONTINUE)
        if (found := file.stat().st_size) != expected:
            raise CorruptError(f"{file} has {found} bytes, expected {expected}", _CONTINUE)


def _check_binding(folder: Path, found: Mapping[str, Any], wanted: Binding) -> None:
    """Raise UsageError for soft targets of another tokenizer, teacher or text."""
    expected = vars(wanted)
    differing = [key for key in expected if digest(found.get(key)) != digest(expected[key])]
    if differing:
        changes = " and ".join(f"{_NAMES.get(key, key)} {_change(found.get(key), expected[key])}" for key in differing)
        raise UsageError(
            f"the soft targets in {folder} do not belong to this run: {changes}",
            "Delete that folder and create them again (distillkit label RUN), or undo the change.",
        )


def _change(before: Any, after: Any) -> str:
    """A change of a number with both values; of anything else, because digests and tables are long, without."""
    plain = (int, float)
    return f"was {before} and is {after}" if isinstance(before, plain) and isinstance(after, plain) else "is different"
