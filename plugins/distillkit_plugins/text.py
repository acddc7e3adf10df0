"""A source that reads files: text, JSON lines or parquet; the first two also packed as .gz or .xz."""

from __future__ import annotations

import glob
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from pydantic import Field, model_validator

from distillkit import DataError, Document, Source, hookimpl

if TYPE_CHECKING:
    from typing import Self

CHUNK = 1 << 20
BOM = "\ufeff"
END_OF_TEXT = "<|endoftext|>"


class Text(Source):
    """Files of text (.txt), JSON lines (.jsonl) or .parquet."""

    name = "text"

    class Options(Source.Options):
        """Which files, and how documents stand in them."""

        paths: ClassVar[tuple[str, ...]] = ("path", "files")

        path: str | list[str] | None = Field(
            None, description="a file, a glob or a list of both; from the recipe's folder"
        )
        files: str | list[str] | None = Field(None, description="the former word for path")
        field: str = Field("text", description="the key or column of .jsonl and .parquet")
        separator: str = Field(
            END_OF_TEXT, description="stands between the documents of a text file; empty, each file is one"
        )

        @model_validator(mode="after")
        def _one_word_for_it(self) -> Self:
            if (self.path is None) == (self.files is None):
                both = "" if self.path is None else " and not files as well, which is its former name"
                raise ValueError(f'expected path = "stories/*.txt", or a list of such{both}')
            return self

    options: Options

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        wanted = self.options.files if self.options.path is None else self.options.path
        self.paths = _find([wanted] if isinstance(wanted, str) else wanted or [])

    def check(self) -> None:
        """Refuse to begin without what reads parquet, if a file is of that kind."""
        for path in self.paths:
            if _kind(path) == ".parquet":
                _arrow(path)

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of all files, one file after another."""
        for path, label in zip(self.paths, _labels(self.paths), strict=True):
            for index, text in enumerate(self._texts(path)):
                yield Document(f"{label}:{index}", text)

    def fingerprint(self) -> Any:
        """What the files hold and how it is read; where they lie does not matter."""
        contents = [[label, _digest(path)] for path, label in zip(self.paths, _labels(self.paths), strict=True)]
        return {"files": contents, "field": self.options.field, "separator": self.options.separator}

    def _texts(self, path: Path) -> Iterator[str]:
        kind = _kind(path)
        if kind == ".parquet":
            return _parquet(path, self.options.field)
        if kind in (".jsonl", ".ndjson"):
            return _json_lines(path, self.options.field)
        return _plain(path, self.options.separator)


# Finding files.


def _find(patterns: list[str]) -> list[Path]:
    """The files that paths and globs mean, each once; what means none is an error."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        exact = [pattern] if Path(pattern).is_file() else []
        names = exact or sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - patterns may be absolute
        files = [Path(name) for name in names if Path(name).is_file()]
        if not files:
            raise DataError(f"data.path: there is no file {pattern!r}", "Check the path.")
        found.update(dict.fromkeys(files))
    if not found:
        raise DataError("data.path names no file", 'Say for example path = "stories/*.txt".')
    return list(found)


def _labels(paths: list[Path]) -> list[str]:
    """The file names, or the whole paths of those that share a name."""
    names = Counter(path.name for path in paths)
    return [path.name if names[path.name] == 1 else str(path) for path in paths]


def _kind(path: Path) -> str:
    inner = path.with_suffix("") if path.suffix in (".gz", ".xz") else path
    return inner.suffix.lower()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Reading them.


def _plain(path: Path, separator: str) -> Iterator[str]:
    """The texts of a file; one in which no separator stands is a text as it is."""
    if not separator:
        yield _decode(path, b"".join(_chunks(path)), 0)
        return
    for raw, at, last in _split(path, separator.encode()):
        text = _decode(path, raw, at)
        whole = last and at == 0
        text = text if whole else text.strip("\r\n")
        if text or not last:
            yield text


def _json_lines(path: Path, field: str) -> Iterator[str]:
    for number, (raw, at, _) in enumerate(_split(path, b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(_decode(path, raw, at))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}", "Mend or remove it.") from error
        yield _field(row, field, f"{path}, line {number}")


def _field(row: Any, field: str, where: str) -> str:
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        keys = ", ".join(sorted(row)) if isinstance(row, dict) else "no object"
        raise DataError(f"{where} has no text under {field!r} (it has: {keys})", "Name the key: data.field.")
    return text


def _arrow(path: Path) -> tuple[Any, Any]:
    """What reads parquet, or how to get it."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow", 'pip install "distillkit[parquet]"') from error
    return arrow, parquet


def _parquet(path: Path, field: str) -> Iterator[str]:
    arrow, parquet = _arrow(path)
    try:
        table = parquet.ParquetFile(path)
        columns = table.schema_arrow.names
        if field not in columns:
            raise DataError(f"{path} has no column {field!r}", f"Set data.field: {', '.join(columns)}.")
        for batch in table.iter_batches(batch_size=1024, columns=[field]):
            for row, text in enumerate(batch.column(0).to_pylist()):
                yield _field({field: "" if text is None else text}, field, f"{path}, row {row} of a batch")
    except arrow.ArrowException as error:
        raise DataError(f"{path} cannot be read as parquet: {error}", "Is it whole?") from error


def _split(path: Path, separator: bytes) -> Iterator[tuple[bytes, int, bool]]:
    """The parts of a file between separators, where each begins, and if it is the last. Holds one part."""
    held, at = bytearray(), 0
    for chunk in _chunks(path):
        searched = max(0, len(held) - len(separator) + 1)
        held += chunk
        while (cut := held.find(separator, searched)) >= 0:
            yield bytes(held[:cut]), at, False
            del held[: cut + len(separator)]
            at += cut + len(separator)
            searched = 0
    yield bytes(held), at, True


def _chunks(path: Path) -> Iterator[bytes]:
    from lzma import LZMAError

    try:
        with _open(path) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except (OSError, EOFError, LZMAError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}", "Is it whole?") from error


def _open(path: Path) -> BinaryIO:
    import gzip
    import lzma

    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    return lzma.open(path) if path.suffix == ".xz" else path.open("rb")  # type: ignore[return-value]


def _decode(path: Path, raw: bytes, at: int) -> str:
    """Strict UTF-8. `at` is where the bytes stand in the file, once it is unpacked."""
    if (nul := raw.find(b"\0")) >= 0:
        raise DataError(f"{path} is a binary file: a NUL at byte {at + nul:,}", "Give files of text.")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {at + error.start:,} is 0x{raw[error.start]:02x}",
            f"If it is text in another encoding: iconv -f latin1 -t utf-8 {path.name}",
        ) from error
    return text.removeprefix(BOM) if at == 0 else text


@hookimpl
def register_sources() -> list[type[Source]]:
    """The source of this module."""
    return [Text]
