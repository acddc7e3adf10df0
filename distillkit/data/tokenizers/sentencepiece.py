"""Lossless SentencePiece: trained without normalization and with byte fallback, so that every text round-trips.

SentencePiece represents a space as U+2581, so the character U+2581 itself would decode to a space. It is encoded as its
three bytes instead. Does not know where models are stored, nor corpora.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError
from .tiktoken_encodings import END_OF_TEXT

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

SPACE = "\u2581"  # the character that SentencePiece uses for a space
FIXED_TOKENS = 258  # the unknown token, the end of text and 256 bytes
LINE_BYTES = 4000  # SentencePiece skips longer lines
COVERAGES = (
    0.9995,
    0.99,
    0.9,
)  # share of characters with their own token; lower ones are tried if the vocabulary is too small
TRAINING_THREADS = 4  # fixed, because sums of floats depend on it
PROBES = ("  two  spaces ", "\tTab\r\n\n", "naïve ﬁ e\u0301 漢字 \u2581", "\0\x7f<s></s>")


def import_sentencepiece() -> Any:
    """Import the package, or raise DataError with the install command."""
    try:
        import sentencepiece
    except ImportError as error:
        raise DataError(
            'tokenizer.kind = "sentencepiece" needs a package', 'pip install "distillkit[sentencepiece]"'
        ) from error
    return sentencepiece


def train(texts: Callable[[], Iterable[str]], vocab_size: int) -> bytes:
    """Train a unigram model with byte fallback and without normalization. Returns the serialized model."""
    if vocab_size <= FIXED_TOKENS:
        raise DataError(
            f"tokenizer.vocab_size = {vocab_size} is too small: {FIXED_TOKENS} tokens are always included",
            "Set it to 512.",
        )
    *generous, last = COVERAGES
    for coverage in generous:
        try:
            return _train(texts(), vocab_size, coverage)
        except RuntimeError as error:
            if "required_chars" not in str(error):
                raise _training_error(vocab_size, str(error)) from error
    try:
        return _train(texts(), vocab_size, last)
    except RuntimeError as error:
        raise _training_error(vocab_size, str(error)) from error


def _train(texts: Iterable[str], vocab_size: int, coverage: float) -> bytes:
    written = io.BytesIO()
    import_sentencepiece().SentencePieceTrainer.train(
        sentence_iterator=_lines(texts),
        model_writer=written,
        model_type="unigram",
        vocab_size=vocab_size,
        character_coverage=coverage,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        eos_id=1,
        eos_piece=END_OF_TEXT,
        bos_id=-1,
        pad_id=-1,
        num_threads=TRAINING_THREADS,
        minloglevel=2,
    )
    return written.getvalue()


def _training_error(vocab_size: int, reason: str) -> DataError:
    """A DataError with the largest vocabulary size that SentencePiece reports."""
    possible = re.search(r"value <= (\d+)", reason)
    if possible is None:
        return DataError(f"SentencePiece could not be trained: {reason.strip()}", "Train on more text.")
    return DataError(
        f"tokenizer.vocab_size = {vocab_size} is too large: the training text gives at most {possible[1]} tokens",
        f"Set tokenizer.vocab_size = {possible[1]} or less, or train on more text.",
    )


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines within the length limit. Characters that SentencePiece reserves are left out of training."""
    for text in texts:
        for line in text.replace(SPACE, "\n").replace("\0", "\n").splitlines():
            yield from _split_line(line)


def _split_line(line: str) -> Iterator[str]:
    while len(line) * 4 > LINE_BYTES:
        cut = line.rfind(" ", 1, LINE_BYTES // 4)
        cut = cut if cut > 0 else LINE_BYTES // 4
        yield line[:cut]
        line = line[cut:]
    if line:
        yield line


class SentencePieceModel:
    """A SentencePiece model that encodes any text, with the bytes of each token."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        try:
            self.processor: SentencePieceProcessor = import_sentencepiece().SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"this is not a SentencePiece model ({error})") from error
        self.vocab_size: int = self.processor.get_piece_size()
        self.end_of_text: int = self.processor.eos_id()

    @property
    def scored(self) -> list[tuple[str, float]]:
        """Every piece with its score, by id."""
        model = self.processor
        return [(model.id_to_piece(token), model.get_score(token)) for token in range(self.vocab_size)]

    @property
    def unknown(self) -> int:
        """The id of the unknown token."""
        return int(self.processor.unk_id())

    def check(self) -> None:
        """Refuse a model without an end of text, or one that does not round-trip text."""
        if self.end_of_text < 0:
            raise DataError(
                "this SentencePiece model has no end-of-text token", "Train one: leave out tokenizer.model."
            )
        for text in PROBES:
            found = b"".join(self.vocabulary[token] for token in self.encode(text)).decode(errors="replace")
            if found != text:
                raise DataError(
                    f"this SentencePiece model does not round-trip text: {text!r} becomes {found!r}",
                    "It must keep spaces, not normalize, and have all bytes. To train one, leave out tokenizer.model.",
                )

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        if SPACE not in text:
            return list(self.processor.encode(text))
        tokens: list[int] = []
        for i, part in enumerate(text.split(SPACE)):
            tokens += self._space if i else []
            tokens += self.processor.encode(part)
        return tokens

    def encode_many(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """The tokens of several texts, computed on several threads."""
        if any(SPACE in text for text in texts):
            return [self.encode(text) for text in texts]
        return list(self.processor.encode(list(texts), num_threads=threads))

    def encode_arrays(self, texts: Sequence[str], threads: int) -> list[NDArray[np.uint32]]:
        """Like `encode_many`, but returns arrays."""
        return [np.array(tokens, dtype=np.uint32) for tokens in self.encode_many(texts, threads)]

    @cached_property
    def vocabulary(self) -> tuple[bytes, ...]:
        """The bytes of every token, by id. The unknown token has none."""
        return tuple(self._bytes(token) for token in range(self.vocab_size))

    def _bytes(self, token: int) -> bytes:
        piece: str = self.processor.id_to_piece(token)
        if self.processor.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        if token == self.end_of_text:
            return END_OF_TEXT.encode()
        if self.processor.is_unknown(token) or self.processor.is_control(token):
            return b""
        return piece.replace(SPACE, " ").encode()

    @cached_property
    def _space(self) -> list[int]:
        """The tokens of U+2581 itself: its three bytes."""
        return [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
