"""The contracts a plugin fulfils: one class a role, each with its options.

A role says what the host will call and what it may rely on. Caching, retries, limits, progress and secrets are
the host's work, so nothing here knows of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from ..core.records import Allowance, Answer, Document, Grade, Metric, Price, Request, Sample

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import mlx.core as mx
    import mlx.nn as nn

    from ..core.run_folder import Run
    from ..data.tokenizer import Tokenizer
    from ..student.training.targets import Targets

SIGNALS = ("none", "text", "top_logprobs", "logits")


def gives(signal: str, needed: str) -> bool:
    """Whether a signal is at least the one needed."""
    return SIGNALS.index(signal) >= SIGNALS.index(needed)


class Role(ABC):
    """What all plugins share: a name, a docstring that says what it does, and options from the recipe."""

    name: ClassVar[str]

    class Options(BaseModel):
        """The plugin's own keys, beside the host's in its table of the recipe."""

        model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def __init__(self, options: Any = None) -> None:
        self.options: Any = self.Options() if options is None else options


class Source(Role):
    """Where documents come from. `splits` names those it has; the host cuts a held-out split if it must."""

    splits: ClassVar[tuple[str, ...]] = ("train",)

    @abstractmethod
    def documents(self, split: str) -> Iterator[Document]:
        """Every document of a split, in an order that never changes; may be called again."""

    @property
    def here(self) -> bool:
        """Whether its documents can be read without fetching them. A plan fetches nothing."""
        return True

    def fingerprint(self) -> Any:
        """What decides the documents, as plain JSON values: when it is equal, nothing is read again."""
        return self.options.model_dump(mode="json")

    def check(self) -> None:
        """Refuse, by a DataError, what is known to keep it from reading: a package that is missing. Fetches nothing."""


class Student(Role):
    """An architecture that can be trained."""

    @property
    @abstractmethod
    def context(self) -> int:
        """The most tokens it reads at once."""

    @abstractmethod
    def build(self, vocab_size: int) -> nn.Module:
        """A module called with tokens [B, T] that returns hidden states [B, T, D].

        It offers `head`: the weight [V, D] and the bias [V] (or None) that turn hidden states into logits.
        """


class Teacher(Role):
    """Answers requests. `signal` is the most it can give: text, top_logprobs or logits.

    One with `signal = "logits"` also has `tokenizer` and `logits(tokens)`; one that `reads` judges given text.
    If it has a head too, it may offer `hidden(tokens)` [B, T, D] and `head` (its weight [V, D], and its bias [V] or
    None): then its logits are made a few rows at a time while a student learns, and never all at once.
    An asynchronous one raises `TryAgain` or `SlowDown` when asking again would help, and the host does so;
    whatever else it raises stops the stage. Whatever a provider says of its limits is handed to `heard`.
    """

    signal: ClassVar[str] = "text"
    listener: Callable[[Allowance], None] | None = None  # set by the host while it asks

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.found: dict[str, Any] = {}  # what `probe` found out, now or in an earlier run

    @abstractmethod
    def answer(self, request: Request) -> Answer | Awaitable[Answer]:
        """Answer one request. `async def` runs concurrently; `def` runs one at a time, where it was built."""

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """Answer many, each as it is done. A local teacher that is faster in batches overrides this."""
        for request in requests:
            answer = self.answer(request)
            if not isinstance(answer, Answer):
                raise TypeError("an asynchronous teacher is awaited, not iterated")
            yield request, answer

    def identity(self) -> Any:
        """What decides the answers beside the request, as plain JSON values; part of the cache's key."""
        return self.options.model_dump(mode="json")

    @property
    def chats(self) -> bool:
        """Whether it replies to messages; if not, it goes on from a prompt."""
        return False

    @property
    def reads(self) -> bool:
        """Whether it judges given text: asked for no words (`max_tokens = 0`), it answers with the prompt itself.

        The answer's tokens are the prompt's, each with the `top_logprobs` likeliest in its place; the first may not.
        """
        return False

    @property
    def paid(self) -> bool:
        """Whether its answers may cost money."""
        return False

    def price(self) -> Price | None:
        """What its tokens cost, or None when that is not known."""
        return None if self.paid else Price(0.0, 0.0)

    def tokens(self, request: Request) -> int | None:
        """How many tokens the words of a request are, if it knows without asking; None leaves the host to estimate."""
        return None

    def heard(self, allowance: Allowance) -> None:
        """Tell the host what the provider says it allows."""
        if self.listener is not None:
            self.listener(allowance)

    def needs(self, requests: Sequence[Request]) -> Mapping[str, Request]:
        """What must be found out about the endpoint before these are asked: a name, and a request that it is about."""
        return {}

    async def probe(self, need: str, request: Request) -> Any:
        """Find out one need with a cheap call. The host keeps the result, plain JSON, and puts it into `found`."""
        raise NotImplementedError(f"the teacher {self.name!r} names the need {need!r} and does not probe it")

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse, by a UsageError, requests that need what the endpoint lacks, going by `found`."""

    async def close(self) -> None:
        """Let go of connections: the host calls it when it has asked everything, on the same loop."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the tokens that `logits` reads."""
        raise AttributeError(f"the teacher {self.name!r} gives no logits, so it shows no tokenizer")

    @property
    def context(self) -> int | None:
        """The most tokens that `logits` reads at once, if that is known: a student that reads more is refused."""
        return None

    def logits(self, tokens: mx.array) -> mx.array:
        """Logits [B, T, V] of the tokens [B, T]."""
        raise AttributeError(f"the teacher {self.name!r} gives no logits")


class Mixer(Role):
    """Turns logits and targets into loss terms, and terms into one loss. `signal` is the least it needs."""

    signal: ClassVar[str] = "none"
    steps: int | None = None  # of the run, for schedules; set by the host before the first

    @abstractmethod
    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        """The loss [N] of each row of logits [N, V], under the name of each term. Rows are independent.

        A mixer that needs top_logprobs must take the whole distribution, too: `targets.both` shows either alike.
        """

    def weights(self, step: int) -> Mapping[str, float]:
        """The weight of each term at a step; a term that is not named weighs 1."""
        return {}

    def where(self, targets: Targets) -> Mapping[str, mx.array]:
        """The rows [N] that a term counts, as 0 or 1; a term that is not named counts all."""
        return {}


class Subject(Protocol):
    """What a judge sees of a run."""

    @property
    def name(self) -> str:
        """What the run is called."""

    @property
    def samples(self) -> Sequence[Sample]:
        """What the student wrote."""

    @property
    def held_out(self) -> Sequence[Document]:
        """The documents that were kept from training."""

    @property
    def train_text(self) -> Iterable[str]:
        """The documents that were trained on, one after another."""

    @property
    def student(self) -> Scorer:
        """The trained student."""

    @property
    def others(self) -> Sequence[Subject]:
        """Further runs to set it against: those of `judge --against`."""

    def ask(self, requests: Sequence[Request]) -> Sequence[Answer] | None:
        """Answers of the judge's own teacher, or None when it has none."""


class Scorer(Protocol):
    """A trained student, as judges use it."""

    def generate(self, prompts: Sequence[str], *, max_tokens: int, seed: int = 0) -> Sequence[Sample]:
        """Continue each prompt."""

    def score(self, texts: Sequence[str]) -> Sequence[Score]:
        """How likely each text is."""

    def score_after(self, prompts: Sequence[str], texts: Sequence[str]) -> Sequence[Score]:
        """How likely each text is after its prompt, whose own tokens do not count."""


class Score(Protocol):
    """How likely one text was."""

    nats: float
    tokens: int
    bytes: int


class Judge(Role):
    """Grades samples, documents or the student.

    One that asks a teacher says beforehand what it will ask: `grade` begins with `subject.ask(self.requests(subject))`,
    and `distillkit plan` counts the same requests. So neither can forget what the other does.
    """

    lower_is_better: ClassVar[frozenset[str]] = frozenset()  # criteria of which less is more
    neither_is_better: ClassVar[frozenset[str]] = frozenset()  # criteria that praise or blame nobody: no verdict
    compares: ClassVar[bool] = False  # it looks at further runs, those of `judge --against`: its grades are no repeats
    together: ClassVar[bool] = False  # its grade of a sample hangs on which others were graded with it
    asks_again: ClassVar[int] = 0  # how often at most it asks again about an answer that it cannot use
    default_teacher: ClassVar[Mapping[str, Any] | None] = None  # [judge.teacher], where the recipe has none

    @abstractmethod
    def grade(self, subject: Subject) -> Iterable[Grade]:
        """The grades of a subject."""

    def requests(self, subject: Subject) -> Sequence[Request]:
        """What it will ask of its teacher at first. Depends on nothing but the options and the subject's texts."""
        return ()

    def facts(self) -> Mapping[str, Any]:
        """What decides its grades, as plain JSON values: grades of equal facts compare. The host adds whom it asks."""
        return {"options": self.options.model_dump(mode="json")}

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Metric]:
        """The metrics of grades: by default weighted means, with intervals clustered by prompt or document."""
        from ..stats import mean_interval

        metrics = {}
        for criterion in dict.fromkeys(grade.criterion for grade in grades):
            of = [grade for grade in grades if grade.criterion == criterion]
            clusters = [grade.cluster or str(i) for i, grade in enumerate(of)]
            metrics[criterion] = mean_interval([g.score for g in of], [g.weight for g in of], clusters)
        return metrics


class Tracker(Role):
    """Is told of a run while it happens."""

    @abstractmethod
    def start(self, run: Run) -> None:
        """A run begins."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one step."""

    @abstractmethod
    def finish(self, report: Mapping[str, Any]) -> None:
        """The run is over."""


class Exporter(Role):
    """Writes a student in somebody else's format."""

    @abstractmethod
    def export(self, run: Run, folder: Path) -> list[str]:
        """Write to a folder, and say what was checked."""


ROLES: dict[str, type[Role]] = {
    "sources": Source,
    "students": Student,
    "teachers": Teacher,
    "mixers": Mixer,
    "judges": Judge,
    "trackers": Tracker,
    "exporters": Exporter,
}
