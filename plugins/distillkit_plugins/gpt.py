"""The built-in student: a pre-norm GPT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from distillkit import Student, hookimpl

if TYPE_CHECKING:
    from typing import Self

    from distillkit.student.gpt import GPT


class Gpt(Student):
    """A GPT: learned positions, pre-norm blocks, GELU, dropout, tied or untied head."""

    name = "gpt"

    class Options(Student.Options):
        """The figures that make its size."""

        layers: int = Field(4, ge=1, le=200, description="transformer blocks")
        heads: int = Field(4, ge=1, le=200, description="attention heads; they divide the width")
        width: int = Field(128, ge=1, le=20_000, description="size of a hidden state")
        hidden: int | None = Field(
            None, ge=1, le=100_000, description="size inside a block; four times the width if not set"
        )
        context: int = Field(128, ge=2, le=1_000_000, description="the most tokens it reads at once")
        dropout: float = Field(0.0, ge=0, lt=1, description="share of activations left out while training")
        bias: bool = Field(True, description="biases in linear layers and norms")
        tied: bool = Field(True, description="the head shares the token embedding's weights")
        activation: Literal["gelu", "gelu_tanh", "relu"] = Field("gelu", description="inside a block")

        @model_validator(mode="after")
        def _heads_divide_width(self) -> Self:
            if self.width % self.heads:
                raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
            return self

    @property
    def context(self) -> int:
        """The most tokens it reads at once."""
        return int(self.options.context)

    def build(self, vocab_size: int) -> GPT:
        """A network with weights that are not yet initialised."""
        from distillkit.student.gpt import GPT, Shape

        values = self.options.model_dump()
        hidden = values.pop("hidden") or 4 * values["width"]
        return GPT(Shape(vocab_size=vocab_size, hidden=hidden, **values))


@hookimpl
def register_students() -> list[type[Student]]:
    """Offer it."""
    return [Gpt]
