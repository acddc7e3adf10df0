"""Checks of optimizers: they update what they accept, from their arguments alone, and their state can be saved.

The parameters are those of a small network: matrices, vectors and an embedding. Does not judge how fast one learns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from ..plugins.interfaces import Optimizer, OptimizerStep
from .framework import Case, expect, max_difference, run_checks

TRAIN = {"learning_rate": 1e-2, "betas": [0.9, 0.95], "epsilon": 1e-8, "weight_decay": 0.1, "clip": 1.0}
RATE = 1e-2
TOLERANCE = 1e-5  # between an update of all parameters and updates of parts: sums may be ordered differently
SHAPES = {
    "embedding.weight": (11, 8),
    "layers.0.attention.qkv.weight": (24, 8),
    "layers.0.mlp.up.weight": (16, 8),
    "layers.0.mlp.up.bias": (16,),
    "layers.0.norm.weight": (8,),
}

Arrays = dict[str, mx.array]
State = dict[str, Arrays]


def check_optimizer(cls: type[Optimizer], options: Mapping[str, Any] | None = None) -> list[str]:
    """Check an optimizer. `options` are those of a recipe's [optimizer] table."""
    checks = [
        chooses_its_parameters,
        names_its_state,
        returns_what_it_was_given,
        leaves_its_arguments_unchanged,
        is_repeatable,
        continues_from_a_saved_state,
        updates_parts_like_the_whole,
        multiplies_gradients_by_the_scale,
        changes_nothing_at_a_rate_of_zero,
        minimises_a_quadratic,
    ]
    return run_checks("optimizers", cls, options, checks)


def build_optimizer(case: Case) -> Optimizer:
    """A new optimizer that knows a [train] table."""
    optimizer: Optimizer = case.build()
    optimizer.train = TRAIN
    return optimizer


def random_arrays(seed: int) -> Arrays:
    """An array of every shape."""
    generator = np.random.default_rng(seed)
    return {name: mx.array(generator.normal(size=shape).astype(np.float32)) for name, shape in SHAPES.items()}


def accepted(optimizer: Optimizer, arrays: Arrays) -> Arrays:
    """The arrays of the parameters that the optimizer updates."""
    parameters = random_arrays(0)
    return {name: value for name, value in arrays.items() if optimizer.accepts(name, parameters[name])}


def step_of(number: int, rate: float = RATE, scale: float = 1.0) -> OptimizerStep:
    """The arguments of a step."""
    return OptimizerStep(mx.array(rate), mx.array(number), mx.array(scale))


def run_steps(optimizer: Optimizer, parameters: Arrays, state: State, steps: range) -> tuple[Arrays, State]:
    """Parameters and state after some steps with random gradients."""
    for number in steps:
        gradients = accepted(optimizer, random_arrays(100 + number))
        parameters, state = optimizer.update(parameters, gradients, state, step_of(number))
        mx.eval(parameters, state)
    return parameters, state


def begin(case: Case) -> tuple[Optimizer, Arrays, State]:
    """A new optimizer, the parameters that it accepts, and their state."""
    optimizer = build_optimizer(case)
    parameters = accepted(optimizer, random_arrays(0))
    return optimizer, parameters, optimizer.initial_state(parameters)


def difference(one: Arrays, other: Arrays) -> float:
    """The largest absolute difference between arrays of the same names."""
    return max(max_difference(one[name], other[name]) for name in one)


def sum_of_squares(arrays: Arrays) -> float:
    """The squared L2 norm of all arrays taken as one vector."""
    return float(sum(np.square(np.array(value)).sum() for value in arrays.values()))


# ---------------------------------------------------------------------------------------------- checks


def chooses_its_parameters(case: Case) -> None:
    """`accepts` returns True or False, and True for at least one parameter of a usual network."""
    optimizer = build_optimizer(case)
    answers = {name: optimizer.accepts(name, value) for name, value in random_arrays(0).items()}
    wrong = {name: answer for name, answer in answers.items() if not isinstance(answer, bool)}
    expect(not wrong, f"accepts returned {wrong}", "Return True or False.")
    expect(any(answers.values()), f"it accepts none of {', '.join(answers)}", "Accept at least the matrices.")


def names_its_state(case: Case) -> None:
    """The state is {slot: {parameter: array}}, with plain names of slots and known parameters."""
    _, parameters, state = begin(case)
    expect(isinstance(state, dict), f"the state is a {type(state).__name__}", "Return {slot: {parameter: array}}.")
    for slot, arrays in state.items():
        remedy = "Name a slot with letters, digits and underscores: checkpoints save arrays as slot.parameter."
        expect(isinstance(slot, str) and slot.isidentifier(), f"a slot is named {slot!r}", remedy)
        unknown = sorted(set(arrays) - set(parameters))
        expect(not unknown, f"the slot {slot!r} holds {unknown}", "Use the names of the parameters.")
        other = [name for name, value in arrays.items() if not isinstance(value, mx.array)]
        expect(not other, f"the slot {slot!r} holds no array for {other}", "Checkpoints save arrays only.")


def returns_what_it_was_given(case: Case) -> None:
    """The new parameters and state have the names and shapes of the old ones."""
    optimizer, parameters, state = begin(case)
    updated, new_state = run_steps(optimizer, parameters, state, range(1))
    expect(
        {name: value.shape for name, value in updated.items()} == {name: v.shape for name, v in parameters.items()},
        f"it returned { ({name: value.shape for name, value in updated.items()}) }",
        "Return every parameter that was passed, and no other.",
    )
    names = [
        {slot: {n: v.shape for n, v in arrays.items()} for slot, arrays in one.items()} for one in (state, new_state)
    ]
    expect(names[0] == names[1], f"the state changed from {names[0]} to {names[1]}", "Keep slots, names and shapes.")


def leaves_its_arguments_unchanged(case: Case) -> None:
    """It does not modify the dictionaries that it is given."""
    optimizer, parameters, state = begin(case)
    gradients = accepted(optimizer, random_arrays(1))
    passed = {"parameters": parameters, "gradients": gradients, **state}
    before = {name: dict(arrays) for name, arrays in passed.items()}
    optimizer.update(parameters, gradients, state, step_of(0))
    same = all(
        passed[key].keys() == arrays.keys() and all(passed[key][name] is value for name, value in arrays.items())
        for key, arrays in before.items()
    )
    expect(same, "it changed a dictionary that it was given", "Copy it first: dict(parameters).")


def is_repeatable(case: Case) -> None:
    """Two new instances do the same, bit for bit."""
    first, second = (run_steps(*begin(case), range(3))[0] for _ in range(2))
    expect(difference(first, second) == 0, "two instances came to different parameters", "Draw no random numbers.")


def continues_from_a_saved_state(case: Case) -> None:
    """A new instance that is given the state of another continues bit for bit."""
    optimizer, parameters, state = begin(case)
    parameters, state = run_steps(optimizer, parameters, state, range(3))
    whole, _ = run_steps(optimizer, parameters, state, range(3, 6))
    resumed, _ = run_steps(build_optimizer(case), parameters, state, range(3, 6))
    expect(
        difference(whole, resumed) == 0,
        "a new instance does not continue like the one that it replaces",
        "Keep everything that changes from step to step in the state, or compute it from step.number.",
    )


def updates_parts_like_the_whole(case: Case) -> None:
    """Parameters that are passed in several calls are updated as in one: the host calls it once for each CPU stream."""
    optimizer, parameters, state = begin(case)
    whole, _ = run_steps(optimizer, parameters, state, range(1))
    gradients = accepted(optimizer, random_arrays(100))
    for name in parameters:
        part_state = {slot: {name: arrays[name]} for slot, arrays in state.items() if name in arrays}
        part, _ = optimizer.update({name: parameters[name]}, {name: gradients[name]}, part_state, step_of(0))
        expect(
            max_difference(part[name], whole[name]) <= TOLERANCE,
            f"{name} is updated differently when it is passed alone",
            "Do not mix parameters: clipping by the global norm is the host's work.",
        )


def multiplies_gradients_by_the_scale(case: Case) -> None:
    """A scale of 1/2 does what gradients of half the size do."""
    optimizer, parameters, state = begin(case)
    gradients = accepted(optimizer, random_arrays(1))
    halves = {name: value / 2 for name, value in gradients.items()}
    clipped, clipped_state = optimizer.update(parameters, gradients, state, step_of(0, scale=0.5))
    expected, expected_state = optimizer.update(parameters, halves, state, step_of(0))
    worst = max(
        [difference(clipped, expected)]
        + [difference(clipped_state[slot], expected_state[slot]) for slot in expected_state if expected_state[slot]]
    )
    expect(worst <= TOLERANCE, "gradients are not multiplied by step.gradient_scale", "Multiply each gradient by it.")


def changes_nothing_at_a_rate_of_zero(case: Case) -> None:
    """With a learning rate of 0, the parameters stay as they are."""
    optimizer, parameters, state = begin(case)
    updated, _ = optimizer.update(parameters, accepted(optimizer, random_arrays(1)), state, step_of(0, rate=0.0))
    expect(difference(updated, parameters) == 0, "a learning rate of 0 changes parameters", "Use step.learning_rate.")


def minimises_a_quadratic(case: Case) -> None:
    """After 100 steps on the loss |x|^2 / 2 the loss is smaller than before."""
    optimizer, parameters, state = begin(case)
    before = sum_of_squares(parameters)
    for number in range(100):
        parameters, state = optimizer.update(parameters, parameters, state, step_of(number))
        mx.eval(parameters, state)
    after = sum_of_squares(parameters)
    expect(after < before, f"the loss went from {before:.2f} to {after:.2f}", "Move against the gradient.")
