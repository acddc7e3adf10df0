"""Loading of .safetensors files after their header has been validated.

MLX trusts the sizes in the header: wrong ones make it read beyond the end of the file, which crashes the process or
worse. So each entry is checked against the file first. Independent of networks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...core.errors import CorruptError

MAX_HEADER_BYTES = 100 << 20
MAX_DIMENSION = 2**31  # MLX uses 32-bit dimensions
DTYPE_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2}
DTYPE_BYTES |= {"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8}


def load(file: Path) -> dict[str, mx.array]:
    """The arrays of a file, by name."""
    try:
        for name, problem in _problems(file):
            raise ValueError(f"{name!r} {problem}")
        return dict(mx.load(str(file), format="safetensors"))  # type: ignore[arg-type]
    except (ValueError, RuntimeError, RecursionError) as error:
        raise CorruptError(f"{file} is damaged: {error}", "Copy it again, or recreate it.") from error


def _problems(file: Path) -> Iterator[tuple[str, str]]:
    """Invalid entries of the header: the name of the array, and what is wrong with it."""
    header, data_bytes = _read_header(file)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict):
            yield name, "is not described by an object"
        elif str(entry.get("dtype")) not in DTYPE_BYTES:
            yield name, f"has the unknown dtype {entry.get('dtype')!r}"
        elif not _are_naturals(entry.get("shape"), MAX_DIMENSION):
            yield name, f"has the invalid shape {entry.get('shape')!r}"
        elif not _are_naturals(entry.get("data_offsets"), data_bytes + 1) or len(entry["data_offsets"]) != 2:
            yield name, f"has the invalid offsets {entry.get('data_offsets')!r} into {data_bytes:,} bytes"
        elif entry["data_offsets"][1] - entry["data_offsets"][0] != _entry_bytes(entry):
            yield name, f"has the shape {entry['shape']}, which does not match its number of bytes"


def _entry_bytes(entry: dict[str, Any]) -> int:
    count: int = math.prod(entry["shape"])
    return count * DTYPE_BYTES[entry["dtype"]]


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header, and the number of bytes after it."""
    file_bytes = file.stat().st_size
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if file_bytes < 8 or size > min(file_bytes - 8, MAX_HEADER_BYTES):
            raise ValueError("its header is longer than the file or than the limit")
        header = json.loads(stream.read(size), object_pairs_hook=_unique_keys)
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    return header, file_bytes - 8 - size


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs with unique keys. With duplicates MLX might read another entry than the one that was checked."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("its header has a duplicate name")
    return table


def _are_naturals(values: Any, below: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < below for value in values)
