"""Small students, batches, and reference arithmetic in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from hypothesis import strategies as st

from distillkit.data.tokenizer import Tokenizer, train_bpe
from distillkit.student.generation.generate import generate_tokens
from distillkit.student.generation.sampling import Sampling
from distillkit.student.model.gpt import GPT, GPTConfig, initialise
from distillkit.student.trained import Trained
from distillkit.student.training.optimizers import flatten, unflatten

Array = np.ndarray[Any, Any]
SMALL = GPTConfig(vocab_size=23, layers=2, heads=2, width=16, hidden=32, context=8)
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


def lively(shape: GPTConfig, seed: int = 0, scale: float = 0.3) -> GPT:
    """A network with random weights, norms and biases included, large enough for clearly unequal logits."""
    model, random = GPT(shape), np.random.default_rng(seed)
    values = {}
    for name, value in flatten(model.parameters()).items():
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        values[name] = mx.array((mean + scale * random.normal(size=value.shape)).astype(np.float32))
    model.update(unflatten(values))
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


TINY = GPTConfig(vocab_size=13, layers=1, heads=2, width=8, hidden=16, context=8)


def batch_of(seed: int, rows: int = 6) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 13, (rows, 9)).astype(np.int32)
    ones = np.ones((rows, 8), np.float32)
    ones[:, 5] = 0
    return {"inputs": tokens[:, :-1], "hard": tokens[:, 1:], "weight": ones, "from_teacher": 1 - ones}


def tiny_model() -> GPT:
    model = GPT(TINY)
    initialise(model, 3)
    return model


def with_cache(
    model: nn.Module,
    context: int,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    length: int,
    **ends: Any,
) -> list[list[int]]:
    drawn = islice(generate_tokens(model, context, prompts, seeds, sampling, 0, **ends), length)
    return [[token for token in row if token is not None] for row in zip(*drawn, strict=True)]


@st.composite
def shapes(draw: Any) -> GPTConfig:
    heads = draw(st.sampled_from([1, 2, 4]))
    return GPTConfig(
        vocab_size=23,
        layers=draw(st.integers(1, 2)),
        heads=heads,
        width=heads * draw(st.sampled_from([2, 4, 6])),
        hidden=draw(st.sampled_from([8, 20])),
        context=10,
        bias=draw(st.booleans()),
        tied=draw(st.booleans()),
        activation=draw(st.sampled_from(["gelu", "gelu_tanh", "relu", "swiglu"])),
        positions=draw(st.sampled_from(["learned", "sinusoidal", "rope"])),
        norm=draw(st.sampled_from(["layernorm", "rmsnorm"])),
        attention_out=draw(st.booleans()),
        final_norm=draw(st.booleans()),
        head_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        kv_heads=draw(st.sampled_from([None, *(n for n in (1, 2, 4) if heads % n == 0)])),
    )
