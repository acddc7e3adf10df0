"""The student `gpt`: a pre-norm transformer decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from distillkit import Student, hookimpl

if TYPE_CHECKING:
    from typing import Self

    from distillkit.student.model.gpt import GPT


class Gpt(Student):
    """A pre-norm GPT, configurable from GPT-2 to Llama style."""

    name = "gpt"

    class Options(Student.Options):
        """Options of the student `gpt`: size and architecture."""

        layers: int = Field(4, ge=1, le=200, description="number of transformer blocks")
        heads: int = Field(4, ge=1, le=200, description="number of attention heads; must divide width")
        width: int = Field(128, ge=1, le=20_000, description="size of hidden states")
        hidden: int | None = Field(
            None, ge=1, le=100_000, description="hidden size of the feed-forward network; 4 x width if not set"
        )
        context: int = Field(128, ge=2, le=1_000_000, description="context length in tokens")
        dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate during training")
        bias: bool = Field(
            True, validation_alias=AliasChoices("bias", "biases"), description="use biases in linear layers and norms"
        )
        tied: bool = Field(True, description="tie the weights of the head to the token embedding")
        activation: Literal["gelu", "gelu_tanh", "relu", "swiglu"] = Field(
            "gelu", description="activation of the feed-forward network; swiglu adds a third matrix"
        )
        positions: Literal["learned", "sinusoidal", "rope"] = Field(
            "learned",
            description="learned position embeddings, fixed sinusoidal ones, or rotary embeddings (rope)",
        )
        norm: Literal["layernorm", "rmsnorm"] = Field("layernorm", description="normalisation layer")
        attention_out: bool = Field(True, description="output projection after attention")
        final_norm: bool = Field(True, description="normalise before the head")
        head_bias: bool = Field(False, description="use a bias in the head")
        qk_norm: bool = Field(False, description="apply RMSNorm to each query and key")
        kv_heads: int | None = Field(
            None,
            ge=1,
            le=200,
            description="number of key and value heads (grouped-query attention); equal to heads if not set",
        )

        @field_validator("activation", mode="before")
        @classmethod
        def _accept_hyphen(cls, value: Any) -> Any:
            return "gelu_tanh" if value == "gelu-tanh" else value

        @model_validator(mode="after")
        def _heads_divide(self) -> Self:
            if self.width % self.heads:
                raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
            if self.kv_heads and self.heads % self.kv_heads:
                raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
            if self.positions == "rope" and self.width // self.heads % 2:
                raise ValueError(f"rope rotates pairs, so width / heads must be even, not {self.width // self.heads}")
            return self

    @property
    def context(self) -> int:
        """The context length in tokens."""
        return int(self.options.context)

    def build(self, vocab_size: int) -> GPT:
        """A network whose weights are not initialised yet."""
        from distillkit.student.model.gpt import GPT, GPTConfig

        values = self.options.model_dump()
        hidden = values.pop("hidden") or 4 * values["width"]
        return GPT(GPTConfig(vocab_size=vocab_size, hidden=hidden, **values))


@hookimpl
def register_students() -> list[type[Student]]:
    """The student of this module."""
    return [Gpt]
