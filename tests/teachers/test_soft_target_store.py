"""Soft targets on disk: what is written is read again, what does not belong is refused, what was cut off goes on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distillkit.core.errors import CorruptError, DataError, Interrupted, UsageError
from distillkit.core.records import LOG_ZERO, Answer, Request
from distillkit.data.batches import Batches
from distillkit.data.corpus import pack_texts
from distillkit.data.shards import Packer, Stream
from distillkit.data.tokenizer import Tokenizer, train_bpe
from distillkit.plugins.interfaces import Teacher
from distillkit.teachers.soft_targets import from_logits
from distillkit.teachers.soft_targets.store import Binding, SoftTargetRows, SoftTargetStore, SoftTargetWriter

TEXTS = ["The old fox said to the hens: come out, come out.", "They did not. He went home again.", "The end."] * 4
CONTEXT = 8


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(iter(TEXTS), 280)


@pytest.fixture
def stream(tmp_path: Path, tokenizer: Tokenizer) -> Stream:
    packer = Packer(tmp_path / "packed", tokenizer)
    for text in TEXTS:
        packer.add(text)
    packer.close()
    return Stream(tmp_path / "packed")


class Fixed(Teacher):
    """Its logits are a table of the last two tokens; it may be interrupted."""

    name = "fixed"
    signal = "logits"
    interrupt_at = -1

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = np.random.default_rng(0).normal(scale=3, size=(vocab_size, vocab_size)).astype(np.float32)
        self.asked: list[int] = []

    def answer(self, request: Request) -> Answer:
        return Answer("no")

    def think(self, tokens: Any) -> Any:
        before = np.concatenate([np.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1)
        return self.table[tokens] + 0.5 * self.table[before]

    def logits(self, tokens: mx.array) -> mx.array:
        self.asked.append(len(tokens))
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        return mx.array(self.think(np.array(tokens)))


def bound(stream: Stream, tokenizer: Tokenizer, **more: Any) -> Binding:
    common = {"tokenizer": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "teacher": {"name": "fixed"}}
    return Binding(**{**common, "stream": stream.fingerprint, "tokens": stream.tokens, "context": CONTEXT, **more})


def truth(teacher: Fixed, stream: Stream) -> Any:
    """Log-probabilities of every token of a stream in its window, in float64; of the first there are none."""
    found = [np.zeros((1, len(teacher.table)))]
    for index in range(stream.windows(CONTEXT)):
        tokens, _ = stream.window(CONTEXT, index)
        logits = teacher.think(tokens[None, :-1]).astype(np.float64)[0]
        found.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return np.concatenate(found)[: stream.tokens]


# ------------------------------------------------------------------------------------------------- formats


def test_the_likeliest_are_kept_with_the_mass_of_all_others(
    tmp_path: Path, stream: Stream, tokenizer: Tokenizer
) -> None:
    teacher = Fixed(tokenizer.vocab_size)
    store = from_logits.write_soft_targets(
        teacher, stream, SoftTargetWriter(tmp_path / "soft", bound(stream, tokenizer, most=5))
    )
    ids, logs, rest, has = store.read(0, stream.tokens)
    expected = truth(teacher, stream)
    assert has.tolist() == [0.0, *[1.0] * (stream.tokens - 1)]
    assert (ids[0].any(), logs[0].max(), rest[0]) == (False, LOG_ZERO, LOG_ZERO)
    best = np.argsort(-expected[1:], axis=1)[:, :5]
    np.testing.assert_array_equal(ids[1:], best)
    np.testing.assert_allclose(logs[1:], np.take_along_axis(expected[1:], best, axis=1), rtol=2e-3, atol=2e-3)
    left = 1 - np.exp(np.take_along_axis(expected[1:], best, axis=1)).sum(axis=1)
    np.testing.assert_allclose(np.exp(rest[1:]), left, rtol=1e-2)
    np.testing.assert_allclose(np.exp(logs).sum(axis=1)[1:] + np.exp(rest[1:]), 1, atol=1e-6)
    summary = store.summary
    assert (summary["positions"], summary["with_soft"]) == (stream.tokens - 1, stream.tokens - 1)
    assert summary["mass"] == pytest.approx(1 - left.mean(), abs=1e-3)
    store.verify()


def test_all_tokens_are_the_whole_distribution(tmp_path: Path, stream: Stream, tokenizer: Tokenizer) -> None:
    teacher, most = Fixed(tokenizer.vocab_size), tokenizer.vocab_size
    store = from_logits.write_soft_targets(
        teacher, stream, SoftTargetWriter(tmp_path / "soft", bound(stream, tokenizer, most=most))
    )
    ids, logs, rest, _ = store.read(1, stream.tokens)
    dense = np.zeros_like(logs)
    np.put_along_axis(dense, ids, logs, axis=1)
    np.testing.assert_allclose(np.exp(dense), np.exp(truth(teacher, stream)[1:]), rtol=0.02, atol=1e-6)
    assert (rest == LOG_ZERO).all()


def test_twenty_tokens_take_at_most_84_bytes(tmp_path: Path, stream: Stream, tokenizer: Tokenizer) -> None:
    binding = bound(stream, tokenizer, most=20)
    assert binding.max_bytes_per_position == 84
    assert replace(binding, vocab_size=50_257).max_bytes_per_position == 84
    assert replace(binding, vocab_size=100_277).max_bytes_per_position == 124
    store = from_logits.write_soft_targets(
        Fixed(tokenizer.vocab_size), stream, SoftTargetWriter(tmp_path / "soft", binding)
    )
    assert store.summary["bytes"] <= 84 * stream.tokens


def test_draws_are_an_unbiased_picture_of_the_teacher(tmp_path: Path, stream: Stream, tokenizer: Tokenizer) -> None:
    """Over many windows with the same thought, the mean of what was drawn is that thought."""
    logits = np.random.default_rng(1).normal(size=(1, 40)).astype(np.float32)
    chances = np.random.default_rng(2).random((4000, 50))
    rows = from_logits.sample_counts(np.repeat(logits, 4000, axis=0), 50, chances)
    seen = np.bincount(rows.ids, rows.values, 40) / (4000 * 50)
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert np.abs(seen - expected).max() < 4 * math.sqrt(0.25 / (4000 * 50))
    assert (np.add.reduceat(rows.values, np.cumsum(rows.counts) - rows.counts) == 50).all()

    teacher = Fixed(tokenizer.vocab_size)
    binding = bound(stream, tokenizer, samples=50, seed=7, most=50)
    store = from_logits.write_soft_targets(teacher, stream, SoftTargetWriter(tmp_path / "a", binding))
    ids, logs, rest, _ = store.read(1, stream.tokens)
    assert (rest == LOG_ZERO).all()
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1, atol=1e-5)
    mean = (np.exp(np.take_along_axis(truth(teacher, stream)[1:], ids, axis=1)) * (logs > LOG_ZERO)).sum(axis=1)
    assert mean.min() > 0.5  # what was drawn is what is likely
    again = from_logits.write_soft_targets(
        Fixed(tokenizer.vocab_size), stream, SoftTargetWriter(tmp_path / "b", binding)
    )
    other = from_logits.write_soft_targets(teacher, stream, SoftTargetWriter(tmp_path / "c", replace(binding, seed=8)))
    assert again.fingerprint == store.fingerprint != other.fingerprint
    assert store.summary["bytes"] / stream.tokens <= 40


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(np.float64, (3, 6), elements=st.floats(-60, 20)), st.integers(1, 6))
def test_float16_is_near_enough(tmp_path_factory: pytest.TempPathFactory, logits: Any, most: int) -> None:
    """A log-probability keeps eleven bits: what is read differs by a share of |log p| / 2048, and a bit for the sum."""
    folder = tmp_path_factory.mktemp("f")
    rows = from_logits.top_k(logits.astype(np.float32), most)
    writer = SoftTargetWriter(folder, Binding("t", 6, None, "s", 3, most=most))
    writer.add(rows, np.ones(3, np.float32))
    ids, logs, rest, _ = writer.close().read(0, 3)
    exact = logits.astype(np.float32).astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    named = np.take_along_axis(exact, ids, axis=1)
    assert (np.abs(logs - named) <= np.abs(named) / 2048 + 2e-3).all()
    assert np.allclose(np.exp(logs.astype(np.float64)).sum(axis=1) + np.exp(rest), 1, atol=1e-5)


def test_what_float16_cannot_hold_is_held_at_its_end(tmp_path: Path) -> None:
    writer = SoftTargetWriter(tmp_path, Binding("t", 70_000, None, "s", 2, most=3))
    logs = np.array([math.log(0.5), -9e4, -1e-7])
    writer.add(
        SoftTargetRows(np.array([2, 1]), np.array([69_999, 1, 3]), logs, np.array([math.log(0.5), -1e30])), np.ones(2)
    )
    ids, found, rest, _ = writer.close().read(0, 2)
    assert ids.tolist() == [[69_999, 1], [3, 0]]
    assert np.isfinite(found).all()
    assert found[1, 0] == pytest.approx(0, abs=1e-6)
    assert np.exp(rest) == pytest.approx([0.5, 0.0], abs=1e-3)


# --------------------------------------------------------------------------------------------------- shards


def random_rows(positions: int, seed: int = 0) -> SoftTargetRows:
    drawn = np.random.default_rng(seed)
    counts = drawn.integers(0, 5, positions)
    total = int(counts.sum())
    logs, rest = np.log(drawn.uniform(0.01, 0.2, total)), np.log(drawn.uniform(0.1, 0.2, positions))
    return SoftTargetRows(counts, drawn.integers(0, 300, total), logs, rest)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=8), st.integers(1, 900), st.data())
def test_any_range_of_any_shards_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int, data: st.DataObject
) -> None:
    total = sum(sizes)
    binding = Binding("t", 300, None, "s", total, most=4)
    stores = []
    for name, pieces, most in (("one", [total], total), ("many", sizes, limit)):
        writer, rows, begun = SoftTargetWriter(tmp_path_factory.mktemp(name), binding, most), random_rows(total), 0
        named = np.cumsum([0, *rows.counts])
        for size in pieces:
            cut = slice(begun, begun + size)
            inner = slice(named[begun], named[begun + size])
            part = SoftTargetRows(rows.counts[cut], rows.ids[inner], rows.values[inner], rows.residuals[cut])
            writer.add(part, np.ones(size, np.float32))
            begun += size
        stores.append(writer.close())
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    for one, other in zip(stores[0].read(start, stop), stores[1].read(start, stop), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (
        stores[0].summary["with_soft"] == stores[1].summary["with_soft"] == int((random_rows(total).counts > 0).sum())
    )


def test_interrupted_it_goes_on_behind_its_last_shard(
    tmp_path: Path, stream: Stream, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_logits, "TOKENS_AT_ONCE", 2 * CONTEXT)
    binding = bound(stream, tokenizer, most=4)
    whole = from_logits.write_soft_targets(
        Fixed(tokenizer.vocab_size), stream, SoftTargetWriter(tmp_path / "whole", binding, 4 * CONTEXT)
    )
    teacher = Fixed(tokenizer.vocab_size)
    teacher.interrupt_at = 6
    with pytest.raises(Interrupted, match=r"of 2\d\d positions are kept"):
        from_logits.write_soft_targets(teacher, stream, SoftTargetWriter(tmp_path / "cut", binding, 4 * CONTEXT))
    with pytest.raises(UsageError, match="are incomplete"):
        SoftTargetStore(tmp_path / "cut", binding)
    again = Fixed(tokenizer.vocab_size)
    store = from_logits.write_soft_targets(again, stream, SoftTargetWriter(tmp_path / "cut", binding, 4 * CONTEXT))
    assert sum(again.asked) == stream.windows(CONTEXT) - 8  # four calls of two windows were kept
    assert store.fingerprint == whole.fingerprint
    assert not list((tmp_path / "cut").glob(".*"))
    idle = SoftTargetWriter(tmp_path / "cut", binding)
    assert idle.done == stream.tokens


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tokenizer": "other"}, "the tokenizer is different"),
        ({"teacher": {"name": "other"}}, "the teacher is different"),
        ({"stream": "other"}, "the text or its order is different"),
        ({"context": 16}, "the student's context was 8 and is 16"),
        ({"temperature": 2.0}, "temperature was 1.0 and is 2.0"),
        ({"most": 7}, "the maximum number of tokens per position was 4 and is 7"),
    ],
)
def test_what_belongs_to_something_else_is_refused(
    tmp_path: Path, stream: Stream, tokenizer: Tokenizer, change: dict[str, Any], told: str
) -> None:
    binding = bound(stream, tokenizer, most=4)
    from_logits.write_soft_targets(Fixed(tokenizer.vocab_size), stream, SoftTargetWriter(tmp_path / "soft", binding))
    for opening in (SoftTargetStore, SoftTargetWriter):
        with pytest.raises(UsageError, match=told) as caught:
            opening(tmp_path / "soft", replace(binding, **change))
        assert "distillkit label" in caught.value.hint


def test_damage_is_said(tmp_path: Path, stream: Stream, tokenizer: Tokenizer) -> None:
    folder, binding = tmp_path / "soft", bound(stream, tokenizer, most=4)
    store = from_logits.write_soft_targets(Fixed(tokenizer.vocab_size), stream, SoftTargetWriter(folder, binding))
    (shard,) = folder.glob("*.bin")
    content = shard.read_bytes()
    shard.write_bytes(content[:-8] + b"changed!")
    with pytest.raises(CorruptError, match="has changed"):
        store.verify()
    assert SoftTargetWriter(folder, binding).done == 0  # a shard that is not what was written is asked for again
    shard.write_bytes(content[:-8])
    with pytest.raises(CorruptError, match="bytes, expected"):
        SoftTargetStore(folder, binding)
    shard.write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    with pytest.raises(CorruptError, match="manifest was changed"):
        SoftTargetStore(folder, binding)
    with pytest.raises(UsageError, match="there are no soft targets"):
        SoftTargetStore(tmp_path / "nowhere", binding)


@pytest.mark.parametrize("lost", ["a whole file", "the end of one"])
def test_what_a_store_has_lost_is_read_again_by_the_command_that_is_named(
    tmp_path: Path, stream: Stream, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(from_logits, "TOKENS_AT_ONCE", 2 * CONTEXT)
    folder, binding = tmp_path / "soft", bound(stream, tokenizer, most=4)
    whole = from_logits.write_soft_targets(
        Fixed(tokenizer.vocab_size), stream, SoftTargetWriter(folder, binding, 4 * CONTEXT)
    )
    shard = sorted(folder.glob("*.bin"))[1]
    if lost == "a whole file":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(CorruptError, match=shard.name) as told:
        SoftTargetStore(folder, binding)
    assert "distillkit label" in told.value.hint
    writer = SoftTargetWriter(folder, binding, 4 * CONTEXT)
    assert writer.done > 0
    store = from_logits.write_soft_targets(Fixed(tokenizer.vocab_size), stream, writer)
    store.verify()
    assert store.fingerprint == whole.fingerprint


def test_logits_of_other_tokens_are_refused(tmp_path: Path, stream: Stream, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="logits of shape"):
        from_logits.write_soft_targets(
            Fixed(tokenizer.vocab_size + 1), stream, SoftTargetWriter(tmp_path / "soft", bound(stream, tokenizer))
        )


# --------------------------------------------------------------------------------------------------- batches


def test_batches_carry_what_is_stored(tmp_path: Path, stream: Stream, tokenizer: Tokenizer) -> None:
    teacher = Fixed(tokenizer.vocab_size)
    store = from_logits.write_soft_targets(
        teacher, stream, SoftTargetWriter(tmp_path / "soft", bound(stream, tokenizer, most=5))
    )
    told = pack_texts([("The old ", "fox.", True), ("They", " ran", False)], tokenizer, tmp_path / "told")
    batches = Batches([stream, told], CONTEXT, 4, 3, soft=[store, None])
    plain = Batches([stream, told], CONTEXT, 4, 3)
    assert batches.fingerprint != plain.fingerprint
    expected = truth(teacher, stream)
    places = {tuple(stream.window(CONTEXT, i)[0][:-1]): i * CONTEXT for i in range(stream.windows(CONTEXT))}
    for step in range(12):
        batch, other = batches.batch(step), plain.batch(step)
        assert other.soft_ids is other.soft_log_probs is other.soft_residual is other.has_soft is None
        np.testing.assert_array_equal(batch.inputs, other.inputs)
        assert batch.soft_ids is not None
        assert batch.soft_log_probs is not None
        assert batch.has_soft is not None
        assert batch.soft_residual is not None
        assert (batch.soft_ids.shape, batch.soft_ids.dtype) == ((4, CONTEXT, 5), np.int32)
        assert {batch.soft_log_probs.dtype, batch.soft_residual.dtype, batch.has_soft.dtype} == {np.dtype("f4")}
        np.testing.assert_array_equal(batch.has_soft, batch.weight * (1 - batch.from_teacher))
        for row in np.flatnonzero(batch.has_soft[:, -1] > 0):
            at = places[tuple(batch.inputs[row])] + 1
            thought = np.take_along_axis(expected[at : at + CONTEXT], batch.soft_ids[row], axis=1)
            np.testing.assert_allclose(batch.soft_log_probs[row], thought, rtol=2e-3, atol=2e-3)
    part = batches.rows(2, 1, 3)
    assert part.soft_ids is not None
    np.testing.assert_array_equal(part.soft_ids, batches.batch(2).soft_ids[1:3])  # type: ignore[index]


def test_a_share_of_every_batch_is_the_teachers(tmp_path: Path, stream: Stream, tokenizer: Tokenizer) -> None:
    pairs = [("", "A hen flew away.", True), ("", "Two hens flew.", True), ("", "Nobody saw three of them.", False)]
    told = pack_texts(pairs, tokenizer, tmp_path / "told")
    batches = Batches([stream, told], CONTEXT, 8, 5, share=0.25)
    seen: list[bytes] = []
    for step in range(20):
        batch = batches.batch(step)
        assert batch.from_teacher[:, 0].sum() == 2
        seen += [row.tobytes() for row, by in zip(batch.inputs, batch.from_teacher[:, 0], strict=True) if by]
    windows = told.windows(CONTEXT)
    assert len(set(seen[:windows])) == windows  # an epoch of its own
    assert batches.epochs(20) == max(20 * 2 / windows, 20 * 6 / stream.windows(CONTEXT))
    assert Batches([stream, told], CONTEXT, 8, 5, share=1.0).batch(0).from_teacher.all()
    assert not Batches([stream, told], CONTEXT, 8, 5, share=0.0).batch(0).from_teacher.any()
    with pytest.raises(DataError, match=r"teacher.share = 0.05 of 8 rows per step rounds to 0"):
        Batches([stream, told], CONTEXT, 8, 5, share=0.05)
    prints = {Batches([stream, told], CONTEXT, 8, 5, share=share).fingerprint for share in (None, 0.0, 0.25, 1.0)}
    assert len(prints) == 4
    whole, parts = batches.batch(3), [batches.rows(3, 0, 5), batches.rows(3, 5, 8)]
    np.testing.assert_array_equal(whole.inputs, np.concatenate([part.inputs for part in parts]))
