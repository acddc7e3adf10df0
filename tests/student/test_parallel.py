"""CPU streams: results in order, and failures."""

from __future__ import annotations

import mlx.core as mx
import pytest

from distillkit.student.training.parallel import StreamPool


def test_streams_give_results_in_order_and_the_same_ones_again() -> None:
    held = mx.arange(5) * 2.0  # never evaluated here: a plugin may hold such an array
    pool = StreamPool(3)
    for _ in range(4):
        results = pool.map(lambda i: (held * i).sum())
        assert [result.item() for result in results] == [0, 20, 40]


def test_a_failure_in_a_stream_is_raised() -> None:
    pool = StreamPool(2)
    pool.map(lambda i: mx.zeros(1))
    with pytest.raises(ValueError, match="reshape"):
        pool.map(lambda i: mx.zeros(3).reshape(2))
