"""exp, softmax, logsumexp, GELU and SiLU, as fast as MLX's operations allow on a CPU.

MLX's CPU wheels compute one exp at a time, and erf is dearer still, while sums and products of whole arrays are
vectorised. So here exp is a polynomial made of such products (absolute error below 1e-7 where it is used), GELU and
its slope share one exp, and rows are added up by the BLAS. On a GPU, or in another precision, MLX's own functions
are the fast ones and are used. Knows nothing of networks or losses.
"""

from __future__ import annotations

import math
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

# 2^f for f in [-1/2, 1/2], minimax in relative error (2e-9).
POWERS = (0.00015345812, 0.0013399931, 0.009618489, 0.055503286, 0.24022646, 0.6931472, 1.0)
# Adding this rounds a float32 to an integer, held (127, the exponent's bias, added) in its lowest bits.
ROUNDER = 1.5 * 2**23 + 127
LEAST = -127.0  # whose exponent is all zeros, so it and all below make 0
FOLD = 512

# Abramowitz and Stegun 7.1.26, halved: Phi(-|x|) = exp(-x^2 / 2) * TAIL(1 / (1 + SLANT |x|)), to 7.5e-8.
TAIL = (0.5307027145, -0.7265760135, 0.7107068705, -0.142248368, 0.127414796)
SLANT = 0.3275911 / math.sqrt(2)


def ours(x: mx.array) -> bool:
    """Whether the functions of this page are faster than MLX's own for an array."""
    return x.dtype == mx.float32 and mx.default_device() == mx.cpu


def exp(x: mx.array, scale: float = 1.0) -> mx.array:
    """exp(scale x) for x at most 0, without a gradient."""
    powers = mx.maximum(x * (scale / math.log(2)), LEAST)
    rounded = powers + ROUNDER
    rest = powers - (rounded - ROUNDER)
    whole = mx.left_shift(rounded.view(mx.int32), 23).view(mx.float32)
    return _polynomial(rest, POWERS) * whole


def _polynomial(x: mx.array, factors: tuple[float, ...]) -> mx.array:
    total = x * factors[0] + factors[1]
    for factor in factors[2:]:
        total = total * x + factor
    return total


def row_max(x: mx.array) -> mx.array:
    """The greatest of each row [..., 1]. Long rows are folded first, which is vectorised."""
    while x.shape[-1] > FOLD:
        half = (x.shape[-1] + 1) // 2
        x = mx.maximum(x[..., :half], x[..., -half:])
    return x.max(axis=-1, keepdims=True)


def row_sum(x: mx.array) -> mx.array:
    """The sum of each row [..., 1], left to the BLAS on a CPU."""
    return x @ mx.ones((x.shape[-1], 1), dtype=x.dtype) if ours(x) else x.sum(axis=-1, keepdims=True)


def powers_of(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """exp(x - top), the row's sum of it, and top, the row's greatest: what softmax and logsumexp are made of."""
    top = row_max(x)
    parts = exp(x - top)
    return parts, row_sum(parts), top


@mx.custom_function
def _logsumexp(x: mx.array) -> Any:
    parts, total, top = powers_of(x)
    return (mx.log(total) + top)[..., 0], parts, total


@_logsumexp.vjp
def _logsumexp_gradient(x: mx.array, cotangents: Any, outputs: Any) -> Any:
    return outputs[1] * (cotangents[0][..., None] / outputs[2])


@mx.custom_function
def _logsumexp_of_mlx(x: mx.array) -> Any:
    chances = mx.softmax(x, axis=-1)
    return x.max(axis=-1) - mx.log(chances.max(axis=-1)), chances


@_logsumexp_of_mlx.vjp
def _logsumexp_of_mlx_gradient(x: mx.array, cotangents: Any, outputs: Any) -> Any:
    return outputs[1] * cotangents[0][..., None]


def normalised(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The logsumexp [...] of each row; its softmax as a product of powers and a number [..., 1] for each row of them.

    One pass of exp, which is dear, serves all, and the gradient of the first; the others have none.
    """
    if not ours(x):
        log_total, chances = cast(Any, _logsumexp_of_mlx(x))
        return log_total, mx.stop_gradient(chances), mx.ones((*x.shape[:-1], 1), dtype=x.dtype)
    log_total, powers, total = cast(Any, _logsumexp(x))
    return log_total, mx.stop_gradient(powers), 1 / mx.stop_gradient(total)


def logsumexp(x: mx.array) -> mx.array:
    """log(sum(exp(x))) over the last axis."""
    return normalised(x)[0]


@mx.custom_function
def _gelu(x: mx.array) -> Any:
    size = mx.abs(x)
    bell = exp(x * x * -0.5)
    near = 1 / (size * SLANT + 1)
    tail = _polynomial(near, TAIL) * near * bell
    below = mx.where(x < 0, tail, 1 - tail)
    return x * below, below + x * bell * (1 / math.sqrt(2 * math.pi))


@_gelu.vjp
def _gelu_gradient(x: mx.array, cotangents: Any, outputs: Any) -> Any:
    return cotangents[0] * outputs[1]


def gelu(x: mx.array) -> mx.array:
    """x times the chance that a normal number is below x. One exp serves value and gradient."""
    if not ours(x):
        return nn.gelu(x)
    outputs: Any = _gelu(x)
    return cast(mx.array, outputs[0])


@mx.custom_function
def _silu(x: mx.array) -> Any:
    small = exp(-mx.abs(x))
    share = mx.where(x < 0, small, 1.0) / (small + 1)
    value = x * share
    return value, share + value - value * share


@_silu.vjp
def _silu_gradient(x: mx.array, cotangents: Any, outputs: Any) -> Any:
    return cotangents[0] * outputs[1]


def silu(x: mx.array) -> mx.array:
    """x times the logistic function of x. One exp serves value and gradient."""
    if not ours(x):
        return cast(mx.array, nn.silu(x))
    outputs: Any = _silu(x)
    return cast(mx.array, outputs[0])
