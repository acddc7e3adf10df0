"""Where the soft targets of a run come from, and where they are kept.

From nowhere, from the teacher's logits in every step, from a store of those logits that was filled before, or from the
log-probabilities that came with its answers. What is stored and how is `teachers/store`'s affair; what a mixer makes of
a soft target is the student's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UsageError
from ..core.files import atomic_folder, file_lock, make_private_folder
from ..core.records import Answer
from ..core.run_folder import cache_folder
from ..data.shards import Stream
from ..plugins.interfaces import Teacher, gives
from ..recipe.schedules import Schedule
from ..teachers.soft_targets import from_logits
from ..teachers.soft_targets.align import ALIGNMENT_RULE, Aligner
from ..teachers.soft_targets.store import Binding, SoftTargetStore, SoftTargetWriter

if TYPE_CHECKING:
    from .context import Context

NOWHERE, STEP, STORE, ANSWERS = "nowhere", "step", "store", "answers"
TOP = 20  # tokens a position, where the recipe does not say


class Softness:
    """The soft targets of one recipe."""

    def __init__(self, context: Context) -> None:
        self.context, self.table = context, context.recipe.teacher

    @cached_property
    def source(self) -> str:
        """Where they come from: what the mixer needs, and what is used of the teacher."""
        teacher, table = self.context.teacher, self.table
        if teacher is None or table is None or not gives(self.context.mixer.signal, "top_logprobs"):
            return NOWHERE
        if (table.signal or teacher.signal) == "logits":
            return STORE if table.store else STEP
        return ANSWERS

    def check(self) -> None:
        """Refuse what could only be taught wrongly, before anything is spent."""
        self._draws_stay_as_they_are()
        if self.source in (STEP, STORE):
            self._must_read_as_much()

    def _draws_stay_as_they_are(self) -> None:
        """Refuse what was drawn at temperature 1 for a mixer that would soften it: counts of draws cannot be."""
        heat = getattr(self.context.mixer.options, "temperature", 1.0)
        heats = heat.values if isinstance(heat, Schedule) else (heat,)
        if self.table and self.table.store_samples and any(one != 1 for one in heats):
            raise UsageError(
                f"teacher.store_samples counts draws at temperature 1, and mixer.temperature is not 1 "
                f"({self.context.recipe.file})",
                "Set mixer.temperature = 1.0, or leave out store_samples: the likeliest tokens can be softened.",
            )

    def _must_read_as_much(self) -> None:
        """Refuse a teacher whose context is below the student's: of what lies beyond it the teacher knows nothing."""
        teacher, ours = self.context.teacher, self.context.student.context
        assert teacher is not None
        theirs = teacher.context
        if theirs is not None and theirs < ours:
            raise UsageError(
                f"student.context = {ours}, and the teacher reads {theirs} tokens at once: there its logits end "
                f"({self.context.recipe.file})",
                f"Set student.context = {theirs}, or take another teacher, that reads {ours}.",
            )

    @property
    def teacher(self) -> Teacher:
        """Who gives logits; its tokens are the student's and it reads as many at once, or it is refused."""
        teacher, tokenizer = self.context.teacher, self.context.tokenizer
        assert teacher is not None
        if teacher.tokenizer.fingerprint != tokenizer.fingerprint:
            named = getattr(teacher.options, "model", teacher.name)
            raise UsageError(
                "the teacher's tokenizer is not the student's, so its logits mean other tokens "
                f"({self.context.recipe.file})",
                f'Give the student the teacher\'s own, tokenizer.kind = "{named}"; or align what it writes: '
                'teacher.signal = "top_logprobs", teacher.top_logprobs = 20 and teacher.prompts.',
            )
        self._must_read_as_much()
        return teacher

    # ------------------------------------------------------------------------------------------ what is kept

    def binding(self, stream: Stream) -> Binding:
        """What the soft targets of a stream belong to."""
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
        most = samples or min(table.top_logprobs or TOP, tokenizer.vocab_size)
        return Binding(**common, context=context_length, most=most, samples=samples, seed=seed)

    def place(self, stream: Stream) -> Path:
        """Where they are kept: beside the answers they came with, or in the cache, where every run finds them."""
        if self.source == ANSWERS:
            return stream.folder.parent / "soft"
        return cache_folder() / "soft" / self.binding(stream).key[:32]

    def open(self, streams: Sequence[Stream]) -> list[SoftTargetStore | None]:
        """The stores of streams, for those that have one, held against their checksums."""
        stores = [SoftTargetStore(self.place(one), self.binding(one)) if self._keeps(one) else None for one in streams]
        for store in filter(None, stores):
            store.verify()
        return stores

    def _keeps(self, stream: Stream) -> bool:
        return self.source == STORE or (self.source == ANSWERS and stream.from_teacher)

    # ------------------------------------------------------------------------------------------ how it is made

    def align(self, stream: Stream, answers: Sequence[Answer]) -> SoftTargetStore:
        """The soft targets of the teacher's packed text, from the log-probabilities of its answers, in their order."""
        aligner = Aligner(self.context.tokenizer)
        place, binding = self.place(stream), self.binding(stream)
        with atomic_folder(place) as part:
            writer = SoftTargetWriter(part, binding)
            for (start, stop), answer in zip(_documents(stream), answers, strict=True):
                rows = aligner.align(stream.read(start, stop).astype(np.int64), answer)
                weights = stream.weights(start, stop)
                weights[: 1 if start == 0 else 0] = 0  # nothing stands before the first token, so it is no target
                writer.add(rows, weights)
            writer.close()
        return SoftTargetStore(place, binding)

    def keep(self, streams: Sequence[Stream]) -> list[SoftTargetStore]:
        """The soft targets of streams, from the cache or by asking the teacher for its logits, once."""
        return [self._kept(stream) for stream in streams]

    def _kept(self, stream: Stream) -> SoftTargetStore:
        place, binding, console = self.place(stream), self.binding(stream), self.context.console
        make_private_folder(place.parent)
        with file_lock(
            place, lambda: console.print("Waiting for another process that asks for the same soft targets.")
        ):
            writer = SoftTargetWriter(place, binding)
            if writer.done == stream.tokens:
                return writer.close()
            what = "the teacher's own text" if stream.from_teacher else "the corpus"
            begun = f", going on at {writer.done:,}" if writer.done else ""
            console.print(f"{self.teacher.name} reads {what}: {stream.tokens:,} tokens{begun}.")
            return from_logits.write_soft_targets(self.teacher, stream, writer, console)

    def facts(self, stores: Sequence[SoftTargetStore]) -> dict[str, Any]:
        """What stores hold together, for the record of a run: positions, those with a soft target, mass, bytes."""
        each = [store.summary for store in stores]
        soft = sum(one["with_soft"] for one in each)
        mass = sum(one["mass"] * one["with_soft"] for one in each)
        positions = sum(store.binding.tokens for store in stores)
        size = sum(one["bytes"] for one in each)
        return {
            "from": self.source,
            "positions": sum(one["positions"] for one in each),
            "with_soft": soft,
            "mass": round(mass / soft, 6) if soft else 0.0,
            "bytes": size,
            "bytes_a_position": round(size / positions, 2) if positions else 0.0,
        }

    def foreseen(self, answers: int) -> dict[str, Any] | None:
        """What will be stored, if every answer is as long as it may be: soft targets, and bytes.

        Of an answer in other tokens at most each of the teacher's has one; the student's may be twice as many.
        """
        table = self.table
        if table is None or self.source not in (STORE, ANSWERS) or (self.source == ANSWERS and not answers):
            return None
        binding = self.binding(self.context.corpus.train)
        written, begun = answers * table.max_tokens, answers * table.prompt_tokens
        if self.source == STORE:
            positions, empty = self.context.corpus.train.tokens + begun + written, 0
        else:
            positions, empty = written, begun + written
        size = positions * binding.max_bytes_per_position + empty * binding.min_bytes_per_position
        return {
            "from": self.source,
            "positions": positions,
            "bytes_a_position": binding.max_bytes_per_position,
            "bytes": size,
        }


def _documents(stream: Stream) -> Iterator[tuple[int, int]]:
    start = 0
    for end in stream.document_ends:
        yield start, int(end)
        start = int(end)
