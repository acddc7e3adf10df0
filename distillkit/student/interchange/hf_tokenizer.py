"""Conversion of a tokenizer to `tokenizer.json` of the library `tokenizers`, and back.

tiktoken merges any two neighbours that form a token, lowest rank first; `tokenizers` merges only the pairs it is given,
in their order. So the file lists every pair that forms a token. A SentencePiece model is written as its pieces and
their scores, from which both libraries choose the most likely segmentation. Independent of networks.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import DistillkitError, UsageError
from ...core.files import read_json
from ...data.tokenizer import MODEL, SentencePiece, Tokenizer, byte_alphabet
from ...data.tokenizers.tiktoken_encodings import END_OF_TEXT, GPT2_PATTERN

PROBES = 400  # texts that both libraries must tokenize equally before a file is written or accepted


def token_to_unicode(piece: bytes) -> str:
    """A token's bytes as text, in GPT-2's mapping of bytes to Unicode characters."""
    return "".join(byte_alphabet()[byte] for byte in piece)


def unicode_to_token(word: str) -> bytes:
    """The inverse of `token_to_unicode`."""
    known = {letter: byte for byte, letter in enumerate(byte_alphabet())}
    return bytes(known[letter] for letter in word)


def export_obstacle(tokenizer: Tokenizer) -> str:
    """The reason why a tokenizer cannot be written as `tokenizer.json`; empty if it can."""
    return "" if isinstance(tokenizer, SentencePiece) else bpe_obstacle(tokenizer)


def bpe_obstacle(tokenizer: Tokenizer) -> str:
    """The reason why a tokenizer cannot be written as a vocabulary with merges; empty if it can."""
    if getattr(tokenizer, "pattern", None) == GPT2_PATTERN:
        return ""
    return f"the tokenizer {tokenizer.kind!r} does not split text as GPT-2's does"


def merge_pairs(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Every pair of tokens that forms a token, in the order in which tiktoken would merge them."""
    ranks, merges = tokenizer.ranks, []
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        splits = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        pairs = [(left, right) for left, right in splits if left in ranks and right in ranks]
        merges += sorted(pairs, key=lambda pair: (max(ranks[pair[0]], ranks[pair[1]]), -len(pair[0])))
        if len(piece) > 1 and not pairs:
            raise UsageError(f"no two tokens merge into the token {rank} ({piece!r}), so it cannot be exported")
    return [(token_to_unicode(left), token_to_unicode(right)) for left, right in merges]


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of `tokenizer.json`."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    specials = sorted(tokenizer.special.items(), key=lambda item: item[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": name, **flags} for name, token in specials],
        "post_processor": None,
        **(_unigram_model(tokenizer) if isinstance(tokenizer, SentencePiece) else _bpe_model(tokenizer)),
    }


def _bpe_model(tokenizer: Tokenizer) -> dict[str, Any]:
    """A byte-level BPE model, in GPT-2's mapping of bytes to characters."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {token_to_unicode(piece): rank for piece, rank in tokenizer.ranks.items()}
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
            "merges": [list(pair) for pair in merge_pairs(tokenizer)],
        },
    }


def _unigram_model(tokenizer: SentencePiece) -> dict[str, Any]:
    """A unigram model of pieces and scores, with byte fallback. A space is an ordinary character of a piece."""
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
    """The contents of `tokenizer_config.json`. BOS is end-of-text, which every text of a student follows."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write both files, and the SentencePiece model if there is one, after checking that they tokenize equally."""
    text = json.dumps(tokenizer_json(tokenizer), ensure_ascii=False)
    check_agreement(tokenizer, text)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = json.dumps(tokenizer_config(tokenizer, context), indent=2)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    if isinstance(tokenizer, SentencePiece):
        (folder / MODEL).write_bytes(tokenizer.coder.model)


def check_agreement(tokenizer: Tokenizer, text: str) -> None:
    """Raise an error if a `tokenizer.json` tokenizes a probe text differently from the tokenizer."""
    from tokenizers import Tokenizer as HfTokenizer

    exported = HfTokenizer.from_str(text)
    for probe in probe_texts(tokenizer):
        expected, actual = tokenizer.encode(probe), exported.encode(probe, add_special_tokens=False).ids
        if expected != actual:
            raise DistillkitError(
                f"tokenizer.json encodes {probe[:60]!r} as {actual[:8]}, but the student reads {expected[:8]}",
                "This tokenizer cannot be converted.",
            )


def probe_texts(tokenizer: Tokenizer, seed: int = 0) -> Iterator[str]:
    """Texts that are likely to reveal differences: random tokens, runs of one token, rare spaces and characters."""
    rng = random.Random(seed)
    pieces = [piece.decode("utf-8", errors="ignore") for piece in tokenizer.vocabulary]
    specials = special_strings(tokenizer)
    for number in range(PROBES):
        parts = [rng.choice(pieces) for _ in range(rng.randint(1, 12))]
        if number % 4 == 0:
            parts = [rng.choice(parts) * rng.randint(1, 40)]
        if number % 5 == 0:
            parts += [chr(rng.choice((9, 10, 13, 32, 0xA0, 0x2003, 0x3000))) * rng.randint(1, 5)]
        if number % 7 == 0:
            parts += [chr(rng.randint(32, 0x2FFF)) for _ in range(6)]
        rng.shuffle(parts)
        text = "".join(parts)
        if not any(special in text for special in specials):
            yield text


def special_strings(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Strings that `tokenizers` reads as special tokens, but the student as ordinary text."""
    pieces = (tokenizer.space, "<unk>", "<0x") if isinstance(tokenizer, SentencePiece) else ()
    return (*tokenizer.special, *pieces)


# ------------------------------------------------------------------------------------------------- reading


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder: `tokenizer.json`, or `vocab.json` with `merges.txt`, of a byte-level BPE.

    A unigram tokenizer is read from the SentencePiece model that an export of distillkit contains.
    """
    if (folder / MODEL).is_file():
        return _read_sentencepiece(folder)
    vocabulary, pairs, special = _read_bpe(folder)
    words = {word: token for word, token in vocabulary.items() if word not in special}
    try:
        ranks = {unicode_to_token(word): token for word, token in words.items()}
    except KeyError as error:
        raise UsageError(
            f"the tokenizer in {folder} is not byte-level: its vocabulary has the character {error}", _HINT
        ) from error
    _check_merge_order(folder, ranks, pairs)
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise UsageError(f"the tokenizer in {folder} lacks tokens for {len(missing)} of the 256 bytes", _HINT)
    kind = "gpt2" if len(ranks) == 50256 else "bpe"
    tokenizer = Tokenizer(kind, GPT2_PATTERN, ranks, special)
    if (folder / "tokenizer.json").is_file():
        check_agreement(tokenizer, (folder / "tokenizer.json").read_text(encoding="utf-8"))
    return tokenizer


def _read_sentencepiece(folder: Path) -> SentencePiece:
    """The SentencePiece model of a folder. Raises an error if `tokenizer.json` disagrees with it."""
    try:
        tokenizer = SentencePiece((folder / MODEL).read_bytes())
    except ValueError as error:
        raise UsageError(f"{folder / MODEL} cannot be used: {error}", _HINT) from error
    tokenizer.coder.check()
    if (folder / "tokenizer.json").is_file():
        check_agreement(tokenizer, (folder / "tokenizer.json").read_text(encoding="utf-8"))
    return tokenizer


_HINT = "Name the tokenizer that the model was trained with: --tokenizer gpt2, a folder or a run."


def _read_bpe(folder: Path) -> tuple[dict[str, int], list[Sequence[str]], dict[str, int]]:
    """The vocabulary, merges and special tokens in the files of a folder."""
    try:
        if (folder / "tokenizer.json").is_file():
            return _parse_tokenizer_json(read_json(folder / "tokenizer.json"))
        if (folder / "merges.json").is_file():
            raise UsageError(f"the tokenizer in {folder} is gpt2-nano's, which is not byte-level", _HINT)
        vocabulary = read_json(folder / "vocab.json")
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        pairs: list[Sequence[str]] = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        return vocabulary, pairs, {END_OF_TEXT: vocabulary[END_OF_TEXT]}
    except FileNotFoundError as error:
        raise UsageError(f"{folder} has no tokenizer: {Path(error.filename).name} is missing", _HINT) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"the tokenizer in {folder} cannot be read: {type(error).__name__} {error}", _HINT) from error


def _parse_tokenizer_json(contents: Mapping[str, Any]) -> tuple[dict[str, int], list[Sequence[str]], dict[str, int]]:
    model = contents["model"]
    if model.get("type") != "BPE":
        raise UsageError(f"tokenizer.json has a model of type {model.get('type')}, not BPE", _HINT)
    special = {token["content"]: token["id"] for token in contents.get("added_tokens") or []}
    if END_OF_TEXT not in special:
        raise UsageError(f"tokenizer.json has no {END_OF_TEXT}", _HINT)
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return dict(model["vocab"]), pairs, special


def _check_merge_order(folder: Path, ranks: Mapping[bytes, int], pairs: Sequence[Sequence[str]]) -> None:
    """Raise an error unless tokens are numbered in the order of their merges, because tiktoken merges by number."""
    merged = list(dict.fromkeys(ranks.get(unicode_to_token("".join(pair)), -1) for pair in pairs))
    if merged != sorted(merged):
        raise UsageError(f"the tokenizer in {folder} does not number its tokens in the order of its merges", _HINT)
