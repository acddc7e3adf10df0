"""Checks of mixers: finite losses of independent rows, with correct gradients.

Uses the training code that splits batches into chunks. Does not judge whether a loss is a good one.
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
RUN_STEPS = 1_000
STEP_SIZES = (0.04, 0.02)  # of finite differences
TOLERANCE = 2e-3  # between gradients and finite differences, and between chunked and whole batches, for losses near 1
EXTREME = 30.0  # scale of ordinary logits at which one token has nearly all probability

Rows = NDArray[np.float64]


def check_mixer(cls: type[Mixer], options: Mapping[str, Any] | None = None, *, gradients: bool = True) -> list[str]:
    """Check a mixer. `options` are those of a recipe's [mixer] table.

    Pass `gradients=False` if it stops a gradient on purpose, so that gradients differ from finite differences.
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


# ---------------------------------------------------------------------------------------------- inputs


def random_logits(seed: int, scale: float = 1.5) -> mx.array:
    """Random logits [N, V]."""
    return mx.array((scale * np.random.default_rng(seed).normal(size=(ROWS, VOCAB))).astype(np.float32))


def make_targets(signal: str, scale: float = 1.0) -> Targets:
    """Rows of all kinds: padding, corpus text and teacher text, with and without soft targets."""
    position = np.arange(ROWS)
    soft = (
        mx.array((position % 4 != 3).astype(np.float32)) if signal_suffices(signal, "top_logprobs") else mx.zeros(ROWS)
    )
    teacher_logits = scale * random_logits(2)
    return Targets(
        hard=mx.array((position * 5 + 1) % VOCAB),
        weight=mx.array((position % 5 != 4).astype(np.float32)),
        from_teacher=mx.array((position % 3 == 0).astype(np.float32)),
        has_soft=soft,
        sparse=_top_k(teacher_logits) if signal == "top_logprobs" else None,
        teacher_logits=teacher_logits if signal == "logits" else None,
    )


def _top_k(logits: mx.array) -> TopK:
    """The top tokens of each row (one less in some rows), and the residual."""
    log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    ids = mx.argsort(-log_probs, axis=-1)[:, :TOP]
    chosen = mx.take_along_axis(log_probs, ids, axis=-1)
    unused = (mx.arange(ROWS)[:, None] % 3 == 1) & (mx.arange(TOP) == TOP - 1)
    chosen = mx.where(unused, LOG_ZERO, chosen)
    residual = 1 - mx.exp(chosen).sum(axis=-1)
    return TopK(ids, chosen, mx.where(residual > MIN_MASS, mx.log(mx.maximum(residual, MIN_MASS)), LOG_ZERO))


def f64(value: mx.array) -> Rows:
    """The array as NumPy float64."""
    return np.array(value.astype(mx.float32)).astype(np.float64)


def losses(mixer: Mixer, logits: mx.array, targets: Targets, step: int = 3) -> dict[str, mx.array]:
    """The loss [N] of each term, as the training loop computes it."""
    rows = mixer.rows(logits, targets, mx.array(step))
    expect(
        isinstance(rows, dict) and rows,
        f"rows returned {rows!r}",
        "Return {term: loss of each row} with at least one term.",
    )
    for name, row in rows.items():
        fits = isinstance(row, mx.array) and row.shape == (logits.shape[0],)
        found = f"of shape {row.shape}" if isinstance(row, mx.array) else f"a {type(row).__name__}"
        remedy = "Return one loss for each row [N]; the training loop computes the mean."
        expect(fits, f"the term {name!r} is {found} for {logits.shape[0]} rows", remedy)
    return rows


def build_mixer(case: Case) -> Mixer:
    """A new mixer with `steps` set."""
    mixer: Mixer = case.build()
    mixer.steps = RUN_STEPS
    return mixer


def signals(mixer: Mixer) -> tuple[str, ...]:
    """The signals it must accept: a mixer that needs top_logprobs must accept full distributions, too."""
    return ("top_logprobs", "logits") if mixer.signal == "top_logprobs" else (mixer.signal,)


def _cases(case: Case) -> Iterator[tuple[Mixer, Targets, mx.array]]:
    mixer = build_mixer(case)
    for signal in signals(mixer):
        yield mixer, make_targets(signal), random_logits(1)


# ----------------------------------------------------------------------------------------------- checks


def returns_named_terms(case: Case) -> None:
    """It returns one loss for each row in every term, and the same terms at every step."""
    for mixer, targets, logits in _cases(case):
        names = list(losses(mixer, logits, targets))
        expect(
            all(isinstance(name, str) and name for name in names),
            f"its terms are {names}",
            "Use non-empty text as names.",
        )
        for step in STEPS:
            again = list(losses(mixer, logits, targets, step))
            remedy = "Always return every term, and set its weight to 0 in `weights`."
            expect(again == names, f"its terms are {names}, but at step {step} {again}", remedy)


def weights_known_terms(case: Case) -> None:
    """`weights` returns finite weights for known terms at every step."""
    for mixer, targets, logits in _cases(case):
        names = set(losses(mixer, logits, targets))
        for step in STEPS:
            weights = dict(mixer.weights(step))
            known = f"Its terms are {', '.join(sorted(names))}."
            expect(weights.keys() <= names, f"at step {step} it weighs {sorted(weights.keys() - names)}", known)
            finite = all(isinstance(w, (int, float)) and np.isfinite(w) for w in weights.values())
            expect(finite, f"its weights at step {step} are {weights}", "Return finite Python numbers.")


def masks_rows(case: Case) -> None:
    """`where` returns 0 or 1 for each row of known terms."""
    for mixer, targets, logits in _cases(case):
        names = set(losses(mixer, logits, targets))
        for name, rows in mixer.where(targets).items():
            expect(name in names, f"`where` names the term {name!r}", f"Its terms are {', '.join(sorted(names))}.")
            values = f64(rows)
            is_mask = values.shape == (ROWS,) and set(values.tolist()) <= {0.0, 1.0}
            expect(is_mask, f"`where` returns {values.tolist()} for {name!r}", "Return 0 or 1 for each row.")


def keeps_rows_independent(case: Case) -> None:
    """The loss of a row does not depend on other rows."""
    for mixer, targets, logits in _cases(case):
        for name, together in losses(mixer, logits, targets).items():
            alone = [losses(mixer, logits[i : i + 1], targets.rows(i, i + 1))[name] for i in range(ROWS)]
            difference = np.abs(f64(together) - f64(mx.concatenate(alone)))
            worst = int(difference.argmax())
            found = f"{name!r} of row {worst} changes by {difference[worst]:.3g} when it is computed alone"
            remedy = "Sum and normalise over the last axis only; the training loop computes means over rows."
            expect(difference[worst] < TOLERANCE, found, remedy)


def is_chunk_independent(case: Case) -> None:
    """Loss and gradients do not depend on how many rows are passed at once."""
    for mixer, targets, _ in _cases(case):
        whole = _in_chunks(mixer, targets, ROWS)
        for chunk in (1, 5):
            for one, other in zip(whole, _in_chunks(mixer, targets, chunk), strict=True):
                difference = float(np.abs(f64(one) - f64(other)).max())
                found = f"in chunks of {chunk} rows, loss or gradients change by {difference:.3g}"
                remedy = "Keep no state between calls of `rows`, and compute each row independently."
                expect(difference < TOLERANCE, found, remedy)


def _in_chunks(mixer: Mixer, targets: Targets, chunk: int) -> list[mx.array]:
    """The loss, its terms, and its gradients with respect to the hidden states and the head, in chunks."""
    random = np.random.default_rng(5)
    hidden = mx.array(random.normal(size=(ROWS, WIDTH)).astype(np.float32))
    head = mx.array(random.normal(size=(VOCAB, WIDTH)).astype(np.float32))
    names = list(losses(mixer, random_logits(1), targets))
    totals = {name: mx.maximum(rows.sum(), 1) for name, rows in row_weights(mixer, targets, names).items()}

    def loss(hidden: mx.array, head: mx.array) -> tuple[mx.array, mx.array]:
        weights = mixer.weights(3)
        total, terms = mixed_loss(mixer, hidden, (head, None), targets, mx.array(3), weights, totals, chunk)
        return total, mx.stack(list(terms.values()))

    (total, terms), grads = mx.value_and_grad(loss, argnums=(0, 1))(hidden, head)
    return [total, terms, *grads]


def is_repeatable(case: Case) -> None:
    """The same rows at the same step have the same losses: training must be reproducible."""
    for mixer, targets, logits in _cases(case):
        one, two = (losses(each, logits, targets) for each in (mixer, build_mixer(case)))
        for name in one:
            remedy = "Do not use random numbers: a mixer does not know the seed of the run."
            expect((f64(one[name]) == f64(two[name])).all(), f"{name!r} differs when computed again", remedy)


def stays_finite_at_extremes(case: Case) -> None:
    """Losses and gradients are finite even if student and teacher are certain of different tokens."""
    mixer = build_mixer(case)
    for signal, scale in product(signals(mixer), (0.0, EXTREME)):
        targets, logits = make_targets(signal, scale), scale * random_logits(1)
        for name, row in losses(mixer, logits, targets).items():
            grad = _grad(mixer, name, logits, targets)
            is_finite = np.isfinite(f64(row)).all() and np.isfinite(grad).all()
            found = f"{name!r} or its gradient is not finite for logits of {scale:g} times the ordinary scale"
            remedy = "Compute with log-probabilities: log(softmax(x)) overflows, logsumexp and log_prob do not."
            expect(is_finite, found, remedy)


def has_correct_gradients(case: Case) -> None:
    """The gradients of its losses agree with finite differences."""
    for mixer, targets, logits in _cases(case):
        for seed in range(3):
            direction = random_logits(10 + seed, 1.0)
            coarse, fine = (_finite_differences(mixer, logits, targets, direction, size) for size in STEP_SIZES)
            for name, expected in fine.items():
                actual = (_grad(mixer, name, logits, targets) * f64(direction)).sum(axis=-1)
                # Rows with a kink near these logits are ignored: there the two step sizes disagree.
                smooth = np.abs(coarse[name] - expected) < TOLERANCE * (1 + np.abs(expected)) / 2
                expect(smooth.mean() >= 1 / 4, f"{name!r} is not differentiable", "Use smooth functions.")
                difference = smooth * np.abs(actual - expected) / (1 + np.abs(expected))
                worst = int(difference.argmax())
                values = f"is {actual[worst]:.4f}, by finite differences {expected[worst]:.4f}"
                remedy = "If it stops a gradient on purpose, call check_mixer(..., gradients=False)."
                expect(difference[worst] < TOLERANCE, f"the derivative of {name!r} in row {worst} {values}", remedy)


def _grad(mixer: Mixer, name: str, logits: mx.array, targets: Targets) -> Rows:
    """The gradient [N, V] of a term with respect to the logits."""
    return f64(mx.grad(lambda x: losses(mixer, x, targets)[name].sum())(logits))


def _finite_differences(
    mixer: Mixer, logits: mx.array, targets: Targets, direction: mx.array, size: float
) -> dict[str, Rows]:
    """The derivative of each row's loss in a direction, from central differences of fourth order."""
    points = {k: losses(mixer, logits + k * size * direction, targets) for k in (-2, -1, 1, 2)}
    at = {k: {name: f64(row) for name, row in rows.items()} for k, rows in points.items()}
    return {name: (8 * (at[1][name] - at[-1][name]) - (at[2][name] - at[-2][name])) / (12 * size) for name in at[1]}
