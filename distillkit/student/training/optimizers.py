"""AdamW, the group of a network's optimizers with gradient clipping, and the learning-rate schedule.

Knows nothing of losses or batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ...core.errors import CorruptError
from ...plugins.interfaces import Optimizer, OptimizerStep
from ...recipe.schedules import remaining

K = TypeVar("K")
Arrays = dict[str, mx.array]
State = dict[str, dict[str, mx.array]]  # slot, then parameter
Tree = Any  # nested dicts and lists of arrays, as in `mlx.nn.Module.parameters()`
DECAY_SHARE = 0.2  # share of the steps after the warm-up in which warm-stable-decay decays
NO_STREAMS: Mapping[str, mx.Stream] = MappingProxyType({})


@dataclass(frozen=True)
class LearningRateSchedule:
    """Linear warm-up to `peak`, then decay to `floor`.

    `shape` is that of the decay: cosine, linear, constant, or warm-stable-decay (linear, over the last fifth).
    """

    peak: float
    floor: float
    warmup: int
    steps: int
    shape: str = "cosine"

    def __call__(self, step: int) -> float:
        """The learning rate of a step; the first step is 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        if self.shape == "warm-stable-decay":
            return self.floor + (self.peak - self.floor) * min(1.0, (1 - progress) / DECAY_SHARE)
        return self.floor + (self.peak - self.floor) * float(remaining(self.shape, progress))


class AdamW(Optimizer):
    """AdamW, with the betas, epsilon and weight decay of the [train] table. Matrices decay, all else does not."""

    name = "adamw"

    @property
    def betas(self) -> tuple[float, float]:
        """The decay rates of the first and second moment."""
        first, second = self.train.get("betas", (0.9, 0.95))
        return first, second

    def initial_state(self, parameters: Mapping[str, mx.array]) -> State:
        """The first and second moment of every parameter, all zeros."""
        return {
            slot: {name: mx.zeros_like(value) for name, value in parameters.items()} for slot in ("first", "second")
        }

    def update(
        self,
        parameters: Mapping[str, mx.array],
        gradients: Mapping[str, mx.array],
        state: Mapping[str, Mapping[str, mx.array]],
        step: OptimizerStep,
    ) -> tuple[Arrays, State]:
        """The new parameters and moments."""
        values, first, second = dict(parameters), dict(state["first"]), dict(state["second"])
        correction1, correction2 = (1 - beta ** (step.number + 1) for beta in self.betas)
        update_first, update_second, update_value = self._kernels
        weight_decay = self.train.get("weight_decay", 0.1)
        scale, rate = step.gradient_scale, step.learning_rate
        for name, value in values.items():
            decay = mx.array(weight_decay if is_decayed(name, value) else 0.0)
            first[name] = update_first(first[name], gradients[name], scale)
            second[name] = update_second(second[name], gradients[name], scale)
            values[name] = update_value(value, first[name], second[name], rate, correction1, correction2, decay)
        return values, {"first": first, "second": second}

    @cached_property
    def _kernels(self) -> tuple[Callable[..., mx.array], ...]:
        """Compiled functions that update the first moment, the second moment and the parameters, each in place.

        Each takes one pass over memory if MLX finds a C++ compiler, otherwise a dozen. MLX could not run a single
        function for all three in place.
        """
        beta1, beta2 = self.betas
        epsilon: float = self.train.get("epsilon", 1e-8)

        def update_first(m: mx.array, grad: mx.array, scale: mx.array) -> mx.array:
            return beta1 * m + (1 - beta1) * (grad * scale)

        def update_second(v: mx.array, grad: mx.array, scale: mx.array) -> mx.array:
            grad = grad * scale
            return beta2 * v + (1 - beta2) * grad * grad

        def update_value(value: mx.array, m: mx.array, v: mx.array, rate: mx.array, *scalars: mx.array) -> mx.array:
            correction1, correction2, decay = scalars
            change = (m / correction1) / (mx.sqrt(v / correction2) + epsilon) + decay * value
            return value - rate * change

        return mx.compile(update_first), mx.compile(update_second), mx.compile(update_value)


class OptimizerGroup:
    """A network's optimizers: the recipe's, and AdamW for the parameters that it does not accept.

    Clips by the global gradient norm over all parameters, and spreads the parameters over the CPU streams.
    """

    def __init__(
        self,
        chosen: Optimizer | None = None,
        train: Mapping[str, Any] | None = None,
        learning_rate: float | None = None,
    ) -> None:
        """`train` is the [train] table, and `learning_rate` the chosen optimizer's own peak, if it has one."""
        self.train = dict(train or {})
        self.chosen, self.rest = chosen or AdamW(), AdamW()
        self.chosen.train = self.rest.train = self.train
        self.clip: float = self.train.get("clip", 1.0)
        self.rate_ratio = 1.0 if learning_rate is None else learning_rate / self.train["learning_rate"]

    def _owners(self, parameters: Mapping[str, mx.array]) -> dict[str, Optimizer]:
        """The optimizer of each parameter."""
        if isinstance(self.chosen, AdamW):
            return dict.fromkeys(parameters, self.chosen)
        return {
            name: self.chosen if self.chosen.accepts(name, value) else self.rest for name, value in parameters.items()
        }

    def initial_state(self, parameters: Tree) -> Arrays:
        """The state before the first step, as checkpoints save it: arrays named "slot.parameter"."""
        arrays = flatten(parameters)
        state = Arrays()
        for optimizer, names in _grouped(self._owners(arrays)).items():
            for slot, values in optimizer.initial_state({name: arrays[name] for name in names}).items():
                state |= {f"{slot}.{name}": value for name, value in values.items()}
        return state

    def restore(self, parameters: Tree, saved: Mapping[str, mx.array]) -> Arrays:
        """The state that a checkpoint holds."""
        expected = self.initial_state(parameters)
        if expected.keys() != saved.keys():
            name = min(expected.keys() ^ saved.keys())
            raise CorruptError(f"the checkpoint's optimizer state does not fit the optimizer: {name}")
        return {name: saved[name] for name in expected}

    def update(
        self,
        parameters: Tree,
        gradients: Tree,
        state: Arrays,
        rate: mx.array,
        step: mx.array,
        streams: Mapping[str, mx.Stream] = NO_STREAMS,
    ) -> tuple[Tree, Arrays, mx.array]:
        """The new parameters, the new state, and the global norm of the gradient before clipping.

        `streams` gives the stream on which each parameter is updated; the default stream updates the others.
        """
        values, grads, new_state = flatten(parameters), flatten(gradients), dict(state)
        norm = global_norm(grads, streams)
        scale = mx.minimum(1.0, self.clip / (norm + 1e-6)) if self.clip else mx.array(1.0)
        own_rate = rate if self.rate_ratio == 1 else rate * self.rate_ratio
        slots = _slots(state, values)
        groups = {name: (owner, streams.get(name)) for name, owner in self._owners(values).items()}
        for (optimizer, stream), names in _grouped(groups).items():
            of_group = OptimizerStep(own_rate if optimizer is self.chosen else rate, step, scale)
            with _stream_context(stream):
                updated, new_slots = optimizer.update(
                    {name: values[name] for name in names},
                    {name: grads[name] for name in names},
                    _state_of(names, slots, state),
                    of_group,
                )
            values |= updated
            new_state |= {
                f"{slot}.{name}": value for slot, arrays in new_slots.items() for name, value in arrays.items()
            }
        return unflatten(values), new_state, norm


def _grouped(keys: Mapping[str, K]) -> dict[K, list[str]]:
    """Names by their key, both in the order of their first appearance."""
    groups: dict[K, list[str]] = {}
    for name, key in keys.items():
        groups.setdefault(key, []).append(name)
    return groups


def _slots(state: Mapping[str, mx.array], parameters: Mapping[str, mx.array]) -> dict[str, list[str]]:
    """The slots of each parameter: a slot's name has no dot."""
    slots: dict[str, list[str]] = {name: [] for name in parameters}
    for key in state:
        slot, _, name = key.partition(".")
        slots[name].append(slot)
    return slots


def _state_of(names: list[str], slots: Mapping[str, list[str]], state: Mapping[str, mx.array]) -> State:
    """The part of the state that belongs to some parameters."""
    part: State = {}
    for name in names:
        for slot in slots[name]:
            part.setdefault(slot, {})[name] = state[f"{slot}.{name}"]
    return part


def is_decayed(path: str, value: mx.array) -> bool:
    """Whether weight decay applies: to matrices, but not to norms and biases (vectors) or position embeddings."""
    return value.ndim >= 2 and "positions" not in path


def global_norm(arrays: Mapping[str, mx.array], streams: Mapping[str, mx.Stream] = NO_STREAMS) -> mx.array:
    """The L2 norm of all arrays taken as one vector."""
    squares = []
    for name, value in arrays.items():
        with _stream_context(streams.get(name)):
            row = value.reshape(-1)
            squares.append(row @ row)
    return mx.sqrt(mx.stack(squares).sum())


def _stream_context(stream: mx.Stream | None) -> AbstractContextManager[Any]:
    return nullcontext() if stream is None else mx.stream(stream)


def flatten(tree: Tree) -> dict[str, mx.array]:
    """The arrays of a tree by their dotted path."""
    return dict(tree_flatten(tree))


def unflatten(arrays: dict[str, mx.array]) -> Tree:
    """The inverse of `flatten`. Parts of a tree without arrays are lost."""
    return tree_unflatten(list(arrays.items()))
