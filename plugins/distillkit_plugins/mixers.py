"""The built-in mixers: hard targets alone, with teacher text, or with soft targets from the teacher's probabilities.

Each soft term is a divergence between two distributions. `targets.both` returns these for dense and sparse targets.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from distillkit import Mixer, Schedule, Within, hookimpl

if TYPE_CHECKING:
    from typing import Self

    import mlx.core as mx

    from distillkit.student.training.targets import Targets


class Hard(Mixer):
    """Cross-entropy with the tokens of the text: training without a teacher."""

    name = "hard"
    signal = "none"

    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        """The cross-entropy of each row."""
        return {"hard": -targets.log_prob(logits)}


class WeightedMixer(Mixer):
    """Base of mixers with two terms: alpha is the weight of the hard one, 1 - alpha that of the other."""

    other: str  # the name of the second term

    class Options(Mixer.Options):
        """Options of mixers with two terms."""

        alpha: Annotated[Schedule, Within(least=0, most=1)] = Field(
            Schedule.of(0.5), description="weight of the hard loss; the other term has weight 1 - alpha"
        )

    def value_at(self, option: str, step: int | mx.array) -> Any:
        """The value of a scheduled option at a step."""
        return getattr(self.options, option).at(step, self.steps)

    def weights(self, step: int) -> Mapping[str, float]:
        """The weights alpha and 1 - alpha."""
        alpha = self.value_at("alpha", step)
        return {"hard": alpha, self.other: 1 - alpha}


class Sequence(WeightedMixer):
    """alpha x cross-entropy on the corpus + (1 - alpha) x cross-entropy on the teacher's text."""

    name = "sequence"
    signal = "text"
    other = "sequence"

    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        """The cross-entropy of each row, for both terms."""
        cross_entropy = -targets.log_prob(logits)
        return {"hard": cross_entropy, "sequence": cross_entropy}

    def where(self, targets: Targets) -> Mapping[str, mx.array]:
        """Each term is a mean over its own rows: corpus rows, and rows of teacher text."""
        return {"hard": 1 - targets.from_teacher, "sequence": targets.from_teacher}


class SoftMixer(WeightedMixer):
    """Base of mixers with a soft term: a divergence between teacher and student at each token."""

    signal = "top_logprobs"
    other = "soft"

    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        """Cross-entropy and T^2 x divergence of each row."""
        temperature = self.temperature(step)
        hard = -targets.log_prob(logits)
        return {"hard": hard, "soft": temperature**2 * self.divergence(logits, targets, temperature, step)}

    @abstractmethod
    def divergence(self, logits: mx.array, targets: Targets, temperature: Any, step: mx.array) -> mx.array:
        """The divergence [N] between teacher and student, both at a temperature."""

    def temperature(self, step: mx.array) -> Any:
        """The temperature at a step."""
        return 1.0

    def where(self, targets: Targets) -> Mapping[str, mx.array]:
        """The hard term excludes rows written by the student; the soft term excludes rows without a soft target."""
        return {"hard": targets.in_text, "soft": targets.has_soft}


class TemperatureMixer(SoftMixer):
    """Base of soft mixers with a temperature T. The factor T^2 keeps gradients at the same scale for every T."""

    class Options(SoftMixer.Options):
        """Options of soft mixers with a temperature."""

        temperature: Annotated[Schedule, Within(above=0, most=100)] = Field(
            Schedule.of(1.0), description="temperature of both distributions in the soft term"
        )

    def temperature(self, step: mx.array) -> Any:
        """The temperature at a step."""
        return self.value_at("temperature", step)


class AlphaTemperature(TemperatureMixer):
    """alpha x cross-entropy + (1 - alpha) x T^2 x KL(teacher || student), both at temperature T.

    With top-k targets the temperature is applied over the k tokens and the residual. That is an approximation unless T
    is 1 or k is the vocabulary size.
    """

    name = "alpha-temperature"

    class Options(TemperatureMixer.Options):
        """Options of the mixer `alpha-temperature`."""

        temperature: Annotated[Schedule, Within(above=0, most=100)] = Field(
            Schedule.of(2.0), description="temperature of both distributions in the soft term"
        )

    def divergence(self, logits: mx.array, targets: Targets, temperature: Any, step: mx.array) -> mx.array:
        """KL(teacher || student)."""
        return targets.soft_divergence(logits, temperature)


class TopKTail(SoftMixer):
    """alpha x cross-entropy + (1 - alpha) x KL(teacher || student) over the top k tokens and the residual.

    It is the exact divergence between the grouped distributions: nothing is renormalised or set to zero.
    """

    name = "topk-tail"

    def divergence(self, logits: mx.array, targets: Targets, temperature: Any, step: mx.array) -> mx.array:
        """KL(teacher || student)."""
        return targets.soft_divergence(logits)


class ReverseKL(TemperatureMixer):
    """alpha x cross-entropy + (1 - alpha) x T^2 x KL(student || teacher), which is mode-seeking."""

    name = "reverse-kl"

    def divergence(self, logits: mx.array, targets: Targets, temperature: Any, step: mx.array) -> mx.array:
        """KL(student || teacher)."""
        teacher, student = targets.both(logits, temperature)
        return student.divergence(teacher)


class JSD(TemperatureMixer):
    """alpha x cross-entropy + (1 - alpha) x T^2 x the generalised Jensen-Shannon divergence, as in GKD.

    beta KL(teacher || M) + (1 - beta) KL(student || M), where M = beta teacher + (1 - beta) student. For beta 0 and 1,
    where this is 0, it is the forward and the reverse KL divergence instead.
    """

    name = "jsd"

    class Options(TemperatureMixer.Options):
        """Options of the mixer `jsd`."""

        beta: Annotated[Schedule, Within(least=0, most=1)] = Field(
            Schedule.of(0.5),
            description="weight of the teacher in the mixture M; 0 is the forward KL divergence, 1 the reverse",
        )

        @model_validator(mode="after")
        def _check_beta_schedule(self) -> Self:
            if self.beta.schedule != "constant" and {0.0, 1.0} & set(self.beta.values):
                raise ValueError("has a beta schedule that reaches 0 or 1, expected one that stays between them")
            return self

    def divergence(self, logits: mx.array, targets: Targets, temperature: Any, step: mx.array) -> mx.array:
        """The generalised Jensen-Shannon divergence."""
        beta, (teacher, student) = self.value_at("beta", step), targets.both(logits, temperature)
        if self.options.beta.schedule == "constant" and beta in (0, 1):
            return student.divergence(teacher) if beta else teacher.divergence(student)
        mixture = teacher.mix(beta, student)
        jsd: mx.array = beta * teacher.divergence(mixture) + (1 - beta) * student.divergence(mixture)
        return jsd


class SkewKL(TemperatureMixer):
    """alpha x cross-entropy + (1 - alpha) x T^2 x the skew KL divergence, as in DistiLLM.

    Forward: KL(teacher || lambda teacher + (1 - lambda) student). Reverse: KL(student || lambda student + (1 - lambda)
    teacher). Gradients stay small for tokens to which the second distribution gives almost no probability.
    """

    name = "skew-kl"

    class Options(TemperatureMixer.Options):
        """Options of the mixer `skew-kl`. With lambda 0 it is the plain KL divergence."""

        lambda_: Annotated[Schedule, Within(least=0, below=1)] = Field(
            Schedule.of(0.1), alias="lambda", description="weight of the first distribution in the mixture"
        )
        direction: Literal["forward", "reverse"] = Field(
            "forward", description="forward is mode-covering, reverse is mode-seeking"
        )

    def divergence(self, logits: mx.array, targets: Targets, temperature: Any, step: mx.array) -> mx.array:
        """The skew KL divergence."""
        teacher, student = targets.both(logits, temperature)
        first, second = (teacher, student) if self.options.direction == "forward" else (student, teacher)
        return first.divergence(first.mix(self.value_at("lambda_", step), second))


class TVD(TemperatureMixer):
    """alpha x cross-entropy + (1 - alpha) x T^2 x total variation distance, half the sum of |teacher - student|."""

    name = "tvd"

    def divergence(self, logits: mx.array, targets: Targets, temperature: Any, step: mx.array) -> mx.array:
        """The total variation distance."""
        teacher, student = targets.both(logits, temperature)
        return (teacher.probs - student.probs).abs().sum(axis=-1) / 2


@hookimpl
def register_mixers() -> list[type[Mixer]]:
    """The mixers of this module."""
    return [Hard, Sequence, AlphaTemperature, TopKTail, ReverseKL, JSD, SkewKL, TVD]
