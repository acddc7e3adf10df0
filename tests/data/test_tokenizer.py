"""The tokenizer: every text comes back, equal training gives equal tokens, and failures say the way out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core.errors import CorruptError, DataError
from distillkit.data import tokenizer as room
from distillkit.data.tales import story
from distillkit.data.tokenizer import (
    CL100K_PATTERN,
    END_OF_TEXT,
    GPT2_PATTERN,
    O200K_PATTERN,
    PUBLISHED,
    Tokenizer,
    build,
    train_bpe,
)
from distillkit.data.tokenizers import tiktoken_encodings
from support.paths import SHARED

DATA = SHARED / "data"
GPT2_RANKS = DATA / "gpt2.tiktoken"
needs_ranks = pytest.mark.skipif(not GPT2_RANKS.exists(), reason="../shared/data/gpt2.tiktoken is not there")

WORDS = "the little fox ran over the hill and said “hello!” to his friend; they weren't 12 or 345 years old.\n\n"
TEXTS = [f"{i} {WORDS[i % 40 :]} {WORDS[: i % 90]} naïve café {chr(0x4E00 + i)}\t" for i in range(400)]
VARIED = [
    *TEXTS[::7],
    "  leading",
    "trailing  ",
    "\r\n\r\n x",
    "I'll we've 'tis",
    "a" * 500,
    "🙂🙃 mixed ünï 漢字",
]


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return train_bpe(iter(TEXTS), 400)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return build("gpt2", ranks=GPT2_RANKS)


@given(st.text())
def test_every_text_comes_back(small: Tokenizer, text: str) -> None:
    assert small.decode(small.encode(text)) == text


@given(st.binary())
def test_every_byte_string_has_tokens(small: Tokenizer, raw: bytes) -> None:
    assert b"".join(small.bytes_of(byte) for byte in raw) == raw
    assert small.decode(raw) == raw.decode("utf-8", errors="replace")


def test_the_first_ids_are_the_bytes_and_the_last_is_the_end_of_text(small: Tokenizer) -> None:
    assert [small.bytes_of(i) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert small.vocab_size == 400
    assert small.end_of_text == 399
    assert len(set(small.vocabulary)) == 400


def test_every_merge_joins_two_earlier_tokens(small: Tokenizer) -> None:
    for piece, token in small.ranks.items():
        halves = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        assert token < 256 or any(max(small.ranks.get(h, token) for h in pair) < token for pair in halves)


ALONE = [word for word in WORDS.split() if word.isalnum()]


@given(st.sampled_from([*ALONE, " the", " fox", "naïve", " café", "漢", "xyz", "a" * 9]))
def test_merges_lead_from_the_bytes_of_a_word_to_its_tokens(small: Tokenizer, word: str) -> None:
    steps = small.merges(word)
    assert steps[0] == [bytes([byte]) for byte in word.encode()]
    assert [small.ranks[part] for part in steps[-1]] == small.encode(word)
    for before, after in pairwise(steps):
        ways = [[*before[:i], before[i] + before[i + 1], *before[i + 2 :]] for i in range(len(before) - 1)]
        known = [(small.ranks[way[i]], i) for i, way in enumerate(ways) if way[i] in small.ranks]
        assert after == ways[min(known)[1]]  # of all that may be merged, what was learnt first, from the left


def test_merges_across_the_border_of_a_word_are_refused(small: Tokenizer) -> None:
    assert b"\n\n" in small.ranks  # which the pattern cuts apart where a letter follows
    with pytest.raises(DataError, match=r"of '\\n\\nthe'") as told:
        small.merges("\n\nthe")
    assert "one word at a time" in told.value.hint


def test_a_special_token_in_a_text_is_ordinary_text(small: Tokenizer) -> None:
    text = f"one{END_OF_TEXT}two"
    assert small.end_of_text not in small.encode(text)
    assert small.decode(small.encode(text)) == text


def test_one_by_one_in_a_batch_or_as_arrays_the_tokens_are_the_same(small: Tokenizer) -> None:
    one = [small.encode(text) for text in VARIED]
    assert small.encode_batch(VARIED) == one
    assert [tokens.tolist() for tokens in small.encode_arrays(VARIED)] == one


def test_as_many_threads_as_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert room.num_threads() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert room.num_threads() == 5


def test_tiktoken_encodes_as_the_library_that_learnt_the_merges(small: Tokenizer) -> None:
    assert _as_learnt(TEXTS, small, VARIED) == [small.encode(text) for text in VARIED]


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("the litfoxrnovhad 12'\n.é漢"), max_size=80))
def test_tiktoken_agrees_on_text_made_of_what_was_learnt(small: Tokenizer, text: str) -> None:
    assert _as_learnt(TEXTS, small, [text]) == [small.encode(text)]


_LEARNERS: dict[str, Any] = {}


def _as_learnt(train: list[str], tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """How the `tokenizers` library itself encodes, after the same training, in our numbers."""
    if tokenizer.fingerprint not in _LEARNERS:
        _LEARNERS[tokenizer.fingerprint] = room._train_bpe_model(iter(train), tokenizer.vocab_size - 1)
    byte = {letter: byte for byte, letter in enumerate(room.byte_alphabet())}
    return [
        [tokenizer.ranks[bytes(byte[letter] for letter in piece)] for piece in encoding.tokens]
        for encoding in _LEARNERS[tokenizer.fingerprint].encode_batch(texts)
    ]


def test_training_is_deterministic(small: Tokenizer) -> None:
    assert train_bpe(iter(TEXTS), 400).fingerprint == small.fingerprint
    assert train_bpe(iter(TEXTS), 401).fingerprint != small.fingerprint


def test_a_corpus_too_small_for_its_vocabulary_says_what_is_possible() -> None:
    with pytest.raises(DataError, match=r"gives at most (\d+)") as caught:
        train_bpe(iter(["a little text"]), 5000)
    possible = int(caught.value.message.split()[-2])
    assert f"tokenizer.vocab_size = {possible}" in caught.value.hint
    assert train_bpe(iter(["a little text"]), possible).vocab_size == possible


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(DataError, match="too small"):
        train_bpe(iter(TEXTS), 200)


# Long texts.


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, CL100K_PATTERN, O200K_PATTERN])
@settings(deadline=None)
@given(text=st.text(alphabet=st.sampled_from("ab Z9.,'\n\r\t é漢")), chars=st.integers(1, 9))
def test_the_pieces_of_a_text_have_its_tokens(small: Tokenizer, pattern: str, text: str, chars: int) -> None:
    tokenizer = Tokenizer("pieces", pattern, small.ranks, small.special)
    pieces = list(tokenizer.pieces(text, chars))
    assert "".join(pieces) == text
    assert [token for piece in pieces for token in tokenizer.encode(piece)] == tokenizer.encode(text)


def test_a_pattern_nobody_knows_is_never_cut(small: Tokenizer) -> None:
    other = Tokenizer("other", r"[\s\S]+", small.ranks, small.special)
    assert list(other.pieces("a b c d e f", 2)) == ["a b c d e f"]


# Files.


def test_a_saved_tokenizer_loads_the_same(small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path / "t")
    again = Tokenizer.load(tmp_path / "t")
    assert (again.fingerprint, again.kind, again.vocab_size) == (small.fingerprint, "bpe", 400)
    assert again.encode_batch(VARIED) == small.encode_batch(VARIED)


def test_the_saved_ranks_are_in_tiktokens_format(small: Tokenizer, tmp_path: Path) -> None:
    from tiktoken.load import load_tiktoken_bpe

    small.save(tmp_path)
    assert load_tiktoken_bpe(str(tmp_path / "ranks.tiktoken")) == small.ranks


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("ranks.tiktoken", b"AQ== 1\n", b"Ag== 1\n"),
        ("ranks.tiktoken", b"AQ== 1\n", b"AQ==\n"),
        ("ranks.tiktoken", b"AQ== 1\n", b""),
        ("spec.json", b'"schema"', b'schema"'),
        ("spec.json", b'"fingerprint": "', b'"fingerprint": "0'),
        ("spec.json", b'"end', b'"End'),
        ("spec.json", b"399", b"398"),
    ],
)
def test_an_altered_tokenizer_is_noticed(small: Tokenizer, tmp_path: Path, file: str, old: bytes, new: bytes) -> None:
    small.save(tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content.replace(old, new))
    if (tmp_path / file).read_bytes() != content:
        with pytest.raises(CorruptError, match="tokenizer"):
            Tokenizer.load(tmp_path)


def test_a_folder_without_a_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"spec\.json is missing"):
        Tokenizer.load(tmp_path)


# Choosing.


def test_a_folder_that_holds_a_tokenizer_is_a_kind(
    small: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path))
    run = tmp_path / "reports" / "mine" / "1"
    small.save(run / "tokenizer")
    (run / "run.json").write_text("{}")
    for kind in (str(run / "tokenizer"), str(run), "mine/1", "mine", "latest"):
        assert build(kind).fingerprint == small.fingerprint


def test_an_unknown_kind_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean 'gpt2'"):
        build("gtp2")


def test_bpe_needs_a_size_and_texts() -> None:
    with pytest.raises(DataError, match=r"needs tokenizer\.vocab_size"):
        build("bpe", texts=lambda: iter(TEXTS))
    with pytest.raises(DataError, match="none was given"):
        build("bpe", vocab_size=300)
    with pytest.raises(DataError, match="cannot be used with"):
        build("bpe", vocab_size=300, ranks="x", texts=lambda: iter(TEXTS))


def test_ranks_go_with_published_encodings_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a published encoding"):
        build(str(tmp_path), ranks="x")


def test_ranks_with_the_wrong_content_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "gpt2.tiktoken"
    with pytest.raises(DataError, match="cannot be read"):
        build("gpt2", ranks=file)
    file.write_bytes(b"IQ== 0\n")
    with pytest.raises(DataError, match="does not contain the ranks of gpt2"):
        build("gpt2", ranks=file)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No ranks at hand and no network; what was asked for."""
    asked = []

    def refuse(url: str) -> bytes:
        asked.append(url)
        raise ConnectionError(f"no route to {url}\nand more")

    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.load.read_file", refuse)
    return asked


@pytest.mark.parametrize("kind", ["gpt2", "cl100k_base", "o200k_harmony"])
def test_no_network_fails_quickly_and_says_the_way_out(kind: str, offline: list[str]) -> None:
    with pytest.raises(DataError, match="could not download") as caught:
        build(kind)
    assert "\n" not in caught.value.message
    assert "tokenizer.ranks" in caught.value.hint


def test_an_encoding_that_somebody_adds_to_tiktoken_has_no_file_of_ranks_to_bring(
    offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiktoken.load
    import tiktoken.registry

    tiktoken.list_encoding_names()  # which fills the registry
    load = tiktoken.load.load_tiktoken_bpe
    monkeypatch.setitem(tiktoken.registry.ENCODING_CONSTRUCTORS, "own", lambda: load("https://a.example/own"))
    with pytest.raises(DataError, match="could not download the ranks of 'own'") as caught:
        build("own")
    assert "with a network" in caught.value.hint


def test_of_all_that_tiktoken_has_the_size_is_known_without_the_network(offline: list[str]) -> None:
    import tiktoken

    for kind in tiktoken.list_encoding_names():
        assert not room.is_available_offline({"kind": kind})
        assert room.vocab_size_of({"kind": kind}) > 50_000
    assert not offline


def test_a_network_that_never_answers_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.load.read_file", lambda url: time.sleep(3))
    monkeypatch.setattr(tiktoken_encodings, "DOWNLOAD_SECONDS", 0.1)
    with pytest.raises(DataError, match="no answer within"):
        build("gpt2")


def test_the_published_table_is_what_tiktoken_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken_ext.openai_public as public

    asked = []
    monkeypatch.setattr(public, "load_tiktoken_bpe", lambda url, expected_hash: asked.append((url, expected_hash)))
    for name in PUBLISHED.keys() - {"gpt2"}:  # whose ranks tiktoken reads from other files
        spec, known = getattr(public, name)(), PUBLISHED[name]
        assert asked.pop() == (
            f"https://openaipublic.blob.core.windows.net/encodings/{known.file}.tiktoken",
            known.sha256,
        )
        assert spec["special_tokens"] == known.special
        assert spec["pat_str"] == known.pattern
        assert known.size == spec.get("explicit_n_vocab", max(spec["special_tokens"].values()) + 1)


@needs_ranks
def test_gpt2_from_a_file_is_gpt2(gpt2: Tokenizer) -> None:
    assert (gpt2.vocab_size, gpt2.end_of_text, gpt2.kind) == (50_257, 50_256, "gpt2")
    assert gpt2.encode("Hello, world!") == [15496, 11, 995, 0]
    assert build("r50k_base", ranks=GPT2_RANKS).fingerprint == gpt2.fingerprint


@needs_ranks
def test_a_size_that_is_not_the_encodings_own_is_refused() -> None:
    with pytest.raises(DataError, match="has 50257 tokens"):
        build("gpt2", ranks=GPT2_RANKS, vocab_size=2048)


@needs_ranks
def test_real_english_comes_back_and_agrees_with_the_library(gpt2: Tokenizer) -> None:
    import lzma

    with lzma.open(DATA / "austen_four_novels.txt.xz", "rt", encoding="utf-8") as file:
        text = file.read(400_000)
    trained = train_bpe(iter([text]), 2048)
    for tokenizer in (gpt2, trained):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert _as_learnt([text], trained, [text]) == [trained.encode(text)]


# SentencePiece.


def stories() -> Iterator[str]:
    return (story(0, index) for index in range(250))


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    if os.environ.get("DISTILLKIT_PEERS") != "required":
        pytest.importorskip("sentencepiece", reason="the peer sentencepiece is not installed")
    return build("sentencepiece", vocab_size=600, texts=stories)


@pytest.mark.peer
@settings(deadline=None)
@given(text=st.text() | st.text(alphabet=st.sampled_from("the \u2581\u2582<s>0xE\n\t\r\0é漢 ﬁ\u0301")))
def test_every_text_comes_back_from_sentencepiece(pieces: Tokenizer, text: str) -> None:
    tokens = pieces.encode(text)
    assert pieces.decode(tokens) == text
    assert pieces.end_of_text not in tokens
    assert int(pieces.lengths[tokens].sum()) == len(text.encode())


@pytest.mark.peer
def test_sentencepiece_has_the_size_asked_for_and_every_byte(pieces: Tokenizer) -> None:
    assert (pieces.kind, pieces.vocab_size, pieces.end_of_text) == ("sentencepiece", 600, 1)
    assert {bytes([byte]) for byte in range(256)} <= set(pieces.vocabulary)
    assert pieces.bytes_of(pieces.end_of_text) == END_OF_TEXT.encode()
    assert any(len(piece) > 3 for piece in pieces.vocabulary[258:])
    assert len(pieces.encode(story(1, 0))) < len(story(1, 0)) / 2


@pytest.mark.peer
def test_sentencepiece_one_by_one_in_a_batch_or_as_arrays(pieces: Tokenizer) -> None:
    texts = [*VARIED, "\u2581", f"a{END_OF_TEXT}b"]
    one = [pieces.encode(text) for text in texts]
    assert pieces.encode_batch(texts) == one
    assert [tokens.tolist() for tokens in pieces.encode_arrays(texts)] == one
    assert pieces.encode_batch(VARIED) == one[: len(VARIED)]
    long = "".join(TEXTS) * 20
    assert list(pieces.pieces(long, 1000)) == [long]


@pytest.mark.peer
def test_sentencepiece_agrees_with_the_library_itself(pieces: Tokenizer, tmp_path: Path) -> None:
    import sentencepiece

    pieces.save(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "pieces.model"))
    assert [theirs.encode(text) for text in VARIED] == [pieces.encode(text) for text in VARIED]
    assert theirs.decode(pieces.encode(VARIED[0])) == VARIED[0]


@pytest.mark.peer
def test_training_sentencepiece_is_deterministic_and_a_saved_one_loads_the_same(
    pieces: Tokenizer, tmp_path: Path
) -> None:
    again = build("sentencepiece", vocab_size=600, texts=stories)
    assert again.fingerprint == pieces.fingerprint
    pieces.save(tmp_path / "t")
    for loaded in (Tokenizer.load(tmp_path / "t"), build(str(tmp_path / "t"))):
        assert (loaded.fingerprint, loaded.kind) == (pieces.fingerprint, "sentencepiece")
        assert loaded.encode_batch(VARIED) == pieces.encode_batch(VARIED)
    model = tmp_path / "t" / "pieces.model"
    assert build("sentencepiece", model=model).fingerprint == pieces.fingerprint
    model.write_bytes(model.read_bytes()[:-9])
    with pytest.raises(CorruptError):
        Tokenizer.load(tmp_path / "t")
    model.unlink()
    with pytest.raises(DataError, match="is missing"):
        Tokenizer.load(tmp_path / "t")


@pytest.mark.peer
def test_a_model_of_others_that_changes_text_is_refused(pieces: Tokenizer, tmp_path: Path) -> None:
    import sentencepiece

    def trained(name: str, **how: Any) -> Path:
        lines = iter([line for text in stories() for line in text.splitlines()])
        prefix = str(tmp_path / name)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_prefix=prefix, vocab_size=600, minloglevel=2, **how
        )
        return Path(f"{prefix}.model")

    with pytest.raises(DataError, match="does not round-trip text"):
        build("sentencepiece", model=trained("usual", byte_fallback=True))
    with pytest.raises(DataError, match="no end-of-text token"):
        build("sentencepiece", model=trained("endless", byte_fallback=True, eos_id=-1))
    (tmp_path / "no.model").write_bytes(b"no model")
    with pytest.raises(DataError, match="cannot be used"):
        build("sentencepiece", model=tmp_path / "no.model")
    with pytest.raises(DataError, match="is a SentencePiece model"):
        build("gpt2", model=tmp_path / "no.model")


@pytest.mark.peer
def test_text_too_small_for_sentencepiece_says_what_is_possible(pieces: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"gives at most (\d+)") as caught:
        build("sentencepiece", vocab_size=9000, texts=stories)
    possible = int(caught.value.message.split()[-2])
    assert build("sentencepiece", vocab_size=possible, texts=stories).vocab_size == possible
    with pytest.raises(DataError, match="too small"):
        build("sentencepiece", vocab_size=100, texts=stories)


def test_without_sentencepiece_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(DataError, match="needs a package") as caught:
        build("sentencepiece", vocab_size=600, texts=stories)
    assert "distillkit[sentencepiece]" in caught.value.hint


# What is known beforehand.


@needs_ranks
def test_sizes_are_known_without_ranks_and_ranks_are_found_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path))
    monkeypatch.setattr("tiktoken.load.read_file", lambda url: pytest.fail(f"asked for {url}"))
    table = {"kind": "gpt2"}
    assert room.vocab_size_of(table) == 50_257
    assert not room.is_available_offline(table)
    kept = tmp_path / "cache" / "tokenizers" / "r50k_base.tiktoken"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(GPT2_RANKS.read_bytes())
    assert room.is_available_offline(table)
    assert build("gpt2").vocab_size == room.vocab_size_of(table)
    kept.write_bytes(b"IQ== 0\n")
    with pytest.raises(DataError, match="does not contain the ranks"):
        build("gpt2")


@needs_ranks
def test_ranks_that_were_downloaded_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "theirs"))
    monkeypatch.setattr("tiktoken.load.read_file", lambda url: GPT2_RANKS.read_bytes())
    build("gpt2")
    assert tiktoken_encodings.cache_path("gpt2").read_bytes() == GPT2_RANKS.read_bytes()
