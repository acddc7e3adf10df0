"""AdamW, clipping by the global norm, and the learning rate's path. Knows nothing of losses or batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_map_with_path, tree_unflatten

from ...recipe.schedules import ahead

Tree = Any
LAST = 0.2  # of the steps after the warm-up, in which the rate of warm-stable-decay falls
NOWHERE: Mapping[str, mx.Stream] = MappingProxyType({})


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up to a peak, then down to a floor along a shape: half a cosine, a line, or one in the last fifth."""

    peak: float
    floor: float
    warmup: int
    steps: int
    shape: str = "cosine"

    def __call__(self, step: int) -> float:
        """The learning rate of a step, the first being 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        if self.shape == "warm-stable-decay":
            return self.floor + (self.peak - self.floor) * min(1.0, (1 - progress) / LAST)
        return self.floor + (self.peak - self.floor) * float(ahead(self.shape, progress))


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay. Norms, biases and positions are not decayed."""

    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0

    def start(self, parameters: Tree) -> Tree:
        """Both moments of every parameter, at zero."""
        return {name: tree_map(mx.zeros_like, parameters) for name in ("first", "second")}

    def update(
        self,
        parameters: Tree,
        gradients: Tree,
        moments: Tree,
        rate: mx.array,
        step: mx.array,
        streams: Mapping[str, mx.Stream] = NOWHERE,
    ) -> tuple[Tree, Tree, mx.array]:
        """New parameters, new moments, and the norm of the gradient before it was clipped.

        `streams` says where each parameter's share of the work is done, if not where all else is.
        """
        values, slopes = flat(parameters), flat(gradients)
        first, second = flat(moments["first"]), flat(moments["second"])
        norm = global_norm(slopes, streams)
        scale = mx.minimum(1.0, self.clip / (norm + 1e-6)) if self.clip else mx.array(1.0)
        unbias1, unbias2 = (1 - beta ** (step + 1) for beta in self.betas)
        mean, square, moved = self._passes
        for name, value in values.items():
            decay = mx.array(self.weight_decay if decays(name, value) else 0.0)
            with _on(streams.get(name)):
                first[name] = mean(first[name], slopes[name], scale)
                second[name] = square(second[name], slopes[name], scale)
                values[name] = moved(value, first[name], second[name], rate, unbias1, unbias2, decay)
        return grown(values), {"first": grown(first), "second": grown(second)}, norm

    @cached_property
    def _passes(self) -> tuple[Callable[..., mx.array], ...]:
        """One pass over memory for each moment and for the parameters, each written where it was read.

        That is where MLX finds a compiler; without one, a dozen passes. A single pass for all three would be one that
        MLX cannot write in place.
        """
        beta1, beta2 = self.betas

        def mean(m: mx.array, slope: mx.array, scale: mx.array) -> mx.array:
            return beta1 * m + (1 - beta1) * (slope * scale)

        def square(v: mx.array, slope: mx.array, scale: mx.array) -> mx.array:
            slope = slope * scale
            return beta2 * v + (1 - beta2) * slope * slope

        def moved(value: mx.array, m: mx.array, v: mx.array, rate: mx.array, *figures: mx.array) -> mx.array:
            unbias1, unbias2, decay = figures
            change = (m / unbias1) / (mx.sqrt(v / unbias2) + self.epsilon) + decay * value
            return value - rate * change

        return mx.compile(mean), mx.compile(square), mx.compile(moved)


def recalled(parameters: Tree, arrays: dict[str, mx.array]) -> Tree:
    """Both moments, as a checkpoint has them, in the shape of the parameters' tree."""

    def of(name: str) -> Tree:
        return tree_map_with_path(lambda path, _: arrays[f"{name}.{path}"], parameters)

    return {name: of(name) for name in ("first", "second")}


def decays(path: str, value: mx.array) -> bool:
    """Matrices decay; norms and biases are vectors, and positions are not weights of anything."""
    return value.ndim >= 2 and "positions" not in path


def global_norm(arrays: Mapping[str, mx.array], streams: Mapping[str, mx.Stream] = NOWHERE) -> mx.array:
    """The length of all numbers of some arrays, taken as one vector."""
    squares = []
    for name, value in arrays.items():
        with _on(streams.get(name)):
            row = value.reshape(-1)
            squares.append(row @ row)
    return mx.sqrt(mx.stack(squares).sum())


def _on(stream: mx.Stream | None) -> AbstractContextManager[Any]:
    return nullcontext() if stream is None else mx.stream(stream)


def flat(tree: Tree) -> dict[str, mx.array]:
    """A tree as names and arrays."""
    return dict(tree_flatten(tree))


def grown(arrays: dict[str, mx.array]) -> Tree:
    """The inverse of `flat`, but for parts of a tree that hold no array."""
    return tree_unflatten(list(arrays.items()))
