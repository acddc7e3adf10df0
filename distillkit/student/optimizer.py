"""AdamW, clipping by the global norm, and the learning rate's path. Knows nothing of losses or batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_map_with_path, tree_unflatten

Tree = Any


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine down to a floor."""

    peak: float
    floor: float
    warmup: int
    steps: int

    def __call__(self, step: int) -> float:
        """The learning rate of a step, the first being 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


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
        self, parameters: Tree, gradients: Tree, moments: Tree, rate: mx.array, step: mx.array
    ) -> tuple[Tree, Tree, mx.array]:
        """New parameters, new moments, and the norm of the gradient before it was clipped."""
        norm = global_norm(gradients)
        scale = mx.minimum(1.0, self.clip / (norm + 1e-6)) if self.clip else mx.array(1.0)
        beta1, beta2 = self.betas
        gradients = tree_map(lambda g: g * scale, gradients)
        first = tree_map(lambda m, g: beta1 * m + (1 - beta1) * g, moments["first"], gradients)
        second = tree_map(lambda v, g: beta2 * v + (1 - beta2) * g * g, moments["second"], gradients)
        unbias1, unbias2 = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)

        def moved(path: str, value: mx.array, m: mx.array, v: mx.array) -> mx.array:
            change = (m / unbias1) / (mx.sqrt(v / unbias2) + self.epsilon)
            if decays(path, value):
                change = change + self.weight_decay * value
            return value - rate * change

        return tree_map_with_path(moved, parameters, first, second), {"first": first, "second": second}, norm


def recalled(parameters: Tree, arrays: dict[str, mx.array]) -> Tree:
    """Both moments, as a checkpoint has them, in the shape of the parameters' tree."""

    def of(name: str) -> Tree:
        return tree_map_with_path(lambda path, _: arrays[f"{name}.{path}"], parameters)

    return {name: of(name) for name in ("first", "second")}


def decays(path: str, value: mx.array) -> bool:
    """Matrices decay; norms and biases are vectors, and positions are not weights of anything."""
    return value.ndim >= 2 and "positions" not in path


def global_norm(tree: Tree) -> mx.array:
    """The length of all numbers of a tree, taken as one vector."""
    return mx.sqrt(sum((mx.square(value).sum() for value in flat(tree).values()), mx.array(0.0)))


def flat(tree: Tree) -> dict[str, mx.array]:
    """A tree as names and arrays."""
    return dict(tree_flatten(tree))


def grown(arrays: dict[str, mx.array]) -> Tree:
    """The inverse of `flat`, but for parts of a tree that hold no array."""
    return tree_unflatten(list(arrays.items()))
