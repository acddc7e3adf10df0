"""Documents to splits: read once, sorted, packed, and kept for every run that asks for the same again.

Which document is held out depends on its text alone: on its hash, never on a seed, a recipe or its place in
a file. So the same text is held out in every run, and a teacher that was trained under the same rule, the
bundled one for instance, never saw what its students are judged on.

Knows nothing of models, nor of how a source reads.
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
LARGE = 1 << 29  # tokens, of which a second or more goes into their checksum


@dataclass(frozen=True)
class Options:
    """The host's keys of the `[data]` table; the others are the source plugin's."""

    documents: int | None = None  # how many to take, after empty ones and duplicates are dropped
    tokens: int | None = None  # with which document to stop: the one that brings the train split to so many
    held_out: float = 0.05  # the share that is held out
    block_chars: int | None = None  # the longest a document may be before it is cut

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Options:
        """From the table of a recipe, whatever else stands in it."""
        return cls(**{key: table[key] for key in cls.__dataclass_fields__ if key in table})

    def key(self) -> dict[str, Any]:
        """What decides a corpus. A budget that is not set is left out, as in corpora from before there was one."""
        return {key: value for key, value in asdict(self).items() if key != "tokens" or value is not None}


class Corpus:
    """A prepared corpus: two packed splits, their tokenizer, and what was counted on the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = _facts(folder)
        self.counts: dict[str, Any] = facts["counts"]
        self._held_out_digest: str = facts["held_out"]["sha256"]
        self.train = Stream(folder / "train")
        self.held_out = Stream(folder / "held_out")
        self.tokenizer = Tokenizer.load(folder / "tokenizer")

    @property
    def fingerprint(self) -> str:
        """What decides training and judging: the tokens of both splits, and the tokenizer."""
        return digest([self.train.fingerprint, self.held_out.fingerprint, self.tokenizer.fingerprint])

    @cached_property
    def held_out_documents(self) -> list[Document]:
        """The documents that were kept from training, as they were written."""
        return [Document(**row) for row in read_jsonl(self.folder / "held_out.jsonl")]

    def train_text(self) -> Iterator[str]:
        """The documents that are trained on, read back from their tokens."""
        return self.train.texts(self.tokenizer)

    def verify(self) -> None:
        """Read every file and compare it with its checksum."""
        self.train.verify()
        self.held_out.verify()
        if file_digest(self.folder / "held_out.jsonl") != self._held_out_digest:
            raise CorruptError(f"{self.folder / 'held_out.jsonl'} has changed since it was written", _AGAIN)


_AGAIN = "Delete that folder; the corpus is prepared again when it is needed."


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = read_json(folder / "corpus.json")
        held_out, written = facts["held_out"], facts.pop("digest", None)
        if written not in (None, digest(facts)):  # corpora from before there was one have none
            raise ValueError("its record was altered")
        if facts["schema"] != SCHEMA or (folder / "held_out.jsonl").stat().st_size != held_out["bytes"]:
            raise ValueError("its held-out documents are not whole")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"the corpus in {folder} cannot be used: {error}", _AGAIN) from error
    return facts


# Preparing.


def prepare(
    source: Source,
    *,
    tokenizer: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    console: Console | None = None,
) -> Corpus:
    """The corpus of a source, from the cache where it lies there, and otherwise read, split and packed.

    `tokenizer` is the recipe's `[tokenizer]` table and `options` its `[data]` table. Two processes that want
    the same corpus wait for each other. One in the cache that was damaged is made again, and that is said.
    """
    console = console or Console()
    chosen = Options.of(options or {})
    fixed = None if is_trained(tokenizer) else build(**_spec(tokenizer))
    key = _key(source, chosen, tokenizer, fixed)
    place = _place(key, folder)
    with file_lock(place, lambda: console.print("Waiting for another process that prepares the same corpus.")):
        if corpus := _kept(place, console):
            return corpus
        with atomic_folder(place) as part:
            _Preparation(source, chosen, part, console).run(fixed, tokenizer, key)
        return Corpus(place)


def is_prepared(source: Source, *, tokenizer: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether such a corpus lies in the cache. Reads no document, and asks no network for a tokenizer."""
    if not is_available_offline(tokenizer):
        return False
    fixed = None if is_trained(tokenizer) else build(**_spec(tokenizer))
    return _place(_key(source, Options.of(options), tokenizer, fixed)).is_dir()


def _place(key: Mapping[str, Any], folder: Path | None = None) -> Path:
    return (folder or cache_folder() / "data") / digest(key)[:32]


def _spec(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: table[key] for key in ("kind", "vocab_size", "ranks", "model") if key in table}


def _key(source: Source, options: Options, tokenizer: Mapping[str, Any], fixed: Tokenizer | None) -> dict[str, Any]:
    """All that decides a corpus, as plain values: equal keys, equal corpora."""
    trained = {"rule": TRAINING_RULES.get(tokenizer["kind"]), "vocab_size": tokenizer.get("vocab_size")}
    return {
        "schema": SCHEMA,
        "source": source.name,
        "documents": source.fingerprint(),
        "options": options.key(),
        "tokenizer": fixed.fingerprint if fixed else trained,
    }


def _kept(place: Path, console: Console) -> Corpus | None:
    if not place.exists():
        return None
    try:
        corpus = Corpus(place)
        if corpus.train.tokens > LARGE:
            console.progress("Holding the packed corpus against its checksums.")
        corpus.verify()
        return corpus
    except (CorruptError, DataError) as error:
        console.warn(f"{error.message}; it is prepared again")
        return None


_NO_TEXT = "Every document is empty or held out, or there is none."


@dataclass
class _Preparation:
    """One reading of a source into one folder."""

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
        _insist(self.source, self.options, packed)
        facts = {
            "schema": SCHEMA,
            "key": key,
            "counts": sieve.counts(packed),
            "held_out": {"bytes": kept.stat().st_size, "sha256": file_digest(kept)},
        }
        write_json(self.folder / "corpus.json", {**facts, "digest": digest(facts)})

    def _train(self, spec: Mapping[str, Any]) -> Tokenizer:
        if next(self._training_texts(), None) is None:
            raise DataError(f"{_called(self.source)} gives no text to train on", _NO_TEXT)
        self.console.progress("Training the tokenizer.")
        return build(**_spec(spec), texts=self._training_texts)

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
    """The first texts of a split, with how many bytes have come by then: enough to train a tokenizer on."""
    read = 0
    for which, document in DocumentSplitter(source, options):
        if which == split:
            read += utf8_size(document.text)
            yield read, document.text
        if read >= most:
            return


def _insist(source: Source, options: Options, packed: Mapping[str, Mapping[str, Any]]) -> None:
    """Both splits have documents, or the reader is told how to get some."""
    train, held_out = packed["train"]["documents"], packed["held_out"]["documents"]
    if not train + held_out:
        raise DataError(f"{_called(source)} gives no text", _NO_TEXT)
    if not held_out:
        those = "the only document" if train == 1 else f"none of the {train:,} documents"
        raise DataError(
            f"{those} of {_called(source)} is {'not ' if train == 1 else ''}held out, and judges need some",
            f"Raise data.held_out (now {options.held_out}), or cut documents: data.block_chars = 2000.",
        )
    if not train:
        raise DataError(
            f"{_called(source)} leaves nothing to train on: all {held_out:,} documents are held out",
            f"Lower data.held_out (now {options.held_out}), or cut documents: data.block_chars = 2000.",
        )


def _called(source: Source) -> str:
    chosen = source.options.model_dump(mode="json", exclude_defaults=True)
    keys = ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in chosen.items())
    return f"the source {source.name!r}" + (f" ({keys})" if keys else "")


# Sorting.


def _documents(source: Source, split: str) -> Iterator[Document]:
    """The documents of a source, or its fault said plainly."""
    for document in cast(Iterator[Any], source.documents(split)):
        if not isinstance(document, Document) or not isinstance(document.text, str):
            found = "a Document without text" if isinstance(document, Document) else f"a {type(document).__name__}"
            raise DataError(f"{_called(source)} gave {found} where a Document was due", "Yield Document(id, text).")
        yield document


@dataclass
class DocumentSplitter:
    """Reads a source once, drops what is empty or was seen, and says of the rest to which split it belongs.

    A source with a held-out split of its own is read there first, so that none of it is trained on.
    """

    source: Source
    options: Options
    empty: int = 0
    duplicates: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def __iter__(self) -> Iterator[tuple[str, Document]]:
        own = "held_out" in self.source.splits
        if own:
            yield from (("held_out", document) for document, _ in self._fresh("held_out"))
        for document, mark in islice(self._fresh("train"), self.options.documents):
            yield "held_out" if not own and _fraction(mark) < self.options.held_out else "train", document

    def _fresh(self, split: str) -> Iterator[tuple[Document, bytes]]:
        for document in _blocks(_documents(self.source, split), self.options.block_chars):
            if not document.text or document.text.isspace():
                self.empty += 1
                continue
            mark = _mark(document)
            if mark[:16] in self._seen:
                self.duplicates += 1
                continue
            self._seen.add(mark[:16])  # half of the hash is plenty to tell documents apart, and half the memory
            yield document, mark

    def counts(self, packed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """What went where."""
        sizes = {
            split: {key: manifest[key] for key in ("documents", "tokens", "bytes")}
            for split, manifest in packed.items()
        }
        return {**sizes, "duplicates": self.duplicates, "empty": self.empty}


def held_out(text: str, share: float) -> bool:
    """Whether a text is held out at a share, by the rule for documents."""
    return _fraction(_mark(Document("", text))) < share


def _mark(document: Document) -> bytes:
    """The hash that tells a text from others and decides its split. Taken in pieces: a text may be huge."""
    state = hashlib.sha256(SALT)
    try:
        for start in range(0, len(document.text), HASH_CHARS):
            state.update(document.text[start : start + HASH_CHARS].encode("utf-8"))
    except UnicodeEncodeError as error:
        raise DataError(
            f"the document {document.id!r} holds half a character (a lone surrogate), which no file can hold",
            "Mend or leave out that document.",
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
    """A text in blocks of at most `limit` characters, each cut before white space where there is some."""
    start = 0
    while len(text) - start > limit:
        stop = start + limit
        while stop > start and not text[stop].isspace():
            stop -= 1
        stop = stop if stop > start else start + limit
        yield text[start:stop]
        start = stop
    yield text[start:]


# The teacher's words.


def pack_texts(
    pairs: Iterable[tuple[str, str, bool]], tokenizer: Tokenizer, folder: Path, learn_prompts: bool = False
) -> Stream:
    """Pack what a teacher wrote: (prompt, continuation, finished) each, as text the student reads and learns.

    Prompt and continuation are encoded together, so that tokens fall as in any text. A token with a byte of
    the prompt in it is not learnt, unless prompts are. Only a finished answer is followed by the end of text;
    what comes after one that was cut is not its continuation, so the first token there is not learnt either.
    """
    with atomic_folder(folder) as part:
        packer = Packer(part, tokenizer, weighted=True)
        after_a_cut = False
        for pair, tokens in _encoded(pairs, tokenizer):
            prompt, _, finished = pair
            inside = 0 if learn_prompts else utf8_size(prompt)
            lengths = tokenizer.lengths[tokens]
            weights = (np.cumsum(lengths) - lengths >= inside).astype(np.uint8)
            weights[:1] &= not after_a_cut
            end = [tokenizer.end_of_text] if finished else []
            packer.add_tokens(np.append(tokens, end).astype(np.uint32), np.append(weights, [1] * len(end)))
            after_a_cut = not finished
        if not packer.documents:
            raise DataError("the teacher wrote nothing that could be trained on", "Look at its answers.")
        packer.close(from_teacher=True, learn_prompts=learn_prompts)
    return Stream(folder)


def _encoded(
    pairs: Iterable[tuple[str, str, bool]], tokenizer: Tokenizer
) -> Iterator[tuple[tuple[str, str, bool], Any]]:
    told = ((prompt, text, finished) for prompt, text, finished in pairs if prompt + text)
    while group := list(islice(told, ANSWERS_AT_ONCE)):
        arrays = tokenizer.encode_arrays([prompt + text for prompt, text, _ in group])
        yield from zip(group, arrays, strict=True)
