"""The parts that a recipe asks for, each built when it is first needed.

Here the rooms meet: documents become tokens, tokens become prompts, answers become rows to train on. Decides nothing
about the order of a run (`pipeline`) and counts nothing (`plan`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .data.corpus import Corpus, pack_texts, prepare
from .data.shards import Batches, Stream
from .errors import UsageError
from .plugins import Plugins
from .progress import Voice
from .recipe import JudgeTable, Recipe
from .records import Request
from .roles import Judge, Mixer, Source, Student, Teacher, Tracker
from .runs import cache_folder
from .teachers.cache import Cache
from .teachers.label import Labelled, keys_of, label

if TYPE_CHECKING:
    import mlx.nn as nn

    from .data.tokenizer import Tokenizer


class Assembly:
    """A recipe, and what it is made of."""

    def __init__(self, recipe: Recipe, plugins: Plugins, voice: Voice | None = None) -> None:
        self.recipe, self.plugins, self.voice = recipe, plugins, voice or Voice()
        self.in_batches = self.waits = False  # how the teacher is asked: the command line may say otherwise

    def _build(self, role: str, name: str, options: Mapping[str, Any], table: str) -> Any:
        recipe = self.recipe
        return self.plugins.build(role, name, options, file=recipe.file, table=table, folder=recipe.folder)

    def check(self) -> None:
        """Refuse what the recipe names and is not there, before anything is made: students to begin from or to ask."""
        if self.recipe.student.from_:
            from .student.trained import locate

            locate(self.recipe.student.from_)
        if self.teacher is not None:
            self.teacher.identity()

    @cached_property
    def source(self) -> Source:
        """Where documents come from."""
        table = self.recipe.data
        return cast(Source, self._build("sources", table.source, table.options, "data"))

    @cached_property
    def student(self) -> Student:
        """The architecture that is trained."""
        table = self.recipe.student
        return cast(Student, self._build("students", table.arch, table.options, "student"))

    @cached_property
    def teacher(self) -> Teacher | None:
        """Who answers, if anybody does."""
        table = self.recipe.teacher
        if table is None:
            return None
        return cast(Teacher, self._build("teachers", table.provider, table.options, "teacher"))

    @cached_property
    def mixer(self) -> Mixer:
        """What turns logits and targets into a loss."""
        table = self.recipe.mixer
        return cast(Mixer, self._build("mixers", table.name, table.options, "mixer"))

    def judges(self) -> Iterator[tuple[JudgeTable, Judge]]:
        """Those who grade, in the order of the recipe."""
        for i, table in enumerate(self.recipe.judge):
            yield table, cast(Judge, self._build("judges", table.name, table.options, f"judge.{i}"))

    def trackers(self) -> list[Tracker]:
        """Those who are told of every step."""
        tables = enumerate(self.recipe.tracker)
        return [cast(Tracker, self._build("trackers", t.name, t.options, f"tracker.{i}")) for i, t in tables]

    @cached_property
    def corpus(self) -> Corpus:
        """The documents as tokens, from the cache or packed now."""
        tables = self.recipe.values()
        return prepare(self.source, tokenizer=tables["tokenizer"], options=tables["data"], voice=self.voice)

    @property
    def tokenizer(self) -> Tokenizer:
        """What the student reads and writes with."""
        return self.corpus.tokenizer

    @cached_property
    def network(self) -> nn.Module:
        """The student's network, its weights not yet set."""
        from .student import Trained  # noqa: F401 - loads the fast BLAS first

        return self.student.build(self.tokenizer.vocab_size)

    def requests(self) -> list[Request]:
        """What the teacher is asked: to go on from the beginnings of training documents."""
        table = self.recipe.teacher
        if table is None or not table.prompts:
            return []
        texts = islice(self.corpus.train_text(), table.prompts)
        prompts = [self.beginning(text, table.prompt_tokens) for text in texts]
        return [
            Request(
                id=f"train:{i}#{repeat}",
                prompt=prompt,
                max_tokens=table.max_tokens,
                temperature=table.temperature,
                top_p=table.top_p,
                stop=tuple(table.stop),
                seed=_seed(self.recipe.seed, i),
                top_logprobs=table.top_logprobs,
                repeat=repeat,
            )
            for i, prompt in enumerate(prompts)
            for repeat in range(table.repeats)
        ]

    def beginning(self, text: str, tokens: int) -> str:
        """The first tokens of a text, cut where a character ends."""
        return self.tokenizer.decode(self.tokenizer.encode(text)[:tokens]).rstrip("\ufffd")

    def cache(self) -> Cache:
        """Where answers are kept."""
        return Cache(cache_folder() / "teachers")

    def ask(self, teacher: Teacher, requests: list[Request], concurrency: int) -> Labelled:
        """Answers to all requests, one by one or in batches."""
        from .teachers.batch import label_in_batches

        self.refuse_twice(teacher, requests)
        with self.cache() as cache:
            if self.in_batches:
                return label_in_batches(teacher, requests, cache, self._batches, wait=self.waits, voice=self.voice)
            return label(teacher, requests, cache, concurrency=concurrency, voice=self.voice)

    def refuse_twice(self, teacher: Teacher, requests: list[Request]) -> None:
        """Refuse to ask one by one for what is in a batch already: it would be paid for twice."""
        from .teachers import pending

        if not self.in_batches and pending.parts(self._batches):
            with self.cache() as cache:
                pending.refuse(self._batches, keys_of(teacher, requests), cache)

    @property
    def _batches(self) -> Path:
        """Where it stands what was sent off in batches."""
        return cache_folder() / "batches"

    def pack(self, labelled: Labelled, folder: Path) -> Stream | None:
        """Answers as rows to train on; None when there is nothing to learn from them."""
        pairs = [
            (request.prompt or "", answer.text, answer.finish == "stop")
            for request, answer in zip(labelled.requests, labelled.answers, strict=True)
            if answer.text
        ]
        table = self.recipe.teacher
        if not pairs or table is None:
            return None
        return pack_texts(pairs, self.tokenizer, folder, table.learn_prompts)

    def batches(self, answers: Path) -> Batches:
        """What the student reads: the corpus, and the teacher's answers if there are any."""
        streams = [self.corpus.train]
        if answers.is_dir():
            streams.append(Stream(answers))
        train = self.recipe.train
        return Batches(streams, self.student.context, train.batch_size * train.accumulate, self.recipe.seed)

    @property
    def teaches_online(self) -> bool:
        """Whether the teacher's logits are part of every training step."""
        return self.mixer.signal == "logits"

    def logits_teacher(self) -> Teacher | None:
        """The teacher whose logits join the training step; its tokens must be the student's."""
        if not self.teaches_online or self.teacher is None:
            return None
        if self.teacher.tokenizer.fingerprint != self.tokenizer.fingerprint:
            named = getattr(self.teacher.options, "model", self.teacher.name)
            raise UsageError(
                f"the teacher's tokenizer is not the student's, so its logits mean other tokens ({self.recipe.file})",
                f'Give the student the teacher\'s own: tokenizer.kind = "{named}".',
            )
        return self.teacher


def _seed(seed: int, index: int) -> int:
    """A seed for one request, unlike its neighbours'."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:4], "big")
