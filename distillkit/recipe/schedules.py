"""Schedules of numbers that change during training: constant, linear, cosine or warm-stable-decay.

In a recipe: `alpha = 0.5`, or `alpha = { schedule = "linear", from = 0.9, to = 0.5 }`. Does not know what a number is
used for, nor how many steps a run has: callers pass that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidatorFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

if TYPE_CHECKING:
    import mlx.core as mx

ScheduleName = Literal["constant", "linear", "cosine", "warm-stable-decay"]
SCHEDULES: tuple[ScheduleName, ...] = ("constant", "linear", "cosine", "warm-stable-decay")


class Schedule(BaseModel):
    """A number for each step of a run: `from` at the first step and `to` at the last, along the schedule."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    schedule: ScheduleName = Field(description="constant, linear, cosine or warm-stable-decay")
    from_: float = Field(alias="from", description="value at the first step")
    to: float | None = Field(None, description="value at the last step; for warm-stable-decay, the stable value")
    end: float | None = Field(None, description="warm-stable-decay: value at the last step; `from` if not set")
    warm: float = Field(0.1, ge=0, le=1, description="warm-stable-decay: share of the steps from `from` to `to`")
    decay: float = Field(0.2, ge=0, le=1, description="warm-stable-decay: share of the steps from `to` to `end`")
    steps: int | None = Field(None, gt=0, description="length in steps; that of the run if not set")

    @classmethod
    def of(cls, number: float) -> Schedule:
        """A constant schedule."""
        return cls.model_validate({"schedule": "constant", "from": float(number)})

    @model_serializer(mode="wrap")
    def _plain(self, table: SerializerFunctionWrapHandler) -> Any:
        return self.from_ if self.schedule == "constant" else table(self)

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if self.schedule == "constant" and self.to is not None:
            raise ValueError("is constant and has `to`: leave out `to`, or use linear or cosine")
        if self.schedule != "constant" and self.to is None:
            raise ValueError(f"is {self.schedule} and lacks `to`, the final value")
        if self.schedule != "warm-stable-decay" and self.model_fields_set & {"end", "warm", "decay"}:
            raise ValueError("has end, warm or decay, which only warm-stable-decay uses")
        if self.warm + self.decay > 1:
            raise ValueError(f"has warm + decay = {self.warm + self.decay:g}, expected at most 1")
        return self

    def __str__(self) -> str:
        return f"{self.from_:g}" if self.schedule == "constant" else f"{self.schedule} from {self.from_:g}"

    @property
    def values(self) -> tuple[float, ...]:
        """The values at the corners of the schedule. All other values lie between them."""
        corners = (self.from_, self.to, self.from_ if self.end is None else self.end)
        ends = {"constant": corners[:1], "warm-stable-decay": corners}.get(self.schedule, corners[:2])
        return tuple(value for value in ends if value is not None)

    def at(self, step: int | mx.array, steps: int | None) -> Any:
        """The value at a step (from 0) of a run of `steps` steps: a float, or an mx scalar if the step is one."""
        if self.schedule == "constant":
            return self.from_
        if (length := self.steps or steps) is None:
            raise ValueError("a schedule needs the number of steps: set `steps` in the schedule, or in the mixer")
        done = step / max(1, length - 1)
        first, *rest = self.values
        if self.schedule == "warm-stable-decay":
            rise, fall = _part(done, 0, self.warm), _part(done, 1 - self.decay, self.decay)
            return first + (rest[0] - first) * rise + (rest[1] - rest[0]) * fall
        return rest[0] + (first - rest[0]) * remaining(self.schedule, _part(done, 0, 1))


def remaining(shape: str, done: Any) -> Any:
    """The remaining fraction (1 to 0) after a fraction `done` of the steps: linear, half a cosine, or always 1."""
    if shape == "constant":
        return 1.0
    return 1 - done if shape == "linear" else 0.5 * (1 + _functions(done)[2](math.pi * done))


def _part(done: Any, start: float, length: float) -> Any:
    """The progress within a part of the run: 0 before it, 1 after it."""
    least, most, _ = _functions(done)
    return least(most((done - start) / max(length, 1e-9), 0.0), 1.0)


def _functions(value: Any) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """min, max and cos, for numbers or for MLX's scalars."""
    if isinstance(value, float | int):
        return min, max, math.cos
    import mlx.core as mx

    return mx.minimum, mx.maximum, mx.cos


# ------------------------------------------------------------------------------------------------- in recipes


@dataclass(frozen=True)
class Within:
    """Validates a schedule: accepts a plain number too, and checks that all values are within bounds.

    For options of plugins: `beta: Annotated[Schedule, Within(least=0, most=1)] = Field(Schedule.of(0.5))`.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._validate, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        keys = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        bounds = zip(keys, (self.least, self.most, self.above, self.below), strict=True)
        number = {"type": "number", **{key: bound for key, bound in bounds if bound is not None}}
        return {"anyOf": [number, handler(schema)], "x-expected": f"{self}, or a schedule"}

    def _validate(self, value: Any, table: ValidatorFunctionWrapHandler) -> Any:
        """A schedule; a plain number becomes a constant one."""
        number = isinstance(value, float | int) and not isinstance(value, bool)
        schedule = table({"schedule": "constant", "from": float(value)} if number else value)
        for one in schedule.values:
            if not self._in_bounds(one) and number:
                raise PydanticCustomError("bounds", "expected {words}", {"words": str(self)})
            if not self._in_bounds(one):
                raise ValueError(f"has {one:g}, expected {self}")
        return schedule

    def _in_bounds(self, value: float) -> bool:
        low = (self.least is not None and value < self.least) or (self.above is not None and value <= self.above)
        high = (self.most is not None and value > self.most) or (self.below is not None and value >= self.below)
        return not (low or high)

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        bounds = " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)
        return f"a number {bounds}".strip()
