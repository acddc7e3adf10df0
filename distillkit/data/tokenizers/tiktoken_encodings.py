"""Published tiktoken encodings: their patterns, and their ranks from a file, `cache/tokenizers/` or the network.

Files of ranks are checked against known hashes. Does not encode text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from ...core.errors import DataError
from ...core.files import atomic_write
from ...core.run_folder import cache_folder

T = TypeVar("T")

END_OF_TEXT = "<|endoftext|>"
DOWNLOAD_SECONDS = 30.0

# The patterns that split text into words before BPE, as in tiktoken 0.14. They are copied here so that fingerprints do
# not change when tiktoken rewrites a pattern for speed.
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


class Published(NamedTuple):
    """An encoding whose ranks are published as one file."""

    file: str
    sha256: str
    pattern: str
    special: Mapping[str, int]
    size: int


R50K = Published(
    "r50k_base",
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    GPT2_PATTERN,
    {END_OF_TEXT: 50256},
    50_257,
)
P50K = Published(
    "p50k_base",
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    GPT2_PATTERN,
    {END_OF_TEXT: 50256},
    50_281,
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
    100_277,
)
O200K = Published(
    "o200k_base",
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    O200K_PATTERN,
    {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
    200_019,
)
# These two have the ranks of other encodings, and more special tokens.
P50K_EDIT = P50K._replace(
    special={**P50K.special, "<|fim_prefix|>": 50281, "<|fim_middle|>": 50282, "<|fim_suffix|>": 50283},
    size=50_284,
)
_HARMONY = {
    "<|startoftext|>": 199998,
    "<|return|>": 200002,
    "<|constrain|>": 200003,
    "<|channel|>": 200005,
    "<|start|>": 200006,
    "<|end|>": 200007,
    "<|message|>": 200008,
    "<|call|>": 200012,
}
_RESERVED = {f"<|reserved_{i}|>": i for i in (200000, 200001, 200004, *range(200009, 200012), *range(200013, 201088))}
O200K_HARMONY = O200K._replace(special={**O200K.special, **_HARMONY, **_RESERVED}, size=201_088)
PUBLISHED = {
    "gpt2": R50K,
    "r50k_base": R50K,
    "p50k_base": P50K,
    "p50k_edit": P50K_EDIT,
    "cl100k_base": CL100K,
    "o200k_base": O200K,
    "o200k_harmony": O200K_HARMONY,
}


def published_size(kind: str) -> int | None:
    """The vocabulary size of a published encoding, without reading its file; None for other kinds."""
    return PUBLISHED[kind].size if kind in PUBLISHED else None


class Encoding(NamedTuple):
    """Everything that determines how an encoding tokenizes text."""

    pattern: str
    ranks: dict[bytes, int]
    special: Mapping[str, int]


def load_encoding(kind: str, ranks: str | Path | None = None) -> Encoding:
    """Load a published encoding, with its ranks from a file, from the cache or from the network."""
    if kind not in PUBLISHED:
        return _from_tiktoken(kind)
    known = PUBLISHED[kind]
    kept = cache_path(kind)
    file = Path(ranks) if ranks is not None else kept if kept.is_file() else None
    pairs = _download(kind, known) if file is None else _from_file(kind, known, file)
    return Encoding(known.pattern, pairs, known.special)


def cache_path(kind: str) -> Path:
    """The cache file of the ranks of a published encoding."""
    return cache_folder() / "tokenizers" / f"{PUBLISHED[kind].file}.tiktoken"


def _from_file(kind: str, known: Published, file: Path) -> dict[bytes, int]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"tokenizer.ranks = {str(file)!r} cannot be read: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != known.sha256:
        raise DataError(
            f"{file} does not contain the ranks of {kind}: SHA-256 {found[:12]}…, not {known.sha256[:12]}…",
            f"The file is published as {known.file}.tiktoken.",
        )
    return parse_ranks(content)


def _download(kind: str, known: Published) -> dict[bytes, int]:
    from tiktoken.load import load_tiktoken_bpe

    url = f"https://openaipublic.blob.core.windows.net/encodings/{known.file}.tiktoken"
    ranks = _with_timeout(kind, lambda: load_tiktoken_bpe(url, expected_hash=known.sha256))
    content = rank_lines(ranks)
    if hashlib.sha256(content).hexdigest() == known.sha256:  # tiktoken's own cache is in a temporary folder
        with atomic_write(cache_path(kind)) as part:
            part.write_bytes(content)
    return ranks


def _from_tiktoken(kind: str) -> Encoding:
    from tiktoken.registry import ENCODING_CONSTRUCTORS

    constructor = (ENCODING_CONSTRUCTORS or {})[kind]
    spec = _with_timeout(kind, constructor)
    return Encoding(spec["pat_str"], spec["mergeable_ranks"], spec["special_tokens"])


def _with_timeout(kind: str, fetch: Callable[[], T]) -> T:
    """Let tiktoken load an encoding, from its cache or the network, with a time limit.

    tiktoken sets no timeout, so it runs on a daemon thread that is abandoned if the network does not respond.
    """
    result: list[T] = []
    failure: list[Exception] = []

    def work() -> None:
        try:
            result.append(fetch())
        except Exception as error:  # noqa: BLE001 - reported below, on the calling thread
            failure.append(error)

    thread = threading.Thread(target=work, name=f"fetch {kind}", daemon=True)
    thread.start()
    thread.join(DOWNLOAD_SECONDS)
    if result:
        return result[0]
    reason = _first_line(failure[0]) if failure else f"no answer within {DOWNLOAD_SECONDS:.0f} seconds"
    raise DataError(f"tiktoken could not download the ranks of {kind!r} ({reason})", _offline_hint(kind))


def _first_line(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:120]


def _offline_hint(kind: str) -> str:
    if kind not in PUBLISHED:
        return 'Run it once with a network, or train one: tokenizer.kind = "bpe".'
    file = f"{PUBLISHED[kind].file}.tiktoken"
    return (
        f'Without a network, copy {file} into {cache_path(kind).parent}, or set tokenizer.ranks = "FILE". '
        'Or train one: tokenizer.kind = "bpe".'
    )


# Rank files.


def rank_lines(ranks: Mapping[bytes, int]) -> bytes:
    """Ranks in tiktoken's file format."""
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(piece) + b" %d\n" % token for piece, token in ordered)


def parse_ranks(content: bytes) -> dict[bytes, int]:
    """The inverse of `rank_lines`."""
    pairs = (line.split() for line in content.splitlines() if line)
    try:
        return {base64.b64decode(piece, validate=True): int(token) for piece, token in pairs}
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"a line of the ranks is not a token and its rank ({error})") from error
