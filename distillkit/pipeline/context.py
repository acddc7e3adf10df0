"""What a recipe resolves to: its plugins, corpus, tokenizer and network, each built when it is first used.

Does not know the stages of a run (`pipeline`), the estimates of a plan (`plan`), or how teachers are asked
(`teacher_calls`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from ..core.console import Console
from ..core.errors import DistillkitError
from ..data.corpus import Corpus, is_prepared, prepare
from ..plugins.interfaces import Judge, Mixer, Optimizer, Source, Student, Teacher, Tracker, signal_suffices
from ..plugins.manager import Plugins
from ..recipe.recipe import JudgeTable, Recipe
from ..recipe.schema import TeacherTable

if TYPE_CHECKING:
    import mlx.nn as nn

    from ..data.tokenizer import Tokenizer


class SoftTargetSource(StrEnum):
    """Where the soft targets of a run come from. The values are recorded in `run.json`."""

    NONE = "nowhere"  # the mixer needs none, or there is no teacher
    STEP = "step"  # the teacher's logits, computed in every training step
    STORE = "store"  # the teacher's logits, stored before training
    ANSWERS = "answers"  # the log-probabilities that came with the teacher's answers


class Context:
    """A checked recipe with everything that it names.

    `label_options` are those options of the command line that change how teachers are asked: batch, wait, shard,
    retry_refused.
    """

    def __init__(
        self,
        recipe: Recipe,
        plugins: Plugins,
        console: Console | None = None,
        label_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.recipe, self.plugins, self.console = recipe, plugins, console or Console()
        self.label_options = dict(label_options or {})

    # ------------------------------------------------------------------------------------------ plugins

    def _build(self, role: str, name: str, options: Mapping[str, Any], table: str) -> Any:
        recipe = self.recipe
        return self.plugins.build(role, name, options, file=recipe.file, table=table, folder=recipe.folder)

    @cached_property
    def source(self) -> Source:
        """The source of documents."""
        table = self.recipe.data
        return cast(Source, self._build("sources", table.source, table.options, "data"))

    @cached_property
    def student(self) -> Student:
        """The student plugin: the architecture that is trained."""
        table = self.recipe.student
        return cast(Student, self._build("students", table.arch, table.options, "student"))

    @cached_property
    def teacher(self) -> Teacher | None:
        """The teacher, or None if the recipe has none."""
        table = self.recipe.teacher
        if table is None:
            return None
        return cast(Teacher, self._build("teachers", table.provider, table.options, "teacher"))

    @cached_property
    def mixer(self) -> Mixer:
        """The mixer: it turns logits and targets into a loss."""
        table = self.recipe.mixer
        mixer = cast(Mixer, self._build("mixers", table.name, table.options, "mixer"))
        mixer.steps = self.recipe.train.steps
        return mixer

    @cached_property
    def optimizer(self) -> Optimizer:
        """The optimizer plugin. AdamW updates the parameters that it does not accept."""
        table = self.recipe.optimizer
        return cast(Optimizer, self._build("optimizers", table.name, table.options, "optimizer"))

    def judges(self) -> Iterator[tuple[JudgeTable, Judge]]:
        """The judges with their tables, in the order of the recipe."""
        for i, table in enumerate(self.recipe.judge):
            yield table, cast(Judge, self._build("judges", table.name, table.options, f"judge.{i}"))

    def judge_teacher(self, table: JudgeTable, judge: Judge) -> tuple[Teacher, TeacherTable] | None:
        """The teacher that a judge asks, with its table: the recipe's keys override the judge's own defaults."""
        defaults = dict(judge.default_teacher or {})
        given = table.teacher.model_dump(exclude_unset=True) if table.teacher else {}
        if not given and not defaults:
            return None
        if given and given["provider"] != defaults.get("provider"):
            defaults = {}
        merged = TeacherTable.model_validate({**defaults, **given})
        teacher = self._build("teachers", merged.provider, merged.options, f"judge.{judge.name}.teacher")
        return cast(Teacher, teacher), merged

    def trackers(self) -> list[Tracker]:
        """The trackers, which receive the metrics of every step."""
        tables = enumerate(self.recipe.tracker)
        return [cast(Tracker, self._build("trackers", t.name, t.options, f"tracker.{i}")) for i, t in tables]

    # ------------------------------------------------------------------------------------------ text and network

    @cached_property
    def corpus(self) -> Corpus:
        """The tokenized documents, from the cache or prepared now."""
        tables = self.recipe.values()
        return prepare(self.source, tokenizer=tables["tokenizer"], options=tables["data"], console=self.console)

    @property
    def has_local_corpus(self) -> bool:
        """Whether the corpus can be read without fetching anything."""
        return "corpus" in vars(self) or self._has_local_corpus

    @cached_property
    def _has_local_corpus(self) -> bool:
        return self.source.here or self.has_cached_corpus

    @cached_property
    def has_cached_corpus(self) -> bool:
        """Whether the prepared corpus is in the cache."""
        tables = self.recipe.values()
        return is_prepared(self.source, tokenizer=tables["tokenizer"], options=tables["data"])

    @property
    def vocab_size(self) -> int:
        """The size of the student's vocabulary. Needs no corpus."""
        from ..data.tokenizer import vocab_size_of

        return vocab_size_of(self.recipe.values()["tokenizer"])

    @property
    def tokenizer(self) -> Tokenizer:
        """The student's tokenizer. Fetches text only for a tokenizer that is trained on it."""
        from ..data.tokenizer import build, is_trained

        table = self.recipe.values()["tokenizer"]
        return self.corpus.tokenizer if self.has_local_corpus or is_trained(table) else build(**table)

    def truncate(self, text: str, tokens: int) -> str:
        """The first tokens of a text. A character that would be cut in two is left out."""
        return self.tokenizer.decode(self.tokenizer.encode(text)[:tokens]).rstrip("\ufffd")

    @cached_property
    def network(self) -> nn.Module:
        """The student's network, before its weights are initialised."""
        from ..student import Trained  # noqa: F401 - loads the fast BLAS before MLX

        return _checked_network(self.student.name, self.student.build(self.vocab_size))

    # ------------------------------------------------------------------------------------------ kinds of teaching

    @cached_property
    def soft_target_source(self) -> SoftTargetSource:
        """Where soft targets come from, by what the mixer needs and what is used of the teacher."""
        teacher, table = self.teacher, self.recipe.teacher
        if teacher is None or table is None or not signal_suffices(self.mixer.signal, "top_logprobs"):
            return SoftTargetSource.NONE
        if (table.signal or teacher.signal) == "logits":
            return SoftTargetSource.STORE if table.store else SoftTargetSource.STEP
        return SoftTargetSource.ANSWERS

    @property
    def uses_logits_in_steps(self) -> bool:
        """Whether every training step computes the teacher's logits."""
        return self.soft_target_source == SoftTargetSource.STEP

    @property
    def asks_teacher_in_steps(self) -> bool:
        """Whether every training step asks the teacher to score text that the student has just written."""
        table = self.recipe.teacher
        return table is not None and table.on_policy is not None and self.soft_target_source == SoftTargetSource.ANSWERS


def _checked_network(name: str, network: Any) -> nn.Module:
    """The network that a student plugin built, if it is one."""
    import mlx.nn as nn

    if isinstance(network, nn.Module):
        return network
    message = f"the student {name!r} built a {type(network).__name__} instead of an mlx.nn.Module"
    raise DistillkitError(message, "Return it from Student.build.")
