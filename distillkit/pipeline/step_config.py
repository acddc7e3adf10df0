"""The configuration of a training step: optimizer, schedule, chunks, parts, on-policy rows.

The train stage and `bench` both use it, so that `bench` measures the same step.
"""

from __future__ import annotations

import mlx.core as mx

from ..core import cpu
from ..core.errors import UsageError
from ..plugins.interfaces import Optimizer
from ..recipe.recipe import Recipe
from ..recipe.schema import TrainTable
from ..student.training.loop import TrainSettings
from ..student.training.loss import chunk_rows
from ..student.training.on_policy import OnPolicyGenerator, RowScorer
from ..student.training.optimizers import LearningRateSchedule, OptimizerGroup


def training_settings(recipe: Recipe, optimizer: Optimizer, chunk: int, precision: str = "float32") -> TrainSettings:
    """The settings of the training loop. `chunk` is the number of rows whose logits exist at once."""
    table = recipe.train
    final_rate = table.learning_rate / 10 if table.final_learning_rate is None else table.final_learning_rate
    return TrainSettings(
        steps=table.steps,
        accumulate=table.accumulate,
        chunk=chunk,
        evaluate_every=table.evaluate_every,
        checkpoint_every=table.checkpoint_every,
        sample_every=table.sample_every,
        keep=table.keep,
        seed=recipe.seed,
        schedule=LearningRateSchedule(table.learning_rate, final_rate, table.warmup, table.steps, table.schedule),
        optimizer=OptimizerGroup(optimizer, table.model_dump(), recipe.optimizer.learning_rate),
        precision=precision,
    )


def on_policy_generator(
    recipe: Recipe, context_length: int, padding: int, judge: RowScorer | None
) -> OnPolicyGenerator | None:
    """The generator of on-policy rows, or None if the recipe has none."""
    table = recipe.teacher
    if table is None or table.on_policy is None:
        return None
    return OnPolicyGenerator(table.on_policy, table.prompt_tokens, context_length, padding, recipe.seed, judge)


def stream_count(train: TrainTable, local_processes: int = 1, processes: int = 1) -> int:
    """How many parts of a batch are computed at once: on a CPU, the number of cores per process."""
    each = max(1, cpu.cores() // local_processes) if mx.default_device() == mx.cpu else 1
    chosen = each if train.streams == "auto" else train.streams
    return min(chosen, max(1, train.batch_size // processes))


def chunk_size(train: TrainTable, vocab_size: int) -> int:
    """The number of rows whose logits exist at once."""
    return chunk_rows(vocab_size) if train.chunk == "auto" else train.chunk


def part_count(train: TrainTable, streams: int, processes: int) -> int:
    """The number of parts that a step's rows are divided into, equal for each process."""
    if train.rows < processes:
        raise UsageError(
            f"a step has {train.rows} rows and cannot be divided among {processes} processes",
            "Raise train.batch_size, or launch fewer processes.",
        )
    return min(train.accumulate * streams * processes, train.rows // processes * processes)
