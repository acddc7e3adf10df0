"""Our tokenizer in the words of others: `tokenizer.json`, as the library `tokenizers` reads it, and back.

tiktoken merges any two neighbours that form a known token, the lowest first; `tokenizers` merges the pairs that it is
told, in their order. So it is told every pair that forms a token. A SentencePiece model is told as its pieces and their
scores, of which both libraries take the likeliest. Knows nothing of networks.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import DistillkitError, UsageError
from ...core.files import read_json
from ...data.tokenizer import MODEL, SentencePiece, Tokenizer, letters
from ...data.tokenizers.tiktoken_encodings import END_OF_TEXT, GPT2_PATTERN

TRIES = 400  # texts that both must cut alike before a file is believed


def spelt(piece: bytes) -> str:
    """Bytes in GPT-2's letters."""
    return "".join(letters()[byte] for byte in piece)


def bytes_of(word: str) -> bytes:
    """The inverse of `spelt`."""
    known = {letter: byte for byte, letter in enumerate(letters())}
    return bytes(known[letter] for letter in word)


def why_not(tokenizer: Tokenizer) -> str:
    """What keeps a tokenizer from being written as `tokenizer.json`; nothing for SentencePiece and GPT-2's kind."""
    return "" if isinstance(tokenizer, SentencePiece) else why_not_gpt2(tokenizer)


def why_not_gpt2(tokenizer: Tokenizer) -> str:
    """What keeps a tokenizer from being written as a vocabulary and merges; nothing for GPT-2's kind."""
    if getattr(tokenizer, "pattern", None) == GPT2_PATTERN:
        return ""
    return f"the tokenizer {tokenizer.kind!r} does not cut text as GPT-2's does"


def merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Every pair of tokens that forms a token, in the order in which tiktoken would merge them."""
    ranks, found = tokenizer.ranks, []
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        pairs = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        found += sorted(pairs, key=lambda pair: (max(ranks[pair[0]], ranks[pair[1]]), -len(pair[0])))
        if len(piece) > 1 and not pairs:
            raise UsageError(f"the token {rank} ({piece!r}) is made of no two others, so no merges lead to it")
    return [(spelt(left), spelt(right)) for left, right in found]


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The whole of `tokenizer.json`."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    specials = sorted(tokenizer.special.items(), key=lambda item: item[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": name, **flags} for name, token in specials],
        "post_processor": None,
        **(_as_unigrams(tokenizer) if isinstance(tokenizer, SentencePiece) else _as_merges(tokenizer)),
    }


def _as_merges(tokenizer: Tokenizer) -> dict[str, Any]:
    """A byte-level BPE: bytes in GPT-2's letters, and what becomes of two neighbours."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {spelt(piece): rank for piece, rank in tokenizer.ranks.items()}
    return {
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [list(pair) for pair in merges(tokenizer)],
        },
    }


def _as_unigrams(tokenizer: SentencePiece) -> dict[str, Any]:
    """Pieces and their scores. What no piece has is written in bytes; a space is a letter like any other."""
    back = {"type": "Replace", "pattern": {"String": tokenizer.space}, "content": " "}
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": tokenizer.space},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "Unigram",
            "unk_id": tokenizer.coder.unknown,
            "byte_fallback": True,
            "vocab": [list(pair) for pair in tokenizer.coder.scored],
        },
    }


def tokenizer_config(tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    """What `tokenizer_config.json` says; every text of the student begins after the end of another."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }


def write(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Both files, once it is sure that they cut texts as ours does; beside them the model of a SentencePiece."""
    text = json.dumps(tokenizer_json(tokenizer), ensure_ascii=False)
    must_agree(tokenizer, text)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = json.dumps(tokenizer_config(tokenizer, context), indent=2)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    if isinstance(tokenizer, SentencePiece):
        (folder / MODEL).write_bytes(tokenizer.coder.model)


def must_agree(tokenizer: Tokenizer, text: str) -> None:
    """Hold a `tokenizer.json` against our tokenizer on texts made to tell them apart."""
    from tokenizers import Tokenizer as Other

    other = Other.from_str(text)
    for words in hard_texts(tokenizer):
        mine, theirs = tokenizer.encode(words), other.encode(words, add_special_tokens=False).ids
        if mine != theirs:
            raise DistillkitError(
                f"tokenizer.json would cut {words[:60]!r} into {theirs[:8]}, and the student reads {mine[:8]}",
                "This tokenizer cannot be taken there.",
            )


def hard_texts(tokenizer: Tokenizer, seed: int = 0) -> Iterator[str]:
    """Tokens one after another, runs of one letter, spaces of all kinds, and letters from everywhere."""
    chance = random.Random(seed)
    pieces = [piece.decode("utf-8", errors="ignore") for piece in tokenizer.vocabulary]
    names = read_otherwise(tokenizer)
    for number in range(TRIES):
        drawn = [chance.choice(pieces) for _ in range(chance.randint(1, 12))]
        if number % 4 == 0:
            drawn = [chance.choice(drawn) * chance.randint(1, 40)]
        if number % 5 == 0:
            drawn += [chr(chance.choice((9, 10, 13, 32, 0xA0, 0x2003, 0x3000))) * chance.randint(1, 5)]
        if number % 7 == 0:
            drawn += [chr(chance.randint(32, 0x2FFF)) for _ in range(6)]
        chance.shuffle(drawn)
        text = "".join(drawn)
        if not any(name in text for name in names):
            yield text


def read_otherwise(tokenizer: Tokenizer) -> tuple[str, ...]:
    """What is a text to us, where it is written in one, and a token to others."""
    named = (tokenizer.space, "<unk>", "<0x") if isinstance(tokenizer, SentencePiece) else ()
    return (*tokenizer.special, *named)


# ------------------------------------------------------------------------------------------------- and back


def read(folder: Path) -> Tokenizer:
    """The tokenizer of a folder: `tokenizer.json`, or `vocab.json` with `merges.txt`, of GPT-2's kind.

    One of unigrams is read from the SentencePiece model that an export of ours has beside it.
    """
    if (folder / MODEL).is_file():
        return _of_model(folder)
    vocabulary, pairs, special = _parts(folder)
    words = {word: token for word, token in vocabulary.items() if word not in special}
    try:
        ranks = {bytes_of(word): token for word, token in words.items()}
    except KeyError as error:
        raise UsageError(
            f"the tokenizer in {folder} is not made of bytes: it has the letter {error}", _OTHER
        ) from error
    _must_rise(folder, ranks, pairs)
    if lacking := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise UsageError(f"the tokenizer in {folder} lacks {len(lacking)} of the 256 bytes", _OTHER)
    kind = "gpt2" if len(ranks) == 50256 else "bpe"
    tokenizer = Tokenizer(kind, GPT2_PATTERN, ranks, special)
    if (folder / "tokenizer.json").is_file():
        must_agree(tokenizer, (folder / "tokenizer.json").read_text(encoding="utf-8"))
    return tokenizer


def _of_model(folder: Path) -> SentencePiece:
    """The SentencePiece model of a folder, if `tokenizer.json` says the same."""
    try:
        tokenizer = SentencePiece((folder / MODEL).read_bytes())
    except ValueError as error:
        raise UsageError(f"{folder / MODEL} cannot be used: {error}", _OTHER) from error
    tokenizer.coder.check()
    if (folder / "tokenizer.json").is_file():
        must_agree(tokenizer, (folder / "tokenizer.json").read_text(encoding="utf-8"))
    return tokenizer


_OTHER = "Name the tokenizer that it was trained with: --tokenizer gpt2, a folder or a run."


def _parts(folder: Path) -> tuple[dict[str, int], list[Sequence[str]], dict[str, int]]:
    """Vocabulary, merges and special tokens, as the files of a folder have them."""
    try:
        if (folder / "tokenizer.json").is_file():
            return _of_json(read_json(folder / "tokenizer.json"))
        if (folder / "merges.json").is_file():
            raise UsageError(
                f"the tokenizer in {folder} is gpt2-nano's, which knows letters it has seen, not bytes", _OTHER
            )
        vocabulary = read_json(folder / "vocab.json")
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        pairs: list[Sequence[str]] = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        return vocabulary, pairs, {END_OF_TEXT: vocabulary[END_OF_TEXT]}
    except FileNotFoundError as error:
        raise UsageError(f"{folder} holds no tokenizer: {Path(error.filename).name} is missing", _OTHER) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"the tokenizer in {folder} cannot be read: {type(error).__name__} {error}", _OTHER) from error


def _of_json(whole: Mapping[str, Any]) -> tuple[dict[str, int], list[Sequence[str]], dict[str, int]]:
    model = whole["model"]
    if model.get("type") != "BPE":
        raise UsageError(f"tokenizer.json holds a {model.get('type')}, not a BPE", _OTHER)
    special = {token["content"]: token["id"] for token in whole.get("added_tokens") or []}
    if END_OF_TEXT not in special:
        raise UsageError(f"tokenizer.json has no {END_OF_TEXT}", _OTHER)
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return dict(model["vocab"]), pairs, special


def _must_rise(folder: Path, ranks: Mapping[bytes, int], pairs: Sequence[Sequence[str]]) -> None:
    """Refuse a vocabulary that is not numbered in the order of its merges: tiktoken goes by the numbers."""
    formed = list(dict.fromkeys(ranks.get(bytes_of("".join(pair)), -1) for pair in pairs))
    if formed != sorted(formed):
        raise UsageError(f"the tokenizer in {folder} does not number its tokens in the order of its merges", _OTHER)
