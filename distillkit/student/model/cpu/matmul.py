"""A few rows times a big matrix, fast on a CPU: what writing a text is made of.

The BLAS copies a matrix into an order of its own before it multiplies, which for a few rows costs more than the
product. OpenBLAS leaves that out for small matrices, so here the matrix is taken in small blocks, and a stream each
takes a share of them. On a GPU, or in another precision, the plain product is the fast one. Knows nothing of
networks.
"""

from __future__ import annotations

import mlx.core as mx

from ...training.parallel import StreamPool
from .math import ours

SMALL = 1_000_000  # multiplications that OpenBLAS does without copying
MANY = 64  # rows from which the copy pays


def few_rows(x: mx.array, weight: mx.array, pool: StreamPool) -> mx.array:
    """x [B, D] times the transpose of weight [V, D]."""
    rows, width = x.shape
    block = SMALL // (rows * width)
    if not ours(x) or rows > MANY or block < 8:
        return x @ weight.T
    column = mx.contiguous(x.T)
    share = -(-weight.shape[0] // (pool.count * block)) * block
    pieces = []
    for i, stream in enumerate(pool.streams):
        with mx.stream(stream):
            pieces += _pieces(column, weight[i * share : (i + 1) * share], block)
    product = mx.concatenate(pieces, axis=0)
    return product.reshape(1, -1) if rows == 1 else product.T


def _pieces(column: mx.array, weight: mx.array, block: int) -> list[mx.array]:
    """weight [V, D] times column [D, B], the blocks in one piece and what is left over in another."""
    size, width = weight.shape
    whole = size - size % block
    found = []
    if whole:
        blocks = weight[:whole].reshape(-1, block, width)
        found.append((blocks @ column[None]).reshape(whole, -1))
    if size > whole:
        found.append(weight[whole:] @ column)
    return found
