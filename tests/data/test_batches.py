"""Batches: every token is a target once per epoch; a batch depends on seed and step only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core.errors import DataError
from distillkit.data.batches import Batches, Prefetcher, sequential
from distillkit.data.tokenizer import Tokenizer
from support.corpora import STORIES, pack, tokens_of

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
    streams = [pack(folder / str(i), tokenizer, [text], limit=5) for i, text in enumerate(texts)]
    expected = Counter(token for text in texts for token in tokens_of(tokenizer, [text])[1:])
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
    stream = pack(tmp_path, tokenizer, STORIES)
    tokens = tokens_of(tokenizer, STORIES)
    read = [(b.inputs[i], b.hard[i], b.weight[i]) for b in sequential(stream, 16, 3) for i in range(3)]
    inputs = [int(t) for row, _, weight in read for t in row[weight > 0]]
    targets = [int(t) for _, row, weight in read for t in row[weight > 0]]
    assert inputs == tokens[:-1]
    assert targets == tokens[1:]


def test_a_batch_is_a_function_of_seed_and_step_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    streams = [pack(tmp_path, tokenizer, STORIES)]
    first = Batches(streams, 16, 8, 1)
    ahead = [first.batch(step).inputs for step in range(first.windows // 2)]
    again = Batches(streams, 16, 8, 1)
    for step in reversed(range(len(ahead))):
        np.testing.assert_array_equal(again.batch(step).inputs, ahead[step])
    assert not np.array_equal(Batches(streams, 16, 8, 2).batch(0).inputs, ahead[0])
    assert first.fingerprint == again.fingerprint != Batches(streams, 16, 8, 2).fingerprint


def test_epochs_come_in_different_orders(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stream = pack(tmp_path, tokenizer, STORIES)
    batches = Batches([stream], 16, stream.windows(16), 0)
    assert not np.array_equal(batches.batch(0).inputs, batches.batch(1).inputs)
    assert sorted(map(tuple, batches.batch(0).hard)) == sorted(map(tuple, batches.batch(1).hard))


def test_the_parts_of_a_batch_make_the_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    batches = Batches([pack(tmp_path, tokenizer, STORIES)], 16, 8, 0)
    parts = [batches.rows(3, 0, 3), batches.rows(3, 3, 8)]
    for name in ("inputs", "hard", "weight", "from_teacher"):
        whole = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(whole, getattr(batches.batch(3), name))


def test_batches_made_ahead_are_the_same_whatever_is_asked_for() -> None:
    asked: list[int] = []

    def batch(step: int) -> Any:
        asked.append(step)
        return f"batch {step}"

    ahead = Prefetcher(batch, 6)
    assert [ahead(step) for step in (2, 3, 4, 0, 5)] == [f"batch {step}" for step in (2, 3, 4, 0, 5)]
    assert max(asked) == 5  # none after the last
    assert asked[:4] == [2, 3, 4, 5]


def test_batches_say_their_types(tmp_path: Path, tokenizer: Tokenizer) -> None:
    batch = Batches([pack(tmp_path, tokenizer, STORIES)], 16, 8, 0).batch(0)
    types = [str(getattr(batch, name).dtype) for name in ("inputs", "hard", "weight", "from_teacher")]
    assert types == ["int32", "int32", "float32", "float32"]


def test_validation_stops_at_its_limit(tmp_path: Path, tokenizer: Tokenizer) -> None:
    stream = pack(tmp_path, tokenizer, STORIES)
    assert len(list(sequential(stream, 16, 4, 3))) == 3
    assert len(list(sequential(stream, 16, 4))) == -(-stream.windows(16) // 4)


def test_nothing_to_train_on_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        Batches([pack(tmp_path, tokenizer, [])], 16, 4, 0)
