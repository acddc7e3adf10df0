"""The built-in optimizers: AdamW, and every optimizer of `mlx.optimizers` by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.optimizers
from pydantic import Field, ValidationInfo, field_validator

from distillkit import Optimizer, OptimizerStep, hookimpl
from distillkit.student import AdamW

Arrays = dict[str, mx.array]
FIXED = {"Adafactor": {"relative_step": False}}  # otherwise it computes a learning rate of its own
NOT_SINGLE = ("MultiOptimizer", "Optimizer")  # classes of mlx.optimizers that update no single array


def known_classes() -> list[str]:
    """The optimizer classes of the installed MLX."""
    base = mlx.optimizers.Optimizer
    classes = [value for value in vars(mlx.optimizers).values() if isinstance(value, type) and issubclass(value, base)]
    return sorted(cls.__name__ for cls in classes if cls.__name__ not in NOT_SINGLE)


class MlxOptimizer(Optimizer):
    """Any optimizer of mlx.optimizers, by its class name; it updates every parameter."""

    name = "mlx"

    class Options(Optimizer.Options):
        """Which class, and its arguments."""

        class_: str = Field(alias="class", description="class of mlx.optimizers, such as Lion or Adafactor")
        arguments: dict[str, Any] = Field({}, description="arguments of the class, apart from learning_rate")

        @field_validator("class_")
        @classmethod
        def _is_known(cls, name: str) -> str:
            if name not in known_classes():
                raise ValueError(f"expected one of {', '.join(known_classes())}")
            return name

        @field_validator("arguments")
        @classmethod
        def _are_known(cls, arguments: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
            if "learning_rate" in arguments:
                raise ValueError("the learning rate is set by optimizer.learning_rate or train.learning_rate")
            if "class_" in info.data:
                name = info.data["class_"]
                known = sorted({*inspect.signature(getattr(mlx.optimizers, name)).parameters} - {"learning_rate"})
                if unknown := sorted(arguments.keys() - known):
                    raise ValueError(f"{name} has no argument {unknown[0]!r}, expected one of {', '.join(known)}")
            return arguments

    @cached_property
    def _optimizer(self) -> Any:
        """The MLX object. Its learning rate and step are set before each use; the host keeps the parameters' states."""
        arguments = {**self.options.arguments, **FIXED.get(self.options.class_, {})}
        return getattr(mlx.optimizers, self.options.class_)(learning_rate=0.0, **arguments)

    def initial_state(self, parameters: Mapping[str, mx.array]) -> dict[str, Arrays]:
        """What the class keeps for each parameter."""
        state: dict[str, Arrays] = {}
        for name, parameter in parameters.items():
            slots: Arrays = {}
            self._optimizer.init_single(parameter, slots)
            for slot, value in slots.items():
                state.setdefault(slot, {})[name] = value
        return state

    def update(
        self,
        parameters: Mapping[str, mx.array],
        gradients: Mapping[str, mx.array],
        state: Mapping[str, Mapping[str, mx.array]],
        step: OptimizerStep,
    ) -> tuple[Arrays, dict[str, Arrays]]:
        """Each parameter, updated by the class."""
        optimizer = self._optimizer
        optimizer.state["step"] = step.number.astype(mx.uint64) + 1
        optimizer.state["learning_rate"] = step.learning_rate
        updated, new_state = {}, dict[str, Arrays]()
        for name, parameter in parameters.items():
            slots = {slot: arrays[name] for slot, arrays in state.items() if name in arrays}
            updated[name] = optimizer.apply_single(gradients[name] * step.gradient_scale, parameter, slots)
            for slot, value in slots.items():
                new_state.setdefault(slot, {})[name] = value
        return updated, new_state


@hookimpl
def register_optimizers() -> list[type[Optimizer]]:
    """The optimizers of this module."""
    return [AdamW, MlxOptimizer]
