"""AdamW and learning rate schedules against independent implementations."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_map

from distillkit.recipe.schedules import SCHEDULES
from distillkit.student.model.gpt import GPTConfig
from distillkit.student.training.optimizers import AdamW, LearningRateSchedule, flatten, unflatten
from support.students import f64, lively, random_array

Array = np.ndarray[Any, Any]
TINY = GPTConfig(vocab_size=13, layers=1, heads=2, width=8, hidden=16, context=6)


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
