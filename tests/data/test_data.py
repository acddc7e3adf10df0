"""From documents to batches: nothing is lost, nothing leaks, nothing is read twice, and damage is noticed."""

from __future__ import annotations

import gzip
import json
import lzma
import multiprocessing
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from distillkit_plugins.hub import Hub
from distillkit_plugins.tales import Tales
from distillkit_plugins.text import Text
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core.console import Console
from distillkit.core.errors import CorruptError, DataError, UsageError
from distillkit.core.records import Document
from distillkit.data.batches import Ahead, Batches, sequential
from distillkit.data.corpus import Corpus, cut, pack_texts, prepare
from distillkit.data.downloads import Download, Kept
from distillkit.data.shards import Packer, Stream
from distillkit.data.tokenizer import END_OF_TEXT, PUBLISHED, Tokenizer, train_bpe
from distillkit.plugins.interfaces import Source
from support import hub_server
from support.paths import SHARED

DATA = SHARED / "data"
AUSTEN = DATA / "austen_four_novels.txt.xz"

STORIES = [
    f"Story {i}: the fox number {i * 7} ran {'far and ' * (i % 5)}home. Ünïcode {chr(0x3B1 + i % 20)} 漢."
    for i in range(400)
]
BPE = {"kind": "bpe", "vocab_size": 300}


class Listed(Source):
    """Documents from a list, counting how often they are read."""

    name = "listed"

    def __init__(self, train: list[str], held_out: list[str] | None = None) -> None:
        super().__init__()
        self.texts = {"train": train, "held_out": held_out or []}
        self.splits = ("train", "held_out") if held_out is not None else ("train",)  # type: ignore[misc]
        self.read = 0

    def documents(self, split: str) -> Iterator[Document]:
        self.read += 1
        for i, text in enumerate(self.texts[split]):
            yield Document(f"{split}:{i}", text)

    def fingerprint(self) -> Any:
        return repr(self.texts)


class Said(Console):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, text: str) -> None:
        self.lines.append(text)

    warn = print


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(iter(STORIES), 300)


@pytest.fixture(scope="module")
def wide(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer("wide", tokenizer.pattern, tokenizer.ranks, {END_OF_TEXT: 70_000})


def packed(folder: Path, tokenizer: Tokenizer, texts: list[str], limit: int = 64) -> Stream:
    packer = Packer(folder, tokenizer, limit=limit)
    for text in texts:
        packer.add(text)
    packer.close()
    return Stream(folder)


def flat(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return [token for text in texts for token in [*tokenizer.encode(text), tokenizer.end_of_text]]


# Packed files.


def test_packed_tokens_are_the_documents_each_with_its_end(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stream = packed(tmp_path, tokenizer, STORIES)
    assert stream.read(0, stream.tokens).tolist() == flat(tokenizer, STORIES)
    assert list(stream.texts(tokenizer)) == STORIES
    assert stream.document_bytes.tolist() == [len(story.encode()) for story in STORIES]
    assert (stream.documents, stream.bytes) == (400, sum(len(story.encode()) for story in STORIES))


def test_a_file_holds_no_more_tokens_than_its_bound(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stream = packed(tmp_path, tokenizer, STORIES, limit=1000)
    counts = [file["count"] for file in stream.manifest["files"]["tokens"]]
    assert len(counts) > 2
    assert set(counts[:-1]) == {1000}
    assert sum(counts) == stream.tokens


def test_small_vocabularies_take_two_bytes_a_token_and_large_ones_four(
    tmp_path: Path, tokenizer: Tokenizer, wide: Tokenizer
) -> None:
    for name, chosen, width in (("two", tokenizer, 2), ("four", wide, 4)):
        stream = packed(tmp_path / name, chosen, STORIES, limit=10**6)
        assert (tmp_path / name / "tokens-00000.bin").stat().st_size == width * stream.tokens
        assert stream.read(0, stream.tokens).tolist() == flat(chosen, STORIES)


def test_a_document_longer_than_a_piece_is_packed_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = " ".join(STORIES) * 60
    stream = packed(tmp_path, tokenizer, ["short", long, "short"], limit=10**6)
    assert len(list(tokenizer.pieces(long))) > 3
    assert list(stream.texts(tokenizer)) == ["short", long, "short"]
    assert stream.read(0, stream.tokens).tolist() == flat(tokenizer, ["short", long, "short"])


@pytest.mark.parametrize("damage", ["short", "gone", "manifest", "no manifest", "not JSON"])
def test_a_damaged_folder_is_noticed_when_it_is_opened(tmp_path: Path, tokenizer: Tokenizer, damage: str) -> None:
    packed(tmp_path, tokenizer, STORIES)
    tokens, manifest = tmp_path / "tokens-00000.bin", tmp_path / "manifest.json"
    if damage == "short":
        tokens.write_bytes(tokens.read_bytes()[:-1])
    elif damage == "gone":
        tokens.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text().replace('"documents": 400', '"documents": 401'))
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{")
    with pytest.raises(CorruptError, match="Delete that folder"):
        Stream(tmp_path)


def test_a_changed_token_is_noticed_when_checksums_are_asked_for(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stream = packed(tmp_path, tokenizer, STORIES)
    stream.verify()
    file = tmp_path / "tokens-00001.bin"
    file.write_bytes(b"\1" + file.read_bytes()[1:])
    with pytest.raises(CorruptError, match=r"tokens-00001\.bin has changed"):
        Stream(tmp_path).verify()


# Windows and batches.


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    context=st.integers(1, 17),
    batch_size=st.integers(1, 7),
    seed=st.integers(-5, 5),
)
def test_an_epoch_has_every_token_as_a_target_once(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    sizes: list[int],
    context: int,
    batch_size: int,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("epoch")
    texts = ["abcdefghij"[:size] * (size // 10 + 1) for size in sizes]
    streams = [packed(folder / str(i), tokenizer, [text], limit=5) for i, text in enumerate(texts)]
    expected = Counter(token for text in texts for token in flat(tokenizer, [text])[1:])
    if not expected:
        return
    batches = Batches(streams, context, batch_size, seed)
    steps = batches.windows  # that many steps are `batch_size` whole epochs
    seen: Counter[int] = Counter()
    for step in range(steps):
        batch = batches.batch(step)
        assert batch.inputs.shape == batch.weight.shape == (batch_size, context)
        seen.update(batch.hard[batch.weight > 0].tolist())
    assert batches.epochs(steps) == batch_size
    assert seen == Counter({token: count * batch_size for token, count in expected.items()})


def test_a_target_is_the_token_after_its_input(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stream = packed(tmp_path, tokenizer, STORIES)
    tokens = flat(tokenizer, STORIES)
    read = [(b.inputs[i], b.hard[i], b.weight[i]) for b in sequential(stream, 16, 3) for i in range(3)]
    inputs = [int(t) for row, _, weight in read for t in row[weight > 0]]
    targets = [int(t) for _, row, weight in read for t in row[weight > 0]]
    assert inputs == tokens[:-1]
    assert targets == tokens[1:]


def test_a_batch_is_a_function_of_seed_and_step_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    streams = [packed(tmp_path, tokenizer, STORIES)]
    first = Batches(streams, 16, 8, 1)
    ahead = [first.batch(step).inputs for step in range(first.windows // 2)]
    again = Batches(streams, 16, 8, 1)
    for step in reversed(range(len(ahead))):
        np.testing.assert_array_equal(again.batch(step).inputs, ahead[step])
    assert not np.array_equal(Batches(streams, 16, 8, 2).batch(0).inputs, ahead[0])
    assert first.fingerprint == again.fingerprint != Batches(streams, 16, 8, 2).fingerprint


def test_epochs_come_in_different_orders(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stream = packed(tmp_path, tokenizer, STORIES)
    batches = Batches([stream], 16, stream.windows(16), 0)
    assert not np.array_equal(batches.batch(0).inputs, batches.batch(1).inputs)
    assert sorted(map(tuple, batches.batch(0).hard)) == sorted(map(tuple, batches.batch(1).hard))


def test_the_parts_of_a_batch_make_the_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    batches = Batches([packed(tmp_path, tokenizer, STORIES)], 16, 8, 0)
    parts = [batches.rows(3, 0, 3), batches.rows(3, 3, 8)]
    for name in ("inputs", "hard", "weight", "from_teacher"):
        whole = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(whole, getattr(batches.batch(3), name))


def test_batches_made_ahead_are_the_same_whatever_is_asked_for() -> None:
    asked: list[int] = []

    def batch(step: int) -> Any:
        asked.append(step)
        return f"batch {step}"

    ahead = Ahead(batch, 6)
    assert [ahead(step) for step in (2, 3, 4, 0, 5)] == [f"batch {step}" for step in (2, 3, 4, 0, 5)]
    assert max(asked) == 5  # none after the last
    assert asked[:4] == [2, 3, 4, 5]


def test_batches_say_their_types(tmp_path: Path, tokenizer: Tokenizer) -> None:
    batch = Batches([packed(tmp_path, tokenizer, STORIES)], 16, 8, 0).batch(0)
    types = [str(getattr(batch, name).dtype) for name in ("inputs", "hard", "weight", "from_teacher")]
    assert types == ["int32", "int32", "float32", "float32"]


def test_validation_stops_at_its_limit(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stream = packed(tmp_path, tokenizer, STORIES)
    assert len(list(sequential(stream, 16, 4, 3))) == 3
    assert len(list(sequential(stream, 16, 4))) == -(-stream.windows(16) // 4)


def test_nothing_to_train_on_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        Batches([packed(tmp_path, tokenizer, [])], 16, 4, 0)


# The teacher's words.


def test_prompts_are_read_and_answers_are_learnt(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stream = pack_texts([("Once upon", " a time.", True)], tokenizer, tmp_path / "t")
    tokens, weights = stream.read(0, stream.tokens), stream.weights(0, stream.tokens)
    assert tokens.tolist() == flat(tokenizer, ["Once upon a time."])
    assert tokenizer.decode(tokens[weights == 0]) == "Once upon"
    assert tokenizer.decode(tokens[weights == 1]) == f" a time.{END_OF_TEXT}"
    assert stream.from_teacher
    assert Batches([stream], 4, 1, 0).batch(0).from_teacher.all()


def test_prompts_are_learnt_too_if_asked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pairs = [("Once upon", " a time.", True), ("The f", "ox ran", False), ("One", " day.", True)]
    stream = pack_texts(pairs, tokenizer, tmp_path / "t", learn_prompts=True)
    tokens, weights = stream.read(0, stream.tokens), stream.weights(0, stream.tokens)
    first = len(flat(tokenizer, ["Once upon a time."])) + len(tokenizer.encode("The fox ran"))
    assert np.flatnonzero(weights == 0).tolist() == [first]  # only what would seem to follow the answer that was cut
    assert tokenizer.decode(tokens[weights == 1]).startswith(f"Once upon a time.{END_OF_TEXT}The fox ran")


def test_a_token_that_is_partly_prompt_is_not_learnt(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(" fox") != tokenizer.encode(" f") + tokenizer.encode("ox")
    stream = pack_texts([("The f", "ox ran", True)], tokenizer, tmp_path / "t")
    tokens, weights = stream.read(0, stream.tokens), stream.weights(0, stream.tokens)
    assert tokens.tolist() == flat(tokenizer, ["The fox ran"])
    learnt = tokenizer.decode(tokens[weights == 1])
    assert f"ox ran{END_OF_TEXT}".endswith(learnt)
    assert not learnt.startswith(("f", " f"))


def test_what_follows_a_cut_answer_is_not_its_continuation(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pairs = [("", "The fox ran", False), ("", "Home again.", True), ("", "Away.", True)]
    stream = pack_texts(pairs, tokenizer, tmp_path / "t", learn_prompts=True)
    first = len(tokenizer.encode("The fox ran"))
    second = first + len(tokenizer.encode("Home again."))
    weights = stream.weights(0, stream.tokens)
    assert stream.read(0, stream.tokens).tolist().count(tokenizer.end_of_text) == 2
    assert weights[first] == 0
    assert weights[second + 1] == 1
    assert weights.sum() == stream.tokens - 1
    assert list(stream.texts(tokenizer)) == ["The fox ran", "Home again.", "Away."]


def test_a_teacher_that_wrote_nothing_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="wrote nothing"):
        pack_texts([("", "", True)], tokenizer, tmp_path / "t")


# From a source to a corpus.


def test_every_document_is_in_exactly_one_split(tmp_path: Path) -> None:
    corpus = prepare(Listed(STORIES), tokenizer=BPE, folder=tmp_path)
    train = list(corpus.train_text())
    held_out = [document.text for document in corpus.held_out_documents]
    assert sorted(train + held_out) == sorted(STORIES)
    assert list(corpus.held_out.texts(corpus.tokenizer)) == held_out
    assert 5 <= len(held_out) <= 40
    counts = corpus.counts
    assert counts["train"]["documents"] + counts["held_out"]["documents"] == 400
    assert counts["train"]["tokens"] == corpus.train.tokens
    assert counts["train"]["bytes"] == sum(len(text.encode()) for text in train)
    corpus.verify()


def test_a_text_is_held_out_wherever_it_stands(tmp_path: Path) -> None:
    one = prepare(Listed(STORIES), tokenizer=BPE, folder=tmp_path)
    other = prepare(Listed(["something new", *STORIES[::-1]]), tokenizer=BPE, folder=tmp_path)
    held_out = {document.text for document in one.held_out_documents}
    assert held_out - {"something new"} == {d.text for d in other.held_out_documents} - {"something new"}


def test_the_held_out_text_is_the_same_in_every_version_of_distillkit(tmp_path: Path) -> None:
    corpus = prepare(Listed(STORIES), tokenizer=BPE, folder=tmp_path)
    assert [document.id for document in corpus.held_out_documents][:5] == PINNED


# Never change these: what a bundled teacher was kept from must stay kept from it.
PINNED = ["train:52", "train:70", "train:82", "train:87", "train:88"]


def test_raising_the_share_only_adds_to_what_is_held_out(tmp_path: Path) -> None:
    few = prepare(Listed(STORIES), tokenizer=BPE, folder=tmp_path)
    many = prepare(Listed(STORIES), tokenizer=BPE, options={"held_out": 0.3}, folder=tmp_path)
    assert {d.text for d in few.held_out_documents} < {d.text for d in many.held_out_documents}


def test_empty_documents_and_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    source = Listed([*STORIES, "", " \n", *STORIES[:7]])
    corpus = prepare(source, tokenizer=BPE, folder=tmp_path)
    assert (corpus.counts["empty"], corpus.counts["duplicates"]) == (2, 7)
    assert corpus.train.documents + corpus.held_out.documents == 400


def test_a_split_of_its_own_is_used_and_never_trained_on(tmp_path: Path) -> None:
    source = Listed([*STORIES, "kept apart"], held_out=["kept apart", STORIES[0]])
    corpus = prepare(source, tokenizer=BPE, folder=tmp_path)
    assert [d.text for d in corpus.held_out_documents] == ["kept apart", STORIES[0]]
    assert list(corpus.train_text()) == STORIES[1:]
    assert corpus.counts["duplicates"] == 2


def test_only_as_many_documents_as_asked_for_are_taken(tmp_path: Path) -> None:
    options = {"documents": 100, "held_out": 0.2, "source": "listed"}
    corpus = prepare(Listed(["", *STORIES]), tokenizer=BPE, options=options, folder=tmp_path)
    assert corpus.train.documents + corpus.held_out.documents == 100
    assert {*corpus.train_text()} <= set(STORIES[:100])


@given(st.text(alphabet=st.sampled_from("ab é\n")), st.integers(1, 9))
def test_blocks_are_short_and_lose_nothing(text: str, limit: int) -> None:
    blocks = list(cut(text, limit))
    assert "".join(blocks) == text
    assert all(len(block) <= limit for block in blocks)
    for left, right in pairwise(blocks):
        assert right[0].isspace() or not any(letter.isspace() for letter in left[1:])


def test_long_documents_are_cut_into_blocks_that_are_split(tmp_path: Path) -> None:
    text = " ".join(STORIES)
    corpus = prepare(Listed([text]), tokenizer=BPE, options={"block_chars": 300}, folder=tmp_path)
    assert corpus.train.documents > 50
    assert corpus.held_out_documents[0].id.startswith("train:0.")
    assert corpus.held_out_documents[0].text in text


def test_what_was_prepared_is_not_read_again(tmp_path: Path) -> None:
    source = Listed(STORIES)
    first = prepare(source, tokenizer=BPE, folder=tmp_path)
    read = source.read
    again = prepare(source, tokenizer=BPE, folder=tmp_path)
    assert source.read == read
    assert again.fingerprint == first.fingerprint
    assert prepare(source, tokenizer={**BPE, "vocab_size": 290}, folder=tmp_path).fingerprint != first.fingerprint
    assert source.read > read


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = (prepare(Listed(STORIES), tokenizer=BPE, folder=tmp_path / name) for name in "ab")
    assert one.fingerprint == two.fingerprint


def test_a_damaged_corpus_is_prepared_again_and_that_is_said(tmp_path: Path) -> None:
    console = Said()
    first = prepare(Listed(STORIES), tokenizer=BPE, folder=tmp_path, console=console)
    (first.folder / "train" / "tokens-00000.bin").write_bytes(b"")
    again = prepare(Listed(STORIES), tokenizer=BPE, folder=tmp_path, console=console)
    assert again.fingerprint == first.fingerprint
    assert any("prepared again" in line for line in console.lines)


@pytest.mark.parametrize(
    "file", ["train/tokens-00000.bin", "held_out/documents-00000.bin", "held_out.jsonl", "corpus.json"]
)
def test_a_flipped_bit_in_a_corpus_has_it_prepared_again(tmp_path: Path, file: str) -> None:
    first, console = prepare(Listed(STORIES), tokenizer=BPE, folder=tmp_path), Said()
    content = bytearray((first.folder / file).read_bytes())
    content[content.index(b"2") if file == "corpus.json" else len(content) // 2] ^= 1
    (first.folder / file).write_bytes(content)
    again = prepare(Listed(STORIES), tokenizer=BPE, folder=tmp_path, console=console)
    assert again.fingerprint == first.fingerprint
    assert any("prepared again" in line for line in console.lines)


def test_changed_held_out_text_is_noticed(tmp_path: Path) -> None:
    corpus = prepare(Listed(STORIES), tokenizer=BPE, folder=tmp_path)
    file = corpus.folder / "held_out.jsonl"
    file.write_text(file.read_text().replace("fox", "box"))
    with pytest.raises(CorruptError, match=r"held_out\.jsonl has changed"):
        Corpus(corpus.folder).verify()


def _prepare_there(folder: str) -> str:
    return prepare(Listed(STORIES), tokenizer=BPE, folder=Path(folder)).fingerprint


@pytest.mark.slow
def test_processes_that_prepare_at_once_all_succeed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        prints = pool.map(_prepare_there, [str(tmp_path)] * 3, chunksize=1)
    assert len(set(prints)) == 1
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_a_failed_preparation_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        prepare(Listed(STORIES[:3]), tokenizer=BPE, folder=tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "gives no text"),
        (["", " "], {}, "gives no text"),
        (STORIES[:1], {"held_out": 0.0}, "the only document"),
        (STORIES[:3], {"held_out": 0.0}, "none of the 3 documents"),
        (STORIES[:9], {"held_out": 1.0}, "nothing to train on"),
        (["half \ud83d", *STORIES], {}, "lone surrogate"),
    ],
)
def test_a_corpus_that_cannot_be_used_says_why(
    tmp_path: Path, tokenizer: Tokenizer, texts: list[str], options: dict[str, Any], message: str
) -> None:
    tokenizer.save(tmp_path / "t")
    kind = {"kind": str(tmp_path / "t")}
    with pytest.raises(DataError, match=message) as caught:
        prepare(Listed(texts), tokenizer=kind, options=options, folder=tmp_path / "cache")
    assert caught.value.hint


def test_a_tokenizer_is_not_blamed_for_an_empty_corpus(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gives no text to train on"):
        prepare(Listed([]), tokenizer=BPE, folder=tmp_path)


def test_gpt2_and_its_other_name_share_a_corpus(tmp_path: Path) -> None:
    ranks = DATA / "gpt2.tiktoken"
    if not ranks.exists():
        pytest.skip("../shared/data/gpt2.tiktoken is not there")
    assert PUBLISHED["gpt2"] is PUBLISHED["r50k_base"]
    kinds = [{"kind": kind, "ranks": ranks} for kind in ("gpt2", "r50k_base")]
    folders = {prepare(Listed(STORIES), tokenizer=kind, folder=tmp_path).folder for kind in kinds}
    assert len(folders) == 1


# Sources.


def read(**options: Any) -> list[Document]:
    return list(Text(Text.Options(**options)).documents("train"))


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "one.txt"
    file.write_bytes(b"\xef\xbb\xbfline one\r\nline two\n")
    assert [(d.id, d.text) for d in read(path=str(file))] == [("one.txt:0", "line one\r\nline two\n")]


@pytest.mark.parametrize("packing", ["", ".gz", ".xz"])
def test_a_separator_parts_documents(tmp_path: Path, packing: str) -> None:
    file = tmp_path / f"many.txt{packing}"
    raw = f"\n{END_OF_TEXT}\n".join(STORIES).encode() + f"\n{END_OF_TEXT}\n".encode()
    {"": Path.write_bytes, ".gz": _gzip, ".xz": _xz}[packing](file, raw)
    assert [d.text for d in read(path=[str(file)], separator=END_OF_TEXT)] == STORIES


def test_an_end_of_text_parts_documents_unless_told_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "many.txt"
    file.write_text(f"one\n{END_OF_TEXT}\ntwo\n")
    assert [d.text for d in read(path=str(file))] == ["one", "two"]
    assert [d.text for d in read(path=str(file), separator="")] == [file.read_text()]


def _gzip(file: Path, raw: bytes) -> None:
    file.write_bytes(gzip.compress(raw))


def _xz(file: Path, raw: bytes) -> None:
    file.write_bytes(lzma.compress(raw))


@settings(deadline=None, max_examples=60)
@given(parts=st.lists(st.text(alphabet="ab|<é", max_size=6), min_size=1), chunk=st.integers(1, 7))
def test_a_separator_is_found_across_the_pieces_a_file_is_read_in(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], chunk: int
) -> None:
    file = tmp_path_factory.mktemp("parts") / "x.txt"
    text = "<|>".join(parts)
    file.write_text(text)
    expected = text.split("<|>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distillkit_plugins.text.CHUNK", chunk)
        found = [d.text for d in read(path=str(file), separator="<|>")]
    assert found == (expected if expected[-1] else expected[:-1])


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.xz"])
def test_json_lines_are_read_by_their_key(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows{suffix}"
    raw = "\n\n".join(json.dumps({"story": story}) for story in STORIES).encode()
    {"": Path.write_bytes, ".gz": _gzip, ".xz": _xz}[suffix.removeprefix(".jsonl")](file, raw)
    assert [d.text for d in read(path=str(file), field="story")] == STORIES


def test_parquet_is_read_by_its_column(tmp_path: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    file = tmp_path / "rows.parquet"
    parquet.write_table(arrow.table({"story": [*STORIES, None], "n": [*range(400), 0]}), file)
    assert [d.text for d in read(path=str(file), field="story")] == [*STORIES, ""]
    with pytest.raises(UsageError, match="no column 'text'"):
        read(path=str(file))
    with pytest.raises(UsageError, match="no text under 'n'"):
        read(path=str(file), field="n")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UsageError, match="cannot be read as parquet"):
        read(path=str(file))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(UsageError, match=r"distillkit\[parquet\]"):
        read(path=str(tmp_path / "rows.parquet"))
    with pytest.raises(UsageError, match=r"distillkit\[parquet\]"):
        Text(Text.Options(path=f"{tmp_path}/*")).check()
    Text(Text.Options(path=f"{tmp_path}/*.txt")).check()


def test_globs_find_files_in_order_each_once(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(name)
    (tmp_path / "c" / "a.txt").write_text("other a")
    found = read(path=[f"{tmp_path}/b/*.txt", f"{tmp_path}/**/*.txt"])
    assert [d.text for d in found] == ["b", "a", "other a", "c"]
    assert len({d.id for d in found}) == 4


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.txt", b"good " * 5 + b"\xff bad", r"a\.txt is not UTF-8: byte 25 is 0xff"),
        ("b.txt", b"one<|>two\0", r"b\.txt is a binary file: a NUL at byte 9"),
        ("c.jsonl", b'{"text": "a"}\n{"text": \n', r"c\.jsonl, line 2 is not JSON"),
        ("d.jsonl", b'{"story": "a"}', r"line 1 has no text under 'text' \(it has: story\)"),
        ("e.jsonl", b"[1]", "no object"),
        ("f.txt.gz", gzip.compress(b"cut short" * 1000, mtime=0)[:40], r"f\.txt\.gz cannot be read"),
        ("g.txt.xz", lzma.compress(b"cut short" * 1000)[:40], r"g\.txt\.xz cannot be read"),
        ("h.txt.gz", b"not gzip", r"h\.txt\.gz cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(
    tmp_path: Path, name: str, raw: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UsageError, match=message) as caught:
        read(path=str(tmp_path / name), separator="<|>")
    assert caught.value.hint


def test_a_missing_file_is_known_before_anything_is_read(tmp_path: Path) -> None:
    for files in (str(tmp_path / "no.txt"), [f"{tmp_path}/*.none"], []):
        with pytest.raises(UsageError, match=r"data\.path"):
            Text(Text.Options(path=files))


def test_the_fingerprint_of_files_follows_their_content(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    first = Text(Text.Options(path=str(file))).fingerprint()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.txt").write_text("one")
    assert Text(Text.Options(path=str(tmp_path / "b" / "a.txt"))).fingerprint() == first
    file.write_text("two")
    assert Text(Text.Options(path=str(file))).fingerprint() != first


def test_tales_are_the_same_every_time_and_others_for_another_seed() -> None:
    def told(**options: int) -> list[Document]:
        return list(Tales(Tales.Options(stories=20, **options)).documents("train"))

    assert told() == told()
    assert told()[3].id == "tales:3"
    assert not {d.text for d in told()} & {d.text for d in told(seed=1)}


def test_the_fingerprint_of_tales_names_the_generator() -> None:
    assert len(Tales().fingerprint()["generator"]) == 64
    assert Tales().fingerprint() != Tales(Tales.Options(seed=1)).fingerprint()


@pytest.mark.skipif(not AUSTEN.exists(), reason="../shared/data/austen_four_novels.txt.xz is not there")
def test_four_novels_make_a_corpus(tmp_path: Path) -> None:
    source = Text(Text.Options(path=str(AUSTEN), separator=END_OF_TEXT))
    options = {"block_chars": 2000}
    corpus = prepare(source, tokenizer={"kind": "bpe", "vocab_size": 2048}, options=options, folder=tmp_path)
    assert corpus.train.bytes + corpus.held_out.bytes > 2_600_000
    assert 0.03 < corpus.held_out.documents / corpus.train.documents < 0.08
    assert corpus.counts["empty"] == 0


def test_importing_the_room_loads_nothing_heavy() -> None:
    heavy = ("mlx", "tiktoken", "tokenizers", "pyarrow", "pandas")
    code = (
        "import sys, distillkit.data.corpus, distillkit_plugins.text, distillkit_plugins.tales;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# Budgets.


@settings(deadline=None, max_examples=25)
@given(budget=st.integers(1, 9000), odd=st.booleans())
def test_a_budget_of_tokens_is_met_by_the_document_that_reaches_it(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, budget: int, odd: bool
) -> None:
    texts = [f"漢字 {i} 漢" * 9 for i in range(40)] if odd else STORIES
    packer = Packer(tmp_path_factory.mktemp("p"), tokenizer)
    taken = 0
    for text in texts:
        packer.add(text)
        taken += 1
        if packer.reaches(budget):
            break
    sizes = [len(tokenizer.encode(text)) + 1 for text in texts]
    needed = next((i + 1 for i in range(len(sizes)) if sum(sizes[: i + 1]) >= budget), len(texts))
    assert taken == needed
    assert packer.close()["tokens"] == sum(sizes[:needed])


def test_a_corpus_stops_at_its_budget_and_reads_no_further(tmp_path: Path) -> None:
    given: list[int] = []

    class Endless(Source):
        name = "endless"

        def documents(self, split: str) -> Iterator[Document]:
            for i in range(10**9):
                given.append(i)
                yield Document(str(i), f"{i}: {STORIES[i % 400]}")

    table = {"kind": "gpt2", "ranks": str(DATA / "gpt2.tiktoken")}
    if not Path(table["ranks"]).exists():
        pytest.skip("../shared/data/gpt2.tiktoken is not there")
    corpus = prepare(Endless(), tokenizer=table, options={"tokens": 5000, "held_out": 0.2}, folder=tmp_path)
    assert 5000 <= corpus.train.tokens < 5100
    assert len(given) == corpus.train.documents + corpus.held_out.documents
    assert prepare(Endless(), tokenizer=table, options={"tokens": 5000, "held_out": 0.2}, folder=tmp_path)
    assert len(given) == corpus.train.documents + corpus.held_out.documents


def test_progress_says_how_much_of_a_budget_there_is(tmp_path: Path, tokenizer: Tokenizer) -> None:
    class Progress(Said):
        def progress(self, text: str, last: bool = False) -> None:
            self.lines.append(text)

    tokenizer.save(tmp_path / "t")
    texts, console = [f"{i}: {text}" for i in range(6) for text in STORIES], Progress()
    prepare(
        Listed(texts),
        tokenizer={"kind": str(tmp_path / "t")},
        options={"tokens": 10**6},
        folder=tmp_path / "c",
        console=console,
    )
    counts = [
        re.fullmatch(r"Packing: ([\d,]+) documents, about ([\d,]+) of 1,000,000 tokens so far\.", line)
        for line in console.lines
    ]
    assert [match and match[1] for match in counts] == ["1,000", "2,000"]


def test_a_corpus_without_a_budget_is_the_one_that_it_was_before_there_were_budgets() -> None:
    from distillkit.data.corpus import Options

    assert Options.of({}).key() == {"documents": None, "held_out": 0.05, "block_chars": None}
    assert Options.of({"tokens": 7}).key()["tokens"] == 7


# What is fetched.


class Stream9:
    """Nine texts, from some place on; it breaks before a text, once."""

    def __init__(self, state: Any, breaks: list[int]) -> None:
        self.at, self.breaks = state or 0, breaks

    def __iter__(self) -> Iterator[str]:
        while self.at < 9:
            if self.at in self.breaks:
                self.breaks.remove(self.at)
                raise DataError("the line went dead")
            self.at += 1
            yield f"text {self.at - 1} ünï\n"

    def state(self) -> Any:
        return self.at


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cache"


ALL9 = [f"text {i} ünï\n" for i in range(9)]


def download(breaks: list[int], opened: list[Any], asked: list[int]) -> Download:
    def open_at(origin: Any, state: Any) -> Stream9:
        opened.append(state)
        assert origin == "commit"
        return Stream9(state, breaks)

    def ask() -> str:
        asked.append(1)
        return "commit"

    return Download("nine", "identity", open_at, ask, shard_chars=30)


@pytest.mark.usefixtures("cache")
@settings(deadline=None, max_examples=40)
@given(breaks=st.lists(st.integers(0, 8), max_size=4), stops=st.lists(st.integers(1, 9), max_size=4))
def test_whatever_stops_a_download_nothing_is_lost_or_fetched_twice(
    tmp_path_factory: pytest.TempPathFactory, breaks: list[int], stops: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILLKIT_HOME", str(tmp_path_factory.mktemp("home")))
        opened: list[Any] = []
        asked: list[int] = []
        left = sorted(breaks)
        for stop in stops:  # a budget, or a line that goes dead
            try:
                found = list(islice(download(left, opened, asked), stop))
                assert found == ALL9[:stop]
            except DataError:
                pass
        for _ in range(len(left)):
            try:
                list(download(left, opened, asked))
            except DataError:
                continue
        whole = download(left, opened, asked)
        assert list(whole) == ALL9
        assert whole.done
        times = len(opened)
        assert list(download([0], opened, asked)) == ALL9  # from the disk alone
        assert len(opened) == times
        assert len(asked) <= 1 + sum(state is None for state in opened[1:])


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is full")], ids=["Ctrl-C", "a full disk"])
@pytest.mark.parametrize("border", [0, 1, 2])
def test_a_download_that_is_stopped_while_a_shard_is_noted_has_every_text_once(
    monkeypatch: pytest.MonkeyPatch, border: int, error: BaseException
) -> None:
    note, errors = Download._note, [error]

    def stopped(self: Download, kept: Kept) -> None:
        if len(kept.shards) == border + 1 and errors:
            raise errors.pop()
        note(self, kept)

    monkeypatch.setattr(Download, "_note", stopped)
    with pytest.raises(type(error)):
        list(download([], [], []))
    assert not errors
    assert list(download([], [], [])) == ALL9
    assert list(download([], [], [])) == ALL9  # from the disk alone


@pytest.mark.usefixtures("cache")
def test_a_shard_that_was_altered_is_noticed_and_named() -> None:
    one = download([], [], [])
    list(one)
    shard = next(one.folder.glob("texts-00001*"))
    shard.write_bytes(gzip.compress(b'"other"\n'))
    with pytest.raises(CorruptError, match=shard.name) as caught:
        list(download([], [], []))
    assert str(one.folder) in caught.value.hint
    (one.folder / "index.json").write_text("{")
    with pytest.raises(CorruptError, match=r"index\.json"):
        list(download([], [], []))


@pytest.mark.usefixtures("cache")
def test_two_that_fetch_the_same_do_not_fetch_at_once() -> None:
    first = iter(download([], [], []))
    next(first)
    with pytest.raises(DataError, match="another process"):
        next(iter(download([], [], [])))
    first.close()  # type: ignore[attr-defined]
    assert list(download([], [], [])) == ALL9


# The datasets library.


def library() -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict({"text": STORIES, "other": list(range(len(STORIES)))})


def copies(folder: Path) -> dict[str, Path]:
    """One dataset in the library's own formats."""
    whole = library()
    (folder / "parquet").mkdir()
    whole.select(range(150)).to_parquet(folder / "parquet" / "train-0.parquet")
    whole.select(range(150, 400)).to_parquet(folder / "parquet" / "train-1.parquet")
    (folder / "json").mkdir()
    whole.to_json(folder / "json" / "rows.jsonl")
    whole.save_to_disk(folder / "disk")
    return {
        "a folder of parquet": folder / "parquet",
        "a folder of JSON lines": folder / "json",
        "a file of JSON lines": folder / "json" / "rows.jsonl",
        "what save_to_disk wrote": folder / "disk",
    }


def hub(**options: Any) -> Hub:
    return Hub(Hub.Options(**options))


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.usefixtures("cache")
def test_a_local_copy_is_read_in_each_format_of_the_library(peer: Callable[[str], ModuleType], tmp_path: Path) -> None:
    peer("datasets")
    for name, path in copies(tmp_path).items():
        source = hub(path=str(path))
        assert source.here, name
        assert [document.text for document in source.documents("train")] == STORIES, name
        first = next(iter(source.documents("train")))
        assert first.id == "train:0"
    assert len({json.dumps(hub(path=str(path)).fingerprint()) for path in copies_of(tmp_path)}) == 3


def copies_of(folder: Path) -> list[Path]:
    return [folder / "parquet", folder / "json", folder / "disk"]


@pytest.mark.peer
def test_a_stream_of_the_library_goes_on_where_it_was_left(
    peer: Callable[[str], ModuleType], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer("datasets")
    monkeypatch.setattr(Download.__init__, "__defaults__", (Download.__init__.__defaults__[0], 2000))  # small shards
    for path in copies_of_made(tmp_path):
        source = hub(path=str(path))
        assert [d.text for d in islice(source.documents("train"), 70)] == STORIES[:70]
        (folder,) = [one for one in (cache / "downloads").iterdir() if one.name.startswith(path.name)]
        index = json.loads((folder / "index.json").read_text())
        assert sum(shard["documents"] for shard in index["shards"]) == 70
        assert len(index["shards"]) > 2
        assert index["state"] is not None
        assert [d.text for d in source.documents("train")] == STORIES
        assert json.loads((folder / "index.json").read_text())["done"]


def copies_of_made(folder: Path) -> list[Path]:
    copies(folder)
    return copies_of(folder)


@pytest.mark.peer
@pytest.mark.usefixtures("cache")
def test_a_split_of_its_own_is_held_out(peer: Callable[[str], ModuleType], tmp_path: Path) -> None:
    datasets = peer("datasets")
    whole = library()
    both = datasets.DatasetDict({"train": whole.select(range(300)), "validation": whole.select(range(300, 400))})
    both.save_to_disk(tmp_path / "both")
    source = hub(path=str(tmp_path / "both"), held_out_split="validation")
    corpus = prepare(source, tokenizer=BPE, folder=tmp_path / "corpora")
    assert (corpus.train.documents, corpus.held_out.documents) == (300, 100)
    assert [document.text for document in corpus.held_out_documents] == STORIES[300:]


@pytest.mark.peer
@pytest.mark.usefixtures("cache")
def test_what_a_dataset_has_not_is_said(peer: Callable[[str], ModuleType], tmp_path: Path) -> None:
    peer("datasets")
    (tmp_path / "x.bin").write_bytes(b"x")
    parquet = copies(tmp_path)["a folder of parquet"]
    wrong = {
        "no column 'story'": {"path": str(parquet), "column": "story"},
        "holds no text": {"path": str(parquet), "column": "other"},
        "nope": {"path": str(parquet), "split": "nope"},
        "in no format": {"path": str(tmp_path / "x.bin")},
    }
    for message, options in wrong.items():
        with pytest.raises(DataError, match=message):
            list(hub(**options).documents("train"))
    with pytest.raises(DataError, match="nothing in"):
        hub(path=str(tmp_path / "gone")).fingerprint()
    with pytest.raises(ValueError, match="expected dataset"):
        hub()
    assert hub(dataset="fineweb-edu", path=str(parquet)).fingerprint() == hub(path=str(parquet)).fingerprint()


@pytest.mark.peer
@pytest.mark.usefixtures("cache")
def test_a_hub_that_cannot_be_reached_says_how_to_do_without(
    peer: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer("datasets")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        source = hub(dataset="tinystories")
        assert not source.here
        with pytest.raises(DataError, match=r"'roneneldan/TinyStories' cannot be fetched") as caught:
            next(source.documents("train"))
    assert "data.source=text" in caught.value.hint


def test_ready_made_datasets_go_by_short_names() -> None:
    found = hub(dataset="fineweb-edu")
    assert (found.repository, found.config, found.column) == ("HuggingFaceFW/fineweb-edu", "sample-10BT", "text")
    assert hub(dataset="fineweb-edu", config="sample-100BT").config == "sample-100BT"
    assert hub(dataset="me/mine", column="story").fingerprint()["column"] == "story"


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="datasets") as caught:
        next(hub(dataset="tinystories").documents("train"))
    assert "distillkit[hub]" in caught.value.hint


# One word for files.


def test_path_is_the_word_and_files_its_former_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    assert [d.text for d in read(files=str(tmp_path / "a.txt"))] == ["one"]
    for wrong in ({}, {"path": "a", "files": "b"}):
        with pytest.raises(ValueError, match="expected path"):
            Text.Options(**wrong)


FROM_THE_HUB = """
import json, sys
from itertools import islice
from distillkit_plugins.hub import Hub
source = Hub(Hub.Options(dataset="me/mine"))
texts = [document.text for document in islice(source.documents("train"), int(sys.argv[1]))]
print(json.dumps([texts, source.here]))
"""


@pytest.mark.slow
@pytest.mark.peer
def test_a_hub_is_streamed_at_one_commit_however_often_it_is_gone_on_with(
    peer: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    peer("datasets")
    folder = copies(tmp_path)["a folder of parquet"]

    def fetch(count: int) -> Any:
        command = [sys.executable, "-c", FROM_THE_HUB, str(count)]
        home = {"HF_HOME": str(tmp_path / "theirs"), "DISTILLKIT_HOME": str(tmp_path / "ours")}
        environment = {**os.environ, "HF_ENDPOINT": server.url, **home}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with hub_server.serving() as server:
        old = {f"data/{file.name}": file.read_bytes() for file in sorted(folder.glob("*.parquet"))}
        server.commits["a" * 40] = old
        assert fetch(170) == [STORIES[:170], False]
        server.commits["b" * 40] = {"data/train-0.parquet": old["data/train-1.parquet"]}  # the dataset moves on
        assert fetch(10**6) == [STORIES, True]
        assert {commit for commit, _ in server.asked} == {"a" * 40}
        fetched = len(server.asked)
        assert fetch(10**6) == [STORIES, True]
        assert len(server.asked) == fetched
