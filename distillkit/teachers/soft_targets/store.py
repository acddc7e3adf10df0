"""Soft targets kept beside a packed stream: one record for each of its tokens, read by the token's place.

A record is the distribution of that token given what came before it in its row. It names a few tokens, or none where
there is no soft target. Two formats: the k likeliest with their log-probabilities (float16) and the mass of all
others, or how often each token was drawn. A folder holds `soft-*.bin` and `manifest.json`, which vouches for them and
binds them to a tokenizer, a teacher, a stream and the way it was cut. A store that was cut off goes on behind its last
whole shard. Knows neither teachers nor students, only tokens and numbers.
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
BLOCK = 256  # positions between two places that are known by heart
LEAST = -6e4  # float16 ends at 65,504
NAMED = ("ids", "values")  # the columns with a number for each token that is named

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Array = NDArray[Any]


class SoftTargetRows(NamedTuple):
    """Soft targets of tokens in their order: how many tokens each names, then all names and values one after another.

    A value is a log-probability or, in a store of samples, a count. `residuals` are logs of the mass of all others.
    """

    counts: Array
    ids: Array
    values: Array
    residuals: Array

    @classmethod
    def concatenate(cls, parts: Sequence[SoftTargetRows]) -> SoftTargetRows:
        """Several, one after another."""
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    @classmethod
    def blank(cls, positions: int) -> SoftTargetRows:
        """Tokens without a soft target."""
        none = np.zeros(0)
        return cls(np.zeros(positions, np.int64), none.astype(np.int64), none, np.full(positions, LOG_ZERO))

    def dense(self, width: int) -> tuple[Ints, Floats]:
        """Names and values side by side [N, width]; NOTHING is the value of a place that is not used."""
        size = len(self.counts)
        ids, values = np.zeros((size, width), np.int32), np.full((size, width), LOG_ZERO, np.float32)
        at = np.repeat(np.arange(size), self.counts)
        column = np.arange(len(self.ids)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        ids[at, column], values[at, column] = self.ids, self.values
        return ids, values


@dataclass(frozen=True)
class Binding:
    """What a store belongs to, and how its records are written: equal bindings, equal stores."""

    tokenizer: str
    vocab_size: int
    teacher: Any
    stream: str
    tokens: int
    context: int | None = None  # of the windows in which the teacher read; None for what it wrote itself
    most: int = 20  # tokens that a record may name
    samples: int | None = None  # draws a position, where they are counted
    seed: int | None = None
    temperature: float = 1.0
    rule: str = ""  # how the teacher's tokens became the student's

    @property
    def key(self) -> str:
        """What tells it from other bindings."""
        return digest(vars(self))

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """The columns of a shard in their order: one number a position, then one for each token that is named."""
        names = "<u2" if self.vocab_size <= SMALL_VOCABULARY else "<u4"
        if self.samples:
            return {"counts": np.dtype("<u2"), "ids": np.dtype(names), "values": np.dtype("u1")}
        kinds = {"counts": "<u2", "residuals": "<f2", "ids": names, "values": "<f2"}
        return {name: np.dtype(kind) for name, kind in kinds.items()}

    @property
    def min_bytes_per_position(self) -> int:
        """What a position takes that has no soft target."""
        return sum(dtype.itemsize for name, dtype in self.dtypes.items() if name not in NAMED)

    @property
    def max_bytes_per_position(self) -> int:
        """The most that one position takes."""
        each = sum(dtype.itemsize for name, dtype in self.dtypes.items() if name in NAMED)
        return self.min_bytes_per_position + each * (self.samples or self.most)


# Writing ---------------------------------------------------------------------------------------------------


class SoftTargetWriter:
    """Fills a store. Whole shards of one that was cut off are kept: `done` says how many positions they hold."""

    def __init__(self, folder: Path, binding: Binding, limit: int = SHARD_POSITIONS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.binding, self.limit = folder, binding, limit
        self.shards = _whole_shards(folder, binding)
        self.done = sum(shard["positions"] for shard in self.shards)
        self._waiting: list[SoftTargetRows] = []
        self._weights: list[Floats] = []

    def add(self, rows: SoftTargetRows, weights: Floats) -> None:
        """The soft targets of the next tokens, and whether each is learnt, for only such are counted."""
        self._waiting.append(rows)
        self._weights.append(weights)
        if sum(len(some.counts) for some in self._waiting) >= self.limit:
            self._flush()

    def close(self) -> SoftTargetStore:
        """Write what is left, and say that the store is whole."""
        self._flush()
        if self.done != self.binding.tokens:
            raise ValueError(f"a store of {self.binding.tokens} tokens was given {self.done}")
        self._write_manifest(complete=True)
        return SoftTargetStore(self.folder, self.binding)

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows, weights = SoftTargetRows.concatenate(self._waiting), np.concatenate(self._weights)
        name = f"soft-{len(self.shards):05d}.bin"
        with atomic_write(self.folder / name) as part:
            part.write_bytes(_body(rows, self.binding))
            checksum = file_digest(part)
        sizes = {"positions": len(rows.counts), "entries": int(rows.counts.sum()), "most": int(rows.counts.max())}
        self.shards.append({"name": name, **sizes, "sha256": checksum, **_counted(rows, weights)})
        self.done += len(rows.counts)
        self._waiting, self._weights = [], []
        self._write_manifest(complete=False)

    def _write_manifest(self, complete: bool) -> None:
        manifest = {"schema": SCHEMA, "binding": vars(self.binding), "shards": self.shards, "complete": complete}
        write_json(self.folder / "manifest.json", {**manifest, "digest": digest(manifest)})


def _whole_shards(folder: Path, binding: Binding) -> list[dict[str, Any]]:
    """The shards that an earlier sitting finished, as far as they are still what was written."""
    if not (folder / "manifest.json").exists():
        return []
    manifest = _manifest(folder)
    _must_fit(folder, manifest["binding"], binding)
    whole = []
    for shard in manifest["shards"]:
        file = folder / shard["name"]
        if not file.is_file() or file_digest(file) != shard["sha256"]:
            break
        whole.append(shard)
    return whole


def _body(rows: SoftTargetRows, binding: Binding) -> bytes:
    """A shard as bytes: each column as its type has it, the next at a multiple of eight."""
    values = rows.values if binding.samples else np.clip(rows.values, LEAST, 0)
    columns = {"counts": rows.counts, "residuals": np.clip(rows.residuals, LEAST, 0), "ids": rows.ids, "values": values}
    parts = [columns[name].astype(dtype).tobytes() for name, dtype in binding.dtypes.items()]
    return b"".join(part.ljust(_padded(len(part)), b"\0") for part in parts)


def _padded(size: int) -> int:
    return -(-size // 8) * 8


def _counted(rows: SoftTargetRows, weights: Floats) -> dict[str, Any]:
    """Of the tokens that are learnt: how many there are, how many have a soft target, and the mass that those name."""
    soft = (weights > 0) & (rows.counts > 0)
    mass = float((1 - np.exp(rows.residuals[soft].astype(np.float64))).sum())
    return {"learnt": int((weights > 0).sum()), "soft": int(soft.sum()), "mass": mass}


# Reading ---------------------------------------------------------------------------------------------------


class SoftTargetStore:
    """A whole store, memory-mapped. It is refused when it belongs to something else."""

    def __init__(self, folder: Path, binding: Binding) -> None:
        self.folder, self.binding = folder, binding
        manifest = _manifest(folder)
        _must_fit(folder, manifest["binding"], binding)
        if not manifest["complete"]:
            raise UsageError(f"the soft targets in {folder} are not whole", _LABEL)
        _must_be_there(folder, manifest["shards"], binding)
        self.shards: list[dict[str, Any]] = manifest["shards"]
        self.fingerprint: str = manifest["digest"]
        self.width = max((shard["most"] for shard in self.shards), default=0)
        self._firsts = [0, *accumulate(shard["positions"] for shard in self.shards)]
        self._shards = [_Shard(folder / shard["name"], shard, binding) for shard in self.shards]

    def __repr__(self) -> str:
        return f"SoftTargetStore({str(self.folder)!r}, {self.binding.tokens:,} tokens)"

    def read(self, start: int, stop: int) -> tuple[Ints, Floats, Floats, Floats]:
        """Of a range of tokens: names and log-probabilities [N, width], residuals [N], and who has a soft target [N].

        What float16 had rounded is made to sum to one again.
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
        """Of the tokens that are learnt: how many, how many with a soft target, the mass those name; and bytes."""
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
                raise CorruptError(f"{self.folder / shard['name']} has changed since it was written", _AGAIN)


class _Shard:
    """One file of a store."""

    def __init__(self, file: Path, entry: Mapping[str, Any], binding: Binding) -> None:
        self.positions: int = entry["positions"]
        self._columns: dict[str, Array] = {}
        offset = 0
        for name, dtype in binding.dtypes.items():
            length = entry["entries" if name in NAMED else "positions"]
            if length:
                self._columns[name] = np.memmap(file, dtype, "r", offset, (length,))
            else:
                self._columns[name] = np.zeros(0, dtype)
            offset += _padded(length * dtype.itemsize)

    @cached_property
    def _blocks(self) -> Array:
        """How many tokens are named before each block of positions."""
        starts = np.arange(0, self.positions, BLOCK)
        sums = np.add.reduceat(self._columns["counts"].astype(np.int64), starts)
        return np.cumsum(sums) - sums

    def rows(self, start: int, stop: int) -> SoftTargetRows:
        """The records of a range of positions."""
        counts = self._columns["counts"]
        begun = start // BLOCK
        first = int(self._blocks[begun] + counts[begun * BLOCK : start].sum(dtype=np.int64))
        some = counts[start:stop].astype(np.int64)
        named = slice(first, first + int(some.sum()))
        values = self._columns["values"][named].astype(np.float32)
        residuals = self._columns.get("residuals")
        rest = np.zeros(len(some), np.float32) if residuals is None else residuals[start:stop].astype(np.float32)
        return SoftTargetRows(some, self._columns["ids"][named].astype(np.int32), values, rest)


_AGAIN = "Delete that folder; it is made again by: distillkit label"
_LABEL = "Go on with them: distillkit label RUN"
_NAMES = {
    "tokenizer": "the tokenizer",
    "vocab_size": "the vocabulary's size",
    "teacher": "the teacher",
    "stream": "the text, or its order,",
    "tokens": "the number of tokens",
    "context": "the student's context",
    "most": "how many tokens a position names",
    "samples": "how many samples a position has",
    "rule": "the rule of alignment",
}


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store, once it is sure that it is what was written; of the files it knows nothing."""
    try:
        manifest: dict[str, Any] = read_json(folder / "manifest.json")
        claimed = {key: value for key, value in manifest.items() if key != "digest"}
        if manifest["digest"] != digest(claimed):
            raise ValueError("its manifest was altered")
        if manifest["schema"] != SCHEMA:
            raise ValueError(f"they have schema {manifest['schema']}, and this distillkit reads {SCHEMA}")
    except FileNotFoundError as error:
        raise UsageError(f"there are no soft targets in {folder}", _MADE) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"the soft targets in {folder} cannot be used: {error}", _AGAIN) from error
    return manifest


_MADE = "Make them: distillkit label RUN"


def _must_be_there(folder: Path, shards: Sequence[Mapping[str, Any]], binding: Binding) -> None:
    """Refuse a store that has lost a file, or a part of one; whoever writes makes good what is lost."""
    for shard in shards:
        file = folder / shard["name"]
        lengths = {name: shard["entries" if name in NAMED else "positions"] for name in binding.dtypes}
        expected = sum(_padded(lengths[name] * dtype.itemsize) for name, dtype in binding.dtypes.items())
        if not file.is_file():
            raise CorruptError(f"the soft targets in {folder} are not whole: {file.name} is missing", _LABEL)
        if (found := file.stat().st_size) != expected:
            raise CorruptError(f"{file} has {found} bytes and should have {expected}", _LABEL)


def _must_fit(folder: Path, found: Mapping[str, Any], wanted: Binding) -> None:
    """Refuse soft targets of other tokens, another teacher or another text; they would teach nonsense."""
    here = vars(wanted)
    differ = [key for key in here if digest(found.get(key)) != digest(here[key])]
    if differ:
        told = " and ".join(f"{_NAMES.get(key, key)} {_change(found.get(key), here[key])}" for key in differ)
        raise UsageError(
            f"the soft targets in {folder} do not belong to this run: {told}",
            "Delete that folder and make them again (distillkit label RUN), or bring back what changed.",
        )


def _change(before: Any, after: Any) -> str:
    """A change in a few letters: digests and tables would fill the screen."""
    plain = (int, float)
    return f"was {before} and is {after}" if isinstance(before, plain) and isinstance(after, plain) else "is another"
