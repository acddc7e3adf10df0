"""Which runs of words of some texts stand in a corpus, and how long they are. Knows nothing of who wrote them.

The corpus is read once, a few megabytes at a time, as arrays of bytes: every word becomes a number, every run of words
a number made of those, and only where four words in a row are found is anything looked at more closely. No copy of
the corpus is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
LEAST = 4  # words in a row that are worth a look
CHUNK = 1 << 22  # bytes at once
BESIDE = 1 << 16  # bytes of a long document that two chunks share, so that no run is cut at their border
BASE, STEP = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03  # odd, so that they have inverses
BREAK = "\x01"  # a word that stands between documents and in no text
BLOOM = 1 << 20


def longest_matches(texts: Sequence[str], corpus: Iterable[str], least: int = LEAST) -> list[list[int]]:
    """For each word of each text the most words from there on that stand in the corpus in a row; 0 below `least`."""
    sought = _Sought(texts, least)
    for chunk in _chunks(corpus):
        sought.look(_words(chunk))
    return sought.lengths()


class _Sought:
    """The runs of words that are looked for, by their length."""

    def __init__(self, texts: Sequence[str], least: int) -> None:
        words = [_words(text.replace(BREAK, " ").encode("utf-8", "replace")) for text in texts]
        self.sizes, self.least = [len(one) for one in words], least
        self.prefix = _prefix(np.concatenate([*words, np.zeros(0, np.uint64)]))
        ends = np.repeat(np.cumsum(self.sizes), self.sizes)
        self.room = ends - np.arange(len(ends))  # words from each place to the end of its text
        self.found = np.zeros(len(ends), np.int64)
        self.grams = cache(self._grams)
        self.bloom = np.zeros(BLOOM, bool)
        self.bloom[_slot(self.grams(least)[2])] = True

    def _grams(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Numbers]:
        """The places where n words begin, the numbers of such runs, sorted, and which of these stands at each place."""
        places = np.flatnonzero(self.room >= n)
        known, which = np.unique(_runs(self.prefix, places, n), return_inverse=True)
        return places, which.reshape(-1), known

    def look(self, words: Numbers) -> None:
        """Note what stands in these words of the corpus: where n in a row are found, n + 1 are looked for."""
        prefix, n = _prefix(words), self.least
        there = np.arange(max(0, len(words) - n + 1))
        there = there[self.bloom[_slot(_runs(prefix, there, n))]]
        while len(there):
            places, which, known = self.grams(n)
            if not len(known):
                return
            runs = _runs(prefix, there, n)
            nearest = np.minimum(np.searchsorted(known, runs), len(known) - 1)
            hit = known[nearest] == runs
            seen = np.zeros(len(known), bool)
            seen[nearest[hit]] = True
            self.found[places[seen[which]]] = np.maximum(self.found[places[seen[which]]], n)
            n += 1
            there = there[hit & (there + n <= len(words))]

    def lengths(self) -> list[list[int]]:
        """What was found, text by text."""
        return [part.tolist() for part in np.split(self.found, np.cumsum(self.sizes)[:-1])] if self.sizes else []


def _chunks(corpus: Iterable[str]) -> Iterator[bytes]:
    """Documents together up to a few megabytes, and long ones in pieces that share their borders."""
    held: list[bytes] = []
    size = 0
    for piece in _pieces(corpus):
        if held and size + len(piece) > CHUNK:
            yield _joined(held)
            held, size = [], 0
        held.append(piece)
        size += len(piece) + 3
    if held:
        yield _joined(held)


def _pieces(corpus: Iterable[str]) -> Iterator[bytes]:
    for text in corpus:
        raw = text.encode("utf-8", "replace")
        for start in range(0, max(1, len(raw) - BESIDE), CHUNK):
            yield raw[start : start + CHUNK + BESIDE]


def _joined(pieces: Sequence[bytes]) -> bytes:
    return f" {BREAK} ".encode().join(pieces)


def _words(text: bytes) -> Numbers:
    """A number for each word, small and capital letters alike."""
    letters = _letters()[np.frombuffer(text, np.uint8)]
    inside = np.concatenate([[False], letters > 0, [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    powers, inverse = _powers(BASE, CHUNK + (CHUNK >> 1), len(letters))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(letters * powers[: len(letters)], dtype=np.uint64)])
    return _mixed((sums[ends] - sums[starts]) * inverse[starts])


def _prefix(words: Numbers) -> Numbers:
    """Sums from which the number of any run of words follows."""
    powers, _ = _powers(STEP, CHUNK, len(words))
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(words * powers[: len(words)], dtype=np.uint64)])


def _runs(prefix: Numbers, places: NDArray[np.int64], n: int) -> Numbers:
    """The number of the n words from each place on, the same wherever they stand."""
    _, inverse = _powers(STEP, CHUNK, len(prefix))
    return _mixed((prefix[places + n] - prefix[places]) * inverse[places])


def _powers(base: int, usual: int, length: int) -> tuple[Numbers, Numbers]:
    return _table(base, max(usual, 1 << max(0, length - 1).bit_length()) if length > usual else usual)


@cache
def _table(base: int, length: int) -> tuple[Numbers, Numbers]:
    """The powers of a number modulo 2^64, and those of its inverse."""
    found = []
    for factor in (base, pow(base, -1, 1 << 64)):
        powers = np.full(length, factor, np.uint64)
        powers[0] = 1
        found.append(np.cumprod(powers, dtype=np.uint64))
    return found[0], found[1]


@cache
def _letters() -> Numbers:
    """What each byte is as a part of a word: letters, digits, apostrophes, all beyond ASCII; 0 is none."""
    table = np.zeros(256, np.uint64)
    for byte in range(256):
        character = chr(byte)
        if byte > 127 or character.isalnum() or character in "'" + BREAK:
            table[byte] = ord(character.lower()) if byte < 128 else byte
    return table


def _mixed(numbers: Numbers) -> Numbers:
    """Numbers whose every bit hangs on every bit of what they were made of."""
    mixed = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _slot(numbers: Numbers) -> NDArray[np.int64]:
    return (numbers & np.uint64(BLOOM - 1)).astype(np.int64)
