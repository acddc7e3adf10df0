"""Tokenizers: byte-level BPE, trained with `tokenizers` and encoded with `tiktoken`; and SentencePiece.

Every text round-trips, because every byte is a token. The special token `<|endoftext|>` separates documents; where it
occurs in a text, it is encoded as ordinary text. Does not know corpora or models.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core import cpu
from ..core.errors import CorruptError, DataError, UsageError, did_you_mean
from ..core.files import atomic_write, read_json, write_json
from ..core.run_folder import bundled_checkpoint, find_run
from .tokenizers import sentencepiece as pieces
from .tokenizers import tiktoken_encodings
from .tokenizers.tiktoken_encodings import (
    CL100K_PATTERN,
    END_OF_TEXT,
    GPT2_PATTERN,
    O200K_PATTERN,
    PUBLISHED,
    parse_ranks,
    rank_lines,
)

if TYPE_CHECKING:
    import tiktoken
    from tokenizers import Tokenizer as TrainedBPE

__all__ = [  # including names that are defined in other modules
    "CL100K_PATTERN",
    "END_OF_TEXT",
    "GPT2_PATTERN",
    "O200K_PATTERN",
    "PUBLISHED",
    "SentencePiece",
    "Tokenizer",
    "is_available_offline",
    "build",
    "check_installed",
    "is_trained",
    "byte_alphabet",
    "find_saved",
    "vocab_size_of",
    "num_threads",
    "train_bpe",
]

SCHEMA = 1
BYTES = 256
TRAINED = ("bpe", "sentencepiece")
MODEL = "pieces.model"
PIECE_CHARS = 1 << 18

# A run of this many letters or spaces is not a word. Training on one would take hours.
MAX_WORD_CHARS = 1 << 12
LONG_WORD = re.compile(rf"\S{{{MAX_WORD_CHARS}}}|\s{{{MAX_WORD_CHARS}}}")
MAX_SPACES = 1 << 16  # tiktoken's patterns fail on some hundred thousand consecutive spaces
LONG_SPACE = re.compile(rf"\s{{{MAX_SPACES}}}")

# All three patterns end a word here, whatever comes before: splitting a text here does not change its tokens.
SAFE_CUT = re.compile(r"(?<=[A-Za-z0-9,.;:!?]) (?=[A-Za-z])")


class Tokenizer:
    """A byte-level BPE tokenizer: a pattern that splits text into words, merge ranks and special tokens.

    Ids without a token (some encodings have gaps) decode to no bytes.
    """

    def __init__(self, kind: str, pattern: str, ranks: Mapping[bytes, int], special: Mapping[str, int]) -> None:
        if END_OF_TEXT not in special:
            raise DataError(f"the tokenizer {kind!r} has no {END_OF_TEXT} token", "Use one that has it, such as gpt2.")
        self.kind = kind
        self.pattern = pattern
        self.ranks = dict(ranks)
        self.special = dict(special)
        self.vocab_size = max(*ranks.values(), *special.values()) + 1
        self.end_of_text = special[END_OF_TEXT]

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind!r}, {self.vocab_size:,} tokens, {self.fingerprint[:8]})"

    # Text to tokens.

    def encode(self, text: str) -> list[int]:
        """The tokens of a text. Special tokens in it are encoded as ordinary text."""
        return [
            token
            for part in _split_after(text, LONG_SPACE, MAX_SPACES)
            for token in self._encoding.encode_ordinary(part)
        ]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of several texts, computed on all cores."""
        if any(len(text) > MAX_SPACES for text in texts):
            return [self.encode(text) for text in texts]
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=num_threads())

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Like `encode_batch`, but returns arrays, which is faster."""
        from concurrent.futures import ThreadPoolExecutor

        def encode(start: int) -> list[NDArray[np.uint32]]:
            group = texts[start : start + size]
            return [whole(text) for text in group]

        def whole(text: str) -> NDArray[np.uint32]:
            parts = [
                self._encoding.encode_to_numpy(part, disallowed_special=())
                for part in _split_after(text, LONG_SPACE, MAX_SPACES)
            ]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

        # Groups of texts: submitting one short text to the pool costs as much as encoding it.
        size = max(1, len(texts) // (8 * num_threads()))
        with ThreadPoolExecutor(num_threads()) as pool:
            return [tokens for group in pool.map(encode, range(0, len(texts), size)) for tokens in group]

    def pieces(self, text: str, chars: int = PIECE_CHARS) -> Iterator[str]:
        """Split a long text into pieces. The tokens of the pieces are the tokens of the text."""
        start = 0
        while len(text) - start > chars and self.pattern in (GPT2_PATTERN, CL100K_PATTERN, O200K_PATTERN):
            cut = SAFE_CUT.search(text, start + chars)
            if cut is None:
                break
            yield text[start : cut.start()]
            start = cut.start()
        yield text[start:]

    def merges(self, word: str) -> list[list[bytes]]:
        """The BPE steps of a word: its bytes, the result of each merge, and finally its tokens."""
        parts = [bytes([byte]) for byte in word.encode("utf-8")]
        steps = [parts]
        while ranks := self._possible_merges(parts):
            at = min(ranks, key=lambda position: ranks[position])
            parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]
            steps.append(parts)
        if [self.ranks.get(part) for part in parts] != self.encode(word):
            raise DataError(
                f"merges alone do not give the tokens of {word!r}",
                "Pass one word at a time, with the space before it. SentencePiece has no merges.",
            )
        return steps

    def _possible_merges(self, parts: Sequence[bytes]) -> dict[int, int]:
        """The positions of adjacent parts that form a token, with the rank of that token."""
        ranks = (self.ranks.get(one + other) for one, other in pairwise(parts))
        return {position: rank for position, rank in enumerate(ranks) if rank is not None}

    # Tokens to text.

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens. Invalid UTF-8 becomes replacement characters."""
        return b"".join(self.vocabulary[token] for token in ids).decode("utf-8", errors="replace")

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token. For a special token, those of its name."""
        return self.vocabulary[token]

    @cached_property
    def vocabulary(self) -> tuple[bytes, ...]:
        """The bytes of every token, by id."""
        pieces = [b""] * self.vocab_size
        for piece, token in self.ranks.items():
            pieces[token] = piece
        for name, token in self.special.items():
            pieces[token] = name.encode("utf-8")
        return tuple(pieces)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """The number of bytes of each token, by id."""
        return np.array([len(piece) for piece in self.vocabulary], dtype=np.int64)

    # Files.

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the tokens of a text. Equal fingerprints give equal tokens."""
        state = hashlib.sha256(self.pattern.encode("utf-8"))
        for name, token in sorted(self.special.items()):
            state.update(f"\n{name} {token}".encode())
        state.update(b"\n" + self._rank_lines)
        return state.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the files that `load` reads: the ranks in tiktoken's format, the rest as JSON."""
        with atomic_write(folder / "ranks.tiktoken") as part:
            part.write_bytes(self._rank_lines)
        write_json(folder / "spec.json", self._spec | {"pattern": self.pattern, "special_tokens": self.special})

    @property
    def _spec(self) -> dict[str, Any]:
        """The metadata common to all kinds."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "fingerprint": self.fingerprint,
        }

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """Load a saved tokenizer and check its fingerprint."""
        try:
            spec = read_json(folder / "spec.json")
            tokenizer = (SentencePiece if spec["kind"] == SentencePiece.name else Tokenizer)._read(folder, spec)
            intact = tokenizer.fingerprint == spec["fingerprint"]
        except FileNotFoundError as error:
            raise DataError(f"{folder} contains no tokenizer: {Path(error.filename).name} is missing") from error
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise CorruptError(f"the tokenizer in {folder} cannot be read: {error}", _RECOVERY_HINT) from error
        if not intact:
            raise CorruptError(f"the tokenizer in {folder} is not the one that was saved there", _RECOVERY_HINT)
        return tokenizer

    @classmethod
    def _read(cls, folder: Path, spec: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer of a folder, without checking its fingerprint."""
        ranks = parse_ranks((folder / "ranks.tiktoken").read_bytes())
        return Tokenizer(spec["kind"], spec["pattern"], ranks, spec["special_tokens"])

    @cached_property
    def _rank_lines(self) -> bytes:
        return rank_lines(self.ranks)

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        import tiktoken

        return tiktoken.Encoding(
            self.kind, pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=self.special
        )


class SentencePiece(Tokenizer):
    """A SentencePiece tokenizer. It has no ranks and no pattern; the model splits the text."""

    name = "sentencepiece"
    space = pieces.SPACE

    def __init__(self, model: bytes) -> None:
        self.coder = coder = pieces.SentencePieceModel(model)
        self.kind, self.pattern, self.ranks = self.name, "", {}
        self.special = {END_OF_TEXT: coder.end_of_text}
        self.vocab_size, self.end_of_text = coder.vocab_size, coder.end_of_text

    def encode(self, text: str) -> list[int]:
        """The tokens of a text. Special tokens in it are encoded as ordinary text."""
        return self.coder.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of several texts, computed on all cores."""
        return self.coder.encode_many(texts, num_threads())

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Like `encode_batch`, but returns arrays."""
        return self.coder.encode_arrays(texts, num_threads())

    @cached_property
    def vocabulary(self) -> tuple[bytes, ...]:
        """The bytes of every token, by id."""
        return self.coder.vocabulary

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model."""
        return hashlib.sha256(self.coder.model).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the files that `load` reads: the SentencePiece model, and the rest as JSON."""
        with atomic_write(folder / MODEL) as part:
            part.write_bytes(self.coder.model)
        write_json(folder / "spec.json", self._spec)

    @classmethod
    def _read(cls, folder: Path, spec: Mapping[str, Any]) -> Tokenizer:
        return cls((folder / MODEL).read_bytes())


_RECOVERY_HINT = "Delete that folder, and copy or create it again."


def num_threads() -> int:
    """The number of threads for encoding: the cores available to this process."""
    return cpu.cores()


# Training.


def train_bpe(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE vocabulary: the 256 bytes, then merges in training order, then the end of text.

    tiktoken merges any two adjacent parts that form a token, `tokenizers` only the pair it learned the token from.
    They rarely differ, where two pairs give the same token. The result of tiktoken is used.
    """
    if vocab_size <= BYTES + 1:
        raise DataError(
            f"tokenizer.vocab_size = {vocab_size} is too small: {BYTES} bytes and {END_OF_TEXT} are always included",
            "Set it to 512 or more.",
        )
    ranks = _train_ranks(_split_long_words(texts), vocab_size - 1)
    possible = len(ranks) + 1
    if possible < vocab_size:
        raise DataError(
            f"tokenizer.vocab_size = {vocab_size} is too large: the training text gives at most {possible} tokens",
            f"Set tokenizer.vocab_size = {possible} or less, or train on more text.",
        )
    return Tokenizer("bpe", GPT2_PATTERN, ranks, {END_OF_TEXT: vocab_size - 1})


def _split_long_words(texts: Iterator[str]) -> Iterator[str]:
    """The texts, split after runs of letters or spaces that are too long."""
    for text in texts:
        yield from _split_after(text, LONG_WORD, MAX_WORD_CHARS)


def _split_after(text: str, long: re.Pattern[str], least: int) -> Iterator[str]:
    """The text, split after each match of `long`, which has at least `least` characters."""
    start = 0
    for found in long.finditer(text) if len(text) > least else ():
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]


def _train_ranks(texts: Iterator[str], size: int) -> dict[bytes, int]:
    learnt = sorted(_train_bpe_model(texts, size).get_vocab().items(), key=lambda item: item[1])
    byte = {letter: byte for byte, letter in enumerate(byte_alphabet())}
    pieces = [bytes(byte[letter] for letter in word) for word, _ in learnt]
    merged = [piece for piece in pieces if len(piece) > 1]
    return {piece: token for token, piece in enumerate([*(bytes([b]) for b in range(BYTES)), *merged])}


def _train_bpe_model(texts: Iterator[str], size: int) -> TrainedBPE:
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as TrainedBPE

    trained = TrainedBPE(models.BPE())
    words = pre_tokenizers.Split(Regex(_GPT2_AS_PUBLISHED), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    return trained


# The pattern as GPT-2 publishes it, for a regex engine in which `++` has another meaning.
_GPT2_AS_PUBLISHED = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


@cache
def byte_alphabet() -> tuple[str, ...]:
    """The character of each byte in GPT-2: printable bytes map to themselves, the others to U+0100 and up."""
    plain = [b for b in range(BYTES) if chr(b).isprintable() and chr(b) != " "]
    others = iter(range(BYTES, 2 * BYTES))
    return tuple(chr(b) if b in plain else chr(next(others)) for b in range(BYTES))


# Choosing a tokenizer.


def check_installed(table: Mapping[str, Any]) -> None:
    """Raise DataError if the package of a `[tokenizer]` table is missing."""
    if table["kind"] == SentencePiece.name:
        pieces.import_sentencepiece()


def is_trained(table: Mapping[str, Any]) -> bool:
    """Whether a `[tokenizer]` table means a tokenizer that is trained on the corpus."""
    return table["kind"] in TRAINED and not table.get("model")


def is_available_offline(table: Mapping[str, Any]) -> bool:
    """Whether the tokenizer of a table is available without the network."""
    kind = table["kind"]
    return kind not in PUBLISHED or "ranks" in table or tiktoken_encodings.cache_path(kind).is_file()


def vocab_size_of(table: Mapping[str, Any]) -> int:
    """The vocabulary size of the tokenizer of a table. Needs no training and no network."""
    if is_trained(table):
        return int(table["vocab_size"])
    return tiktoken_encodings.published_size(table["kind"]) or build(**table).vocab_size


def build(
    kind: str,
    *,
    vocab_size: int | None = None,
    ranks: str | Path | None = None,
    model: str | Path | None = None,
    texts: Callable[[], Iterator[str]] | None = None,
) -> Tokenizer:
    """The tokenizer of a recipe: a trained one, a tiktoken encoding, or that of a folder, a run or a checkpoint."""
    if kind in TRAINED and model is None:
        return _train(kind, vocab_size, ranks, texts)
    if ranks is not None and kind not in PUBLISHED:
        raise DataError(
            f"tokenizer.ranks needs a published encoding, and tokenizer.kind is {kind!r}",
            f"Published: {', '.join(PUBLISHED)}.",
        )
    tokenizer = _load_named(kind, ranks) if model is None else _load_model(kind, Path(model))
    if vocab_size not in (None, tokenizer.vocab_size):
        raise DataError(
            f"tokenizer.vocab_size = {vocab_size}, but {kind!r} has {tokenizer.vocab_size} tokens",
            'Leave vocab_size out, or train a tokenizer of that size: tokenizer.kind = "bpe".',
        )
    return tokenizer


def _train(
    kind: str, vocab_size: int | None, ranks: str | Path | None, texts: Callable[[], Iterator[str]] | None
) -> Tokenizer:
    if ranks is not None:
        raise DataError(f'tokenizer.ranks cannot be used with tokenizer.kind = "{kind}"', "Remove one of them.")
    if vocab_size is None:
        raise DataError(f'tokenizer.kind = "{kind}" needs tokenizer.vocab_size', "Set it, for example to 2048.")
    if texts is None:
        raise DataError(f'tokenizer.kind = "{kind}" is trained on a corpus, but none was given')
    return train_bpe(texts(), vocab_size) if kind == "bpe" else SentencePiece(pieces.train(texts, vocab_size))


def _load_model(kind: str, file: Path) -> Tokenizer:
    """The tokenizer of a SentencePiece model file. Refuses models that do not round-trip every text."""
    if kind != SentencePiece.name:
        raise DataError(
            f"tokenizer.model is a SentencePiece model, but tokenizer.kind = {kind!r}",
            'Set tokenizer.kind = "sentencepiece".',
        )
    try:
        tokenizer = SentencePiece(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"tokenizer.model = {str(file)!r} cannot be used: {error}", "Check the path.") from error
    tokenizer.coder.check()
    return tokenizer


def _load_named(kind: str, ranks: str | Path | None) -> Tokenizer:
    import tiktoken

    if kind in PUBLISHED or kind in tiktoken.list_encoding_names():
        found = tiktoken_encodings.load_encoding(kind, ranks)
        return Tokenizer(kind, found.pattern, found.ranks, found.special)
    if folder := find_saved(kind):
        return Tokenizer.load(folder)
    names = {*TRAINED, "gpt2", *tiktoken.list_encoding_names()}
    raise DataError(
        f"there is no tokenizer {kind!r}: no encoding, folder, run or bundled checkpoint has that name",
        did_you_mean(kind, names),
    )


def find_saved(name: str) -> Path | None:
    """The folder of a saved tokenizer, given that folder, a checkpoint folder, a run or a bundled checkpoint."""
    for folder in _candidate_folders(name):
        for place in (folder, folder / "tokenizer"):
            if (place / "spec.json").is_file():
                return place
    return None


def _candidate_folders(name: str) -> Iterator[Path]:
    yield Path(name)
    if bundled := bundled_checkpoint(name):
        yield bundled
    try:
        yield find_run(name).path
    except UsageError:
        return
