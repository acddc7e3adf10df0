"""AdamW with gradient clipping, and the learning-rate schedule. Knows nothing of losses or batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_map_with_path, tree_unflatten

from ...recipe.schedules import remaining

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


@dataclass(frozen=True)
class AdamW:
    """AdamW: Adam with decoupled weight decay, after clipping by the global gradient norm.

    Norms, biases and position embeddings are not decayed.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0

    def initial_moments(self, parameters: Tree) -> Tree:
        """The first and second moment of every parameter, all zeros."""
        return {name: tree_map(mx.zeros_like, parameters) for name in ("first", "second")}

    def update(
        self,
        parameters: Tree,
        gradients: Tree,
        moments: Tree,
        rate: mx.array,
        step: mx.array,
        streams: Mapping[str, mx.Stream] = NO_STREAMS,
    ) -> tuple[Tree, Tree, mx.array]:
        """The new parameters, the new moments, and the global norm of the gradient before clipping.

        `streams` gives the stream on which each parameter is updated; the default stream updates the others.
        """
        values, grads = flatten(parameters), flatten(gradients)
        first, second = flatten(moments["first"]), flatten(moments["second"])
        norm = global_norm(grads, streams)
        scale = mx.minimum(1.0, self.clip / (norm + 1e-6)) if self.clip else mx.array(1.0)
        correction1, correction2 = (1 - beta ** (step + 1) for beta in self.betas)
        update_first, update_second, update_value = self._kernels
        for name, value in values.items():
            decay = mx.array(self.weight_decay if is_decayed(name, value) else 0.0)
            with _stream_context(streams.get(name)):
                first[name] = update_first(first[name], grads[name], scale)
                second[name] = update_second(second[name], grads[name], scale)
                values[name] = update_value(value, first[name], second[name], rate, correction1, correction2, decay)
        return unflatten(values), {"first": unflatten(first), "second": unflatten(second)}, norm

    @cached_property
    def _kernels(self) -> tuple[Callable[..., mx.array], ...]:
        """Compiled functions that update the first moment, the second moment and the parameters, each in place.

        Each takes one pass over memory if MLX finds a C++ compiler, otherwise a dozen. MLX could not run a single
        function for all three in place.
        """
        beta1, beta2 = self.betas

        def update_first(m: mx.array, grad: mx.array, scale: mx.array) -> mx.array:
            return beta1 * m + (1 - beta1) * (grad * scale)

        def update_second(v: mx.array, grad: mx.array, scale: mx.array) -> mx.array:
            grad = grad * scale
            return beta2 * v + (1 - beta2) * grad * grad

        def update_value(value: mx.array, m: mx.array, v: mx.array, rate: mx.array, *scalars: mx.array) -> mx.array:
            correction1, correction2, decay = scalars
            change = (m / correction1) / (mx.sqrt(v / correction2) + self.epsilon) + decay * value
            return value - rate * change

        return mx.compile(update_first), mx.compile(update_second), mx.compile(update_value)


def restore_moments(parameters: Tree, arrays: dict[str, mx.array]) -> Tree:
    """Both moments from a checkpoint's flat arrays, in the structure of the parameters."""

    def moment(name: str) -> Tree:
        return tree_map_with_path(lambda path, _: arrays[f"{name}.{path}"], parameters)

    return {name: moment(name) for name in ("first", "second")}


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
