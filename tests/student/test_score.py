"""Scoring of documents: every token is counted once, whatever the batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillkit.student.generation.score import document_nlls, scoring_windows
from distillkit.student.model.gpt import GPT
from support.gpt2 import gpt2_forward
from support.students import TEXTS, f64, log_softmax, small_model, tokenizer, writer

Array = np.ndarray[Any, Any]


@given(st.integers(0, 300), st.integers(1, 70))
def test_every_token_is_counted_exactly_once(length: int, context: int) -> None:
    tokens, counts = list(range(1000, 1000 + length + 1)), Counter[int]()
    for window in scoring_windows(3, tokens, context):
        assert window.document == 3
        assert 0 < len(window.inputs) == len(window.targets) <= context
        assert [token + 1 for token in window.inputs] == list(window.targets)
        first = len(window.targets) - window.count
        assert window.targets[0] == 1001 or first >= context // 2  # what counts has half a context before it
        counts.update(window.targets[first:])
    assert counts == Counter(tokens[1:])


def full_nats(model: GPT, tokens: Sequence[int]) -> float:
    logits = gpt2_forward(model, np.array([tokens[:-1]]))[0] @ f64(model.head[0]).T
    return float(-log_softmax(logits)[np.arange(len(tokens) - 1), tokens[1:]].sum())


def test_a_document_that_fits_is_scored_as_a_whole() -> None:
    model, random = small_model(), np.random.default_rng(3)
    documents = [random.integers(0, 23, n).tolist() for n in (2, 5, 9, 3, 9, 4)]
    assert document_nlls(model, 8, documents) == pytest.approx([full_nats(model, d) for d in documents], rel=1e-4)


def test_a_document_that_does_not_fit_is_scored_window_by_window() -> None:
    model, context = small_model(), 8
    tokens = np.random.default_rng(5).integers(0, 23, 40).tolist()
    expected, done, begin = 0.0, 0, 0
    while done < 39:
        end = min(begin + context, 39)
        logits = gpt2_forward(model, np.array([tokens[begin:end]]))[0] @ f64(model.head[0]).T
        surprise = -log_softmax(logits)[np.arange(end - begin), tokens[begin + 1 : end + 1]]
        expected += surprise[done - begin :].sum()
        done, begin = end, begin + context // 2
    assert document_nlls(model, context, [tokens]) == pytest.approx([expected], rel=1e-4)


def test_the_sum_of_nats_does_not_depend_on_batching(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    documents = [random.integers(0, 23, n).tolist() for n in random.integers(1, 60, 25)]
    one_by_one = [document_nlls(small_model(), 8, [document])[0] for document in documents]
    for room in (1, 20, 100, 8192):
        monkeypatch.setattr("distillkit.student.generation.score.BATCH_TOKENS", room)
        assert document_nlls(small_model(), 8, documents) == pytest.approx(one_by_one, rel=1e-5, abs=1e-5)


def test_a_text_is_scored_with_its_end() -> None:
    end = tokenizer().end_of_text
    for text, scored in zip(["", *TEXTS], writer().score(["", *TEXTS]), strict=True):
        tokens = [end, *tokenizer().encode(text), end]
        assert (scored.tokens, scored.bytes) == (len(tokens) - 1, len(text.encode()))
        if len(tokens) <= 13:
            assert scored.nats == pytest.approx(full_nats(writer().model, tokens), rel=1e-4)  # type: ignore[arg-type]
