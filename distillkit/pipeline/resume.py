"""Checks whether training can be resumed: compares a checkpoint's metadata with the recipe and this machine.

When a run is resumed, steps, learning rates and the mixer may have changed. Text, network and teacher must be the same;
a different order of floating-point additions gives a warning. A student that begins with another student's weights must
have its architecture and tokenizer.
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
from .step_config import chunk_size, part_count

REQUEST_KEYS = {"concurrency", "timeout", "attempts", "max_usd", "max_requests", "max_tokens_total", "price"}
REQUEST_KEYS |= {f"{of}_per_{span}" for of in ("requests", "tokens") for span in ("minute", "day")}
# Keys that older checkpoints do not have, see `_teacher`.
NEWER_KEYS = ("system", "template", "prompts_file", "on_policy", "share", "held_out", "store", "store_samples")
NUMERICS_KEYS = (
    "device",
    "blas",
    "kernel",
    "mlx",
    "compiler",
    "processes",
    "precision",
)  # keys that change results in the last bits
FIXED_BEFORE_LABELLING = ("data", "student", "tokenizer", "teacher", "optimizer", "seed")
FIXED = (*FIXED_BEFORE_LABELLING, "batches")
NAMES = {
    "data": "the corpus",
    "tokenizer": "the tokenizer",
    "batches": "the order of batches",
    "teacher": "the teacher",
    "optimizer": "the optimizer",
    "seed": "the seed",
}

DEFAULT_OPTIMIZER = {"name": "adamw"}  # of checkpoints that do not name one

Metadata = dict[str, Any]


class ResumeChecks:
    """Compares a run's checkpoints with its present recipe, data and machine."""

    def __init__(self, context: Context, run: Run, group: ProcessGroup) -> None:
        self.context, self.run, self.group = context, run, group
        self.recipe, self.console = context.recipe, context.console

    def check(self) -> None:
        """Refuse a recipe that does not fit the newest checkpoint, before any request is sent."""
        saved, _ = checkpoints.newest_valid(self.run.checkpoints)
        if saved is None:
            return
        self._check_unchanged(saved, self.metadata_before_labelling(), FIXED_BEFORE_LABELLING)
        if saved.step > self.recipe.train.steps:
            raise UsageError(
                f"{self.run.name} has {saved.step} steps already, and train.steps = {self.recipe.train.steps}",
                "Steps cannot be undone: raise train.steps, or start a new run.",
            )

    def checkpoint_metadata(self, saved: Checkpoint | None, batches: str, streams: int) -> Metadata:
        """The metadata for the next checkpoints, after it is checked against the last one."""
        metadata = {
            **self.metadata_before_labelling(),
            "batches": batches,
            "numerics": self._numerics(saved, streams),
            "train": self.recipe.train.model_dump(mode="json"),
            "mixer": self.recipe.mixer.model_dump(mode="json"),
        }
        if saved is not None:
            self._check_unchanged(saved, metadata, FIXED)
            self._print_changes(saved, metadata)
        if warning := precision.warning(metadata["numerics"]["precision"]):
            self.console.warn(warning)
        return metadata

    def metadata_before_labelling(self) -> Metadata:
        """The part of the metadata that is known before the label stage."""
        corpus = self.context.corpus
        return {
            "data": corpus.fingerprint,
            "tokenizer": corpus.tokenizer.fingerprint,
            "student": self.student_metadata(),
            "teacher": self._teacher(),
            "optimizer": self.recipe.optimizer.model_dump(mode="json", exclude={"learning_rate"}),
            "seed": self.recipe.seed,
        }

    def student_metadata(self) -> Metadata:
        """Everything that is needed to build the network again."""
        options = self.context.student.options.model_dump(mode="json")
        return {
            "arch": self.recipe.student.arch,
            "options": options,
            "vocab_size": self.context.tokenizer.vocab_size,
        }

    def check_warm_start(self, origin: Checkpoint, tokenizer: Path) -> None:
        """Refuse base weights of another architecture or with another tokenizer."""
        base, own = with_default_options(origin.student), self.student_metadata()
        if base["arch"] != own["arch"] or _weight_options(base) != _weight_options(own):
            sides = ({"student": {"arch": one["arch"], "options": _weight_options(one)}} for one in (base, own))
            raise UsageError(
                f"student.from: {origin.path} has another architecture: {_describe_changes(['student'], *sides)}",
                "Give the student the same options, or leave out student.from.",
            )
        from ..data.tokenizer import Tokenizer

        if Tokenizer.load(tokenizer).fingerprint != self.context.tokenizer.fingerprint:
            raise UsageError(
                f"student.from: {origin.path} was trained with another tokenizer than this recipe's",
                f'Use its own: tokenizer.kind = "{self.recipe.student.from_}".',
            )

    def _teacher(self) -> Metadata | None:
        """The teacher's table without the keys that only change speed and cost.

        Keys that older checkpoints do not have are left out unless they are set.
        """
        table = self.recipe.teacher
        if table is None:
            return None
        values = table.model_dump(mode="json", exclude=REQUEST_KEYS)
        fields = TeacherTable.model_fields
        return {key: value for key, value in values.items() if key not in NEWER_KEYS or value != fields[key].default}

    def _numerics(self, saved: Checkpoint | None, streams: int) -> Metadata:
        """What determines the order of additions. Kept from the first session to the last."""
        backend = blas.load()
        table, vocab_size = self.recipe.train, self.context.tokenizer.vocab_size
        current = {
            "device": str(mx.default_device()),
            "blas": backend.name,
            "kernel": backend.kernel,
            "threads": backend.threads,
            "processes": self.group.world_size,
            "streams": streams,
            "parts": part_count(table, streams, self.group.world_size),
            "chunk": chunk_size(table, vocab_size),
            "precision": precision.resolve(table.precision),
            "mlx": version("mlx"),
            "compiler": which("g++") is not None,  # without one MLX compiles nothing on a CPU
        }
        if saved is None:
            return current
        before = {"processes": 1, "precision": "float32", **saved.state["numerics"]}
        differ = [key for key in NUMERICS_KEYS if before.get(key, current[key]) != current[key]]
        if differ:
            changes = ", ".join(f"{key} was {before[key]} and is {current[key]}" for key in differ)
            self.console.warn(f"the resumed run will be close to an uninterrupted one, but not identical: {changes}")
        return {**current, **self._kept_numerics(saved, before), "threads": before["threads"]}

    def _kept_numerics(self, saved: Checkpoint, before: Mapping[str, Any]) -> Metadata:
        """Chunk and parts of the first session, unless the recipe changed them or the processes cannot divide them."""
        table = saved.state["train"]
        kept = {}
        if table["chunk"] == self.recipe.train.chunk:
            kept["chunk"] = before["chunk"]
        parts = before.get("parts", before["streams"] * table["accumulate"])
        if all(table[key] == getattr(self.recipe.train, key) for key in ("streams", "accumulate", "batch_size")):
            kept |= {"parts": parts} if parts % self.group.world_size == 0 else {}
        return kept

    def _check_unchanged(self, saved: Checkpoint, metadata: Metadata, keys: Sequence[str]) -> None:
        """Refuse to resume with other text, another network, or another teacher."""
        if "student" not in saved.state:
            raise UsageError(
                f"{self.run.name} was imported, so there is no training to resume",
                f'Start a run with its weights: student.from = "{self.run.name}".',
            )
        before = {
            "optimizer": DEFAULT_OPTIMIZER,
            **saved.state,
            "student": with_default_options(saved.state["student"]),
        }
        changed = [key for key in keys if before.get(key) != metadata[key]]
        if changed:
            raise UsageError(
                f"{self.run.name} cannot be resumed: {_describe_changes(changed, before, metadata)} changed "
                f"since its checkpoint at step {saved.step}",
                "Start a new run (leave out --resume), or undo the change.",
            )

    def _print_changes(self, saved: Checkpoint, metadata: Metadata) -> None:
        """Print what has changed that may change."""
        for table in ("train", "mixer"):
            old, new = saved.state[table], metadata[table]
            keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
            if keys:
                changes = ", ".join(f"{table}.{key} was {old.get(key)} and is {new.get(key)}" for key in keys)
                self.console.print(f"Changed since the last session: {changes}.")


def _weight_options(student: Mapping[str, Any]) -> Metadata:
    """The student's options that determine the shapes of its weights: all but dropout."""
    options = {key: value for key, value in student["options"].items() if key != "dropout"}
    return {**options, "vocab_size": student["vocab_size"]}


def _describe_changes(keys: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The differences, as text for an error message."""
    if "data" in keys:  # then the batches follow
        keys = [key for key in keys if key != "batches"]
    changes = []
    for key in keys:
        if key == "student":
            old, new = ({**side["student"], **side["student"]["options"]} for side in (before, after))
            differ = [k for k in sorted({*old, *new} - {"options"}) if old.get(k) != new.get(k)]
            changes += [f"student.{k} ({old.get(k)} to {new.get(k)})" for k in differ]
        else:
            changes.append(NAMES[key])
    return " and ".join(changes)
