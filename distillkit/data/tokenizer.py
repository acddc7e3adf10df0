"""Text to tokens and back: byte-level BPE, trained with `tokenizers`, encoded with `tiktoken`; or SentencePiece.

Every text round-trips, because every byte is a token. The special token `<|endoftext|>` stands between
documents; where it is written in a text it is ordinary text. Knows nothing of corpora or models.
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
    from tokenizers import Tokenizer as Learner

__all__ = [  # what others look for here, wherever it is written down
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

# What no word of a language is: a run of so many letters or spaces. Learning merges from one would take hours.
LONG_WORD = 1 << 12
LONG = re.compile(rf"\S{{{LONG_WORD}}}|\s{{{LONG_WORD}}}")
VAST_SPACE = 1 << 16  # tiktoken's expressions give up on some hundred thousand spaces in a row
VAST = re.compile(rf"\s{{{VAST_SPACE}}}")

# Where all three patterns end a word, whatever came before: the pieces of a text cut here have its tokens.
SAFE_CUT = re.compile(r"(?<=[A-Za-z0-9,.;:!?]) (?=[A-Za-z])")


class Tokenizer:
    """A byte-level BPE: a pattern that finds words, tokens in the order of their merging, special tokens.

    Ids that no token has (some encodings leave gaps) stand for no bytes.
    """

    def __init__(self, kind: str, pattern: str, ranks: Mapping[bytes, int], special: Mapping[str, int]) -> None:
        if END_OF_TEXT not in special:
            raise DataError(f"the tokenizer {kind!r} has no {END_OF_TEXT} token", "Take one that has, such as gpt2.")
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
        """The tokens of a text; special tokens written in it are ordinary text."""
        return [token for part in _cut(text, VAST, VAST_SPACE) for token in self._encoding.encode_ordinary(part)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of many texts, on all cores."""
        if any(len(text) > VAST_SPACE for text in texts):
            return [self.encode(text) for text in texts]
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=num_threads())

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The same as arrays: no Python number is made for any token, so it is faster."""
        from concurrent.futures import ThreadPoolExecutor

        def encode(start: int) -> list[NDArray[np.uint32]]:
            group = texts[start : start + size]
            return [whole(text) for text in group]

        def whole(text: str) -> NDArray[np.uint32]:
            parts = [
                self._encoding.encode_to_numpy(part, disallowed_special=()) for part in _cut(text, VAST, VAST_SPACE)
            ]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

        # Several texts at once: handing over one short text costs as much as encoding it.
        size = max(1, len(texts) // (8 * num_threads()))
        with ThreadPoolExecutor(num_threads()) as pool:
            return [tokens for group in pool.map(encode, range(0, len(texts), size)) for tokens in group]

    def pieces(self, text: str, chars: int = PIECE_CHARS) -> Iterator[str]:
        """A long text in pieces whose tokens, one after another, are the tokens of the whole."""
        start = 0
        while len(text) - start > chars and self.pattern in (GPT2_PATTERN, CL100K_PATTERN, O200K_PATTERN):
            cut = SAFE_CUT.search(text, start + chars)
            if cut is None:
                break
            yield text[start : cut.start()]
            start = cut.start()
        yield text[start:]

    def merges(self, word: str) -> list[list[bytes]]:
        """How the tokens of a word come about: first its bytes, then merge by merge, at last its tokens."""
        parts = [bytes([byte]) for byte in word.encode("utf-8")]
        steps = [parts]
        while places := self._mergeable(parts):
            at = min(places, key=lambda place: places[place])
            parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]
            steps.append(parts)
        if [self.ranks.get(part) for part in parts] != self.encode(word):
            raise DataError(
                f"merges alone do not lead to the tokens of {word!r}",
                "Ask for one word at a time, with the space before it; SentencePiece does not merge at all.",
            )
        return steps

    def _mergeable(self, parts: Sequence[bytes]) -> dict[int, int]:
        """Where two neighbours form a token, and which."""
        ranks = (self.ranks.get(one + other) for one, other in pairwise(parts))
        return {place: rank for place, rank in enumerate(ranks) if rank is not None}

    # Tokens to text.

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 become replacement characters."""
        return b"".join(self.vocabulary[token] for token in ids).decode("utf-8", errors="replace")

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token; a special token has those of its name."""
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
        """How many bytes each token has, by id."""
        return np.array([len(piece) for piece in self.vocabulary], dtype=np.int64)

    # Files.

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of all that decides the tokens of a text; equal fingerprints, equal tokens."""
        state = hashlib.sha256(self.pattern.encode("utf-8"))
        for name, token in sorted(self.special.items()):
            state.update(f"\n{name} {token}".encode())
        state.update(b"\n" + self._rank_lines)
        return state.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the files that `load` reads: the ranks in tiktoken's own format, and the rest as JSON."""
        with atomic_write(folder / "ranks.tiktoken") as part:
            part.write_bytes(self._rank_lines)
        write_json(folder / "spec.json", self._spec | {"pattern": self.pattern, "special_tokens": self.special})

    @property
    def _spec(self) -> dict[str, Any]:
        """What every kind says of itself."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "fingerprint": self.fingerprint,
        }

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """Read what `save` wrote, and check that it is the same tokenizer."""
        try:
            spec = read_json(folder / "spec.json")
            tokenizer = (SentencePiece if spec["kind"] == SentencePiece.name else Tokenizer)._read(folder, spec)
            intact = tokenizer.fingerprint == spec["fingerprint"]
        except FileNotFoundError as error:
            raise DataError(f"{folder} holds no tokenizer: {Path(error.filename).name} is missing") from error
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise CorruptError(f"the tokenizer in {folder} cannot be read: {error}", _AGAIN) from error
        if not intact:
            raise CorruptError(f"the tokenizer in {folder} is not the one that was saved there", _AGAIN)
        return tokenizer

    @classmethod
    def _read(cls, folder: Path, spec: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer of a folder, not yet held against its fingerprint."""
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
    """A SentencePiece model. It has no ranks and no pattern: what cuts a text is the model itself."""

    name = "sentencepiece"
    space = pieces.SPACE

    def __init__(self, model: bytes) -> None:
        self.coder = coder = pieces.SentencePieceModel(model)
        self.kind, self.pattern, self.ranks = self.name, "", {}
        self.special = {END_OF_TEXT: coder.end_of_text}
        self.vocab_size, self.end_of_text = coder.vocab_size, coder.end_of_text

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; special tokens written in it are ordinary text."""
        return self.coder.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of many texts, on all cores."""
        return self.coder.encode_many(texts, num_threads())

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The same as arrays."""
        return self.coder.encode_arrays(texts, num_threads())

    @cached_property
    def vocabulary(self) -> tuple[bytes, ...]:
        """The bytes of every token, by id."""
        return self.coder.vocabulary

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the model."""
        return hashlib.sha256(self.coder.model).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the files that `load` reads: the model as SentencePiece writes it, and the rest as JSON."""
        with atomic_write(folder / MODEL) as part:
            part.write_bytes(self.coder.model)
        write_json(folder / "spec.json", self._spec)

    @classmethod
    def _read(cls, folder: Path, spec: Mapping[str, Any]) -> Tokenizer:
        return cls((folder / MODEL).read_bytes())


_AGAIN = "Delete that folder, and copy it or make it again."


def num_threads() -> int:
    """The number of texts that are encoded at once: one for each core that this process may use."""
    return cpu.cores()


# Training.


def train_bpe(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary: the 256 bytes, then merges in the order they were learnt, then the end of text.

    tiktoken merges any two neighbours that form a known token, `tokenizers` only those two it learnt it from.
    They differ where one token can be reached in two ways, and rarely. What tiktoken does is what counts.
    """
    if vocab_size <= BYTES + 1:
        raise DataError(
            f"tokenizer.vocab_size = {vocab_size} is too small: {BYTES} bytes and {END_OF_TEXT} come first",
            "Ask for 512 or more.",
        )
    ranks = _learn(_without_long_words(texts), vocab_size - 1)
    possible = len(ranks) + 1
    if possible < vocab_size:
        raise DataError(
            f"tokenizer.vocab_size = {vocab_size} is too much for this train text: it gives {possible}",
            f"Set tokenizer.vocab_size = {possible} or less, or train on more text.",
        )
    return Tokenizer("bpe", GPT2_PATTERN, ranks, {END_OF_TEXT: vocab_size - 1})


def _without_long_words(texts: Iterator[str]) -> Iterator[str]:
    """The same texts, cut where a word would be longer than any is."""
    for text in texts:
        yield from _cut(text, LONG, LONG_WORD)


def _cut(text: str, long: re.Pattern[str], least: int) -> Iterator[str]:
    """The text, cut behind all that is too long; that has so many letters at least."""
    start = 0
    for found in long.finditer(text) if len(text) > least else ():
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]


def _learn(texts: Iterator[str], size: int) -> dict[bytes, int]:
    learnt = sorted(_learner(texts, size).get_vocab().items(), key=lambda item: item[1])
    byte = {letter: byte for byte, letter in enumerate(byte_alphabet())}
    pieces = [bytes(byte[letter] for letter in word) for word, _ in learnt]
    merged = [piece for piece in pieces if len(piece) > 1]
    return {piece: token for token, piece in enumerate([*(bytes([b]) for b in range(BYTES)), *merged])}


def _learner(texts: Iterator[str], size: int) -> Learner:
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Learner

    learner = Learner(models.BPE())
    words = pre_tokenizers.Split(Regex(_GPT2_AS_PUBLISHED), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    return learner


# GPT-2's own spelling of its pattern, for an engine that reads `++` differently.
_GPT2_AS_PUBLISHED = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


@cache
def byte_alphabet() -> tuple[str, ...]:
    """How GPT-2 and `tokenizers` spell bytes, by byte: printable ones as themselves, the others from U+0100 on."""
    plain = [b for b in range(BYTES) if chr(b).isprintable() and chr(b) != " "]
    others = iter(range(BYTES, 2 * BYTES))
    return tuple(chr(b) if b in plain else chr(next(others)) for b in range(BYTES))


# Choosing.


def check_installed(table: Mapping[str, Any]) -> None:
    """Refuse a `[tokenizer]` table whose package is missing."""
    if table["kind"] == SentencePiece.name:
        pieces.import_sentencepiece()


def is_trained(table: Mapping[str, Any]) -> bool:
    """Whether a `[tokenizer]` table asks for one that the corpus trains."""
    return table["kind"] in TRAINED and not table.get("model")


def is_available_offline(table: Mapping[str, Any]) -> bool:
    """Whether the tokenizer of a table can be had without the network."""
    kind = table["kind"]
    return kind not in PUBLISHED or "ranks" in table or tiktoken_encodings.cache_path(kind).is_file()


def vocab_size_of(table: Mapping[str, Any]) -> int:
    """How many tokens the tokenizer of a table has; neither training nor a network is needed to know that."""
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
    """The tokenizer a recipe names: one to train, a tiktoken encoding, or one of a folder, run or checkpoint."""
    if kind in TRAINED and model is None:
        return _trained(kind, vocab_size, ranks, texts)
    if ranks is not None and kind not in PUBLISHED:
        raise DataError(
            f"tokenizer.ranks goes with a published encoding, not with tokenizer.kind = {kind!r}",
            f"Published: {', '.join(PUBLISHED)}.",
        )
    tokenizer = _named(kind, ranks) if model is None else _modelled(kind, Path(model))
    if vocab_size not in (None, tokenizer.vocab_size):
        raise DataError(
            f"tokenizer.vocab_size = {vocab_size}, but {kind!r} has {tokenizer.vocab_size} tokens",
            'Leave vocab_size out, or train a tokenizer of that size: tokenizer.kind = "bpe".',
        )
    return tokenizer


def _trained(
    kind: str, vocab_size: int | None, ranks: str | Path | None, texts: Callable[[], Iterator[str]] | None
) -> Tokenizer:
    if ranks is not None:
        raise DataError(f'tokenizer.ranks does not go with tokenizer.kind = "{kind}"', "Leave one of them out.")
    if vocab_size is None:
        raise DataError(f'tokenizer.kind = "{kind}" needs a size', "Set tokenizer.vocab_size, for example to 2048.")
    if texts is None:
        raise DataError(f'tokenizer.kind = "{kind}" is trained on a corpus, and none was given')
    return train_bpe(texts(), vocab_size) if kind == "bpe" else SentencePiece(pieces.train(texts, vocab_size))


def _modelled(kind: str, file: Path) -> Tokenizer:
    """The SentencePiece model of a file, if it gives every text back."""
    if kind != SentencePiece.name:
        raise DataError(
            f"tokenizer.model is a SentencePiece model, and tokenizer.kind = {kind!r}",
            'Set tokenizer.kind = "sentencepiece".',
        )
    try:
        tokenizer = SentencePiece(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"tokenizer.model = {str(file)!r} cannot be used: {error}", "Check the path.") from error
    tokenizer.coder.check()
    return tokenizer


def _named(kind: str, ranks: str | Path | None) -> Tokenizer:
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
    """The folder of a saved tokenizer: itself, or inside a folder, a run or a bundled checkpoint."""
    for folder in _places(name):
        for place in (folder, folder / "tokenizer"):
            if (place / "spec.json").is_file():
                return place
    return None


def _places(name: str) -> Iterator[Path]:
    yield Path(name)
    if bundled := bundled_checkpoint(name):
        yield bundled
    try:
        yield find_run(name).path
    except UsageError:
        return
