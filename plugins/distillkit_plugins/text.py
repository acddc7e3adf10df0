"""The source `text`: reads text, JSON lines or Parquet files; the first two also compressed as .gz or .xz."""

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

CHUNK_SIZE = 1 << 20
BOM = "\ufeff"
END_OF_TEXT = "<|endoftext|>"


class Text(Source):
    """Files of text (.txt), JSON lines (.jsonl) or .parquet."""

    name = "text"

    class Options(Source.Options):
        """Options of the source `text`."""

        paths: ClassVar[tuple[str, ...]] = ("path", "files")

        path: str | list[str] | None = Field(
            None, description="a file, a glob, or a list of them, relative to the recipe's folder"
        )
        files: str | list[str] | None = Field(None, description="deprecated name of path")
        field: str = Field("text", description="key or column that holds the text in .jsonl and .parquet files")
        separator: str = Field(
            END_OF_TEXT,
            description="separator between the documents of a text file; if empty, each file is one document",
        )

        @model_validator(mode="after")
        def _check_path(self) -> Self:
            if (self.path is None) == (self.files is None):
                both = "" if self.path is None else ", and not files as well, which is its deprecated name"
                raise ValueError(f'expected path = "stories/*.txt", or a list of such{both}')
            return self

    options: Options

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        patterns = self.options.files if self.options.path is None else self.options.path
        self.paths = _find_files([patterns] if isinstance(patterns, str) else patterns or [])

    def check(self) -> None:
        """Raise a DataError if there are Parquet files and pyarrow is not installed."""
        for path in self.paths:
            if _extension(path) == ".parquet":
                _import_pyarrow(path)

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of all files, in the order of the files."""
        for path, label in zip(self.paths, _labels(self.paths), strict=True):
            for index, text in enumerate(self._texts(path)):
                yield Document(f"{label}:{index}", text)

    def fingerprint(self) -> Any:
        """Hashes of the files and the options that affect reading. The location of the files does not matter."""
        files = [[label, _digest(path)] for path, label in zip(self.paths, _labels(self.paths), strict=True)]
        return {"files": files, "field": self.options.field, "separator": self.options.separator}

    def _texts(self, path: Path) -> Iterator[str]:
        kind = _extension(path)
        if kind == ".parquet":
            return _parquet(path, self.options.field)
        if kind in (".jsonl", ".ndjson"):
            return _json_lines(path, self.options.field)
        return _plain(path, self.options.separator)


# ------------------------------------------------------------------------------------------ finding files


def _find_files(patterns: list[str]) -> list[Path]:
    """The files that match paths and globs, each once. A pattern without a match is an error."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        exact = [pattern] if Path(pattern).is_file() else []
        names = exact or sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - patterns may be absolute
        files = [Path(name) for name in names if Path(name).is_file()]
        if not files:
            raise DataError(f"data.path: no file matches {pattern!r}", "Check the path.")
        found.update(dict.fromkeys(files))
    if not found:
        raise DataError("data.path names no file", 'Say for example path = "stories/*.txt".')
    return list(found)


def _labels(paths: list[Path]) -> list[str]:
    """The file names, or full paths where names are not unique."""
    names = Counter(path.name for path in paths)
    return [path.name if names[path.name] == 1 else str(path) for path in paths]


def _extension(path: Path) -> str:
    uncompressed = path.with_suffix("") if path.suffix in (".gz", ".xz") else path
    return uncompressed.suffix.lower()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------ reading files


def _plain(path: Path, separator: str) -> Iterator[str]:
    """The texts of a file. A file without a separator is one text, returned unchanged."""
    if not separator:
        yield _decode(path, b"".join(_chunks(path)), 0)
        return
    for raw, offset, is_last in _split(path, separator.encode()):
        text = _decode(path, raw, offset)
        is_whole_file = is_last and offset == 0
        text = text if is_whole_file else text.strip("\r\n")
        if text or not is_last:
            yield text


def _json_lines(path: Path, field: str) -> Iterator[str]:
    for number, (raw, offset, _) in enumerate(_split(path, b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(_decode(path, raw, offset))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}", "Correct or remove the line.") from error
        yield _text_of_row(row, field, f"{path}, line {number}")


def _text_of_row(row: Any, field: str, where: str) -> str:
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        keys = ", ".join(sorted(row)) if isinstance(row, dict) else "no object"
        raise DataError(
            f"{where} has no text under {field!r} (it has: {keys})", "Set data.field to the key of the text."
        )
    return text


def _import_pyarrow(path: Path) -> tuple[Any, Any]:
    """Import pyarrow, or raise a DataError that says how to install it."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow", 'pip install "distillkit[parquet]"') from error
    return arrow, parquet


def _parquet(path: Path, field: str) -> Iterator[str]:
    arrow, parquet = _import_pyarrow(path)
    try:
        table = parquet.ParquetFile(path)
        columns = table.schema_arrow.names
        if field not in columns:
            raise DataError(f"{path} has no column {field!r}", f"Set data.field: {', '.join(columns)}.")
        for batch in table.iter_batches(batch_size=1024, columns=[field]):
            for row, text in enumerate(batch.column(0).to_pylist()):
                yield _text_of_row({field: "" if text is None else text}, field, f"{path}, row {row} of a batch")
    except arrow.ArrowException as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}", "Check whether the file is complete.") from error


def _split(path: Path, separator: bytes) -> Iterator[tuple[bytes, int, bool]]:
    """The parts of a file between separators, with offset and whether it is the last. Holds one part in memory."""
    buffer, offset = bytearray(), 0
    for chunk in _chunks(path):
        searched = max(0, len(buffer) - len(separator) + 1)
        buffer += chunk
        while (end := buffer.find(separator, searched)) >= 0:
            yield bytes(buffer[:end]), offset, False
            del buffer[: end + len(separator)]
            offset += end + len(separator)
            searched = 0
    yield bytes(buffer), offset, True


def _chunks(path: Path) -> Iterator[bytes]:
    from lzma import LZMAError

    try:
        with _open(path) as stream:
            while chunk := stream.read(CHUNK_SIZE):
                yield chunk
    except (OSError, EOFError, LZMAError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}", "Check whether the file is complete.") from error


def _open(path: Path) -> BinaryIO:
    import gzip
    import lzma

    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    return lzma.open(path) if path.suffix == ".xz" else path.open("rb")  # type: ignore[return-value]


def _decode(path: Path, raw: bytes, offset: int) -> str:
    """Decode as strict UTF-8. `offset` is the position in the uncompressed file, for error messages."""
    if (nul := raw.find(b"\0")) >= 0:
        raise DataError(f"{path} is a binary file: a NUL at byte {offset + nul:,}", "Use text files.")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {offset + error.start:,} is 0x{raw[error.start]:02x}",
            f"If it is text in another encoding: iconv -f latin1 -t utf-8 {path.name}",
        ) from error
    return text.removeprefix(BOM) if offset == 0 else text


@hookimpl
def register_sources() -> list[type[Source]]:
    """The source of this module."""
    return [Text]
