"""GPT-2 written out in NumPy and float64, to compare a network with."""

from __future__ import annotations

import math

import numpy as np

from distillkit.student.model.gpt import GPT
from distillkit.student.training.optimizers import flatten
from support.students import Array, f64, softmax


def layer_norm(x: Array, weight: Array, bias: Array | float) -> Array:
    mean, spread = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    result: Array = (x - mean) / np.sqrt(spread + 1e-5) * weight + bias
    return result


ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def gpt2_forward(model: GPT, tokens: Array) -> Array:
    """Hidden states [B, T, D] of GPT-2: pre-norm blocks, head by head, in float64."""
    shape, weights = model.config, {name: f64(value) for name, value in flatten(model.parameters()).items()}

    def linear(x: Array, name: str) -> Array:
        result: Array = x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)
        return result

    def norm(x: Array, name: str) -> Array:
        return layer_norm(x, weights[f"{name}.weight"], weights.get(f"{name}.bias", 0.0))

    length, size = tokens.shape[1], shape.width // shape.heads
    x = weights["tokens.weight"][tokens] + weights["positions.weight"][:length]
    for i in range(shape.layers):
        block = f"blocks.{i}"
        queries, keys, values = np.split(linear(norm(x, f"{block}.attention_norm"), f"{block}.attention.qkv"), 3, -1)
        seen = np.zeros_like(x)
        for head in range(shape.heads):
            cut = slice(head * size, (head + 1) * size)
            scores = queries[..., cut] @ keys[..., cut].swapaxes(1, 2) / math.sqrt(size)
            scores[:, np.triu(np.ones((length, length), bool), 1)] = -np.inf
            seen[..., cut] = softmax(scores) @ values[..., cut]
        x = x + linear(seen, f"{block}.attention.out")
        inner = ACTIVATIONS[shape.activation](linear(norm(x, f"{block}.hidden_norm"), f"{block}.up"))
        x = x + linear(inner, f"{block}.down")
    return norm(x, "norm")
