"""What must hold for a training to go on: what its checkpoints remember, held against the recipe and this machine.

Between two sittings of a run the steps, the rates and the mixer may change; the text, the network, the teacher and the
order of additions may not, or the last only with a warning. A student that begins with another's weights must have its
shape and tokens. Decides and says why; trains nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from shutil import which
from typing import Any

import mlx.core as mx

from ..core.errors import UsageError
from ..core.run_folder import Run
from ..recipe.schema import TeacherTable
from ..student import blas
from ..student import checkpoint as checkpoints
from ..student.checkpoint import Checkpoint
from ..student.trained import with_default_options
from ..student.training import precision
from ..student.training.distributed import ProcessGroup
from .context import Context
from .step_config import chunk_of, parts_of

HOW_FAST = {"concurrency", "timeout", "attempts", "max_usd", "max_requests", "max_tokens_total", "price"}
HOW_FAST |= {f"{of}_per_{span}" for of in ("requests", "tokens") for span in ("minute", "day")}
# What older checkpoints do not know, see `_teacher`.
LATER = ("system", "template", "prompts_file", "on_policy", "share", "held_out", "store", "store_samples")
MATTER = ("device", "blas", "kernel", "mlx", "compiler", "processes", "precision")  # to the last bits
BEFORE_LABELS = ("data", "student", "tokenizer", "teacher", "seed")
FIXED = (*BEFORE_LABELS, "batches")
NAMES = {
    "data": "the corpus",
    "tokenizer": "the tokenizer",
    "batches": "the order of batches",
    "teacher": "the teacher",
    "seed": "the seed",
}

Facts = dict[str, Any]


class Continuity:
    """Holds a run's checkpoints against what is there now."""

    def __init__(self, context: Context, run: Run, group: ProcessGroup) -> None:
        self.context, self.run, self.group = context, run, group
        self.recipe, self.console = context.recipe, context.console

    def check(self) -> None:
        """Refuse a recipe that the run's newest checkpoint does not fit, before anything is asked."""
        saved, _ = checkpoints.newest_valid(self.run.checkpoints)
        if saved is None:
            return
        self._must_be_the_same(saved, self.before_labels(), BEFORE_LABELS)
        if saved.step > self.recipe.train.steps:
            raise UsageError(
                f"{self.run.name} has {saved.step} steps already, and train.steps = {self.recipe.train.steps}",
                "What was learnt cannot be taken back: raise train.steps, or begin a new run.",
            )

    def agreed(self, saved: Checkpoint | None, batches: str, streams: int) -> Facts:
        """What the next checkpoints will remember, once it is sure that the last one fits it."""
        facts = {
            **self.before_labels(),
            "batches": batches,
            "numerics": self._numerics(saved, streams),
            "train": self.recipe.train.model_dump(mode="json"),
            "mixer": self.recipe.mixer.model_dump(mode="json"),
        }
        if saved is not None:
            self._must_be_the_same(saved, facts, FIXED)
            self._tell_of_changes(saved, facts)
        if told := precision.warning(facts["numerics"]["precision"]):
            self.console.warn(told)
        return facts

    def before_labels(self) -> Facts:
        """What is known before any teacher is asked."""
        corpus = self.context.corpus
        return {
            "data": corpus.fingerprint,
            "tokenizer": corpus.tokenizer.fingerprint,
            "student": self.student(),
            "teacher": self._teacher(),
            "seed": self.recipe.seed,
        }

    def student(self) -> Facts:
        """All that builds the network again."""
        options = self.context.student.options.model_dump(mode="json")
        return {
            "arch": self.recipe.student.arch,
            "options": options,
            "vocab_size": self.context.tokenizer.vocab_size,
        }

    def must_be_alike(self, origin: Checkpoint, tokenizer: Path) -> None:
        """Refuse to begin with the weights of another network, or of one that reads other tokens."""
        theirs, ours = with_default_options(origin.student), self.student()
        if theirs["arch"] != ours["arch"] or _shape(theirs) != _shape(ours):
            sides = ({"student": {"arch": one["arch"], "options": _shape(one)}} for one in (theirs, ours))
            raise UsageError(
                f"student.from: {origin.path} is another network: {_changes(['student'], *sides)}",
                "Give the student the same options, or leave out student.from.",
            )
        from ..data.tokenizer import Tokenizer

        if Tokenizer.load(tokenizer).fingerprint != self.context.tokenizer.fingerprint:
            raise UsageError(
                f"student.from: {origin.path} reads other tokens than this recipe's tokenizer makes",
                f'Use its own: tokenizer.kind = "{self.recipe.student.from_}".',
            )

    def _teacher(self) -> Facts | None:
        """Who teaches what; how fast, and for how much, changes nothing.

        Keys that older checkpoints do not know are left out where they are not set.
        """
        table = self.recipe.teacher
        if table is None:
            return None
        told = table.model_dump(mode="json", exclude=HOW_FAST)
        fields = TeacherTable.model_fields
        return {key: value for key, value in told.items() if key not in LATER or value != fields[key].default}

    def _numerics(self, saved: Checkpoint | None, streams: int) -> Facts:
        """What decides the order of additions: kept from the first sitting to the last."""
        backend = blas.load()
        table, vocab_size = self.recipe.train, self.context.tokenizer.vocab_size
        here = {
            "device": str(mx.default_device()),
            "blas": backend.name,
            "kernel": backend.kernel,
            "threads": backend.threads,
            "processes": self.group.world_size,
            "streams": streams,
            "parts": parts_of(table, streams, self.group.world_size),
            "chunk": chunk_of(table, vocab_size),
            "precision": precision.resolve(table.precision),
            "mlx": version("mlx"),
            "compiler": which("g++") is not None,  # without one MLX compiles nothing on a CPU
        }
        if saved is None:
            return here
        before = {"processes": 1, "precision": "float32", **saved.state["numerics"]}
        differ = [key for key in MATTER if before.get(key, here[key]) != here[key]]
        if differ:
            changes = ", ".join(f"{key} was {before[key]} and is {here[key]}" for key in differ)
            self.console.warn(f"going on will be close to an undisturbed run, but not bit for bit: {changes}")
        return {**here, **self._kept(saved, before), "threads": before["threads"]}

    def _kept(self, saved: Checkpoint, before: Mapping[str, Any]) -> Facts:
        """How logits and batches were cut, unless the recipe has changed that or the processes cannot share it."""
        table = saved.state["train"]
        kept = {}
        if table["chunk"] == self.recipe.train.chunk:
            kept["chunk"] = before["chunk"]
        parts = before.get("parts", before["streams"] * table["accumulate"])
        if all(table[key] == getattr(self.recipe.train, key) for key in ("streams", "accumulate", "batch_size")):
            kept |= {"parts": parts} if parts % self.group.world_size == 0 else {}
        return kept

    def _must_be_the_same(self, saved: Checkpoint, facts: Facts, keys: Sequence[str]) -> None:
        """Refuse to go on with other text, another network, or another teacher."""
        if "student" not in saved.state:
            raise UsageError(
                f"{self.run.name} was brought in from elsewhere, so there is no training to go on with",
                f'Begin a run with its weights: student.from = "{self.run.name}".',
            )
        before = {**saved.state, "student": with_default_options(saved.state["student"])}
        changed = [key for key in keys if before.get(key) != facts[key]]
        if changed:
            raise UsageError(
                f"{self.run.name} cannot go on: {_changes(changed, before, facts)} changed "
                f"since its checkpoint at step {saved.step}",
                "Start a new run (leave out --resume), or bring back what changed.",
            )

    def _tell_of_changes(self, saved: Checkpoint, facts: Facts) -> None:
        """Say what may change and did."""
        for table in ("train", "mixer"):
            old, new = saved.state[table], facts[table]
            keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
            if keys:
                told = ", ".join(f"{table}.{key} was {old.get(key)} and is {new.get(key)}" for key in keys)
                self.console.print(f"Changed since the last sitting: {told}.")


def _shape(student: Mapping[str, Any]) -> Facts:
    """What decides the weights' shapes; dropout does not."""
    options = {key: value for key, value in student["options"].items() if key != "dropout"}
    return {**options, "vocab_size": student["vocab_size"]}


def _changes(keys: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What differs, as a person would name it."""
    if "data" in keys:  # then the batches follow
        keys = [key for key in keys if key != "batches"]
    told = []
    for key in keys:
        if key == "student":
            old, new = ({**side["student"], **side["student"]["options"]} for side in (before, after))
            differ = [k for k in sorted({*old, *new} - {"options"}) if old.get(k) != new.get(k)]
            told += [f"student.{k} ({old.get(k)} to {new.get(k)})" for k in differ]
        else:
            told.append(NAMES[key])
    return " and ".join(told)
