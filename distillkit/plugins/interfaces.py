"""The interfaces that plugins implement: one base class for each role, each with its options.

A base class says what the host calls and what it may rely on. Caching, retries, rate limits, progress and secrets are
the host's work, so they do not appear here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict

from ..core.records import Allowance, Answer, Document, Grade, Metric, Price, Request, Sample

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import mlx.core as mx
    import mlx.nn as nn

    from ..core.run_folder import Run

# The targets that a mixer receives are a `distillkit.student.training.targets.Targets`. That module lies above this one
# and cannot be imported here, and a protocol would forbid mixers to annotate their parameter with the class itself.
Targets: TypeAlias = Any

SIGNALS = ("none", "text", "top_logprobs", "logits")


def signal_suffices(given: str, needed: str) -> bool:
    """Whether a signal carries at least as much information as the one needed."""
    return SIGNALS.index(given) >= SIGNALS.index(needed)


class Role(ABC):
    """The base of all plugin classes: a name, a docstring that describes it, and options from the recipe."""

    name: ClassVar[str]

    class Options(BaseModel):
        """The plugin's own keys, next to the host's keys in its table of the recipe."""

        model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def __init__(self, options: Any = None) -> None:
        self.options: Any = self.Options() if options is None else options


class Source(Role):
    """Provides documents. `splits` names its splits; the host separates a held-out split if it has none."""

    splits: ClassVar[tuple[str, ...]] = ("train",)

    @abstractmethod
    def documents(self, split: str) -> Iterator[Document]:
        """Yield every document of a split, always in the same order; may be called repeatedly."""

    @property
    def here(self) -> bool:
        """Whether the documents can be read without a download. `distillkit plan` downloads nothing."""
        return True

    def fingerprint(self) -> Any:
        """Everything that determines the documents, as plain JSON values. If it is unchanged, the corpus is reused."""
        return self.options.model_dump(mode="json")

    def check(self) -> None:
        """Raise a DataError if the source cannot work, for example if a package is missing. Must not download."""


class Student(Role):
    """An architecture that can be trained."""

    @property
    @abstractmethod
    def context(self) -> int:
        """Context length: the maximum number of tokens the network reads at once."""

    @abstractmethod
    def build(self, vocab_size: int) -> nn.Module:
        """Return a module that maps tokens [B, T] to hidden states [B, T, D].

        It must have a property `head`: the weight [V, D] and the bias [V] (or None) that map hidden states to logits.
        """


class Tokenizer(Protocol):
    """What the host uses of the tokenizer of a teacher that gives logits."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""

    @property
    def end_of_text(self) -> int:
        """The id of the end-of-text token."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the tokens. Tokenizers with equal fingerprints are interchangeable."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token."""


class Teacher(Role):
    """Answers requests. `signal` is the most it can provide: text, top_logprobs or logits.

    A teacher with `signal = "logits"` also implements `tokenizer` and `logits(tokens)`. If its logits are a linear
    function of hidden states, it may offer `hidden(tokens)` [B, T, D] and `head` (the weight [V, D], and the bias [V]
    or None): training then computes its logits a few rows at a time and never holds all of them.
    A teacher whose `reads` is true scores given text.
    An asynchronous teacher raises `TryAgain` or `SlowDown` where a retry can help, and the host retries; any other
    exception stops the stage. It reports the provider's rate limits with `heard`.
    """

    signal: ClassVar[str] = "text"
    listener: Callable[[Allowance], None] | None = None  # set by the host while it sends requests

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.found: dict[str, Any] = {}  # results of `probe`, of this run or an earlier one

    @abstractmethod
    def answer(self, request: Request) -> Answer | Awaitable[Answer]:
        """Answer one request. `async def` runs concurrently; `def` runs one at a time, in the thread that built it."""

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """Answer many requests and yield each answer when it is done. Override it if batches are faster."""
        for request in requests:
            answer = self.answer(request)
            if not isinstance(answer, Answer):
                raise TypeError("an asynchronous teacher must be awaited, not iterated")
            yield request, answer

    def identity(self) -> Any:
        """Everything besides the request that determines the answers, as plain JSON values; part of the cache key."""
        return self.options.model_dump(mode="json")

    @property
    def chats(self) -> bool:
        """Whether it replies to messages. If not, it continues prompts."""
        return False

    @property
    def reads(self) -> bool:
        """Whether it scores given text: for a request with `max_tokens = 0` it answers with the prompt itself.

        The tokens of that answer are the prompt's tokens, each with the `top_logprobs` most likely tokens at its
        position. The first token may have none.
        """
        return False

    @property
    def paid(self) -> bool:
        """Whether answers may cost money."""
        return False

    def price(self) -> Price | None:
        """The price of its tokens, or None if it is unknown."""
        return None if self.paid else Price(0.0, 0.0)

    def tokens(self, request: Request) -> int | None:
        """The number of tokens in a request's text, or None to let the host estimate it. Must not send a request."""
        return None

    def heard(self, allowance: Allowance) -> None:
        """Report a rate limit that the provider announced to the host."""
        if self.listener is not None:
            self.listener(allowance)

    def needs(self, requests: Sequence[Request]) -> Mapping[str, Request]:
        """The properties of the endpoint to probe before these requests: a name, and a request that needs it."""
        return {}

    async def probe(self, need: str, request: Request) -> Any:
        """Probe one property with a cheap call. The host stores the result, plain JSON, and puts it into `found`."""
        raise NotImplementedError(f"the teacher {self.name!r} lists the need {need!r} but does not implement probe()")

    def check(self, requests: Sequence[Request]) -> None:
        """Raise a UsageError if, according to `found`, the endpoint cannot answer these requests."""

    async def close(self) -> None:
        """Close connections. The host calls it after the last request, on the same event loop."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the tokens that `logits` takes."""
        raise AttributeError(f"the teacher {self.name!r} gives no logits, so it has no tokenizer")

    @property
    def context(self) -> int | None:
        """The maximum number of tokens that `logits` takes at once, if known. A longer student context is refused."""
        return None

    def logits(self, tokens: mx.array) -> mx.array:
        """Logits [B, T, V] for tokens [B, T]."""
        raise AttributeError(f"the teacher {self.name!r} gives no logits")


class Mixer(Role):
    """Computes loss terms from logits and targets, and weighs them. `signal` is the least it needs of a teacher."""

    signal: ClassVar[str] = "none"
    steps: int | None = None  # length of the run, for schedules; set by the host before the first step

    @abstractmethod
    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        """The loss [N] of each row of logits [N, V], for each term by name. Rows must be independent of each other.

        A mixer with `signal = "top_logprobs"` must accept full distributions, too; `targets.both` handles either.
        """

    def weights(self, step: int) -> Mapping[str, float]:
        """The weight of each term at a step; terms that are not listed have weight 1."""
        return {}

    def where(self, targets: Targets) -> Mapping[str, mx.array]:
        """The rows [N] that a term applies to, as 0 or 1; terms that are not listed apply to all rows."""
        return {}


@dataclass(frozen=True)
class OptimizerStep:
    """What an optimizer is told of a step beside parameters and gradients. All values are scalar arrays."""

    learning_rate: mx.array
    number: mx.array  # of the step; the first is 0
    gradient_scale: mx.array  # multiply the gradients by it: clipping by the global norm


class Optimizer(Role):
    """Updates parameters from their gradients.

    Parameters and gradients are arrays under the parameters' names, such as "layers.0.mlp.up.weight". The state is
    `{slot: {parameter name: array}}`, for example `{"first": {...}, "second": {...}}`. Checkpoints save and restore
    it, so it holds everything that an update depends on, apart from the arguments of `update`.
    """

    train: Mapping[str, Any] = {}  # the recipe's [train] table; set by the host before the first call

    def accepts(self, name: str, parameter: mx.array) -> bool:
        """Whether it updates this parameter. AdamW updates the parameters that the recipe's optimizer does not."""
        return True

    @abstractmethod
    def initial_state(self, parameters: Mapping[str, mx.array]) -> dict[str, dict[str, mx.array]]:
        """The state before the first step."""

    @abstractmethod
    def update(
        self,
        parameters: Mapping[str, mx.array],
        gradients: Mapping[str, mx.array],
        state: Mapping[str, Mapping[str, mx.array]],
        step: OptimizerStep,
    ) -> tuple[dict[str, mx.array], dict[str, dict[str, mx.array]]]:
        """The new parameters and the new state. Must not depend on anything but its arguments and the options.

        On a CPU the host calls it once for each stream, with some of the parameters.
        """


class Subject(Protocol):
    """The run that a judge grades."""

    @property
    def name(self) -> str:
        """The name of the run."""

    @property
    def samples(self) -> Sequence[Sample]:
        """The samples that the student generated."""

    @property
    def held_out(self) -> Sequence[Document]:
        """The documents held out from training."""

    @property
    def train_text(self) -> Iterable[str]:
        """The texts of the training documents, one by one."""

    @property
    def student(self) -> Scorer:
        """The trained student."""

    @property
    def others(self) -> Sequence[Subject]:
        """Further runs to compare it with: those of `judge --against`."""

    def ask(self, requests: Sequence[Request]) -> Sequence[Answer] | None:
        """Answers of the judge's own teacher, or None if it has none."""


class Scorer(Protocol):
    """A trained student, as judges use it."""

    def generate(self, prompts: Sequence[str], *, max_tokens: int, seed: int = 0) -> Sequence[Sample]:
        """Continue each prompt."""

    def score(self, texts: Sequence[str]) -> Sequence[Score]:
        """The negative log-likelihood of each text."""

    def score_after(self, prompts: Sequence[str], texts: Sequence[str]) -> Sequence[Score]:
        """The negative log-likelihood of each text given its prompt. The prompt's own tokens do not count."""


class Score(Protocol):
    """The negative log-likelihood of a text in nats, and the text's length."""

    nats: float
    tokens: int
    bytes: int


class Judge(Role):
    """Grades samples, documents or the student.

    A judge that asks a teacher lists its requests in `requests`, and its `grade` begins with
    `subject.ask(self.requests(subject))`. `distillkit plan` counts the same requests.
    """

    lower_is_better: ClassVar[frozenset[str]] = frozenset()  # criteria for which lower values are better
    neither_is_better: ClassVar[frozenset[str]] = frozenset()  # criteria without a direction: compared, no verdict
    compares: ClassVar[bool] = False  # grades depend on further runs, those of `judge --against`
    together: ClassVar[bool] = False  # the grade of a sample depends on the other samples graded with it
    asks_again: ClassVar[int] = 0  # maximum number of further requests for an answer that cannot be used
    default_teacher: ClassVar[Mapping[str, Any] | None] = None  # used as [judge.teacher] if the recipe has none

    @abstractmethod
    def grade(self, subject: Subject) -> Iterable[Grade]:
        """The grades of a subject."""

    def requests(self, subject: Subject) -> Sequence[Request]:
        """Its first requests to its teacher. They depend only on the options and the subject's texts."""
        return ()

    def facts(self) -> Mapping[str, Any]:
        """Everything that determines its grades, as plain JSON values; the host adds the teacher.

        Grades are comparable if these values are equal.
        """
        return {"options": self.options.model_dump(mode="json")}

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Metric]:
        """Metrics of grades: by default weighted means with intervals, clustered by prompt or document."""
        from ..stats import mean_interval

        metrics = {}
        for criterion in dict.fromkeys(grade.criterion for grade in grades):
            selected = [grade for grade in grades if grade.criterion == criterion]
            clusters = [grade.cluster or str(i) for i, grade in enumerate(selected)]
            scores, weights = [grade.score for grade in selected], [grade.weight for grade in selected]
            metrics[criterion] = mean_interval(scores, weights, clusters)
        return metrics


class Tracker(Role):
    """Receives the metrics of a run while it is trained."""

    @abstractmethod
    def start(self, run: Run) -> None:
        """Called when a run starts or is resumed."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Called with the metrics of one step."""

    @abstractmethod
    def finish(self, report: Mapping[str, Any]) -> None:
        """Called with the report when the run is complete."""


class Exporter(Role):
    """Writes a student in another format."""

    @abstractmethod
    def export(self, run: Run, folder: Path) -> list[str]:
        """Write the student to a folder. Returns lines that say what was verified."""


ROLES: dict[str, type[Role]] = {
    "sources": Source,
    "students": Student,
    "teachers": Teacher,
    "mixers": Mixer,
    "optimizers": Optimizer,
    "judges": Judge,
    "trackers": Tracker,
    "exporters": Exporter,
}
