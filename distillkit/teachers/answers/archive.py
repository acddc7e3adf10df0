"""Answers in a file that travels: JSON lines, plain or compressed, with a header that says where they come from.

What comes in is trusted with nothing: each line is text of a bounded length, each key must be the digest of what was
asked, each answer must be whole, and nothing that is there already is overwritten. A file is read to its end before the
first row of it is kept. Knows no teacher.
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
LONGEST_LINE = 64 * 2**20
AT_ONCE = 500
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


# ------------------------------------------------------------------------------------------------- out


def export_answers(cache: DiskAnswerStore, file: Path, licence: str | None = None) -> dict[str, Any]:
    """Write all sound rows of a cache to a file; its header, with the number of damaged rows that were left out."""
    if not file.name.endswith(SUFFIXES):
        raise UsageError(f"{file} has no known ending", f"End its name in {', '.join(SUFFIXES)}.")
    _zstandard(file.suffix == ".zst")
    with cache.snapshot():  # the header counts what the lines then are
        header, left_out = _header(cache, licence)
        with atomic_write(file) as part, _writing(part, file.suffix) as stream:
            stream.write(json.dumps(header) + "\n")
            for row in cache.rows():
                with suppress(CorruptError):  # counted in the header; `verify` names them
                    stream.write(json.dumps({"key": row.key, **validate_row(row.key, row.text)}) + "\n")
    return {**header, "left_out": left_out}


def _header(cache: DiskAnswerStore, licence: str | None) -> tuple[dict[str, Any], int]:
    """Where the rows come from, and under which terms; and how many are damaged."""
    sources: Counter[tuple[str, str, str]] = Counter()
    left_out = 0
    for row in cache.rows():
        try:
            validate_row(row.key, row.text)
        except CorruptError:
            left_out += 1
        else:
            said = summarise_row(row)
            sources[(said.provider, said.model, said.kind) if said else ("", "", "")] += 1
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
def _writing(part: Path, suffix: str) -> Iterator[IO[str]]:
    """A stream of ASCII lines, compressed as the ending says."""
    if suffix == ".gz":
        stream: Any = gzip.open(part, "wt", compresslevel=6, encoding="ascii")  # noqa: SIM115
    elif suffix == ".zst":
        stream = _zstandard(True).open(part, "wt", encoding="ascii")
    else:
        stream = part.open("w", encoding="ascii")
    with stream:
        yield stream


# ------------------------------------------------------------------------------------------------- in


def import_answers(cache: DiskAnswerStore, file: Path) -> dict[str, Any]:
    """Keep the rows of a file that are new; how many there were and were new. A bad file leaves the cache as it was."""
    lines = _lines(file)
    header = _checked_header(file, next(lines, b""))
    rows = sum(1 for _ in _rows(file, lines))
    if rows != header["rows"]:
        raise CorruptError(f"{file} holds {rows:,} of {header['rows']:,} rows: it was cut short", "Fetch it again.")
    again = _rows(file, islice(_lines(file), 1, None))
    new = 0
    while some := list(islice(again, AT_ONCE)):
        new += cache.add(some)
    return {"schema": 1, "header": header, "rows": rows, "new": new, "known": rows - new}


def _checked_header(file: Path, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
        if header["format"] != FORMAT or header["version"] > VERSION or not isinstance(header["rows"], int):
            raise ValueError
    except DAMAGE as error:
        raise CorruptError(
            f"{file} is not an export of answers that this version reads", "Make it with: distillkit cache export FILE"
        ) from error
    return header  # type: ignore[no-any-return]


def _rows(file: Path, lines: Iterator[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keys and rows, each held against what it must be."""
    for number, line in enumerate(lines, 2):
        try:
            values = json.loads(line)
            key = values.pop("key")
            yield key, validate_row(key, json.dumps(values))
        except (*DAMAGE, CorruptError) as error:
            raise CorruptError(
                f"{file}, line {number} is no sound row: {error}", "Nothing of the file was kept."
            ) from error


def _lines(file: Path) -> Iterator[bytes]:
    """Lines as bytes, unpacked, none of them longer than anything that we write."""
    try:
        with _reading(file) as stream:
            number = 0
            while line := stream.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise CorruptError(f"{file}, line {number} is longer than {LONGEST_LINE:,} bytes: refused")
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptError(f"{file} cannot be unpacked: {error}", "Fetch it again.") from error


@contextmanager
def _reading(file: Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a file; how it is packed is told by its first bytes, not by its name."""
    with file.open("rb") as raw:
        magic = raw.read(4)
    if magic[:2] == b"\x1f\x8b":
        with gzip.open(file, "rb") as unpacked:
            yield io.BufferedReader(unpacked)
    elif magic == b"\x28\xb5\x2f\xfd":
        zstandard = _zstandard(True)
        try:
            with zstandard.open(file, "rb") as unpacked:
                yield io.BufferedReader(unpacked)
        except zstandard.ZstdError as error:
            raise CorruptError(f"{file} cannot be unpacked: {error}", "Fetch it again.") from error
    else:
        with file.open("rb") as stream:
            yield stream


def _zstandard(needed: bool) -> Any:
    """The package that knows Zstandard, which is optional."""
    if not needed:
        return None
    try:
        import zstandard
    except ImportError as error:
        raise UsageError(
            "files that end in .zst need the package zstandard, which is not installed",
            "Install it (pip install 'distillkit[zstd]'), or use .jsonl.gz.",
        ) from error
    return zstandard
