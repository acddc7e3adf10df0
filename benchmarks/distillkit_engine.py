"""The training step of `distillkit train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
from distillkit_plugins.mixers import AlphaTemperature, Hard
from problems import Problem, Teacher, learning_rate

from distillkit.core import cpu
from distillkit.data.batches import Batch
from distillkit.plugins.interfaces import Mixer
from distillkit.student.model.gpt import GPT, GPTConfig
from distillkit.student.training.loop import TrainingJob, TrainSettings, initial_state, train_step
from distillkit.student.training.loss import LazyLogits, chunk_rows
from distillkit.student.training.optimizers import OptimizerGroup
from distillkit.student.training.parallel import StreamPool, keep_freed_memory


def network(source: Problem | Teacher) -> GPT:
    """A network with the problem's initial weights."""
    model = GPT(GPTConfig(**{**source.config, "activation": source.activation}))
    model.load_weights([(name, mx.array(value)) for name, value in source.weights.items()])
    mx.eval(model.parameters())
    source.weights.clear()
    return model


def stepper(problem: Problem) -> Callable[[int], float]:
    """A function that takes a training step and returns the loss before it."""
    keep_freed_memory()
    mixer, teacher = Hard(), None
    if problem.teacher:
        mixer = AlphaTemperature(AlphaTemperature.Options(alpha=problem.alpha, temperature=1.0))
        teacher_network = network(problem.teacher).eval()
        teacher = lambda tokens: LazyLogits(teacher_network(tokens), teacher_network.head)  # noqa: E731
    job = replace(job_of(problem, mixer), teacher=teacher)
    state = initial_state(job.model, job.settings.optimizer)

    def step(number: int) -> float:
        state.step = number
        return float(train_step(job, state)["loss"])

    return step


def job_of(problem: Problem, mixer: Mixer) -> TrainingJob:
    """The job that the train stage would build for a problem, without files."""
    nowhere: Any = None

    def batch(step: int) -> Batch:
        inputs, hard, weight = problem.batch(step)
        return Batch(inputs, hard, weight, np.zeros_like(weight))

    model, vocab_size = network(problem), problem.config["vocab_size"]
    schedule: Any = lambda step: learning_rate(problem, step)  # noqa: E731
    settings = TrainSettings(problem.steps, 1, chunk_rows(vocab_size), 100, 100, None, 2, 1, schedule, OptimizerGroup())
    pool = StreamPool(min(problem.rows, cpu.cores()) if mx.default_device() == mx.cpu else 1)
    return TrainingJob(model, vocab_size, mixer, batch, list, settings, {}, {}, nowhere, nowhere, stream_pool=pool)
