"""Attention weights of the bundled teacher on the beginning of a held-out tale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distillkit.data.corpus import held_out
from distillkit.data.tales import story

TALE, LAST = 203, '"I saw it first," said'  # a tale of the quickstart, and the end of its beginning


@dataclass
class AttentionMap:
    """Tokens, and attention weights [blocks, heads, T, T]."""

    tokens: list[str]
    weights: np.ndarray[Any, Any]


def attention_map() -> AttentionMap:
    """The attention map of the tale's beginning."""
    from distillkit.student import Trained

    teacher = Trained.load("tales-teacher")
    import mlx.core as mx

    tale = story(0, TALE)
    assert held_out(tale, 0.1), "the teacher was trained on this tale"
    text = tale[: tale.index(LAST) + len(LAST)]
    tokens = [teacher.tokenizer.end_of_text, *teacher.tokenizer.encode(text)]
    weights = np.array([np.array(block[0]) for block in teacher.attention(mx.array([tokens]))])
    texts = [teacher.tokenizer.bytes_of(token).decode() for token in tokens]
    return AttentionMap(texts, weights)
