"""exp, softmax, logsumexp, GELU and SiLU, as fast as MLX's operations allow on a CPU.

MLX's CPU wheels compute exp one element at a time, and erf is slower still, while sums and products of whole arrays are
vectorised. So here exp is a polynomial of such products (absolute error below 1e-7 where it is used), GELU and its
gradient share one exp, and rows are summed by the BLAS. On a GPU, or in another precision, MLX's own functions are
faster and are used. Knows nothing of networks or losses.
"""

from __future__ import annotations

import math
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

# 2^f for f in [-1/2, 1/2], minimax in relative error (2e-9).
EXP2_COEFFICIENTS = (0.00015345812, 0.0013399931, 0.009618489, 0.055503286, 0.24022646, 0.6931472, 1.0)
# Adding this rounds a float32 to an integer and stores it, plus the exponent bias 127, in the lowest bits.
ROUNDING_OFFSET = 1.5 * 2**23 + 127
MIN_EXPONENT = -127.0  # its biased exponent is 0, so that exp is 0 here and below
FOLD_WIDTH = 512  # rows longer than this are folded before MLX takes their maximum

# Abramowitz and Stegun 7.1.26, halved: Phi(-|x|) = exp(-x² / 2) P(1 / (1 + ERFC_SCALE |x|)), error below 7.5e-8.
ERFC_COEFFICIENTS = (0.5307027145, -0.7265760135, 0.7107068705, -0.142248368, 0.127414796)
ERFC_SCALE = 0.3275911 / math.sqrt(2)


def is_cpu_float32(x: mx.array) -> bool:
    """Whether an array is float32 on the CPU: there the functions of this module are faster than MLX's own."""
    return x.dtype == mx.float32 and mx.default_device() == mx.cpu


def exp(x: mx.array, scale: float = 1.0) -> mx.array:
    """exp(scale * x) for x <= 0, without a gradient."""
    powers = mx.maximum(x * (scale / math.log(2)), MIN_EXPONENT)
    rounded = powers + ROUNDING_OFFSET
    rest = powers - (rounded - ROUNDING_OFFSET)
    whole = mx.left_shift(rounded.view(mx.int32), 23).view(mx.float32)
    return _polynomial(rest, EXP2_COEFFICIENTS) * whole


def _polynomial(x: mx.array, factors: tuple[float, ...]) -> mx.array:
    total = x * factors[0] + factors[1]
    for factor in factors[2:]:
        total = total * x + factor
    return total


def row_max(x: mx.array) -> mx.array:
    """The maximum of each row [..., 1]. Long rows are folded in half first, which is vectorised."""
    while x.shape[-1] > FOLD_WIDTH:
        half = (x.shape[-1] + 1) // 2
        x = mx.maximum(x[..., :half], x[..., -half:])
    return x.max(axis=-1, keepdims=True)


def row_sum(x: mx.array) -> mx.array:
    """The sum of each row [..., 1]; on a CPU computed by the BLAS."""
    return x @ mx.ones((x.shape[-1], 1), dtype=x.dtype) if is_cpu_float32(x) else x.sum(axis=-1, keepdims=True)


def exp_and_sum(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """exp(x - max), its row sum, and the row maximum: the parts of softmax and logsumexp."""
    top = row_max(x)
    parts = exp(x - top)
    return parts, row_sum(parts), top


@mx.custom_function
def _logsumexp(x: mx.array) -> Any:
    parts, total, top = exp_and_sum(x)
    return (mx.log(total) + top)[..., 0], parts, total


@_logsumexp.vjp
def _logsumexp_gradient(x: mx.array, cotangents: Any, outputs: Any) -> Any:
    return outputs[1] * (cotangents[0][..., None] / outputs[2])


@mx.custom_function
def _mlx_logsumexp(x: mx.array) -> Any:
    probs = mx.softmax(x, axis=-1)
    return x.max(axis=-1) - mx.log(probs.max(axis=-1)), probs


@_mlx_logsumexp.vjp
def _mlx_logsumexp_gradient(x: mx.array, cotangents: Any, outputs: Any) -> Any:
    return outputs[1] * cotangents[0][..., None]


def softmax_parts(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """logsumexp(x) [...], and softmax(x) as the product of powers [..., V] and a scale [..., 1].

    All three come from one pass of exp, which also serves the gradient of the first. The others have no gradient.
    """
    if not is_cpu_float32(x):
        log_total, probs = cast(Any, _mlx_logsumexp(x))
        return log_total, mx.stop_gradient(probs), mx.ones((*x.shape[:-1], 1), dtype=x.dtype)
    log_total, powers, total = cast(Any, _logsumexp(x))
    return log_total, mx.stop_gradient(powers), 1 / mx.stop_gradient(total)


def logsumexp(x: mx.array) -> mx.array:
    """log(sum(exp(x))) over the last axis."""
    return softmax_parts(x)[0]


@mx.custom_function
def _gelu(x: mx.array) -> Any:
    size = mx.abs(x)
    bell = exp(x * x * -0.5)
    near = 1 / (size * ERFC_SCALE + 1)
    tail = _polynomial(near, ERFC_COEFFICIENTS) * near * bell
    cdf = mx.where(x < 0, tail, 1 - tail)
    return x * cdf, cdf + x * bell * (1 / math.sqrt(2 * math.pi))


@_gelu.vjp
def _gelu_gradient(x: mx.array, cotangents: Any, outputs: Any) -> Any:
    return cotangents[0] * outputs[1]


def gelu(x: mx.array) -> mx.array:
    """x * Phi(x), where Phi is the normal distribution function. One exp serves value and gradient."""
    if not is_cpu_float32(x):
        return nn.gelu(x)
    outputs: Any = _gelu(x)
    return cast(mx.array, outputs[0])


@mx.custom_function
def _silu(x: mx.array) -> Any:
    small = exp(-mx.abs(x))
    sigmoid = mx.where(x < 0, small, 1.0) / (small + 1)
    value = x * sigmoid
    return value, sigmoid + value - value * sigmoid


@_silu.vjp
def _silu_gradient(x: mx.array, cotangents: Any, outputs: Any) -> Any:
    return cotangents[0] * outputs[1]


def silu(x: mx.array) -> mx.array:
    """x * sigmoid(x). One exp serves value and gradient."""
    if not is_cpu_float32(x):
        return cast(mx.array, nn.silu(x))
    outputs: Any = _silu(x)
    return cast(mx.array, outputs[0])
