"""Measures a trained student on this machine: forward passes, training steps, generation, memory.

Uses random tokens and a copy in memory, and writes nothing. Training steps are those of the train stage, except that no
teacher is asked over the network. Does not measure quality.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .. import __version__
from ..core import cpu
from ..core.run_folder import Run
from ..data.batches import Batch
from ..student import blas
from ..student.generation.generate import generate_tokens
from ..student.generation.sampling import Sampling
from ..student.model.gpt import GPTConfig, count_parameters
from ..student.trained import Trained, find_checkpoint, parameter_counts
from ..student.training import precision
from ..student.training.loop import TrainingJob, initial_state, teacher_forward, train_step
from ..student.training.parallel import StreamPool, enable_checkpointing, keep_freed_memory
from .context import Context, SoftTargetSource
from .soft_targets import SoftTargets
from .step_config import chunk_size, on_policy_generator, stream_count, training_settings

SCHEMA = 1
STORED = (SoftTargetSource.STORE, SoftTargetSource.ANSWERS)
WARMUP_BATCHES = 2  # batches before the measurement: MLX compiles and allocates memory in the first ones
PROMPT_TOKENS, GENERATED_TOKENS, GENERATION_BATCHES, GENERATION_REPEATS = 16, 128, (1, 16), 3
MATMUL_REPEATS = 9  # measurements of a large matrix product
FORWARD_FLOPS, TRAINING_FLOPS = 2, 6  # operations per multiply-add: forward pass only, and with the backward pass
PACKAGES = ("mlx", "numpy", "torch", "mlx-lm", "tiktoken", "scipy-openblas32")

Report = dict[str, Any]


def measure(context: Context, run: Run, steps: int) -> Report:
    """All measurements of a run's student, with the batch size of its recipe."""
    keep_freed_memory()
    student, print_line = BenchedStudent(context, run), context.console.print
    rate = matmul_rate(student.stream_pool)
    print_line(f"Measuring {run.name}: forward pass, {steps} batches.")
    reading = _measure_forward(student, steps)
    print_line(f"Decoding, {' and '.join(map(str, GENERATION_BATCHES))} texts at once, {GENERATED_TOKENS} tokens each.")
    writing = [_measure_generation(student, rows) for rows in GENERATION_BATCHES]
    print_line(f"Training, {steps} steps on a copy.")
    training, activations = _measure_training(student, steps)  # last, since it changes the weights
    sizes = parameter_counts(student.student.model)
    return {
        "schema": SCHEMA,
        "run": run.name,
        "step": student.step,
        "batch": student.table.batch_size,
        "accumulate": student.table.accumulate,
        "context": student.context_length,
        "steps": steps,
        "parameters": sizes,
        "forward": {**reading, **_flops_metrics(student.forward_flops, reading["latency_ms"]["p50"], rate)},
        "training": {**training, **_flops_metrics(student.training_flops, training["latency_ms"]["p50"], rate)},
        "generation": writing,
        "memory": {
            "parameters_fp32_bytes": 4 * sizes["unique"],
            "parameters_fp16_bytes": 2 * sizes["unique"],
            "activation_bytes": activations,
        },
        "matmul_flops_per_second": rate,
        "machine": describe_machine(),
    }


class BenchedStudent:
    """The student of a run, with everything that its training step needs."""

    def __init__(self, context: Context, run: Run) -> None:
        self.context, self.step = context, find_checkpoint(run.path)[0].step
        self.student = Trained.load(run.path)
        self.context_length, self.vocab_size = self.student.context, self.student.tokenizer.vocab_size
        self.table = context.recipe.train
        self.teacher = SoftTargets(context).logits_teacher if context.uses_logits_in_steps else None
        self.stream_pool = StreamPool(stream_count(self.table))
        self.on_policy = on_policy_generator(
            context.recipe, self.context_length, self.student.tokenizer.end_of_text, None
        )

    @property
    def batch_tokens(self) -> int:
        """The number of tokens per batch."""
        return self.table.batch_size * self.context_length

    @property
    def step_tokens(self) -> int:
        """The number of tokens per step: of all batches whose gradients are accumulated."""
        return self.batch_tokens * self.table.accumulate

    def batch(self, number: int) -> Batch:
        """All rows of a step, as random tokens."""
        size = (2, self.step_tokens // self.context_length, self.context_length)
        drawn = np.random.default_rng(number).integers(0, self.vocab_size, size)
        tokens, ones = drawn.astype(np.int32), np.ones(drawn.shape[1:], np.float32)
        batch = Batch(inputs=tokens[0], hard=tokens[1], weight=ones, from_teacher=0 * ones)
        return self._with_soft_targets(batch, number) if self.stored_targets else batch

    @property
    def stored_targets(self) -> int:
        """The number of tokens per stored soft target; 0 if none is stored."""
        source = self.context.soft_target_source
        return SoftTargets(self.context).binding(self.context.corpus.train).most if source in STORED else 0

    def _with_soft_targets(self, batch: Batch, number: int) -> Batch:
        """The batch with random soft targets of the stored format."""
        size = (*batch.hard.shape, self.stored_targets)
        ids = np.random.default_rng(number).integers(0, self.vocab_size, size).astype(np.int32)
        even = np.full(size, np.log(0.9 / self.stored_targets), np.float32)
        rest = np.full(batch.hard.shape, np.log(0.1), np.float32)
        return replace(batch, soft_ids=ids, soft_log_probs=even, soft_residual=rest, has_soft=batch.weight)

    @property
    def precision(self) -> str:
        """The precision of a training step on this machine."""
        return precision.resolve(self.table.precision)

    def job(self) -> TrainingJob:
        """The job of the train stage, without text and files."""
        if self.table.checkpointing:
            enable_checkpointing(self.student.model, self.context.recipe.student.arch)
        return TrainingJob(
            model=self.student.model,
            vocab_size=self.vocab_size,
            mixer=self.context.mixer,
            batch=self.batch,
            validation=tuple,
            settings=training_settings(
                self.context.recipe, self.context.optimizer, chunk_size(self.table, self.vocab_size), self.precision
            ),
            student={},
            metadata={},
            checkpoint_folder=Path(os.devnull),
            metrics_file=Path(os.devnull),
            teacher=teacher_forward(self.teacher) if self.teacher else None,
            on_policy=self.on_policy,
            stream_pool=self.stream_pool,
        )

    @property
    def forward_flops(self) -> float:
        """The floating-point operations of a forward pass over a batch."""
        return FORWARD_FLOPS * self.batch_tokens * _multiply_adds(self.student.model)

    @property
    def training_flops(self) -> float:
        """The floating-point operations of a step, with those of the teacher and of on-policy rows."""
        own, of_teacher = _multiply_adds(self.student.model), getattr(self.teacher, "trained", None)
        teacher_flops = FORWARD_FLOPS * _multiply_adds(of_teacher.model) if of_teacher else 0
        written = len(self.on_policy.chosen_rows(self.table.rows, 0)) * self.context_length if self.on_policy else 0
        return self.step_tokens * (TRAINING_FLOPS * own + teacher_flops) + written * FORWARD_FLOPS * own


# Measuring -------------------------------------------------------------------------------------------------


def _measure_forward(student: BenchedStudent, steps: int) -> Report:
    """Measure forward passes to logits. A batch is divided over the streams, as in training."""
    rows = np.array_split(student.batch(0).inputs[: student.table.batch_size], student.stream_pool.count)

    def read() -> None:
        student.stream_pool.map(lambda i: student.student.logits(mx.array(rows[i])))

    for _ in range(WARMUP_BATCHES):
        read()
    return _speed_metrics(student.batch_tokens, [_seconds(read) for _ in range(steps)])


def _measure_training(student: BenchedStudent, steps: int) -> tuple[Report, int]:
    """Measure whole steps: forward, backward, optimizer. Also returns the peak memory that they add."""
    job = student.job()
    state = initial_state(job.model, job.settings.optimizer)
    for _ in range(WARMUP_BATCHES):
        train_step(job, state)
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    speeds = _speed_metrics(student.step_tokens, [_seconds(lambda: train_step(job, state)) for _ in range(steps)])
    details = {
        "teacher": student.teacher is not None,
        "precision": student.precision,
        "on_policy": student.on_policy.share if student.on_policy else 0.0,
        "without_asking": student.context.asks_teacher_in_steps,
    }
    return {**speeds, **details}, mx.get_peak_memory() - held


def _measure_generation(student: BenchedStudent, rows: int) -> Report:
    """Measure generation of a batch of texts from short prompts, with the recipe's sampling options."""
    trained, table = student.student, student.context.recipe.sampling
    options = Sampling(table.temperatures[0], **table.sampler_options)
    trained.model.eval()
    length = min(PROMPT_TOKENS, student.context_length // 2)
    prompts = np.random.default_rng(rows).integers(0, student.vocab_size, (rows, length)).tolist()

    def generate() -> None:
        for _ in generate_tokens(
            trained.model, student.context_length, prompts, range(rows), options, 0, max_tokens=GENERATED_TOKENS
        ):
            pass

    generate()
    spent = statistics.median(_seconds(generate) for _ in range(GENERATION_REPEATS))
    return {
        "batch": rows,
        "tokens_per_second": rows * GENERATED_TOKENS / spent,
        "ms_per_token": 1000 * spent / GENERATED_TOKENS,
    }


def _speed_metrics(tokens: int, seconds: list[float]) -> Report:
    """Speeds (from the median) and latencies, from the times of batches."""
    median = statistics.median(seconds)
    p50, p95, p99 = (1000 * float(value) for value in np.percentile(seconds, (50, 95, 99)))
    return {
        "tokens_per_second": tokens / median,
        "batches_per_second": 1 / median,
        "latency_ms": {"mean": 1000 * statistics.mean(seconds), "p50": p50, "p95": p95, "p99": p99},
    }


def _flops_metrics(flops: float, milliseconds: float, rate: float) -> Report:
    """The operations of a batch, and their rate relative to a matrix product alone."""
    return {"flops": flops, "of_matmul_rate": 1000 * flops / milliseconds / rate}


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _multiply_adds(network: nn.Module) -> int:
    """Multiply-adds per token. For a network that is not a GPT: its number of parameters."""
    shape = getattr(network, "config", None)
    return multiply_adds(shape) if isinstance(shape, GPTConfig) else count_parameters(network)


def multiply_adds(shape: GPTConfig) -> int:
    """Multiply-adds per token of a GPT: all weight matrices, and causal attention, half of which is masked."""
    attention = (1 + shape.attention_out + 2 * shape.num_kv_heads / shape.heads) * shape.width**2
    hidden = (3 if shape.activation == "swiglu" else 2) * shape.width * shape.hidden
    block = int(attention) + hidden + shape.context * shape.width
    return shape.layers * block + shape.width * shape.vocab_size


def matmul_rate(pool: StreamPool | None = None) -> float:
    """Floating-point operations per second of large matrix products, one per stream. The median of several."""
    on_cpu = mx.default_device() == mx.cpu
    pool, size = pool or StreamPool(cpu.cores() if on_cpu else 1), 1536 if on_cpu else 8192
    matrix = mx.random.normal((size, size))
    mx.eval(matrix)
    pool.map(lambda i: matrix @ (matrix + i))
    times = [_seconds(lambda: pool.map(lambda i: matrix @ (matrix + i))) for _ in range(MATMUL_REPEATS)]
    return pool.count * 2 * size**3 / statistics.median(times)


# The machine -----------------------------------------------------------------------------------------------


def describe_machine() -> Report:
    """The machine and package versions that the measurements belong to."""
    return {
        "cpu": cpu.model(),
        "cores": cpu.cores(),
        "device": "GPU" if mx.default_device().type == mx.gpu else "CPU",
        "device_name": mx.device_info().get("device_name"),
        "blas": str(blas.load()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {"distillkit": __version__, **dict(_versions())},
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
