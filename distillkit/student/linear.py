"""A linear layer whose gradient is computed in the order that frees memory soonest.

MLX decides when each array of a graph is computed. Fed to several streams it leaves the gradients of weights to the
end, and with them whatever they are made of: all activations, and all slopes beside them. Here a layer's slope is
handed down only after the gradient of its weights is there. Knows nothing of networks.
"""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn


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
    rows = slope.reshape(-1, slope.shape[-1])
    of_weights = [rows.T @ x.reshape(-1, x.shape[-1])]
    if bias:
        of_weights.append((mx.ones((1, rows.shape[0]), dtype=rows.dtype) @ rows)[0])  # the BLAS adds up faster
    (of_x,) = mx.depends([slope @ weight], of_weights)
    return of_x, *of_weights
