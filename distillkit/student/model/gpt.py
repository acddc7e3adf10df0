"""A pre-norm GPT: by default as GPT-2 was, with learned positions, GELU, biases and dropout; or as Llama is.

The network returns hidden states and offers its head, so that whoever computes a loss decides how many logits
exist at once. Knows nothing of losses, optimizers or text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn

from ...core.errors import UsageError
from ..training.optimizers import Tree, flatten
from .attention import attention_weights, causal_attention
from .cpu.math import gelu, silu
from .kv_cache import Cache
from .layers import LayerNorm, Linear, RMSNorm
from .positions import Turn, angles, sinusoids, turned


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
    activation: Literal["gelu", "gelu_tanh", "relu", "swiglu"] = "gelu"
    positions: Literal["learned", "sinusoidal", "rope"] = "learned"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    attention_out: bool = True
    final_norm: bool = True
    head_bias: bool = False
    qk_norm: bool = False
    kv_heads: int | None = None

    @property
    def head_width(self) -> int:
        """The size of one attention head."""
        return self.width // self.heads

    @property
    def pairs(self) -> int:
        """How many heads have keys and values of their own; the others share them."""
        return self.kv_heads or self.heads


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": nn.gelu_approx, "relu": nn.relu, "swiglu": silu}


class Around(NamedTuple):
    """What a block must know beside its stream: who may see whom, how heads are turned, what was read before."""

    mask: mx.array | str | None
    turn: Turn | None = None
    past: Cache | None = None


def _norm(shape: Shape) -> nn.Module:
    return RMSNorm(shape.width) if shape.norm == "rmsnorm" else LayerNorm(shape.width, bias=shape.bias)


class Attention(nn.Module):
    """Causal self-attention over fused queries, keys and values."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.heads, self.pairs = shape.heads, shape.pairs
        self.qkv = Linear(shape.width, (shape.heads + 2 * shape.pairs) * shape.head_width, bias=shape.bias)
        if shape.qk_norm:
            self.query_norm, self.key_norm = RMSNorm(shape.head_width), RMSNorm(shape.head_width)
        if shape.attention_out:
            self.out = Linear(shape.width, shape.width, bias=shape.bias)

    def __call__(self, x: mx.array, around: Around, layer: int) -> mx.array:
        """What each position gathers from those before it, in a cache or beside it."""
        batch, length, width = x.shape
        queries, pair = self._placed(*self._apart(self.qkv(x)), around.turn)
        if around.past is not None:
            pair = around.past.add(layer, pair)
        queries, keys, values = (each.squeeze(0) for each in (queries, *mx.split(pair, 2)))
        if around.mask == "causal":
            seen = causal_attention(queries, keys, values)
        else:
            scale = 1 / math.sqrt(width // self.heads)
            seen = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=around.mask)
        seen = seen.transpose(0, 2, 1, 3).reshape(batch, length, width)
        return self.out(seen) if "out" in self else seen

    def weights(self, x: mx.array, turn: Turn | None) -> mx.array:
        """How much each position takes from each [B, H, T, T], where all of a text is read at once."""
        queries, pair = self._placed(*self._apart(self.qkv(x)), turn)
        keys, _ = mx.split(pair, 2)
        return attention_weights(queries.squeeze(0), keys.squeeze(0))

    def _apart(self, joined: mx.array) -> tuple[mx.array, mx.array]:
        """Queries [1, B, H, T, D], and keys with values [2, B, G, T, D]."""
        batch, length, _ = joined.shape
        if self.pairs == self.heads:
            parts = joined.reshape(batch, length, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
            queries, pair = mx.split(parts, [1])  # parts[0] would be a copy
            return queries, pair
        each = joined.shape[-1] // (self.heads + 2 * self.pairs)
        queries, pair = mx.split(joined, [self.heads * each], axis=-1)
        queries = queries.reshape(batch, length, 1, self.heads, each).transpose(2, 0, 3, 1, 4)
        return queries, pair.reshape(batch, length, 2, self.pairs, each).transpose(2, 0, 3, 1, 4)

    def _placed(self, queries: mx.array, pair: mx.array, turn: Turn | None) -> tuple[mx.array, mx.array]:
        """Queries and keys at one length and turned by their places, where the network has that."""
        if turn is None and "query_norm" not in self:
            return queries, pair
        keys, values = mx.split(pair, 2)
        if "query_norm" in self:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        if turn is not None:
            queries, keys = turned(queries, turn), turned(keys, turn)
        return queries, mx.concatenate([keys, values])


class Block(nn.Module):
    """Attention, then a two-layer network, each beside a residual stream that it reads normalised."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attention_norm = _norm(shape)
        self.attention = Attention(shape)
        self.hidden_norm = _norm(shape)
        if shape.activation == "swiglu":
            self.gate = Linear(shape.width, shape.hidden, bias=shape.bias)
        self.up = Linear(shape.width, shape.hidden, bias=shape.bias)
        self.down = Linear(shape.hidden, shape.width, bias=shape.bias)
        self.dropout = nn.Dropout(shape.dropout)
        self.activation = ACTIVATIONS[shape.activation]

    def __call__(self, x: mx.array, around: Around, layer: int) -> mx.array:
        """The stream after the block."""
        x = x + self.dropout(self.attention(self.attention_norm(x), around, layer))
        return x + self.dropout(self.down(self._inner(self.hidden_norm(x))))

    def _inner(self, x: mx.array) -> mx.array:
        inner: mx.array = self.activation(self.gate(x)) * self.up(x) if "gate" in self else self.activation(self.up(x))
        return inner


class GPT(nn.Module):
    """Tokens [B, T] to hidden states [B, T, D]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shape = shape
        self.recompute = False  # train.checkpointing: spend time on a smaller memory
        self.tokens = nn.Embedding(shape.vocab_size, shape.width)
        if shape.positions == "learned":
            self.positions = nn.Embedding(shape.context, shape.width)
        elif shape.positions == "sinusoidal":
            self._sinusoids = sinusoids(shape.context, shape.width)
        else:
            self._angles = angles(shape.context, shape.head_width)
        self.dropout = nn.Dropout(shape.dropout)
        self.blocks = [Block(shape) for _ in range(shape.layers)]
        if shape.final_norm:
            self.norm = _norm(shape)
        if not shape.tied:
            self.out = Linear(shape.width, shape.vocab_size, bias=shape.head_bias)
        elif shape.head_bias:
            self.head_bias = mx.zeros(shape.vocab_size)

    def __call__(self, tokens: mx.array) -> mx.array:
        """Hidden states of tokens."""
        return self._read(tokens, self._places(tokens), "causal", None)

    def attention(self, tokens: mx.array) -> list[mx.array]:
        """How much each position takes from each [B, H, T, T], block by block: the same numbers as in a call."""
        x, around = self._begun(tokens, self._places(tokens), "causal", None)
        found = []
        for layer, block in enumerate(self.blocks):
            found.append(block.attention.weights(block.attention_norm(x), around.turn))
            x = block(x, around, layer)
        return found

    def cache(self, starts: Sequence[int]) -> Cache:
        """An empty cache for rows that begin with so much padding each."""
        return Cache(len(self.blocks), starts)

    def extend(self, tokens: mx.array, past: Cache) -> mx.array:
        """Hidden states of tokens that follow those of a cache, which grows by them.

        The padding at the left of a row is neither numbered nor seen.
        """
        length, before = tokens.shape[1], past.held
        self._must_fit(before + length - min(past.starts, default=0))
        places = mx.arange(before, before + length)
        mask: mx.array | str | None = "causal" if before == 0 else None
        if any(past.starts) or (before and length > 1):
            starts = mx.array(past.starts)
            mask = _visible(places, before + length, starts)
            places = mx.maximum(places[None] - starts[:, None], 0)
        hidden = self._read(tokens, places, mask, past)
        past.held += length
        return hidden

    def _places(self, tokens: mx.array) -> mx.array:
        """The places of tokens that begin a text."""
        length = tokens.shape[1]
        self._must_fit(length)
        return mx.arange(length)

    def _must_fit(self, length: int) -> None:
        """Refuse more tokens than there are places: MLX would look beyond its tables, and find anything there."""
        if length > self.shape.context:
            raise UsageError(
                f"this student reads {self.shape.context} tokens at once, and was given {length}",
                "Give it fewer at once.",
            )

    def _read(self, tokens: mx.array, places: mx.array, mask: mx.array | str | None, past: Cache | None) -> mx.array:
        x, around = self._begun(tokens, places, mask, past)
        again = self.recompute and self.training and past is None
        for layer, block in enumerate(self.blocks):
            x = _computed_again(block, x, around) if again else block(x, around, layer)
        hidden: mx.array = self.norm(x) if self.shape.final_norm else x
        return hidden

    def _begun(
        self, tokens: mx.array, places: mx.array, mask: mx.array | str | None, past: Cache | None
    ) -> tuple[mx.array, Around]:
        """The stream before the first block, and what all blocks must know beside it."""
        dtype = self.blocks[0].attention_norm.weight.dtype
        x = self.dropout(self._embedded(tokens, places)).astype(dtype)
        return x, Around(mask, self._turn(places, dtype), past)

    def _embedded(self, tokens: mx.array, places: mx.array) -> mx.array:
        """Tokens, with their places added where that is how the network learns of them."""
        words: mx.array = self.tokens(tokens)
        if self.shape.positions == "rope":
            return words
        return words + (self._sinusoids[places] if self.shape.positions == "sinusoidal" else self.positions(places))

    def _turn(self, places: mx.array, dtype: mx.Dtype) -> Turn | None:
        """Cosines and sines of places [T] or [B, T], for heads [.., B, H, T, D]."""
        if self.shape.positions != "rope":
            return None
        cos, sin = (table[places].astype(dtype) for table in self._angles)
        return (cos, sin) if places.ndim == 1 else (cos[:, None], sin[:, None])

    @property
    def shared(self) -> int:
        """How many parameters serve twice: those of a tied head."""
        return self.shape.vocab_size * self.shape.width if self.shape.tied else 0

    @property
    def head(self) -> tuple[mx.array, mx.array | None]:
        """The weight [V, D] and the bias [V] that turn hidden states into logits."""
        if self.shape.tied:
            return self.tokens.weight, self.head_bias if self.shape.head_bias else None
        return self.out.weight, self.out.bias if self.shape.head_bias else None


def _computed_again(block: nn.Module, x: mx.array, around: Around) -> mx.array:
    """What a block makes of x, keeping none of it: the gradient computes it once more, with the same random numbers."""

    state: Any = mx.random.state
    high, low = state[0].tolist()

    def run(parameters: Tree, x: mx.array) -> mx.array:
        block.update(parameters)
        mx.random.seed(high << 32 | low)  # which is where it stands the first time
        return cast(mx.array, block(x, around, 0))

    return mx.checkpoint(run)(block.trainable_parameters(), x)


def _visible(places: mx.array, total: int, starts: mx.array) -> mx.array:
    """Which keys each query sees [B, 1, T, total]: those before it that are not padding."""
    keys = mx.arange(total)
    causal = keys[None, :] <= places[:, None]
    real = keys[None, :] >= starts[:, None]
    own = keys[None, :] == places[:, None]  # padding sees itself, or its softmax would be over nothing
    return (causal[None] & real[:, None] | own[None])[:, None]


def initialise(model: GPT, seed: int) -> None:
    """GPT-2's initialisation: normal 0.02, residual projections scaled by depth, biases zero, norms one.

    Fixed positions are as large as 1, so tokens beside them must be, too, or nobody would hear them; unless they are
    the head as well, which that would drown.
    """
    key = mx.random.key(seed)
    scaled = 0.02 / math.sqrt(2 * model.shape.layers)
    loud = model.shape.positions == "sinusoidal" and not model.shape.tied
    weights = []
    for name, value in named(model).items():
        if value.ndim == 2:
            key, sub = mx.random.split(key)
            spread = scaled if name.endswith(("attention.out.weight", "down.weight")) else 0.02
            spread = 1.0 if loud and name == "tokens.weight" else spread
            value = spread * mx.random.normal(value.shape, key=sub)
        elif name.endswith("bias"):
            value = mx.zeros_like(value)
        weights.append((name, value))
    model.load_weights(weights)


def count(model: nn.Module) -> int:
    """How many parameters a network has; a shared array counts once."""
    return sum(value.size for value in named(model).values())


def named(model: nn.Module) -> dict[str, mx.array]:
    """The weights of a network, by name."""
    return flatten(model.parameters())
