"""Mixed precision: a step is computed in half precision; the weights and both moments stay in float32.

bfloat16 has the range of float32, so nothing else changes. float16 does not: small gradients would underflow, so the
loss is multiplied by a fixed scale before the gradient is taken, and a step whose gradient overflows is skipped.
Embedding tables are read in float32 and the result is rounded, because the gradient of a frequent token is a long sum.
Knows nothing of losses.
"""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
LOSS_SCALE = {"float32": 1.0, "bfloat16": 1.0, "float16": 1024.0}
MAX_OVERFLOWS = 20  # in a row: from then on the loss scale is not the cause


def resolve(precision: str) -> str:
    """The precision that "auto" stands for: bfloat16 on a GPU, else float32, the only one that a fast BLAS supports."""
    if precision != "auto":
        return precision
    return "bfloat16" if mx.default_device().type == mx.gpu else "float32"


def warning(precision: str) -> str:
    """A warning if this precision is slow on this machine, else ""."""
    if precision == "float32" or mx.default_device().type == mx.gpu:
        return ""
    blas = "Accelerate" if sys.platform == "darwin" else "BLAS"
    return f"train.precision = {precision} on a CPU is many times slower than float32: the fast {blas} has only float32"


def cast_parameters(model: nn.Module, parameters: Any, precision: str) -> Any:
    """The parameters in another precision, except for embedding tables."""
    tables = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, nn.Embedding))

    def cast(path: str, value: mx.array) -> mx.array:
        return value if path.startswith(tables) or value.dtype != mx.float32 else value.astype(DTYPES[precision])

    return tree_map_with_path(cast, parameters)
