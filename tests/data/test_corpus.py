"""Preparing a corpus: splits, duplicates, damage, budgets, and teacher texts as targets."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distillkit_plugins.text import Text
from hypothesis import given
from hypothesis import strategies as st

from distillkit.core.console import Console
from distillkit.core.errors import CorruptError, DataError
from distillkit.core.records import Document
from distillkit.data.batches import Batches
from distillkit.data.corpus import Corpus, cut, pack_texts, prepare
from distillkit.data.tokenizer import END_OF_TEXT, PUBLISHED, Tokenizer
from distillkit.plugins.interfaces import Source
from support.corpora import BPE, STORIES, tokens_of
from support.paths import SHARED

DATA = SHARED / "data"
AUSTEN = DATA / "austen_four_novels.txt.xz"


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


# The teacher's words.


def test_prompts_are_read_and_answers_are_learnt(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stream = pack_texts([("Once upon", " a time.", True)], tokenizer, tmp_path / "t")
    tokens, weights = stream.read(0, stream.tokens), stream.weights(0, stream.tokens)
    assert tokens.tolist() == tokens_of(tokenizer, ["Once upon a time."])
    assert tokenizer.decode(tokens[weights == 0]) == "Once upon"
    assert tokenizer.decode(tokens[weights == 1]) == f" a time.{END_OF_TEXT}"
    assert stream.from_teacher
    assert Batches([stream], 4, 1, 0).batch(0).from_teacher.all()


def test_prompts_are_learnt_too_if_asked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pairs = [("Once upon", " a time.", True), ("The f", "ox ran", False), ("One", " day.", True)]
    stream = pack_texts(pairs, tokenizer, tmp_path / "t", learn_prompts=True)
    tokens, weights = stream.read(0, stream.tokens), stream.weights(0, stream.tokens)
    first = len(tokens_of(tokenizer, ["Once upon a time."])) + len(tokenizer.encode("The fox ran"))
    assert np.flatnonzero(weights == 0).tolist() == [first]  # only what would seem to follow the answer that was cut
    assert tokenizer.decode(tokens[weights == 1]).startswith(f"Once upon a time.{END_OF_TEXT}The fox ran")


def test_a_token_that_is_partly_prompt_is_not_learnt(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(" fox") != tokenizer.encode(" f") + tokenizer.encode("ox")
    stream = pack_texts([("The f", "ox ran", True)], tokenizer, tmp_path / "t")
    tokens, weights = stream.read(0, stream.tokens), stream.weights(0, stream.tokens)
    assert tokens.tolist() == tokens_of(tokenizer, ["The fox ran"])
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
    with pytest.raises(DataError, match="wrote no text"):
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
        (STORIES[:9], {"held_out": 1.0}, "nothing for training"),
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
    with pytest.raises(DataError, match="gives no text for training"):
        prepare(Listed([]), tokenizer=BPE, folder=tmp_path)


def test_gpt2_and_its_other_name_share_a_corpus(tmp_path: Path) -> None:
    ranks = DATA / "gpt2.tiktoken"
    if not ranks.exists():
        pytest.skip("../shared/data/gpt2.tiktoken is not there")
    assert PUBLISHED["gpt2"] is PUBLISHED["r50k_base"]
    kinds = [{"kind": kind, "ranks": ranks} for kind in ("gpt2", "r50k_base")]
    folders = {prepare(Listed(STORIES), tokenizer=kind, folder=tmp_path).folder for kind in kinds}
    assert len(folders) == 1


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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cache"
