"""Optimizers: AdamW beside float64, those of MLX beside MLX itself, and two of them sharing a network."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import numpy as np
import pytest
from distillkit_plugins.optimizers import FIXED, MlxOptimizer, known_classes
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_map

from distillkit import Optimizer, OptimizerStep
from distillkit.core.errors import CorruptError
from distillkit.recipe.schedules import SCHEDULES
from distillkit.student.model.gpt import GPTConfig
from distillkit.student.training.optimizers import AdamW, LearningRateSchedule, OptimizerGroup, flatten, unflatten
from support.cli_process import program
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
    train = {"betas": betas, "epsilon": 1e-8, "weight_decay": 0.1, "clip": 1.0}
    optimizer, plain = OptimizerGroup(train=train), PlainAdamW(betas, 1e-8, 0.1, 1.0)
    state = optimizer.initial_state(ours)
    clipped = 0
    for step in range(20):
        size = 10.0 ** (step % 5 - 3)
        slopes = {n: random_array(100 * step + i, *s, scale=size) for i, (n, s) in enumerate(shapes.items())}
        rate = LearningRateSchedule(1e-2, 1e-3, 5, 20)(step)
        gradients = unflatten({name: mx.array(value) for name, value in slopes.items()})
        ours, state, norm = optimizer.update(ours, gradients, state, mx.array(rate), mx.array(step))
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
    optimizer = OptimizerGroup(train={"weight_decay": 0.5})
    after, _, _ = optimizer.update(
        model.trainable_parameters(), still, optimizer.initial_state(model.parameters()), mx.array(0.1), mx.array(0)
    )
    shrunk = {name for name, value in flatten(after).items() if (f64(value) != before[name]).any()}
    assert shrunk == {
        "tokens.weight",
        *(f"blocks.0.{part}.weight" for part in ("attention.qkv", "attention.out", "up", "down")),
    }
    assert f64(flatten(after)["tokens.weight"]) == pytest.approx(0.95 * before["tokens.weight"], rel=1e-5)


# ---------------------------------------------------------------------------------------------- learning rate


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


# ---------------------------------------------------------------------------------------------- two optimizers


class SignDescent(Optimizer):
    """Moves matrices by the sign of the gradient, and keeps the number of its updates."""

    name = "sign"

    def accepts(self, name: str, parameter: mx.array) -> bool:
        return parameter.ndim == 2

    def initial_state(self, parameters: Any) -> Any:
        return {"updates": {name: mx.zeros(()) for name in parameters}}

    def update(self, parameters: Any, gradients: Any, state: Any, step: OptimizerStep) -> Any:
        updated = {name: p - step.learning_rate * mx.sign(gradients[name]) for name, p in parameters.items()}
        return updated, {"updates": {name: count + 1 for name, count in state["updates"].items()}}


WEIGHTS = {"a.weight": (3, 4), "a.bias": (3,), "b.weight": (4, 3)}


def gradients_of(step: int) -> dict[str, mx.array]:
    return {name: mx.array(random_array(10 * step + i, *shape)) for i, (name, shape) in enumerate(WEIGHTS.items())}


def test_adamw_updates_what_the_other_optimizer_does_not_accept() -> None:
    train = {"learning_rate": 0.01, "clip": 1e9}
    both, alone = OptimizerGroup(SignDescent(), train, learning_rate=0.05), OptimizerGroup(train=train)
    parameters = unflatten({name: mx.array(random_array(i, *shape)) for i, (name, shape) in enumerate(WEIGHTS.items())})
    state, adam_state = both.initial_state(parameters), alone.initial_state(parameters)
    assert sorted(state) == ["first.a.bias", "second.a.bias", "updates.a.weight", "updates.b.weight"]
    mixed = adam = parameters
    for step in range(3):
        gradients, rate = unflatten(gradients_of(step)), mx.array(0.01 / (step + 1))
        mixed, state, _ = both.update(mixed, gradients, state, rate, mx.array(step))
        adam, adam_state, _ = alone.update(adam, gradients, adam_state, rate, mx.array(step))
    moved = sum(0.05 / (step + 1) * np.sign(f64(gradients_of(step)["a.weight"])) for step in range(3))
    np.testing.assert_allclose(f64(mixed["a"]["weight"]), f64(parameters["a"]["weight"]) - moved, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(f64(mixed["a"]["bias"]), f64(adam["a"]["bias"]))
    assert state["updates.b.weight"].item() == 3


def test_streams_change_no_bit() -> None:
    parameters = unflatten({name: mx.array(random_array(i, *shape)) for i, (name, shape) in enumerate(WEIGHTS.items())})
    streams = {"a.weight": mx.new_stream(mx.cpu), "b.weight": mx.new_stream(mx.cpu)}
    results = []
    for mapping in ({}, streams):
        group = OptimizerGroup(SignDescent(), {"learning_rate": 0.01})
        updated, _, norm = group.update(
            parameters, unflatten(gradients_of(0)), group.initial_state(parameters), mx.array(0.1), mx.array(0), mapping
        )
        results.append({**{name: f64(value) for name, value in flatten(updated).items()}, "norm": f64(norm)})
    assert all(np.array_equal(results[0][name], results[1][name]) for name in results[0])


def test_a_state_of_another_optimizer_is_refused() -> None:
    parameters = {"weight": mx.ones((2, 2))}
    saved = OptimizerGroup().initial_state(parameters)
    assert OptimizerGroup().restore(parameters, saved).keys() == saved.keys()
    with pytest.raises(CorruptError, match=r"does not fit the optimizer: first\.weight"):
        OptimizerGroup(SignDescent()).restore(parameters, saved)


# ---------------------------------------------------------------------------------------------- mlx.optimizers


@pytest.mark.parametrize("name", known_classes())
def test_an_optimizer_of_mlx_does_what_it_does_in_mlx(name: str) -> None:
    peer = getattr(mlx.optimizers, name)(learning_rate=0.01, **FIXED.get(name, {}))
    ours = OptimizerGroup(MlxOptimizer(MlxOptimizer.Options.model_validate({"class": name})), {"clip": 1e9})
    model = nn.Linear(4, 3)
    parameters = model.parameters()
    state = ours.initial_state(parameters)
    for step in range(4):
        gradients = {"weight": mx.array(random_array(step, 3, 4)), "bias": mx.array(random_array(50 + step, 3))}
        peer.update(model, gradients)
        parameters, state, _ = ours.update(parameters, gradients, state, mx.array(0.01), mx.array(step))
        for key, value in flatten(parameters).items():
            np.testing.assert_array_equal(f64(value), f64(model.parameters()[key]), err_msg=f"{key}, step {step}")


RECIPE = """
extends = "quickstart_alone"
name = "tiny"
data = {{ stories = 60 }}
student = {{ layers = 1, heads = 2, width = 16, context = 16 }}
sampling = {{ count = 0 }}
[train]
steps = {steps}
schedule = "constant"
warmup = 1
evaluate_every = 2
checkpoint_every = 2
batch_size = 2
learning_rate = 1e-3
[optimizer]
name = "mlx"
class = "Lion"
learning_rate = 1e-4
"""


def run(folder: Path, *words: str) -> Any:
    return program(list(words), folder, {**os.environ, "DISTILLKIT_HOME": str(folder)})


@pytest.mark.slow
def test_a_run_with_another_optimizer_resumes_bit_for_bit_and_refuses_a_change_of_optimizer(tmp_path: Path) -> None:
    hashes = []
    for name, steps in (("whole", [6]), ("parts", [2, 6])):
        home = tmp_path / name
        home.mkdir()
        (home / "tiny.toml").write_text(RECIPE.format(steps=6))
        for number, until in enumerate(steps):
            more = ["--resume"] if number else []
            done = run(home, "run", "tiny.toml", "--set", f"train.steps={until}", "--until", "train", *more)
            assert done.returncode == 0, done.stderr
        hashes.append(json.loads((home / "reports/tiny/1/run.json").read_text())["training"]["weights_sha256"])
    refused = run(
        tmp_path / "whole", "run", "tiny.toml", "--resume", "--set", "optimizer.class=Adam", "--set", "train.steps=8"
    )
    assert refused.returncode == 2, refused.stderr
    assert "the optimizer changed since its checkpoint at step 6" in refused.stderr
    assert hashes[0] == hashes[1]


def test_an_unknown_class_and_a_rate_among_the_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of AdaDelta"):
        MlxOptimizer.Options.model_validate({"class": "Lyon"})
    with pytest.raises(ValueError, match="the learning rate is set by"):
        MlxOptimizer.Options.model_validate({"class": "SGD", "arguments": {"learning_rate": 1.0}})
    with pytest.raises(ValueError, match="Lion has no argument 'momentum', expected one of betas, weight_decay"):
        MlxOptimizer.Options.model_validate({"class": "Lion", "arguments": {"momentum": 0.9}})


def test_adamw_accepts_every_parameter() -> None:
    assert all(AdamW().accepts(name, mx.zeros(shape)) for name, shape in WEIGHTS.items())
