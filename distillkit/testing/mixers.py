"""What a mixer owes the engine: losses of independent rows, finite everywhere, whose gradients are their slopes.

Knows targets and the engine that cuts batches into chunks. Does not know what a good loss is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..core.records import LOG_ZERO
from ..plugins.interfaces import Mixer, signal_suffices
from ..student.training.loss import mixed_loss, row_weights
from ..student.training.targets import MIN_MASS, Targets, TopK
from .framework import Case, expect, run_checks

ROWS, VOCAB, WIDTH, TOP = 12, 17, 6, 5
STEPS = (0, 1, 100, 1_000)
RUN = 1_000  # steps
STRIDES = (0.04, 0.02)  # along a direction, for slopes by finite differences
NEAR = 2e-3  # how far a gradient may be from a slope, and chunks from the whole, for losses of about one
EXTREME = 30.0  # times ordinary logits: the likeliest token has all the mass

Rows = NDArray[np.float64]


def check_mixer(cls: type[Mixer], options: Mapping[str, Any] | None = None, *, gradients: bool = True) -> list[str]:
    """Hold a mixer against its promises. `options` are those of a recipe's [mixer] table.

    Say `gradients=False` of one that stops a gradient on purpose, so that it is not the slope of the loss.
    """
    checks = [
        returns_named_terms,
        weights_known_terms,
        masks_rows,
        keeps_rows_independent,
        is_chunk_independent,
        is_repeatable,
        stays_finite_at_extremes,
    ]
    if gradients:
        checks.append(has_correct_gradients)
    return run_checks("mixers", cls, options, checks)


# ------------------------------------------------------------------------------------------- materials


def logits_like(seed: int, scale: float = 1.5) -> mx.array:
    """Logits [N, V] of nobody."""
    return mx.array((scale * np.random.default_rng(seed).normal(size=(ROWS, VOCAB))).astype(np.float32))


def targets_for(signal: str, scale: float = 1.0) -> Targets:
    """Rows of all kinds: padding, text of the corpus and of a teacher, with a soft target and without."""
    place = np.arange(ROWS)
    soft = mx.array((place % 4 != 3).astype(np.float32)) if signal_suffices(signal, "top_logprobs") else mx.zeros(ROWS)
    theirs = scale * logits_like(2)
    return Targets(
        hard=mx.array((place * 5 + 1) % VOCAB),
        weight=mx.array((place % 5 != 4).astype(np.float32)),
        from_teacher=mx.array((place % 3 == 0).astype(np.float32)),
        has_soft=soft,
        sparse=_likeliest(theirs) if signal == "top_logprobs" else None,
        teacher_logits=theirs if signal == "logits" else None,
    )


def _likeliest(logits: mx.array) -> TopK:
    """The likeliest tokens of each row, of some one less, and what is left for all others."""
    log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    ids = mx.argsort(-log_probs, axis=-1)[:, :TOP]
    chosen = mx.take_along_axis(log_probs, ids, axis=-1)
    unused = (mx.arange(ROWS)[:, None] % 3 == 1) & (mx.arange(TOP) == TOP - 1)
    chosen = mx.where(unused, LOG_ZERO, chosen)
    left = 1 - mx.exp(chosen).sum(axis=-1)
    return TopK(ids, chosen, mx.where(left > MIN_MASS, mx.log(mx.maximum(left, MIN_MASS)), LOG_ZERO))


def f64(value: mx.array) -> Rows:
    """An array for arithmetic that is not the mixer's own."""
    return np.array(value.astype(mx.float32)).astype(np.float64)


def losses(mixer: Mixer, logits: mx.array, targets: Targets, step: int = 3) -> dict[str, mx.array]:
    """The loss of each row in each term, as the engine asks for it."""
    rows = mixer.rows(logits, targets, mx.array(step))
    expect(isinstance(rows, dict) and rows, f"rows returned {rows!r}", "Return {term: loss of each row}, at least one.")
    for name, row in rows.items():
        there = isinstance(row, mx.array) and row.shape == (logits.shape[0],)
        found = row.shape if isinstance(row, mx.array) else type(row).__name__
        remedy = "Return one loss a row [N]; the engine makes the mean."
        expect(there, f"the term {name!r} is {found} for {logits.shape[0]} rows", remedy)
    return rows


def fresh(case: Case) -> Mixer:
    """A mixer that knows how long the run is."""
    mixer: Mixer = case.build()
    mixer.steps = RUN
    return mixer


def given(mixer: Mixer) -> tuple[str, ...]:
    """What it may be given: one that needs the likeliest tokens must take the whole distribution, too."""
    return ("top_logprobs", "logits") if mixer.signal == "top_logprobs" else (mixer.signal,)


def _cases(case: Case) -> Iterator[tuple[Mixer, Targets, mx.array]]:
    mixer = fresh(case)
    for signal in given(mixer):
        yield mixer, targets_for(signal), logits_like(1)


# --------------------------------------------------------------------------------------------- promises


def returns_named_terms(case: Case) -> None:
    """One loss a row in every term, and the same terms at every step."""
    for mixer, targets, logits in _cases(case):
        names = list(losses(mixer, logits, targets))
        expect(all(isinstance(name, str) and name for name in names), f"its terms are {names}", "Name each by a word.")
        for step in STEPS:
            again = list(losses(mixer, logits, targets, step))
            remedy = "Always return every term, and let `weights` say 0."
            expect(again == names, f"its terms are {names}, and at step {step} {again}", remedy)


def weights_known_terms(case: Case) -> None:
    """A finite weight for known terms, at any step."""
    for mixer, targets, logits in _cases(case):
        names = set(losses(mixer, logits, targets))
        for step in STEPS:
            weights = dict(mixer.weights(step))
            known = f"Its terms are {', '.join(sorted(names))}."
            expect(weights.keys() <= names, f"at step {step} it weighs {sorted(weights.keys() - names)}", known)
            finite = all(isinstance(w, (int, float)) and np.isfinite(w) for w in weights.values())
            expect(finite, f"its weights at step {step} are {weights}", "Weights are finite numbers of Python.")


def masks_rows(case: Case) -> None:
    """`where` says 0 or 1 for each row, of known terms."""
    for mixer, targets, logits in _cases(case):
        names = set(losses(mixer, logits, targets))
        for name, rows in mixer.where(targets).items():
            expect(name in names, f"`where` names the term {name!r}", f"Its terms are {', '.join(sorted(names))}.")
            values = f64(rows)
            good = values.shape == (ROWS,) and set(values.tolist()) <= {0.0, 1.0}
            expect(good, f"`where` says {values.tolist()} of {name!r}", "Say 0 or 1 for each row.")


def keeps_rows_independent(case: Case) -> None:
    """The loss of a row does not depend on the rows beside it."""
    for mixer, targets, logits in _cases(case):
        for name, together in losses(mixer, logits, targets).items():
            alone = [losses(mixer, logits[i : i + 1], targets.rows(i, i + 1))[name] for i in range(ROWS)]
            apart = np.abs(f64(together) - f64(mx.concatenate(alone)))
            worst = int(apart.argmax())
            remedy = "Sum and normalise over the last axis only; means over rows are the engine's work."
            expect(
                apart[worst] < NEAR, f"{name!r} of row {worst} changes by {apart[worst]:.3g} when it is alone", remedy
            )


def is_chunk_independent(case: Case) -> None:
    """The engine may hand over any number of rows at once: loss and gradients are the same."""
    for mixer, targets, _ in _cases(case):
        whole = _in_chunks(mixer, targets, ROWS)
        for chunk in (1, 5):
            for one, other in zip(whole, _in_chunks(mixer, targets, chunk), strict=True):
                apart = float(np.abs(f64(one) - f64(other)).max())
                remedy = "Keep nothing from one call of `rows` to the next, and look at one row at a time."
                expect(apart < NEAR, f"in chunks of {chunk} rows, loss or gradients change by {apart:.3g}", remedy)


def _in_chunks(mixer: Mixer, targets: Targets, chunk: int) -> list[mx.array]:
    """The loss of the engine, its gradients by the hidden states and by the head, and its terms."""
    random = np.random.default_rng(5)
    hidden = mx.array(random.normal(size=(ROWS, WIDTH)).astype(np.float32))
    head = mx.array(random.normal(size=(VOCAB, WIDTH)).astype(np.float32))
    names = list(losses(mixer, logits_like(1), targets))
    totals = {name: mx.maximum(rows.sum(), 1) for name, rows in row_weights(mixer, targets, names).items()}

    def loss(hidden: mx.array, head: mx.array) -> tuple[mx.array, mx.array]:
        weights = mixer.weights(3)
        total, terms = mixed_loss(mixer, hidden, (head, None), targets, mx.array(3), weights, totals, chunk)
        return total, mx.stack(list(terms.values()))

    (total, terms), slopes = mx.value_and_grad(loss, argnums=(0, 1))(hidden, head)
    return [total, terms, *slopes]


def is_repeatable(case: Case) -> None:
    """The same rows at the same step, the same losses: training must be repeatable."""
    for mixer, targets, logits in _cases(case):
        one, two = (losses(each, logits, targets) for each in (mixer, fresh(case)))
        for name in one:
            remedy = "Draw nothing at random: the seed of a run is not known here."
            expect((f64(one[name]) == f64(two[name])).all(), f"{name!r} is another the second time", remedy)


def stays_finite_at_extremes(case: Case) -> None:
    """Also when student and teacher are certain of different tokens: a single inf ends a run."""
    mixer = fresh(case)
    for signal, scale in product(given(mixer), (0.0, EXTREME)):
        targets, logits = targets_for(signal, scale), scale * logits_like(1)
        for name, row in losses(mixer, logits, targets).items():
            slope = _slope(mixer, name, logits, targets)
            bad = sorted({*np.argwhere(~np.isfinite(f64(row)))[:, 0], *np.argwhere(~np.isfinite(slope))[:, 0]})
            remedy = "Stay with log-probabilities: log(softmax(x)) overflows, logsumexp and log_prob do not."
            expect(
                not bad,
                f"{name!r} or its gradient is not finite where logits are {scale:g} times ordinary ones",
                remedy,
            )


def has_correct_gradients(case: Case) -> None:
    """What it hands back as a gradient is the slope that its loss has, by finite differences."""
    for mixer, targets, logits in _cases(case):
        for seed in range(3):
            way = logits_like(10 + seed, 1.0)
            wide, narrow = (_measured(mixer, logits, targets, way, stride) for stride in STRIDES)
            for name, measured in narrow.items():
                told = (_slope(mixer, name, logits, targets) * f64(way)).sum(axis=-1)
                smooth = np.abs(wide[name] - measured) < NEAR * (1 + np.abs(measured)) / 2  # a kink is nobody's fault
                expect(smooth.mean() >= 1 / 4, f"{name!r} jumps, so it has no slope", "Make it of smooth functions.")
                apart = smooth * np.abs(told - measured) / (1 + np.abs(measured))
                worst = int(apart.argmax())
                remedy = "If it stops a gradient on purpose, say check_mixer(..., gradients=False)."
                found = (
                    f"{name!r} of row {worst} has the slope {measured[worst]:.4f}, its gradient says {told[worst]:.4f}"
                )
                expect(apart[worst] < NEAR, found, remedy)


def _slope(mixer: Mixer, name: str, logits: mx.array, targets: Targets) -> Rows:
    """The gradient [N, V] of a term by the logits."""
    return f64(mx.grad(lambda x: losses(mixer, x, targets)[name].sum())(logits))


def _measured(mixer: Mixer, logits: mx.array, targets: Targets, way: mx.array, stride: float) -> dict[str, Rows]:
    """The slope of each row's loss along a way, from four points on it."""
    points = {k: losses(mixer, logits + k * stride * way, targets) for k in (-2, -1, 1, 2)}
    at = {k: {name: f64(row) for name, row in rows.items()} for k, rows in points.items()}
    return {name: (8 * (at[1][name] - at[-1][name]) - (at[2][name] - at[-2][name])) / (12 * stride) for name in at[1]}
