"""How fast a trained student reads, learns and writes on this machine, and the memory that it takes.

Everything is done to a copy in memory, with random tokens: what they say does not change how long they take. Knows
how the train stage makes a step and measures that one, all but what is asked elsewhere; writes nothing, and does not
know whether a student is any good.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from ..reporting.formatting import Entry

SCHEMA = 1
STORED = (SoftTargetSource.STORE, SoftTargetSource.ANSWERS)
WARM = 2  # batches that are not counted: MLX compiles in the first, and finds its memory
PROMPT, WRITTEN, TEXTS, ROUNDS = 16, 128, (1, 16), 3
PRODUCTS = 9  # times that a large product is measured
FORWARD, TRAINING = 2, 6  # operations a multiply-add: in the forward pass, and with the two of the backward pass
PACKAGES = ("mlx", "numpy", "torch", "mlx-lm", "tiktoken", "scipy-openblas32")

Report = dict[str, Any]


def measure(context: Context, run: Run, steps: int) -> Report:
    """All figures of a run's student, with batches as large as the recipe says."""
    keep_freed_memory()
    subject, say = Subject(context, run), context.console.print
    rate = matmul_rate(subject.stream_pool)
    say(f"Measuring {run.name}: reading, {steps} batches.")
    reading = _reading(subject, steps)
    say(f"Writing, {' and '.join(map(str, TEXTS))} at once, {WRITTEN} tokens each.")
    writing = [_writing(subject, rows) for rows in TEXTS]
    say(f"Training, {steps} steps on a copy.")
    training, activations = _training(subject, steps)  # the last, for it moves the weights
    sizes = parameter_counts(subject.student.model)
    return {
        "schema": SCHEMA,
        "run": run.name,
        "step": subject.step,
        "batch": subject.table.batch_size,
        "accumulate": subject.table.accumulate,
        "context": subject.context_length,
        "steps": steps,
        "parameters": sizes,
        "forward": {**reading, **_work(subject.reading_flops, reading["latency_ms"]["p50"], rate)},
        "training": {**training, **_work(subject.training_flops, training["latency_ms"]["p50"], rate)},
        "generation": writing,
        "memory": {
            "parameters_fp32_bytes": 4 * sizes["unique"],
            "parameters_fp16_bytes": 2 * sizes["unique"],
            "activation_bytes": activations,
        },
        "matmul_flops_per_second": rate,
        "machine": machine(),
    }


class Subject:
    """The student of a run, and what its recipe has a step made of."""

    def __init__(self, context: Context, run: Run) -> None:
        self.context, self.step = context, find_checkpoint(run.path)[0].step
        self.student = Trained.load(run.path)
        self.context_length, self.vocab_size = self.student.context, self.student.tokenizer.vocab_size
        self.table = context.recipe.train
        self.teacher = SoftTargets(context).logits_teacher if context.uses_logits_in_steps else None
        self.stream_pool = StreamPool(stream_count(self.table))
        self.writes = on_policy_generator(context.recipe, self.context_length, self.student.tokenizer.end_of_text, None)

    @property
    def batch_tokens(self) -> int:
        """How many tokens a batch has."""
        return self.table.batch_size * self.context_length

    @property
    def step_tokens(self) -> int:
        """How many tokens a step reads: those of all batches whose gradients make one."""
        return self.batch_tokens * self.table.accumulate

    def batch(self, number: int) -> Batch:
        """All rows of a step, of random tokens."""
        size = (2, self.step_tokens // self.context_length, self.context_length)
        drawn = np.random.default_rng(number).integers(0, self.vocab_size, size)
        tokens, ones = drawn.astype(np.int32), np.ones(drawn.shape[1:], np.float32)
        batch = Batch(inputs=tokens[0], hard=tokens[1], weight=ones, from_teacher=0 * ones)
        return self._softened(batch, number) if self.names else batch

    @property
    def names(self) -> int:
        """How many tokens a stored soft target names; 0 where none is stored."""
        source = self.context.soft_target_source
        return SoftTargets(self.context).binding(self.context.corpus.train).most if source in STORED else 0

    def _softened(self, batch: Batch, number: int) -> Batch:
        """A batch with soft targets as a store gives them, of random tokens."""
        size = (*batch.hard.shape, self.names)
        ids = np.random.default_rng(number).integers(0, self.vocab_size, size).astype(np.int32)
        even = np.full(size, np.log(0.9 / self.names), np.float32)
        rest = np.full(batch.hard.shape, np.log(0.1), np.float32)
        return replace(batch, soft_ids=ids, soft_log_probs=even, soft_residual=rest, has_soft=batch.weight)

    @property
    def precision(self) -> str:
        """What a step of the train stage is computed in here."""
        return precision.resolve(self.table.precision)

    def job(self) -> TrainingJob:
        """What the train stage would do, but for the text and for files: there are none."""
        if self.table.checkpointing:
            enable_checkpointing(self.student.model, self.context.recipe.student.arch)
        return TrainingJob(
            model=self.student.model,
            vocab_size=self.vocab_size,
            mixer=self.context.mixer,
            batch=self.batch,
            validation=tuple,
            settings=training_settings(self.context.recipe, chunk_size(self.table, self.vocab_size), self.precision),
            student={},
            metadata={},
            checkpoint_folder=Path(os.devnull),
            metrics_file=Path(os.devnull),
            teacher=teacher_forward(self.teacher) if self.teacher else None,
            on_policy=self.writes,
            stream_pool=self.stream_pool,
        )

    @property
    def reading_flops(self) -> float:
        """The operations of a forward pass over a batch."""
        return FORWARD * self.batch_tokens * _multiply_adds(self.student.model)

    @property
    def training_flops(self) -> float:
        """The operations of a step; a teacher only reads, and what the student writes it reads first."""
        own, theirs = _multiply_adds(self.student.model), getattr(self.teacher, "trained", None)
        taught = FORWARD * _multiply_adds(theirs.model) if theirs else 0
        written = len(self.writes.chosen_rows(self.table.rows, 0)) * self.context_length if self.writes else 0
        return self.step_tokens * (TRAINING * own + taught) + written * FORWARD * own


# Measuring -------------------------------------------------------------------------------------------------


def _reading(subject: Subject, steps: int) -> Report:
    """Forward passes to logits; a batch is shared out over the streams, as in training."""
    rows = np.array_split(subject.batch(0).inputs[: subject.table.batch_size], subject.stream_pool.count)

    def read() -> None:
        subject.stream_pool.map(lambda i: subject.student.logits(mx.array(rows[i])))

    for _ in range(WARM):
        read()
    return _speeds(subject.batch_tokens, [_seconds(read) for _ in range(steps)])


def _training(subject: Subject, steps: int) -> tuple[Report, int]:
    """Whole steps: forward, backward, optimizer. And what MLX held at most, beyond what it had before."""
    job = subject.job()
    state = initial_state(job.model, job.settings.optimizer)
    for _ in range(WARM):
        train_step(job, state)
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    speeds = _speeds(subject.step_tokens, [_seconds(lambda: train_step(job, state)) for _ in range(steps)])
    how = {
        "teacher": subject.teacher is not None,
        "precision": subject.precision,
        "on_policy": subject.writes.share if subject.writes else 0.0,
        "without_asking": subject.context.asks_teacher_in_steps,
    }
    return {**speeds, **how}, mx.get_peak_memory() - held


def _writing(subject: Subject, rows: int) -> Report:
    """So many texts at once, each from a few tokens on, drawn as the recipe draws."""
    student, table = subject.student, subject.context.recipe.sampling
    how = Sampling(table.temperatures[0], **table.sampler_options)
    student.model.eval()
    length = min(PROMPT, subject.context_length // 2)
    prompts = np.random.default_rng(rows).integers(0, subject.vocab_size, (rows, length)).tolist()

    def written() -> None:
        for _ in generate_tokens(
            student.model, subject.context_length, prompts, range(rows), how, 0, max_tokens=WRITTEN
        ):
            pass

    written()
    spent = statistics.median(_seconds(written) for _ in range(ROUNDS))
    return {"batch": rows, "tokens_per_second": rows * WRITTEN / spent, "ms_per_token": 1000 * spent / WRITTEN}


def _speeds(tokens: int, seconds: list[float]) -> Report:
    """What the times of some batches of so many tokens come to; speeds are those of the median."""
    median = statistics.median(seconds)
    p50, p95, p99 = (1000 * float(value) for value in np.percentile(seconds, (50, 95, 99)))
    return {
        "tokens_per_second": tokens / median,
        "batches_per_second": 1 / median,
        "latency_ms": {"mean": 1000 * statistics.mean(seconds), "p50": p50, "p95": p95, "p99": p99},
    }


def _work(flops: float, milliseconds: float, rate: float) -> Report:
    """The operations of a batch, and how near their speed is to that of a matrix product alone."""
    return {"flops": flops, "of_matmul_rate": 1000 * flops / milliseconds / rate}


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _multiply_adds(network: nn.Module) -> int:
    """Multiply-adds a token; of a network that is no GPT only the parameters are known: about one each."""
    shape = getattr(network, "config", None)
    return multiply_adds(shape) if isinstance(shape, GPTConfig) else count_parameters(network)


def multiply_adds(shape: GPTConfig) -> int:
    """Multiply-adds a token of a GPT: the weights of all matrices, and attention, half of which nobody sees."""
    attention = (1 + shape.attention_out + 2 * shape.num_kv_heads / shape.heads) * shape.width**2
    hidden = (3 if shape.activation == "swiglu" else 2) * shape.width * shape.hidden
    block = int(attention) + hidden + shape.context * shape.width
    return shape.layers * block + shape.width * shape.vocab_size


def matmul_rate(pool: StreamPool | None = None) -> float:
    """Operations a second of large products, one on each stream at once: the median of several."""
    on_cpu = mx.default_device() == mx.cpu
    pool, size = pool or StreamPool(cpu.cores() if on_cpu else 1), 1536 if on_cpu else 8192
    matrix = mx.random.normal((size, size))
    mx.eval(matrix)
    pool.map(lambda i: matrix @ (matrix + i))
    times = [_seconds(lambda: pool.map(lambda i: matrix @ (matrix + i))) for _ in range(PRODUCTS)]
    return pool.count * 2 * size**3 / statistics.median(times)


# The machine -----------------------------------------------------------------------------------------------


def machine() -> Report:
    """What was measured on: a figure without it says nothing."""
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


# In words --------------------------------------------------------------------------------------------------


def text(report: Mapping[str, Any]) -> str:
    """The figures as they are printed."""
    from rich.console import Group
    from rich.text import Text

    from ..reporting import formatting, terminal

    title = Text.assemble((formatting.one_line(report["run"]), "bold"), f"  step {report['step']:,}")
    size = f"{report['batch']} x {report['context']} random tokens"
    if report["accumulate"] > 1:
        size += f", {report['accumulate']} of them a training step"
    medians = f"medians of {report['steps']}, of {ROUNDS} for writing, of {PRODUCTS} for the matrix product"
    about = Text(f"Batches of {size}; {medians}.", "dim")
    training = report["training"]
    facts = {
        "reading": _speed_facts(report["forward"], "batch", "a forward pass to logits"),
        "training": _speed_facts(training, "step", _step_made_of(training)),
        "writing": [_writing_fact(row) for row in report["generation"]],
        "memory": _memory_facts(report),
        "machine": _machine_facts(report),
    }
    return terminal.render(Group(terminal.heading(title), about, terminal.sections_table(facts)), colour=False)


def _step_made_of(training: Mapping[str, Any]) -> str:
    written = ", what the student writes" if training["on_policy"] else ""
    taught = ", the teacher's forward pass" if training["teacher"] else ""
    lowered = f" in {training['precision']}" if training["precision"] != "float32" else ""
    less = "; without asking the teacher" if training["without_asking"] else ""
    return f"forward, backward, optimizer{written}{taught}{lowered}{less}; on a copy"


def _speed_facts(speeds: Mapping[str, Any], unit: str, about: str) -> list[Entry]:
    from ..reporting.formatting import Entry, format_number

    latency = ", ".join(f"{name} {format_number(value)}" for name, value in speeds["latency_ms"].items())
    share = f"{speeds['of_matmul_rate']:.0%} of a large matrix product's"
    return [
        Entry("tokens/s", format_number(speeds["tokens_per_second"]), about),
        Entry(f"{unit}{'es' if unit == 'batch' else 's'}/s", format_number(speeds["batches_per_second"])),
        Entry(f"ms a {unit}", latency),
        Entry("arithmetic", share, f"{format_number(speeds['flops'] / 1e9)} GFLOP a {unit}"),
    ]


def _writing_fact(row: Mapping[str, Any]) -> Entry:
    from ..reporting.formatting import Entry, format_number

    speed = f"{format_number(row['tokens_per_second'])} tokens/s"
    return Entry(f"batch {row['batch']}", speed, f"{format_number(row['ms_per_token'])} ms from one token to the next")


def _memory_facts(report: Mapping[str, Any]) -> list[Entry]:
    from ..reporting.formatting import Entry, format_bytes, format_count

    sizes, memory = report["parameters"], report["memory"]
    shared = f"{format_count(sizes['total'])} where a shared one counts at each use"
    return [
        Entry("parameters", format_count(sizes["unique"]), shared if sizes["total"] != sizes["unique"] else ""),
        Entry("in fp32", format_bytes(memory["parameters_fp32_bytes"])),
        Entry("in fp16", format_bytes(memory["parameters_fp16_bytes"])),
        Entry(
            "activations",
            format_bytes(memory["activation_bytes"]),
            "peak memory that a training step adds",
        ),
    ]


def _machine_facts(report: Mapping[str, Any]) -> list[Entry]:
    from ..reporting.formatting import Entry, format_count, format_number

    where, rate = report["machine"], report["matmul_flops_per_second"]
    return [
        Entry("processor", where["cpu"], format_count(where["cores"], "core")),
        Entry("device", where["device"], where["device_name"] or ""),
        Entry("BLAS", where["blas"]),
        Entry("matrix product", f"{format_number(rate / 1e9)} GFLOP/s", "a large one, measured in this run"),
        Entry("versions", ", ".join(f"{name} {number}" for name, number in where["packages"].items())),
    ]
