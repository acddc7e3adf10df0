"""A linear layer and two norms whose gradients are computed in the order that frees memory soonest.

MLX decides when each array of a graph is computed. Fed to several streams it leaves the gradients of weights to the
end, and with them whatever they are made of: all activations, and all slopes beside them. Here a layer's slope is
handed down only after the gradients of its weights are there. Knows nothing of networks.
"""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from .cpu.math import ours, row_sum


class Linear(nn.Linear):
    """`mlx.nn.Linear`, but for the order of its gradient."""

    def __call__(self, x: mx.array) -> mx.array:
        """x W^T + b."""
        bias = (self.bias,) if "bias" in self else ()
        return cast(mx.array, _linear(x, self.weight, *bias))


@mx.custom_function
def _linear(x: mx.array, weight: mx.array, *bias: mx.array) -> Any:
    return mx.addmm(bias[0], x, weight.T) if bias else x @ weight.T


@_linear.vjp
def _linear_gradient(primals: Any, slope: Any, output: Any) -> Any:
    x, weight, bias = primals[0], primals[1], primals[2:]
    of_weights = [_rows(slope).T @ _rows(x), *(_added_up(slope) for _ in bias)]
    (of_x,) = mx.depends([slope @ weight], of_weights)
    return of_x, *of_weights


class LayerNorm(nn.LayerNorm):
    """`mlx.nn.LayerNorm`, but that on a CPU the gradient is not made of the many small steps of the value."""

    def __call__(self, x: mx.array) -> mx.array:
        """(x - mean) / deviation, times a weight, plus a bias."""
        if not ours(x):
            return cast(mx.array, super().__call__(x))  # type: ignore[no-untyped-call]
        bias = (self.bias,) if "bias" in self else ()
        outputs: Any = _norm(x, self.weight, mx.array(self.eps), *bias)
        return cast(mx.array, outputs[0])


@mx.custom_function
def _norm(x: mx.array, weight: mx.array, eps: mx.array, *bias: mx.array) -> Any:
    width = x.shape[-1]
    mean = row_sum(x) / width
    centred = x - mean
    sharpness = mx.rsqrt(row_sum(centred * centred) / width + eps)
    scaled = centred * sharpness * weight
    return (scaled + bias[0] if bias else scaled), mean, sharpness


@_norm.vjp
def _norm_gradient(primals: Any, slopes: Any, outputs: Any) -> Any:
    x, weight, eps, bias = primals[0], primals[1], primals[2], primals[3:]
    slope, (mean, sharpness), width = slopes[0], outputs[1:], x.shape[-1]
    normal = (x - mean) * sharpness
    of_weights = [_added_up(slope * normal), *(_added_up(slope) for _ in bias)]
    inner = slope * weight
    of_x = sharpness * (inner - row_sum(inner) / width - normal * (row_sum(inner * normal) / width))
    (of_x,) = mx.depends([of_x], of_weights)
    return of_x, of_weights[0], mx.zeros_like(eps), *of_weights[1:]


class RMSNorm(nn.RMSNorm):
    """`mlx.nn.RMSNorm`, but that on a CPU the gradient is not made of the many small steps of the value."""

    def __call__(self, x: mx.array) -> mx.array:
        """x over the root of its mean square, times a weight."""
        if not ours(x):
            return cast(mx.array, super().__call__(x))  # type: ignore[no-untyped-call]
        outputs: Any = _root_norm(x, self.weight, mx.array(self.eps))
        return cast(mx.array, outputs[0])


@mx.custom_function
def _root_norm(x: mx.array, weight: mx.array, eps: mx.array) -> Any:
    sharpness = mx.rsqrt(row_sum(x * x) / x.shape[-1] + eps)
    return x * sharpness * weight, sharpness


@_root_norm.vjp
def _root_norm_gradient(primals: Any, slopes: Any, outputs: Any) -> Any:
    x, weight, eps = primals
    slope, sharpness = slopes[0], outputs[1]
    normal = x * sharpness
    of_weight = _added_up(slope * normal)
    inner = slope * weight
    of_x = sharpness * (inner - normal * (row_sum(inner * normal) / x.shape[-1]))
    (of_x,) = mx.depends([of_x], [of_weight])
    return of_x, of_weight, mx.zeros_like(eps)


def _rows(x: mx.array) -> mx.array:
    return x.reshape(-1, x.shape[-1])


def _added_up(x: mx.array) -> mx.array:
    """The sum of all rows, left to the BLAS."""
    rows = _rows(x)
    return (mx.ones((1, rows.shape[0]), dtype=x.dtype) @ rows)[0]
