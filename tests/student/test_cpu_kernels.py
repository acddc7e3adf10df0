"""The parts of a fast step, each beside what it stands for: MLX's own, or float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from distillkit.student import blas

blas.load()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402

from distillkit.student.model.attention import BLOCK, causal_attention  # noqa: E402
from distillkit.student.model.cpu import math as elementary  # noqa: E402
from distillkit.student.model.layers import LayerNorm, Linear  # noqa: E402
from distillkit.student.training.optimizers import OptimizerGroup, flatten  # noqa: E402
from distillkit.student.training.parallel import StreamPool  # noqa: E402

Array = np.ndarray[Any, Any]
rows_of = some.tuples(some.integers(1, 5), some.integers(1, 1100), some.integers(0, 2**32 - 1))


def f64(array: mx.array) -> Array:
    return np.array(array).astype(np.float64)


def normal(seed: int, *shape: int, scale: float = 1.0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32))


# ------------------------------------------------------------------------------------------ elementary


def test_exp_is_exp_to_the_last_digits_of_what_softmax_needs() -> None:
    x = mx.array(np.concatenate([np.linspace(-90, 0, 200_001), [-np.inf, -1e9]]).astype(np.float32))
    wrong = np.abs(f64(elementary.exp(x)) - np.exp(f64(x)))
    assert wrong.max() < 1e-7
    assert elementary.exp(mx.zeros(3)).tolist() == [1, 1, 1]
    assert elementary.exp(mx.array([-88.0, -1e9, -math.inf])).tolist() == [0, 0, 0]


def test_exp_scales_first() -> None:
    x = -mx.abs(normal(0, 1000, scale=5))
    np.testing.assert_allclose(f64(elementary.exp(x, 0.3)), np.exp(0.3 * f64(x)), atol=1e-7)


@settings(deadline=None, max_examples=60)
@given(rows_of, some.sampled_from([0.1, 3.0, 50.0]))
def test_softmax_and_logsumexp_are_those_of_float64(shape: tuple[int, int, int], scale: float) -> None:
    rows, width, seed = shape
    x = normal(seed, rows, width, scale=scale)
    wide = f64(x)
    top = wide.max(-1, keepdims=True)
    total = np.log(np.exp(wide - top).sum(-1)) + top[:, 0]
    np.testing.assert_allclose(f64(elementary.logsumexp(x)), total, rtol=1e-6, atol=1e-6)
    _, powers, scale_of_row = elementary.softmax_parts(x)
    np.testing.assert_allclose(f64(powers * scale_of_row), np.exp(wide - total[:, None]), rtol=1e-6, atol=3e-7)
    np.testing.assert_array_equal(f64(elementary.row_max(x)), top)
    np.testing.assert_allclose(f64(elementary.row_sum(x))[:, 0], wide.sum(-1), atol=1e-4 * scale)


def test_the_slope_of_logsumexp_is_softmax() -> None:
    x, weight = normal(1, 4, 700, scale=4), normal(2, 4)
    slope = mx.grad(lambda x: (elementary.logsumexp(x) * weight).sum())(x)
    np.testing.assert_allclose(f64(slope), f64(mx.softmax(x, axis=-1)) * f64(weight)[:, None], atol=1e-6)


def test_gelu_and_its_slope_are_those_of_float64() -> None:
    x = mx.array(np.linspace(-12, 12, 40_001).astype(np.float32))
    wide = f64(x)
    below = 0.5 * np.vectorize(math.erfc)(-wide / math.sqrt(2))
    slope = below + wide * np.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(f64(elementary.gelu(x)), wide * below, atol=1e-6)
    np.testing.assert_allclose(f64(mx.grad(lambda x: elementary.gelu(x).sum())(x)), slope, atol=1e-6)


@pytest.mark.parametrize("name", ["logsumexp", "gelu"])
def test_other_precisions_are_left_to_mlx(name: str) -> None:
    x = normal(3, 3, 40).astype(mx.float16)
    function = getattr(elementary, name)
    expected = f64(function(x.astype(mx.float32)))
    assert function(x).dtype == mx.float16
    np.testing.assert_allclose(f64(function(x)), expected, atol=2e-2)


def test_what_is_not_a_number_stays_so() -> None:
    bad = mx.array([[0.0, math.nan, 1.0]])
    assert math.isnan(elementary.logsumexp(bad).item())
    assert math.isnan(elementary.gelu(bad)[0, 1].item())


# ------------------------------------------------------------------------------------------ attention


@pytest.mark.parametrize("length", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 37])
def test_attention_in_blocks_is_mlxs_attention(length: int) -> None:
    shapes = [normal(seed, 2, length, 3, 8).transpose(0, 2, 1, 3) for seed in range(3)]
    weight = normal(9, 2, 3, length, 8)

    def mlxs(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=8**-0.5, mask="causal")

    def slopes(attention: Any) -> Any:
        return mx.grad(lambda q, k, v: (attention(q, k, v) * weight).sum(), argnums=(0, 1, 2))(*shapes)

    np.testing.assert_allclose(f64(causal_attention(*shapes)), f64(mlxs(*shapes)), atol=2e-6)
    for ours, theirs in zip(slopes(causal_attention), slopes(mlxs), strict=True):
        np.testing.assert_allclose(f64(ours), f64(theirs), atol=2e-5)


def test_no_position_sees_what_comes_after_it() -> None:
    q, k, v = (normal(seed, 1, 2, 2 * BLOCK, 4) for seed in range(3))
    before = f64(causal_attention(q, k, v))
    k[:, :, BLOCK + 5 :] = 100.0
    v[:, :, BLOCK + 5 :] = 1e30
    np.testing.assert_array_equal(f64(causal_attention(q, k, v))[:, :, : BLOCK + 5], before[:, :, : BLOCK + 5])


# ------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize(("ours", "mlxs"), [(Linear, nn.Linear), (LayerNorm, nn.LayerNorm)])
@pytest.mark.parametrize("bias", [True, False])
def test_parts_are_mlxs_in_value_and_gradient(ours: Any, mlxs: Any, bias: bool) -> None:
    sizes = (24,) if ours is LayerNorm else (24, 10)
    mine, theirs = ours(*sizes, bias=bias), mlxs(*sizes, bias=bias)
    weights = {name: normal(i, *value.shape) for i, (name, value) in enumerate(flatten(theirs.parameters()).items())}
    x = normal(7, 2, 5, 24, scale=3)
    mask = normal(8, *theirs(x).shape)
    results = []
    for part in (mine, theirs):
        part.load_weights(list(weights.items()))
        value = nn.value_and_grad(part, lambda x, part=part: (part(x) * mask).sum())
        results.append(
            (f64(value(x)[0]), flatten(value(x)[1]), f64(mx.grad(lambda x, part=part: (part(x) * mask).sum())(x)))
        )
    (loss, slopes, of_x), (their_loss, their_slopes, of_their_x) = results
    assert loss == pytest.approx(their_loss, rel=1e-5)
    np.testing.assert_allclose(of_x, of_their_x, atol=1e-4)
    assert set(slopes) == set(their_slopes)
    for name, slope in slopes.items():
        np.testing.assert_allclose(f64(slope), f64(their_slopes[name]), atol=1e-4)


# ------------------------------------------------------------------------------------------ optimizer, streams


@pytest.mark.parametrize("count", [1, 2, 3])
def test_streams_and_compilation_change_no_bit_of_a_step(count: int) -> None:
    names = {"tokens.weight": (40, 8), "norm.weight": (8,), "up.weight": (16, 8), "up.bias": (16,)}
    pool, optimizer = StreamPool(count), OptimizerGroup(train={"weight_decay": 0.2})

    def moved(compiled: bool, streams: Any) -> dict[str, Array]:
        (mx.enable_compile if compiled else mx.disable_compile)()
        try:
            values = {name: normal(i, *shape) for i, (name, shape) in enumerate(names.items())}
            state = optimizer.initial_state(values)
            for step in range(3):
                slopes = {name: normal(10 * step + i, *shape) for i, (name, shape) in enumerate(names.items())}
                values, state, _ = optimizer.update(values, slopes, state, mx.array(1e-2), mx.array(step), streams)
                mx.eval(values, state)
        finally:
            mx.enable_compile()
        return {name: np.array(value) for name, value in flatten(values).items()}

    sizes = {name: math.prod(shape) for name, shape in names.items()}
    plain, ours = moved(False, {}), moved(True, pool.assign(sizes))
    for name, value in plain.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-6, atol=1e-9)


def test_work_is_shared_out_evenly() -> None:
    pool = StreamPool(2)
    found = pool.assign({"a": 100, "b": 60, "c": 50, "d": 5})
    assert found["a"] != found["b"] == found["c"] != found["d"]
