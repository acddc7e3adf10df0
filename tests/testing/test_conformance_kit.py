"""The conformance checks: built-in plugins pass all of them, and each check detects a plugin that breaks it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

import distillkit.testing as kit
from distillkit import (
    Answer,
    DistillkitError,
    Document,
    Exporter,
    Grade,
    Judge,
    Metric,
    Mixer,
    Optimizer,
    Source,
    Student,
    Teacher,
    Token,
    Tracker,
    Usage,
    UsageError,
)
from distillkit.plugins.manager import Plugins
from distillkit.student.trained import Trained
from distillkit.testing import exporters, framework, judges, mixers, optimizers, sources, students, teachers, trackers

from support.chat_provider import serving  # isort: skip

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
import numpy as np  # isort: skip

# ------------------------------------------------------------------------------------------------- our own

BUILT_IN = [offer for offer in Plugins.load().registrations if offer.origin.distribution == "distillkit"]


def served(case: Any) -> Iterator[dict[str, Any]]:
    """A provider on the loopback interface, for teachers that need one."""
    for variable in ("GROQ_API_KEY", "OPENAI_API_KEY"):
        case.setenv(variable, "none")
    with serving() as provider:
        yield {"options": {"model": "m", "base_url": provider.url}}


def some_files(case: Any) -> Iterator[dict[str, Any]]:
    """Files of text, for sources that need them."""
    Path("a.txt").write_text("One day.|Another day: 漢字 🦊.|The end.", encoding="utf-8")
    yield {"options": {"files": str(Path("a.txt").absolute()), "separator": "|"}}


def some_stories(case: Any) -> Iterator[dict[str, Any]]:
    """A local copy, for the source that streams from the Hub."""
    next(with_package("datasets")(case))
    Path("a.jsonl").write_text("".join(f'{{"text": "story {i}"}}\n' for i in range(9)), encoding="utf-8")
    yield {"options": {"path": str(Path("a.jsonl").absolute())}}


def filled(schema: Any) -> Any:
    """The first value that keeps to a JSON schema."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        return {name: filled(inner) for name, inner in schema["properties"].items()}
    return "little fox"


def asked(case: Any) -> Iterator[dict[str, Any]]:
    """A teacher that keeps to the schema, for judges that ask one."""
    yield {"teacher": lambda request: json.dumps(filled(request.schema))}


def with_package(name: str) -> Any:
    """Of an exporter that needs a package."""

    def needs(case: Any) -> Iterator[dict[str, Any]]:
        if os.environ.get("DISTILLKIT_PEERS") != "required":
            pytest.importorskip(name, reason=f"the peer {name} is not installed")
        yield {}

    return needs


NEEDS = {  # of those that cannot be tried without anything
    ("teachers", "groq"): served,
    ("teachers", "openai"): served,
    ("teachers", "compatible"): served,
    ("sources", "text"): some_files,
    ("sources", "hub"): some_stories,
    ("judges", "rubric"): asked,
    ("judges", "pairwise"): asked,
    ("exporters", "gguf"): with_package("gguf"),
    ("exporters", "mlx"): with_package("mlx_lm"),
    ("optimizers", "mlx"): lambda case: iter([{"options": {"class": name}} for name in ("Lion", "Adafactor", "Muon")]),
}


LONG = {
    ("exporters", "hf"),
    ("exporters", "mlx"),
    ("exporters", "gguf"),
    ("sources", "hub"),
    ("judges", "teacher-likelihood"),
    ("teachers", "checkpoint"),
}
OFFERS = [
    pytest.param(
        offer,
        id=f"{offer.role}-{offer.name}",
        marks=[pytest.mark.slow] if (offer.role, offer.name) in LONG else [],
    )
    for offer in BUILT_IN
]


@pytest.mark.parametrize("offer", OFFERS)
def test_built_in_plugins_pass_every_check(offer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    check = getattr(kit, f"check_{offer.role.removesuffix('s')}")
    needs = NEEDS.get((offer.role, offer.name))
    for more in needs(monkeypatch) if needs else [{}]:
        assert len(check(offer.cls, **more)) >= 6


def test_the_kit_needs_no_test_framework_and_checks_teachers_without_mlx() -> None:
    code = (
        "import sys; from distillkit.testing import check_teacher; print('pytest' in sys.modules, 'mlx' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False"]


# ------------------------------------------------------------------------------------------------- good ones


class Echo(Teacher):
    """Says the prompt again."""

    name = "echo"

    def answer(self, request: Any) -> Answer:
        """At once."""
        words = request.prompt or "; ".join(turn["content"] for turn in request.messages or ())
        return Answer(f"{words[-40:]} again", usage=Usage(len(words), 9))


class Slow(Echo):
    """The same, awaited."""

    async def answer(self, request: Any) -> Answer:  # type: ignore[override]
        """A little later."""
        await asyncio.sleep(0)
        return Echo.answer(self, request)


class Speller(Echo):
    """Says how likely each word was."""

    signal = "top_logprobs"

    def answer(self, request: Any) -> Answer:
        """Word by word."""
        words = (" fox", " 漢字", " 🦊")
        tokens = [Token(word.encode(), -0.5, ((word.encode(), -0.5), (b"hen", -1.5))) for word in words]
        return Answer("".join(words), tuple(tokens))


class Local(Echo):
    """A student that teaches."""

    signal = "logits"

    @property
    def trained(self) -> Trained:
        """Small, and always the same."""
        from support.students import writer

        return writer()

    @property
    def tokenizer(self) -> Any:
        """Its own."""
        return self.trained.tokenizer

    def logits(self, tokens: Any) -> Any:
        """Its opinion."""
        return self.trained.logits(tokens)


class Hard(Mixer):
    """The surprise at each token, and twice that where the teacher wrote."""

    name = "hard"

    def rows(self, logits: Any, targets: Any, step: Any) -> Any:
        """Two terms."""
        surprise = -targets.log_prob(logits)
        return {"hard": surprise, "theirs": 2 * surprise}

    def weights(self, step: int) -> Any:
        """The second comes slowly."""
        return {"theirs": min(1.0, step / 100)}

    def where(self, targets: Any) -> Any:
        """The second counts rows of the teacher."""
        return {"theirs": targets.from_teacher}


class Likeliest(Hard):
    """Cross-entropy with the teacher's likeliest tokens and their residual."""

    signal = "top_logprobs"

    def rows(self, logits: Any, targets: Any, step: Any) -> Any:
        """Of the tokens that are named, or of all."""
        taught, ours = targets.both(logits)
        return {"hard": -targets.log_prob(logits), "theirs": taught.divergence(ours)}


class Reverse(Hard):
    """KL(student || teacher)."""

    signal = "logits"

    def rows(self, logits: Any, targets: Any, step: Any) -> Any:
        """From log-probabilities."""
        ours = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return {"hard": -targets.log_prob(logits), "theirs": (mx.exp(ours) * (ours - targets.soft)).sum(axis=-1)}


class Momentum(Optimizer):
    """Gradient descent with momentum."""

    name = "momentum"

    def initial_state(self, parameters: Any) -> Any:
        """No velocity."""
        return {"velocity": {name: mx.zeros_like(value) for name, value in parameters.items()}}

    def update(self, parameters: Any, gradients: Any, state: Any, step: Any) -> Any:
        """A step along the mean gradient."""
        velocity = {n: 0.9 * state["velocity"][n] + gradients[n] * step.gradient_scale for n in parameters}
        return {n: p - step.learning_rate * velocity[n] for n, p in parameters.items()}, {"velocity": velocity}


class Length(Judge):
    """Words a sample."""

    name = "length"

    def grade(self, subject: Any) -> Any:
        """Counts them."""
        return [Grade("words", len(sample.completion.split()), sample=sample.id) for sample in subject.samples]


class Asks(Judge):
    """Asks its teacher for a number."""

    name = "asks"

    def grade(self, subject: Any) -> Any:
        """Leaves out what was refused."""
        from distillkit import Request

        requests = [Request(s.id, prompt=f"Grade: {s.completion}") for s in subject.samples]
        answers = subject.ask(requests)
        if answers is None:
            raise UsageError("asks needs a teacher", "Write [judge.teacher].")
        pairs = [(r, a) for r, a in zip(requests, answers, strict=True) if a.finish != "refused"]
        return [Grade("grade", float(answer.text), sample=request.id) for request, answer in pairs]


class Numbers(Source):
    """Numbers in words."""

    name = "numbers"
    splits = ("train", "valid")

    def documents(self, split: str) -> Iterator[Document]:
        """Ten of each."""
        for i in range(10):
            yield Document(f"{split}:{i}", f"number {i}")


class Net(nn.Module):
    """Embeddings, their mean so far, and a head."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tokens = nn.Embedding(vocab_size, 8)
        self.inner = nn.Linear(8, 8)
        self.out = nn.Linear(8, vocab_size)

    def __call__(self, tokens: Any) -> Any:
        """Hidden states."""
        x = self.tokens(tokens)
        sofar = mx.cumsum(x, axis=1) / mx.arange(1, x.shape[1] + 1)[:, None]
        return mx.tanh(self.inner(x + sofar))

    @property
    def head(self) -> Any:
        """Weight and bias."""
        return self.out.weight, self.out.bias


class Mean(Student):
    """Reads the mean of what it has read."""

    name = "mean"
    context = 12
    network: ClassVar[type[Net]] = Net

    def build(self, vocab_size: int) -> Any:
        """A small one."""
        return self.network(vocab_size)


class Lines(Tracker):
    """Writes lines to a file of its own."""

    name = "lines"

    def start(self, run: Any) -> None:
        """Begins, or goes on."""
        self.file = run.path / "lines.txt"

    def log(self, step: int, values: Any) -> None:
        """A line."""
        with self.file.open("a") as file:
            file.write(f"{step} {dict(values)}\n")

    def finish(self, report: Any) -> None:
        """The last line."""
        self.log(-1, {"done": 1.0})


class Copy(Exporter):
    """Copies the weights."""

    name = "copy"

    def export(self, run: Any, folder: Path) -> list[str]:
        """The newest."""
        found = sorted(run.checkpoints.glob("*/model.safetensors"))
        if not found:
            raise UsageError("it was never trained", "Train it first.")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(found[-1].read_bytes())
        return ["the weights are those of the run"]


def seven(request: Any) -> str:
    """A teacher for judges."""
    return "7"


@pytest.mark.parametrize(
    ("check", "good", "more"),
    [
        ("teacher", Echo, {}),
        ("teacher", Slow, {}),
        ("teacher", Speller, {}),
        ("teacher", Local, {}),
        ("mixer", Hard, {}),
        ("mixer", Likeliest, {}),
        ("mixer", Reverse, {}),
        ("optimizer", Momentum, {}),
        ("judge", Length, {}),
        ("judge", Asks, {"teacher": seven}),
        ("source", Numbers, {}),
        ("student", Mean, {}),
        ("tracker", Lines, {}),
        ("exporter", Copy, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_good_plugin_passes_every_check(check: str, good: Any, more: dict[str, Any]) -> None:
    kept = getattr(kit, f"check_{check}")(good, **more)
    assert kept[:3] == ["implements its interface", "parses its options", "can be constructed"]
    assert len(kept) == len(set(kept))


# ------------------------------------------------------------------------------------------------- bad ones


@dataclass
class Bad:
    """A good class with a defect, the check that it fails, and part of the message."""

    breaks: Callable[..., None]
    good: Any
    fault: dict[str, Any]
    says: str
    more: dict[str, Any] | None = None

    @property
    def made(self) -> Any:
        """The class."""
        return type("Bad", (self.good,), {"__doc__": "It is bad.", **self.fault})

    def __str__(self) -> str:
        return f"{self.good.__name__}-{self.breaks.__name__}"


class Loose(Teacher.Options):
    """Takes anything."""

    model_config: ClassVar[Any] = {"extra": "allow", "frozen": True}


class Fluid(Teacher.Options):
    """Can be changed."""

    model_config: ClassVar[Any] = {"frozen": False}


class Wants(Teacher.Options):
    """Has no default."""

    model: str


class Wrong(Teacher.Options):
    """A default of another type."""

    words: int = "no number"  # type: ignore[assignment]


def forgets(self: Any, options: Any = None) -> None:
    Teacher.__init__(self)
    self.options = self.Options()
    self.options = None


def prints(self: Any, request: Any) -> Answer:
    print("here I am")
    return Echo.answer(self, request)


COUNT = itertools.count()


async def mixed_up(self: Any, request: Any) -> Answer:
    self.last = request
    await asyncio.sleep(0.01)
    return Echo.answer(self, self.last)


async def one_loop(self: Any, request: Any) -> Answer:
    loop = asyncio.get_running_loop()
    self.loop = getattr(self, "loop", loop)
    if self.loop is not loop:
        raise RuntimeError("the connection belongs to another loop")
    return Echo.answer(self, request)


def fails(*_: Any) -> Any:
    raise ZeroDivisionError("division by zero")


TEACHERS = [
    Bad(framework.implements_its_interface, Echo, {"signal": "txt"}, "expected one of text, top_logprobs, logits"),
    Bad(framework.implements_its_interface, Echo, {"__doc__": None}, "it has no docstring"),
    Bad(framework.parses_its_options, Echo, {"Options": Loose}, "unknown options are not refused"),
    Bad(framework.parses_its_options, Echo, {"Options": Fluid}, "its options can be changed"),
    Bad(framework.parses_its_options, Echo, {"Options": Wants}, "call check_teacher(Bad, {...})"),
    Bad(framework.parses_its_options, Echo, {"Options": Wrong}, "valid integer"),
    Bad(framework.can_be_constructed, Echo, {"__init__": forgets}, "its options are not those it was constructed with"),
    Bad(framework.can_be_constructed, Echo, {"__init__": fails}, "it raised ZeroDivisionError: division by zero"),
    Bad(teachers.has_a_json_identity, Echo, {"identity": lambda self: {1, 2}}, "cannot be serialised as JSON"),
    Bad(teachers.has_a_json_identity, Echo, {"identity": lambda self: next(COUNT)}, "with the same options"),
    Bad(teachers.answers_an_ordinary_request, Echo, {"answer": lambda self, request: "words"}, "returned a str"),
    Bad(teachers.answers_an_ordinary_request, Echo, {"answer": fails}, "failed: ZeroDivisionError"),
    Bad(teachers.answers_an_ordinary_request, Echo, {"answer": prints}, "it printed 'here I am'"),
    Bad(
        teachers.answers_an_ordinary_request,
        Echo,
        {"answer": lambda self, request: Slow.answer(self, request)},
        "returned a coroutine instead of an Answer",
    ),
    Bad(
        teachers.handles_any_text,
        Echo,
        {"answer": lambda self, request: Answer(request.prompt[0])},
        "asked to continue an empty text: it raised IndexError",
    ),
    Bad(
        teachers.handles_any_text,
        Echo,
        {"answer": lambda self, request: Answer(request.prompt.encode("ascii").decode() or "x")},
        "asked to continue a text that is not ASCII: it raised UnicodeEncodeError",
    ),
    Bad(
        teachers.handles_prompts_and_messages,
        Echo,
        {"answer": lambda self, request: Answer(request.prompt.upper() or "x")},
        "asked with messages: it raised AttributeError",
    ),
    Bad(
        teachers.gives_cacheable_answers,
        Echo,
        {"identity": lambda self: {"now": next(COUNT)}},
        "3 of 3 requests were sent a second time",
    ),
    Bad(teachers.answers_concurrent_requests, Slow, {"answer": mixed_up}, "asked concurrently it answers"),
    Bad(
        teachers.answers_concurrent_requests,
        Echo,
        {"answers": lambda self, requests: iter([(requests[0], Answer("x"))])},
        "left 3 of 4 requests without an answer",
    ),
    Bad(teachers.works_again_after_close, Slow, {"answer": one_loop}, "belongs to another loop"),
    Bad(
        teachers.reports_finish_and_usage,
        Echo,
        {"answer": lambda self, request: Answer("x", finish="eos")},
        "its answer has finish = 'eos'",
    ),
    Bad(
        teachers.reports_finish_and_usage,
        Echo,
        {"answer": lambda self, request: Answer("x", usage=Usage(1, 1000))},
        "asked for at most 24 tokens, it used 1000",
    ),
    Bad(
        teachers.reports_finish_and_usage,
        Echo,
        {"answer": lambda self, request: Answer("x", (Token(b"y", -1.0),))},
        "its tokens spell 'y', its text is 'x'",
    ),
    Bad(
        teachers.is_repeatable,
        Echo,
        {"answer": lambda self, request: Answer(str(random.random()))},
        "repeatable=False",
    ),
    Bad(teachers.scores_given_text, Echo, {"reads": True}, "asked for max_tokens = 0, it answered"),
    Bad(teachers.returns_logprobs, Echo, {"signal": "top_logprobs"}, "its answer has no tokens"),
    Bad(
        teachers.returns_logprobs,
        Speller,
        {"answer": lambda self, request: Answer("x", (Token(b"x", 0.5, ((b"x", 0.5),)),))},
        "has log-probabilities [0.5, 0.5]",
    ),
    Bad(
        teachers.returns_logits,
        Local,
        {"logits": lambda self, tokens: Local.logits(self, tokens[:, ::-1])[:, ::-1]},
        "changing the last token changes earlier logits",
    ),
    Bad(teachers.returns_logits, Local, {"logits": lambda self, tokens: Local.logits(self, tokens)[0]}, "(2, 9"),
    Bad(
        teachers.returns_logits,
        Local,
        {
            "hidden": lambda self, tokens: 2 * self.trained.model(tokens),
            "head": property(lambda self: self.trained.model.head),
        },
        "head applied to hidden states differs",
    ),
]


def rows(change: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """A mixer whose first term is changed."""

    def changed(self: Any, logits: Any, targets: Any, step: Any) -> Any:
        good = Hard.rows(self, logits, targets, step)
        return {**good, "hard": change(good["hard"], logits)}

    return {"rows": changed}


def naive(loss: Any, logits: Any) -> Any:
    probabilities = mx.exp(logits) / mx.exp(logits).sum(axis=-1, keepdims=True)
    return -mx.log(probabilities[:, 0])


MIXERS = [
    Bad(
        mixers.returns_named_terms,
        Hard,
        rows(lambda loss, logits: loss.mean()),
        "the term 'hard' is of shape () for 12 rows",
    ),
    Bad(
        mixers.returns_named_terms,
        Hard,
        {"rows": lambda self, logits, targets, step: {f"hard{step.item() > 50}": -targets.log_prob(logits)}},
        "at step 100",
    ),
    Bad(mixers.weights_known_terms, Hard, {"weights": lambda self, step: {"hrad": 1.0}}, "it weighs ['hrad']"),
    Bad(mixers.weights_known_terms, Hard, {"weights": lambda self, step: {"hard": float("inf")}}, "at step 0"),
    Bad(mixers.masks_rows, Hard, {"where": lambda self, targets: {"soft": targets.weight}}, "the term 'soft'"),
    Bad(
        mixers.masks_rows,
        Hard,
        {"where": lambda self, targets: {"hard": targets.weight / 2}},
        "Return 0 or 1 for each row",
    ),
    Bad(
        mixers.keeps_rows_independent, Hard, rows(lambda loss, logits: loss - loss.mean()), "when it is computed alone"
    ),
    Bad(
        mixers.is_chunk_independent,
        Hard,
        rows(lambda loss, logits: loss / loss.shape[0]),
        "in chunks of 1 rows",
    ),
    Bad(
        mixers.is_repeatable,
        Hard,
        rows(lambda loss, logits: loss * mx.random.uniform(shape=loss.shape)),
        "differs when computed again",
    ),
    Bad(mixers.stays_finite_at_extremes, Hard, rows(naive), "is not finite"),
    Bad(
        mixers.has_correct_gradients,
        Hard,
        rows(lambda loss, logits: loss * mx.stop_gradient(loss)),
        "gradients=False",
    ),
]


def grades(make: Callable[[Any], Any]) -> dict[str, Any]:
    return {"grade": lambda self, subject: [make(sample) for sample in subject.samples]}


class Forgetful(Length):
    """Sums up what it remembers."""

    def grade(self, subject: Any) -> Any:
        """And remembers."""
        self.seen = Length.grade(self, subject)
        return self.seen

    def summarise(self, grades: Any) -> Any:
        """Not what it is given."""
        return {"words": Metric(float(len(getattr(self, "seen", ()))))}


JUDGES = [
    Bad(judges.grades_its_subject, Length, {"grade": lambda self, subject: []}, "it yielded no grades"),
    Bad(
        judges.grades_its_subject, Length, grades(lambda s: Grade("x", 1.0, sample="y")), "which is not in the subject"
    ),
    Bad(judges.grades_its_subject, Length, grades(lambda s: Grade("x", float("nan"))), "a score of nan"),
    Bad(judges.grades_its_subject, Length, grades(lambda s: 3), "returned a int instead of a Grade"),
    Bad(judges.grades_its_subject, Asks, {}, "check_judge(..., teacher=lambda request: ...)"),
    Bad(judges.summarises_its_grades, Forgetful, {}, "metrics of stored grades are"),
    Bad(
        judges.summarises_its_grades,
        Length,
        {"summarise": lambda self, grades: {"words": Metric(1.0, 2.0, 3.0)}},
        "low <= value <= high",
    ),
    Bad(
        judges.is_repeatable,
        Length,
        grades(lambda s: Grade("x", random.random(), sample=s.id)),
        "the same subject got different grades",
    ),
    Bad(
        judges.handles_an_empty_subject,
        Length,
        {"grade": lambda self, subject: [Grade("x", 1 / len(subject.samples))]},
        "without samples it failed: ZeroDivisionError",
    ),
    Bad(
        judges.handles_empty_samples,
        Length,
        {"requests": lambda self, subject: [judge_request()] * (9 // max(len(s.completion) for s in subject.samples))},
        "with empty samples, the judge 'length' failed to list its requests: ZeroDivisionError",
    ),
    Bad(
        judges.handles_empty_samples,
        Length,
        {"grade": lambda self, s: [Grade("x", 1 / sum(len(one.completion) for one in s.samples))] if s.samples else []},
        "with empty samples it failed: ZeroDivisionError",
    ),
    Bad(
        judges.handles_refused_requests,
        Asks,
        {"grade": lambda self, s: [Grade("x", float(a.text)) for a in s.ask([judge_request()]) or ()]},
        "when its teacher refuses it failed: ValueError",
        {"teacher": seven},
    ),
    Bad(
        judges.handles_a_missing_teacher,
        Asks,
        {"grade": lambda self, s: [Grade("x", len(a.text)) for a in s.ask([judge_request()])]},
        "without a teacher it failed: TypeError",
        {"teacher": seven},
    ),
]


def judge_request() -> Any:
    from distillkit import Request

    return Request("1", prompt="Grade this.")


def yields(*texts: Any) -> dict[str, Any]:
    return {"documents": lambda self, split: (Document(f"{split}:{i}", text) for i, text in enumerate(texts))}


class Handle(Numbers):
    """All readers share one place."""

    splits = ("train",)

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.place = 0

    def documents(self, split: str) -> Iterator[Document]:
        """From where anybody is."""
        self.place = 0
        while self.place < 10:
            self.place += 1
            yield Document(f"{split}:{self.place}", f"number {self.place}")


SOURCES = [
    Bad(sources.names_its_splits, Numbers, {"splits": ("valid",)}, 'Write splits = ("train",)'),
    Bad(
        sources.has_a_json_fingerprint,
        Numbers,
        {"fingerprint": lambda self: id(self) + next(COUNT)},
        "with the same options",
    ),
    Bad(sources.yields_documents, Numbers, yields(), "the split 'train' has no documents"),
    Bad(sources.yields_documents, Numbers, yields(None), "Yield Document(id, text)"),
    Bad(sources.yields_documents, Numbers, yields("half \ud83e"), "contains half a character"),
    Bad(
        sources.gives_unique_ids,
        Numbers,
        {"documents": lambda self, split: iter([Document("1", "a"), Document("1", "b")])},
        "documents have the id '1'",
    ),
    Bad(
        sources.keeps_document_order,
        Numbers,
        {"documents": lambda self, split: iter(random.sample(list(Numbers.documents(self, split)), 10))},
        "differs when read again",
    ),
    Bad(sources.allows_concurrent_readers, Handle, {}, "two interleaved readers"),
]


def network(**fault: Any) -> dict[str, Any]:
    return {"network": type("BadNet", (Net,), fault)}


class Idle(Net):
    """A parameter that nothing depends on."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.idle = mx.ones((3,))


class Hidden(Net):
    """Something that decides the output and is no parameter."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self._scale = mx.random.uniform(shape=(1,))

    def __call__(self, tokens: Any) -> Any:
        """Scaled."""
        return super().__call__(tokens) * self._scale


class Unseeded(Net):
    """Draws elsewhere."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.tokens.weight = mx.array(np.random.default_rng().normal(size=(vocab_size, 8)).astype(np.float32))


STUDENTS = [
    Bad(students.declares_its_context, Mean, {"context": "12"}, "its context is '12'"),
    Bad(students.returns_hidden_states, Mean, {"build": lambda self, size: None}, "build returned a NoneType"),
    Bad(
        students.returns_hidden_states,
        Mean,
        network(__call__=lambda self, tokens: Net.__call__(self, tokens)[0]),
        "Return hidden states [B, T, D]",
    ),
    Bad(students.offers_its_head, Mean, network(head=None), "its network has no head"),
    Bad(
        students.offers_its_head,
        Mean,
        network(head=property(lambda self: (self.out.weight.T, None))),
        "a weight of shape",
    ),
    Bad(
        students.is_causal,
        Mean,
        network(__call__=lambda self, tokens: Net.__call__(self, tokens[:, ::-1])[:, ::-1]),
        "Mask later tokens",
    ),
    Bad(
        students.keeps_rows_independent,
        Mean,
        network(__call__=lambda self, t: Net.__call__(self, t) - Net.__call__(self, t).mean(axis=0)),
        "another row of the batch",
    ),
    Bad(students.is_reproducible_from_a_seed, Mean, {"network": Unseeded}, "the same seed gives different weights"),
    Bad(students.reloads_from_its_weights, Mean, {"network": Hidden}, "restored from a checkpoint"),
    Bad(students.trains_every_parameter, Mean, {"network": Idle}, "the loss does not depend on idle"),
]


def opens(name: str) -> Any:
    """A tracker that wants to be the only one that ever begins, or the only one that is there."""

    def start(self: Any, run: Any) -> None:
        Lines.start(self, run)
        self.lock = run.path / name
        self.lock.touch(exist_ok=False)

    return start


def closes(self: Any, report: Any) -> None:
    self.lock.unlink()


def spoils(self: Any, report: Any) -> None:
    (self.file.parent / "metrics.jsonl").write_text("mine")


TRACKERS = [
    Bad(trackers.tracks_a_complete_run, Lines, {"finish": fails}, "it raised ZeroDivisionError"),
    Bad(
        trackers.tracks_a_resumed_run,
        Lines,
        {"start": opens("mine")},
        "it raised FileExistsError",
    ),
    Bad(
        trackers.handles_an_interrupted_run,
        Lines,
        {"start": opens("lock"), "finish": closes},
        "it raised FileExistsError",
    ),
    Bad(
        trackers.handles_unusual_values,
        Lines,
        {"log": lambda self, step, values: int(values.get("loss", 0))},
        "it raised ValueError",
    ),
    Bad(
        trackers.handles_unusual_values,
        Lines,
        {"log": lambda self, step, values: values.clear()},
        "Copy the values before you change them",
    ),
    Bad(trackers.leaves_the_run_unchanged, Lines, {"finish": spoils}, "it changed metrics.jsonl of the run"),
]


def stamps(self: Any, run: Any, folder: Path) -> list[str]:
    told = Copy.export(self, run, folder)
    (folder / "stamp").write_text(str(next(COUNT)))
    return told


def within(self: Any, run: Any, folder: Path) -> list[str]:
    (run.path / "export.json").write_text("{}")
    return Copy.export(self, run, folder)


def bare(self: Any, run: Any, folder: Path) -> list[str]:
    if not list(run.checkpoints.glob("*")):
        raise UsageError("it was never trained")
    (folder / "a").write_text(str(folder), encoding="ascii")
    return ["an x"]


EXPORTERS = [
    Bad(
        exporters.writes_and_verifies_files,
        Copy,
        {"export": lambda self, run, folder: [Copy.export(self, run, folder)][1:]},
        "it returned []",
    ),
    Bad(exporters.accepts_any_folder_name, Copy, {"export": bare}, "it raised UnicodeEncodeError"),
    Bad(exporters.leaves_the_run_unchanged, Copy, {"export": within}, "it changed the run"),
    Bad(
        exporters.refuses_an_untrained_run,
        Copy,
        {"export": lambda self, run, folder: [next(run.checkpoints.glob("*")).name]},
        "a run without a checkpoint: StopIteration",
    ),
    Bad(exporters.is_repeatable, Copy, {"export": stamps}, "exported twice, stamp differs"),
]


def updated(change: Any) -> dict[str, Any]:
    """An `update` whose result is changed."""

    def update(self: Any, parameters: Any, gradients: Any, state: Any, step: Any) -> Any:
        return change(Momentum.update(self, parameters, gradients, state, step), parameters, gradients, state, step)

    return {"update": update}


def forgets_the_scale(self: Any, parameters: Any, gradients: Any, state: Any, step: Any) -> Any:
    return Momentum.update(self, parameters, gradients, state, replace(step, gradient_scale=mx.array(1.0)))


def spoils_the_state(result: Any, parameters: Any, gradients: Any, state: Any, step: Any) -> Any:
    state["velocity"].update(result[1]["velocity"])
    return result


def counts_calls(self: Any, parameters: Any, gradients: Any, state: Any, step: Any) -> Any:
    self.calls = getattr(self, "calls", 0) + 1
    rate = step.learning_rate / self.calls
    return Momentum.update(self, parameters, gradients, state, replace(step, learning_rate=rate))


def clips_by_itself(self: Any, parameters: Any, gradients: Any, state: Any, step: Any) -> Any:
    norm = mx.sqrt(sum((value**2).sum() for value in gradients.values()))
    return Momentum.update(self, parameters, {n: g / norm for n, g in gradients.items()}, state, step)


OPTIMIZERS = [
    Bad(optimizers.chooses_its_parameters, Momentum, {"accepts": lambda s, n, p: False}, "it accepts none of"),
    Bad(
        optimizers.names_its_state,
        Momentum,
        {"initial_state": lambda s, ps: {"a.b": {n: mx.zeros_like(p) for n, p in ps.items()}}},
        "a slot is named 'a.b'",
    ),
    Bad(
        optimizers.returns_what_it_was_given,
        Momentum,
        updated(lambda result, *more: (dict(list(result[0].items())[1:]), result[1])),
        "Return every parameter that was passed",
    ),
    Bad(optimizers.leaves_its_arguments_unchanged, Momentum, updated(spoils_the_state), "it changed a dictionary"),
    Bad(
        optimizers.is_repeatable,
        Momentum,
        updated(lambda r, *more: ({n: p + 1e-3 * mx.random.normal(p.shape) for n, p in r[0].items()}, r[1])),
        "came to different parameters",
    ),
    Bad(optimizers.continues_from_a_saved_state, Momentum, {"update": counts_calls}, "does not continue like"),
    Bad(optimizers.updates_parts_like_the_whole, Momentum, {"update": clips_by_itself}, "when it is passed alone"),
    Bad(
        optimizers.multiplies_gradients_by_the_scale,
        Momentum,
        {"update": forgets_the_scale},
        "are not multiplied by step.gradient_scale",
    ),
    Bad(
        optimizers.changes_nothing_at_a_rate_of_zero,
        Momentum,
        updated(lambda result, *more: ({n: 0.99 * p for n, p in result[0].items()}, result[1])),
        "a learning rate of 0 changes parameters",
    ),
    Bad(
        optimizers.minimises_a_quadratic,
        Momentum,
        updated(lambda r, ps, *more: ({n: 2 * ps[n] - p for n, p in r[0].items()}, r[1])),
        "the loss went from",
    ),
]
KINDS = {
    "teacher": TEACHERS,
    "mixer": MIXERS,
    "optimizer": OPTIMIZERS,
    "judge": JUDGES,
    "source": SOURCES,
    "student": STUDENTS,
    "tracker": TRACKERS,
    "exporter": EXPORTERS,
}


@pytest.mark.parametrize(("kind", "bad"), [(kind, bad) for kind, bads in KINDS.items() for bad in bads], ids=str)
def test_a_failed_check_is_reported_with_a_remedy(kind: str, bad: Bad) -> None:
    with pytest.raises(AssertionError) as caught:
        getattr(kit, f"check_{kind}")(bad.made, **(bad.more or {}))
    told = str(caught.value)
    assert told.startswith("Bad fails ")
    assert f"\n  {framework.check_name(bad.breaks)}: " in told
    assert bad.says in told
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("kind", KINDS)
def test_every_check_of_every_role_is_failed_by_one_of_these(kind: str) -> None:
    good = {"teacher": (Echo, Speller, Local), "mixer": (Hard,), "judge": (Length, Asks), "source": (Numbers,)}
    good |= {"student": (Mean,), "tracker": (Lines,), "exporter": (Copy,), "optimizer": (Momentum,)}
    more = {Asks: {"teacher": seven}}
    check = getattr(kit, f"check_{kind}")
    all_of_them = {name for one in good[kind] for name in check(one, **more.get(one, {}))}
    of_all_roles = {"implements its interface", "parses its options", "can be constructed"}
    assert all_of_them - of_all_roles == {framework.check_name(bad.breaks) for bad in KINDS[kind]} - of_all_roles


def test_whoever_cannot_repeat_itself_may_say_so() -> None:
    class Moody(Echo):
        """Never the same."""

        def answer(self, request: Any) -> Answer:
            """By chance."""
            return Answer(str(random.random()))

    assert "is repeatable" not in kit.check_teacher(Moody, repeatable=False)


def test_a_refusal_in_words_is_as_good_as_an_answer() -> None:
    class Picky(Echo):
        """Wants short prompts."""

        def answer(self, request: Any) -> Answer:
            """Or none."""
            if not request.prompt or len(request.prompt) > 300:
                raise DistillkitError("it takes prompts of up to 300 characters", "Cut them.")
            return Echo.answer(self, request)

    assert "handles any text" in kit.check_teacher(Picky)


def test_several_failed_checks_are_reported_together() -> None:
    bad = type(
        "Bad", (Hard,), {"__doc__": "Bad.", "weights": lambda s, step: {"x": 1.0}, "where": lambda s, t: {"y": 1}}
    )
    with pytest.raises(AssertionError, match="fails 2 checks of check_mixer") as caught:
        kit.check_mixer(bad)
    assert "\n  weights known terms: at step 0 it weighs ['x']\n    Its terms are hard, theirs.\n" in str(caught.value)
