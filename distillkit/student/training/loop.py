"""The training loop: takes a network, batches and a mixer; writes checkpoints and a metrics log.

Every step is a function of the previous state and of the step number: batches, dropout and the learning rate are
derived from (seed, step). So a run that is interrupted and resumed ends bit-identical to an uninterrupted one on the
CPU. Knows nothing of text, of teachers beyond their logits, or of what the student is for.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...core.console import Console
from ...core.errors import Interrupted, TrainingError
from ...plugins.interfaces import Mixer, Teacher, Tracker
from .. import checkpoint as checkpoints
from ..generation.score import token_nlls
from .distributed import SINGLE_PROCESS, BatchShard, ProcessGroup
from .loss import LazyLogits, Targets, TopK, grad_squared_norms, mixed_loss, term_names, term_totals
from .metrics_log import MetricsLog, OverfittingMonitor, TermBalanceMonitor
from .on_policy import OnPolicyGenerator, soft_target_coverage
from .optimizers import LearningRateSchedule, OptimizerGroup, Tree, flatten, global_norm, unflatten
from .parallel import StreamPool
from .precision import LOSS_SCALE, MAX_OVERFLOWS, cast_parameters

Array = np.ndarray[Any, Any]
Arrays = dict[str, mx.array]
TeacherForward = Callable[[mx.array], mx.array | LazyLogits]
TARGET_ARRAYS = ("hard", "weight", "from_teacher", "from_student", "has_soft")  # same names in a batch and in Targets


class BatchLike(Protocol):
    """One batch as the data package builds it: arrays [B, T], those of soft targets optional."""

    @property
    def inputs(self) -> Array:
        """Input tokens."""

    @property
    def hard(self) -> Array:
        """Tokens to predict."""

    @property
    def weight(self) -> Array:
        """Loss weight of each position."""

    @property
    def from_teacher(self) -> Array:
        """1 for text that a teacher wrote."""

    @property
    def soft_ids(self) -> Array | None:
        """Token ids of stored soft targets [B, T, k]."""

    @property
    def soft_log_probs(self) -> Array | None:
        """Their log-probabilities [B, T, k]."""

    @property
    def soft_residual(self) -> Array | None:
        """The log-probability of all other tokens together."""

    @property
    def has_soft(self) -> Array | None:
        """1 where there is a soft target."""


@dataclass(frozen=True)
class TrainSettings:
    """The hyperparameters and intervals of a training run."""

    steps: int
    accumulate: int
    chunk: int
    evaluate_every: int
    checkpoint_every: int
    sample_every: int | None
    keep: int
    seed: int
    schedule: LearningRateSchedule
    optimizer: OptimizerGroup
    precision: str = "float32"


@dataclass
class TrainState:
    """Everything that a checkpoint restores."""

    parameters: Tree
    optimizer_state: Arrays
    step: int = 0
    best_step: int | None = None
    best_loss: float = math.inf
    overflows: int = 0  # in a row; not saved
    last_parts: list[Arrays] = field(default_factory=list)  # this process's parts of the last batch; not saved


@dataclass
class TrainingJob:
    """What `train` needs: the network, the data, the loss, the settings, and where results go."""

    model: nn.Module
    vocab_size: int
    mixer: Mixer
    batch: Callable[[int], BatchLike]
    validation: Callable[[], Iterable[BatchLike]]
    settings: TrainSettings
    student: Mapping[str, Any]
    metadata: Mapping[str, Any]  # saved in each checkpoint's state.json
    checkpoint_folder: Path
    metrics_file: Path
    teacher: TeacherForward | None = None  # tokens [B, T] to logits [B, T, V], or to hidden states with a head
    on_policy: OnPolicyGenerator | None = None
    console: Console = field(default_factory=Console)
    trackers: Sequence[Tracker] = ()
    sample: Callable[[], str] | None = None
    stream_pool: StreamPool = field(default_factory=lambda: StreamPool(1))
    group: ProcessGroup = SINGLE_PROCESS
    shard: BatchShard | None = None  # the rows of every batch that `batch` returns; None for all of them


def train(job: TrainingJob, state: TrainState) -> TrainState:
    """Train to the last step and return the state. On a stop signal, save a checkpoint and raise `Interrupted`."""
    settings, group = job.settings, job.group
    log = MetricsLog(job.metrics_file if group.is_main else None, settings.steps, state.step, job.console, job.trackers)
    overfitting, balance = OverfittingMonitor(job.console), TermBalanceMonitor(job.console)
    with group.barrier():
        _save(job, state)  # step 0 too, so that there is always a checkpoint to return to
    with stop_on_signal() as stop, log:
        while state.step < settings.steps:
            values = train_step(job, state)
            with group.barrier():
                _check_finite(job, state.step - 1, values)
                overfitting.record_step(values)
                log.log_step(state.step, values)
            evaluated = _is_due(state.step, settings.evaluate_every, settings.steps)
            loss, norms = (evaluate(job), gradient_norms(job, state)) if evaluated else (math.inf, {})
            with group.barrier() as vote:
                improved = evaluated and _record_evaluation(job, state, loss, norms, log, overfitting, balance)
                if improved or _is_due(state.step, settings.checkpoint_every, settings.steps):
                    log.sync()
                    _save(job, state)
                if job.sample and settings.sample_every and state.step % settings.sample_every == 0:
                    job.console.print(f"  {job.sample()}")
                vote.stop = bool(stop)
            if vote.stop:
                with group.barrier():
                    log.sync()
                    _save(job, state)
                raise Interrupted(f"stopped after step {state.step} of {settings.steps}; everything is saved")
    return state


def _record_evaluation(
    job: TrainingJob,
    state: TrainState,
    loss: float,
    norms: Mapping[str, float],
    log: MetricsLog,
    overfitting: OverfittingMonitor,
    balance: TermBalanceMonitor,
) -> bool:
    """Log a validation loss and the gradient norms of the terms; return whether the loss is the best so far."""
    if not math.isfinite(loss):
        raise _divergence_error(job, state.step, f"validation loss {loss}")
    log.log_evaluation(state.step, loss, norms)
    overfitting.record_evaluation(state.step, loss, state.best_loss)
    balance.record_evaluation(state.step, norms)
    improved = loss < state.best_loss
    if improved:
        state.best_step, state.best_loss = state.step, loss
    return improved


def _is_due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps


def train_step(job: TrainingJob, state: TrainState) -> dict[str, Any]:
    """One step: the gradients of all parts of the batch, added in a fixed order, then an update. Returns metrics."""
    settings, step = job.settings, state.step
    batch = batch_arrays(job.batch(step))
    parts_of_batch = settings.accumulate * job.stream_pool.count
    shard = job.shard or BatchShard.of(SINGLE_PROCESS, len(batch["inputs"]), parts_of_batch)
    if job.on_policy:
        with job.group.barrier() if job.on_policy.scorer else nullcontext():  # a scorer may fail in one process only
            batch = job.on_policy.generate(job.model, batch, shard, step)
    job.model.train()
    parts = list(_split(batch, shard))
    loss, terms, gradients = _gradients(job, parts, shard, step)
    rate = settings.schedule(step)
    norm = None if _has_overflowed(job, state, gradients) else _update(job, state, gradients, rate, step)
    values = {
        "loss": loss.item(),
        "terms": {name: term.item() for name, term in terms.items()},
        "learning_rate": rate,
        "gradient_norm": None if norm is None else norm.item(),
        "tokens": batch["inputs"].shape[1] * shard.batch_rows,
    }
    if job.on_policy and job.on_policy.scorer:
        values["judged"] = soft_target_coverage(batch)
    state.step, state.last_parts = step + 1, parts
    return values


def _has_overflowed(job: TrainingJob, state: TrainState, gradients: Arrays) -> bool:
    """Whether the gradient overflows float16, so that this step must not update the parameters."""
    if job.settings.precision != "float16":
        return False
    job.model.update(state.parameters)
    state.overflows = 0 if math.isfinite(global_norm(gradients).item()) else state.overflows + 1  # type: ignore[arg-type]
    return 0 < state.overflows < MAX_OVERFLOWS


def _update(job: TrainingJob, state: TrainState, gradients: dict[str, mx.array], rate: float, step: int) -> mx.array:
    """Update the parameters; return the gradient norm. Empties `gradients`, so that MLX can reuse their memory."""
    streams = _assign_streams(job, gradients)
    grads = unflatten(gradients)
    gradients.clear()
    state.parameters, state.optimizer_state, norm = job.settings.optimizer.update(
        state.parameters, grads, state.optimizer_state, mx.array(rate), mx.array(step), streams
    )
    del grads
    job.model.update(state.parameters)
    mx.eval(state.parameters, state.optimizer_state, norm)
    return norm


def _gradients(
    job: TrainingJob, parts: Sequence[Arrays], shard: BatchShard, step: int
) -> tuple[mx.array, Arrays, Arrays]:
    """The loss of a batch, its terms and its gradient: one part per stream at a time, then summed over processes."""
    number, weights = mx.array(step), job.mixer.weights(step)
    totals = _loss_denominators(job, parts)
    value_and_grad = _value_and_grad(job)
    loss, terms, gradients = mx.array(0.0), {name: mx.array(0.0) for name in totals}, Arrays()
    for start in range(0, len(parts), job.stream_pool.count):

        def compute(i: int, start: int = start) -> Any:
            place = shard.first_part + start + i
            mx.random.seed((job.settings.seed * 1_000_003 + step * 1009 + place) % 2**63)
            return value_and_grad(parts[start + i], number, weights, totals)

        results = job.stream_pool.map(compute, len(parts) - start)
        while results:
            (part_loss, part_terms), grads = results.pop(0)
            loss, terms = loss + part_loss, {name: terms[name] + part_terms[name] for name in terms}
            gradients = _add(job, gradients, flatten(grads))
            del grads  # or MLX could not reuse their memory
        mx.eval(loss, terms, gradients)
    return _all_reduce(job, loss, terms, gradients)


def _all_reduce(job: TrainingJob, loss: mx.array, terms: Arrays, gradients: Arrays) -> tuple[mx.array, Arrays, Arrays]:
    """The sums over all processes, divided by the loss scale."""
    values = job.group.sum({"": loss, **terms})
    if job.group.world_size > 1:
        gradients = job.group.sum(gradients)
    factor = LOSS_SCALE[job.settings.precision]
    if factor != 1:
        values, gradients = ({n: one / factor for n, one in each.items()} for each in (values, gradients))
    return values.pop(""), values, gradients


def _value_and_grad(job: TrainingJob) -> Callable[..., Any]:
    """A function that returns the loss of a part, its terms, and the gradient with respect to the float32 weights."""
    if job.settings.precision == "float32":
        value_and_grad = nn.value_and_grad(job.model, _part_loss)
        return lambda *arguments: value_and_grad(job.model, job, *arguments)
    masters = job.model.trainable_parameters()

    def loss(parameters: Tree, *arguments: Any) -> Any:
        job.model.update(cast_parameters(job.model, parameters, job.settings.precision))
        return _part_loss(job.model, job, *arguments)

    loss_and_grad = mx.value_and_grad(loss)
    return lambda *arguments: loss_and_grad(masters, *arguments)


def _add(job: TrainingJob, total: dict[str, mx.array], more: dict[str, mx.array]) -> dict[str, mx.array]:
    """total + more for each parameter, on the parameter's stream. Empties both arguments."""
    if not total:
        return more
    added = {}
    for name, stream in _assign_streams(job, total).items():
        with mx.stream(stream):
            added[name] = total.pop(name) + more.pop(name)
    return added


def _assign_streams(job: TrainingJob, arrays: Mapping[str, mx.array]) -> dict[str, mx.Stream]:
    """The stream that works on each parameter outside of the network."""
    return job.stream_pool.assign({name: value.size for name, value in arrays.items()})


def batch_arrays(batch: BatchLike) -> dict[str, Array]:
    """The arrays of a batch by name, without those of soft targets if there are none."""
    names = ("inputs", "hard", "weight", "from_teacher", "soft_ids", "soft_log_probs", "soft_residual", "has_soft")
    return {name: value for name in names if (value := getattr(batch, name)) is not None}


def _split(batch: Mapping[str, Array], shard: BatchShard) -> Iterator[Arrays]:
    """This process's rows of a batch, split into parts, as MLX arrays."""
    for start, stop in pairwise((0, *shard.part_ends)):
        yield {name: mx.array(value[start:stop]) for name, value in batch.items()}


def _targets(job: TrainingJob, part: Arrays) -> Targets:
    """The targets of a part, with the teacher's distribution: computed now, or stored in the batch."""
    rows = {name: value.reshape(-1) for name, value in part.items() if value.ndim == 2 and name in TARGET_ARRAYS}
    soft: dict[str, Any] = {}
    if job.teacher is not None:
        soft = {"has_soft": mx.ones(rows["hard"].shape), **_teacher_targets(job.teacher(part["inputs"]))}
    elif "soft_ids" in part:
        ids, logs = (part[name].reshape(rows["hard"].size, -1) for name in ("soft_ids", "soft_log_probs"))
        soft = {"sparse": TopK(ids, logs, part["soft_residual"].reshape(-1))}
    return Targets(**{"has_soft": mx.zeros(rows["hard"].shape), **rows, **soft})


def _teacher_targets(output: mx.array | LazyLogits) -> dict[str, Any]:
    """The teacher's output for a part, one row per position, without a gradient."""
    if isinstance(output, LazyLogits):
        hidden = mx.stop_gradient(output.hidden)
        return {"lazy_logits": LazyLogits(hidden.reshape(-1, hidden.shape[-1]), output.head)}
    return {"teacher_logits": mx.stop_gradient(output).reshape(-1, output.shape[-1])}


def _loss_denominators(job: TrainingJob, parts: Sequence[Arrays]) -> Arrays:
    """What each term's sum over rows is divided by: the sum of the row weights over the loss scale."""
    factor = LOSS_SCALE[job.settings.precision]
    return {name: mx.maximum(total, 1e-9) / factor for name, total in _batch_totals(job, parts).items()}


def _batch_totals(job: TrainingJob, parts: Sequence[Arrays]) -> Arrays:
    """The sum of each term's row weights over the whole batch, over all processes."""
    targets = [_targets(job, part) for part in parts]
    names = term_names(job.mixer, job.vocab_size, targets[0])
    totals = [term_totals(job.mixer, each, names, job.settings.chunk) for each in targets]
    return job.group.sum({name: mx.stack([total[name] for total in totals]).sum() for name in names})


def _part_loss(
    model: nn.Module,
    job: TrainingJob,
    part: Arrays,
    step: mx.array,
    weights: Mapping[str, float],
    totals: Arrays,
) -> tuple[mx.array, Arrays]:
    """A part's contribution to the loss of the batch and to each of its terms."""
    hidden = model(part["inputs"])
    hidden = hidden.reshape(-1, hidden.shape[-1])
    targets = _targets(job, part)
    return mixed_loss(job.mixer, hidden, model.head, targets, step, weights, totals, job.settings.chunk)


def gradient_norms(job: TrainingJob, state: TrainState) -> dict[str, float]:
    """The L2 norm of each weighted term's gradient at the logits, over the last batch of all processes.

    Terms that count none of its rows are left out.
    """
    step, weights = state.step - 1, job.mixer.weights(state.step - 1)
    totals = {name: float(total.item()) for name, total in _batch_totals(job, state.last_parts).items()}  # type: ignore[arg-type]
    totals = {name: total for name, total in totals.items() if total > 0}
    squares = dict.fromkeys(totals, 0.0)
    for part in state.last_parts:
        hidden, targets = job.model(part["inputs"]), _targets(job, part)
        hidden = hidden.reshape(-1, hidden.shape[-1])
        arguments = (mx.array(step), weights, totals, job.settings.chunk)
        for name, square in grad_squared_norms(job.mixer, hidden, job.model.head, targets, *arguments).items():
            squares[name] += square
    summed = job.group.sum({name: mx.array(square) for name, square in squares.items()})
    return {name: float(square.item()) ** 0.5 for name, square in summed.items()}  # type: ignore[arg-type]


def evaluate(job: TrainingJob) -> float:
    """The mean cross-entropy in nats per token over the validation batches, which the processes share."""
    job.model.eval()
    total = count = 0.0
    for i, batch in enumerate(job.validation()):
        if i % job.group.world_size != job.group.rank:
            continue
        hidden = job.model(mx.array(batch.inputs))
        losses = token_nlls(hidden.reshape(-1, hidden.shape[-1]), job.model.head, mx.array(batch.hard.reshape(-1)))
        total += float(mx.sum(losses * mx.array(batch.weight.reshape(-1))).item())  # type: ignore[arg-type]
        count += float(batch.weight.sum())
    if job.group.world_size > 1:
        both = job.group.sum({"total": mx.array(total), "count": mx.array(count)})
        total, count = float(both["total"].item()), float(both["count"].item())  # type: ignore[arg-type]
    return total / count


def _check_finite(job: TrainingJob, step: int, values: Mapping[str, Any]) -> None:
    loss, norm = values["loss"], values["gradient_norm"]
    if not (math.isfinite(loss) and (norm is None or math.isfinite(norm))):
        raise _divergence_error(job, step, f"loss {loss}, gradient norm {norm}")


def _divergence_error(job: TrainingJob, step: int, what: str) -> TrainingError:
    """The error for a loss that is not finite. Moves aside a checkpoint whose very next step failed."""
    for checkpoint in checkpoints.list_checkpoints(job.checkpoint_folder):
        if checkpoint.step == step > 0 and job.group.is_main:
            checkpoints.move_aside(checkpoint, "diverged")
    good, _ = checkpoints.newest_valid(job.checkpoint_folder) if job.group.is_main else (None, None)
    kept = f"the last good checkpoint is {good.path}" if good else "there is no good checkpoint"
    return TrainingError(
        f"the loss is no longer a number after step {step} ({what}); {kept}",
        "A lower train.learning_rate, a longer train.warmup or a smaller train.clip usually helps.",
    )


def _save(job: TrainingJob, state: TrainState) -> None:
    """Write a checkpoint, unless it exists already, and delete those that are no longer needed."""
    if not job.group.is_main:
        return
    folder = checkpoints.step_folder(job.checkpoint_folder, state.step)
    if not folder.exists():
        saved = {
            **job.metadata,
            "step": state.step,
            "best_step": state.best_step,
            "best_loss": state.best_loss if math.isfinite(state.best_loss) else None,
        }
        checkpoints.save(folder, flatten(state.parameters), state.optimizer_state, dict(job.student), saved)
    checkpoints.prune(job.checkpoint_folder, job.settings.keep, state.best_step)


def initial_state(model: nn.Module, optimizer: OptimizerGroup) -> TrainState:
    """The state before the first step."""
    parameters = model.trainable_parameters()
    return TrainState(parameters, optimizer.initial_state(parameters))


def restore_state(model: nn.Module, optimizer: OptimizerGroup, checkpoint: checkpoints.Checkpoint) -> TrainState:
    """The state that a checkpoint holds. Loads its weights into the network."""
    weights, saved = checkpoint.weights(), checkpoint.state
    model.load_weights(list(weights.items()))
    parameters, best = model.trainable_parameters(), saved["best_loss"]
    optimizer_state = optimizer.restore(parameters, checkpoint.optimizer_arrays())
    mx.eval(parameters, optimizer_state)
    return TrainState(
        parameters,
        optimizer_state,
        saved["step"],
        saved["best_step"],
        math.inf if best is None else best,
    )


class StopRequest:
    """True once the user has asked to stop."""

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request to stop after the current step; the second stops at once."""
    stop = StopRequest()

    def request(number: int, frame: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    try:
        before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread receives signals
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def teacher_forward(teacher: Teacher) -> TeacherForward:
    """The function that a step calls for the teacher's output: hidden states and head if it has them, else logits."""
    local: Any = teacher
    if not (hasattr(local, "hidden") and hasattr(local, "head")):
        return teacher.logits
    return lambda tokens: LazyLogits(local.hidden(tokens), local.head)
