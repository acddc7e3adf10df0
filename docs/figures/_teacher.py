"""The bundled teacher reads the beginning of a tale that it never saw: its tokens, and where its heads look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distillkit.data.corpus import held_out
from distillkit.data.tales import story

TALE, LAST = 203, '"I saw it first," said'  # a tale of the quickstart, and where its beginning is cut


@dataclass
class Read:
    """Tokens, and how much each head of each block takes for each token from each [blocks, heads, T, T]."""

    tokens: list[str]
    weights: np.ndarray[Any, Any]


def read() -> Read:
    """The beginning, as the teacher reads it."""
    from distillkit.student import Trained

    teacher = Trained.load("tales-teacher")
    import mlx.core as mx

    tale = story(0, TALE)
    assert held_out(tale, 0.1), "the teacher was trained on this tale"
    text = tale[: tale.index(LAST) + len(LAST)]
    tokens = [teacher.tokenizer.end_of_text, *teacher.tokenizer.encode(text)]
    weights = np.array([np.array(block[0]) for block in teacher.attention(mx.array([tokens]))])
    spelled = [teacher.tokenizer.bytes_of(token).decode() for token in tokens]
    return Read(spelled, weights)
