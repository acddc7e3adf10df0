"""The targets of a batch's rows, and the distributions and divergences that mixers compute from them.

The teacher's distribution is dense (logits, or hidden states from which logits are computed when needed) or sparse (the
top-k tokens, and the residual probability of all others). In both cases `Targets.both` returns the teacher's and the
student's probabilities over the same outcomes, so a mixer is written once. Knows nothing of batches, chunks or
networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import mlx.core as mx

from ...core.errors import UsageError
from ...core.records import LOG_ZERO
from ..model.cpu.math import row_sum, softmax_parts

Head = tuple[mx.array, mx.array | None]  # weight [V, D] and bias [V] of the output layer
Temperature = float | mx.array

MIN_MASS = 1e-6  # the smallest residual 1 - sum(p) that float32 can tell from zero
MIN_PROBABILITY = 1e-37


class Probabilities(NamedTuple):
    """A distribution over K outcomes for each row [N, K]: log-probabilities and probabilities."""

    log_probs: mx.array
    probs: mx.array

    def divergence(self, other: Probabilities) -> mx.array:
        """KL(self ‖ other) of each row [N]."""
        return row_sum(self.probs * (self.log_probs - other.log_probs))[:, 0]

    def mix(self, share: float | mx.array, other: Probabilities) -> Probabilities:
        """The mixture share * self + (1 - share) * other."""
        probs = share * self.probs + (1 - share) * other.probs
        return Probabilities(mx.log(mx.maximum(probs, MIN_PROBABILITY)), probs)

    # Former names, kept for existing mixer plugins.

    @property
    def log(self) -> mx.array:
        """The same as `log_probs`."""
        return self.log_probs

    @property
    def plain(self) -> mx.array:
        """The same as `probs`."""
        return self.probs

    def mixed(self, share: float | mx.array, other: Probabilities) -> Probabilities:
        """The same as `mix`."""
        return self.mix(share, other)


@dataclass(frozen=True)
class TopK:
    """Sparse soft targets: distinct tokens of each row, and the residual mass of all others, as natural logarithms.

    Shapes: `ids` and `log_probs` [N, k], `residual` [N]. An unused entry and an empty residual have the value -1e4.
    """

    ids: mx.array
    log_probs: mx.array
    residual: mx.array

    def rows(self, rows: slice) -> TopK:
        """The targets of some of the rows."""
        return TopK(self.ids[rows], self.log_probs[rows], self.residual[rows])


@dataclass(frozen=True)
class LazyLogits:
    """The teacher's hidden states [N, D] and its head, from which logits are computed a few rows at a time."""

    hidden: mx.array
    head: Head

    def rows(self, rows: slice) -> LazyLogits:
        """The hidden states of some of the rows."""
        return LazyLogits(self.hidden[rows], self.head)

    def logits(self, after: Sequence[mx.array] = ()) -> mx.array:
        """Logits [N, V] in float32, without a gradient; computed only after the arrays in `after`."""
        weight, bias = self.head
        (hidden,) = mx.depends([self.hidden], list(after)) if after else (self.hidden,)
        logits = hidden @ weight.T
        return mx.stop_gradient(logits if bias is None else logits + bias).astype(mx.float32)


@dataclass(frozen=True)
class Targets:
    """What the student should predict in each of N rows: a hard token, and possibly the teacher's distribution."""

    hard: mx.array
    weight: mx.array  # 0 for padding
    from_teacher: mx.array  # 1 for rows of text that the teacher wrote
    has_soft: mx.array
    sparse: TopK | None = None
    teacher_logits: mx.array | None = None
    lazy_logits: LazyLogits | None = None
    from_student: mx.array = field(default_factory=lambda: mx.array([]))  # 1 for rows that the student has generated
    _cache: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.from_student.size:
            object.__setattr__(self, "from_student", mx.zeros_like(self.weight))

    def rows(self, start: int, stop: int) -> Targets:
        """The targets of the rows from `start` to `stop`."""
        rows = slice(start, stop)
        return Targets(
            hard=self.hard[rows],
            weight=self.weight[rows],
            from_teacher=self.from_teacher[rows],
            has_soft=self.has_soft[rows],
            sparse=self.sparse and self.sparse.rows(rows),
            teacher_logits=None if self.teacher_logits is None else self.teacher_logits[rows],
            lazy_logits=self.lazy_logits and self.lazy_logits.rows(rows),
            from_student=self.from_student[rows],
        )

    def with_logits(self, after: Sequence[mx.array]) -> Targets:
        """These targets with lazy logits replaced by logits, which are computed after the arrays in `after`."""
        if self.lazy_logits is None:
            return self
        return replace(self, teacher_logits=self.lazy_logits.logits(after), lazy_logits=None)

    # ------------------------------------------------------------------------------------- for mixers

    @property
    def soft(self) -> mx.array | TopK | None:
        """The teacher's distribution: None, dense log-probabilities [N, V], or a `TopK`."""
        teacher = self._dense_logits
        return self.sparse if teacher is None else teacher - softmax_parts(teacher)[0][..., None]

    @property
    def in_text(self) -> mx.array:
        """1 for the rows [N] whose hard token comes from a text, 0 for those that the student generated itself."""
        return 1 - self.from_student

    def log_prob(self, logits: mx.array) -> mx.array:
        """The log-probability [N] of each row's hard token under the logits [N, V]."""
        chosen = mx.take_along_axis(logits, self.hard[:, None], axis=-1)[:, 0]
        return chosen - self._softmax_parts(logits)[0]

    def soft_divergence(self, logits: mx.array, temperature: Temperature = 1.0) -> mx.array:
        """KL(teacher ‖ student) of each row [N], both at a temperature."""
        teacher = self._dense_logits
        if teacher is None:
            teacher_probs, student_probs = self.both(logits, temperature)
            return teacher_probs.divergence(student_probs)
        student, teacher = _divide(logits, temperature), _divide(teacher, temperature)
        total, powers, scale = softmax_parts(teacher)
        return self._softmax_parts(student)[0] - total - (row_sum(powers * (student - teacher)) * scale)[:, 0]

    def both(self, logits: mx.array, temperature: Temperature = 1.0) -> tuple[Probabilities, Probabilities]:
        """The teacher's and the student's probabilities at a temperature, over the same outcomes of each row.

        Dense: the outcomes are all V tokens. Sparse: they are the top-k tokens and one for all others; the temperature
        is applied to these k + 1 probabilities, which approximates the softened full distribution unless it is 1.
        """
        teacher = self._dense_logits
        if teacher is not None:
            return _probabilities(_divide(teacher, temperature)), self._student(_divide(logits, temperature))
        if self.sparse is None:
            raise UsageError(
                "the mixer compares the student with the teacher's distribution, and these rows have none",
                'Use a teacher that provides one (provider = "checkpoint"), or mixer.name = "hard".',
            )
        return self._both_sparse(self.sparse, logits, temperature)

    def _both_sparse(
        self, sparse: TopK, logits: mx.array, temperature: Temperature
    ) -> tuple[Probabilities, Probabilities]:
        used = sparse.log_probs > LOG_ZERO / 2
        best = sparse.log_probs.argmax(axis=-1, keepdims=True)
        ids = mx.where(used, sparse.ids, mx.take_along_axis(sparse.ids, best, axis=-1))
        top_k = mx.maximum(sparse.log_probs, LOG_ZERO)
        total, powers, scale = self._softmax_parts(logits)
        outputs: Any = _grouped_probabilities(logits, mx.stop_gradient(total), powers, scale, ids, used, best)
        teacher_log, student = mx.concatenate([top_k, sparse.residual[:, None]], axis=-1), Probabilities(*outputs)
        if ids.shape[-1] >= logits.shape[-1]:  # top-k covers the vocabulary, so there are no other tokens
            teacher_log, student = teacher_log[:, :-1], Probabilities(*(each[:, :-1] for each in student))
            return (
                _soften(teacher_log, temperature),
                student if _is_one(temperature) else _soften(student.log_probs, temperature),
            )
        teacher = _soften(teacher_log, temperature)
        rest = mx.maximum(teacher.log_probs[:, -1:], math.log(MIN_MASS))  # bounds KL where the student's rest is ~0
        teacher = Probabilities(mx.concatenate([teacher.log_probs[:, :-1], rest], axis=-1), teacher.probs)
        return teacher, student if _is_one(temperature) else _soften(student.log_probs, temperature)

    @property
    def _dense_logits(self) -> mx.array | None:
        return self.lazy_logits.logits() if self.lazy_logits else self.teacher_logits

    def _softmax_parts(self, logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """`softmax_parts(logits)`, computed once for all terms that a mixer derives from the same logits."""
        if self._cache.get("logits") is not logits:
            self._cache.update(logits=logits, parts=softmax_parts(logits))
        parts: tuple[mx.array, mx.array, mx.array] = self._cache["parts"]
        return parts

    def _student(self, logits: mx.array) -> Probabilities:
        return _probabilities(logits, self._softmax_parts(logits))


# --------------------------------------------------------------------------------------------- probabilities


def _is_one(temperature: Temperature) -> bool:
    return isinstance(temperature, float | int) and temperature == 1


def _divide(logits: mx.array, temperature: Temperature) -> mx.array:
    return logits if _is_one(temperature) else logits / temperature


def _soften(log_probs: mx.array, temperature: Temperature) -> Probabilities:
    """softmax(log_probs / temperature) over few outcomes."""
    log_probs = _divide(log_probs, temperature)
    log_probs = log_probs - mx.logsumexp(log_probs, axis=-1, keepdims=True)
    return Probabilities(log_probs, mx.exp(log_probs))


def _probabilities(logits: mx.array, parts: tuple[mx.array, mx.array, mx.array] | None = None) -> Probabilities:
    """softmax(logits) and its logarithm; `parts` is `softmax_parts(logits)` if it is already known."""
    total, powers, scale = parts or softmax_parts(logits)
    outputs: Any = _log_softmax(logits, mx.stop_gradient(total), powers, scale)
    return Probabilities(*outputs)


@mx.custom_function
def _log_softmax(x: mx.array, total: mx.array, powers: mx.array, scale: mx.array) -> Any:
    return x - total[:, None], powers * scale


@_log_softmax.vjp
def _log_softmax_gradient(primals: Any, cotangents: Any, outputs: Any) -> Any:
    probs = outputs[1]
    grad = cotangents[0] + cotangents[1] * probs
    return grad - probs * row_sum(grad), *(mx.zeros_like(each) for each in primals[1:])


@mx.custom_function
def _grouped_probabilities(
    x: mx.array, total: mx.array, powers: mx.array, scale: mx.array, ids: mx.array, used: mx.array, best: mx.array
) -> Any:
    """Log-probabilities and probabilities [N, k + 1] of the tokens `ids` and of all others together.

    No array here is as wide as a row of logits. Where an entry is unused, `ids` repeats the row's best token.
    """
    probs = mx.take_along_axis(powers, ids, axis=-1) * scale * used
    rest = mx.maximum(1 - probs.sum(axis=-1, keepdims=True), MIN_MASS)
    log_probs = mx.where(used, mx.take_along_axis(x, ids, axis=-1) - total[:, None], LOG_ZERO)
    return mx.concatenate([log_probs, mx.log(rest)], axis=-1), mx.concatenate([probs, rest], axis=-1)


@_grouped_probabilities.vjp
def _grouped_probabilities_gradient(primals: Any, cotangents: Any, outputs: Any) -> Any:
    """For tokens outside the top-k a multiple of their softmax; for those in the top-k a separate value.

    The latter overwrite the former instead of being added: where the residual is nearly 0, both are large and cancel.
    """
    _, _, powers, scale, ids, used, best = primals
    probs, rest = outputs[1][:, :-1], outputs[1][:, -1:]
    grad = cotangents[0] + cotangents[1] * outputs[1]
    grad_top_k, grad_rest = mx.where(used, grad[:, :-1], 0.0), grad[:, -1:]
    whole = grad_top_k.sum(axis=-1, keepdims=True) + grad_rest
    at_ids = grad_top_k - probs * whole
    at_ids = mx.where(used, at_ids, mx.take_along_axis(at_ids, best, axis=-1))
    grad_x = mx.put_along_axis(powers * (scale * (grad_rest / rest - whole)), ids, at_ids, axis=-1)
    return grad_x, *(mx.zeros_like(each) for each in primals[1:])
