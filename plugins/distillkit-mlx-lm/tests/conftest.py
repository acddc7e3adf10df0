"""Model folders that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_folders import TEMPLATE, byte_level, sentencepiece, write_folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with a byte-level vocabulary and a chat template."""
    folder = write_folder(tmp_path_factory.mktemp("models") / "tiny", byte_level())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, which does not chat."""
    return write_folder(tmp_path_factory.mktemp("models") / "plain", byte_level(["<|endoftext|>"]), "gpt2")


@pytest.fixture(scope="session")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with a SentencePiece vocabulary."""
    return write_folder(tmp_path_factory.mktemp("models") / "spelled", sentencepiece())
