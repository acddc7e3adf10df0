"""Arrays of a .safetensors file, once it is sure that its header is honest.

MLX believes the sizes that a header says: some make it read beyond the file's end, which ends the program, or worse. So
each is held against the file first. Knows no network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...core.errors import CorruptError

LONGEST_HEADER = 100 << 20
LARGEST = 2**31  # of one dimension: MLX counts with 32 bits
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2}
BYTES |= {"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8}


def load(file: Path) -> dict[str, mx.array]:
    """The arrays of a file by their names."""
    try:
        for name, fault in _faults(file):
            raise ValueError(f"{name!r} {fault}" if name else fault)
        return dict(mx.load(str(file), format="safetensors"))  # type: ignore[arg-type]
    except (ValueError, RuntimeError, RecursionError) as error:
        raise CorruptError(f"{file} is damaged: {error}", "Copy it again, or have it made again.") from error


def _faults(file: Path) -> Iterator[tuple[str, str]]:
    """What of a header cannot be: whose it is, and in words."""
    header, room = _header(file)
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(facts, dict):
            yield name, "is not described by a table"
        elif str(facts.get("dtype")) not in BYTES:
            yield name, f"has the unknown type {facts.get('dtype')!r}"
        elif not _whole(facts.get("shape"), LARGEST):
            yield name, f"has the shape {facts.get('shape')!r}"
        elif not _whole(facts.get("data_offsets"), room + 1) or len(facts["data_offsets"]) != 2:
            yield name, f"is said to stand at {facts.get('data_offsets')!r} of {room:,} bytes"
        elif facts["data_offsets"][1] - facts["data_offsets"][0] != math.prod(facts["shape"]) * BYTES[facts["dtype"]]:
            yield name, f"has a shape, {facts['shape']}, that is not that of its bytes"


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """What a file says of its arrays, and how many bytes they have in all."""
    whole = file.stat().st_size
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if whole < 8 or size > min(whole - 8, LONGEST_HEADER):
            raise ValueError("its header is longer than the file, or than any that is needed")
        header = json.loads(stream.read(size), object_pairs_hook=_once)
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    return header, whole - 8 - size


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table in which no name stands twice, so that nobody reads another one than was checked."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return table


def _whole(values: Any, below: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < below for value in values)
