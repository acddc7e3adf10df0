"""Fixtures that several test modules of this folder use."""

from __future__ import annotations

import pytest

from distillkit.data.tokenizer import Tokenizer, train_bpe
from support.corpora import STORIES


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(iter(STORIES), 300)
