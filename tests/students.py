"""Small students and plain arithmetic that several tests share."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from distillkit.data.tokenizer import Tokenizer, train_bpe
from distillkit.student.model.gpt import GPT, Shape
from distillkit.student.trained import Trained
from distillkit.student.training.optimizers import flat, grown

Array = np.ndarray[Any, Any]
SMALL = Shape(vocab_size=23, layers=2, heads=2, width=16, hidden=32, context=8)
TEXTS = [
    "One day a fox met a hen.",
    "The hen was kind, and the fox was not.",
    "They all went home. Ünïcode 漢字.",
]


def f64(value: mx.array) -> Array:
    return np.array(value.astype(mx.float32)).astype(np.float64)


def random_array(seed: int, *shape: int, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def softmax(logits: Array) -> Array:
    result: Array = np.exp(log_softmax(logits))
    return result


def lively(shape: Shape, seed: int = 0, scale: float = 0.3) -> GPT:
    """A network with every weight random, norms and biases included, and opinions strong enough to matter."""
    model, random = GPT(shape), np.random.default_rng(seed)
    values = {}
    for name, value in flat(model.parameters()).items():
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        values[name] = mx.array((mean + scale * random.normal(size=value.shape)).astype(np.float32))
    model.update(grown(values))
    model.eval()
    return model


@cache
def small_model(context: int = 8) -> GPT:
    return lively(replace(SMALL, context=context), seed=4, scale=0.4)


@cache
def tokenizer() -> Tokenizer:
    return train_bpe(iter(TEXTS * 20), 300)


@cache
def writer() -> Trained:
    shape = replace(SMALL, vocab_size=tokenizer().vocab_size, context=12)
    return Trained(lively(shape, seed=2, scale=0.25), tokenizer(), 12)
