"""Text to tokens and back: byte-level BPE, trained with `tokenizers`, encoded with `tiktoken`.

Every text round-trips, because every byte is a token. The special token `<|endoftext|>` stands between
documents; where it is written in a text it is ordinary text. Knows nothing of corpora or models.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import CorruptError, DataError, UsageError, did_you_mean
from ..files import read_json, replacing, write_json
from ..runs import bundled_checkpoint, find

if TYPE_CHECKING:
    import tiktoken
    from tokenizers import Tokenizer as Learner

T = TypeVar("T")

SCHEMA = 1
END_OF_TEXT = "<|endoftext|>"
BYTES = 256
DOWNLOAD_SECONDS = 30.0
PIECE_CHARS = 1 << 18

# The patterns that cut text into words before anything is merged, as tiktoken 0.14 writes them. They are kept
# here so that a fingerprint does not change when tiktoken finds a faster way to write the same pattern.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
CL100K_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
O200K_PATTERN = "|".join(
    [
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)

# Where all three patterns end a word, whatever came before: the pieces of a text cut here have its tokens.
SAFE_CUT = re.compile(r"(?<=[A-Za-z0-9,.;:!?]) (?=[A-Za-z])")


class Published(NamedTuple):
    """An encoding whose ranks are published as one file."""

    file: str
    sha256: str
    pattern: str
    special: Mapping[str, int]


R50K = Published(
    "r50k_base",
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    GPT2_PATTERN,
    {END_OF_TEXT: 50256},
)
P50K = Published(
    "p50k_base",
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    GPT2_PATTERN,
    {END_OF_TEXT: 50256},
)
CL100K = Published(
    "cl100k_base",
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    CL100K_PATTERN,
    {
        END_OF_TEXT: 100257,
        "<|fim_prefix|>": 100258,
        "<|fim_middle|>": 100259,
        "<|fim_suffix|>": 100260,
        "<|endofprompt|>": 100276,
    },
)
O200K = Published(
    "o200k_base",
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    O200K_PATTERN,
    {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
)
PUBLISHED = {"gpt2": R50K, "r50k_base": R50K, "p50k_base": P50K, "cl100k_base": CL100K, "o200k_base": O200K}


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
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of many texts, on all cores."""
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=threads())

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The same as arrays: no Python number is made for any token, so it is faster."""
        from concurrent.futures import ThreadPoolExecutor

        def encode(start: int) -> list[NDArray[np.uint32]]:
            group = texts[start : start + size]
            return [self._encoding.encode_to_numpy(text, disallowed_special=()) for text in group]

        # Several texts at once: handing over one short text costs as much as encoding it.
        size = max(1, len(texts) // (8 * threads()))
        with ThreadPoolExecutor(threads()) as pool:
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
        with replacing(folder / "ranks.tiktoken") as part:
            part.write_bytes(self._rank_lines)
        spec = {
            "schema": SCHEMA,
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "pattern": self.pattern,
            "special_tokens": self.special,
            "fingerprint": self.fingerprint,
        }
        write_json(folder / "spec.json", spec)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read what `save` wrote, and check that it is the same tokenizer."""
        try:
            spec = read_json(folder / "spec.json")
            ranks = _parse_ranks((folder / "ranks.tiktoken").read_bytes())
            tokenizer = cls(spec["kind"], spec["pattern"], ranks, spec["special_tokens"])
            intact = tokenizer.fingerprint == spec["fingerprint"]
        except FileNotFoundError as error:
            raise DataError(f"{folder} holds no tokenizer: {Path(error.filename).name} is missing") from error
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise CorruptError(f"the tokenizer in {folder} cannot be read: {error}", _AGAIN) from error
        if not intact:
            raise CorruptError(f"the tokenizer in {folder} is not the one that was saved there", _AGAIN)
        return tokenizer

    @cached_property
    def _rank_lines(self) -> bytes:
        ordered = sorted(self.ranks.items(), key=lambda item: item[1])
        return b"".join(base64.b64encode(piece) + b" %d\n" % token for piece, token in ordered)

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        import tiktoken

        return tiktoken.Encoding(
            self.kind, pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=self.special
        )


_AGAIN = "Delete that folder, and copy it or make it again."


def threads() -> int:
    """How many texts are encoded at once: one a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parse_ranks(content: bytes) -> dict[bytes, int]:
    pairs = (line.split() for line in content.splitlines() if line)
    try:
        return {base64.b64decode(piece, validate=True): int(token) for piece, token in pairs}
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"a line of the ranks is not a token and its number ({error})") from error


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
    ranks = _learn(texts, vocab_size - 1)
    possible = len(ranks) + 1
    if possible < vocab_size:
        raise DataError(
            f"tokenizer.vocab_size = {vocab_size} is too much for this train text: it gives {possible}",
            f"Set tokenizer.vocab_size = {possible} or less, or train on more text.",
        )
    return Tokenizer("bpe", GPT2_PATTERN, ranks, {END_OF_TEXT: vocab_size - 1})


def _learn(texts: Iterator[str], size: int) -> dict[bytes, int]:
    learnt = sorted(_learner(texts, size).get_vocab().items(), key=lambda item: item[1])
    byte = _byte_letters()
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


def _byte_letters() -> dict[str, int]:
    """How `tokenizers` spells bytes: printable ones as themselves, the others from U+0100 on."""
    plain = [b for b in range(BYTES) if chr(b).isprintable() and chr(b) != " "]
    other = [b for b in range(BYTES) if b not in plain]
    return {chr(b): b for b in plain} | {chr(BYTES + i): b for i, b in enumerate(other)}


# Choosing.


def build(
    kind: str,
    *,
    vocab_size: int | None = None,
    ranks: str | Path | None = None,
    texts: Callable[[], Iterator[str]] | None = None,
) -> Tokenizer:
    """The tokenizer a recipe names: `bpe`, a tiktoken encoding, or one of a folder, run or checkpoint."""
    if kind == "bpe":
        return _trained(vocab_size, ranks, texts)
    if ranks is not None and kind not in PUBLISHED:
        raise DataError(
            f"tokenizer.ranks goes with a published encoding, not with tokenizer.kind = {kind!r}",
            f"Published: {', '.join(PUBLISHED)}.",
        )
    tokenizer = _named(kind, ranks)
    if vocab_size not in (None, tokenizer.vocab_size):
        raise DataError(
            f"tokenizer.vocab_size = {vocab_size}, but {kind!r} has {tokenizer.vocab_size} tokens",
            'Leave vocab_size out, or train a tokenizer of that size: tokenizer.kind = "bpe".',
        )
    return tokenizer


def _trained(vocab_size: int | None, ranks: str | Path | None, texts: Callable[[], Iterator[str]] | None) -> Tokenizer:
    if ranks is not None:
        raise DataError('tokenizer.ranks does not go with tokenizer.kind = "bpe"', "Leave one of them out.")
    if vocab_size is None:
        raise DataError('tokenizer.kind = "bpe" needs a size', "Set tokenizer.vocab_size, for example to 2048.")
    if texts is None:
        raise DataError('tokenizer.kind = "bpe" is trained on a corpus, and none was given')
    return train_bpe(texts(), vocab_size)


def _named(kind: str, ranks: str | Path | None) -> Tokenizer:
    import tiktoken

    if kind in PUBLISHED:
        return _published(kind, ranks)
    if kind in tiktoken.list_encoding_names():
        return _from_tiktoken(kind)
    if folder := locate(kind):
        return Tokenizer.load(folder)
    names = {"bpe", "gpt2", *tiktoken.list_encoding_names()}
    raise DataError(
        f"there is no tokenizer {kind!r}: no encoding, folder, run or bundled checkpoint has that name",
        did_you_mean(kind, names),
    )


def locate(name: str) -> Path | None:
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
        yield find(name).path
    except UsageError:
        return


def _published(kind: str, ranks: str | Path | None) -> Tokenizer:
    known = PUBLISHED[kind]
    pairs = _download(kind, known) if ranks is None else _from_file(kind, known, Path(ranks))
    return Tokenizer(kind, known.pattern, pairs, known.special)


def _from_file(kind: str, known: Published, file: Path) -> dict[bytes, int]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"tokenizer.ranks = {str(file)!r} cannot be read: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != known.sha256:
        raise DataError(
            f"{file} does not hold the ranks of {kind}: SHA-256 {found[:12]}…, not {known.sha256[:12]}…",
            f"The file is published as {known.file}.tiktoken.",
        )
    return _parse_ranks(content)


def _download(kind: str, known: Published) -> dict[bytes, int]:
    from tiktoken.load import load_tiktoken_bpe

    url = f"https://openaipublic.blob.core.windows.net/encodings/{known.file}.tiktoken"
    return _within(kind, lambda: load_tiktoken_bpe(url, expected_hash=known.sha256))


def _from_tiktoken(kind: str) -> Tokenizer:
    from tiktoken.registry import ENCODING_CONSTRUCTORS

    constructor = (ENCODING_CONSTRUCTORS or {})[kind]
    spec = _within(kind, constructor)
    return Tokenizer(kind, spec["pat_str"], spec["mergeable_ranks"], spec["special_tokens"])


def _within(kind: str, fetch: Callable[[], T]) -> T:
    """What tiktoken fetches, from its own cache or the network.

    It sets no time limit, so it works on a thread that is left behind when the network never answers.
    """
    result: list[T] = []
    failure: list[Exception] = []

    def work() -> None:
        try:
            result.append(fetch())
        except Exception as error:  # noqa: BLE001 - told below, on the caller's thread
            failure.append(error)

    thread = threading.Thread(target=work, name=f"fetch {kind}", daemon=True)
    thread.start()
    thread.join(DOWNLOAD_SECONDS)
    if result:
        return result[0]
    reason = _in_a_line(failure[0]) if failure else f"no answer within {DOWNLOAD_SECONDS:.0f} seconds"
    raise DataError(f"tiktoken could not download the ranks of {kind!r} ({reason})", _way_out(kind))


def _in_a_line(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:120]


def _way_out(kind: str) -> str:
    if kind not in PUBLISHED:
        return 'Run it once where there is a network, or train one: tokenizer.kind = "bpe".'
    file = f"{PUBLISHED[kind].file}.tiktoken"
    return f'Without a network, bring {file} and set tokenizer.ranks = "FILE", or train one: kind = "bpe".'
