"""Packed tokens: concatenated documents in memory-mapped files.

A packed folder holds `tokens-*.bin` (little-endian uint16 or uint32, each of bounded size), `documents-*.bin`
(the end of each document and the number of bytes of its text), optionally `weights-*.bin` (uint8: whether a token is a
training target) and `manifest.json` with the checksums of the other files. Does not know sources or models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CorruptError
from ..core.files import digest, file_digest, read_json, write_json
from .tokenizer import Tokenizer

SCHEMA = 1
SHARD_TOKENS = 64 << 20
FLUSH_CHARS = 2 << 20
SMALL_VOCABULARY = 1 << 16
RECOVERY_HINT = "Delete that folder; it is packed again from the corpus when it is needed."

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


# Writing.


class Packer:
    """Writes packed tokens to a folder. Text is buffered, encoded on all cores, and written in pieces."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, *, weighted: bool = False, limit: int = SHARD_TOKENS
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.tokenizer = tokenizer
        self.documents = self.bytes = 0
        dtype = "<u2" if tokenizer.vocab_size <= SMALL_VOCABULARY else "<u4"
        self._tokens = _Writer(folder, "tokens", dtype, limit)
        self._weights = _Writer(folder, "weights", "u1", limit) if weighted else None
        self._rows = _Writer(folder, "documents", "<u8", limit)
        self._buffered: list[str] = []
        self._buffered_chars = self._buffered_bytes = 0
        self._sizes: dict[int, int] = {}  # size in bytes of each document, by its last buffered piece
        self._end_of_text = np.array([tokenizer.end_of_text], dtype=np.uint32)

    def add(self, text: str) -> None:
        """Add a document, followed by the end of text."""
        for piece in self.tokenizer.pieces(text):
            if self._buffered_chars >= FLUSH_CHARS:
                self._flush()
            self._buffered.append(piece)
            self._buffered_chars += len(piece)
        self._sizes[len(self._buffered) - 1] = size = utf8_size(text)
        self._buffered_bytes += size + 1  # one more for the end of text

    @property
    def tokens(self) -> int:
        """The number of tokens written so far, without buffered text."""
        return self._tokens.count

    @property
    def about(self) -> int:
        """The number of tokens, with an estimate for buffered text."""
        return self.tokens + self._buffered_chars // 4

    def reaches(self, tokens: int) -> bool:
        """Whether there are at least this many tokens. Encodes buffered text if that could make the difference."""
        if self.tokens + self._buffered_bytes >= tokens:  # a token has at least one byte
            self._flush()
        return self.tokens >= tokens

    def add_tokens(self, tokens: NDArray[Any], weights: NDArray[Any]) -> None:
        """Add a document as tokens, each with its weight as a target. Adds no end of text."""
        if self._weights is None:
            raise ValueError("this packer was created without weighted=True")
        self._tokens.write(tokens)
        self._weights.write(weights)
        self._document(self._tokens.count, int(self.tokenizer.lengths[tokens].sum()))

    def close(self, **metadata: Any) -> dict[str, Any]:
        """Write buffered text, and the manifest with additional metadata from the caller."""
        self._flush()
        manifest = {
            "schema": SCHEMA,
            "dtype": self._tokens.dtype.name,
            "tokenizer": self.tokenizer.fingerprint,
            "documents": self.documents,
            "tokens": self._tokens.count,
            "bytes": self.bytes,
            "files": {
                "tokens": self._tokens.close(),
                "weights": self._weights.close() if self._weights else [],
                "documents": self._rows.close(),
            },
            **metadata,
        }
        manifest["digest"] = digest(manifest)
        write_json(self.folder / "manifest.json", manifest)
        return manifest

    def _flush(self) -> None:
        parts, end = [], self._tokens.count
        for i, tokens in enumerate(self.tokenizer.encode_arrays(self._buffered)):
            parts.append(tokens)
            end += len(tokens)
            if i in self._sizes:
                parts.append(self._end_of_text)
                end += 1
                self._document(end, self._sizes[i])
        self._tokens.write(np.concatenate([self._end_of_text[:0], *parts]))
        self._buffered, self._buffered_chars, self._buffered_bytes, self._sizes = [], 0, 0, {}

    def _document(self, end: int, size: int) -> None:
        self._rows.write(np.array([end, size]))
        self.documents += 1
        self.bytes += size


class _Writer:
    """Writes one array to files of bounded size, and hashes them."""

    def __init__(self, folder: Path, name: str, dtype: str, limit: int) -> None:
        self.folder = folder
        self.name = name
        self.dtype = np.dtype(dtype)
        self.limit = limit
        self.count = 0
        self.files: list[dict[str, Any]] = []
        self._stream: BinaryIO | None = None
        self._hash = hashlib.sha256()

    def write(self, values: NDArray[Any]) -> None:
        values = values.astype(self.dtype)
        while len(values):
            stream, space = self._open(), self.limit - self.count % self.limit
            head, values = values[:space], values[space:]
            stream.write(head.data)
            self._hash.update(head.data)
            self.count += len(head)
            if len(head) == space:
                self._finish()

    def close(self) -> list[dict[str, Any]]:
        self._finish()
        return self.files

    def _open(self) -> BinaryIO:
        if self._stream is None:
            file = self.folder / f"{self.name}-{len(self.files):05d}.bin"
            self._stream, self._hash = file.open("wb", buffering=1 << 20), hashlib.sha256()
        return self._stream

    def _finish(self) -> None:
        if self._stream is None:
            return
        self._stream.close()
        count = self.count - len(self.files) * self.limit
        name = Path(self._stream.name).name
        self.files.append({"name": name, "count": count, "sha256": self._hash.hexdigest()})
        self._stream = None


def utf8_size(text: str) -> int:
    """The number of UTF-8 bytes of a text. Makes no copy of ASCII text."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


# Reading.


class Stream:
    """A packed split: its tokens, and their weights as training targets. File sizes are checked when it is opened."""

    def __init__(self, folder: Path, again: str = RECOVERY_HINT) -> None:
        """`again` is the hint in errors about damaged files."""
        self.folder, self.again = folder, again
        self.manifest = _read_manifest(folder, again)
        self.tokens: int = self.manifest["tokens"]
        self.documents: int = self.manifest["documents"]
        self.bytes: int = self.manifest["bytes"]
        self.from_teacher: bool = self.manifest.get("from_teacher", False)
        self.fingerprint: str = self.manifest["digest"]
        files = self.manifest["files"]
        self._tokens = _Reader(folder, files["tokens"], self.manifest["dtype"])
        self._weights = _Reader(folder, files["weights"], "uint8") if files["weights"] else None
        self._rows = _Reader(folder, files["documents"], "uint64")

    def __repr__(self) -> str:
        return f"Stream({str(self.folder)!r}, {self.tokens:,} tokens)"

    def read(self, start: int, stop: int) -> Ints:
        """The tokens from `start` to `stop`."""
        return self._tokens.read(start, stop).astype(np.int32)

    def weights(self, start: int, stop: int) -> Floats:
        """The weights of a range of tokens as targets, 0 or 1."""
        if self._weights is None:
            return np.ones(stop - start, dtype=np.float32)
        return self._weights.read(start, stop).astype(np.float32)

    def windows(self, context: int) -> int:
        """The number of windows in which every token but the first is a target once."""
        return max(0, -(-(self.tokens - 1) // context))

    def window(self, context: int, index: int) -> tuple[Ints, Floats]:
        """The `context + 1` tokens of a window, and the weights of the last `context` tokens as targets.

        Adjacent windows share one token. The last window is padded with weight 0.
        """
        start = index * context
        stop = min(start + context + 1, self.tokens)
        tokens, weights = np.zeros(context + 1, np.int32), np.zeros(context, np.float32)
        tokens[: stop - start] = self.read(start, stop)
        weights[: stop - start - 1] = self.weights(start + 1, stop)
        return tokens, weights

    def texts(self, tokenizer: Tokenizer) -> Iterator[str]:
        """The text of every document, decoded from its tokens."""
        start = 0
        for end in self.document_ends:
            tokens = self.read(start, int(end)).tolist()
            if tokens and tokens[-1] == tokenizer.end_of_text:
                tokens.pop()
            yield tokenizer.decode(tokens)
            start = int(end)

    @property
    def document_ends(self) -> NDArray[np.uint64]:
        """The end of each document: the position after its last token."""
        return self._rows.read(0, 2 * self.documents)[::2]

    @property
    def document_bytes(self) -> NDArray[np.uint64]:
        """The number of bytes of the text of each document."""
        return self._rows.read(0, 2 * self.documents)[1::2]

    def verify(self) -> None:
        """Compare the SHA-256 of every file with the manifest."""
        for file in files_of(self.manifest):
            if file_digest(self.folder / file["name"]) != file["sha256"]:
                raise CorruptError(f"{self.folder / file['name']} has changed since it was packed", self.again)


class _Reader:
    """Reads several memory-mapped files as one array. All but the last have the same length."""

    def __init__(self, folder: Path, files: list[dict[str, Any]], dtype: str) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.maps = [np.memmap(folder / file["name"], dtype=self.dtype, mode="r") for file in files]
        self.limit = len(self.maps[0]) if self.maps else 1

    def read(self, start: int, stop: int) -> NDArray[Any]:
        if stop <= start:
            return np.empty(0, self.dtype)
        touched = range(start // self.limit, (stop - 1) // self.limit + 1)
        starts = [i * self.limit for i in touched]
        parts = [self.maps[i][max(0, start - at) : stop - at] for i, at in zip(touched, starts, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def files_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Every file in a manifest."""
    return [file for files in manifest["files"].values() for file in files]


def _read_manifest(folder: Path, again: str) -> dict[str, Any]:
    """The manifest of a packed folder, after checking its digest and the file sizes."""
    try:
        manifest: dict[str, Any] = read_json(folder / "manifest.json")
        content = {key: value for key, value in manifest.items() if key != "digest"}
        if manifest["digest"] != digest(content):
            raise ValueError("its manifest was altered")
        _check_sizes(folder, manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"the packed tokens in {folder} cannot be used: {error}", again) from error
    return manifest


def _check_sizes(folder: Path, manifest: dict[str, Any]) -> None:
    if manifest["schema"] != SCHEMA:
        raise ValueError(f"they have schema {manifest['schema']}, and this distillkit reads {SCHEMA}")
    widths = {"tokens": np.dtype(manifest["dtype"]).itemsize, "weights": 1, "documents": 8}
    for column, files in manifest["files"].items():
        for file in files:
            expected, found = file["count"] * widths[column], (folder / file["name"]).stat().st_size
            if found != expected:
                raise ValueError(f"{file['name']} has {found} bytes and should have {expected}")
