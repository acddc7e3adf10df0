"""Texts, and a small corpus of them as shards."""

from __future__ import annotations

from pathlib import Path

from distillkit.data.shards import Packer, Stream
from distillkit.data.tokenizer import Tokenizer

STORIES = [
    f"Story {i}: the fox number {i * 7} ran {'far and ' * (i % 5)}home. Ünïcode {chr(0x3B1 + i % 20)} 漢."
    for i in range(400)
]
BPE = {"kind": "bpe", "vocab_size": 300}


def pack(folder: Path, tokenizer: Tokenizer, texts: list[str], limit: int = 64) -> Stream:
    packer = Packer(folder, tokenizer, limit=limit)
    for text in texts:
        packer.add(text)
    packer.close()
    return Stream(folder)


def tokens_of(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return [token for text in texts for token in [*tokenizer.encode(text), tokenizer.end_of_text]]
