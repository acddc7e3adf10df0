"""Event files: records of one message each, with checksums, as TensorBoard reads them.

The format is small and has not changed since 2015, so this avoids a dependency of about 40 MB. Does not know
distillkit. Field numbers are those of TensorFlow's event.proto, summary.proto and tensor.proto.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

VERSION = "brain.Event:2"
STARTED = 1  # SessionLog.SessionStatus.START
STRING = 7  # DataType.DT_STRING


class EventFile:
    """A new event file in a folder. Every call writes to disk before it returns.

    `step` invalidates values of that step and later ones in older files of the folder.
    """

    def __init__(self, folder: Path, step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _new_path(folder).open("xb")
        self._write(_text(3, VERSION))
        if step is not None:
            self._write(_number(2, step), _message(7, _number(1, STARTED)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by tag."""
        if values:
            rows = [_message(1, _text(1, tag), _float(2, value)) for tag, value in values.items()]
            self._write(_number(2, step), _message(5, *rows))

    def text(self, step: int, tag: str, text: str) -> None:
        """Write a text, shown as Markdown."""
        shown_as = _message(9, _message(1, _text(1, "text")))
        shape = _message(2, _message(2, _number(1, 1)))
        tensor = _message(8, _number(1, STRING), shape, _text(8, text))
        self._write(_number(2, step), _message(5, _message(1, _text(1, f"{tag}/text_summary"), shown_as, tensor)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, *fields: bytes) -> None:
        event = struct.pack("<Bd", 1 << 3 | 1, time.time()) + b"".join(fields)
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))
        self._file.flush()


def _new_path(folder: Path) -> Path:
    """A path that sorts after older files: TensorBoard reads files in order of their names."""
    timestamps = [
        int(part) for path in folder.glob("events.out.tfevents.*") if (part := path.name.split(".")[3]).isdecimal()
    ]
    second = max([int(time.time()), *(number + 1 for number in timestamps)])
    return folder / f"events.out.tfevents.{second}.{os.getpid()}.distillkit"


# ---------------------------------------------------------------------------------------------- messages


def _varint(value: int) -> bytes:
    """A varint: 7 bits per byte. Negative numbers are encoded as 64 bits."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    """A float32 field; numbers that are too large become infinity."""
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
def _crc_table() -> tuple[int, ...]:
    """The CRC-32C of all single bytes."""
    table = list(range(256))
    for _ in range(8):
        table = [row >> 1 ^ (0x82F63B78 if row & 1 else 0) for row in table]
    return tuple(table)


def _masked_crc(data: bytes) -> bytes:
    """The masked CRC-32C of a record, as in TFRecord files."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
