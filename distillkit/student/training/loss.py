"""From hidden states and targets to one scalar loss, chunk by chunk, with the gradient computed in the same pass.

A mixer defines the loss of one row of logits. Rows are independent, so they are processed in chunks, and each chunk's
gradient with respect to its hidden states and the head is computed while its logits exist: the logits of a whole batch
never exist at once, nor do its teacher's. In half precision the logits are rounded, and everything after them is
float32. Knows nothing of networks, files or learning-rate schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ...core.errors import DistillkitError
from ...plugins.interfaces import Mixer
from ..model.cpu.math import is_cpu_float32
from .targets import Head, LazyLogits, Targets, TopK

__all__ = [
    "Head",
    "LazyLogits",
    "Targets",
    "TopK",
    "chunk_rows",
    "grad_squared_norms",
    "mixed_loss",
    "term_names",
    "term_totals",
]

PIECE_SIZE = 2**19  # logits

RowsLoss = Callable[[mx.array, Targets], tuple[mx.array, mx.array]]
LossAndTerms = tuple[mx.array, dict[str, mx.array]]


def term_names(mixer: Mixer, vocab_size: int, targets: Targets) -> list[str]:
    """The names of a mixer's terms, from one row of zero logits; MLX is lazy, so no loss is computed."""
    rows: Any = mixer.rows(mx.zeros((1, vocab_size)), targets.rows(0, 1), mx.array(0))
    if not isinstance(rows, dict) or not all(getattr(row, "shape", None) == (1,) for row in rows.values()):
        message = f"the mixer {mixer.name!r} did not return one loss per row for each of its terms"
        raise DistillkitError(message, "Mixer.rows returns {term: losses [N]}.")
    return list(rows)


def chunk_rows(vocab_size: int) -> int:
    """The number of rows whose logits exist at once: about half a million logits, which fit into the CPU's caches.

    At least 128 rows for a large vocabulary, because a BLAS packs the whole head again for every chunk.
    """
    return max(128, 2**19 // vocab_size)


def row_weights(mixer: Mixer, targets: Targets, names: Sequence[str]) -> dict[str, mx.array]:
    """The weight [N] of each row in each term: `targets.weight`, times the mixer's mask for that term."""
    where = mixer.where(targets)
    return {name: targets.weight * where[name] if name in where else targets.weight for name in names}


def term_totals(mixer: Mixer, targets: Targets, names: Sequence[str], chunk: int) -> dict[str, mx.array]:
    """The sum of all row weights of each term. Logits are computed only if `mixer.where` uses the teacher's."""
    size = targets.weight.shape[0]
    sums = {name: mx.array(0.0) for name in names}
    for start, stop in _spans(size, chunk if targets.lazy_logits else size):
        part = targets.rows(start, stop).with_logits(list(sums.values()))
        sums = {name: sums[name] + weight.sum() for name, weight in row_weights(mixer, part, names).items()}
    return sums


def mixed_loss(
    mixer: Mixer,
    hidden: mx.array,
    head: Head,
    targets: Targets,
    step: mx.array,
    weights: Mapping[str, float],
    totals: Mapping[str, mx.array],
    chunk: int,
) -> LossAndTerms:
    """The weighted sum of a mixer's terms over rows [N, D] of hidden states, and each term without its weight.

    `totals` are the sums of each term's row weights over the whole batch, so that the results of its parts (chunks,
    streams, machines) add up to the mean over the batch, however it was divided.
    """
    names = list(totals)

    def rows_loss(logits: mx.array, part: Targets) -> tuple[mx.array, mx.array]:
        rows, row_weight = mixer.rows(logits, part, step), row_weights(mixer, part, names)
        terms = [(rows[name] * row_weight[name]).sum() / totals[name] for name in names]
        loss = sum((weights.get(n, 1.0) * term for n, term in zip(names, terms, strict=True)), mx.array(0.0))
        return loss, mx.stack(terms)

    loss, terms = _chunked_loss(rows_loss, hidden, head, targets, chunk)
    return loss, {name: terms[i] for i, name in enumerate(names)}


def _chunked_loss(
    rows_loss: RowsLoss, hidden: mx.array, head: Head, targets: Targets, chunk: int
) -> tuple[mx.array, mx.array]:
    """The loss and its terms summed over chunks of rows; their gradients are computed in the forward pass."""
    weight, bias = head

    @mx.custom_function
    def total(*inputs: mx.array) -> Any:
        h, w, *biases = (each.astype(inputs[0].dtype) for each in inputs)
        b = biases[0] if biases else None
        loss, terms, grad_rows = mx.array(0.0), mx.array(0.0), list[mx.array]()
        grad_head = [mx.zeros(each.shape) for each in inputs[1:]]
        for start, stop in _spans(h.shape[0], chunk):
            # Each chunk depends on the one before, or MLX would compute all logits at once.
            (rows,) = mx.depends([h[start:stop]], [*grad_head, *grad_rows[-1:]])
            logits = rows @ w.T if b is None else rows @ w.T + b
            part = targets.rows(start, stop).with_logits([rows])
            part_loss, part_terms, grad = _loss_and_grad(rows_loss, logits.astype(mx.float32), part)
            loss, terms, grad = loss + part_loss, terms + part_terms, grad.astype(h.dtype)
            grad_rows.append(grad @ w)
            grad_head[0] = _add_product(grad_head[0], grad.T, rows)
            grad_head[1:] = [each + grad.sum(axis=0) for each in grad_head[1:]]
        return (loss, terms, mx.concatenate(grad_rows), *grad_head)

    @total.vjp
    def gradient(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        grads = zip(outputs[2:], primals, strict=True)
        return tuple((cotangents[0] * grad).astype(primal.dtype) for grad, primal in grads)

    outputs: Any = total(hidden, weight) if bias is None else total(hidden, weight, bias)
    return outputs[0], outputs[1]


def _add_product(total: mx.array, a: mx.array, b: mx.array) -> mx.array:
    """total + a @ b. A float32 total of half-precision products stays float32."""
    return mx.addmm(total, a, b) if a.dtype == total.dtype else total + a @ b


def _loss_and_grad(rows_loss: RowsLoss, logits: mx.array, targets: Targets) -> tuple[mx.array, mx.array, mx.array]:
    """The loss of a chunk, its terms, and the gradient of the loss with respect to the logits.

    On a CPU a few rows at a time, so that intermediate arrays stay in the caches.
    """
    loss_and_grad: Callable[..., Any] = mx.value_and_grad(rows_loss)
    size = max(1, PIECE_SIZE // logits.shape[1]) if is_cpu_float32(logits) else logits.shape[0]
    loss, terms, grads = mx.array(0.0), mx.array(0.0), []
    for start, stop in _spans(logits.shape[0], size):
        (part_loss, part_terms), grad = loss_and_grad(logits[start:stop], targets.rows(start, stop))
        loss, terms = loss + part_loss, terms + part_terms
        grads += mx.depends([grad], [part_loss, part_terms])  # frees what only the loss and the terms need
    return loss, terms, mx.concatenate(grads)


def _spans(size: int, chunk: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + chunk, size)) for start in range(0, size, chunk))


def grad_squared_norms(
    mixer: Mixer,
    hidden: mx.array,
    head: Head,
    targets: Targets,
    step: mx.array,
    weights: Mapping[str, float],
    totals: Mapping[str, float],
    chunk: int,
) -> dict[str, float]:
    """The squared L2 norm of each weighted term's gradient with respect to the logits of rows [N, D].

    `totals` are the sums of each term's row weights over the whole batch, so that the results of its parts add up.
    """
    weight, bias = head
    squares = dict.fromkeys(totals, 0.0)
    for start, stop in _spans(hidden.shape[0], chunk):
        logits = hidden[start:stop] @ weight.T
        logits = logits if bias is None else logits + bias
        part = targets.rows(start, stop).with_logits([])
        for name, total in totals.items():
            grad = _term_grad(mixer, name, logits.astype(mx.float32), part, step) * (weights.get(name, 1.0) / total)
            squares[name] += float(mx.square(grad).sum().item())  # type: ignore[arg-type]
    return squares


def _term_grad(mixer: Mixer, name: str, logits: mx.array, targets: Targets, step: mx.array) -> mx.array:
    """The gradient of one term, summed over its rows, with respect to the logits."""

    def summed(logits: mx.array) -> mx.array:
        part = targets.rows(0, logits.shape[0])  # a copy whose cache holds nothing of other logits
        return (mixer.rows(logits, part, step)[name] * row_weights(mixer, part, [name])[name]).sum()

    grad: mx.array = mx.grad(summed)(logits)
    return grad
