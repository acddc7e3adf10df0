"""The student held against independent arithmetic: NumPy in float64, closed forms, finite differences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from distillkit_plugins.gpt import Gpt
from distillkit_plugins.mixers import AlphaTemperature, Hard
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_map

from distillkit.core.errors import UsageError
from distillkit.data.batches import Batch
from distillkit.plugins.interfaces import Mixer, signal_suffices
from distillkit.recipe.schedules import SCHEDULES
from distillkit.student.generation.score import document_nlls, scoring_windows
from distillkit.student.model.gpt import GPT, GPTConfig, count_parameters, initialise
from distillkit.student.trained import Trained, parameter_counts
from distillkit.student.training.loop import TrainingJob, TrainSettings, initial_state, train_step
from distillkit.student.training.loss import Targets, mixed_loss, row_weights
from distillkit.student.training.optimizers import AdamW, LearningRateSchedule, flatten, unflatten
from distillkit.student.training.parallel import StreamPool
from support.students import TEXTS, f64, lively, log_softmax, random_array, small_model, softmax, tokenizer, writer

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


class Keeps(AdamW):
    """An optimizer that keeps the gradients it is given."""

    def update(self, parameters: Any, gradients: Any, *more: Any) -> Any:
        object.__setattr__(self, "seen", {n: f64(g) for n, g in flatten(gradients).items()})
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
        optimizer=Keeps(clip=1e9),
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


def test_lanes_give_results_in_order_and_the_same_ones_again() -> None:
    held = mx.arange(5) * 2.0  # never evaluated here: a plugin may hold such an array
    pool = StreamPool(3)
    for _ in range(4):
        results = pool.map(lambda i: (held * i).sum())
        assert [result.item() for result in results] == [0, 20, 40]


def test_a_failure_in_a_lane_is_told() -> None:
    pool = StreamPool(2)
    pool.map(lambda i: mx.zeros(1))
    with pytest.raises(ValueError, match="reshape"):
        pool.map(lambda i: mx.zeros(3).reshape(2))


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


# ---------------------------------------------------------------------------------------------- gpt

SEED_53M = {"layers": 8, "width": 384, "heads": 8, "hidden": 1536, "context": 512}


@pytest.mark.parametrize(("tied", "unique"), [(False, 52_990_464), (True, 33_691_776)])
def test_the_53m_student_has_exactly_so_many_parameters(tied: bool, unique: int) -> None:
    model = Gpt(Gpt.Options(**SEED_53M, tied=tied)).build(50257)
    assert count_parameters(model) == unique
    assert parameter_counts(model) == {"total": 52_990_464, "unique": unique}


def layer_norm(x: Array, weight: Array, bias: Array | float) -> Array:
    mean, spread = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    result: Array = (x - mean) / np.sqrt(spread + 1e-5) * weight + bias
    return result


ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def gpt2_forward(model: GPT, tokens: Array) -> Array:
    """Hidden states by the book: GPT-2's pre-norm forward, head by head, in float64."""
    shape, weights = model.config, {name: f64(value) for name, value in flatten(model.parameters()).items()}

    def linear(x: Array, name: str) -> Array:
        result: Array = x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)
        return result

    def norm(x: Array, name: str) -> Array:
        return layer_norm(x, weights[f"{name}.weight"], weights.get(f"{name}.bias", 0.0))

    length, size = tokens.shape[1], shape.width // shape.heads
    x = weights["tokens.weight"][tokens] + weights["positions.weight"][:length]
    for i in range(shape.layers):
        block = f"blocks.{i}"
        queries, keys, values = np.split(linear(norm(x, f"{block}.attention_norm"), f"{block}.attention.qkv"), 3, -1)
        seen = np.zeros_like(x)
        for head in range(shape.heads):
            cut = slice(head * size, (head + 1) * size)
            scores = queries[..., cut] @ keys[..., cut].swapaxes(1, 2) / math.sqrt(size)
            scores[:, np.triu(np.ones((length, length), bool), 1)] = -np.inf
            seen[..., cut] = softmax(scores) @ values[..., cut]
        x = x + linear(seen, f"{block}.attention.out")
        inner = ACTIVATIONS[shape.activation](linear(norm(x, f"{block}.hidden_norm"), f"{block}.up"))
        x = x + linear(inner, f"{block}.down")
    return norm(x, "norm")


@pytest.mark.parametrize(
    "shape",
    [
        GPTConfig(50, layers=3, heads=4, width=32, hidden=64, context=12),
        GPTConfig(50, layers=2, heads=1, width=8, hidden=24, context=12, tied=False, activation="gelu_tanh"),
        GPTConfig(50, layers=1, heads=8, width=16, hidden=16, context=12, bias=False, activation="relu"),
    ],
)
def test_the_forward_pass_is_gpt2s(shape: GPTConfig) -> None:
    model, tokens = lively(shape), np.random.default_rng(1).integers(0, 50, (3, 12))
    expected = gpt2_forward(model, tokens)
    np.testing.assert_allclose(f64(model(mx.array(tokens))), expected, rtol=1e-4, atol=1e-4)
    head = f64(model.tokens.weight if shape.tied else model.out.weight)
    logits = f64(Trained(model, None, 12).logits(mx.array(tokens)))  # type: ignore[arg-type]
    np.testing.assert_allclose(logits, expected @ head.T, rtol=1e-3, atol=1e-3)


def test_a_later_token_changes_nothing_before_it() -> None:
    model = lively(GPTConfig(30, layers=2, heads=2, width=16, hidden=32, context=10))
    tokens = np.random.default_rng(2).integers(0, 30, (1, 10))
    before = f64(model(mx.array(tokens)))
    for place in range(10):
        other = tokens.copy()
        other[0, place] = (other[0, place] + 1) % 30
        after = f64(model(mx.array(other)))
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert np.abs(after[:, place:] - before[:, place:]).max(axis=-1).min() > 1e-4


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rope"])
def test_more_tokens_than_the_context_are_refused_and_not_read_as_noise(positions: Any) -> None:
    model = lively(GPTConfig(30, layers=2, heads=2, width=16, hidden=32, context=10, positions=positions))
    student, whole = Trained(model, tokenizer(), 10), mx.zeros((2, 10), mx.int32)
    longer = mx.zeros((2, 11), mx.int32)
    for read in (model, student.hidden, student.logits, student.attention):
        read(whole)
        with pytest.raises(UsageError, match="has a context of 10 tokens and was given 11"):
            read(longer)


def test_a_cache_is_not_filled_beyond_the_context() -> None:
    model = lively(GPTConfig(30, layers=2, heads=2, width=16, hidden=32, context=10))
    past = model.cache([3, 5])  # padding is no part of it
    model.extend(mx.zeros((2, 13), mx.int32), past)
    with pytest.raises(UsageError, match="has a context of 10 tokens and was given 11"):
        model.extend(mx.zeros((2, 1), mx.int32), past)


def test_initialisation_is_gpt2s() -> None:
    model = GPT(GPTConfig(1000, layers=8, heads=4, width=128, hidden=512, context=256, tied=False))
    initialise(model, 5)
    for name, value in ((n, f64(v)) for n, v in flatten(model.parameters()).items()):
        if value.ndim == 1:
            assert (value == (0 if name.endswith("bias") else 1)).all(), name
            continue
        residual = name.endswith(("attention.out.weight", "down.weight"))
        spread = 0.02 / math.sqrt(16) if residual else 0.02
        assert value.std() == pytest.approx(spread, rel=0.03), name
        assert abs(value.mean()) < 5 * spread / math.sqrt(value.size), name
        assert np.abs(value).max() > 3 * spread, name  # normal, not uniform


def test_one_seed_gives_the_same_weights_and_another_gives_others() -> None:
    def weights(seed: int) -> dict[str, Array]:
        model = GPT(replace(TINY, layers=2))
        initialise(model, seed)
        return {name: f64(value) for name, value in flatten(model.parameters()).items() if value.ndim == 2}

    one, again, other = weights(7), weights(7), weights(8)
    assert all((one[name] == again[name]).all() for name in one)
    assert all((one[name] != other[name]).any() for name in one)
    twins = [name for name in one if name.endswith("qkv.weight")]
    assert (one[twins[0]] != one[twins[1]]).any()  # no two layers alike


def test_dropout_works_while_training_and_not_while_evaluating() -> None:
    model, tokens = lively(replace(TINY, dropout=0.5)), mx.array([[1, 2, 3]])
    np.testing.assert_array_equal(f64(model(tokens)), f64(model(tokens)))
    np.testing.assert_allclose(f64(model(tokens)), gpt2_forward(model, np.array([[1, 2, 3]])), atol=1e-4)
    model.train()
    mx.random.seed(0)
    first, second = f64(model(tokens)), f64(model(tokens))
    mx.random.seed(0)
    assert (first != second).any()
    np.testing.assert_array_equal(first, f64(model(tokens)))


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


# ---------------------------------------------------------------------------------------------- optimizer


class PlainAdamW:
    """AdamW as its paper has it, in float64, over a plain dict."""

    def __init__(self, betas: tuple[float, float], epsilon: float, decay: float, clip: float) -> None:
        self.betas, self.epsilon, self.decay, self.clip = betas, epsilon, decay, clip
        self.first: dict[str, Any] = {}
        self.second: dict[str, Any] = {}

    def step(
        self, weights: dict[str, Array], slopes: dict[str, Array], rate: float, t: int, decayed: set[str]
    ) -> float:
        norm = math.sqrt(sum(float((g**2).sum()) for g in slopes.values()))
        shrink = min(1.0, self.clip / norm)
        for name, slope in slopes.items():
            g = slope * shrink
            self.first[name] = self.betas[0] * self.first.get(name, 0) + (1 - self.betas[0]) * g
            self.second[name] = self.betas[1] * self.second.get(name, 0) + (1 - self.betas[1]) * g**2
            m = self.first[name] / (1 - self.betas[0] ** t)
            v = self.second[name] / (1 - self.betas[1] ** t)
            change = m / (np.sqrt(v) + self.epsilon)
            if name in decayed:
                change = change + self.decay * weights[name]
            weights[name] = weights[name] - rate * change
        return norm


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.8, 0.999), (0.0, 0.0)])
def test_adamw_is_an_independent_adamw_over_twenty_steps(betas: tuple[float, float]) -> None:
    shapes = {
        "blocks.0.up.weight": (3, 4),
        "blocks.0.up.bias": (3,),
        "norm.weight": (4,),
        "norm.bias": (4,),
        "positions.weight": (5, 4),
        "tokens.weight": (6, 4),
    }
    weights = {name: random_array(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    ours = unflatten({name: mx.array(value) for name, value in weights.items()})
    theirs = {name: value.astype(np.float64) for name, value in weights.items()}
    optimizer, plain = AdamW(betas, 1e-8, 0.1, 1.0), PlainAdamW(betas, 1e-8, 0.1, 1.0)
    moments = optimizer.initial_moments(ours)
    clipped = 0
    for step in range(20):
        size = 10.0 ** (step % 5 - 3)
        slopes = {n: random_array(100 * step + i, *s, scale=size) for i, (n, s) in enumerate(shapes.items())}
        rate = LearningRateSchedule(1e-2, 1e-3, 5, 20)(step)
        gradients = unflatten({name: mx.array(value) for name, value in slopes.items()})
        ours, moments, norm = optimizer.update(ours, gradients, moments, mx.array(rate), mx.array(step))
        wide = {name: value.astype(np.float64) for name, value in slopes.items()}
        expected = plain.step(theirs, wide, rate, step + 1, {"blocks.0.up.weight", "tokens.weight"})
        assert norm.item() == pytest.approx(expected, rel=1e-5)
        clipped += expected > 1
        for name, value in flatten(ours).items():
            np.testing.assert_allclose(f64(value), theirs[name], rtol=2e-5, atol=2e-6, err_msg=f"{name} {step}")
    assert 0 < clipped < 20


def test_neither_norms_nor_biases_nor_positions_decay() -> None:
    model = lively(TINY)
    before = {name: f64(value) for name, value in flatten(model.parameters()).items()}
    still = tree_map(mx.zeros_like, model.parameters())
    optimizer = AdamW(weight_decay=0.5)
    after, _, _ = optimizer.update(
        model.trainable_parameters(), still, optimizer.initial_moments(model.parameters()), mx.array(0.1), mx.array(0)
    )
    shrunk = {name for name, value in flatten(after).items() if (f64(value) != before[name]).any()}
    assert shrunk == {
        "tokens.weight",
        *(f"blocks.0.{part}.weight" for part in ("attention.qkv", "attention.out", "up", "down")),
    }
    assert f64(flatten(after)["tokens.weight"]) == pytest.approx(0.95 * before["tokens.weight"], rel=1e-5)


def test_the_learning_rate_warms_up_peaks_and_ends_near_its_floor() -> None:
    schedule = LearningRateSchedule(peak=1.0, floor=0.1, warmup=10, steps=110)
    assert [schedule(step) for step in range(10)] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert schedule(10) == 1.0
    assert schedule(60) == pytest.approx(0.55)  # half of the way down, half of the cosine
    assert schedule(110) == pytest.approx(0.1)
    assert schedule(1000) == pytest.approx(0.1)


def test_the_learning_rate_falls_along_its_shape() -> None:
    rates = {shape: LearningRateSchedule(1.0, 0.0, 10, 110, shape) for shape in SCHEDULES}
    assert [rates["linear"](step) for step in (9, 10, 60, 110)] == pytest.approx([1, 1, 0.5, 0])
    assert [rates["constant"](step) for step in (4, 10, 60, 110)] == pytest.approx([0.5, 1, 1, 1])
    assert [rates["warm-stable-decay"](step) for step in (10, 90, 100, 110)] == pytest.approx([1, 1, 0.5, 0])


@given(st.floats(1e-6, 1), st.floats(0, 1), st.integers(0, 50), st.integers(1, 200), st.sampled_from(SCHEDULES))
def test_the_learning_rate_never_leaves_its_bounds(
    peak: float, share: float, warmup: int, steps: int, shape: str
) -> None:
    schedule = LearningRateSchedule(peak, peak * share, warmup, steps, shape)
    rates = [schedule(step) for step in range(steps)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    assert all(later <= rate + 1e-12 for rate, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert all(rate >= peak * share * (1 - 1e-12) for rate in rates[warmup:])


# ---------------------------------------------------------------------------------------------- score


@given(st.integers(0, 300), st.integers(1, 70))
def test_every_token_is_counted_exactly_once(length: int, context: int) -> None:
    tokens, counts = list(range(1000, 1000 + length + 1)), Counter[int]()
    for window in scoring_windows(3, tokens, context):
        assert window.document == 3
        assert 0 < len(window.inputs) == len(window.targets) <= context
        assert [token + 1 for token in window.inputs] == list(window.targets)
        first = len(window.targets) - window.count
        assert window.targets[0] == 1001 or first >= context // 2  # what counts has half a context before it
        counts.update(window.targets[first:])
    assert counts == Counter(tokens[1:])


def full_nats(model: GPT, tokens: Sequence[int]) -> float:
    logits = gpt2_forward(model, np.array([tokens[:-1]]))[0] @ f64(model.head[0]).T
    return float(-log_softmax(logits)[np.arange(len(tokens) - 1), tokens[1:]].sum())


def test_a_document_that_fits_is_scored_as_a_whole() -> None:
    model, random = small_model(), np.random.default_rng(3)
    documents = [random.integers(0, 23, n).tolist() for n in (2, 5, 9, 3, 9, 4)]
    assert document_nlls(model, 8, documents) == pytest.approx([full_nats(model, d) for d in documents], rel=1e-4)


def test_a_document_that_does_not_fit_is_scored_window_by_window() -> None:
    model, context = small_model(), 8
    tokens = np.random.default_rng(5).integers(0, 23, 40).tolist()
    expected, done, begin = 0.0, 0, 0
    while done < 39:
        end = min(begin + context, 39)
        logits = gpt2_forward(model, np.array([tokens[begin:end]]))[0] @ f64(model.head[0]).T
        surprise = -log_softmax(logits)[np.arange(end - begin), tokens[begin + 1 : end + 1]]
        expected += surprise[done - begin :].sum()
        done, begin = end, begin + context // 2
    assert document_nlls(model, context, [tokens]) == pytest.approx([expected], rel=1e-4)


def test_the_sum_of_nats_does_not_depend_on_batching(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    documents = [random.integers(0, 23, n).tolist() for n in random.integers(1, 60, 25)]
    one_by_one = [document_nlls(small_model(), 8, [document])[0] for document in documents]
    for room in (1, 20, 100, 8192):
        monkeypatch.setattr("distillkit.student.generation.score.BATCH_TOKENS", room)
        assert document_nlls(small_model(), 8, documents) == pytest.approx(one_by_one, rel=1e-5, abs=1e-5)


def test_a_text_is_scored_with_its_end() -> None:
    end = tokenizer().end_of_text
    for text, scored in zip(["", *TEXTS], writer().score(["", *TEXTS]), strict=True):
        tokens = [end, *tokenizer().encode(text), end]
        assert (scored.tokens, scored.bytes) == (len(tokens) - 1, len(text.encode()))
        if len(tokens) <= 13:
            assert scored.nats == pytest.approx(full_nats(writer().model, tokens), rel=1e-4)  # type: ignore[arg-type]


def test_a_student_shows_its_attention_or_says_that_it_does_not() -> None:
    tokens = mx.array([[writer().tokenizer.end_of_text, *writer().tokenizer.encode(TEXTS[0])[:8]]])
    for weights in map(f64, writer().attention(tokens)):
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
        assert not np.triu(weights, 1).any()  # nobody looks ahead
        assert weights[:, :, 0, 0] == pytest.approx(1)
    with pytest.raises(UsageError, match="does not show its attention"):
        Trained(nn.Linear(2, 2), tokenizer(), 8).attention(tokens)


# ---------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_blocks_computed_again_have_the_same_gradients_in_less_memory(dropout: float) -> None:
    model = GPT(GPTConfig(64, layers=8, heads=4, width=64, hidden=256, context=128, dropout=dropout))
    tokens = mx.array(np.random.default_rng(0).integers(0, 64, (8, 128)))

    def loss(model: GPT) -> mx.array:
        return (model(tokens) ** 2 * mx.arange(64)).mean()

    def measured(again: bool) -> tuple[dict[str, mx.array], int]:
        model.train()
        model.recompute = again
        mx.random.seed(3)
        mx.eval(model.parameters())
        mx.reset_peak_memory()
        _, slopes = nn.value_and_grad(model, loss)(model)
        mx.eval(slopes)
        return flatten(slopes), mx.get_peak_memory()

    (kept, much), (again, little) = measured(False), measured(True)
    for name, slope in kept.items():
        np.testing.assert_allclose(f64(again[name]), f64(slope), rtol=1e-5, atol=1e-6, err_msg=name)
    assert little < 0.85 * much
