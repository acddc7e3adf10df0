"""Packing tokens into shards, and reading them back with checksums."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core.errors import CorruptError
from distillkit.data.shards import Packer, Stream
from distillkit.data.tokenizer import END_OF_TEXT, Tokenizer
from support.corpora import STORIES, pack, tokens_of


@pytest.fixture(scope="module")
def wide(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer("wide", tokenizer.pattern, tokenizer.ranks, {END_OF_TEXT: 70_000})


# Packed files.


def test_packed_tokens_are_the_documents_each_with_its_end(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stream = pack(tmp_path, tokenizer, STORIES)
    assert stream.read(0, stream.tokens).tolist() == tokens_of(tokenizer, STORIES)
    assert list(stream.texts(tokenizer)) == STORIES
    assert stream.document_bytes.tolist() == [len(story.encode()) for story in STORIES]
    assert (stream.documents, stream.bytes) == (400, sum(len(story.encode()) for story in STORIES))


def test_a_file_holds_no_more_tokens_than_its_bound(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stream = pack(tmp_path, tokenizer, STORIES, limit=1000)
    counts = [file["count"] for file in stream.manifest["files"]["tokens"]]
    assert len(counts) > 2
    assert set(counts[:-1]) == {1000}
    assert sum(counts) == stream.tokens


def test_small_vocabularies_take_two_bytes_a_token_and_large_ones_four(
    tmp_path: Path, tokenizer: Tokenizer, wide: Tokenizer
) -> None:
    for name, chosen, width in (("two", tokenizer, 2), ("four", wide, 4)):
        stream = pack(tmp_path / name, chosen, STORIES, limit=10**6)
        assert (tmp_path / name / "tokens-00000.bin").stat().st_size == width * stream.tokens
        assert stream.read(0, stream.tokens).tolist() == tokens_of(chosen, STORIES)


def test_a_document_longer_than_a_piece_is_packed_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = " ".join(STORIES) * 60
    stream = pack(tmp_path, tokenizer, ["short", long, "short"], limit=10**6)
    assert len(list(tokenizer.pieces(long))) > 3
    assert list(stream.texts(tokenizer)) == ["short", long, "short"]
    assert stream.read(0, stream.tokens).tolist() == tokens_of(tokenizer, ["short", long, "short"])


@pytest.mark.parametrize("damage", ["short", "gone", "manifest", "no manifest", "not JSON"])
def test_a_damaged_folder_is_noticed_when_it_is_opened(tmp_path: Path, tokenizer: Tokenizer, damage: str) -> None:
    pack(tmp_path, tokenizer, STORIES)
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
    stream = pack(tmp_path, tokenizer, STORIES)
    stream.verify()
    file = tmp_path / "tokens-00001.bin"
    file.write_bytes(b"\1" + file.read_bytes()[1:])
    with pytest.raises(CorruptError, match=r"tokens-00001\.bin has changed"):
        Stream(tmp_path).verify()


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
