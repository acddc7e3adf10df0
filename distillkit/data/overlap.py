"""Finds runs of words that occur both in given texts and in a corpus, and their lengths.

The corpus is read once, a few megabytes at a time, as arrays of bytes. Every word is hashed to a number, and every run
of words to a number computed from those (a rolling hash). Longer runs are only compared where `LEAST` words match. No
copy of the corpus is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
LEAST = 4  # minimum length of a run in words
CHUNK = 1 << 22  # bytes processed at once
BESIDE = 1 << 16  # bytes that two chunks of a long document share, so that no run is missed at their border
BASE, STEP = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03  # odd, so that they have inverses modulo 2^64
BREAK = "\x01"  # a word between documents that occurs in no text
BLOOM = 1 << 20


def longest_matches(texts: Sequence[str], corpus: Iterable[str], least: int = LEAST) -> list[list[int]]:
    """For each word of each text, the longest run from there that occurs in the corpus; 0 if below `least`."""
    search = _RunSearch(texts, least)
    for chunk in _chunks(corpus):
        search.scan(_hash_words(chunk))
    return search.lengths()


class _RunSearch:
    """The runs of words of the texts, by length, and the longest matches so far."""

    def __init__(self, texts: Sequence[str], least: int) -> None:
        words = [_hash_words(text.replace(BREAK, " ").encode("utf-8", "replace")) for text in texts]
        self.sizes, self.least = [len(one) for one in words], least
        self.prefix = _prefix_sums(np.concatenate([*words, np.zeros(0, np.uint64)]))
        ends = np.repeat(np.cumsum(self.sizes), self.sizes)
        self.remaining = ends - np.arange(len(ends))  # number of words from each position to the end of its text
        self.found = np.zeros(len(ends), np.int64)
        self.grams = cache(self._grams)
        self.bloom = np.zeros(BLOOM, bool)
        self.bloom[_slot(self.grams(least)[2])] = True

    def _grams(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Numbers]:
        """The start positions of runs of n words, the index of the hash at each, and the sorted distinct hashes."""
        places = np.flatnonzero(self.remaining >= n)
        known, which = np.unique(_hash_runs(self.prefix, places, n), return_inverse=True)
        return places, which.reshape(-1), known

    def scan(self, words: Numbers) -> None:
        """Search these words of the corpus. Where n consecutive words match, runs of n + 1 words are tried."""
        prefix, n = _prefix_sums(words), self.least
        there = np.arange(max(0, len(words) - n + 1))
        there = there[self.bloom[_slot(_hash_runs(prefix, there, n))]]
        while len(there):
            places, which, known = self.grams(n)
            if not len(known):
                return
            runs = _hash_runs(prefix, there, n)
            nearest = np.minimum(np.searchsorted(known, runs), len(known) - 1)
            hit = known[nearest] == runs
            seen = np.zeros(len(known), bool)
            seen[nearest[hit]] = True
            self.found[places[seen[which]]] = np.maximum(self.found[places[seen[which]]], n)
            n += 1
            there = there[hit & (there + n <= len(words))]

    def lengths(self) -> list[list[int]]:
        """The lengths of the matches, per text."""
        return [part.tolist() for part in np.split(self.found, np.cumsum(self.sizes)[:-1])] if self.sizes else []


def _chunks(corpus: Iterable[str]) -> Iterator[bytes]:
    """Documents joined to chunks of a few megabytes; long documents in overlapping pieces."""
    held: list[bytes] = []
    size = 0
    for piece in _pieces(corpus):
        if held and size + len(piece) > CHUNK:
            yield _join(held)
            held, size = [], 0
        held.append(piece)
        size += len(piece) + 3
    if held:
        yield _join(held)


def _pieces(corpus: Iterable[str]) -> Iterator[bytes]:
    for text in corpus:
        raw = text.encode("utf-8", "replace")
        for start in range(0, max(1, len(raw) - BESIDE), CHUNK):
            yield raw[start : start + CHUNK + BESIDE]


def _join(pieces: Sequence[bytes]) -> bytes:
    return f" {BREAK} ".encode().join(pieces)


def _hash_words(text: bytes) -> Numbers:
    """The hash of each word, ignoring case."""
    letters = _byte_classes()[np.frombuffer(text, np.uint8)]
    inside = np.concatenate([[False], letters > 0, [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    powers, inverse = _powers(BASE, CHUNK + (CHUNK >> 1), len(letters))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(letters * powers[: len(letters)], dtype=np.uint64)])
    return _mix_bits((sums[ends] - sums[starts]) * inverse[starts])


def _prefix_sums(words: Numbers) -> Numbers:
    """Prefix sums from which the hash of any run of words is computed."""
    powers, _ = _powers(STEP, CHUNK, len(words))
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(words * powers[: len(words)], dtype=np.uint64)])


def _hash_runs(prefix: Numbers, places: NDArray[np.int64], n: int) -> Numbers:
    """The hash of the n words from each position; independent of the position."""
    _, inverse = _powers(STEP, CHUNK, len(prefix))
    return _mix_bits((prefix[places + n] - prefix[places]) * inverse[places])


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
def _byte_classes() -> Numbers:
    """The value of each byte within words: letters, digits, apostrophes and all non-ASCII bytes; 0 for separators."""
    table = np.zeros(256, np.uint64)
    for byte in range(256):
        character = chr(byte)
        if byte > 127 or character.isalnum() or character in "'" + BREAK:
            table[byte] = ord(character.lower()) if byte < 128 else byte
    return table


def _mix_bits(numbers: Numbers) -> Numbers:
    """Mix the bits of hashes, so that every output bit depends on every input bit."""
    mixed = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _slot(numbers: Numbers) -> NDArray[np.int64]:
    return (numbers & np.uint64(BLOOM - 1)).astype(np.int64)
