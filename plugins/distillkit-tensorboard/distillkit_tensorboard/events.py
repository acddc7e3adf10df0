"""Event files: records of one message each, with checksums, as TensorBoard reads them.

The format is small and has not changed since 2015, so it is written here instead of by a package of some forty
megabytes. Knows nothing of distillkit. Field numbers are those of TensorFlow's event.proto, summary.proto and
tensor.proto.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

VERSION = "brain.Event:2"
STARTED = 1  # of SessionLog's states
STRING = 7  # of tensors' types


class EventFile:
    """One more event file in a folder. What was said is on disk when a call returns.

    A `step` voids what older files of the folder say of it and of later steps.
    """

    def __init__(self, folder: Path, step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _fresh(folder).open("xb")
        self._write(_text(3, VERSION))
        if step is not None:
            self._write(_number(2, step), _message(7, _number(1, STARTED)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers, each under its tag."""
        if values:
            rows = [_message(1, _text(1, tag), _real(2, value)) for tag, value in values.items()]
            self._write(_number(2, step), _message(5, *rows))

    def text(self, step: int, tag: str, text: str) -> None:
        """A text under its tag, shown as Markdown."""
        shown_as = _message(9, _message(1, _text(1, "text")))
        shape = _message(2, _message(2, _number(1, 1)))
        tensor = _message(8, _number(1, STRING), shape, _text(8, text))
        self._write(_number(2, step), _message(5, _message(1, _text(1, f"{tag}/text_summary"), shown_as, tensor)))

    def close(self) -> None:
        """Nothing more is to be said."""
        self._file.close()

    def _write(self, *fields: bytes) -> None:
        event = struct.pack("<Bd", 1 << 3 | 1, time.time()) + b"".join(fields)
        length = struct.pack("<Q", len(event))
        self._file.write(length + _sum(length) + event + _sum(event))
        self._file.flush()


def _fresh(folder: Path) -> Path:
    """A name that sorts after those of older files: TensorBoard reads them in that order."""
    taken = [
        int(part) for path in folder.glob("events.out.tfevents.*") if (part := path.name.split(".")[3]).isdecimal()
    ]
    second = max([int(time.time()), *(number + 1 for number in taken)])
    return folder / f"events.out.tfevents.{second}.{os.getpid()}.distillkit"


# ---------------------------------------------------------------------------------------------- messages


def _varint(value: int) -> bytes:
    """A whole number, seven bits a byte; those below zero as if they were 64 bits."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _real(field: int, value: float) -> bytes:
    """A single-precision number; one too large for it is infinite."""
    try:
        return _varint(field << 3 | 5) + struct.pack("<f", value)
    except OverflowError:
        return _varint(field << 3 | 5) + struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode("utf-8", "replace"))


def _message(field: int, *fields: bytes) -> bytes:
    return _bytes(field, b"".join(fields))


# ---------------------------------------------------------------------------------------------- checksums


@cache
def _table() -> tuple[int, ...]:
    """The checksums of single bytes, by CRC-32C's polynomial."""
    table = list(range(256))
    for _ in range(8):
        table = [row >> 1 ^ (0x82F63B78 if row & 1 else 0) for row in table]
    return tuple(table)


def _sum(data: bytes) -> bytes:
    """The checksum of a record: CRC-32C, turned and shifted, so that a checksum of it is no stranger."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
