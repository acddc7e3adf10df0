"""A pre-norm GPT, as GPT-2 was: learned positions, GELU, biases, dropout.

The network returns hidden states and offers its head, so that whoever computes a loss decides how many logits
exist at once. Knows nothing of losses, optimizers or text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import mlx.core as mx
import mlx.nn as nn

from .attention import causal_attention
from .cache import Cache
from .elementary import gelu
from .optimizer import Tree, flat
from .parts import LayerNorm, Linear


@dataclass(frozen=True)
class Shape:
    """The figures that make a GPT."""

    vocab_size: int
    layers: int = 4
    heads: int = 4
    width: int = 128
    hidden: int = 512
    context: int = 128
    dropout: float = 0.0
    bias: bool = True
    tied: bool = True
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": nn.gelu_approx, "relu": nn.relu}


class Attention(nn.Module):
    """Causal self-attention over fused queries, keys and values."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.heads = shape.heads
        self.qkv = Linear(shape.width, 3 * shape.width, bias=shape.bias)
        self.out = Linear(shape.width, shape.width, bias=shape.bias)

    def __call__(self, x: mx.array, mask: mx.array | str | None, past: Cache | None, layer: int) -> mx.array:
        """What each position gathers from those before it, in a cache or beside it."""
        batch, length, width = x.shape
        parts = self.qkv(x).reshape(batch, length, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
        queries, pair = mx.split(parts, [1])  # parts[0] would be a copy
        if past is not None:
            pair = past.add(layer, pair)
        queries, keys, values = (each.squeeze(0) for each in (queries, *mx.split(pair, 2)))
        if mask == "causal":
            seen = causal_attention(queries, keys, values)
        else:
            scale = 1 / math.sqrt(width // self.heads)
            seen = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
        return self.out(seen.transpose(0, 2, 1, 3).reshape(batch, length, width))


class Block(nn.Module):
    """Attention, then a two-layer network, each beside a residual stream that it reads normalised."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attention_norm = LayerNorm(shape.width, bias=shape.bias)
        self.attention = Attention(shape)
        self.hidden_norm = LayerNorm(shape.width, bias=shape.bias)
        self.up = Linear(shape.width, shape.hidden, bias=shape.bias)
        self.down = Linear(shape.hidden, shape.width, bias=shape.bias)
        self.dropout = nn.Dropout(shape.dropout)
        self.activation = ACTIVATIONS[shape.activation]

    def __call__(self, x: mx.array, mask: mx.array | str | None, past: Cache | None, layer: int) -> mx.array:
        """The stream after the block."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, past, layer))
        return x + self.dropout(self.down(self.activation(self.up(self.hidden_norm(x)))))


class GPT(nn.Module):
    """Tokens [B, T] to hidden states [B, T, D]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shape = shape
        self.recompute = False  # train.checkpointing: spend time on a smaller memory
        self.tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        self.blocks = [Block(shape) for _ in range(shape.layers)]
        self.norm = LayerNorm(shape.width, bias=shape.bias)
        if not shape.tied:
            self.out = Linear(shape.width, shape.vocab_size, bias=False)

    def __call__(self, tokens: mx.array) -> mx.array:
        """Hidden states of tokens."""
        return self._read(tokens, mx.arange(tokens.shape[1]), "causal", None)

    def cache(self, starts: Sequence[int]) -> Cache:
        """An empty cache for rows that begin with so much padding each."""
        return Cache(len(self.blocks), starts)

    def extend(self, tokens: mx.array, past: Cache) -> mx.array:
        """Hidden states of tokens that follow those of a cache, which grows by them.

        The padding at the left of a row is neither numbered nor seen.
        """
        length, before = tokens.shape[1], past.held
        places = mx.arange(before, before + length)
        mask: mx.array | str | None = "causal" if before == 0 else None
        if any(past.starts) or (before and length > 1):
            starts = mx.array(past.starts)
            mask = _visible(places, before + length, starts)
            places = mx.maximum(places[None] - starts[:, None], 0)
        hidden = self._read(tokens, places, mask, past)
        past.held += length
        return hidden

    def _read(self, tokens: mx.array, places: mx.array, mask: mx.array | str | None, past: Cache | None) -> mx.array:
        x = self.dropout(self.tokens(tokens) + self.positions(places)).astype(self.norm.weight.dtype)
        again = self.recompute and self.training and past is None
        for layer, block in enumerate(self.blocks):
            x = _computed_again(block, x, mask) if again else block(x, mask, past, layer)
        hidden: mx.array = self.norm(x)
        return hidden

    @property
    def shared(self) -> int:
        """How many parameters serve twice: those of a tied head."""
        return self.shape.vocab_size * self.shape.width if self.shape.tied else 0

    @property
    def head(self) -> tuple[mx.array, mx.array | None]:
        """The weight [V, D] and the bias [V] that turn hidden states into logits."""
        return (self.tokens.weight if self.shape.tied else self.out.weight), None


def _computed_again(block: nn.Module, x: mx.array, mask: mx.array | str | None) -> mx.array:
    """What a block makes of x, keeping none of it: the gradient computes it once more, with the same random numbers."""

    state: Any = mx.random.state
    high, low = state[0].tolist()

    def run(parameters: Tree, x: mx.array) -> mx.array:
        block.update(parameters)
        mx.random.seed(high << 32 | low)  # which is where it stands the first time
        return cast(mx.array, block(x, mask, None, 0))

    return mx.checkpoint(run)(block.trainable_parameters(), x)


def _visible(places: mx.array, total: int, starts: mx.array) -> mx.array:
    """Which keys each query sees [B, 1, T, total]: those before it that are not padding."""
    keys = mx.arange(total)
    causal = keys[None, :] <= places[:, None]
    real = keys[None, :] >= starts[:, None]
    own = keys[None, :] == places[:, None]  # padding sees itself, or its softmax would be over nothing
    return (causal[None] & real[:, None] | own[None])[:, None]


def initialise(model: GPT, seed: int) -> None:
    """GPT-2's initialisation: normal 0.02, residual projections scaled by depth, biases zero, norms one."""
    key = mx.random.key(seed)
    scaled = 0.02 / math.sqrt(2 * model.shape.layers)
    weights = []
    for name, value in _named(model).items():
        if value.ndim == 2:
            key, sub = mx.random.split(key)
            spread = scaled if name.endswith(("attention.out.weight", "down.weight")) else 0.02
            value = spread * mx.random.normal(value.shape, key=sub)
        elif name.endswith("bias"):
            value = mx.zeros_like(value)
        weights.append((name, value))
    model.load_weights(weights)


def count(model: nn.Module) -> int:
    """How many parameters a network has; a shared array counts once."""
    return sum(value.size for value in _named(model).values())


def _named(model: nn.Module) -> dict[str, mx.array]:
    return flat(model.parameters())
