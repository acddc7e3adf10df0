"""Log-probabilities as servers spell them, made into `Token`s: bytes, sorted, each alternative once.

Servers differ: bytes may be missing, tokens may stand in the byte-level alphabet ("Ġis") or with "▁" for a space,
alternatives may come unsorted, with the sampled token twice, or as a mapping. Knows those spellings, and no server.
What cannot be read raises ValueError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...core.records import Token

Spelling = Callable[[str], bytes]


@dataclass(frozen=True)
class Piece:
    """A token as a server gave it: its spelling, its bytes if it gave them, its log-probability."""

    text: str
    bytes: bytes | None
    logprob: float


def parse_tokens(logprobs: Any, text: str, most: int, given: bool = False) -> tuple[Token, ...]:
    """The tokens of an answer, with at most so many alternatives each.

    Of a text that was given, not written, the first token has nothing before it, and may have no log-probability.
    """
    if not isinstance(logprobs, Mapping):
        raise ValueError("there are no log-probabilities")
    rows = list(_chat(logprobs["content"]) if logprobs.get("content") is not None else _plain(logprobs, given))
    if not rows and text:
        raise ValueError("there are no log-probabilities")
    pieces = [piece for piece, _ in rows]
    spell = _spelling([*pieces, *(other for _, top in rows for other in top)], pieces, text)
    found = [_token(piece, top, spell, most) for piece, top in rows]
    if all(piece.bytes is not None for piece in pieces) or not text or _makes_up(found, text):
        return tuple(found)
    return tuple(mended(found, text.encode("utf-8", "replace")))


# ----------------------------------------------------------------------------------------------- two shapes


def _chat(content: Any) -> Iterable[tuple[Piece, list[Piece]]]:
    """The shape of chat completions: a list of objects."""
    for row in _list(content):
        yield _piece(row), [_piece(other) for other in _list(row.get("top_logprobs") or [])]


def _plain(logprobs: Mapping[str, Any], given: bool) -> Iterable[tuple[Piece, list[Piece]]]:
    """The shape of plain completions: lists side by side."""
    texts, values = _list(logprobs.get("tokens")), _list(logprobs.get("token_logprobs"))
    tops = _list(logprobs.get("top_logprobs") or [{}] * len(texts))
    if not len(texts) == len(values) == len(tops):
        raise ValueError("lists of log-probabilities differ in length")
    if given and values and values[0] is None:
        values, tops = [0.0, *values[1:]], [{}, *tops[1:]]
    for text, value, top in zip(texts, values, tops, strict=True):
        pairs = [{"token": name, "logprob": at} for name, at in (top or {}).items()]
        yield _piece({"token": text, "logprob": value}), [_piece(pair) for pair in pairs]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of log-probabilities, found {type(value).__name__}")
    return value


def _piece(row: Any) -> Piece:
    """One token; its bytes where they are given, also as old completions spell them."""
    if not isinstance(row, Mapping) or not isinstance(row.get("token"), str):
        raise ValueError("a log-probability names no token")
    text, raw, value = row["token"], row.get("bytes"), row.get("logprob")
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value > 0.01:
        raise ValueError(f"{value!r} is no log-probability")
    if raw is not None:
        raw = bytes(_list(raw))
    elif text.startswith("bytes:"):
        raw = re.sub(rb"\\x([0-9a-fA-F]{2})", lambda found: bytes([int(found[1], 16)]), text[6:].encode())
    return Piece(text, raw, min(0.0, float(value)))


def _token(piece: Piece, top: Sequence[Piece], spell: Spelling, most: int) -> Token:
    best: dict[bytes, float] = {}
    for other in top:
        if math.isfinite(other.logprob):
            name = _bytes(other, spell)
            best[name] = max(other.logprob, best.get(name, -math.inf))
    if not math.isfinite(piece.logprob):
        raise ValueError("the sampled token has no probability at all")
    ranked = sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))
    return Token(_bytes(piece, spell), piece.logprob, tuple(ranked[:most]))


def _bytes(piece: Piece, spell: Spelling) -> bytes:
    return spell(piece.text) if piece.bytes is None else piece.bytes


# ----------------------------------------------------------------------------------------------- spellings


def _spelling(every: Sequence[Piece], pieces: Sequence[Piece], text: str) -> Spelling:
    """The spelling in which the tokens make up the text best; as they stand, if that does as well as another."""
    if all(piece.bytes is not None for piece in every):
        return _as_it_stands
    whole = text.encode("utf-8", "replace").strip()

    def agrees(spell: Spelling) -> int:
        told = b"".join(_bytes(piece, spell) for piece in pieces).strip()
        return next(
            (i for i, (a, b) in enumerate(zip(told, whole, strict=False)) if a != b), min(len(told), len(whole))
        )

    def marked(spell: Spelling) -> int:
        return sum(spell(piece.text) != _as_it_stands(piece.text) for piece in every)

    known = _MARKS.search("".join(piece.text for piece in every)) is not None and not _MARKS.search(text)
    return max((_as_it_stands, _byte_level, _metaspace), key=lambda spell: (agrees(spell), known * marked(spell)))


_MARKS = re.compile("[\u0120\u010a\u2581]")  # how the two alphabets write a space, or a new line


def _makes_up(found: Sequence[Token], text: str) -> bool:
    """Whether the tokens are those of the text; what ends it may be missing from either."""
    told, whole = b"".join(token.bytes for token in found).strip(), text.encode("utf-8", "replace").strip()
    return told.startswith(whole) or whole.startswith(told)


def _as_it_stands(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _metaspace(text: str) -> bytes:
    """SentencePiece: a low line block is a space, <0xE2> a byte."""
    if found := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", text):
        return bytes([int(found[1], 16)])
    return text.replace("\u2581", " ").encode("utf-8", "replace")


def _byte_level(text: str) -> bytes:
    """GPT-2's alphabet: each byte is one printable character; what is not in it stands for itself."""
    alphabet = _alphabet()
    return b"".join(bytes([alphabet[c]]) if c in alphabet else c.encode("utf-8", "replace") for c in text)


@cache
def _alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


# ------------------------------------------------------------------------------------------------- mending


@dataclass(frozen=True)
class Way:
    """The likeliest way to a place in the text: what it cost, what came before, and the last token of it."""

    cost: float
    before: Way | None = None
    token: Token | None = None
    guessed: bool = False


def mended(found: Sequence[Token], text: bytes) -> list[Token]:
    """Tokens that make up the text, for servers that name another token than the sampled one.

    At each place the text tells which alternative was drawn. Where it was none of them its bytes are what lies
    between its neighbours, and its log-probability is what the alternatives leave over, which is the most it can be;
    what lies between two such cannot be told apart, so they become one.
    """
    ways = {0: Way(0.0)}
    for number, token in enumerate(found):
        ways = _onward(ways, token, text, last=number == len(found) - 1)
    if len(text) not in ways:
        raise ValueError("the log-probabilities are not those of the text")
    return _walked(ways[len(text)])


def _onward(ways: Mapping[int, Way], row: Token, text: bytes, last: bool) -> dict[int, Way]:
    """From every place that was reached, the places after one more token; the likeliest few of them."""
    onward: dict[int, Way] = {}

    def reach(at: int, way: Way) -> None:
        if at not in onward or way.cost < onward[at].cost:
            onward[at] = way

    rest = math.log(max(1e-6, 1.0 - sum(math.exp(logprob) for _, logprob in row.top)))
    for at, way in ways.items():
        for piece, logprob in row.top:
            begun = piece.lstrip() if at == 0 and not text.startswith(piece) else piece
            if begun and text.startswith(begun, at):
                reach(at + len(begun), Way(way.cost - logprob, way, Token(begun, logprob, row.top)))
        for size in range(0 if last else 1, min(LONGEST, len(text) - at) + 1):
            token = Token(text[at : at + size], rest, row.top)
            reach(at + size, Way(way.cost - rest + UNLIKELY + size / LONGEST, way, token, guessed=True))
    return dict(sorted(onward.items(), key=lambda pair: pair[1].cost)[:BEAM])


LONGEST, UNLIKELY, BEAM = 16, 2.0, 64  # bytes of a token that is guessed, its price in nats, places kept


def _walked(way: Way) -> list[Token]:
    """The tokens along a way; guesses side by side are one, and those of nothing are none."""
    steps: list[Way] = []
    while way.before is not None:
        steps.append(way)
        way = way.before
    tokens: list[Token] = []
    guessed = False
    for step in reversed(steps):
        token = step.token
        if token is None or not token.bytes:
            continue
        if step.guessed and guessed:
            before = tokens.pop()
            token = Token(before.bytes + token.bytes, before.logprob + token.logprob, before.top)
        tokens.append(token)
        guessed = step.guessed
    return tokens
