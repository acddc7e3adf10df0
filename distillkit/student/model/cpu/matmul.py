"""A matrix product for a few rows, fast on a CPU: the product that token-by-token generation spends its time in.

A BLAS packs a matrix into its own layout before it multiplies, which for a few rows costs more than the product.
OpenBLAS skips this for small matrices, so here the matrix is divided into small blocks, which the streams share. On a
GPU, or in another precision, the plain product is faster and is used. Knows nothing of networks.
"""

from __future__ import annotations

import mlx.core as mx

from ...training.parallel import StreamPool
from .math import is_cpu_float32

NO_COPY_LIMIT = 1_000_000  # multiplications up to which OpenBLAS does not pack
MAX_ROWS = 64  # with more rows packing pays off


def matmul_few_rows(x: mx.array, weight: mx.array, pool: StreamPool) -> mx.array:
    """x @ weight.T for x [B, D] and weight [V, D]."""
    rows, width = x.shape
    block = NO_COPY_LIMIT // (rows * width)
    if not is_cpu_float32(x) or rows > MAX_ROWS or block < 8:
        return x @ weight.T
    column = mx.contiguous(x.T)
    share = -(-weight.shape[0] // (pool.count * block)) * block
    pieces = []
    for i, stream in enumerate(pool.streams):
        with mx.stream(stream):
            pieces += _block_products(column, weight[i * share : (i + 1) * share], block)
    product = mx.concatenate(pieces, axis=0)
    return product.reshape(1, -1) if rows == 1 else product.T


def _block_products(column: mx.array, weight: mx.array, block: int) -> list[mx.array]:
    """weight [V, D] @ column [D, B]: one array for all whole blocks of rows, another for the remaining rows."""
    size, width = weight.shape
    whole = size - size % block
    products = []
    if whole:
        blocks = weight[:whole].reshape(-1, block, width)
        products.append((blocks @ column[None]).reshape(whole, -1))
    if size > whole:
        products.append(weight[whole:] @ column)
    return products
