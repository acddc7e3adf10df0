"""The soft targets of a run, and where they are stored: beside the answers they came with, or in the cache.

Where they come from is `Context.soft_target_source`. The format of a store is `teachers.soft_targets`; what a mixer
does with a soft target is part of the student.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import UsageError
from ..core.files import atomic_folder, file_lock, make_private_folder
from ..core.records import Answer
from ..core.run_folder import cache_folder
from ..data.shards import Stream
from ..plugins.interfaces import Teacher
from ..teachers.soft_targets import from_logits
from ..teachers.soft_targets.align import ALIGNMENT_RULE, Aligner
from ..teachers.soft_targets.store import Binding, SoftTargetStore, SoftTargetWriter
from .checks import check_teacher_context
from .context import Context, SoftTargetSource

STORE, ANSWERS = SoftTargetSource.STORE, SoftTargetSource.ANSWERS
DEFAULT_TOP_LOGPROBS = 20  # tokens per position, if the recipe does not say


class SoftTargets:
    """The soft targets of one recipe."""

    def __init__(self, context: Context) -> None:
        self.context, self.table = context, context.recipe.teacher
        self.source = context.soft_target_source

    @property
    def logits_teacher(self) -> Teacher:
        """The teacher, for its logits. Refused if its tokens are not the student's, or its context is shorter."""
        teacher, tokenizer = self.context.teacher, self.context.tokenizer
        assert teacher is not None
        if teacher.tokenizer.fingerprint != tokenizer.fingerprint:
            named = getattr(teacher.options, "model", teacher.name)
            raise UsageError(
                "the teacher's tokenizer is not the student's, so its logits belong to other tokens "
                f"({self.context.recipe.file})",
                f'Give the student the teacher\'s tokenizer, tokenizer.kind = "{named}"; or align its answers: '
                'teacher.signal = "top_logprobs", teacher.top_logprobs = 20 and teacher.prompts.',
            )
        check_teacher_context(self.context)
        return teacher

    # ------------------------------------------------------------------------------------------ stores

    def binding(self, stream: Stream) -> Binding:
        """What the soft targets of a stream were made from and for: a store with another binding is refused."""
        teacher, table, tokenizer = self.context.teacher, self.table, self.context.tokenizer
        assert teacher is not None
        assert table is not None
        common: dict[str, Any] = {
            "tokenizer": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "teacher": {"name": teacher.name, "identity": teacher.identity()},
            "stream": stream.fingerprint,
            "tokens": stream.tokens,
        }
        if self.source == ANSWERS:
            return Binding(**common, most=table.top_logprobs, rule=ALIGNMENT_RULE)
        context_length, samples = self.context.student.context, table.store_samples
        seed = self.context.recipe.seed if samples else None
        most = samples or min(table.top_logprobs or DEFAULT_TOP_LOGPROBS, tokenizer.vocab_size)
        return Binding(**common, context=context_length, most=most, samples=samples, seed=seed)

    def folder_of(self, stream: Stream) -> Path:
        """The folder of a stream's soft targets: beside the run's answers, or in the cache that all runs share."""
        if self.source == ANSWERS:
            return stream.folder.parent / "soft"
        return cache_folder() / "soft" / self.binding(stream).key[:32]

    def open(self, streams: Sequence[Stream]) -> list[SoftTargetStore | None]:
        """The stores of streams, None for streams without one. Checksums are verified."""
        stores = [
            SoftTargetStore(self.folder_of(one), self.binding(one)) if self._has_store(one) else None for one in streams
        ]
        for store in filter(None, stores):
            store.verify()
        return stores

    def _has_store(self, stream: Stream) -> bool:
        return self.source == STORE or (self.source == ANSWERS and stream.from_teacher)

    # ------------------------------------------------------------------------------------------ creating them

    def align(self, stream: Stream, answers: Sequence[Answer]) -> SoftTargetStore:
        """Store the soft targets of packed answers, from the log-probabilities that came with them."""
        aligner = Aligner(self.context.tokenizer)
        folder, binding = self.folder_of(stream), self.binding(stream)
        with atomic_folder(folder) as part:
            writer = SoftTargetWriter(part, binding)
            for (start, stop), answer in zip(_documents(stream), answers, strict=True):
                rows = aligner.align(stream.read(start, stop).astype(np.int64), answer)
                weights = stream.weights(start, stop)
                weights[: 1 if start == 0 else 0] = 0  # the first token follows nothing, so it is no target
                writer.add(rows, weights)
            writer.close()
        return SoftTargetStore(folder, binding)

    def build(self, streams: Sequence[Stream]) -> list[SoftTargetStore]:
        """Store the teacher's logits for streams, if the cache does not have them yet."""
        return [self._build(stream) for stream in streams]

    def _build(self, stream: Stream) -> SoftTargetStore:
        folder, binding, console = self.folder_of(stream), self.binding(stream), self.context.console
        make_private_folder(folder.parent)
        with file_lock(
            folder, lambda: console.print("Waiting for another process that asks for the same soft targets.")
        ):
            writer = SoftTargetWriter(folder, binding)
            if writer.done == stream.tokens:
                return writer.close()
            what = "the teacher's own text" if stream.from_teacher else "the corpus"
            resumed = f", resuming at {writer.done:,}" if writer.done else ""
            console.print(f"{self.logits_teacher.name} reads {what}: {stream.tokens:,} tokens{resumed}.")
            return from_logits.write_soft_targets(self.logits_teacher, stream, writer, console)

    def summary(self, stores: Sequence[SoftTargetStore]) -> dict[str, Any]:
        """Totals over stores, for `run.json`: positions, those with a soft target, their mass, bytes."""
        each = [store.summary for store in stores]
        soft = sum(one["with_soft"] for one in each)
        mass = sum(one["mass"] * one["with_soft"] for one in each)
        positions = sum(store.binding.tokens for store in stores)
        size = sum(one["bytes"] for one in each)
        return {
            "from": self.source.value,
            "positions": sum(one["positions"] for one in each),
            "with_soft": soft,
            "mass": round(mass / soft, 6) if soft else 0.0,
            "bytes": size,
            "bytes_a_position": round(size / positions, 2) if positions else 0.0,
        }

    def estimate(self, answers: int) -> dict[str, Any] | None:
        """The positions and bytes that will be stored if every answer has the maximum length.

        With another tokenizer, an answer has at most one soft target per teacher token, and up to twice as many
        student tokens.
        """
        table = self.table
        if table is None or self.source not in (STORE, ANSWERS) or (self.source == ANSWERS and not answers):
            return None
        binding = self.binding(self.context.corpus.train)
        written, prompts = answers * table.max_tokens, answers * table.prompt_tokens
        if self.source == STORE:
            positions, empty = self.context.corpus.train.tokens + prompts + written, 0
        else:
            positions, empty = written, prompts + written
        size = positions * binding.max_bytes_per_position + empty * binding.min_bytes_per_position
        return {
            "from": self.source.value,
            "positions": positions,
            "bytes_a_position": binding.max_bytes_per_position,
            "bytes": size,
        }


def _documents(stream: Stream) -> Iterator[tuple[int, int]]:
    start = 0
    for end in stream.document_ends:
        yield start, int(end)
        start = int(end)
