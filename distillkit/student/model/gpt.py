"""A pre-norm GPT: by default GPT-2's architecture (learned positions, GELU, biases, dropout); by its options Llama's.

The network returns hidden states and offers its head, so that the code that computes a loss decides how many logits
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
from .kv_cache import KVCache
from .layers import LayerNorm, Linear, RMSNorm
from .positions import Rotation, apply_rope, rope_tables, sinusoidal_table


@dataclass(frozen=True)
class GPTConfig:
    """The hyperparameters of a GPT."""

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
    def head_dim(self) -> int:
        """The size of one attention head."""
        return self.width // self.heads

    @property
    def num_kv_heads(self) -> int:
        """The number of key-value heads: fewer than query heads in grouped-query attention."""
        return self.kv_heads or self.heads


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": nn.gelu_approx, "relu": nn.relu, "swiglu": silu}


class AttentionArgs(NamedTuple):
    """What every block needs beside its input: the attention mask, the rotary embedding and the KV cache."""

    mask: mx.array | str | None
    rotation: Rotation | None = None
    cache: KVCache | None = None


def _make_norm(config: GPTConfig) -> nn.Module:
    return RMSNorm(config.width) if config.norm == "rmsnorm" else LayerNorm(config.width, bias=config.bias)


class Attention(nn.Module):
    """Causal multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.heads, self.num_kv_heads = config.heads, config.num_kv_heads
        self.qkv = Linear(config.width, (config.heads + 2 * config.num_kv_heads) * config.head_dim, bias=config.bias)
        if config.qk_norm:
            self.query_norm, self.key_norm = RMSNorm(config.head_dim), RMSNorm(config.head_dim)
        if config.attention_out:
            self.out = Linear(config.width, config.width, bias=config.bias)

    def __call__(self, x: mx.array, args: AttentionArgs, layer: int) -> mx.array:
        """The attention output [B, T, D] of x [B, T, D], over the positions in the cache too."""
        batch, length, width = x.shape
        queries, keys_values = self._norm_and_rotate(*self._split_heads(self.qkv(x)), args.rotation)
        if args.cache is not None:
            keys_values = args.cache.append(layer, keys_values)
        queries, keys, values = (each.squeeze(0) for each in (queries, *mx.split(keys_values, 2)))
        if args.mask == "causal":
            attended = causal_attention(queries, keys, values)
        else:
            scale = 1 / math.sqrt(width // self.heads)
            attended = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=args.mask)
        attended = attended.transpose(0, 2, 1, 3).reshape(batch, length, width)
        return self.out(attended) if "out" in self else attended

    def weights(self, x: mx.array, rotation: Rotation | None) -> mx.array:
        """Attention weights [B, H, T, T] of x [B, T, D], without a cache."""
        queries, keys_values = self._norm_and_rotate(*self._split_heads(self.qkv(x)), rotation)
        keys, _ = mx.split(keys_values, 2)
        return attention_weights(queries.squeeze(0), keys.squeeze(0))

    def _split_heads(self, qkv: mx.array) -> tuple[mx.array, mx.array]:
        """Queries [1, B, H, T, D], and keys with values [2, B, G, T, D], for G key-value heads."""
        batch, length, _ = qkv.shape
        if self.num_kv_heads == self.heads:
            parts = qkv.reshape(batch, length, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
            queries, keys_values = mx.split(parts, [1])  # parts[0] would be a copy
            return queries, keys_values
        head_dim = qkv.shape[-1] // (self.heads + 2 * self.num_kv_heads)
        queries, keys_values = mx.split(qkv, [self.heads * head_dim], axis=-1)
        queries = queries.reshape(batch, length, 1, self.heads, head_dim).transpose(2, 0, 3, 1, 4)
        return queries, keys_values.reshape(batch, length, 2, self.num_kv_heads, head_dim).transpose(2, 0, 3, 1, 4)

    def _norm_and_rotate(
        self, queries: mx.array, keys_values: mx.array, rotation: Rotation | None
    ) -> tuple[mx.array, mx.array]:
        """Apply the query and key norms and the rotary embedding, if the network has them."""
        if rotation is None and "query_norm" not in self:
            return queries, keys_values
        keys, values = mx.split(keys_values, 2)
        if "query_norm" in self:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        if rotation is not None:
            queries, keys = apply_rope(queries, rotation), apply_rope(keys, rotation)
        return queries, mx.concatenate([keys, values])


class Block(nn.Module):
    """A pre-norm transformer block: attention, then an MLP, each added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attention_norm = _make_norm(config)
        self.attention = Attention(config)
        self.hidden_norm = _make_norm(config)
        if config.activation == "swiglu":
            self.gate = Linear(config.width, config.hidden, bias=config.bias)
        self.up = Linear(config.width, config.hidden, bias=config.bias)
        self.down = Linear(config.hidden, config.width, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.activation = ACTIVATIONS[config.activation]

    def __call__(self, x: mx.array, args: AttentionArgs, layer: int) -> mx.array:
        """The residual stream [B, T, D] after the block."""
        x = x + self.dropout(self.attention(self.attention_norm(x), args, layer))
        return x + self.dropout(self.down(self._inner(self.hidden_norm(x))))

    def _inner(self, x: mx.array) -> mx.array:
        inner: mx.array = self.activation(self.gate(x)) * self.up(x) if "gate" in self else self.activation(self.up(x))
        return inner


class GPT(nn.Module):
    """Tokens [B, T] to hidden states [B, T, D]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.config = config
        self.recompute = False  # gradient checkpointing (train.checkpointing)
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.context, config.width)
        elif config.positions == "sinusoidal":
            self._sinusoids = sinusoidal_table(config.context, config.width)
        else:
            self._rope_tables = rope_tables(config.context, config.head_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = [Block(config) for _ in range(config.layers)]
        if config.final_norm:
            self.norm = _make_norm(config)
        if not config.tied:
            self.out = Linear(config.width, config.vocab_size, bias=config.head_bias)
        elif config.head_bias:
            self.head_bias = mx.zeros(config.vocab_size)

    def __call__(self, tokens: mx.array) -> mx.array:
        """Hidden states [B, T, D] of tokens [B, T]."""
        return self._forward(tokens, self._positions_of(tokens), "causal", None)

    def attention(self, tokens: mx.array) -> list[mx.array]:
        """Attention weights [B, H, T, T] of each block, equal to those that a forward pass uses."""
        x, args = self._embed(tokens, self._positions_of(tokens), "causal", None)
        weights = []
        for layer, block in enumerate(self.blocks):
            weights.append(block.attention.weights(block.attention_norm(x), args.rotation))
            x = block(x, args, layer)
        return weights

    def cache(self, starts: Sequence[int]) -> KVCache:
        """An empty KV cache for rows that begin with `starts[i]` padding tokens each."""
        return KVCache(len(self.blocks), starts)

    def extend(self, tokens: mx.array, past: KVCache) -> mx.array:
        """Hidden states [B, T, D] of tokens [B, T] that follow those in the cache, to which they are appended.

        Padding at the left of a row is masked and gets no position.
        """
        length, before = tokens.shape[1], past.length
        self._check_length(before + length - min(past.starts, default=0))
        positions = mx.arange(before, before + length)
        mask: mx.array | str | None = "causal" if before == 0 else None
        if any(past.starts) or (before and length > 1):
            starts = mx.array(past.starts)
            mask = _padding_mask(positions, before + length, starts)
            positions = mx.maximum(positions[None] - starts[:, None], 0)
        hidden = self._forward(tokens, positions, mask, past)
        past.length += length
        return hidden

    def _positions_of(self, tokens: mx.array) -> mx.array:
        length = tokens.shape[1]
        self._check_length(length)
        return mx.arange(length)

    def _check_length(self, length: int) -> None:
        """Refuse more tokens than there are positions: MLX does not check the bounds of a table."""
        if length > self.config.context:
            raise UsageError(
                f"this student has a context of {self.config.context} tokens and was given {length}",
                "Pass fewer tokens at once.",
            )

    def _forward(
        self, tokens: mx.array, positions: mx.array, mask: mx.array | str | None, cache: KVCache | None
    ) -> mx.array:
        x, args = self._embed(tokens, positions, mask, cache)
        recompute = self.recompute and self.training and cache is None
        for layer, block in enumerate(self.blocks):
            x = _checkpointed(block, x, args) if recompute else block(x, args, layer)
        hidden: mx.array = self.norm(x) if self.config.final_norm else x
        return hidden

    def _embed(
        self, tokens: mx.array, positions: mx.array, mask: mx.array | str | None, cache: KVCache | None
    ) -> tuple[mx.array, AttentionArgs]:
        """The input of the first block, and the arguments of all blocks."""
        dtype = self.blocks[0].attention_norm.weight.dtype
        x = self.dropout(self._embed_tokens(tokens, positions)).astype(dtype)
        return x, AttentionArgs(mask, self._rotation(positions, dtype), cache)

    def _embed_tokens(self, tokens: mx.array, positions: mx.array) -> mx.array:
        """Token embeddings, plus position embeddings unless the network uses RoPE."""
        x: mx.array = self.tokens(tokens)
        if self.config.positions == "rope":
            return x
        return x + (self._sinusoids[positions] if self.config.positions == "sinusoidal" else self.positions(positions))

    def _rotation(self, positions: mx.array, dtype: mx.Dtype) -> Rotation | None:
        """Cosines and sines of positions [T] or [B, T], broadcastable to heads [.., B, H, T, D / 2]."""
        if self.config.positions != "rope":
            return None
        cos, sin = (table[positions].astype(dtype) for table in self._rope_tables)
        return (cos, sin) if positions.ndim == 1 else (cos[:, None], sin[:, None])

    @property
    def shared(self) -> int:
        """The number of parameters that are used twice: those of a tied head."""
        return self.config.vocab_size * self.config.width if self.config.tied else 0

    @property
    def head(self) -> tuple[mx.array, mx.array | None]:
        """The weight [V, D] and the bias [V] or None that turn hidden states into logits."""
        if self.config.tied:
            return self.tokens.weight, self.head_bias if self.config.head_bias else None
        return self.out.weight, self.out.bias if self.config.head_bias else None


def _checkpointed(block: nn.Module, x: mx.array, args: AttentionArgs) -> mx.array:
    """block(x) with gradient checkpointing: the backward pass recomputes it, with the same random numbers."""

    state: Any = mx.random.state
    high, low = state[0].tolist()

    def run(parameters: Tree, x: mx.array) -> mx.array:
        block.update(parameters)
        mx.random.seed(high << 32 | low)  # the state of the generator in the forward pass
        return cast(mx.array, block(x, args, 0))

    return mx.checkpoint(run)(block.trainable_parameters(), x)


def _padding_mask(positions: mx.array, total: int, starts: mx.array) -> mx.array:
    """A boolean mask [B, 1, T, total]: each query sees the keys up to its own position that are not padding."""
    keys = mx.arange(total)
    causal = keys[None, :] <= positions[:, None]
    real = keys[None, :] >= starts[:, None]
    own = keys[None, :] == positions[:, None]  # padding sees itself, because a softmax over nothing is NaN
    return (causal[None] & real[:, None] | own[None])[:, None]


def initialise(model: GPT, seed: int) -> None:
    """GPT-2's initialisation: normal with standard deviation 0.02, residual projections scaled by depth, biases zero.

    Sinusoidal positions have values up to 1, so token embeddings then get standard deviation 1, or the positions would
    dominate them. A tied head rules this out, because its logits would be too large.
    """
    key = mx.random.key(seed)
    scaled = 0.02 / math.sqrt(2 * model.config.layers)
    large_tokens = model.config.positions == "sinusoidal" and not model.config.tied
    weights = []
    for name, value in named_parameters(model).items():
        if value.ndim == 2:
            key, sub = mx.random.split(key)
            deviation = scaled if name.endswith(("attention.out.weight", "down.weight")) else 0.02
            deviation = 1.0 if large_tokens and name == "tokens.weight" else deviation
            value = deviation * mx.random.normal(value.shape, key=sub)
        elif name.endswith("bias"):
            value = mx.zeros_like(value)
        weights.append((name, value))
    model.load_weights(weights)


def count_parameters(model: nn.Module) -> int:
    """The number of parameters of a network. A shared array counts once."""
    return sum(value.size for value in named_parameters(model).values())


def named_parameters(model: nn.Module) -> dict[str, mx.array]:
    """The parameters of a network by name."""
    return flatten(model.parameters())
