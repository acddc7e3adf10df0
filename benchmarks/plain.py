"""A straightforward training step in MLX: one stream, no compilation, all logits of a batch at once.

The baseline for distillkit's own step: the same network, loss and optimizer, from MLX's standard modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from problems import Problem, Teacher, learning_rate

ACTIVATIONS = {"gelu": nn.gelu, "relu": nn.relu}


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, activation: str) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.hidden_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def __call__(self, x: mx.array) -> mx.array:
        batch, length, width = x.shape
        parts = mx.split(self.qkv(self.attention_norm(x)), 3, axis=-1)
        q, k, v = (p.reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3) for p in parts)
        scale = 1 / math.sqrt(width // self.heads)
        attended = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")
        x = x + self.out(attended.transpose(0, 2, 1, 3).reshape(batch, length, width))
        return x + self.down(self.activation(self.up(self.hidden_norm(x))))


class Plain(nn.Module):
    def __init__(self, config: dict[str, Any], activation: str) -> None:
        super().__init__()
        width = config["width"]
        self.tokens, self.positions = nn.Embedding(config["vocab_size"], width), nn.Embedding(config["context"], width)
        self.blocks = [Block(width, config["hidden"], config["heads"], activation) for _ in range(config["layers"])]
        self.norm = nn.LayerNorm(width)
        self.tied = config.get("tied", True)
        if not self.tied:
            self.head = nn.Linear(width, config["vocab_size"], bias=False)

    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.tokens(tokens) + self.positions(mx.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.tokens.as_linear(x) if self.tied else self.head(x)


def network(source: Problem | Teacher) -> Plain:
    """A network with the problem's initial weights."""
    model = Plain(source.config, source.activation)
    names = {"attention.qkv": "qkv", "attention.out": "out"}
    weights = {}
    for name, value in source.weights.items():
        for distillkit_name, plain_name in names.items():
            name = name.replace(distillkit_name, plain_name)
        weights["head.weight" if name == "out.weight" else name] = mx.array(value)
    model.load_weights(list(weights.items()))
    mx.eval(model.parameters())
    source.weights.clear()
    return model


def stepper(problem: Problem) -> Callable[[int], float]:
    """A function that takes a training step and returns the loss before it."""
    model = network(problem)
    teacher = network(problem.teacher) if problem.teacher else None
    optimizer = optim.MultiOptimizer(
        [
            optim.AdamW(problem.rate, [0.9, 0.95], 1e-8, weight_decay=0.1, bias_correction=True),
            optim.AdamW(problem.rate, [0.9, 0.95], 1e-8, weight_decay=0.0, bias_correction=True),
        ],
        [lambda name, value: value.ndim >= 2 and "positions" not in name],
    )

    def loss_of(model: Plain, inputs: mx.array, hard: mx.array, weight: mx.array) -> mx.array:
        logits = model(inputs)
        total = mx.sum(weight)
        loss = mx.sum(nn.losses.cross_entropy(logits, hard) * weight) / total
        if teacher is None:
            return loss
        teacher_log = nn.log_softmax(teacher(inputs))
        kl = mx.sum(mx.exp(teacher_log) * (teacher_log - nn.log_softmax(logits)), axis=-1)
        return problem.alpha * loss + (1 - problem.alpha) * mx.sum(kl * weight) / total

    value_and_grad = nn.value_and_grad(model, loss_of)

    def step(number: int) -> float:
        loss, gradients = value_and_grad(model, *(mx.array(part) for part in problem.batch(number)))
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        for each in optimizer.optimizers:
            each.learning_rate = learning_rate(problem, number)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state, loss)
        return float(loss.item())

    return step
