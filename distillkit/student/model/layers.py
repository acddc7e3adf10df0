"""A linear layer and two norms whose gradients are ordered so that memory is freed as early as possible.

MLX decides when each array of a graph is computed. With several streams it leaves the gradients of weights to the end,
which keeps everything that they need alive: all activations, and the gradients of all layers' outputs. Here a layer
passes its input gradient on only after the gradients of its weights have been computed. Knows nothing of networks.
"""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from .cpu.math import is_cpu_float32, row_sum


class Linear(nn.Linear):
    """`mlx.nn.Linear` with an ordered gradient."""

    def __call__(self, x: mx.array) -> mx.array:
        """x @ W.T + b."""
        bias = (self.bias,) if "bias" in self else ()
        return cast(mx.array, _linear(x, self.weight, *bias))


@mx.custom_function
def _linear(x: mx.array, weight: mx.array, *bias: mx.array) -> Any:
    return mx.addmm(bias[0], x, weight.T) if bias else x @ weight.T


@_linear.vjp
def _linear_gradient(primals: Any, grad: Any, output: Any) -> Any:
    x, weight, bias = primals[0], primals[1], primals[2:]
    grad_weights = [_as_rows(grad).T @ _as_rows(x), *(_sum_rows(grad) for _ in bias)]
    (grad_x,) = mx.depends([grad @ weight], grad_weights)
    return grad_x, *grad_weights


class LayerNorm(nn.LayerNorm):
    """`mlx.nn.LayerNorm`; on a CPU with a gradient in closed form instead of one for each of its small operations."""

    def __call__(self, x: mx.array) -> mx.array:
        """(x - mean) / sqrt(variance + eps) * weight + bias, over the last axis."""
        if not is_cpu_float32(x):
            return cast(mx.array, super().__call__(x))  # type: ignore[no-untyped-call]
        bias = (self.bias,) if "bias" in self else ()
        outputs: Any = _layer_norm(x, self.weight, mx.array(self.eps), *bias)
        return cast(mx.array, outputs[0])


@mx.custom_function
def _layer_norm(x: mx.array, weight: mx.array, eps: mx.array, *bias: mx.array) -> Any:
    width = x.shape[-1]
    mean = row_sum(x) / width
    centred = x - mean
    inverse_deviation = mx.rsqrt(row_sum(centred * centred) / width + eps)
    scaled = centred * inverse_deviation * weight
    return (scaled + bias[0] if bias else scaled), mean, inverse_deviation


@_layer_norm.vjp
def _layer_norm_gradient(primals: Any, cotangents: Any, outputs: Any) -> Any:
    x, weight, eps, bias = primals[0], primals[1], primals[2], primals[3:]
    grad, (mean, inverse_deviation), width = cotangents[0], outputs[1:], x.shape[-1]
    normal = (x - mean) * inverse_deviation
    grad_weights = [_sum_rows(grad * normal), *(_sum_rows(grad) for _ in bias)]
    inner = grad * weight
    grad_x = inverse_deviation * (inner - row_sum(inner) / width - normal * (row_sum(inner * normal) / width))
    (grad_x,) = mx.depends([grad_x], grad_weights)
    return grad_x, grad_weights[0], mx.zeros_like(eps), *grad_weights[1:]


class RMSNorm(nn.RMSNorm):
    """`mlx.nn.RMSNorm`; on a CPU with a gradient in closed form instead of one for each of its small operations."""

    def __call__(self, x: mx.array) -> mx.array:
        """x / sqrt(mean(x²) + eps) * weight, over the last axis."""
        if not is_cpu_float32(x):
            return cast(mx.array, super().__call__(x))  # type: ignore[no-untyped-call]
        outputs: Any = _rms_norm(x, self.weight, mx.array(self.eps))
        return cast(mx.array, outputs[0])


@mx.custom_function
def _rms_norm(x: mx.array, weight: mx.array, eps: mx.array) -> Any:
    inverse_rms = mx.rsqrt(row_sum(x * x) / x.shape[-1] + eps)
    return x * inverse_rms * weight, inverse_rms


@_rms_norm.vjp
def _rms_norm_gradient(primals: Any, cotangents: Any, outputs: Any) -> Any:
    x, weight, eps = primals
    grad, inverse_rms = cotangents[0], outputs[1]
    normal = x * inverse_rms
    grad_weight = _sum_rows(grad * normal)
    inner = grad * weight
    grad_x = inverse_rms * (inner - normal * (row_sum(inner * normal) / x.shape[-1]))
    (grad_x,) = mx.depends([grad_x], [grad_weight])
    return grad_x, grad_weight, mx.zeros_like(eps)


def _as_rows(x: mx.array) -> mx.array:
    return x.reshape(-1, x.shape[-1])


def _sum_rows(x: mx.array) -> mx.array:
    """The sum over all axes but the last, as a product with ones, so that the BLAS computes it."""
    rows = _as_rows(x)
    return (mx.ones((1, rows.shape[0]), dtype=x.dtype) @ rows)[0]
