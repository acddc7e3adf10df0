"""The tokens of a model in bytes, and where possible an equivalent distillkit tokenizer.

Reads the JSON serialisation of the `tokenizers` library. Does not know models.
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

Decoder = Callable[[str], bytes]
Spec = Mapping[str, Any]

# GPT-2's pattern with every digit as a separate word; spaces before a digit stay together.
DIGITS_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++$|\s++(?=\p{N})|\s+(?!\S)|\s"""

# Texts where tokenizers tend to differ: spaces, digits, apostrophes, line ends, scripts, marks, emoji.
PROBES = (
    "Once upon a time, there was a little fox. It's what they'd said: \"I'll go, we've time, you're late!\"",
    "  two blanks\n\nand lines \n \n\t tabs\t\tand   3 blanks   before 12345 and 3.14159, 1,000,000 or 2nd  9",
    "ends with blanks   ",
    "Straße naïve Ωmega Привет мир 你好，世界 日本語テキスト नमस्ते مرحبا שלום e\u0301 \u00a0\u2003 \u200b",
    "🦊 👩‍👩‍👧‍👦 \U0001f1e9\U0001f1ea ½ ² ⅷ ٣٤٥ %$#@!? don't DON'T 'S snake_case camelCase x=y*2; // ok\r\n\r\n",
    "<|endoftext|> </s> <unk> <|im_start|>user http://a.b/c?d=e#f ...!!!---___ aaaaaaaaaaaaaaaaaaaaaaaa",
)


class NotRepresentableError(Exception):
    """A tokenizer cannot be represented as a distillkit tokenizer; the message says why."""


class Vocabulary:
    """The tokens of a model, from the JSON of its tokenizer; `end_token` names the token that ends a text."""

    def __init__(self, text: str, name: str, end_token: str | None = None) -> None:
        self.json, self.name, self.end_token = text, name, end_token
        self.spec: Spec = json.loads(text)

    @cached_property
    def pieces(self) -> dict[int, bytes]:
        """The bytes of each text token."""
        decode = _decoder(self.spec)
        if decode is None:
            raise UsageError(
                f"the bytes of the tokens of {self.name} are unknown: its tokenizer has an unknown decoder",
                "Use a model with a byte-level or a SentencePiece tokenizer.",
            )
        special = self.special
        return {token: decode(piece) for piece, token in _vocabulary_items(self.spec) if token not in special}

    @cached_property
    def special(self) -> dict[int, bytes]:
        """The names of special tokens, such as those between the turns of a chat."""
        return {row["id"]: row["content"].encode() for row in self.spec["added_tokens"] if row["special"]}

    @cached_property
    def added(self) -> dict[int, bytes]:
        """The bytes of added tokens that are ordinary text."""
        return {row["id"]: row["content"].encode() for row in self.spec["added_tokens"] if not row["special"]}

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes of every token by id. Special tokens have their names, unused ids have no bytes."""
        known = {**self.pieces, **self.added, **self.special}
        return tuple(known.get(token, b"") for token in range(max(known) + 1))

    @cached_property
    def non_text_ids(self) -> NDArray[np.int64]:
        """The ids of special tokens, and unused ids."""
        import numpy as np

        return np.array(
            [token for token, piece in enumerate(self.token_bytes) if not piece or token in self.special], int
        )

    @cached_property
    def missing_bytes(self) -> dict[bytes, int]:
        """Additional ids, after its own, for bytes that have no token."""
        missing = sorted({bytes([byte]) for byte in range(256)} - set(self.pieces.values()))
        return {byte: len(self.token_bytes) + i for i, byte in enumerate(missing)}

    def tokenizer(self) -> Tokenizer:
        """The equivalent distillkit tokenizer, with the same token ids."""
        try:
            return self._equivalent
        except NotRepresentableError as reason:
            raise UsageError(
                f"the tokenizer of {self.name} cannot be represented in distillkit: {reason}",
                "Its logits cannot be used in training. Its text and its top log-probabilities (teacher.top_logprobs) "
                "can be used for a student with any tokenizer.",
            ) from reason

    @cached_property
    def _equivalent(self) -> Tokenizer:
        _check_byte_level(self.spec)
        special = {piece.decode(): token for token, piece in {**self.added, **self.special}.items()}
        if END_OF_TEXT not in special:
            if self.end_token not in special:
                raise NotRepresentableError("it has no end-of-text token")
            special[END_OF_TEXT] = special.pop(self.end_token)
        ranks = {piece: token for token, piece in self.pieces.items() if token not in self.added}
        tokenizer = Tokenizer("mlx-lm", _pattern(self.spec["pre_tokenizer"]), {**ranks, **self.missing_bytes}, special)
        self._check_equal(tokenizer)
        return tokenizer

    def _check_equal(self, tokenizer: Tokenizer) -> None:
        from tokenizers import Tokenizer as HfTokenizer

        original = HfTokenizer.from_str(self.json)
        original.encode_special_tokens = True
        for probe in (unicodedata.normalize("NFC", probe) if self.spec["normalizer"] else probe for probe in PROBES):
            if original.encode(probe, add_special_tokens=False).ids != tokenizer.encode(probe):
                raise NotRepresentableError(f"it tokenizes {probe[:24]!r}... differently")


# -------------------------------------------------------------------------------------------------- decoding


def _vocabulary_items(spec: Spec) -> Iterator[tuple[str, int]]:
    """Every token as text and its id."""
    vocab = spec["model"]["vocab"]
    yield from vocab.items() if isinstance(vocab, dict) else ((row[0], token) for token, row in enumerate(vocab))


def _steps(part: Spec | None) -> list[Spec]:
    """A part of the specification as a flat list of its steps."""
    if part is None:
        return []
    inner = part.get("pretokenizers") or part.get("decoders")
    return [step for one in inner for step in _steps(one)] if inner else [part]


def _decoder(spec: Spec) -> Decoder | None:
    """The function that decodes a token to bytes: byte-level or SentencePiece; None if it is neither."""
    steps = _steps(spec["decoder"])
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level
    replaces = {step["pattern"].get("String") for step in steps if step["type"] == "Replace"}
    return _metaspace if "Metaspace" in kinds or "\u2581" in replaces else None


def _byte_level(text: str) -> bytes:
    """Decode GPT-2's alphabet, where each byte is one printable character; other text is encoded as UTF-8."""
    alphabet = _byte_alphabet()
    return bytes(alphabet[c] for c in text) if all(c in alphabet for c in text) else text.encode()


def _metaspace(text: str) -> bytes:
    """Decode SentencePiece: U+2581 is a space, <0xE2> a byte."""
    if found := re.fullmatch(r"<0x([0-9A-F]{2})>", text):
        return bytes([int(found[1], 16)])
    return text.replace("\u2581", " ").encode()


@cache
def _byte_alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


# ------------------------------------------------------------------------------------------------ conversion


def _check_byte_level(spec: Spec) -> None:
    """Raise NotRepresentableError unless it is a byte-level BPE whose token ids are in merge order."""
    model = spec["model"]
    if model["type"] != "BPE" or _decoder(spec) is not _byte_level or model.get("byte_fallback"):
        raise NotRepresentableError("it is not a byte-level BPE")
    if spec["normalizer"] not in (None, {"type": "NFC"}):  # NFC does not change text that is already composed
        raise NotRepresentableError("it normalises text")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise NotRepresentableError("it uses BPE dropout, or marks the beginning or end of words")
    vocab = model["vocab"]
    made = [vocab["".join(merge if isinstance(merge, list) else merge.split(" "))] for merge in model["merges"]]
    if any(second < first for first, second in pairwise(made)):
        raise NotRepresentableError("its token ids are not in merge order")


def _pattern(part: Spec | None) -> str:
    """The regular expression that splits text into words."""
    steps = [dict(step) for step in _steps(part)]
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise NotRepresentableError(
            "it adds a space before a text" if last.get("add_prefix_space") else "it splits words in another way"
        )
    match steps[:-1], last.get("use_regex", True):
        case [], True:
            return GPT2_PATTERN
        case [{"type": "Digits", "individual_digits": True}], True:
            return DIGITS_PATTERN
        case [{"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False}], False:
            return regex
    raise NotRepresentableError("it splits words with more than one pattern")
