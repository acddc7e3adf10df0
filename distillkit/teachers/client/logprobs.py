"""Parses the log-probabilities of servers into `Token`s: bytes, sorted alternatives without duplicates.

Servers differ. Bytes may be missing; tokens may be written in the byte-level alphabet ("Ġis") or with "▁" for a space;
alternatives may be unsorted, contain the sampled token twice, or be a mapping. Knows these formats, but no server.
Invalid input raises ValueError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...core.records import Token

Decoder = Callable[[str], bytes]  # from a token as the server writes it to its bytes


@dataclass(frozen=True)
class RawToken:
    """A token as a server sent it: its text, its bytes if the server sent them, its log-probability."""

    text: str
    bytes: bytes | None
    logprob: float


def parse_tokens(logprobs: Any, text: str, top_k: int, is_prompt: bool = False) -> tuple[Token, ...]:
    """The tokens of an answer, each with at most `top_k` alternatives.

    With `is_prompt` the text is a prompt that was scored: its first token may have no log-probability.
    """
    if not isinstance(logprobs, Mapping):
        raise ValueError("there are no log-probabilities")
    has_content = logprobs.get("content") is not None
    rows = list(_chat_rows(logprobs["content"]) if has_content else _completion_rows(logprobs, is_prompt))
    if not rows and text:
        raise ValueError("there are no log-probabilities")
    sampled = [token for token, _ in rows]
    decode = _choose_decoder([*sampled, *(other for _, top in rows for other in top)], sampled, text)
    tokens = [_token(token, top, decode, top_k) for token, top in rows]
    if all(token.bytes is not None for token in sampled) or not text or _spell_text(tokens, text):
        return tuple(tokens)
    return tuple(match_text(tokens, text.encode("utf-8", "replace")))


# ----------------------------------------------------------------------------------------------- two formats

_Row = tuple[RawToken, list[RawToken]]  # the sampled token and its alternatives


def _chat_rows(content: Any) -> Iterable[_Row]:
    """The format of chat completions: a list of objects."""
    for row in _list(content):
        yield _raw_token(row), [_raw_token(other) for other in _list(row.get("top_logprobs") or [])]


def _completion_rows(logprobs: Mapping[str, Any], is_prompt: bool) -> Iterable[_Row]:
    """The format of plain completions: parallel lists."""
    texts, values = _list(logprobs.get("tokens")), _list(logprobs.get("token_logprobs"))
    tops = _list(logprobs.get("top_logprobs") or [{}] * len(texts))
    if not len(texts) == len(values) == len(tops):
        raise ValueError("lists of log-probabilities differ in length")
    if is_prompt and values and values[0] is None:
        values, tops = [0.0, *values[1:]], [{}, *tops[1:]]
    for text, value, top in zip(texts, values, tops, strict=True):
        alternatives = [{"token": name, "logprob": logprob} for name, logprob in (top or {}).items()]
        yield _raw_token({"token": text, "logprob": value}), [_raw_token(row) for row in alternatives]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of log-probabilities, found {type(value).__name__}")
    return value


def _raw_token(row: Any) -> RawToken:
    """One token; its bytes if they are given, also in the `bytes:\\x..` form of old completions."""
    if not isinstance(row, Mapping) or not isinstance(row.get("token"), str):
        raise ValueError("a log-probability has no token")
    text, raw, value = row["token"], row.get("bytes"), row.get("logprob")
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value > 0.01:
        raise ValueError(f"{value!r} is not a log-probability")
    if raw is not None:
        raw = bytes(_list(raw))
    elif text.startswith("bytes:"):
        raw = re.sub(rb"\\x([0-9a-fA-F]{2})", lambda match: bytes([int(match[1], 16)]), text[6:].encode())
    return RawToken(text, raw, min(0.0, float(value)))


def _token(sampled: RawToken, top: Sequence[RawToken], decode: Decoder, top_k: int) -> Token:
    best: dict[bytes, float] = {}
    for other in top:
        if math.isfinite(other.logprob):
            piece = _bytes(other, decode)
            best[piece] = max(other.logprob, best.get(piece, -math.inf))
    if not math.isfinite(sampled.logprob):
        raise ValueError("the sampled token has a probability of 0")
    ranked = sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))
    return Token(_bytes(sampled, decode), sampled.logprob, tuple(ranked[:top_k]))


def _bytes(token: RawToken, decode: Decoder) -> bytes:
    return decode(token.text) if token.bytes is None else token.bytes


# ----------------------------------------------------------------------------------------------- decoders


def _choose_decoder(every: Sequence[RawToken], sampled: Sequence[RawToken], text: str) -> Decoder:
    """The decoder under which the sampled tokens match the text best. With equal matches, the plain one."""
    if all(token.bytes is not None for token in every):
        return _decode_plain
    target = text.encode("utf-8", "replace").strip()

    def matching_bytes(decode: Decoder) -> int:
        decoded = b"".join(_bytes(token, decode) for token in sampled).strip()
        pairs = enumerate(zip(decoded, target, strict=False))
        return next((i for i, (a, b) in pairs if a != b), min(len(decoded), len(target)))

    def changed_tokens(decode: Decoder) -> int:
        return sum(decode(token.text) != _decode_plain(token.text) for token in every)

    has_markers = _MARKERS.search("".join(token.text for token in every)) is not None and not _MARKERS.search(text)
    decoders = (_decode_plain, _decode_byte_level, _decode_metaspace)
    return max(decoders, key=lambda decode: (matching_bytes(decode), has_markers * changed_tokens(decode)))


_MARKERS = re.compile("[\u0120\u010a\u2581]")  # how the two alphabets write a space or a newline


def _spell_text(tokens: Sequence[Token], text: str) -> bool:
    """Whether the tokens spell the text, or one is the beginning of the other."""
    decoded, target = b"".join(token.bytes for token in tokens).strip(), text.encode("utf-8", "replace").strip()
    return decoded.startswith(target) or target.startswith(decoded)


def _decode_plain(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _decode_metaspace(text: str) -> bytes:
    """SentencePiece: "▁" is a space, <0xE2> is a byte."""
    if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", text):
        return bytes([int(match[1], 16)])
    return text.replace("\u2581", " ").encode("utf-8", "replace")


def _decode_byte_level(text: str) -> bytes:
    """GPT-2's alphabet: each byte is one printable character. Other characters are encoded as UTF-8."""
    alphabet = _byte_alphabet()
    return b"".join(bytes([alphabet[c]]) if c in alphabet else c.encode("utf-8", "replace") for c in text)


@cache
def _byte_alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


# ------------------------------------------------------------------------------------------------- matching the text


@dataclass(frozen=True)
class TokenPath:
    """The most likely tokens up to a position of the text, as a linked list with their total cost in nats."""

    cost: float
    previous: TokenPath | None = None
    token: Token | None = None
    is_guess: bool = False


MAX_GUESSED_BYTES, GUESS_COST, BEAM_WIDTH = 16, 2.0, 64  # bytes of a guessed token, its extra cost in nats, positions


def match_text(tokens: Sequence[Token], text: bytes) -> list[Token]:
    """Tokens that spell the text, for servers that report another token than the sampled one (beam search).

    At each position the text shows which alternative was sampled. If it was none of them, the token's bytes are those
    between its neighbours, and its log-probability is the mass that the alternatives leave, which is an upper bound.
    Several such tokens in a row cannot be separated and are merged into one.
    """
    paths = {0: TokenPath(0.0)}
    for number, token in enumerate(tokens):
        paths = _extend_paths(paths, token, text, is_last=number == len(tokens) - 1)
    if len(text) not in paths:
        raise ValueError("the log-probabilities are not those of the text")
    return _path_tokens(paths[len(text)])


def _extend_paths(paths: Mapping[int, TokenPath], row: Token, text: bytes, is_last: bool) -> dict[int, TokenPath]:
    """The paths by position after one more token; the `BEAM_WIDTH` cheapest of them."""
    extended: dict[int, TokenPath] = {}

    def add(position: int, path: TokenPath) -> None:
        if position not in extended or path.cost < extended[position].cost:
            extended[position] = path

    rest = math.log(max(1e-6, 1.0 - sum(math.exp(logprob) for _, logprob in row.top)))
    for at, path in paths.items():
        for alternative, logprob in row.top:
            piece = alternative.lstrip() if at == 0 and not text.startswith(alternative) else alternative
            if piece and text.startswith(piece, at):
                add(at + len(piece), TokenPath(path.cost - logprob, path, Token(piece, logprob, row.top)))
        for size in range(0 if is_last else 1, min(MAX_GUESSED_BYTES, len(text) - at) + 1):
            token = Token(text[at : at + size], rest, row.top)
            cost = path.cost - rest + GUESS_COST + size / MAX_GUESSED_BYTES
            add(at + size, TokenPath(cost, path, token, is_guess=True))
    return dict(sorted(extended.items(), key=lambda pair: pair[1].cost)[:BEAM_WIDTH])


def _path_tokens(path: TokenPath) -> list[Token]:
    """The tokens of a path. Adjacent guesses are merged, empty tokens left out."""
    steps: list[TokenPath] = []
    while path.previous is not None:
        steps.append(path)
        path = path.previous
    tokens: list[Token] = []
    after_guess = False
    for step in reversed(steps):
        token = step.token
        if token is None or not token.bytes:
            continue
        if step.is_guess and after_guess:
            before = tokens.pop()
            token = Token(before.bytes + token.bytes, before.logprob + token.logprob, before.top)
        tokens.append(token)
        after_guess = step.is_guess
    return tokens
