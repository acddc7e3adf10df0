"""Every variant of the GPT network against plain arithmetic in float64, with a KV cache and without."""

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

from distillkit.core.errors import UsageError
from distillkit.student.generation.generate import compute_logits
from distillkit.student.model import gpt as room
from distillkit.student.model.attention import causal_attention
from distillkit.student.model.cpu.math import silu
from distillkit.student.model.gpt import GPT, GPTConfig, count_parameters, initialise
from distillkit.student.model.layers import RMSNorm
from distillkit.student.trained import Trained, parameter_counts, with_default_options
from distillkit.student.training.optimizers import flatten
from support.gpt2 import gpt2_forward
from support.students import SMALL, TEXTS, f64, lively, random_array, shapes, softmax, tokenizer, writer

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


Array = np.ndarray[Any, Any]
TINY = GPTConfig(vocab_size=13, layers=1, heads=2, width=8, hidden=16, context=6)
# ---------------------------------------------------------------------------------------------- gpt

SEED_53M = {"layers": 8, "width": 384, "heads": 8, "hidden": 1536, "context": 512}


@pytest.mark.parametrize(("tied", "unique"), [(False, 52_990_464), (True, 33_691_776)])
def test_the_53m_student_has_exactly_so_many_parameters(tied: bool, unique: int) -> None:
    model = Gpt(Gpt.Options(**SEED_53M, tied=tied)).build(50257)
    assert count_parameters(model) == unique
    assert parameter_counts(model) == {"total": 52_990_464, "unique": unique}


@pytest.mark.parametrize(
    "shape",
    [
        GPTConfig(50, layers=3, heads=4, width=32, hidden=64, context=12),
        GPTConfig(50, layers=2, heads=1, width=8, hidden=24, context=12, tied=False, activation="gelu_tanh"),
        GPTConfig(50, layers=1, heads=8, width=16, hidden=16, context=12, bias=False, activation="relu"),
    ],
)
def test_the_forward_pass_is_gpt2s(shape: GPTConfig) -> None:
    model, tokens = lively(shape), np.random.default_rng(1).integers(0, 50, (3, 12))
    expected = gpt2_forward(model, tokens)
    np.testing.assert_allclose(f64(model(mx.array(tokens))), expected, rtol=1e-4, atol=1e-4)
    head = f64(model.tokens.weight if shape.tied else model.out.weight)
    logits = f64(Trained(model, None, 12).logits(mx.array(tokens)))  # type: ignore[arg-type]
    np.testing.assert_allclose(logits, expected @ head.T, rtol=1e-3, atol=1e-3)


def test_a_later_token_changes_nothing_before_it() -> None:
    model = lively(GPTConfig(30, layers=2, heads=2, width=16, hidden=32, context=10))
    tokens = np.random.default_rng(2).integers(0, 30, (1, 10))
    before = f64(model(mx.array(tokens)))
    for place in range(10):
        other = tokens.copy()
        other[0, place] = (other[0, place] + 1) % 30
        after = f64(model(mx.array(other)))
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert np.abs(after[:, place:] - before[:, place:]).max(axis=-1).min() > 1e-4


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rope"])
def test_more_tokens_than_the_context_are_refused_and_not_read_as_noise(positions: Any) -> None:
    model = lively(GPTConfig(30, layers=2, heads=2, width=16, hidden=32, context=10, positions=positions))
    student, whole = Trained(model, tokenizer(), 10), mx.zeros((2, 10), mx.int32)
    longer = mx.zeros((2, 11), mx.int32)
    for read in (model, student.hidden, student.logits, student.attention):
        read(whole)
        with pytest.raises(UsageError, match="has a context of 10 tokens and was given 11"):
            read(longer)


def test_a_cache_is_not_filled_beyond_the_context() -> None:
    model = lively(GPTConfig(30, layers=2, heads=2, width=16, hidden=32, context=10))
    past = model.cache([3, 5])  # padding is no part of it
    model.extend(mx.zeros((2, 13), mx.int32), past)
    with pytest.raises(UsageError, match="has a context of 10 tokens and was given 11"):
        model.extend(mx.zeros((2, 1), mx.int32), past)


def test_initialisation_is_gpt2s() -> None:
    model = GPT(GPTConfig(1000, layers=8, heads=4, width=128, hidden=512, context=256, tied=False))
    initialise(model, 5)
    for name, value in ((n, f64(v)) for n, v in flatten(model.parameters()).items()):
        if value.ndim == 1:
            assert (value == (0 if name.endswith("bias") else 1)).all(), name
            continue
        residual = name.endswith(("attention.out.weight", "down.weight"))
        spread = 0.02 / math.sqrt(16) if residual else 0.02
        assert value.std() == pytest.approx(spread, rel=0.03), name
        assert abs(value.mean()) < 5 * spread / math.sqrt(value.size), name
        assert np.abs(value).max() > 3 * spread, name  # normal, not uniform


def test_one_seed_gives_the_same_weights_and_another_gives_others() -> None:
    def weights(seed: int) -> dict[str, Array]:
        model = GPT(replace(TINY, layers=2))
        initialise(model, seed)
        return {name: f64(value) for name, value in flatten(model.parameters()).items() if value.ndim == 2}

    one, again, other = weights(7), weights(7), weights(8)
    assert all((one[name] == again[name]).all() for name in one)
    assert all((one[name] != other[name]).any() for name in one)
    twins = [name for name in one if name.endswith("qkv.weight")]
    assert (one[twins[0]] != one[twins[1]]).any()  # no two layers alike


def test_dropout_works_while_training_and_not_while_evaluating() -> None:
    model, tokens = lively(replace(TINY, dropout=0.5)), mx.array([[1, 2, 3]])
    np.testing.assert_array_equal(f64(model(tokens)), f64(model(tokens)))
    np.testing.assert_allclose(f64(model(tokens)), gpt2_forward(model, np.array([[1, 2, 3]])), atol=1e-4)
    model.train()
    mx.random.seed(0)
    first, second = f64(model(tokens)), f64(model(tokens))
    mx.random.seed(0)
    assert (first != second).any()
    np.testing.assert_array_equal(first, f64(model(tokens)))


def test_a_student_shows_its_attention_or_says_that_it_does_not() -> None:
    tokens = mx.array([[writer().tokenizer.end_of_text, *writer().tokenizer.encode(TEXTS[0])[:8]]])
    for weights in map(f64, writer().attention(tokens)):
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
        assert not np.triu(weights, 1).any()  # nobody looks ahead
        assert weights[:, :, 0, 0] == pytest.approx(1)
    with pytest.raises(UsageError, match="does not show its attention"):
        Trained(nn.Linear(2, 2), tokenizer(), 8).attention(tokens)


# ---------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_blocks_computed_again_have_the_same_gradients_in_less_memory(dropout: float) -> None:
    model = GPT(GPTConfig(64, layers=8, heads=4, width=64, hidden=256, context=128, dropout=dropout))
    tokens = mx.array(np.random.default_rng(0).integers(0, 64, (8, 128)))

    def loss(model: GPT) -> mx.array:
        return (model(tokens) ** 2 * mx.arange(64)).mean()

    def measured(again: bool) -> tuple[dict[str, mx.array], int]:
        model.train()
        model.recompute = again
        mx.random.seed(3)
        mx.eval(model.parameters())
        mx.reset_peak_memory()
        _, slopes = nn.value_and_grad(model, loss)(model)
        mx.eval(slopes)
        return flatten(slopes), mx.get_peak_memory()

    (kept, much), (again, little) = measured(False), measured(True)
    for name, slope in kept.items():
        np.testing.assert_allclose(f64(again[name]), f64(slope), rtol=1e-5, atol=1e-6, err_msg=name)
    assert little < 0.85 * much
