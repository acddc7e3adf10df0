"""Mixers held against float64 arithmetic: losses, gradients, sparse beside dense, chunks, schedules, on-policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from distillkit_plugins.mixers import JSD, TVD, AlphaTemperature, Hard, ReverseKL, Sequence, SkewKL, TopKTail
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit import Schedule, Within
from distillkit.core.errors import UsageError
from distillkit.core.files import read_jsonl
from distillkit.core.records import LOG_ZERO
from distillkit.data.batches import Batch
from distillkit.plugins.interfaces import Mixer
from distillkit.plugins.manager import Plugins
from distillkit.recipe.recipe import load
from distillkit.student.model.gpt import GPT
from distillkit.student.training import loss as engine
from distillkit.student.training.distributed import BatchShard
from distillkit.student.training.loop import TrainingJob, TrainSettings, gradient_norms, initial_state, train_step
from distillkit.student.training.loss import grad_squared_norms, mixed_loss, term_totals
from distillkit.student.training.metrics_log import OverfittingMonitor, TermBalanceMonitor
from distillkit.student.training.on_policy import OnPolicyGenerator
from distillkit.student.training.optimizers import OptimizerGroup
from distillkit.student.training.parallel import StreamPool
from distillkit.student.training.targets import MIN_MASS, LazyLogits, Targets, TopK
from support.students import Array, batch_of, f64, log_softmax, softmax, tiny_model
from support.training import RecordingConsole, prepare_home, sit, stopped_at, train_losses, weights

QUICK = settings(max_examples=40, deadline=None)


# ------------------------------------------------------------------------------------- formulas, in float64


def kl(p: Array, q: Array) -> Array:
    """The sum of p log(p / q), where nothing of p is nothing of the sum."""
    ratio = np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300))
    result: Array = np.where(p > 0, p * ratio, 0).sum(axis=-1)
    return result


@dataclass
class Formula:
    """A divergence of teacher p and student q, and its slope at q."""

    mixer: Mixer
    value: Callable[[Array, Array], Array]
    slope: Callable[[Array, Array], Array]


def mixing(kind: type[Mixer], **options: Any) -> Mixer:
    return kind(kind.Options(**{"alpha": 0.3, **options}))


def formulas(heat: float) -> dict[str, Formula]:
    soft = {"temperature": heat}
    beta, share = 0.3, 0.15

    def middle(p: Array, q: Array) -> Array:
        return beta * p + (1 - beta) * q

    def skewed(p: Array, q: Array) -> Array:
        return share * p + (1 - share) * q

    return {
        "alpha-temperature": Formula(mixing(AlphaTemperature, **soft), kl, lambda p, q: -p / q),
        "reverse-kl": Formula(
            mixing(ReverseKL, **soft), lambda p, q: kl(q, p), lambda p, q: np.log(q / np.maximum(p, 1e-300)) + 1
        ),
        "jsd": Formula(
            mixing(JSD, beta=beta, **soft),
            lambda p, q: beta * kl(p, middle(p, q)) + (1 - beta) * kl(q, middle(p, q)),
            lambda p, q: (1 - beta) * np.log(q / middle(p, q)),
        ),
        "skew-kl": Formula(
            mixing(SkewKL, **{"lambda": share}, **soft),
            lambda p, q: kl(p, skewed(p, q)),
            lambda p, q: -(1 - share) * p / skewed(p, q),
        ),
        "skew-kl, reverse": Formula(
            mixing(SkewKL, **{"lambda": share}, direction="reverse", **soft),
            lambda p, q: kl(q, skewed(q, p)),
            lambda p, q: np.log(q / skewed(q, p)) + 1 - share * q / skewed(q, p),
        ),
        "tvd": Formula(
            mixing(TVD, **soft),
            lambda p, q: 0.5 * np.abs(p - q).sum(axis=-1),
            lambda p, q: 0.5 * np.sign(q - p),
        ),
    }


NAMES = list(formulas(1.0))
every = pytest.mark.parametrize("name", NAMES)


@dataclass
class Rows:
    """Rows of a loss: logits of student and teacher, and of what is named of the teacher's, if not all."""

    logits: Array
    teacher: Array
    hard: Array
    weight: Array
    has_soft: Array
    ids: Array | None = None
    named: Array | None = None  # log-probabilities
    residual: Array | None = None

    @property
    def targets(self) -> Targets:
        arrays = (mx.array(each.astype(np.float32)) for each in (self.weight, 0 * self.weight, self.has_soft))
        soft: dict[str, Any] = {"teacher_logits": mx.array(self.teacher.astype(np.float32))}
        if self.ids is not None and self.named is not None and self.residual is not None:
            logs = (mx.array(each.astype(np.float32)) for each in (self.named, self.residual))
            soft = {"sparse": TopK(mx.array(self.ids.astype(np.int32)), *logs)}
        return Targets(mx.array(self.hard.astype(np.int32)), *arrays, **soft)

    def taught(self, heat: float) -> Array:
        """The teacher's chances of all outcomes at a temperature."""
        if self.named is None or self.residual is None:
            return softmax(self.teacher / heat)
        groups = self.named if self.all_named else np.column_stack([self.named, self.residual])
        return softmax(groups / heat)

    @property
    def all_named(self) -> bool:
        return self.named is not None and self.named.shape[1] >= self.logits.shape[1]

    def groups(self) -> Array:
        """Which outcome each token belongs to [N, K, V]: 1 or 0."""
        size = self.logits.shape[1]
        if self.ids is None or self.named is None:
            return np.broadcast_to(np.eye(size), (len(self.logits), size, size))
        used = self.named > LOG_ZERO / 2
        member = np.eye(size)[self.ids] * used[..., None]
        return member if self.all_named else np.concatenate([member, 1 - member.sum(axis=1, keepdims=True)], axis=1)

    def own(self, heat: float, logits: Array) -> Array:
        """The student's chances of all outcomes: grouped first, then softened."""
        grouped = np.einsum("nkv,nv->nk", self.groups(), softmax(logits))
        if self.ids is None:
            return softmax(logits / heat)
        powers = np.where(grouped > 0, np.maximum(grouped, 1e-300) ** (1 / heat), 0)
        result: Array = powers / powers.sum(axis=-1, keepdims=True)
        return result


def some_rows(
    seed: int, n: int = 6, vocab: int = 9, k: int | None = None, largest: float = 3.0, spare: int = 0
) -> Rows:
    """Random rows; of sparse ones, `spare` places are not used."""
    random = np.random.default_rng(seed)
    logits, teacher = (random.normal(size=(n, vocab)) * largest / 2 for _ in range(2))
    weight = random.choice([0.0, 0.5, 1.0], size=n)
    weight[0] = 1.0
    has_soft = random.choice([0.0, 1.0, 1.0], size=n)
    has_soft[0] = 1.0
    rows = Rows(logits, teacher, random.integers(0, vocab, n), weight, has_soft)
    for name in ("logits", "teacher"):
        setattr(rows, name, getattr(rows, name).astype(np.float32).astype(np.float64))
    return rows if k is None else cut(rows, k, spare, random)


def cut(rows: Rows, k: int, spare: int, random: np.random.Generator) -> Rows:
    """The k likeliest tokens of each row in any order, with places that are not used among them."""
    opinion = log_softmax(rows.teacher)
    best = np.argsort(-opinion, axis=1)[:, :k]
    left = np.exp(np.sort(opinion, axis=1)[:, : opinion.shape[1] - k]).sum(axis=1)
    residual = np.where(left > 0, np.log(np.maximum(left, 1e-30)), LOG_ZERO)
    ids = np.zeros((len(best), k + spare), int)
    named = np.full((len(best), k + spare), LOG_ZERO)
    for i, row in enumerate(best):
        places = random.permutation(k + spare)[:k]
        ids[i, places], named[i, places] = row, opinion[i, row]
    wide = (each.astype(np.float32).astype(np.float64) for each in (named, residual))
    return replace(rows, ids=ids, **dict(zip(("named", "residual"), wide, strict=True)))


def expected(rows: Rows, formula: Formula, heat: float, alpha: float = 0.3, logits: Array | None = None) -> float:
    """alpha CE + (1 - alpha) T^2 D, each a weighted mean over the rows that it counts."""
    logits = rows.logits if logits is None else logits
    surprise = -log_softmax(logits)[np.arange(len(logits)), rows.hard]
    apart = heat**2 * formula.value(rows.taught(heat), rows.own(heat, logits))
    counts = rows.weight * rows.has_soft
    hard, soft = (surprise * rows.weight).sum() / rows.weight.sum(), (apart * counts).sum() / max(counts.sum(), 1e-9)
    return float(alpha * hard + (1 - alpha) * soft)


def hard_slope(rows: Rows) -> Array:
    result: Array = (softmax(rows.logits) - np.eye(rows.logits.shape[1])[rows.hard]) * rows.weight[:, None]
    return result / rows.weight.sum()


def soft_slope(rows: Rows, formula: Formula, heat: float) -> Array:
    """T^2 dD/dz of each row: first at the logarithms of the outcomes, then at the logits that make them up."""
    p, q, plain = rows.taught(heat), rows.own(heat, rows.logits), softmax(rows.logits)
    member = rows.groups()
    there = np.maximum(q, 1e-300)
    at_q = np.where(q > 0, formula.slope(p, there), 0)
    at_log = heat * q * (at_q - (at_q * q).sum(axis=-1, keepdims=True))
    if rows.ids is None:
        return at_log
    grouped = np.einsum("nkv,nv->nk", member, plain)
    share = np.einsum("nkv,nk->nv", member, at_log / np.maximum(grouped, 1e-300)) * plain
    result: Array = share - at_log.sum(axis=-1, keepdims=True) * plain
    return result


def expected_slope(rows: Rows, formula: Formula, heat: float, alpha: float = 0.3) -> Array:
    counts = (rows.weight * rows.has_soft)[:, None]
    soft = soft_slope(rows, formula, heat) * counts / max(counts.sum(), 1e-9)
    result: Array = alpha * hard_slope(rows) + (1 - alpha) * soft
    return result


# ------------------------------------------------------------------------------------------- the engine's


def measured(
    mixer: Mixer, rows: Rows | Targets, logits: Array | None = None, chunk: int = 4, step: int = 0
) -> tuple[float, dict[str, float], Array]:
    """Loss, terms, and the gradient at the logits: hidden states are logits where the head is the identity."""
    targets = rows.targets if isinstance(rows, Rows) else rows
    hidden = rows.logits if isinstance(rows, Rows) else logits
    assert hidden is not None
    head = mx.eye(hidden.shape[1])
    names = engine.term_names(mixer, hidden.shape[1], targets)
    whole = {name: mx.maximum(total, 1e-9) for name, total in term_totals(mixer, targets, names, chunk).items()}

    def loss(hidden: mx.array) -> Any:
        return mixed_loss(mixer, hidden, (head, None), targets, mx.array(step), mixer.weights(step), whole, chunk)

    (value, terms), slope = mx.value_and_grad(loss)(mx.array(hidden.astype(np.float32)))
    return value.item(), {name: term.item() for name, term in terms.items()}, f64(slope)


HEATS = st.sampled_from([0.7, 1.0, 2.0, 5.0])


@every
@QUICK
@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(2, 12), HEATS, st.integers(1, 8), st.floats(0.1, 6))
def test_dense_losses_and_gradients_are_the_formulas(
    name: str, seed: int, n: int, vocab: int, heat: float, chunk: int, largest: float
) -> None:
    rows, formula = some_rows(seed, n, vocab, largest=largest), formulas(heat)[name]
    loss, _, slope = measured(formula.mixer, rows, chunk=chunk)
    assert loss == pytest.approx(expected(rows, formula, heat), rel=1e-5, abs=1e-5 * heat**2)
    np.testing.assert_allclose(slope, expected_slope(rows, formula, heat), rtol=1e-4, atol=1e-5 * heat)


@every
@QUICK
@given(st.integers(0, 10_000), st.data(), st.integers(4, 12), HEATS, st.integers(1, 8), st.floats(0.1, 6))
def test_sparse_losses_and_gradients_are_the_formulas(
    name: str, seed: int, data: Any, vocab: int, heat: float, chunk: int, largest: float
) -> None:
    k, spare = data.draw(st.integers(1, vocab - 2)), data.draw(st.integers(0, 2))
    rows, formula = some_rows(seed, 5, vocab, k, largest, min(spare, vocab - 1 - k)), formulas(heat)[name]
    loss, _, slope = measured(formula.mixer, rows, chunk=chunk)
    rest = (1 - rows.groups()[:, :-1].sum(axis=1)) * softmax(rows.logits)  # what float32 must find by a difference
    slack = 1 + 0.1 / max(rest.sum(axis=-1).min(), MIN_MASS)
    assert loss == pytest.approx(expected(rows, formula, heat), rel=2e-5, abs=1e-5 * heat**2 * slack)
    np.testing.assert_allclose(slope, expected_slope(rows, formula, heat), rtol=2e-4, atol=1e-5 * heat * slack)


@every
@QUICK
@given(st.integers(0, 500), st.sampled_from([None, 2, 4]), HEATS)
def test_the_formulas_are_what_finite_differences_give(name: str, seed: int, k: int | None, heat: float) -> None:
    rows, formula, nudge = some_rows(seed, k=k), formulas(heat)[name], 1e-6
    direction = np.random.default_rng(seed).normal(size=rows.logits.shape)
    ends = [expected(rows, formula, heat, logits=rows.logits + sign * nudge * direction) for sign in (1, -1)]
    slope = (expected_slope(rows, formula, heat) * direction).sum()
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * nudge), rel=1e-4, abs=1e-6)


@every
@pytest.mark.parametrize("heat", [1.0, 2.0, 7.0])
@pytest.mark.parametrize("seed", range(3))
def test_sparse_is_dense_when_all_tokens_are_named(name: str, heat: float, seed: int) -> None:
    dense = some_rows(seed, 6, 9)
    sparse = cut(dense, 9, 0, np.random.default_rng(seed))
    mixer = formulas(heat)[name].mixer
    (loss, terms, slope), (of_sparse, sparse_terms, sparse_slope) = measured(mixer, dense), measured(mixer, sparse)
    assert of_sparse == pytest.approx(loss, rel=1e-5, abs=2e-6 * heat**2)
    assert sparse_terms == pytest.approx(terms, rel=1e-5, abs=2e-6 * heat**2)
    np.testing.assert_allclose(sparse_slope, slope, atol=1e-5 * heat)


def test_topk_tail_is_the_divergence_of_the_grouped_outcomes() -> None:
    for k in (None, 3):
        rows = some_rows(1, 6, 11, k)
        loss, _, slope = measured(mixing(TopKTail), rows)
        formula = Formula(mixing(TopKTail), kl, lambda p, q: -p / q)
        assert loss == pytest.approx(expected(rows, formula, 1.0), rel=1e-5)
        np.testing.assert_allclose(slope, expected_slope(rows, formula, 1.0), atol=1e-6)


@pytest.mark.parametrize("pieces", [1, 30, 10**6])
@pytest.mark.parametrize("chunk", [1, 3, 13])
@pytest.mark.parametrize("k", [None, 4])
@every
def test_chunks_and_pieces_change_nothing(
    name: str, k: int | None, chunk: int, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, mixer = some_rows(3, 13, 10, k), formulas(2.0)[name].mixer
    whole, terms, slope = measured(mixer, rows, chunk=100)
    monkeypatch.setattr(engine, "PIECE_SIZE", pieces)
    again, same, slopes = measured(mixer, rows, chunk=chunk)
    assert again == pytest.approx(whole, rel=1e-5)
    assert same == pytest.approx(terms, rel=1e-5)
    np.testing.assert_allclose(slopes, slope, atol=1e-6)


@every
@pytest.mark.parametrize("k", [None, 3])
def test_rows_without_a_soft_target_do_not_count_whatever_stands_in_them(name: str, k: int | None) -> None:
    rows = some_rows(5, 8, 9, k)
    rows.has_soft = np.array([1, 0, 1, 0, 1, 1, 0, 1.0])
    other = replace(rows, teacher=np.where(rows.has_soft[:, None] > 0, rows.teacher, 1e4 * rows.teacher))
    if rows.named is not None and rows.residual is not None:
        blank = rows.has_soft == 0
        other.ids, other.named, other.residual = rows.ids.copy(), rows.named.copy(), rows.residual.copy()
        other.ids[blank], other.named[blank], other.residual[blank] = 0, LOG_ZERO, LOG_ZERO
    mixer = formulas(2.0)[name].mixer
    (one, _, slope), (two, _, same) = measured(mixer, rows), measured(mixer, other)
    assert two == pytest.approx(one, rel=1e-6)
    np.testing.assert_allclose(same, slope, atol=1e-7)


@every
@pytest.mark.parametrize("heat", [1.0, 3.0])
def test_a_student_that_agrees_with_its_teacher_pays_nothing(name: str, heat: float) -> None:
    for k in (None, 3):
        rows = some_rows(2, 6, 9)
        rows.teacher = rows.logits.copy()
        rows = rows if k is None else cut(rows, k, 1, np.random.default_rng(0))
        mixer = formulas(heat)[name].mixer
        _, terms, _ = measured(mixer, rows)
        assert terms["soft"] == pytest.approx(0, abs=1e-5 * heat**2)


@every
@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("largest", [60.0, 1e4])
def test_extreme_opinions_stay_finite(name: str, k: int | None, largest: float) -> None:
    rows = some_rows(7, 8, 9, k, largest)
    for heat in (0.3, 1.0, 4.0):
        loss, _, slope = measured(formulas(heat)[name].mixer, rows)
        assert math.isfinite(loss)
        assert np.isfinite(slope).all()


def test_counts_without_a_residual_are_plain_cross_entropy_against_them() -> None:
    rows = some_rows(4, 6, 9, 3)
    assert rows.named is not None and rows.residual is not None  # noqa: PT018
    rows.named = np.log(np.broadcast_to([0.5, 0.3, 0.2], (6, 3)))
    rows.residual = np.full(6, LOG_ZERO)
    _, terms, _ = measured(mixing(TopKTail), rows)
    here = np.take_along_axis(log_softmax(rows.logits), rows.ids, axis=1)
    apart = (np.exp(rows.named) * (rows.named - here)).sum(axis=1)
    counts = rows.weight * rows.has_soft
    assert terms["soft"] == pytest.approx((apart * counts).sum() / counts.sum(), rel=1e-5)


@pytest.mark.parametrize("left", [1e-3, 1e-5, 1e-8, 1e-12])
def test_next_to_nothing_left_for_all_others_still_teaches_in_the_right_direction(left: float) -> None:
    """The student gives all others almost nothing, its teacher a third: the largest numbers that may meet."""
    vocab = 6
    chances = np.full((1, vocab), left / (vocab - 2))
    chances[0, :2] = [0.6 * (1 - left), 0.4 * (1 - left)]
    logits = np.log(chances).astype(np.float32).astype(np.float64)
    named = np.log(np.array([[1 / 3, 1 / 3]]))
    ones = np.ones(1)
    rows = Rows(logits, logits, np.zeros(1, int), ones, ones, np.array([[0, 1]]), named, np.log([1 / 3]))
    _, terms, slope = measured(mixing(TopKTail, alpha=0.0), rows)
    formula = Formula(mixing(TopKTail), kl, lambda p, q: -p / q)
    exact = expected_slope(rows, formula, 1.0, alpha=0)
    np.testing.assert_allclose(slope[0, :2], exact[0, :2], atol=1e-5)  # what is named is exact however little is left
    assert (slope[0, 2:] <= 0).all()
    assert np.abs(slope[0, 2:]).sum() <= 1 / 3 + 0.05
    assert terms["soft"] > 0.1


# ---------------------------------------------------------------------------------------- hard and sequence


def test_sequence_weighs_the_corpus_against_the_teachers_text() -> None:
    rows = some_rows(6, 8, 9)
    taught = np.array([0, 1, 0, 1, 1, 0, 0, 1.0])
    targets = replace(rows.targets, from_teacher=mx.array(taught.astype(np.float32)))
    mixer = Sequence(Sequence.Options(alpha=0.2))
    loss, terms, slope = measured(mixer, targets, rows.logits)
    surprise = -log_softmax(rows.logits)[np.arange(8), rows.hard]
    means = [(surprise * rows.weight * side).sum() / (rows.weight * side).sum() for side in (1 - taught, taught)]
    assert terms == pytest.approx({"hard": means[0], "sequence": means[1]}, rel=1e-5)
    assert loss == pytest.approx(0.2 * means[0] + 0.8 * means[1], rel=1e-5)
    shares = [side * rows.weight / (side * rows.weight).sum() for side in (1 - taught, taught)]
    each = softmax(rows.logits) - np.eye(9)[rows.hard]
    np.testing.assert_allclose(slope, each * (0.2 * shares[0] + 0.8 * shares[1])[:, None], atol=1e-6)


def test_words_of_the_students_own_are_no_hard_targets() -> None:
    rows = some_rows(6, 8, 9)
    own = np.array([0, 1, 0, 1, 1, 0, 0, 1.0])
    targets = replace(rows.targets, from_student=mx.array(own.astype(np.float32)))
    _, terms, _ = measured(mixing(ReverseKL), targets, rows.logits)
    surprise, counts = -log_softmax(rows.logits)[np.arange(8), rows.hard], rows.weight * (1 - own)
    assert terms["hard"] == pytest.approx((surprise * counts).sum() / counts.sum(), rel=1e-5)
    _, all_of_them, _ = measured(mixing(ReverseKL), rows)
    assert terms["soft"] == pytest.approx(all_of_them["soft"], rel=1e-6)


def test_a_mixer_without_its_teachers_opinion_says_what_to_do() -> None:
    rows = replace(some_rows(1).targets, teacher_logits=None)
    for name in NAMES:
        with pytest.raises(UsageError, match="these rows have none"):
            measured(formulas(1.0)[name].mixer, rows, some_rows(1).logits)


# ------------------------------------------------------------------ what holds for mixers without a temperature


def plain(kind: str, seed: int) -> tuple[Mixer, Rows, Targets, Callable[[Array], float]]:
    """A mixer, its rows and targets, and its loss in float64 at any logits."""
    rows = some_rows(seed, 13, 10, 4 if kind == "topk-tail" else None)
    taught = (np.arange(13) % 3 == 0).astype(float)
    targets = replace(rows.targets, from_teacher=mx.array(taught.astype(np.float32)))

    def surprise(logits: Array, counts: Array) -> float:
        each = -log_softmax(logits)[np.arange(13), rows.hard]
        return float((each * counts).sum() / counts.sum())

    def both(logits: Array) -> float:
        return 0.3 * surprise(logits, rows.weight * (1 - taught)) + 0.7 * surprise(logits, rows.weight * taught)

    forward = Formula(mixing(TopKTail), kl, lambda p, q: -p / q)
    mixer, loss = {
        "hard": (Hard(), lambda logits: surprise(logits, rows.weight)),
        "sequence": (mixing(Sequence), both),
        "topk-tail": (forward.mixer, lambda logits: expected(rows, forward, 1.0, logits=logits)),
    }[kind]
    return mixer, rows, targets, loss


PLAIN = pytest.mark.parametrize("kind", ["hard", "sequence", "topk-tail"])


@PLAIN
@pytest.mark.parametrize("seed", range(3))
def test_plain_mixers_have_the_slope_that_finite_differences_give(kind: str, seed: int) -> None:
    mixer, rows, targets, loss = plain(kind, seed)
    value, _, slope = measured(mixer, targets, rows.logits)
    assert value == pytest.approx(loss(rows.logits), rel=1e-5)
    direction, nudge = np.random.default_rng(seed).normal(size=rows.logits.shape), 1e-6
    ends = [loss(rows.logits + sign * nudge * direction) for sign in (1, -1)]
    assert (slope * direction).sum() == pytest.approx((ends[0] - ends[1]) / (2 * nudge), rel=1e-3, abs=1e-5)


@PLAIN
@pytest.mark.parametrize("pieces", [1, 30])
@pytest.mark.parametrize("chunk", [1, 3, 13])
def test_plain_mixers_do_not_see_chunks(kind: str, chunk: int, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, rows, targets, _ = plain(kind, 3)
    whole, terms, slope = measured(mixer, targets, rows.logits, chunk=100)
    monkeypatch.setattr(engine, "PIECE_SIZE", pieces)
    again, same, slopes = measured(mixer, targets, rows.logits, chunk=chunk)
    assert again == pytest.approx(whole, rel=1e-5)
    assert same == pytest.approx(terms, rel=1e-5)
    np.testing.assert_allclose(slopes, slope, atol=1e-6)


@PLAIN
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_plain_mixers_come_close_in_half_precision(kind: str, dtype: Any) -> None:
    mixer, rows, targets, _ = plain(kind, 9)
    value, slope = in_half(mixer, targets, rows.logits, dtype)
    whole, _, exact = measured(mixer, targets, rows.logits)
    assert value == pytest.approx(whole, rel=2e-2)
    np.testing.assert_allclose(slope, exact, atol=2e-2)


@pytest.mark.parametrize("seed", range(3))
def test_topk_tail_of_all_tokens_is_the_dense_divergence(seed: int) -> None:
    dense = some_rows(seed, 6, 9)
    sparse = cut(dense, 9, 0, np.random.default_rng(seed))
    (loss, terms, slope), (of_sparse, sparse_terms, sparse_slope) = (
        measured(mixing(TopKTail), rows) for rows in (dense, sparse)
    )
    assert of_sparse == pytest.approx(loss, rel=1e-5, abs=2e-6)
    assert sparse_terms == pytest.approx(terms, rel=1e-5, abs=2e-6)
    np.testing.assert_allclose(sparse_slope, slope, atol=1e-5)
    assert loss == pytest.approx(expected(dense, Formula(mixing(TopKTail), kl, lambda p, q: -p / q), 1.0), rel=1e-5)


# ------------------------------------------------------------------------------------- published formulas


def trl_jsd(student: Array, teacher: Array, beta: float, heat: float) -> Array:
    """TRL's generalized JSD, a row: in logarithms, the mixture by logaddexp, its ends special cases."""
    ours, theirs = log_softmax(student / heat), log_softmax(teacher / heat)
    if beta == 0:
        return kl(np.exp(theirs), np.exp(ours))
    if beta == 1:
        return kl(np.exp(ours), np.exp(theirs))
    middle = np.logaddexp(ours + np.log1p(-beta), theirs + np.log(beta))
    of_teacher, of_student = ((np.exp(one) * (one - middle)).sum(axis=-1) for one in (theirs, ours))
    result: Array = beta * of_teacher + (1 - beta) * of_student
    return result


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("heat", [0.9, 1.0, 2.0])
def test_jsd_is_that_of_gkd_in_trl(beta: float, heat: float) -> None:
    rows = some_rows(11, 9, 12)
    _, terms, _ = measured(mixing(JSD, beta=beta, temperature=heat), rows)
    counts = rows.weight * rows.has_soft
    theirs = (trl_jsd(rows.logits, rows.teacher, beta, heat) * counts).sum() / counts.sum()
    assert terms["soft"] / heat**2 == pytest.approx(theirs, rel=1e-4)


def test_the_forward_divergence_is_torchtunes_less_what_does_not_depend_on_the_student() -> None:
    """torchtune leaves out the teacher's own entropy: -sum(p log q), a mean over the labels that are not ignored."""
    rows = some_rows(12, 9, 12)
    rows.weight, rows.has_soft = (np.arange(9) % 3 > 0).astype(float), np.ones(9)
    p, log_q = softmax(rows.teacher), log_softmax(rows.logits)
    theirs = -((p * log_q).sum(axis=-1) * rows.weight).sum() / rows.weight.sum()
    entropy = -((p * np.log(p)).sum(axis=-1) * rows.weight).sum() / rows.weight.sum()
    _, terms, _ = measured(mixing(AlphaTemperature, temperature=1.0), rows)
    assert terms["soft"] == pytest.approx(theirs - entropy, rel=1e-5)


def test_the_reverse_divergence_is_torchtunes() -> None:
    """There nothing is left out: -(sum(q log p) - sum(q log q)), a mean over the labels that are not ignored."""
    rows = some_rows(12, 9, 12)
    rows.weight, rows.has_soft = (np.arange(9) % 3 > 0).astype(float), np.ones(9)
    q, log_p, log_q = softmax(rows.logits), log_softmax(rows.teacher), log_softmax(rows.logits)
    apart = (q * log_p).sum(axis=-1) - (q * log_q).sum(axis=-1)
    theirs = -(apart * rows.weight).sum() / rows.weight.sum()
    _, terms, _ = measured(mixing(ReverseKL), rows)
    assert terms["soft"] == pytest.approx(theirs, rel=1e-5)
    _, forward, _ = measured(mixing(AlphaTemperature, temperature=1.0), rows)
    assert abs(forward["soft"] - theirs) > 0.01  # these rows tell one direction from the other


def test_fixed_numbers_stay_what_they_were_worked_out_to_be() -> None:
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2), by hand."""
    ones, half = np.ones(1), math.log(2) / 2
    rows = Rows(np.log([[1, 1, 2.0]]), np.log([[2, 1, 1.0]]), np.zeros(1, int), ones, ones)
    quarter = math.log(2) / 4
    middle = 0.5 * (0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)) * 2
    known: list[tuple[Mixer, float]] = [
        (mixing(AlphaTemperature, temperature=1.0), half - quarter),
        (mixing(ReverseKL), half - quarter),
        (mixing(TVD), 0.25),
        (mixing(JSD, beta=0.5), middle),
        (mixing(SkewKL, **{"lambda": 0.5}), middle),
        (mixing(TopKTail), half - quarter),
    ]
    for mixer, value in known:
        assert measured(mixer, rows)[1]["soft"] == pytest.approx(value, rel=1e-5), mixer.name


@pytest.mark.peer
@pytest.mark.slow
def test_every_divergence_and_its_gradient_are_pytorchs(peer: Any) -> None:
    torch = peer("torch")
    functional, rows, heat = torch.nn.functional, some_rows(13, 9, 12), 2.0
    for name, formula in formulas(heat).items():
        logits = torch.tensor(rows.logits, requires_grad=True)
        ours = functional.log_softmax(logits / heat, -1)
        theirs = functional.log_softmax(torch.tensor(rows.teacher) / heat, -1)
        counts = torch.tensor(rows.weight * rows.has_soft)
        apart = _torch_divergence(torch, name, theirs, ours)
        soft = heat**2 * (apart * counts).sum() / counts.sum()
        (soft * 0.7).backward()
        _, terms, slope = measured(formula.mixer, rows)
        assert terms["soft"] == pytest.approx(soft.item(), rel=1e-5)
        np.testing.assert_allclose(slope - 0.3 * hard_slope(rows), logits.grad.numpy(), atol=1e-5, err_msg=name)


def _torch_divergence(torch: Any, name: str, theirs: Any, ours: Any) -> Any:
    def kl_div(one: Any, other: Any) -> Any:
        return torch.nn.functional.kl_div(other, one, reduction="none", log_target=True).sum(-1)

    def mixed(one: Any, other: Any, share: float) -> Any:
        return torch.logsumexp(torch.stack([one + math.log(share), other + math.log(1 - share)]), 0)

    return {
        "alpha-temperature": lambda: kl_div(theirs, ours),
        "reverse-kl": lambda: kl_div(ours, theirs),
        "jsd": lambda: 0.3 * kl_div(theirs, m := mixed(theirs, ours, 0.3)) + 0.7 * kl_div(ours, m),
        "skew-kl": lambda: kl_div(theirs, mixed(theirs, ours, 0.15)),
        "skew-kl, reverse": lambda: kl_div(ours, mixed(ours, theirs, 0.15)),
        "tvd": lambda: 0.5 * (theirs.exp() - ours.exp()).abs().sum(-1),
    }[name]()


# --------------------------------------------------------------------------------- precision and memory


def in_half(mixer: Mixer, targets: Targets, logits: Array, dtype: Any) -> tuple[float, Array]:
    """Loss and gradient where hidden states and head are in half precision, as is the gradient."""
    size = logits.shape[1]
    names, head = engine.term_names(mixer, size, targets), mx.eye(size).astype(dtype)
    whole = {term: mx.maximum(total, 1e-9) for term, total in term_totals(mixer, targets, names, 5).items()}

    def loss(hidden: mx.array) -> Any:
        return mixed_loss(mixer, hidden, (head, None), targets, mx.array(0), mixer.weights(0), whole, 5)[0]

    value, slope = mx.value_and_grad(loss)(mx.array(logits.astype(np.float32)).astype(dtype))
    assert slope.dtype == dtype
    return value.item(), f64(slope)


@every
@pytest.mark.parametrize("k", [None, 4])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_comes_close(name: str, k: int | None, dtype: Any) -> None:
    rows, mixer = some_rows(9, 16, 12, k), formulas(2.0)[name].mixer
    value, slope = in_half(mixer, rows.targets, rows.logits, dtype)
    assert value == pytest.approx(measured(mixer, rows)[0], rel=2e-2)
    np.testing.assert_allclose(slope, measured(mixer, rows)[2], atol=2e-2)


def opinion_of(rows: Rows, width: int = 5) -> tuple[Targets, Rows]:
    """Targets whose teacher shows hidden states and a head with a bias, and the rows with its logits."""
    random = np.random.default_rng(3)
    hidden, weight = random.normal(size=(len(rows.logits), width)), random.normal(size=(rows.logits.shape[1], width))
    bias = random.normal(size=rows.logits.shape[1])
    head = (mx.array(weight.astype(np.float32)), mx.array(bias.astype(np.float32)))
    opinion = LazyLogits(mx.array(hidden.astype(np.float32)), head)
    rows.teacher = hidden @ weight.T + bias
    return replace(rows.targets, teacher_logits=None, lazy_logits=opinion), rows


@every
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_logits_made_a_chunk_at_a_time_are_the_teachers(name: str, chunk: int) -> None:
    targets, rows = opinion_of(some_rows(8, 10, 9))
    mixer = formulas(2.0)[name].mixer
    (loss, terms, slope), (whole, all_terms, all_slope) = (
        measured(mixer, targets, rows.logits, chunk),
        measured(mixer, rows),
    )
    assert loss == pytest.approx(whole, rel=1e-5)
    assert terms == pytest.approx(all_terms, rel=1e-5)
    np.testing.assert_allclose(slope, all_slope, atol=1e-5)
    np.testing.assert_allclose(f64(targets.soft), log_softmax(rows.teacher), atol=1e-5)  # type: ignore[arg-type]


class Sure(Mixer):
    """Looks only where its teacher is sure."""

    name = "sure"
    signal = "logits"

    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        return {"sure": targets.soft_divergence(logits)}

    def where(self, targets: Targets) -> dict[str, mx.array]:
        assert isinstance(targets.soft, mx.array)
        return {"sure": (targets.soft.max(axis=-1) > -0.8).astype(mx.float32)}


@pytest.mark.parametrize("mixer", [mixing(AlphaTemperature), mixing(JSD), Sure()], ids=["forward", "jsd", "where"])
def test_the_teachers_logits_never_exist_at_once(mixer: Mixer) -> None:
    random, n, vocab = np.random.default_rng(0), 4096, 4096
    hidden, head = (mx.array(random.normal(size=shape).astype(np.float32)) for shape in ((n, 8), (vocab, 8)))
    ones, opinion = mx.ones(n), LazyLogits(hidden, (head, None))
    targets = Targets(mx.zeros(n, dtype=mx.int32), ones, 0 * ones, ones, lazy_logits=opinion)
    mx.eval(hidden, head, targets.from_student, *vars(targets).values())

    def run() -> None:
        names = engine.term_names(mixer, vocab, targets)
        whole = term_totals(mixer, targets, names, 64)
        loss = lambda h: mixed_loss(mixer, h, (head, None), targets, mx.array(0), {}, whole, 64)[0]  # noqa: E731
        mx.eval(mx.value_and_grad(loss)(hidden * 0.5))

    before = mx.get_active_memory()
    mx.reset_peak_memory()
    run()
    assert mx.get_peak_memory() - before < 0.5 * 4 * n * vocab


# ------------------------------------------------------------------------------------------ gradient norms


@every
@pytest.mark.parametrize("k", [None, 3])
def test_gradient_norms_are_the_lengths_of_each_weighted_terms_slope(name: str, k: int | None) -> None:
    rows, formula = some_rows(4, 7, 9, k), formulas(2.0)[name]
    whole = term_totals(formula.mixer, rows.targets, ["hard", "soft"], 3)
    squares = grad_squared_norms(
        formula.mixer,
        mx.array(rows.logits.astype(np.float32)),
        (mx.eye(9), None),
        rows.targets,
        mx.array(0),
        formula.mixer.weights(0),
        {name: float(count.item()) for name, count in whole.items()},  # type: ignore[arg-type]
        chunk=3,
    )
    lengths = {name: square**0.5 for name, square in squares.items()}
    counts = (rows.weight * rows.has_soft)[:, None]
    soft = 0.7 * soft_slope(rows, formula, 2.0) * counts / counts.sum()
    norms = {"hard": np.linalg.norm(0.3 * hard_slope(rows)), "soft": np.linalg.norm(soft)}
    assert lengths == pytest.approx(norms, rel=1e-3)


def norms_after_a_step(from_teacher: list[int], streams: int) -> dict[str, float]:
    """Of a student that reads six rows, some of them the teacher's text."""
    arrays = batch_of(3)
    arrays["from_teacher"][:] = np.array(from_teacher)[:, None]
    job = job_of(tiny_model(), Batch(**arrays), mixing(Sequence), None, streams)
    job.teacher = None
    state = initial_state(job.model, job.settings.optimizer)
    train_step(job, state)
    return gradient_norms(job, state)


def test_gradient_norms_are_those_of_the_whole_batch_however_it_was_cut() -> None:
    whole = norms_after_a_step([0, 0, 0, 0, 0, 1], streams=1)  # the teacher's rows come last
    assert whole.keys() == {"hard", "sequence"}
    assert norms_after_a_step([0, 0, 0, 0, 0, 1], streams=3) == pytest.approx(whole, rel=1e-4)


def test_terms_that_count_no_row_have_no_gradient_norm() -> None:
    assert norms_after_a_step([0] * 6, streams=2).keys() == {"hard"}


def test_a_term_that_is_lost_beside_another_is_pointed_out_once() -> None:
    told = RecordingConsole()
    balance = TermBalanceMonitor(told)
    balance.record_evaluation(1, {"hard": 1.0, "soft": 0.02})
    balance.record_evaluation(2, {"hard": 1.0, "soft": 0.0})  # a weight of 0
    balance.record_evaluation(3, {})
    assert told.lines == []
    balance.record_evaluation(4, {"hard": 2.0, "soft": 0.019})
    balance.record_evaluation(5, {"hard": 2.0, "soft": 0.001})
    (warning,) = told.warnings("step 4")
    assert "'soft' is 0.9% of that of 'hard'" in warning


def test_steps_without_a_hard_row_say_nothing_about_learning_by_heart() -> None:
    told = RecordingConsole()
    watch = OverfittingMonitor(told)
    watch.record_step({"loss": 0.1, "terms": {"hard": 0.0, "soft": 0.1}})
    watch.record_evaluation(1, 5.0, 4.0)
    assert told.lines == []
    watch.record_step({"loss": 0.1, "terms": {"hard": 2.0, "soft": 0.1}})
    watch.record_evaluation(2, 5.0, 4.0)
    assert told.warnings("training loss is 2.00")


# ---------------------------------------------------------------------------------------------- schedules


def going(**how: Any) -> Schedule:
    return Schedule.model_validate({key.rstrip("_"): value for key, value in how.items()})


def both(schedule: Schedule, step: int, steps: int) -> float:
    """The value of a step, the same for a number and for MLX's scalar."""
    plain, array = schedule.at(step, steps), schedule.at(mx.array(step), steps)
    assert (array.item() if isinstance(array, mx.array) else array) == pytest.approx(plain, rel=1e-5, abs=1e-6)
    return float(plain)


def test_schedules_begin_and_end_where_they_say() -> None:
    assert {both(Schedule.of(0.4), step, 10) for step in (0, 5, 99)} == {0.4}
    line = going(schedule="linear", from_=0.9, to=0.5)
    assert [both(line, step, 5) for step in range(6)] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.5])
    wave = going(schedule="cosine", from_=1, to=0)
    assert [both(wave, step, 5) for step in (0, 2, 4, 9)] == pytest.approx([1, 0.5, 0, 0])
    assert both(wave, 1, 5) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    hill = going(schedule="warm-stable-decay", from_=0, to=1, end=0.5, warm=0.2, decay=0.4)
    found = [both(hill, step, 11) for step in (0, 1, 2, 3, 6, 8, 10, 12)]
    assert found == pytest.approx([0, 0.5, 1, 1, 1, 0.75, 0.5, 0.5])
    assert both(going(schedule="warm-stable-decay", from_=0.2, to=1), 10, 11) == pytest.approx(0.2)
    assert both(going(schedule="linear", from_=0, to=1, steps=3), 1, 100) == pytest.approx(0.5)
    assert both(line, 0, 1) == 0.9


@QUICK
@given(
    st.sampled_from(["linear", "cosine", "warm-stable-decay"]),
    st.floats(-5, 5),
    st.floats(-5, 5),
    st.integers(1, 50),
)
def test_a_schedule_never_leaves_the_numbers_it_goes_between(shape: str, first: float, last: float, steps: int) -> None:
    schedule = going(schedule=shape, from_=first, to=last)
    values = [schedule.at(step, steps) for step in range(steps + 3)]
    assert all(min(first, last) - 1e-9 <= value <= max(first, last) + 1e-9 for value in values)
    assert values[0] == pytest.approx(first)


def test_a_schedule_without_a_length_says_so() -> None:
    mixer = mixing(JSD, alpha={"schedule": "linear", "from": 0.9, "to": 0.1})
    with pytest.raises(ValueError, match="number of steps"):
        mixer.weights(3)
    mixer.steps = 5
    assert mixer.weights(4) == pytest.approx({"hard": 0.1, "soft": 0.9})
    assert mixing(JSD, alpha=0.2).weights(7) == {"hard": 0.2, "soft": 0.8}


@every
def test_a_scheduled_temperature_is_the_temperature_of_its_step(name: str) -> None:
    rows = some_rows(3, k=4)
    mixer = formulas(1.0)[name].mixer
    table = {"schedule": "linear", "from": 1.0, "to": 3.0, "steps": 3}
    values = {**mixer.options.model_dump(by_alias=True), "temperature": table}
    scheduled = type(mixer)(type(mixer).Options(**values))
    for step, heat in enumerate((1.0, 2.0, 3.0)):
        fixed = measured(formulas(heat)[name].mixer, rows)
        found = measured(scheduled, rows, step=step)
        assert found[0] == pytest.approx(fixed[0], rel=1e-5)
        np.testing.assert_allclose(found[2], fixed[2], atol=1e-6)


RECIPE = 'name = "x"\ntokenizer.kind = "tales-teacher"\nteacher.provider = "checkpoint"\nmixer.name = "jsd"\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mixer.alpha = 1.5", "mixer.alpha: found 1.5, expected a number at least 0 and at most 1, or a schedule"),
        ('mixer.alpha = "high"', 'found "high", expected a number at least 0 and at most 1, or a schedule'),
        ("mixer.temperature = 0", "found 0, expected a number above 0 and at most 100, or a schedule"),
        ('mixer.alpha = {schedule = "linear", from = 1}', "mixer.alpha: is linear and lacks `to`"),
        ('mixer.alpha = {schedule = "constant", from = 1, to = 0}', "is constant and has `to`"),
        ('mixer.alpha = {schedule = "linear", from = 1, too = 0}', "unknown key mixer.alpha.too. Did you mean 'to'?"),
        ('mixer.alpha = {schedule = "wave", from = 1, to = 0}', 'mixer.alpha.schedule: found "wave", expected'),
        ('mixer.alpha = {schedule = "cosine", from = 1, to = 2}', "mixer.alpha: has 2, expected a number at least 0"),
        ('mixer.alpha = {schedule = "cosine", from = 1, to = 0, end = 1}', "which only warm-stable-decay uses"),
        (
            'mixer.alpha = {schedule = "warm-stable-decay", from = 1, to = 0, warm = 0.6, decay = 0.5}',
            "has warm + decay = 1.1, expected at most 1",
        ),
        ('mixer.beta = {schedule = "linear", from = 0, to = 0.5}', "mixer: has a beta schedule that reaches 0 or 1"),
        ("teacher.on_policy = 0", "teacher.on_policy: found 0, expected a number above 0 and at most 1"),
        ("teacher.on_policy = 0.5\nteacher.signal = 'text'\nmixer.name = 'hard'", "gives text, so it cannot score"),
        ("teacher.on_policy = 0.5\nteacher.store = true", "cannot be combined with store = true"),
        ("teacher.on_policy = 0.5\nmixer.name = 'hard'", "the mixer 'hard' does not use the teacher's probabilities"),
    ],
)
def test_wrong_numbers_are_refused_in_the_recipes_words(line: str, message: str, tmp_path: Path) -> None:
    told = RECIPE.replace('mixer.name = "jsd"\n', "") if "mixer.name" in line else RECIPE
    (tmp_path / "my.toml").write_text(f"{told}{line}\n")
    with pytest.raises(UsageError) as caught:
        Plugins.load().check(load(str(tmp_path / "my.toml")))
    assert message in f"{caught.value.message}. {caught.value.hint}"


@pytest.mark.peer
def test_right_numbers_are_taken_and_the_schema_shows_them(peer: Any) -> None:
    jsonschema = peer("jsonschema")
    plugins = Plugins.load()
    jsonschema.Draft202012Validator.check_schema(plugins.schema())
    checker = jsonschema.Draft202012Validator(plugins.schema())
    table = {"schedule": "cosine", "from": 0.9, "to": 0.5}
    for alpha, good in ((0.5, True), (table, True), (1.5, False), ({"schedule": "cosine"}, False)):
        recipe = {"name": "x", "mixer": {"name": "jsd", "alpha": alpha}}
        assert checker.is_valid(recipe) is good


def test_bounds_are_told_in_words() -> None:
    assert str(Within(least=0, below=1)) == "a number at least 0 and below 1"
    assert str(Within()) == "a number"


# ---------------------------------------------------------------------------------------------- on-policy

WRITER = OnPolicyGenerator(share=0.5, prompt_tokens=3, context=8, padding=0, seed=1)


def share_of(start: int, stop: int, whole: int = 6) -> BatchShard:
    return BatchShard(range(start, stop), (stop - start,), 0, whole)


def test_the_student_goes_on_with_its_share_of_the_rows() -> None:
    model, batch, share = tiny_model(), batch_of(1), share_of(0, 6)
    written = WRITER.generate(model, batch, share, 4)
    own = WRITER.chosen_rows(6, 4)
    others = [row for row in range(6) if row not in own]
    assert len(own) == 3
    for name, value in batch.items():
        np.testing.assert_array_equal(written[name][others], value[others])
    np.testing.assert_array_equal(written["inputs"][own, :3], batch["inputs"][own, :3])
    np.testing.assert_array_equal(written["inputs"][own, 1:], written["hard"][own, :-1])
    assert (written["hard"][own, 2:] != batch["hard"][own, 2:]).any()
    assert (written["weight"][own, 2:] == 1).all()
    np.testing.assert_array_equal(written["from_student"].any(axis=1), [row in own for row in range(6)])
    assert (written["from_teacher"][own] == 0).all()


def test_what_the_student_writes_depends_on_seed_step_and_row_alone() -> None:
    model, batch = tiny_model(), batch_of(1)
    whole = WRITER.generate(model, batch, share_of(0, 6), 4)
    again = WRITER.generate(model, batch, share_of(0, 6), 4)
    for name, value in whole.items():
        np.testing.assert_array_equal(again[name], value)
    for start, stop in ((0, 2), (2, 6)):  # as two processes would
        part = {name: value[start:stop] for name, value in batch.items()}
        for name, value in WRITER.generate(model, part, share_of(start, stop), 4).items():
            np.testing.assert_array_equal(value, whole[name][start:stop], err_msg=name)
    drawn = {tuple(WRITER.chosen_rows(6, step)) for step in range(20)}
    assert len(drawn) > 5
    assert WRITER.chosen_rows(6, 4) != replace(WRITER, seed=2).chosen_rows(6, 4)
    assert (WRITER.generate(model, batch, share_of(0, 6), 5)["inputs"] != whole["inputs"]).any()


def waves(tokens: mx.array) -> mx.array:
    """The logits of a teacher without weights."""
    return mx.sin(tokens[..., None] * mx.arange(13))


def job_of(model: GPT, batch: Batch, mixer: Mixer, on_policy: OnPolicyGenerator | None, streams: int) -> TrainingJob:
    schedule: Any = lambda step: 1e-3  # noqa: E731
    figures = TrainSettings(100, 1, 5, 100, 100, None, 1, 1, schedule, OptimizerGroup())
    nowhere: Any = None
    job = TrainingJob(model, 13, mixer, lambda step: batch, list, figures, {}, {}, nowhere, nowhere, waves, on_policy)
    job.stream_pool = StreamPool(streams)
    return job


def test_on_policy_rows_are_the_same_in_any_number_of_streams() -> None:
    found = []
    for streams in (1, 3):
        model, arrays = tiny_model(), batch_of(2)
        job = job_of(model, Batch(**arrays), mixing(ReverseKL), WRITER, streams)
        state = initial_state(model, job.settings.optimizer)
        found.append([train_step(job, state) for _ in range(3)])
        assert gradient_norms(job, state).keys() >= {"soft"}
    for one, other in zip(*found, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["terms"] == pytest.approx(other["terms"], rel=1e-5)


def test_stored_soft_targets_reach_the_mixer_row_by_row() -> None:
    arrays, random = batch_of(5), np.random.default_rng(5)
    opinion = log_softmax(random.normal(size=(6, 8, 13)))
    ids = np.argsort(-opinion, axis=-1)[..., :4]
    named = np.take_along_axis(opinion, ids, axis=-1)
    residual = np.log(1 - np.exp(named).sum(axis=-1))
    has = (random.random((6, 8)) < 0.6).astype(np.float32)
    stored = (ids.astype(np.int32), named.astype(np.float32), residual.astype(np.float32), has)
    model = tiny_model()
    job = job_of(model, Batch(*arrays.values(), *stored), mixing(TopKTail), None, 2)
    job.teacher = None
    logits = f64(model(mx.array(arrays["inputs"]))) @ f64(model.head[0]).T
    values = train_step(job, initial_state(model, job.settings.optimizer))
    q = softmax(logits)
    grouped = np.take_along_axis(q, ids, axis=-1)
    q = np.concatenate([grouped, 1 - grouped.sum(axis=-1, keepdims=True)], axis=-1)
    p = np.concatenate([np.exp(named), np.exp(residual)[..., None]], axis=-1)
    counts = arrays["weight"] * has
    assert values["terms"]["soft"] == pytest.approx((kl(p, q) * counts).sum() / counts.sum(), rel=1e-4)


# ---------------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    prepare_home(tmp_path, monkeypatch)
    sit()
    return tmp_path


SCHEDULED = (
    "mixer.name=reverse-kl",
    'mixer.alpha={schedule="linear", from=0.9, to=0.1}',
    'mixer.temperature={schedule="cosine", from=2.0, to=1.0}',
    "teacher.on_policy=0.25",
    "teacher.prompt_tokens=4",
)


@pytest.mark.slow
def test_a_scheduled_on_policy_run_that_was_stopped_ends_like_an_undisturbed_one(home: Path) -> None:
    undisturbed = sit(*SCHEDULED, recipe="pupil")
    run = stopped_at(5, *SCHEDULED, recipe="pupil")
    sit(*SCHEDULED, recipe="pupil", resume=True)
    assert weights(run) == weights(undisturbed)
    assert train_losses(run) == train_losses(undisturbed)
    assert weights(sit(*SCHEDULED[:3], recipe="pupil")) != weights(undisturbed)


def test_the_weights_of_terms_follow_their_schedule_and_their_gradients_are_reported(home: Path) -> None:
    run = sit(*SCHEDULED[:2], recipe="pupil")
    rows = read_jsonl(run.metrics)
    for row in rows:
        if row["kind"] == "train":
            alpha = 0.9 - 0.8 * (row["step"] - 1) / 11
            terms = row["terms"]
            assert row["loss"] == pytest.approx(alpha * terms["hard"] + (1 - alpha) * terms["soft"], rel=1e-4)
    looks = [row for row in rows if row["kind"] == "validation"]
    assert looks[-1]["gradient_norms"].keys() == {"hard", "soft"}
    assert all(norm > 0 for row in looks for norm in row["gradient_norms"].values())
    assert run.info["training"]["gradient_norms"] == looks[-1]["gradient_norms"]


def test_a_hard_run_has_one_gradient_norm(home: Path) -> None:
    run = sit(console=(told := RecordingConsole()))
    assert all(row["gradient_norms"].keys() == {"hard"} for row in read_jsonl(run.metrics) if row["kind"] != "train")
    assert not told.warnings("gradient")
    assert Hard.signal == "none"
