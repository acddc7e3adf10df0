"""Packs tokens with log-probabilities into a few strings, which are compact in JSON and fast to read.

An answer of 100 tokens with 20 alternatives each has 2,000 numbers. Parsing them as JSON numbers would dominate the
time to read an answer, so they are stored as base64 of little-endian arrays. Nothing is rounded.
"""

from __future__ import annotations

import sys
from array import array
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

Row = tuple[bytes, float, Sequence[tuple[bytes, float]]]
Columns = tuple[list[bytes], "array[int]", "array[int]", "array[float]"]

FIELDS = {"pieces", "lengths", "ids", "alternatives", "logprobs"}
INT_TYPES = (("B", 1 << 8), ("H", 1 << 16), ("I", 1 << 32))  # array type codes, with their upper bounds


def pack(rows: Iterable[Row]) -> dict[str, str]:
    """Rows of (bytes, log-probability, alternatives) as strings."""
    flat: list[tuple[bytes, float]] = []
    alternatives = []
    for piece, logprob, top in rows:
        flat += [(piece, logprob), *top]
        alternatives.append(len(top))
    ids: dict[bytes, int] = {}
    order = [ids.setdefault(piece, len(ids)) for piece, _ in flat]
    return {
        "pieces": _base64(b"".join(ids)),
        "lengths": _encode_ints([len(piece) for piece in ids]),
        "ids": _encode_ints(order),
        "alternatives": _encode_ints(alternatives),
        "logprobs": _encode_floats([float(logprob) for _, logprob in flat]),
    }


def unpack(packed: dict[str, str]) -> Iterator[Row]:
    """The inverse of `pack`. Raises ValueError for inconsistent data."""
    table, ids, alternatives, logprobs = unpack_columns(packed)
    pieces, numbers = [table[i] for i in ids], logprobs.tolist()
    at = 0
    for count in alternatives:
        end = at + 1 + count
        yield pieces[at], numbers[at], tuple(zip(pieces[at + 1 : end], numbers[at + 1 : end], strict=True))
        at = end


def unpack_columns(packed: dict[str, str]) -> Columns:
    """The columns: distinct pieces, ids of pieces, number of alternatives of each token, log-probabilities."""
    whole = a2b_base64(packed["pieces"], strict_mode=True)
    ends = [0, *accumulate(_decode_array(packed["lengths"], "BHI"))]
    ids, logprobs = _decode_array(packed["ids"], "BHI"), _decode_array(packed["logprobs"], "fd")
    alternatives = _decode_array(packed["alternatives"], "BHI")
    if not len(ids) == len(logprobs) == sum(alternatives) + len(alternatives) or ends[-1] != len(whole):
        raise ValueError("packed tokens have inconsistent lengths")
    if ids and max(ids) >= len(ends) - 1:
        raise ValueError("packed tokens refer to a missing piece")
    return [whole[begin:end] for begin, end in pairwise(ends)], ids, alternatives, logprobs


def is_packed(value: Any) -> bool:
    """Whether a value has the form that `pack` returns. Its contents are not checked."""
    return isinstance(value, dict) and value.keys() == FIELDS and all(isinstance(v, str) for v in value.values())


def _encode_ints(numbers: list[int]) -> str:
    """Encode integers with the smallest type that fits all of them."""
    most = max(numbers, default=0)
    return _encode_array(array(next(letter for letter, over in INT_TYPES if most < over), numbers))


def _encode_floats(numbers: list[float]) -> str:
    """Encode floats, in single precision if that is lossless."""
    doubles, singles = array("d", numbers), array("f", numbers)
    return _encode_array(singles if array("d", singles) == doubles else doubles)


def _encode_array(numbers: array[Any]) -> str:
    return numbers.typecode + _base64(_little_endian(numbers).tobytes())


def _decode_array(text: str, kinds: str) -> array[Any]:
    """Decode an array from its type code and base64."""
    letter = text[:1]
    if not letter or letter not in kinds:
        raise ValueError(f"packed numbers have an unknown type code, {letter!r}")
    numbers = array(letter)
    numbers.frombytes(a2b_base64(text[1:], strict_mode=True))
    return _little_endian(numbers)


def _little_endian(numbers: array[Any]) -> array[Any]:
    """Convert between native and little-endian byte order."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _base64(content: bytes) -> str:
    return b2a_base64(content, newline=False).decode("ascii")
