"""Builds what judges see of a run: its samples, its texts, its student.

The judge stage writes the samples that are missing. A plan uses placeholders for them, so that it counts the same
requests as the judges will make. Does not know what judges do with a subject.
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


class SubjectBuilder:
    """The subject of a run's judges. Without a run, no sample exists yet."""

    def __init__(self, context: Context, run: Run | None = None) -> None:
        self.context, self.run, self.table = context, run, context.recipe.sampling

    # ------------------------------------------------------------------------------------------ samples

    @cached_property
    def rows(self) -> list[sampling.PlannedSample]:
        """The samples to generate: prompt, seed and temperature of each."""
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
        if not self.context.has_local_corpus:  # for a plan: placeholders of the same length
            return [(str(i), "word " * table.prompt_tokens) for i in range(count)]
        return sampling.held_out_prompts(self._held_out, count, self._truncate)

    def _truncate(self, text: str) -> str:
        return self.context.truncate(text, self.table.prompt_tokens)

    @cached_property
    def _held_out(self) -> Sequence[Document]:
        return self.context.corpus.held_out_documents if self.context.has_local_corpus else ()

    @cached_property
    def sampling_digest(self) -> str | None:
        """Digest of the weights and sampling options, which determine the samples with `rows`. None if untrained."""
        from ..student import fingerprint

        if self.run is None:
            return None
        try:
            return self._digest_for(fingerprint(self.run.path))
        except UsageError:
            return None

    def _digest_for(self, weights: str) -> str:
        # The temperature is part of each row.
        options = {**self.table.sampler_options, "temperature": None, "max_tokens": self.table.max_tokens}
        return digest({"weights": weights, **options})

    def existing_samples(self) -> dict[Any, str]:
        """The completions that the same weights wrote earlier, by row key. A changed file is ignored."""
        recorded = dict(self.run.info.get("sampling") or {}) if self.run else {}
        if self.run is None or self.sampling_digest is None or recorded.get("made_of") != self.sampling_digest:
            return {}
        if not self.run.samples.is_file() or recorded.get("sha256") not in (None, file_digest(self.run.samples)):
            self.context.console.warn(
                f"{self.run.samples} was changed after it was written; the student writes the samples again"
            )
            return {}
        samples = [Sample.from_json(row) for row in read_jsonl(self.run.samples)]
        return {(sample.prompt, sample.seed, sample.temperature): sample.completion for sample in samples}

    def write_samples(self, student: Any) -> list[Sample]:
        """All samples. Those that are missing are generated now, and stored in the run."""
        from ..student import Sampling

        assert self.run is not None
        self.sampling_digest = self._digest_for(student.fingerprint)  # training may change the run's weights meanwhile

        def write(prompts: Sequence[str], seeds: Sequence[int], temperature: float) -> Iterator[str]:
            options = Sampling(temperature, **self.table.sampler_options)
            return (one.text for one in student.write(prompts, seeds, options, self.table.max_tokens))

        samples = sampling.generate_samples(self.rows, write, self.existing_samples())
        write_jsonl(self.run.samples, [sample.to_json() for sample in samples])
        self.run.record(
            sampling={
                "made_of": self.sampling_digest,
                "sha256": file_digest(self.run.samples),
                "weights": student.weights_sha256,
                "prompts": self.table.prompts,
                "digest": digest(sorted({row.prompt for row in self.rows})),
                "samples": len(samples),
            }
        )
        return samples

    @property
    def missing(self) -> int:
        """The number of samples that are not written yet."""
        existing = self.existing_samples()
        return sum(row.key not in existing for row in self.rows)

    def _placeholder_samples(self, long: bool) -> list[Sample]:
        """The samples, with placeholders for missing ones: held-out text of the maximum length, or empty text."""
        existing, texts = self.existing_samples(), cycle(self._long_texts() if long else [""])
        return [row.sample(existing[row.key] if row.key in existing else next(texts)) for row in self.rows]

    def _long_texts(self) -> list[str]:
        """Continuations of held-out documents, as long as the recipe allows."""
        max_tokens, texts = self.table.max_tokens, [document.text for document in islice(self._held_out, 200)]
        start = self.table.prompt_tokens if self.table.prompts == "held_out" else 0
        encoded = [self.context.tokenizer.encode(text)[start : start + max_tokens] for text in texts]
        continuations = [self.context.tokenizer.decode(tokens) for tokens in encoded]
        return [text for text in continuations if text] or ["and they all went home. " * (max_tokens // 6)]

    # ------------------------------------------------------------------------------------------ subjects

    def subject(self, student: Any, compared_runs: Sequence[Run] = ()) -> protocol.RunSubject:
        """The subject with its student. Missing samples are generated."""
        return protocol.RunSubject(
            samples=self.write_samples(student),
            held_out=self.context.corpus.held_out_documents,
            student=student,
            read_train=self.context.corpus.train_text,
            others=[compared_subject(run) for run in compared_runs],
            name=self._name,
        )

    def placeholder_subject(self, compared_runs: Sequence[Run] = (), long: bool = True) -> protocol.RunSubject:
        """The subject for a plan, with placeholders for missing samples: long texts or empty ones."""
        return self.subject_without_student(self._placeholder_samples(long), "it is only being planned", compared_runs)

    def subject_without_student(
        self, samples: Sequence[Sample], why: str, compared_runs: Sequence[Run] = ()
    ) -> protocol.RunSubject:
        """A subject of given samples, for example anchors. `why` there is no student goes into the error message."""
        others = [compared_subject(run) for run in compared_runs]

        def train_text() -> Iterator[str]:
            return self.context.corpus.train_text()

        return protocol.RunSubject(samples, self._held_out, MissingStudent(why), train_text, others, None, self._name)

    @property
    def _name(self) -> str:
        return self.run.name if self.run else self.context.recipe.name


def compared_subject(run: Run) -> Subject:
    """Another run to compare with. Only its samples are known."""
    if not (samples := read_samples(run)):
        raise UsageError(
            f"the samples of {run.name} were not written yet", f"Write them: distillkit judge {run.name} --samples 50"
        )
    return protocol.RunSubject(
        samples, (), MissingStudent(f"{run.name} is only compared with"), lambda: (), name=run.name
    )


class NoStudentError(UsageError):
    """A judge needs the student itself, but there are only samples."""


@dataclass(frozen=True)
class MissingStudent(Scorer):
    """Takes the place of a student and raises `NoStudentError` when it is used."""

    why: str

    def generate(self, prompts: Sequence[str], *, max_tokens: int, seed: int = 0) -> Sequence[Sample]:
        """Raise `NoStudentError`."""
        raise NoStudentError(f"there is no student here: {self.why}")

    def score(self, texts: Sequence[str]) -> Any:
        """Raise `NoStudentError`."""
        raise NoStudentError(f"there is no student here: {self.why}")

    def score_after(self, prompts: Sequence[str], texts: Sequence[str]) -> Any:
        """Raise `NoStudentError`."""
        raise NoStudentError(f"there is no student here: {self.why}")
