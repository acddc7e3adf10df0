"""What the student should predict in each row, and how far it is from it: all that mixers are made of.

A teacher's opinion is dense (logits, or hidden states of which logits are made when they are needed) or sparse (the
likeliest tokens, and one residual for all others). Either way teacher and student become chances over the same
outcomes, so a mixer is written once. Knows nothing of batches, chunks or networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import mlx.core as mx

from ...core.errors import UsageError
from ...core.records import LOG_ZERO
from ..model.cpu.math import normalised, row_sum

Head = tuple[mx.array, mx.array | None]
Heat = float | mx.array  # a temperature

TRACE = 1e-6  # the least mass that float32 tells from nothing when it is what others leave of one
TINY = 1e-37


class Chances(NamedTuple):
    """How likely each outcome of each row is [N, K]: in logarithms, and plainly."""

    log: mx.array
    plain: mx.array

    def divergence(self, other: Chances) -> mx.array:
        """KL(these || other) of each row."""
        return row_sum(self.plain * (self.log - other.log))[:, 0]

    def mixed(self, share: float | mx.array, other: Chances) -> Chances:
        """So much of these, and the rest of the other."""
        plain = share * self.plain + (1 - share) * other.plain
        return Chances(mx.log(mx.maximum(plain, TINY)), plain)


@dataclass(frozen=True)
class TopK:
    """Sparse soft targets: some tokens of each row, none twice, and the mass of all others; all in natural logarithms.

    A place that is not used has a log-probability of -1e4, as has a residual of nothing.
    """

    ids: mx.array
    log_probs: mx.array
    residual: mx.array

    def rows(self, cut: slice) -> TopK:
        """The same for some rows only."""
        return TopK(self.ids[cut], self.log_probs[cut], self.residual[cut])


@dataclass(frozen=True)
class Opinion:
    """What a teacher makes of each row: hidden states, and the head that makes logits of them, some rows at a time."""

    hidden: mx.array
    head: Head

    def rows(self, cut: slice) -> Opinion:
        """The same for some rows only."""
        return Opinion(self.hidden[cut], self.head)

    def logits(self, after: Sequence[mx.array] = ()) -> mx.array:
        """The logits, computed once other arrays are there."""
        weight, bias = self.head
        (hidden,) = mx.depends([self.hidden], list(after)) if after else (self.hidden,)
        logits = hidden @ weight.T
        return mx.stop_gradient(logits if bias is None else logits + bias).astype(mx.float32)


@dataclass(frozen=True)
class Targets:
    """What the student should predict in each row [N]."""

    hard: mx.array
    weight: mx.array  # 0 is padding
    from_teacher: mx.array  # rows of a text that the teacher wrote
    has_soft: mx.array
    sparse: TopK | None = None
    teacher_logits: mx.array | None = None
    opinion: Opinion | None = None
    from_student: mx.array = field(default_factory=lambda: mx.array([]))  # rows that the student wrote just now
    _seen: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.from_student.size:
            object.__setattr__(self, "from_student", mx.zeros_like(self.weight))

    def rows(self, start: int, stop: int) -> Targets:
        """The same for some rows only."""
        cut = slice(start, stop)
        return Targets(
            hard=self.hard[cut],
            weight=self.weight[cut],
            from_teacher=self.from_teacher[cut],
            has_soft=self.has_soft[cut],
            sparse=self.sparse and self.sparse.rows(cut),
            teacher_logits=None if self.teacher_logits is None else self.teacher_logits[cut],
            opinion=self.opinion and self.opinion.rows(cut),
            from_student=self.from_student[cut],
        )

    def at_hand(self, after: Sequence[mx.array]) -> Targets:
        """The same with the teacher's logits, if they are still to be made, once other arrays are there."""
        if self.opinion is None:
            return self
        return replace(self, teacher_logits=self.opinion.logits(after), opinion=None)

    # ------------------------------------------------------------------------------------- for mixers

    @property
    def soft(self) -> mx.array | TopK | None:
        """None, dense log-probabilities [N, V], or the sparse ones."""
        theirs = self._theirs
        return self.sparse if theirs is None else theirs - normalised(theirs)[0][..., None]

    @property
    def in_text(self) -> mx.array:
        """The rows [N] whose hard token stands in a text, as 0 or 1: all but those that the student wrote itself."""
        return 1 - self.from_student

    def log_prob(self, logits: mx.array) -> mx.array:
        """The log-probability of each row's hard token."""
        chosen = mx.take_along_axis(logits, self.hard[:, None], axis=-1)[:, 0]
        return chosen - self._normalised(logits)[0]

    def soft_divergence(self, logits: mx.array, heat: Heat = 1.0) -> mx.array:
        """KL(teacher || student), both at a temperature."""
        theirs = self._theirs
        if theirs is None:
            taught, ours = self.both(logits, heat)
            return taught.divergence(ours)
        here, theirs = _over(logits, heat), _over(theirs, heat)
        total, powers, scale = normalised(theirs)
        return self._normalised(here)[0] - total - (row_sum(powers * (here - theirs)) * scale)[:, 0]

    def both(self, logits: mx.array, heat: Heat = 1.0) -> tuple[Chances, Chances]:
        """The teacher's and the student's chances at a temperature, over the same outcomes of each row.

        Outcomes are all tokens; of sparse targets those that are named, and all others as one. Those are softened as
        they are, which is not what the softened whole would show of them unless the temperature is 1.
        """
        theirs = self._theirs
        if theirs is not None:
            return _chances(_over(theirs, heat)), self._chances(_over(logits, heat))
        if self.sparse is None:
            raise UsageError(
                "the mixer compares the student with a teacher's opinion, and these rows have none",
                'Name a teacher that shows one (provider = "checkpoint"), or take mixer.name = "hard".',
            )
        return self._both_sparse(self.sparse, logits, heat)

    def _both_sparse(self, sparse: TopK, logits: mx.array, heat: Heat) -> tuple[Chances, Chances]:
        used = sparse.log_probs > LOG_ZERO / 2
        best = sparse.log_probs.argmax(axis=-1, keepdims=True)
        ids = mx.where(used, sparse.ids, mx.take_along_axis(sparse.ids, best, axis=-1))
        named = mx.maximum(sparse.log_probs, LOG_ZERO)
        total, powers, scale = self._normalised(logits)
        outputs: Any = _coarse(logits, mx.stop_gradient(total), powers, scale, ids, used, best)
        theirs, ours = mx.concatenate([named, sparse.residual[:, None]], axis=-1), Chances(*outputs)
        if ids.shape[-1] >= logits.shape[-1]:  # all are named, so there are no others
            theirs, ours = theirs[:, :-1], Chances(*(each[:, :-1] for each in ours))
            return _softened(theirs, heat), ours if _is_one(heat) else _softened(ours.log, heat)
        taught = _softened(theirs, heat)
        rest = mx.maximum(taught.log[:, -1:], math.log(TRACE))  # or a student's smallest rest would cost without end
        taught = Chances(mx.concatenate([taught.log[:, :-1], rest], axis=-1), taught.plain)
        return taught, ours if _is_one(heat) else _softened(ours.log, heat)

    @property
    def _theirs(self) -> mx.array | None:
        return self.opinion.logits() if self.opinion else self.teacher_logits

    def _normalised(self, logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """What `normalised` says of these logits: once, for all terms that a mixer makes of them."""
        if self._seen.get("logits") is not logits:
            self._seen.update(logits=logits, normalised=normalised(logits))
        found: tuple[mx.array, mx.array, mx.array] = self._seen["normalised"]
        return found

    def _chances(self, logits: mx.array) -> Chances:
        return _chances(logits, self._normalised(logits))


# -------------------------------------------------------------------------------------------------- chances


def _is_one(heat: Heat) -> bool:
    return isinstance(heat, float | int) and heat == 1


def _over(logits: mx.array, heat: Heat) -> mx.array:
    return logits if _is_one(heat) else logits / heat


def _softened(log: mx.array, heat: Heat) -> Chances:
    """A few log-probabilities at a temperature, so that they make up one again."""
    log = _over(log, heat)
    log = log - mx.logsumexp(log, axis=-1, keepdims=True)
    return Chances(log, mx.exp(log))


def _chances(logits: mx.array, known: tuple[mx.array, mx.array, mx.array] | None = None) -> Chances:
    """The chances of logits; `known` is what `normalised` says of them, if it is at hand."""
    total, powers, scale = known or normalised(logits)
    outputs: Any = _log_softmax(logits, mx.stop_gradient(total), powers, scale)
    return Chances(*outputs)


@mx.custom_function
def _log_softmax(x: mx.array, total: mx.array, powers: mx.array, scale: mx.array) -> Any:
    return x - total[:, None], powers * scale


@_log_softmax.vjp
def _log_softmax_gradient(primals: Any, cotangents: Any, outputs: Any) -> Any:
    plain = outputs[1]
    slope = cotangents[0] + cotangents[1] * plain
    return slope - plain * row_sum(slope), *(mx.zeros_like(each) for each in primals[1:])


@mx.custom_function
def _coarse(
    x: mx.array, total: mx.array, powers: mx.array, scale: mx.array, ids: mx.array, used: mx.array, best: mx.array
) -> Any:
    """The chances of the tokens that are named, and of all others together: nothing here is as long as a row of logits.

    Where a place is not used, `ids` names the row's best token once more.
    """
    plain = mx.take_along_axis(powers, ids, axis=-1) * scale * used
    rest = mx.maximum(1 - plain.sum(axis=-1, keepdims=True), TRACE)
    log = mx.where(used, mx.take_along_axis(x, ids, axis=-1) - total[:, None], LOG_ZERO)
    return mx.concatenate([log, mx.log(rest)], axis=-1), mx.concatenate([plain, rest], axis=-1)


@_coarse.vjp
def _coarse_gradient(primals: Any, cotangents: Any, outputs: Any) -> Any:
    """Of what is not named a multiple of the softmax; of what is named, numbers of its own in its place.

    They are put there, not added: where next to nothing is left for the others, both would be large, their sum small.
    """
    _, _, powers, scale, ids, used, best = primals
    plain, rest = outputs[1][:, :-1], outputs[1][:, -1:]
    slope = cotangents[0] + cotangents[1] * outputs[1]
    of_named, of_rest = mx.where(used, slope[:, :-1], 0.0), slope[:, -1:]
    whole = of_named.sum(axis=-1, keepdims=True) + of_rest
    named = of_named - plain * whole
    named = mx.where(used, named, mx.take_along_axis(named, best, axis=-1))
    of_x = mx.put_along_axis(powers * (scale * (of_rest / rest - whole)), ids, named, axis=-1)
    return of_x, *(mx.zeros_like(each) for each in primals[1:])
