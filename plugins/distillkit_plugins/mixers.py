"""The built-in mixers: hard targets alone, beside the teacher's own text, or beside its opinion of every word.

The soft term of each is a divergence between chances, which `targets.both` gives: of dense and sparse targets alike.
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
        """The surprise at each token."""
        return {"hard": -targets.log_prob(logits)}


class Weighed(Mixer):
    """What mixers of two terms share: alpha weighs the hard one against the other."""

    other: str  # the name of the second term

    class Options(Mixer.Options):
        """Alpha 1 is training without a teacher."""

        alpha: Annotated[Schedule, Within(least=0, most=1)] = Field(
            Schedule.of(0.5), description="weight of the hard loss; the rest goes to the other one"
        )

    def now(self, option: str, step: int | mx.array) -> Any:
        """What an option is at a step, for it may be a schedule."""
        return getattr(self.options, option).at(step, self.steps)

    def weights(self, step: int) -> Mapping[str, float]:
        """Alpha, and what is left of one."""
        alpha = self.now("alpha", step)
        return {"hard": alpha, self.other: 1 - alpha}


class Sequence(Weighed):
    """alpha x cross-entropy with the corpus + (1 - alpha) x cross-entropy with the text that the teacher wrote."""

    name = "sequence"
    signal = "text"
    other = "sequence"

    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        """The surprise at each token, whoever wrote it."""
        surprise = -targets.log_prob(logits)
        return {"hard": surprise, "sequence": surprise}

    def where(self, targets: Targets) -> Mapping[str, mx.array]:
        """Each term is a mean over its own rows, however few of them there are."""
        return {"hard": 1 - targets.from_teacher, "sequence": targets.from_teacher}


class Soft(Weighed):
    """What mixers share that compare the student with its teacher's opinion of every word."""

    signal = "top_logprobs"
    other = "soft"

    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        """The surprise at each token, and the distance from the teacher's opinion."""
        heat = self.heat(step)
        hard = -targets.log_prob(logits)
        return {"hard": hard, "soft": heat**2 * self.distance(logits, targets, heat, step)}

    @abstractmethod
    def distance(self, logits: mx.array, targets: Targets, heat: Any, step: mx.array) -> mx.array:
        """How far student and teacher are apart in each row, both at a temperature."""

    def heat(self, step: mx.array) -> Any:
        """The temperature of a step."""
        return 1.0

    def where(self, targets: Targets) -> Mapping[str, mx.array]:
        """Words of the student's own are no hard targets; rows without a soft one do not count in the soft term."""
        return {"hard": targets.in_text, "soft": targets.has_soft}


class Softened(Soft):
    """Such mixers with a temperature. The factor T^2 keeps the size of the soft gradient when it changes."""

    class Options(Soft.Options):
        """Temperature 1 compares both opinions as they are."""

        temperature: Annotated[Schedule, Within(above=0, most=100)] = Field(
            Schedule.of(1.0), description="softens both opinions before they are compared"
        )

    def heat(self, step: mx.array) -> Any:
        """The temperature of a step."""
        return self.now("temperature", step)


class AlphaTemperature(Softened):
    """alpha x cross-entropy with the text + (1 - alpha) x T^2 x KL(teacher || student), both softened by T.

    Of the likeliest tokens alone, both sides are softened over these and one for all others. That is an approximation
    unless T is 1 or all tokens are named.
    """

    name = "alpha-temperature"

    class Options(Softened.Options):
        """As Hinton has it."""

        temperature: Annotated[Schedule, Within(above=0, most=100)] = Field(
            Schedule.of(2.0), description="softens both opinions before they are compared"
        )

    def distance(self, logits: mx.array, targets: Targets, heat: Any, step: mx.array) -> mx.array:
        """The teacher's surprise at the student, beyond its own."""
        return targets.soft_divergence(logits, heat)


class TopKTail(Soft):
    """alpha x cross-entropy + (1 - alpha) x KL(teacher || student) over the likeliest tokens, and one for all others.

    Exact for outcomes so grouped, whatever was left out: nothing is renormalised, nothing set to zero.
    """

    name = "topk-tail"

    def distance(self, logits: mx.array, targets: Targets, heat: Any, step: mx.array) -> mx.array:
        """The teacher's surprise at the student, beyond its own."""
        return targets.soft_divergence(logits)


class ReverseKL(Softened):
    """alpha x cross-entropy + (1 - alpha) x T^2 x KL(student || teacher): say nothing that the teacher would not."""

    name = "reverse-kl"

    def distance(self, logits: mx.array, targets: Targets, heat: Any, step: mx.array) -> mx.array:
        """The student's surprise at the teacher, beyond its own."""
        theirs, ours = targets.both(logits, heat)
        return ours.divergence(theirs)


class JSD(Softened):
    """alpha x cross-entropy + (1 - alpha) x T^2 x the Jensen-Shannon divergence, generalised by beta as in GKD.

    beta KL(teacher || M) + (1 - beta) KL(student || M), where M = beta teacher + (1 - beta) student. At 0 and 1, where
    nothing would be left of it, it is the forward and the reverse KL divergence.
    """

    name = "jsd"

    class Options(Softened.Options):
        """Beta 0.5 treats teacher and student alike."""

        beta: Annotated[Schedule, Within(least=0, most=1)] = Field(
            Schedule.of(0.5),
            description="how much of the teacher is in the mixture; 0 is the forward KL divergence, 1 the reverse",
        )

        @model_validator(mode="after")
        def _beta_stays_inside(self) -> Self:
            if self.beta.schedule != "constant" and {0.0, 1.0} & set(self.beta.values):
                raise ValueError("has a beta that reaches 0 or 1 on its way, expected one that stays between them")
            return self

    def distance(self, logits: mx.array, targets: Targets, heat: Any, step: mx.array) -> mx.array:
        """How far both are from their mixture."""
        beta, (theirs, ours) = self.now("beta", step), targets.both(logits, heat)
        if self.options.beta.schedule == "constant" and beta in (0, 1):
            return ours.divergence(theirs) if beta else theirs.divergence(ours)
        middle = theirs.mixed(beta, ours)
        far: mx.array = beta * theirs.divergence(middle) + (1 - beta) * ours.divergence(middle)
        return far


class SkewKL(Softened):
    """alpha x cross-entropy + (1 - alpha) x T^2 x a KL divergence from a mixture of both, as in DistiLLM.

    Forward: KL(teacher || lambda teacher + (1 - lambda) student). Reverse: KL(student || lambda student + (1 - lambda)
    teacher). Gradients stay small where the other gives a token next to nothing.
    """

    name = "skew-kl"

    class Options(Softened.Options):
        """Lambda 0 is the plain divergence."""

        lambda_: Annotated[Schedule, Within(least=0, below=1)] = Field(
            Schedule.of(0.1), alias="lambda", description="how much of the first distribution is mixed into the second"
        )
        direction: Literal["forward", "reverse"] = Field(
            "forward", description="forward covers all that the teacher would say; reverse says nothing else"
        )

    def distance(self, logits: mx.array, targets: Targets, heat: Any, step: mx.array) -> mx.array:
        """How far the one is from its mixture with the other."""
        theirs, ours = targets.both(logits, heat)
        one, other = (theirs, ours) if self.options.direction == "forward" else (ours, theirs)
        return one.divergence(one.mixed(self.now("lambda_", step), other))


class TVD(Softened):
    """alpha x cross-entropy + (1 - alpha) x T^2 x half the sum of |teacher - student| over all tokens."""

    name = "tvd"

    def distance(self, logits: mx.array, targets: Targets, heat: Any, step: mx.array) -> mx.array:
        """The mass that would have to move."""
        theirs, ours = targets.both(logits, heat)
        apart = (theirs.probs - ours.probs).abs().sum(axis=-1)
        return apart / 2


@hookimpl
def register_mixers() -> list[type[Mixer]]:
    """The mixers of this module."""
    return [Hard, Sequence, AlphaTemperature, TopKTail, ReverseKL, JSD, SkewKL, TVD]
