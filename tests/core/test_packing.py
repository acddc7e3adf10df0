"""Packed log-probabilities."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core.packing import pack, unpack


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(), min_size=1, max_size=30), st.integers(1, 300))
def test_packing_rounds_nothing(numbers: list[float], pieces: int) -> None:
    rows = [(str(i % pieces).encode(), number, ((b"", number), (b"x" * i, 0.0))) for i, number in enumerate(numbers)]
    assert repr(list(unpack(pack(rows)))) == repr(rows)  # by repr: a nan is no nan's equal, and -0.0 is 0.0's


def test_more_pieces_than_two_bytes_can_count_are_packed() -> None:
    rows = [(i.to_bytes(3, "big"), -0.5, ()) for i in range(70_000)]
    assert list(unpack(pack(rows))) == rows


def test_log_probabilities_in_singles_take_half_the_room_of_doubles() -> None:
    single, double = -1.25, -1.3
    sizes = [len(pack([(b"a", value, ())] * 300)["logprobs"]) for value in (single, double)]
    assert sizes[1] / sizes[0] > 1.9
