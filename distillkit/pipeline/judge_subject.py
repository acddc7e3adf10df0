"""What judges see of a run: its samples, written once and kept, its texts, and a teacher to ask.

The pipeline writes what is missing; the plan counts the same requests over samples that are not written yet. Decides
nothing about what judges make of it, and nothing about the order of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from math import ceil
from pathlib import Path
from typing import Any

from ..core.errors import UsageError
from ..core.files import digest, file_digest, read_jsonl, write_jsonl
from ..core.records import Document, Sample
from ..core.run_folder import Run
from ..judging import protocol, sampling
from ..plugins.interfaces import Scorer, Subject
from ..reporting.run.report import read_samples
from .context import Context

UNWRITTEN = "the samples of {name} were not written yet"


class SubjectBuilder:
    """The subject of a run's judges, part by part. Without a run nothing is written yet."""

    def __init__(self, context: Context, run: Run | None = None) -> None:
        self.context, self.run, self.table = context, run, context.recipe.sampling

    # ------------------------------------------------------------------------------------------ samples

    @cached_property
    def rows(self) -> list[sampling.PlannedSample]:
        """What is to be written."""
        table = self.table
        return sampling.plan_samples(
            self._prompts(), table.count, self.context.recipe.seed, table.repeats, table.temperatures
        )

    def _prompts(self) -> list[tuple[str, str]]:
        table, count = self.table, ceil(self.table.count / self.table.repeats)
        if table.prompts == sampling.STORIES:
            return sampling.story_prompts(count)
        if table.prompts != "held_out":
            return sampling.file_prompts(Path(table.prompts), count)
        if not self.context.has_local_corpus:  # it is only being planned: stand-ins of the same length fetch nothing
            return [(str(i), "word " * table.prompt_tokens) for i in range(count)]
        return sampling.held_out_prompts(self._held_out, count, self._beginning)

    def _beginning(self, text: str) -> str:
        return self.context.truncate(text, self.table.prompt_tokens)

    @cached_property
    def _held_out(self) -> Sequence[Document]:
        return self.context.corpus.held_out_documents if self.context.has_local_corpus else ()

    @cached_property
    def made_of(self) -> str | None:
        """What decides the samples beside their rows: weights, and how tokens are drawn. None of an untrained run."""
        from ..student import fingerprint

        if self.run is None:
            return None
        try:
            return self._made_of(fingerprint(self.run.path))
        except UsageError:
            return None

    def _made_of(self, weights: str) -> str:
        # Of no temperature: each sample says its own.
        drawn = {**self.table.how, "temperature": None, "max_tokens": self.table.max_tokens}
        return digest({"weights": weights, **drawn})

    def kept(self) -> dict[Any, str]:
        """The samples that this very student wrote before, by what decides them. What was altered since is not kept."""
        noted = dict(self.run.info.get("sampling") or {}) if self.run else {}
        if self.run is None or self.made_of is None or noted.get("made_of") != self.made_of:
            return {}
        if not self.run.samples.is_file() or noted.get("sha256") not in (None, file_digest(self.run.samples)):
            self.context.console.warn(
                f"{self.run.samples} is not what was written there; the student writes them again"
            )
            return {}
        samples = [Sample.from_json(row) for row in read_jsonl(self.run.samples)]
        return {(sample.prompt, sample.seed, sample.temperature): sample.completion for sample in samples}

    def written(self, student: Any) -> list[Sample]:
        """All samples; those that are missing are written now, and kept."""
        from ..student import Sampling

        assert self.run is not None
        self.made_of = self._made_of(student.fingerprint)  # of these weights, though training may go on meanwhile

        def write(prompts: Sequence[str], seeds: Sequence[int], temperature: float) -> Iterator[str]:
            how = Sampling(temperature, **self.table.how)
            return (one.text for one in student.write(prompts, seeds, how, self.table.max_tokens))

        samples = sampling.generate_samples(self.rows, write, self.kept())
        write_jsonl(self.run.samples, [sample.to_json() for sample in samples])
        prompts = {"prompts": self.table.prompts, "digest": digest(sorted({row.prompt for row in self.rows}))}
        made = {"made_of": self.made_of, "sha256": file_digest(self.run.samples), "weights": student.weights_sha256}
        self.run.record(sampling={**made, **prompts, "samples": len(samples)})
        return samples

    def foreseen(self, wordy: bool = True) -> list[Sample]:
        """The samples as far as they are written; others of held-out text as long as they may be, or without a word."""
        kept, lines = self.kept(), cycle(self._lengthy() if wordy else [""])
        return [row.sample(kept[row.key] if row.key in kept else next(lines)) for row in self.rows]

    @property
    def missing(self) -> int:
        """How many samples are still to be written."""
        kept = self.kept()
        return sum(row.key not in kept for row in self.rows)

    def _lengthy(self) -> list[str]:
        """Continuations of a student that had learnt everything: held-out text, no longer than allowed."""
        most, texts = self.table.max_tokens, [document.text for document in islice(self._held_out, 200)]
        begun = self.table.prompt_tokens if self.table.prompts == "held_out" else 0
        encoded = [self.context.tokenizer.encode(text)[begun : begun + most] for text in texts]
        cut = [self.context.tokenizer.decode(tokens) for tokens in encoded]
        return [text for text in cut if text] or ["and they all went home. " * (most // 6)]

    # ------------------------------------------------------------------------------------------ subjects

    def subject(self, student: Any, others: Sequence[Run] = ()) -> protocol.RunSubject:
        """What judges see; samples that are missing are written."""
        return protocol.RunSubject(
            samples=self.written(student),
            held_out=self.context.corpus.held_out_documents,
            student=student,
            read_train=self.context.corpus.train_text,
            others=[compared_subject(run) for run in others],
            name=self.run.name if self.run else self.context.recipe.name,
        )

    def imagined(self, others: Sequence[Run] = (), wordy: bool = True) -> protocol.RunSubject:
        """The same before anything is written, for a judge to say what it would ask."""
        return self.without_student(self.foreseen(wordy), "it is only being planned", others)

    def without_student(self, samples: Sequence[Sample], why: str, others: Sequence[Run] = ()) -> protocol.RunSubject:
        """Samples that no student is at hand for: foreseen ones, or anchors."""
        name = self.run.name if self.run else self.context.recipe.name
        around = [compared_subject(run) for run in others]

        def train_text() -> Iterator[str]:
            return self.context.corpus.train_text()

        return protocol.RunSubject(samples, self._held_out, MissingStudent(why), train_text, around, None, name)


def compared_subject(run: Run) -> Subject:
    """A further run, as far as its folder shows it."""
    if not (samples := read_samples(run)):
        raise UsageError(UNWRITTEN.format(name=run.name), f"Write them: distillkit judge {run.name} --samples 50")
    return protocol.RunSubject(
        samples, (), MissingStudent(f"{run.name} is only compared with"), lambda: (), name=run.name
    )


class NoStudentError(UsageError):
    """A judge wanted a student where there is none: it grades students, not samples."""


@dataclass(frozen=True)
class MissingStudent(Scorer):
    """Stands where there is no student, and says so to whoever wants one."""

    why: str

    def generate(self, prompts: Sequence[str], *, max_tokens: int, seed: int = 0) -> Sequence[Sample]:
        """Nothing can be written."""
        raise NoStudentError(f"there is no student here: {self.why}")

    def score(self, texts: Sequence[str]) -> Any:
        """Nothing can be scored."""
        raise NoStudentError(f"there is no student here: {self.why}")

    def score_after(self, prompts: Sequence[str], texts: Sequence[str]) -> Any:
        """Nothing can be scored."""
        raise NoStudentError(f"there is no student here: {self.why}")
