"""What a model's tokens are: their bytes, and where it can be said, the same tokenizer in distillkit's own terms.

Reads the description that the library `tokenizers` writes of a tokenizer. Knows no model.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from distillkit import UsageError
from distillkit.data.tokenizer import Tokenizer
from distillkit.data.tokenizers.tiktoken_encodings import END_OF_TEXT, GPT2_PATTERN

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Spelling = Callable[[str], bytes]
Spec = Mapping[str, Any]

# GPT-2's words where every digit was first cut off as a word of its own: so blanks before a digit stay together.
DIGITS_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++$|\s++(?=\p{N})|\s+(?!\S)|\s"""

# Where two tokenizers differ, they differ here: blanks, digits, apostrophes, line ends, scripts, marks, emoji.
PROBES = (
    "Once upon a time, there was a little fox. It's what they'd said: \"I'll go, we've time, you're late!\"",
    "  two blanks\n\nand lines \n \n\t tabs\t\tand   3 blanks   before 12345 and 3.14159, 1,000,000 or 2nd  9",
    "ends with blanks   ",
    "Straße naïve Ωmega Привет мир 你好，世界 日本語テキスト नमस्ते مرحبا שלום e\u0301 \u00a0\u2003 \u200b",
    "🦊 👩‍👩‍👧‍👦 \U0001f1e9\U0001f1ea ½ ² ⅷ ٣٤٥ %$#@!? don't DON'T 'S snake_case camelCase x=y*2; // ok\r\n\r\n",
    "<|endoftext|> </s> <unk> <|im_start|>user http://a.b/c?d=e#f ...!!!---___ aaaaaaaaaaaaaaaaaaaaaaaa",
)


class Unlike(Exception):
    """Why a tokenizer cannot be said in distillkit's terms."""


class Vocabulary:
    """The tokens of a model, by the description of its tokenizer; `ends` names the token that ends its texts."""

    def __init__(self, description: str, name: str, ends: str | None = None) -> None:
        self.description, self.name, self.ends = description, name, ends
        self.spec: Spec = json.loads(description)

    @cached_property
    def pieces(self) -> dict[int, bytes]:
        """The bytes of each token of text."""
        spell = _spelling(self.spec)
        if spell is None:
            raise UsageError(
                f"the tokens of {self.name} cannot be said in bytes: its tokenizer spells them in a way of its own",
                "Take a model with a byte-level or a SentencePiece tokenizer.",
            )
        special = self.special
        return {token: spell(piece) for piece, token in _ranked(self.spec) if token not in special}

    @cached_property
    def special(self) -> dict[int, bytes]:
        """The tokens that stand for no text, such as those between the turns of a chat, and their names."""
        return {row["id"]: row["content"].encode() for row in self.spec["added_tokens"] if row["special"]}

    @cached_property
    def added(self) -> dict[int, bytes]:
        """Tokens of text that were added later, and are spelled as they are."""
        return {row["id"]: row["content"].encode() for row in self.spec["added_tokens"] if not row["special"]}

    @cached_property
    def every(self) -> tuple[bytes, ...]:
        """The bytes of every token by its number; those of special ones are their names, those of gaps none."""
        known = {**self.pieces, **self.added, **self.special}
        return tuple(known.get(token, b"") for token in range(max(known) + 1))

    @cached_property
    def unspoken(self) -> NDArray[np.int64]:
        """The numbers that are no token of text: special ones and gaps."""
        import numpy as np

        return np.array([token for token, piece in enumerate(self.every) if not piece or token in self.special], int)

    @cached_property
    def lent(self) -> dict[bytes, int]:
        """Numbers after its own for the bytes that it has no token for: some models never saw them."""
        missing = sorted({bytes([byte]) for byte in range(256)} - set(self.pieces.values()))
        return {byte: len(self.every) + i for i, byte in enumerate(missing)}

    def tokenizer(self) -> Tokenizer:
        """The same tokenizer as one of distillkit's: the same bytes under the same numbers, the same words."""
        try:
            return self._aligned
        except Unlike as reason:
            raise UsageError(
                f"the tokenizer of {self.name} cannot be said in distillkit's terms: {reason}",
                "Its logits cannot join a training step. Its text can be learnt, and its likeliest tokens too "
                "(teacher.top_logprobs), by a student with any tokenizer.",
            ) from reason

    @cached_property
    def _aligned(self) -> Tokenizer:
        _must_be_byte_level(self.spec)
        special = {piece.decode(): token for token, piece in {**self.added, **self.special}.items()}
        if END_OF_TEXT not in special:
            if self.ends not in special:
                raise Unlike("no token ends its texts")
            special[END_OF_TEXT] = special.pop(self.ends)
        ranks = {piece: token for token, piece in self.pieces.items() if token not in self.added}
        tokenizer = Tokenizer("mlx-lm", _pattern(self.spec["pre_tokenizer"]), {**ranks, **self.lent}, special)
        self._must_cut_alike(tokenizer)
        return tokenizer

    def _must_cut_alike(self, tokenizer: Tokenizer) -> None:
        from tokenizers import Tokenizer as Theirs

        theirs = Theirs.from_str(self.description)
        theirs.encode_special_tokens = True
        for probe in (unicodedata.normalize("NFC", probe) if self.spec["normalizer"] else probe for probe in PROBES):
            if theirs.encode(probe, add_special_tokens=False).ids != tokenizer.encode(probe):
                raise Unlike(f"it cuts {probe[:24]!r}... into other tokens")


# ------------------------------------------------------------------------------------------------- spellings


def _ranked(spec: Spec) -> Iterator[tuple[str, int]]:
    """Every token's spelling and its number."""
    vocab = spec["model"]["vocab"]
    yield from vocab.items() if isinstance(vocab, dict) else ((row[0], token) for token, row in enumerate(vocab))


def _steps(part: Spec | None) -> list[Spec]:
    """A part of a tokenizer as a flat list of its steps."""
    if part is None:
        return []
    inner = part.get("pretokenizers") or part.get("decoders")
    return [step for one in inner for step in _steps(one)] if inner else [part]


def _spelling(spec: Spec) -> Spelling | None:
    """How tokens are spelled: in the byte-level alphabet, or as SentencePiece does; None if neither."""
    steps = _steps(spec["decoder"])
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level
    replaces = {step["pattern"].get("String") for step in steps if step["type"] == "Replace"}
    return _metaspace if "Metaspace" in kinds or "\u2581" in replaces else None


def _byte_level(text: str) -> bytes:
    """GPT-2's alphabet: each byte is one printable character; a word with any other character is itself."""
    alphabet = _alphabet()
    return bytes(alphabet[c] for c in text) if all(c in alphabet for c in text) else text.encode()


def _metaspace(text: str) -> bytes:
    """SentencePiece: a low line block is a space, <0xE2> a byte."""
    if found := re.fullmatch(r"<0x([0-9A-F]{2})>", text):
        return bytes([int(found[1], 16)])
    return text.replace("\u2581", " ").encode()


@cache
def _alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


# ------------------------------------------------------------------------------------------------- alignment


def _must_be_byte_level(spec: Spec) -> None:
    """Refuse what is no plain byte-level BPE whose tokens are numbered in the order of their merging."""
    model = spec["model"]
    if model["type"] != "BPE" or _spelling(spec) is not _byte_level or model.get("byte_fallback"):
        raise Unlike("it is no byte-level BPE")
    if spec["normalizer"] not in (None, {"type": "NFC"}):  # NFC changes no text that is composed already
        raise Unlike("it changes a text before it cuts it")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise Unlike("its merges leave something to chance, or mark the ends of words")
    vocab = model["vocab"]
    made = [vocab["".join(merge if isinstance(merge, list) else merge.split(" "))] for merge in model["merges"]]
    if any(second < first for first, second in pairwise(made)):
        raise Unlike("its tokens are not numbered in the order of their merging")


def _pattern(part: Spec | None) -> str:
    """The one pattern that cuts a text into words."""
    steps = [dict(step) for step in _steps(part)]
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise Unlike("it puts a space before a text" if last.get("add_prefix_space") else "it cuts words otherwise")
    match steps[:-1], last.get("use_regex", True):
        case [], True:
            return GPT2_PATTERN
        case [{"type": "Digits", "individual_digits": True}], True:
            return DIGITS_PATTERN
        case [{"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False}], False:
            return regex
    raise Unlike("it cuts words by more than one pattern")
