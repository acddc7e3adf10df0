"""From hidden states and targets to one loss: chunk by chunk, with the gradient taken on the way.

A mixer says what one row of logits costs. Rows are independent, so they are handed over in chunks, and each
chunk's gradient with respect to its hidden states and to the head is computed while its logits are at hand:
the logits of a whole batch never exist at once, nor do its teacher's. In half precision logits are rounded, and what is
made of them is float32. Knows nothing of networks, files or schedules of learning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ...core.errors import DistillkitError
from ...plugins.interfaces import Mixer
from ..model.cpu.math import ours
from .targets import Head, Opinion, Targets, TopK

__all__ = ["Head", "Opinion", "Targets", "TopK", "chunk_rows", "mixed_loss", "slope_squares", "term_names", "totals"]

PIECE = 2**19  # numbers

RowsLoss = Callable[[mx.array, Targets], tuple[mx.array, mx.array]]
Measured = tuple[mx.array, dict[str, mx.array]]


def term_names(mixer: Mixer, vocab_size: int, targets: Targets) -> list[str]:
    """The names of a mixer's terms, from one row of zeros that is never computed."""
    rows: Any = mixer.rows(mx.zeros((1, vocab_size)), targets.rows(0, 1), mx.array(0))
    if not isinstance(rows, dict) or not all(getattr(row, "shape", None) == (1,) for row in rows.values()):
        told = f"the mixer {mixer.name!r} did not give one loss a row for each of its terms"
        raise DistillkitError(told, "Mixer.rows returns {term: losses [N]}.")
    return list(rows)


def chunk_rows(vocab_size: int) -> int:
    """How many rows of logits to hold at once: about half a million numbers, which caches like.

    Of a large vocabulary more: a BLAS puts the whole head into its own order for every chunk.
    """
    return max(128, 2**19 // vocab_size)


def counted(mixer: Mixer, targets: Targets, names: Sequence[str]) -> dict[str, mx.array]:
    """How much each row counts in each term: its weight, where the mixer looks at it."""
    where = mixer.where(targets)
    return {name: targets.weight * where[name] if name in where else targets.weight for name in names}


def totals(mixer: Mixer, targets: Targets, names: Sequence[str], chunk: int) -> dict[str, mx.array]:
    """How much all rows count in each term. No logit is computed unless a mixer's `where` looks at its teacher's."""
    size = targets.weight.shape[0]
    sums = {name: mx.array(0.0) for name in names}
    for start, stop in _spans(size, chunk if targets.opinion else size):
        some = targets.rows(start, stop).at_hand(list(sums.values()))
        sums = {name: sums[name] + count.sum() for name, count in counted(mixer, some, names).items()}
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
) -> Measured:
    """The weighted sum of a mixer's terms over rows [N, D] of hidden states, and each term's own share.

    `totals` says how much all rows of the whole batch count in each term, so that the shares of parts
    (chunks, streams, machines) add up to the mean over the batch, however it was cut.
    """
    names = list(totals)

    def rows_loss(logits: mx.array, some: Targets) -> tuple[mx.array, mx.array]:
        rows, count = mixer.rows(logits, some, step), counted(mixer, some, names)
        shares = [(rows[name] * count[name]).sum() / totals[name] for name in names]
        loss = sum((weights.get(n, 1.0) * share for n, share in zip(names, shares, strict=True)), mx.array(0.0))
        return loss, mx.stack(shares)

    loss, shares = _over_chunks(rows_loss, hidden, head, targets, chunk)
    return loss, {name: shares[i] for i, name in enumerate(names)}


def _over_chunks(
    rows_loss: RowsLoss, hidden: mx.array, head: Head, targets: Targets, chunk: int
) -> tuple[mx.array, mx.array]:
    """Sum over chunks of rows, with the gradients computed together with the values."""
    weight, bias = head

    @mx.custom_function
    def total(*inputs: mx.array) -> Any:
        h, w, *biases = (each.astype(inputs[0].dtype) for each in inputs)
        b = biases[0] if biases else None
        loss, shares, of_rows = mx.array(0.0), mx.array(0.0), list[mx.array]()
        of_head = [mx.zeros(each.shape) for each in inputs[1:]]
        for start, stop in _spans(h.shape[0], chunk):
            # One chunk after another, or the logits of all would exist at once.
            (rows,) = mx.depends([h[start:stop]], [*of_head, *of_rows[-1:]])
            logits = rows @ w.T if b is None else rows @ w.T + b
            some = targets.rows(start, stop).at_hand([rows])
            part, terms, slope = _over_pieces(rows_loss, logits.astype(mx.float32), some)
            loss, shares, slope = loss + part, shares + terms, slope.astype(h.dtype)
            of_rows.append(slope @ w)
            of_head[0] = _plus_product(of_head[0], slope.T, rows)
            of_head[1:] = [each + slope.sum(axis=0) for each in of_head[1:]]
        return (loss, shares, mx.concatenate(of_rows), *of_head)

    @total.vjp
    def gradient(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        slopes = zip(outputs[2:], primals, strict=True)
        return tuple((cotangents[0] * slope).astype(primal.dtype) for slope, primal in slopes)

    outputs: Any = total(hidden, weight) if bias is None else total(hidden, weight, bias)
    return outputs[0], outputs[1]


def _plus_product(total: mx.array, a: mx.array, b: mx.array) -> mx.array:
    """total + a b; a total in float32 of products in half precision stays in float32."""
    return mx.addmm(total, a, b) if a.dtype == total.dtype else total + a @ b


def _over_pieces(rows_loss: RowsLoss, logits: mx.array, targets: Targets) -> tuple[mx.array, mx.array, mx.array]:
    """The loss of a chunk, its terms, and its slope, a few rows at a time on a CPU: what caches hold is soon done."""
    valued: Callable[..., Any] = mx.value_and_grad(rows_loss)
    some = max(1, PIECE // logits.shape[1]) if ours(logits) else logits.shape[0]
    loss, shares, slopes = mx.array(0.0), mx.array(0.0), []
    for start, stop in _spans(logits.shape[0], some):
        (part, terms), slope = valued(logits[start:stop], targets.rows(start, stop))
        loss, shares = loss + part, shares + terms
        slopes += mx.depends([slope], [part, terms])  # what only they need of the logits is then free, too
    return loss, shares, mx.concatenate(slopes)


def _spans(size: int, chunk: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + chunk, size)) for start in range(0, size, chunk))


def slope_squares(
    mixer: Mixer,
    hidden: mx.array,
    head: Head,
    targets: Targets,
    step: mx.array,
    weights: Mapping[str, float],
    totals: Mapping[str, float],
    chunk: int,
) -> dict[str, float]:
    """The squared length of the gradient of each weighted term at the logits of rows [N, D].

    `totals` says how much all rows of the whole batch count in each term, so that the squares of parts add up.
    """
    weight, bias = head
    squares = dict.fromkeys(totals, 0.0)
    for start, stop in _spans(hidden.shape[0], chunk):
        logits = hidden[start:stop] @ weight.T
        logits = logits if bias is None else logits + bias
        some = targets.rows(start, stop).at_hand([])
        for name, count in totals.items():
            slope = _slope_of(mixer, name, logits.astype(mx.float32), some, step) * (weights.get(name, 1.0) / count)
            squares[name] += float(mx.square(slope).sum().item())  # type: ignore[arg-type]
    return squares


def _slope_of(mixer: Mixer, name: str, logits: mx.array, targets: Targets, step: mx.array) -> mx.array:
    """The gradient of the sum of one term's rows."""

    def summed(logits: mx.array) -> mx.array:
        some = targets.rows(0, logits.shape[0])  # which has not seen other logits
        return (mixer.rows(logits, some, step)[name] * counted(mixer, some, [name])[name]).sum()

    slope: mx.array = mx.grad(summed)(logits)
    return slope
