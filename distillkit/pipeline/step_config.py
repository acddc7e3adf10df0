"""How a recipe's step is made: the figures of its optimizer and schedule, how its rows are cut up, who writes them.

What the train stage takes steps of and what `bench` measures are thereby the same. Knows no text and no network.
"""

from __future__ import annotations

import mlx.core as mx

from ..core import cpu
from ..core.errors import UsageError
from ..recipe.recipe import Recipe
from ..recipe.schema import TrainTable
from ..student.training.loop import TrainSettings
from ..student.training.loss import chunk_rows
from ..student.training.on_policy import OnPolicyGenerator, RowScorer
from ..student.training.optimizers import AdamW, LearningRateSchedule


def settings(recipe: Recipe, chunk: int, precision: str = "float32") -> TrainSettings:
    """The figures of a recipe's training; so many rows of logits are held at once."""
    table = recipe.train
    floor = table.learning_rate / 10 if table.final_learning_rate is None else table.final_learning_rate
    return TrainSettings(
        steps=table.steps,
        accumulate=table.accumulate,
        chunk=chunk,
        evaluate_every=table.evaluate_every,
        checkpoint_every=table.checkpoint_every,
        sample_every=table.sample_every,
        keep=table.keep,
        seed=recipe.seed,
        schedule=LearningRateSchedule(table.learning_rate, floor, table.warmup, table.steps, table.schedule),
        optimizer=AdamW((table.betas[0], table.betas[1]), table.epsilon, table.weight_decay, table.clip),
        precision=precision,
    )


def on_policy(recipe: Recipe, context_length: int, padding: int, judge: RowScorer | None) -> OnPolicyGenerator | None:
    """What the student writes of a step, for its teacher or somebody else to judge, if the recipe says so."""
    table = recipe.teacher
    if table is None or table.on_policy is None:
        return None
    return OnPolicyGenerator(table.on_policy, table.prompt_tokens, context_length, padding, recipe.seed, judge)


def streams_of(train: TrainTable, sharing: int = 1, processes: int = 1) -> int:
    """How many parts of a batch are computed at once: on a CPU, as many as there are cores for each process."""
    each = max(1, cpu.cores() // sharing) if mx.default_device() == mx.cpu else 1
    chosen = each if train.streams == "auto" else train.streams
    return min(chosen, max(1, train.batch_size // processes))


def chunk_of(train: TrainTable, vocab_size: int) -> int:
    """How many rows of logits are held at once."""
    return chunk_rows(vocab_size) if train.chunk == "auto" else train.chunk


def parts_of(train: TrainTable, streams: int, processes: int) -> int:
    """How many parts a step's rows are cut into: equally many for each process."""
    if train.rows < processes:
        raise UsageError(
            f"a step has {train.rows} rows and cannot be shared by {processes} processes",
            "Raise train.batch_size, or launch fewer processes.",
        )
    return min(train.accumulate * streams * processes, train.rows // processes * processes)
