"""The built-in mixers: hard targets alone, and hard beside soft ones (Hinton's distillation)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from distillkit import Mixer, hookimpl

if TYPE_CHECKING:
    import mlx.core as mx

    from distillkit.student.loss import Targets


class Hard(Mixer):
    """Cross-entropy with the tokens of the text: training without a teacher."""

    name = "hard"
    signal = "none"

    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        """The surprise at each token."""
        return {"hard": -targets.log_prob(logits)}


class AlphaTemperature(Mixer):
    """alpha x cross-entropy with the text + (1 - alpha) x T^2 x KL(teacher || student), both softened by T."""

    name = "alpha-temperature"
    signal = "logits"

    class Options(Mixer.Options):
        """Alpha 1 is training without a teacher; the factor T^2 keeps the soft gradient's size when T changes."""

        alpha: float = Field(0.5, ge=0, le=1, description="weight of the hard loss; the rest goes to the soft one")
        temperature: float = Field(2.0, gt=0, le=100, description="softens both distributions before comparing")

    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        """The surprise at each token, and the distance from the teacher's opinion."""
        from distillkit.student.elementary import logsumexp

        heat = self.options.temperature
        log_total = logsumexp(logits)
        shared = log_total if heat == 1 else None  # then one pass of exp serves both terms
        return {
            "hard": -targets.log_prob(logits, log_total),
            "soft": heat**2 * targets.soft_divergence(logits, heat, shared),
        }

    def weights(self, step: int) -> Mapping[str, float]:
        """Alpha, and what is left of one."""
        return {"hard": self.options.alpha, "soft": 1 - self.options.alpha}

    def where(self, targets: Targets) -> Mapping[str, mx.array]:
        """The soft term looks only at rows that have a soft target."""
        return {"soft": targets.has_soft}


@hookimpl
def register_mixers() -> list[type[Mixer]]:
    """Offer both."""
    return [Hard, AlphaTemperature]
