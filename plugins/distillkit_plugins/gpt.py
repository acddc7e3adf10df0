"""The built-in student: a pre-norm GPT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from distillkit import Student, hookimpl

if TYPE_CHECKING:
    from typing import Self

    from distillkit.student.model.gpt import GPT


class Gpt(Student):
    """A pre-norm GPT: as GPT-2 was, or as Llama is, or anything between."""

    name = "gpt"

    class Options(Student.Options):
        """Its size, and of what parts it is made."""

        layers: int = Field(4, ge=1, le=200, description="transformer blocks")
        heads: int = Field(4, ge=1, le=200, description="attention heads; they divide the width")
        width: int = Field(128, ge=1, le=20_000, description="size of a hidden state")
        hidden: int | None = Field(
            None, ge=1, le=100_000, description="size inside a block; four times the width if not set"
        )
        context: int = Field(128, ge=2, le=1_000_000, description="the most tokens it reads at once")
        dropout: float = Field(0.0, ge=0, lt=1, description="share of activations left out while training")
        bias: bool = Field(
            True, validation_alias=AliasChoices("bias", "biases"), description="biases in linear layers and norms"
        )
        tied: bool = Field(True, description="the head shares the token embedding's weights")
        activation: Literal["gelu", "gelu_tanh", "relu", "swiglu"] = Field(
            "gelu", description="inside a block; swiglu has a third matrix there"
        )
        positions: Literal["learned", "sinusoidal", "rope"] = Field(
            "learned",
            description="a table that is trained, fixed waves added to tokens, or heads turned by their place",
        )
        norm: Literal["layernorm", "rmsnorm"] = Field("layernorm", description="how a block's input is normalised")
        attention_out: bool = Field(True, description="a matrix after attention")
        final_norm: bool = Field(True, description="a norm before the head")
        head_bias: bool = Field(False, description="a bias for each token of the vocabulary")
        qk_norm: bool = Field(False, description="an RMS norm of each query and key")
        kv_heads: int | None = Field(
            None,
            ge=1,
            le=200,
            description="heads of keys and values, shared by the others; as many as heads if not set",
        )

        @field_validator("activation", mode="before")
        @classmethod
        def _as_it_is_spelt_elsewhere(cls, value: Any) -> Any:
            return "gelu_tanh" if value == "gelu-tanh" else value

        @model_validator(mode="after")
        def _heads_divide(self) -> Self:
            if self.width % self.heads:
                raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
            if self.kv_heads and self.heads % self.kv_heads:
                raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
            if self.positions == "rope" and self.width // self.heads % 2:
                raise ValueError(
                    f"rope turns pairs, so a head must be even, not width / heads = {self.width // self.heads}"
                )
            return self

    @property
    def context(self) -> int:
        """The most tokens it reads at once."""
        return int(self.options.context)

    def build(self, vocab_size: int) -> GPT:
        """A network with weights that are not yet initialised."""
        from distillkit.student.model.gpt import GPT, GPTConfig

        values = self.options.model_dump()
        hidden = values.pop("hidden") or 4 * values["width"]
        return GPT(GPTConfig(vocab_size=vocab_size, hidden=hidden, **values))


@hookimpl
def register_students() -> list[type[Student]]:
    """Offer it."""
    return [Gpt]
