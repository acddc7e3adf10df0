"""Half precision while a step is computed; the weights that are kept, and both moments, stay in float32.

bfloat16 reaches as far as float32, so nothing else changes. float16 does not: small slopes would vanish, so losses are
multiplied by a fixed factor before the gradient is taken, and a step whose gradient overflows is left out. Tables of
embeddings are read in float32 and what was read is rounded, for the gradient of a frequent token is a long sum.
Knows nothing of losses.
"""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
FACTOR = {"float32": 1.0, "bfloat16": 1.0, "float16": 1024.0}  # of the loss, while its gradient is taken
OVERFLOWS = 20  # in a row: then it is not the factor that is to blame


def chosen(wish: str) -> str:
    """What "auto" means here: half precision where the chip has it. A CPU's fast BLAS knows float32 only."""
    if wish != "auto":
        return wish
    return "bfloat16" if mx.default_device().type == mx.gpu else "float32"


def warning(precision: str) -> str:
    """What there is to say against a precision on this machine."""
    if precision == "float32" or mx.default_device().type == mx.gpu:
        return ""
    blas = "Accelerate" if sys.platform == "darwin" else "BLAS"
    return f"train.precision = {precision} on a CPU is many times slower than float32, which alone uses the fast {blas}"


def lowered(model: nn.Module, parameters: Any, precision: str) -> Any:
    """Parameters in another precision, but for tables of embeddings."""
    tables = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, nn.Embedding))

    def lower(path: str, value: mx.array) -> mx.array:
        return value if path.startswith(tables) or value.dtype != mx.float32 else value.astype(DTYPES[precision])

    return tree_map_with_path(lower, parameters)
