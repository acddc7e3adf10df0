"""Every kind of gpt held against plain arithmetic in float64, with a cache and without."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from distillkit_plugins.gpt import Gpt
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.student.generation.generate import compute_logits
from distillkit.student.model import gpt as room
from distillkit.student.model.attention import causal_attention
from distillkit.student.model.cpu.math import silu
from distillkit.student.model.gpt import GPT, GPTConfig, count_parameters, initialise
from distillkit.student.model.layers import RMSNorm
from distillkit.student.trained import parameter_counts, with_default_options
from distillkit.student.training.optimizers import flatten
from support.students import SMALL, f64, lively, random_array, shapes, softmax

Array = np.ndarray[Any, Any]
QUICK = settings(max_examples=60, deadline=None)


# ---------------------------------------------------------------------------------------------- reference


class Plain:
    """A pre-norm GPT in NumPy, one text at a time, written from the papers."""

    def __init__(self, model: GPT) -> None:
        self.shape = model.config
        self.weights = {name: f64(value) for name, value in flatten(model.parameters()).items()}
        self.looked: list[Array] = []  # the attention of each head of each block, in the order of reading

    def logits(self, tokens: list[int]) -> Array:
        shape, weights = self.shape, self.weights
        x = weights["tokens.weight"][tokens]
        if shape.positions == "learned":
            x = x + weights["positions.weight"][: len(tokens)]
        if shape.positions == "sinusoidal":
            x = x + np.array([[self.wave(p, i) for i in range(shape.width)] for p in range(len(tokens))])
        for i in range(shape.layers):
            x = x + self.attention(self.norm(x, f"blocks.{i}.attention_norm"), f"blocks.{i}.attention")
            x = x + self.hidden(self.norm(x, f"blocks.{i}.hidden_norm"), f"blocks.{i}")
        x = self.norm(x, "norm") if shape.final_norm else x
        head = weights["tokens.weight"] if shape.tied else weights["out.weight"]
        bias = weights.get("head_bias" if shape.tied else "out.bias", 0.0)
        result: Array = x @ head.T + bias
        return result

    def wave(self, place: int, i: int) -> float:
        angle = place / 10_000 ** (2 * (i // 2) / self.shape.width)
        return math.cos(angle) if i % 2 else math.sin(angle)

    def linear(self, x: Array, name: str) -> Array:
        result: Array = x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)
        return result

    def norm(self, x: Array, name: str, rms: bool | None = None) -> Array:
        if not (self.shape.norm == "rmsnorm" if rms is None else rms):
            x = x - x.mean(axis=-1, keepdims=True)
        scaled = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * self.weights[f"{name}.weight"]
        result: Array = scaled + self.weights.get(f"{name}.bias", 0.0)
        return result

    def hidden(self, x: Array, block: str) -> Array:
        up = self.linear(x, f"{block}.up")
        erf = np.vectorize(math.erf)
        inner = {
            "gelu": lambda: 0.5 * up * (1 + erf(up / math.sqrt(2))),
            "gelu_tanh": lambda: 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3))),
            "relu": lambda: np.maximum(up, 0),
            "swiglu": lambda: (gate := self.linear(x, f"{block}.gate")) / (1 + np.exp(-gate)) * up,
        }[self.shape.activation]()
        return self.linear(inner, f"{block}.down")

    def attention(self, x: Array, name: str) -> Array:
        shape, each = self.shape, self.shape.width // self.shape.heads
        joined = self.linear(x, f"{name}.qkv").reshape(len(x), -1, each)
        pairs = shape.kv_heads or shape.heads
        queries, keys, values = np.split(joined, [shape.heads, shape.heads + pairs], axis=1)
        if shape.qk_norm:
            queries, keys = self.norm(queries, f"{name}.query_norm", True), self.norm(keys, f"{name}.key_norm", True)
        if shape.positions == "rope":
            queries, keys = self.turned(queries), self.turned(keys)
        seen = np.zeros((len(x), shape.heads, each))
        for head in range(shape.heads):
            own = head * pairs // shape.heads
            scores = queries[:, head] @ keys[:, own].T / math.sqrt(each)
            scores = np.where(np.tri(len(x)) > 0, scores, -np.inf)
            weights = softmax(scores)
            self.looked.append(weights)
            seen[:, head] = weights @ values[:, own]
        seen = seen.reshape(len(x), -1)
        return self.linear(seen, f"{name}.out") if shape.attention_out else seen

    def turned(self, heads: Array) -> Array:
        half, result = heads.shape[-1] // 2, heads.copy()
        for place in range(len(heads)):
            for i in range(half):
                angle = place / 10_000 ** (i / half)
                one, other = heads[place, :, i], heads[place, :, i + half]
                result[place, :, i] = one * math.cos(angle) - other * math.sin(angle)
                result[place, :, i + half] = other * math.cos(angle) + one * math.sin(angle)
        return result


# ---------------------------------------------------------------------------------------------- outputs


@QUICK
@given(shapes(), st.integers(0, 99))
def test_every_combination_is_plain_arithmetic(shape: GPTConfig, seed: int) -> None:
    model = lively(shape, seed)
    tokens = np.random.default_rng(seed).integers(0, 23, 10).tolist()
    found = f64(compute_logits(model, model(mx.array([tokens])))[0])
    expected = Plain(model).logits(tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(expected).max()))


@QUICK
@given(shapes(), st.integers(0, 99))
def test_the_attention_that_is_shown_is_plain_arithmetic(shape: GPTConfig, seed: int) -> None:
    model, rows = lively(shape, seed), np.random.default_rng(seed).integers(0, 23, (2, 10))
    shown = [f64(weights) for weights in model.attention(mx.array(rows))]
    assert [weights.shape for weights in shown] == [(2, shape.heads, 10, 10)] * shape.layers
    for i, row in enumerate(rows.tolist()):
        plain = Plain(model)
        plain.logits(row)
        expected = np.array(plain.looked).reshape(shape.layers, shape.heads, 10, 10)
        np.testing.assert_allclose(np.array([weights[i] for weights in shown]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [None, 1])
def test_the_attention_that_is_shown_is_what_a_call_weighs_values_with(
    kv_heads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively(replace(SMALL, kv_heads=kv_heads, context=200))
    tokens = mx.array(np.random.default_rng(0).integers(0, 23, (2, 200)))  # longer than a block of queries
    shown, hidden = model.attention(tokens), model(tokens)
    unused = iter(shown)
    monkeypatch.setattr(room, "causal_attention", lambda queries, keys, values: next(unused) @ values)
    np.testing.assert_allclose(f64(model(tokens)), f64(hidden), rtol=1e-4, atol=1e-5)
    assert next(unused, None) is None


@QUICK
@given(shapes(), st.integers(0, 99), st.integers(0, 4))
def test_every_combination_is_the_same_with_a_cache(shape: GPTConfig, seed: int, padding: int) -> None:
    model = lively(shape, seed)
    rows = np.random.default_rng(seed).integers(0, 23, (2, 10))
    past = model.cache([padding, 0])
    pieces = [model.extend(mx.array(rows[:, :6]), past)]  # a prompt, padded at its left, then three tokens, then one
    pieces += [model.extend(mx.array(rows[:, 6:9]), past), model.extend(mx.array(rows[:, 9:]), past)]
    cached = f64(mx.concatenate(pieces, axis=1))
    for row, start in ((0, padding), (1, 0)):
        whole = f64(model(mx.array(rows[row : row + 1, start:])))[0]
        scale = max(1.0, np.abs(whole).max())
        np.testing.assert_allclose(cached[row, start:], whole, rtol=1e-4, atol=1e-4 * scale)


@QUICK
@given(shapes(), st.integers(0, 99))
def test_blocks_computed_again_have_the_same_gradients(shape: GPTConfig, seed: int) -> None:
    model = lively(shape, seed)
    model.train()
    tokens = mx.array(np.random.default_rng(seed).integers(0, 23, (2, 10)))

    def loss(model: GPT) -> mx.array:
        return (compute_logits(model, model(tokens)) ** 2).mean()

    slopes = []
    for model.recompute in (False, True):
        slopes.append({name: f64(value) for name, value in flatten(nn.value_and_grad(model, loss)(model)[1]).items()})
    for name, slope in slopes[0].items():
        np.testing.assert_allclose(slopes[1][name], slope, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(slope).max()))


# ---------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("largest", [1.0, 30.0, 200.0])
def test_silu_and_its_slope_are_exact(largest: float) -> None:
    x = np.linspace(-largest, largest, 2001).astype(np.float32)
    share = 1 / (1 + np.exp(-np.clip(x.astype(np.float64), -700, None)))
    np.testing.assert_allclose(f64(silu(mx.array(x))), x * share, rtol=3e-6, atol=3e-7)
    slope = mx.grad(lambda x: silu(x).sum())(mx.array(x))
    np.testing.assert_allclose(f64(slope), share * (1 + x * (1 - share)), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("rows", [(5,), (2, 3), (2, 2, 3)])
def test_rms_norm_and_its_gradient_are_mlxs(rows: tuple[int, ...]) -> None:
    x, weight, slope = mx.array(random_array(1, *rows, 24)), mx.array(random_array(2, 24)), random_array(3, *rows, 24)

    def loss(kind: type[nn.Module]) -> Any:
        layer = kind(24)

        def value(x: mx.array, weight: mx.array) -> mx.array:
            layer.weight = weight
            return (layer(x) * mx.array(slope)).sum()

        return mx.value_and_grad(value, argnums=(0, 1))(x, weight)

    (ours, mine), (value, theirs) = loss(RMSNorm), loss(nn.RMSNorm)
    assert ours.item() == pytest.approx(value.item(), rel=1e-5)
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(f64(one), f64(other), rtol=1e-4, atol=1e-5)


def test_shared_keys_have_the_gradient_of_repeated_ones() -> None:
    arrays = [mx.array(random_array(i, 2, heads, 150, 8)) for i, heads in enumerate((4, 2, 2))]

    def ours(*arrays: mx.array) -> mx.array:
        return (causal_attention(*arrays) ** 2).sum()

    def theirs(*arrays: mx.array) -> mx.array:
        seen = mx.fast.scaled_dot_product_attention(*arrays, scale=8**-0.5, mask="causal")
        return (seen**2).sum()

    for one, other in zip(*(mx.grad(f, argnums=(0, 1, 2))(*arrays) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(f64(one), f64(other), rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------------------- sizes


SEED = GPTConfig(50257, layers=8, heads=8, width=384, hidden=1536, context=512)
NANO = GPTConfig(
    9157, layers=12, heads=8, width=512, hidden=2048, context=1024, tied=False, activation="relu",
    positions="sinusoidal", attention_out=False, final_norm=False, head_bias=True,
)  # fmt: skip


def test_parameters_are_those_of_the_seeds() -> None:
    assert parameter_counts(GPT(SEED)) == {"total": 52_990_464, "unique": 33_691_776}
    assert count_parameters(GPT(replace(SEED, tied=False))) == 52_990_464
    # tokens, head, and in each block queries, keys and values, two matrices of the MLP, two norms
    block = 512 * 1536 + 1536 + 512 * 2048 + 2048 + 2048 * 512 + 512 + 4 * 512
    assert count_parameters(GPT(NANO)) == 9157 * 512 + 12 * block + 512 * 9157 + 9157 == 44_062_661


def test_the_default_is_what_it_was() -> None:
    names = ["attention.out", "attention.qkv", "attention_norm", "down", "hidden_norm", "up"]
    block = [f"blocks.0.{name}.{what}" for name in names for what in ("bias", "weight")]
    expected = [*block, "norm.bias", "norm.weight", "positions.weight", "tokens.weight"]
    assert sorted(flatten(GPT(replace(SMALL, layers=1)).parameters())) == expected


def test_tokens_are_as_loud_as_fixed_positions_beside_them() -> None:
    quiet, loud = GPT(replace(SMALL, positions="sinusoidal")), GPT(replace(SMALL, positions="sinusoidal", tied=False))
    for model in (quiet, loud):
        initialise(model, 1)
    assert float(f64(quiet.tokens.weight).std()) == pytest.approx(0.02, rel=0.2)
    assert float(f64(loud.tokens.weight).std()) == pytest.approx(1.0, rel=0.2)
    assert float(f64(loud.out.weight).std()) == pytest.approx(0.02, rel=0.2)


# ---------------------------------------------------------------------------------------------- options


def test_options_that_cannot_be_are_refused() -> None:
    for wrong, words in (
        ({"heads": 3}, "must divide width"),
        ({"heads": 4, "kv_heads": 3}, "must divide heads"),
        ({"heads": 4, "width": 12, "positions": "rope"}, "rope rotates pairs"),
    ):
        with pytest.raises(ValueError, match=words):
            Gpt.Options.model_validate(wrong)
    other = Gpt.Options.model_validate({"activation": "gelu-tanh", "biases": False})
    assert (other.activation, other.bias) == ("gelu_tanh", False)


def test_students_of_older_checkpoints_have_what_was_the_only_way_then() -> None:
    before = {"layers": 4, "heads": 4, "width": 192, "hidden": None, "context": 128, "dropout": 0.0, "bias": True}
    before |= {"tied": True, "activation": "relu"}
    now = with_default_options({"arch": "gpt", "options": before, "vocab_size": 2048})
    assert now["options"] == Gpt.Options.model_validate(before).model_dump(mode="json")
    assert now["options"]["positions"] == "learned"
