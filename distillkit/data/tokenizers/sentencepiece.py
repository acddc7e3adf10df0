"""SentencePiece, taught to lose nothing: trained without normalisation, and read so that every text comes back.

SentencePiece writes a space as U+2581, so that letter itself would come back as a space; here it is three bytes.
Knows the library's models. Does not know where they are kept, nor what a corpus is.
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

SPACE = "\u2581"  # what SentencePiece writes for a space
LEAST = 258  # the unknown, the end of text and 256 bytes come first
LINE_BYTES = 4000  # SentencePiece leaves out longer lines
COVERAGES = (0.9995, 0.99, 0.9)  # of a text by letters with a token of their own; others are bytes, if there is no room
TRAINING_THREADS = 4  # a fixed number, for sums of floats depend on it
PROBES = ("  two  spaces ", "\tTab\r\n\n", "naïve ﬁ e\u0301 漢字 \u2581", "\0\x7f<s></s>")


def import_sentencepiece() -> Any:
    """The package, or how to get it."""
    try:
        import sentencepiece
    except ImportError as error:
        raise DataError(
            'tokenizer.kind = "sentencepiece" needs a package', 'pip install "distillkit[sentencepiece]"'
        ) from error
    return sentencepiece


def train(texts: Callable[[], Iterable[str]], vocab_size: int) -> bytes:
    """A unigram model with every byte in it, as the library writes it; nothing is normalised."""
    if vocab_size <= LEAST:
        raise DataError(f"tokenizer.vocab_size = {vocab_size} is too small: {LEAST} tokens are fixed", "Ask for 512.")
    *generous, last = COVERAGES
    for coverage in generous:
        try:
            return _learn(texts(), vocab_size, coverage)
        except RuntimeError as error:
            if "required_chars" not in str(error):
                raise _too_much(vocab_size, str(error)) from error
    try:
        return _learn(texts(), vocab_size, last)
    except RuntimeError as error:
        raise _too_much(vocab_size, str(error)) from error


def _learn(texts: Iterable[str], vocab_size: int, coverage: float) -> bytes:
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


def _too_much(vocab_size: int, reason: str) -> DataError:
    """SentencePiece says what is possible; it is handed on."""
    possible = re.search(r"value <= (\d+)", reason)
    if possible is None:
        return DataError(f"SentencePiece could not be trained: {reason.strip()}", "Train on more text.")
    return DataError(
        f"tokenizer.vocab_size = {vocab_size} is too much for this train text: it gives {possible[1]}",
        f"Set tokenizer.vocab_size = {possible[1]} or less, or train on more text.",
    )


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines short enough to be used; what SentencePiece reserves for itself is left out of training."""
    for text in texts:
        for line in text.replace(SPACE, "\n").replace("\0", "\n").splitlines():
            yield from _short(line)


def _short(line: str) -> Iterator[str]:
    while len(line) * 4 > LINE_BYTES:
        cut = line.rfind(" ", 1, LINE_BYTES // 4)
        cut = cut if cut > 0 else LINE_BYTES // 4
        yield line[:cut]
        line = line[cut:]
    if line:
        yield line


class SentencePieceModel:
    """A SentencePiece model that encodes any text and knows the bytes of each of its tokens."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        try:
            self.processor: SentencePieceProcessor = import_sentencepiece().SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"this is no SentencePiece model ({error})") from error
        self.vocab_size: int = self.processor.get_piece_size()
        self.end_of_text: int = self.processor.eos_id()

    @property
    def scored(self) -> list[tuple[str, float]]:
        """Every piece with its score, by id, as the model spells them."""
        model = self.processor
        return [(model.id_to_piece(token), model.get_score(token)) for token in range(self.vocab_size)]

    @property
    def unknown(self) -> int:
        """The token that stands for what is in no piece, before it is written in bytes."""
        return int(self.processor.unk_id())

    def check(self) -> None:
        """Refuse a model of somebody else's that changes text, or cannot end one."""
        if self.end_of_text < 0:
            raise DataError("this SentencePiece model has no end of text", "Train one: leave out tokenizer.model.")
        for text in PROBES:
            found = b"".join(self.vocabulary[token] for token in self.encode(text)).decode(errors="replace")
            if found != text:
                raise DataError(
                    f"this SentencePiece model does not give texts back: {text!r} becomes {found!r}",
                    "It must keep spaces, normalise nothing and have all bytes. Train one: leave out tokenizer.model.",
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
        """The tokens of many texts, on some threads."""
        if any(SPACE in text for text in texts):
            return [self.encode(text) for text in texts]
        return list(self.processor.encode(list(texts), num_threads=threads))

    def encode_arrays(self, texts: Sequence[str], threads: int) -> list[NDArray[np.uint32]]:
        """The same as arrays."""
        return [np.array(tokens, dtype=np.uint32) for tokens in self.encode_many(texts, threads)]

    @cached_property
    def vocabulary(self) -> tuple[bytes, ...]:
        """The bytes of every token, by id; the unknown stands for none."""
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
        """The letter that SentencePiece keeps for spaces, as bytes."""
        return [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
