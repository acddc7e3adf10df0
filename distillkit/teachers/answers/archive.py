"""Export and import of the answer cache: JSON lines, plain or compressed, with a header that names their sources.

An imported file is not trusted: each line has a limited length, each key must be the digest of its key fields, each
answer must be complete, and no existing row is overwritten. The whole file is validated before the first row is stored.
Knows no teacher.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ... import __version__
from ...core.errors import CorruptError, UsageError
from ...core.files import atomic_write
from .disk import DAMAGE, DiskAnswerStore
from .maintenance import summarise_row, validate_row

FORMAT, VERSION = "distillkit-answers", 1
MAX_LINE_BYTES = 64 * 2**20
ROWS_PER_TRANSACTION = 500
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


# ------------------------------------------------------------------------------------------------- export


def export_answers(cache: DiskAnswerStore, file: Path, licence: str | None = None) -> dict[str, Any]:
    """Write all valid rows of a cache to a file. Returns the header and the number of damaged rows (`left_out`)."""
    if not file.name.endswith(SUFFIXES):
        raise UsageError(f"{file} has an unknown suffix", f"Use one of {', '.join(SUFFIXES)}.")
    _zstandard(file.suffix == ".zst")
    with cache.snapshot():  # the header counts the lines that follow
        header, left_out = _header(cache, licence)
        with atomic_write(file) as temporary, _open_for_writing(temporary, file.suffix) as stream:
            stream.write(json.dumps(header) + "\n")
            for row in cache.rows():
                with suppress(CorruptError):  # counted as left out; `verify` lists them
                    stream.write(json.dumps({"key": row.key, **validate_row(row.key, row.text)}) + "\n")
    return {**header, "left_out": left_out}


def _header(cache: DiskAnswerStore, licence: str | None) -> tuple[dict[str, Any], int]:
    """The header (sources, licence, number of rows), and the number of damaged rows."""
    sources: Counter[tuple[str, str, str]] = Counter()
    left_out = 0
    for row in cache.rows():
        try:
            validate_row(row.key, row.text)
        except CorruptError:
            left_out += 1
        else:
            summary = summarise_row(row)
            sources[(summary.provider, summary.model, summary.kind) if summary else ("", "", "")] += 1
    header = {
        "format": FORMAT,
        "version": VERSION,
        "by": f"distillkit {__version__}",
        "made": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "licence": licence,
        "rows": sources.total(),
        "sources": [
            {"provider": provider, "model": model, "kind": kind, "rows": count}
            for (provider, model, kind), count in sorted(sources.items())
        ],
    }
    return header, left_out


@contextmanager
def _open_for_writing(file: Path, suffix: str) -> Iterator[IO[str]]:
    """A stream of ASCII text, compressed according to the suffix."""
    if suffix == ".gz":
        stream: Any = gzip.open(file, "wt", compresslevel=6, encoding="ascii")  # noqa: SIM115
    elif suffix == ".zst":
        stream = _zstandard(True).open(file, "wt", encoding="ascii")
    else:
        stream = file.open("w", encoding="ascii")
    with stream:
        yield stream


# ------------------------------------------------------------------------------------------------- import


def import_answers(cache: DiskAnswerStore, file: Path) -> dict[str, Any]:
    """Store the new rows of a file. Returns the header and the counts. An invalid file leaves the cache unchanged."""
    lines = _lines(file)
    header = _parse_header(file, next(lines, b""))
    rows = sum(1 for _ in _rows(file, lines))
    if rows != header["rows"]:
        raise CorruptError(f"{file} is truncated: it has {rows:,} of {header['rows']:,} rows", "Get the file again.")
    again = _rows(file, islice(_lines(file), 1, None))
    new = 0
    while some := list(islice(again, ROWS_PER_TRANSACTION)):
        new += cache.add(some)
    return {"schema": 1, "header": header, "rows": rows, "new": new, "known": rows - new}


def _parse_header(file: Path, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
        if header["format"] != FORMAT or header["version"] > VERSION or not isinstance(header["rows"], int):
            raise ValueError
    except DAMAGE as error:
        raise CorruptError(
            f"{file} is not an export of answers that this version can read",
            "Create one with: distillkit cache export FILE",
        ) from error
    return header  # type: ignore[no-any-return]


def _rows(file: Path, lines: Iterator[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keys and rows, validated."""
    for number, line in enumerate(lines, 2):
        try:
            values = json.loads(line)
            key = values.pop("key")
            yield key, validate_row(key, json.dumps(values))
        except (*DAMAGE, CorruptError) as error:
            raise CorruptError(
                f"{file}, line {number} is not a valid row: {error}", "Nothing was imported from the file."
            ) from error


def _lines(file: Path) -> Iterator[bytes]:
    """The decompressed lines. Lines longer than any exported one are refused."""
    try:
        with _open_for_reading(file) as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise CorruptError(f"{file}, line {number} is longer than {MAX_LINE_BYTES:,} bytes")
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptError(f"{file} cannot be decompressed: {error}", "Get the file again.") from error


@contextmanager
def _open_for_reading(file: Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file. The compression is detected from the first bytes, not from the name."""
    with file.open("rb") as raw:
        magic = raw.read(4)
    if magic[:2] == b"\x1f\x8b":
        with gzip.open(file, "rb") as stream:
            yield io.BufferedReader(stream)
    elif magic == b"\x28\xb5\x2f\xfd":
        zstandard = _zstandard(True)
        try:
            with zstandard.open(file, "rb") as stream:
                yield io.BufferedReader(stream)
        except zstandard.ZstdError as error:
            raise CorruptError(f"{file} cannot be decompressed: {error}", "Get the file again.") from error
    else:
        with file.open("rb") as stream:
            yield stream


def _zstandard(needed: bool) -> Any:
    """The optional package zstandard, if it is needed."""
    if not needed:
        return None
    try:
        import zstandard
    except ImportError as error:
        raise UsageError(
            ".zst files need the package zstandard, which is not installed",
            "Install it (pip install 'distillkit[zstd]'), or use .jsonl.gz.",
        ) from error
    return zstandard
