"""From hidden states and targets to one loss: chunk by chunk, with the gradient taken on the way.

A mixer says what one row of logits costs. Rows are independent, so they are handed over in chunks, and each
chunk's gradient with respect to its hidden states and to the head is computed while its logits are at hand:
the logits of a whole batch never exist at once. In half precision logits are rounded, and what is made of them is
float32. Knows nothing of networks, files or schedules of learning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from ..roles import Mixer
from .elementary import logsumexp, ours, row_sum, softmax

Head = tuple[mx.array, mx.array | None]


@dataclass(frozen=True)
class TopK:
    """Sparse soft targets: the k likeliest tokens of each row, and the mass of all others."""

    ids: mx.array
    log_probs: mx.array
    residual: mx.array


@dataclass(frozen=True)
class Targets:
    """What the student should predict in each row. A teacher's logits stay as they came until asked for."""

    hard: mx.array
    weight: mx.array
    from_teacher: mx.array
    has_soft: mx.array
    sparse: TopK | None = None
    teacher_logits: mx.array | None = None

    @property
    def soft(self) -> mx.array | TopK | None:
        """None, dense log-probabilities [N, V], or the sparse ones."""
        if self.teacher_logits is None:
            return self.sparse
        return self.teacher_logits - logsumexp(self.teacher_logits)[..., None]

    def log_prob(self, logits: mx.array, log_total: mx.array | None = None) -> mx.array:
        """The log-probability of each row's hard token; `log_total` is the logits' logsumexp, if it is at hand."""
        chosen = mx.take_along_axis(logits, self.hard[:, None], axis=-1)[:, 0]
        return chosen - (logsumexp(logits) if log_total is None else log_total)

    def soft_divergence(self, logits: mx.array, temperature: float, log_total: mx.array | None = None) -> mx.array:
        """KL(teacher || student), both at a temperature, from the teacher's logits.

        `log_total` is the logsumexp of the softened logits, if it is at hand.
        """
        if self.teacher_logits is None:
            raise ValueError("these targets hold no teacher's logits")
        theirs, here = self.teacher_logits / temperature, logits / temperature
        log_total = logsumexp(here) if log_total is None else log_total
        return log_total - logsumexp(theirs) - row_sum(softmax(theirs) * (here - theirs))[:, 0]

    def rows(self, start: int, stop: int) -> Targets:
        """The same for some rows only."""
        cut = slice(start, stop)
        sparse = self.sparse and TopK(self.sparse.ids[cut], self.sparse.log_probs[cut], self.sparse.residual[cut])
        return replace(
            self,
            hard=self.hard[cut],
            weight=self.weight[cut],
            from_teacher=self.from_teacher[cut],
            has_soft=self.has_soft[cut],
            sparse=sparse,
            teacher_logits=None if self.teacher_logits is None else self.teacher_logits[cut],
        )


def counted(mixer: Mixer, targets: Targets, terms: list[str]) -> dict[str, mx.array]:
    """How much each row counts in each term: its weight, where the mixer looks at it."""
    where = mixer.where(targets)
    return {term: targets.weight * where[term] if term in where else targets.weight for term in terms}


def term_names(mixer: Mixer, vocab_size: int, targets: Targets) -> list[str]:
    """The names of a mixer's terms, from one row of zeros that is never computed."""
    return list(mixer.rows(mx.zeros((1, vocab_size)), targets.rows(0, 1), mx.array(0)))


def chunk_rows(vocab_size: int) -> int:
    """How many rows of logits to hold at once: about half a million numbers, which caches like.

    Of a large vocabulary more: a BLAS puts the whole head into its own order for every chunk.
    """
    return max(128, 2**19 // vocab_size)


PIECE = 2**19  # numbers

Measured = tuple[mx.array, dict[str, mx.array]]


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
    count = counted(mixer, targets, names)

    def rows_loss(logits: mx.array, start: int) -> tuple[mx.array, mx.array]:
        stop = start + logits.shape[0]
        rows = mixer.rows(logits, targets.rows(start, stop), step)
        shares = [(rows[n] * count[n][start:stop]).sum() / totals[n] for n in names]
        loss = sum((weights.get(n, 1.0) * share for n, share in zip(names, shares, strict=True)), mx.array(0.0))
        return loss, mx.stack(shares)

    loss, shares = _over_chunks(rows_loss, hidden, head, chunk)
    return loss, {name: shares[i] for i, name in enumerate(names)}


def _over_chunks(rows_loss: Callable[..., Any], hidden: mx.array, head: Head, chunk: int) -> tuple[mx.array, mx.array]:
    """Sum over chunks of rows, with the gradients computed together with the values."""
    weight, bias = head

    @mx.custom_function
    def total(*inputs: mx.array) -> Any:
        h, w, *biases = (each.astype(inputs[0].dtype) for each in inputs)
        b = biases[0] if biases else None
        loss, shares, of_rows = mx.array(0.0), mx.array(0.0), list[mx.array]()
        of_head = [mx.zeros(each.shape) for each in inputs[1:]]
        for start in range(0, h.shape[0], chunk):
            # One chunk after another, or the logits of all would exist at once.
            (rows,) = mx.depends([h[start : start + chunk]], [*of_head, *of_rows[-1:]])
            logits = rows @ w.T if b is None else rows @ w.T + b
            part, terms, slope = _over_pieces(rows_loss, logits.astype(mx.float32), start)
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


def _over_pieces(rows_loss: Callable[..., Any], logits: mx.array, start: int) -> tuple[mx.array, mx.array, mx.array]:
    """The loss of a chunk, its terms, and its slope, a few rows at a time on a CPU: what caches hold is soon done."""
    valued = mx.value_and_grad(rows_loss)
    some = max(1, PIECE // logits.shape[1]) if ours(logits) else logits.shape[0]
    loss, shares, slopes = mx.array(0.0), mx.array(0.0), []
    for first in range(0, logits.shape[0], some):
        (part, terms), slope = valued(logits[first : first + some], start + first)
        loss, shares = loss + part, shares + terms
        slopes += mx.depends([slope], [part, terms])  # what only they need of the logits is then free, too
    return loss, shares, mx.concatenate(slopes)
