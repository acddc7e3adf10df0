"""The corpus: documents of a source, split into training and held-out text, tokenized, packed and cached.

Whether a document is held out depends only on the hash of its text, not on a seed, a recipe or its position. So the
same text is held out in every run, and a teacher that was trained under the same rule, such as the bundled one, has
never seen the text that its students are judged on.

Does not know models, nor how a source reads its documents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from ..core.console import Console
from ..core.errors import CorruptError, DataError
from ..core.files import atomic_folder, digest, file_digest, file_lock, read_json, read_jsonl, write_json
from ..core.records import Document
from ..core.run_folder import cache_folder
from ..plugins.interfaces import Source
from .shards import Packer, Stream, utf8_size
from .tokenizer import Tokenizer, build, is_available_offline, is_trained

SCHEMA = 1
SALT = b"distillkit held-out documents, rule 1\n"
TRAINING_RULES = {
    "bpe": "byte-level BPE of the first 20 MB of train text, rule 1",
    "sentencepiece": "SentencePiece unigrams of the first 20 MB of train text, rule 1",
}
TRAINING_BYTES = 20_000_000
HASH_CHARS = 1 << 20
ANSWERS_AT_ONCE = 1024
LARGE = 1 << 29  # tokens; computing the checksum of as many takes a second or more


@dataclass(frozen=True)
class Options:
    """The host keys of the `[data]` table. Other keys are options of the source plugin."""

    documents: int | None = None  # maximum number of documents, without empty ones and duplicates
    tokens: int | None = None  # stop after the document with which the training split has this many tokens
    held_out: float = 0.05  # share of documents that are held out
    block_chars: int | None = None  # maximum length of a document before it is split

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Options:
        """The options of a recipe table. Other keys are ignored."""
        return cls(**{key: table[key] for key in cls.__dataclass_fields__ if key in table})

    def key(self) -> dict[str, Any]:
        """The part of the cache key. Omits `tokens` if unset, which keeps the keys of older corpora."""
        return {key: value for key, value in asdict(self).items() if key != "tokens" or value is not None}


class Corpus:
    """A prepared corpus: two packed splits, their tokenizer, and counts of documents, tokens and bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        metadata = _read_metadata(folder)
        self.counts: dict[str, Any] = metadata["counts"]
        self._held_out_digest: str = metadata["held_out"]["sha256"]
        self.train = Stream(folder / "train")
        self.held_out = Stream(folder / "held_out")
        self.tokenizer = Tokenizer.load(folder / "tokenizer")

    @property
    def fingerprint(self) -> str:
        """A digest of the tokens of both splits and of the tokenizer."""
        return digest([self.train.fingerprint, self.held_out.fingerprint, self.tokenizer.fingerprint])

    @cached_property
    def held_out_documents(self) -> list[Document]:
        """The held-out documents with their original text."""
        return [Document(**row) for row in read_jsonl(self.folder / "held_out.jsonl")]

    def train_text(self) -> Iterator[str]:
        """The training documents, decoded from their tokens."""
        return self.train.texts(self.tokenizer)

    def verify(self) -> None:
        """Compare every file with its checksum."""
        self.train.verify()
        self.held_out.verify()
        if file_digest(self.folder / "held_out.jsonl") != self._held_out_digest:
            raise CorruptError(f"{self.folder / 'held_out.jsonl'} has changed since it was written", _RECOVERY_HINT)


_RECOVERY_HINT = "Delete that folder; the corpus is prepared again when it is needed."


def _read_metadata(folder: Path) -> dict[str, Any]:
    try:
        metadata: dict[str, Any] = read_json(folder / "corpus.json")
        held_out, written = metadata["held_out"], metadata.pop("digest", None)
        if written not in (None, digest(metadata)):  # absent in old corpora
            raise ValueError("corpus.json was altered")
        if metadata["schema"] != SCHEMA or (folder / "held_out.jsonl").stat().st_size != held_out["bytes"]:
            raise ValueError("its held-out documents are incomplete")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"the corpus in {folder} cannot be used: {error}", _RECOVERY_HINT) from error
    return metadata


# Preparing.


def prepare(
    source: Source,
    *,
    tokenizer: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    console: Console | None = None,
) -> Corpus:
    """The corpus of a source, from the cache if possible; otherwise it is read, split and packed.

    `tokenizer` is the `[tokenizer]` table of the recipe, `options` its `[data]` table. Processes that need the same
    corpus wait for each other. A damaged corpus in the cache is prepared again, with a warning.
    """
    console = console or Console()
    chosen = Options.of(options or {})
    fixed = None if is_trained(tokenizer) else build(**_build_options(tokenizer))
    key = _cache_key(source, chosen, tokenizer, fixed)
    place = _corpus_folder(key, folder)
    with file_lock(place, lambda: console.print("Waiting for another process that prepares the same corpus.")):
        if corpus := _load_cached(place, console):
            return corpus
        with atomic_folder(place) as part:
            _Preparation(source, chosen, part, console).run(fixed, tokenizer, key)
        return Corpus(place)


def is_prepared(source: Source, *, tokenizer: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether the corpus is in the cache. Reads no document and uses no network."""
    if not is_available_offline(tokenizer):
        return False
    fixed = None if is_trained(tokenizer) else build(**_build_options(tokenizer))
    return _corpus_folder(_cache_key(source, Options.of(options), tokenizer, fixed)).is_dir()


def _corpus_folder(key: Mapping[str, Any], folder: Path | None = None) -> Path:
    return (folder or cache_folder() / "data") / digest(key)[:32]


def _build_options(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: table[key] for key in ("kind", "vocab_size", "ranks", "model") if key in table}


def _cache_key(
    source: Source, options: Options, tokenizer: Mapping[str, Any], fixed: Tokenizer | None
) -> dict[str, Any]:
    """The cache key: everything that determines a corpus, as JSON values."""
    trained = {"rule": TRAINING_RULES.get(tokenizer["kind"]), "vocab_size": tokenizer.get("vocab_size")}
    return {
        "schema": SCHEMA,
        "source": source.name,
        "documents": source.fingerprint(),
        "options": options.key(),
        "tokenizer": fixed.fingerprint if fixed else trained,
    }


def _load_cached(place: Path, console: Console) -> Corpus | None:
    if not place.exists():
        return None
    try:
        corpus = Corpus(place)
        if corpus.train.tokens > LARGE:
            console.progress("Verifying the checksums of the packed corpus.")
        corpus.verify()
        return corpus
    except (CorruptError, DataError) as error:
        console.warn(f"{error.message}; it is prepared again")
        return None


_NO_TEXT = "Every document is empty or held out, or there are none."


@dataclass
class _Preparation:
    """The preparation of one corpus in one folder."""

    source: Source
    options: Options
    folder: Path
    console: Console

    def run(self, fixed: Tokenizer | None, spec: Mapping[str, Any], key: Mapping[str, Any]) -> None:
        tokenizer = fixed or self._train(spec)
        tokenizer.save(self.folder / "tokenizer")
        packers = {split: Packer(self.folder / split, tokenizer) for split in ("train", "held_out")}
        kept = self.folder / "held_out.jsonl"
        with kept.open("w", encoding="utf-8") as text:
            sieve = self._pack(packers, text)
        packed = {
            split: packer.close(split=split, source=key["documents"], options=key["options"])
            for split, packer in packers.items()
        }
        _check_splits(self.source, self.options, packed)
        metadata = {
            "schema": SCHEMA,
            "key": key,
            "counts": sieve.counts(packed),
            "held_out": {"bytes": kept.stat().st_size, "sha256": file_digest(kept)},
        }
        write_json(self.folder / "corpus.json", {**metadata, "digest": digest(metadata)})

    def _train(self, spec: Mapping[str, Any]) -> Tokenizer:
        if next(self._training_texts(), None) is None:
            raise DataError(f"{_describe(self.source)} gives no text for training", _NO_TEXT)
        self.console.progress("Training the tokenizer.")
        return build(**_build_options(spec), texts=self._training_texts)

    def _training_texts(self) -> Iterator[str]:
        for size, text in training_texts(self.source, self.options):
            if size >= 1e6:
                self.console.progress(f"Reading text for the tokenizer: {size / 1e6:,.1f} MB so far.")
            yield text

    def _pack(self, packers: Mapping[str, Packer], held_out: TextIO) -> DocumentSplitter:
        sieve = DocumentSplitter(self.source, self.options)
        wanted = self.options.tokens
        for count, (split, document) in enumerate(sieve, start=1):
            packers[split].add(document.text)
            if split == "held_out":
                held_out.write(json.dumps(asdict(document), ensure_ascii=False, default=str) + "\n")
            if wanted is not None and packers["train"].reaches(wanted):
                break
            if count % 1000 == 0:
                of = "" if wanted is None else f" of {wanted:,}"
                self.console.progress(
                    f"Packing: {count:,} documents, about {packers['train'].about:,}{of} tokens so far."
                )
        return sieve


def training_texts(
    source: Source, options: Options, split: str = "train", most: int = TRAINING_BYTES
) -> Iterator[tuple[int, str]]:
    """The first texts of a split, each with the number of bytes so far; for training a tokenizer."""
    read = 0
    for which, document in DocumentSplitter(source, options):
        if which == split:
            read += utf8_size(document.text)
            yield read, document.text
        if read >= most:
            return


def _check_splits(source: Source, options: Options, packed: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise DataError if one of the splits has no documents."""
    train, held_out = packed["train"]["documents"], packed["held_out"]["documents"]
    if not train + held_out:
        raise DataError(f"{_describe(source)} gives no text", _NO_TEXT)
    if not held_out:
        those = "the only document" if train == 1 else f"none of the {train:,} documents"
        raise DataError(
            f"{those} of {_describe(source)} is {'not ' if train == 1 else ''}held out, but judges need held-out text",
            f"Raise data.held_out (now {options.held_out}), or split documents: data.block_chars = 2000.",
        )
    if not train:
        raise DataError(
            f"{_describe(source)} leaves nothing for training: all {held_out:,} documents are held out",
            f"Lower data.held_out (now {options.held_out}), or split documents: data.block_chars = 2000.",
        )


def _describe(source: Source) -> str:
    chosen = source.options.model_dump(mode="json", exclude_defaults=True)
    keys = ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in chosen.items())
    return f"the source {source.name!r}" + (f" ({keys})" if keys else "")


# Splitting.


def _documents(source: Source, split: str) -> Iterator[Document]:
    """The documents of a source. Raises DataError for anything that is not a valid document."""
    for document in cast(Iterator[Any], source.documents(split)):
        if not isinstance(document, Document) or not isinstance(document.text, str):
            found = "a Document without text" if isinstance(document, Document) else f"a {type(document).__name__}"
            raise DataError(f"{_describe(source)} gave {found} instead of a Document", "Yield Document(id, text).")
        yield document


@dataclass
class DocumentSplitter:
    """Reads a source once, drops empty documents and duplicates, and assigns the others to a split.

    If the source has its own held-out split, that is read first, so that none of its texts is used for training.
    """

    source: Source
    options: Options
    empty: int = 0
    duplicates: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def __iter__(self) -> Iterator[tuple[str, Document]]:
        own = "held_out" in self.source.splits
        if own:
            yield from (("held_out", document) for document, _ in self._unique("held_out"))
        for document, mark in islice(self._unique("train"), self.options.documents):
            yield "held_out" if not own and _fraction(mark) < self.options.held_out else "train", document

    def _unique(self, split: str) -> Iterator[tuple[Document, bytes]]:
        for document in _blocks(_documents(self.source, split), self.options.block_chars):
            if not document.text or document.text.isspace():
                self.empty += 1
                continue
            mark = _text_hash(document)
            if mark[:16] in self._seen:
                self.duplicates += 1
                continue
            self._seen.add(mark[:16])  # half of the hash identifies a document and saves memory
            yield document, mark

    def counts(self, packed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The number of documents, tokens and bytes of each split, and of dropped documents."""
        sizes = {
            split: {key: manifest[key] for key in ("documents", "tokens", "bytes")}
            for split, manifest in packed.items()
        }
        return {**sizes, "duplicates": self.duplicates, "empty": self.empty}


def held_out(text: str, share: float) -> bool:
    """Whether a text is held out at this share, by its hash."""
    return _fraction(_text_hash(Document("", text))) < share


def _text_hash(document: Document) -> bytes:
    """The hash that identifies a text and decides its split. Computed in pieces, because a text may be large."""
    state = hashlib.sha256(SALT)
    try:
        for start in range(0, len(document.text), HASH_CHARS):
            state.update(document.text[start : start + HASH_CHARS].encode("utf-8"))
    except UnicodeEncodeError as error:
        raise DataError(
            f"the document {document.id!r} contains a lone surrogate (half a character), which cannot be stored",
            "Fix or remove that document.",
        ) from error
    return state.digest()


def _fraction(mark: bytes) -> float:
    return int.from_bytes(mark[:8], "big") / 2**64


def _blocks(documents: Iterable[Document], limit: int | None) -> Iterator[Document]:
    for document in documents:
        if limit is None or len(document.text) <= limit:
            yield document
            continue
        for i, text in enumerate(cut(document.text, limit)):
            yield Document(f"{document.id}.{i}", text, document.meta)


def cut(text: str, limit: int) -> Iterator[str]:
    """Split a text into blocks of at most `limit` characters, before white space if possible."""
    start = 0
    while len(text) - start > limit:
        stop = start + limit
        while stop > start and not text[stop].isspace():
            stop -= 1
        stop = stop if stop > start else start + limit
        yield text[start:stop]
        start = stop
    yield text[start:]


# Answers of the teacher.


def pack_texts(
    pairs: Iterable[tuple[str, str, bool]], tokenizer: Tokenizer, folder: Path, learn_prompts: bool = False
) -> Stream:
    """Pack the answers of a teacher, given as (prompt, continuation, finished), for training.

    Prompt and continuation are encoded together, so that they are tokenized like any text. Tokens that contain a byte
    of the prompt have weight 0, unless `learn_prompts` is set. Only a finished answer is followed by the end of text.
    The text after an unfinished answer is not its continuation, so its first token has weight 0, too.
    """
    with atomic_folder(folder) as part:
        packer = Packer(part, tokenizer, weighted=True)
        after_unfinished = False
        for pair, tokens in _encode(pairs, tokenizer):
            prompt, _, finished = pair
            inside = 0 if learn_prompts else utf8_size(prompt)
            lengths = tokenizer.lengths[tokens]
            weights = (np.cumsum(lengths) - lengths >= inside).astype(np.uint8)
            weights[:1] &= not after_unfinished
            end = [tokenizer.end_of_text] if finished else []
            packer.add_tokens(np.append(tokens, end).astype(np.uint32), np.append(weights, [1] * len(end)))
            after_unfinished = not finished
        if not packer.documents:
            raise DataError("the teacher wrote no text that can be used for training", "Check its answers.")
        packer.close(from_teacher=True, learn_prompts=learn_prompts)
    return Stream(folder)


def _encode(
    pairs: Iterable[tuple[str, str, bool]], tokenizer: Tokenizer
) -> Iterator[tuple[tuple[str, str, bool], Any]]:
    nonempty = ((prompt, text, finished) for prompt, text, finished in pairs if prompt + text)
    while group := list(islice(nonempty, ANSWERS_AT_ONCE)):
        arrays = tokenizer.encode_arrays([prompt + text for prompt, text, _ in group])
        yield from zip(group, arrays, strict=True)
