"""Losses and gradients against closed forms in float64 and finite differences; batches computed in parts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from distillkit_plugins.mixers import AlphaTemperature, Hard
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.data.batches import Batch
from distillkit.plugins.interfaces import Mixer, signal_suffices
from distillkit.student.model.gpt import GPT, GPTConfig, initialise
from distillkit.student.training.loop import TrainingJob, TrainSettings, initial_state, train_step
from distillkit.student.training.loss import Targets, mixed_loss, row_weights
from distillkit.student.training.optimizers import LearningRateSchedule, OptimizerGroup, flatten
from distillkit.student.training.parallel import StreamPool
from support.students import f64, log_softmax, random_array, softmax

Array = np.ndarray[Any, Any]
QUICK = settings(max_examples=100, deadline=None)


# ---------------------------------------------------------------------------------------------- reference


@dataclass
class Rows:
    """Rows for a loss: everything in float64 that holds float32 values."""

    hidden: Array
    head: Array
    bias: Array | None
    hard: Array
    weight: Array
    has_soft: Array
    teacher: Array

    @property
    def logits(self) -> Array:
        result: Array = self.hidden @ self.head.T
        return result if self.bias is None else result + self.bias

    def targets(self) -> Targets:
        return Targets(
            hard=mx.array(self.hard),
            weight=mx.array(self.weight.astype(np.float32)),
            from_teacher=mx.zeros(self.hard.shape),
            has_soft=mx.array(self.has_soft.astype(np.float32)),
            teacher_logits=mx.array(self.teacher.astype(np.float32)),
        )


def hard_rows(rows: Rows, logits: Array) -> Array:
    result: Array = -log_softmax(logits)[np.arange(len(logits)), rows.hard]
    return result


def soft_rows(rows: Rows, logits: Array, heat: float) -> Array:
    theirs, ours = log_softmax(rows.teacher / heat), log_softmax(logits / heat)
    result: Array = heat**2 * (np.exp(theirs) * (theirs - ours)).sum(axis=-1)
    return result


def expected_loss(rows: Rows, alpha: float, heat: float, logits: Array) -> float:
    """alpha CE + (1 - alpha) T^2 KL, each a weighted mean over the rows that it counts."""
    soft_weight = rows.weight * rows.has_soft
    hard = (hard_rows(rows, logits) * rows.weight).sum() / max(rows.weight.sum(), 1e-9)
    soft = (soft_rows(rows, logits, heat) * soft_weight).sum() / max(soft_weight.sum(), 1e-9)
    return float(alpha * hard + (1 - alpha) * soft)


def expected_slope(rows: Rows, alpha: float, heat: float) -> Array:
    """The gradient with respect to logits, as a closed form: softmax minus target, at each temperature."""
    logits = rows.logits
    onehot = np.eye(logits.shape[1])[rows.hard]
    soft_weight = rows.weight * rows.has_soft
    hard = (softmax(logits) - onehot) * (rows.weight / max(rows.weight.sum(), 1e-9))[:, None]
    soft = heat * (softmax(logits / heat) - softmax(rows.teacher / heat))
    soft = soft * (soft_weight / max(soft_weight.sum(), 1e-9))[:, None]
    result: Array = alpha * hard + (1 - alpha) * soft
    return result


def measured(mixer: Mixer, rows: Rows, chunk: int, step: int = 0) -> tuple[float, dict[str, float], dict[str, Array]]:
    """Loss, terms and gradients as the engine has them."""
    targets = rows.targets()
    names = list(mixer.rows(mx.zeros((1, rows.head.shape[0])), targets.rows(0, 1), mx.array(0)))
    totals = {n: mx.maximum(c.sum(), 1e-9) for n, c in row_weights(mixer, targets, names).items()}

    def loss(hidden: mx.array, head: mx.array, bias: mx.array) -> Any:
        where = (head, None if rows.bias is None else bias)
        return mixed_loss(mixer, hidden, where, targets, mx.array(step), mixer.weights(step), totals, chunk)

    bias = np.zeros(1) if rows.bias is None else rows.bias
    given_arrays = [mx.array(a.astype(np.float32)) for a in (rows.hidden, rows.head, bias)]
    (value, terms), slopes = mx.value_and_grad(loss, argnums=(0, 1, 2))(*given_arrays)
    mx.eval(value, terms, slopes)
    gradients = dict(zip(("hidden", "head", "bias"), map(f64, slopes), strict=True))
    return value.item(), {n: t.item() for n, t in terms.items()}, gradients


def through_head(rows: Rows, slope: Array) -> dict[str, Array]:
    """Gradients with respect to hidden states, head and bias, from those with respect to logits."""
    bias = slope.sum(axis=0) if rows.bias is not None else np.zeros(1)
    return {"hidden": slope @ rows.head, "head": slope.T @ rows.hidden, "bias": bias}


def mixing(alpha: float, heat: float) -> AlphaTemperature:
    return AlphaTemperature(AlphaTemperature.Options(alpha=alpha, temperature=heat))


def some_rows(seed: int, n: int = 7, width: int = 3, vocab: int = 5, largest: float = 4.0, **given: Any) -> Rows:
    """Random rows whose logits reach `largest`; the last two tokens are always tied."""
    random = np.random.default_rng(seed)
    hidden, head = random.normal(size=(n, width)), random.normal(size=(vocab, width))
    head[-1] = head[-2]
    head *= largest / max(np.abs(hidden @ head.T).max(), 1e-9)
    teacher = random.normal(size=(n, vocab))
    teacher *= largest / np.abs(teacher).max()
    weight = random.choice([0.0, 0.5, 1.0], size=n, p=[0.3, 0.2, 0.5])
    weight[0] = 1.0
    values = {
        "hidden": hidden,
        "head": head,
        "bias": None,
        "hard": random.integers(0, vocab, n).astype(np.int32),
        "weight": weight,
        "has_soft": np.ones(n),
        "teacher": teacher,
    }
    rows = Rows(**{**values, **given})
    for name in ("hidden", "head", "bias", "teacher"):  # what both sides start from is float32
        if getattr(rows, name) is not None:
            setattr(rows, name, getattr(rows, name).astype(np.float32).astype(np.float64))
    return rows


@st.composite
def drawn_rows(draw: Any) -> Rows:
    n, width, vocab = draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.integers(2, 9))
    rows = some_rows(draw(st.integers(0, 10_000)), n, width, vocab, draw(st.sampled_from([0.0, 1.0, 8.0, 50.0])))
    weights = st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=n, max_size=n)
    rows.weight = np.array(draw(weights.filter(any)))
    rows.has_soft = np.array(draw(st.lists(st.sampled_from([0.0, 1.0, 1.0]), min_size=n, max_size=n)))
    if draw(st.booleans()):
        rows.bias = random_array(draw(st.integers(0, 99)), vocab).astype(np.float64)
    return rows


def assert_gradients(found: dict[str, Array], rows: Rows, slope: Array, tolerance: float) -> None:
    """Hold gradients against those that a slope at the logits makes; what they are multiplied with sets the scale."""
    scales = {"hidden": np.abs(rows.head).max(), "head": np.abs(rows.hidden).max() * len(rows.hidden)}
    for name, value in through_head(rows, slope).items():
        allowed = tolerance * max(1.0, scales.get(name, 1.0), np.abs(value).max())
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=allowed, err_msg=name)


# ---------------------------------------------------------------------------------------------- loss


@QUICK
@given(drawn_rows(), st.sampled_from([1, 2, 3, 64]))
def test_hard_loss_and_its_gradient_are_the_closed_form(rows: Rows, chunk: int) -> None:
    loss, terms, gradients = measured(Hard(), rows, chunk)
    expected = expected_loss(rows, 1.0, 1.0, rows.logits)
    assert loss == pytest.approx(expected, rel=1e-5, abs=2e-5)
    assert terms == {"hard": pytest.approx(expected, rel=1e-5, abs=2e-5)}
    assert_gradients(gradients, rows, expected_slope(rows, 1.0, 1.0), 1e-5)


@QUICK
@given(
    drawn_rows(),
    st.sampled_from([1, 2, 5, 64]),
    st.floats(0, 1),
    st.sampled_from([0.25, 0.5, 1.0, 1.7, 4.0, 20.0]),
)
def test_alpha_temperature_and_its_gradient_are_the_closed_form(
    rows: Rows, chunk: int, alpha: float, heat: float
) -> None:
    loss, terms, gradients = measured(mixing(alpha, heat), rows, chunk)
    rounding = 2e-6 * (heat**2 + heat * np.abs(rows.logits).max() + 10)
    assert loss == pytest.approx(expected_loss(rows, alpha, heat, rows.logits), rel=1e-5, abs=rounding)
    assert terms["hard"] == pytest.approx(expected_loss(rows, 1, heat, rows.logits), rel=1e-5, abs=rounding)
    assert terms["soft"] == pytest.approx(expected_loss(rows, 0, heat, rows.logits), rel=1e-5, abs=rounding)
    tolerance = 2e-6 * (10 + heat + np.abs(rows.logits).max() / heat)
    assert_gradients(gradients, rows, expected_slope(rows, alpha, heat), tolerance)


@QUICK
@given(st.integers(0, 500), st.floats(0, 1), st.floats(0.5, 8))
def test_the_closed_form_is_what_finite_differences_give(seed: int, alpha: float, heat: float) -> None:
    rows = some_rows(seed)
    slope, nudge = expected_slope(rows, alpha, heat), 1e-5
    direction = np.random.default_rng(seed).normal(size=slope.shape)
    ends = [expected_loss(rows, alpha, heat, rows.logits + s * nudge * direction) for s in (1, -1)]
    assert (slope * direction).sum() == pytest.approx((ends[0] - ends[1]) / (2 * nudge), rel=1e-5, abs=1e-8)


def test_soft_loss_is_zero_where_the_student_agrees_with_its_teacher() -> None:
    rows = some_rows(3)
    rows.teacher = rows.logits.astype(np.float32).astype(np.float64)
    _, terms, gradients = measured(mixing(0.0, 2.0), rows, 4)
    assert terms["soft"] == pytest.approx(0, abs=1e-5)
    assert max(np.abs(g).max() for g in gradients.values()) < 1e-5


@pytest.mark.parametrize("extreme", [50.0, 1e4])
def test_extreme_logits_stay_finite(extreme: float) -> None:
    rows = some_rows(5, largest=extreme)
    for mixer in (Hard(), mixing(0.5, 1.0), mixing(0.5, 0.1)):
        loss, _, gradients = measured(mixer, rows, 3)
        assert math.isfinite(loss)
        assert all(np.isfinite(g).all() for g in gradients.values())


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 6, 13, 100])
def test_chunks_change_nothing(chunk: int) -> None:
    rows = some_rows(1, n=13, vocab=11, bias=random_array(1, 11))
    whole, of_whole = measured(mixing(0.4, 2.0), rows, 13), measured(mixing(0.4, 2.0), rows, chunk)
    assert of_whole[0] == pytest.approx(whole[0], rel=1e-5)
    assert of_whole[1] == pytest.approx(whole[1], rel=1e-5)
    for name, slope in whole[2].items():
        np.testing.assert_allclose(of_whole[2][name], slope, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_batch_of_nothing_but_padding_costs_nothing() -> None:
    loss, _, gradients = measured(mixing(0.5, 2.0), some_rows(2, weight=np.zeros(7)), 3)
    assert loss == 0
    assert all((g == 0).all() for g in gradients.values())


def test_dense_soft_targets_are_normalised() -> None:
    targets = some_rows(4, largest=50.0).targets()
    assert isinstance(targets.soft, mx.array)
    np.testing.assert_allclose(np.exp(f64(targets.soft)).sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(f64(targets.soft), log_softmax(f64(targets.teacher_logits)), atol=1e-4)


class Focal(Mixer):
    """Cross-entropy that looks away from what is already known. (As in the documentation.)"""

    name = "focal"
    signal = "none"

    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        logp = targets.log_prob(logits)
        return {"focal": -((1 - mx.exp(logp)) ** 2) * logp}

    def weights(self, step: int) -> dict[str, float]:
        return {"focal": 1.0}


@pytest.mark.parametrize("chunk", [2, 5, 7])
def test_a_plugin_mixer_is_differentiated_like_finite_differences(chunk: int) -> None:
    rows = some_rows(8, largest=3.0)

    def focal(hidden: Array, head: Array) -> float:
        logp = log_softmax(hidden @ head.T)[np.arange(len(hidden)), rows.hard]
        return float((-((1 - np.exp(logp)) ** 2) * logp * rows.weight).sum() / rows.weight.sum())

    loss, terms, gradients = measured(Focal(), rows, chunk)
    assert loss == pytest.approx(focal(rows.hidden, rows.head), rel=1e-5)
    assert terms == {"focal": pytest.approx(loss, rel=1e-6)}
    nudge = 1e-5
    for name in ("hidden", "head"):
        slope = np.zeros_like(getattr(rows, name))
        for place in np.ndindex(slope.shape):
            ends = []
            for sign in (1, -1):
                moved = {"hidden": rows.hidden.copy(), "head": rows.head.copy()}
                moved[name][place] += sign * nudge
                ends.append(focal(**moved))
            slope[place] = (ends[0] - ends[1]) / (2 * nudge)
        np.testing.assert_allclose(gradients[name], slope, rtol=1e-4, atol=1e-6)


class Half(Mixer):
    """A term over the teacher's rows only, twice as heavy from step 5 on, beside one over all."""

    name = "half"

    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        surprise = -targets.log_prob(logits)
        return {"all": surprise, "taught": surprise * (1 + step)}

    def weights(self, step: int) -> dict[str, float]:
        return {"taught": 2.0 if step >= 5 else 1.0}

    def where(self, targets: Targets) -> dict[str, mx.array]:
        return {"taught": targets.from_teacher}


class Sure(Mixer):
    """Looks only where its teacher is sure, as the mixers of others may."""

    name = "sure"
    signal = "logits"

    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        return {"sure": targets.soft_divergence(logits, 1.0)}

    def where(self, targets: Targets) -> dict[str, mx.array]:
        assert isinstance(targets.soft, mx.array)
        return {"sure": (targets.soft.max(axis=-1) > math.log(0.16)).astype(mx.float32)}


class Keeps(OptimizerGroup):
    """Optimizers that keep the gradients they are given."""

    seen: dict[str, Array]

    def update(self, parameters: Any, gradients: Any, *more: Any) -> Any:
        self.seen = {n: f64(g) for n, g in flatten(gradients).items()}
        return super().update(parameters, gradients, *more)


TINY = GPTConfig(vocab_size=13, layers=1, heads=2, width=8, hidden=16, context=6)


def uneven_batch(seed: int = 0, rows: int = 4) -> Any:
    """A batch whose parts count differently, so that a mean of means would show."""
    random = np.random.default_rng(seed)
    shape = (rows, TINY.context)
    weight = (random.random(shape) < np.linspace(0.1, 1, rows)[:, None]).astype(np.float32)
    teacher = np.repeat((np.arange(rows) % 2).astype(np.float32)[:, None], TINY.context, axis=1)
    tokens = random.integers(0, TINY.vocab_size, (2, *shape)).astype(np.int32)
    return Batch(inputs=tokens[0], hard=tokens[1], weight=weight, from_teacher=teacher)


def job_of(
    model: GPT, mixer: Mixer, batch: Any, accumulate: int = 1, chunk: int = 5, teacher: Any = None
) -> TrainingJob:
    figures = TrainSettings(
        steps=100,
        accumulate=accumulate,
        chunk=chunk,
        evaluate_every=100,
        checkpoint_every=100,
        sample_every=None,
        keep=1,
        seed=1,
        schedule=LearningRateSchedule(1e-3, 1e-4, 0, 100),
        optimizer=Keeps(train={"clip": 1e9}),
    )
    nowhere: Any = None
    data = (lambda step: batch, list)
    return TrainingJob(model, TINY.vocab_size, mixer, *data, figures, {}, {}, nowhere, nowhere, teacher)


def one_step(
    mixer: Mixer, accumulate: int, chunk: int = 5, step: int = 0, teacher: Any = None, streams: int = 1
) -> tuple[dict[str, Any], dict[str, Array]]:
    model = GPT(TINY)
    initialise(model, 3)
    job = job_of(model, mixer, uneven_batch(), accumulate, chunk, teacher)
    state = initial_state(model, job.settings.optimizer)
    state.step = step
    job.stream_pool = StreamPool(streams)
    values = train_step(job, state)
    return values, job.settings.optimizer.seen  # type: ignore[attr-defined]


def waves(tokens: mx.array) -> mx.array:
    """The logits of a teacher without weights."""
    return mx.sin(tokens[..., None] * mx.arange(13))


MIXERS = pytest.mark.parametrize("mixer", [Hard(), Focal(), Half(), Sure(), mixing(0.3, 2.0)], ids=lambda m: m.name)


@MIXERS
@pytest.mark.parametrize("streams", [2, 4])
def test_computing_parts_side_by_side_changes_neither_loss_nor_gradients(mixer: Mixer, streams: int) -> None:
    teacher = waves if signal_suffices(mixer.signal, "top_logprobs") else None
    whole, slopes = one_step(mixer, 1, chunk=24, teacher=teacher)
    for _ in range(2):
        parts, of_parts = one_step(mixer, 1, teacher=teacher, streams=streams)
        assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert parts["terms"] == pytest.approx(whole["terms"], rel=1e-5)
        for name, slope in slopes.items():
            np.testing.assert_allclose(of_parts[name], slope, atol=1e-5 * max(1, np.abs(slope).max()))


@MIXERS
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulating_changes_neither_loss_nor_gradients(mixer: Mixer, accumulate: int) -> None:
    teacher = waves if signal_suffices(mixer.signal, "top_logprobs") else None
    whole, slopes = one_step(mixer, 1, chunk=24, teacher=teacher)
    parts, of_parts = one_step(mixer, accumulate, teacher=teacher)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["terms"] == pytest.approx(whole["terms"], rel=1e-5)
    for name, slope in slopes.items():
        np.testing.assert_allclose(of_parts[name], slope, atol=1e-5 * max(1, np.abs(slope).max()), err_msg=name)


@pytest.mark.parametrize("step", [0, 7])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_term_is_its_weighted_mean_over_its_rows_of_the_whole_batch(accumulate: int, step: int) -> None:
    values, _ = one_step(Half(), accumulate, step=step)
    model, batch = GPT(TINY), uneven_batch()
    initialise(model, 3)
    logits = f64(model(mx.array(batch.inputs))) @ f64(model.head[0]).T
    surprise = -np.take_along_axis(log_softmax(logits), batch.hard[..., None], axis=-1)[..., 0]
    of_teacher = batch.weight * batch.from_teacher
    everywhere = (surprise * batch.weight).sum() / batch.weight.sum()
    taught = (surprise * (1 + step) * of_teacher).sum() / of_teacher.sum()
    assert values["terms"] == pytest.approx({"all": everywhere, "taught": taught}, rel=1e-5)
    assert values["loss"] == pytest.approx(everywhere + (2 if step >= 5 else 1) * taught, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_mixer_may_look_where_its_teacher_is_sure(accumulate: int) -> None:
    values, _ = one_step(Sure(), accumulate, teacher=waves)
    model, batch = GPT(TINY), uneven_batch()
    initialise(model, 3)
    ours = log_softmax(f64(model(mx.array(batch.inputs))) @ f64(model.head[0]).T)
    theirs = log_softmax(f64(waves(mx.array(batch.inputs))))
    counts = batch.weight * (theirs.max(axis=-1) > math.log(0.16))
    assert 0 < counts.sum() < batch.weight.sum()
    divergence = (np.exp(theirs) * (theirs - ours)).sum(axis=-1)
    assert values["terms"]["sure"] == pytest.approx((divergence * counts).sum() / counts.sum(), rel=1e-5)


def test_dropout_is_drawn_from_the_seed_and_the_step() -> None:
    def loss(seed: int, step: int) -> float:
        model = GPT(replace(TINY, dropout=0.5))
        initialise(model, 3)
        job = job_of(model, Hard(), uneven_batch(), accumulate=2)
        job.settings = replace(job.settings, seed=seed)
        state = initial_state(model, job.settings.optimizer)
        state.step = step
        return float(train_step(job, state)["loss"])

    assert loss(1, 0) == loss(1, 0)
    assert len({loss(seed, step) for seed in (1, 2) for step in (0, 1, 2)}) == 6
