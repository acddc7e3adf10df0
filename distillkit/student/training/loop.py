"""Training: a network, batches and a mixer in; checkpoints and a log out.

Every step is a function of the state before it and of its own number: batches, dropout and the learning rate
are drawn from (seed, step). So a run that is interrupted and resumed ends where an undisturbed one ends, bit
for bit on the CPU. Knows nothing of text, of teachers beyond their logits, or of what the student is for.
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
from .loss import Opinion, Targets, TopK, mixed_loss, slope_squares, term_names, totals
from .metrics_log import Balance, Journal, Overfitting
from .on_policy import OnPolicy, judged
from .optimizers import AdamW, LearningRateSchedule, Tree, flatten, global_norm, restore_moments, unflatten
from .parallel import StreamPool
from .precision import LOSS_SCALE, MAX_OVERFLOWS, cast_parameters

Array = np.ndarray[Any, Any]
Arrays = dict[str, mx.array]
Asked = Callable[[mx.array], mx.array | Opinion]


class Rows(Protocol):
    """One batch, as the data room packs it: arrays [B, T]."""

    @property
    def inputs(self) -> Array:
        """Tokens to read."""

    @property
    def hard(self) -> Array:
        """Tokens to predict."""

    @property
    def weight(self) -> Array:
        """How much each counts."""

    @property
    def from_teacher(self) -> Array:
        """Whether a teacher wrote it."""

    @property
    def soft_ids(self) -> Array | None:
        """Of stored soft targets the tokens that are named [B, T, k]."""

    @property
    def soft_log_probs(self) -> Array | None:
        """Their log-probabilities."""

    @property
    def soft_residual(self) -> Array | None:
        """The logarithm of what is left for all others."""

    @property
    def has_soft(self) -> Array | None:
        """Whether there is a soft target."""


@dataclass(frozen=True)
class Settings:
    """The figures of a training run."""

    steps: int
    accumulate: int
    chunk: int
    evaluate_every: int
    checkpoint_every: int
    sample_every: int | None
    keep: int
    seed: int
    schedule: LearningRateSchedule
    optimizer: AdamW
    precision: str = "float32"


@dataclass
class State:
    """All that a checkpoint brings back."""

    parameters: Tree
    moments: Tree
    step: int = 0
    best_step: int | None = None
    best_loss: float = math.inf
    overflows: int = 0  # in a row, in this sitting
    last: list[Arrays] = field(default_factory=list)  # this process's parts of the last batch


@dataclass
class Job:
    """What is trained, on what, and who is told."""

    model: nn.Module
    vocab_size: int
    mixer: Mixer
    batch: Callable[[int], Rows]
    validation: Callable[[], Iterable[Rows]]
    settings: Settings
    student: Mapping[str, Any]
    facts: Mapping[str, Any]
    folder: Path
    log: Path
    teacher: Asked | None = None  # tokens [B, T] to logits [B, T, V], or to hidden states with a head
    on_policy: OnPolicy | None = None
    console: Console = field(default_factory=Console)
    trackers: Sequence[Tracker] = ()
    sample: Callable[[], str] | None = None
    stream_pool: StreamPool = field(default_factory=lambda: StreamPool(1))
    group: ProcessGroup = SINGLE_PROCESS
    shard: BatchShard | None = None  # of every batch, as `batch` gives it; all of it when not set


def train(job: Job, state: State) -> State:
    """Take the state to the last step. Interrupted, it saves and says so."""
    settings, group = job.settings, job.group
    journal = Journal(job.log if group.is_main else None, settings.steps, state.step, job.console, job.trackers)
    watch, balance = Overfitting(job.console), Balance(job.console)
    with group.barrier():
        _save(job, state)  # also when it is the very first: there is always something to go back to
    with asked_to_stop() as stop, journal:
        while state.step < settings.steps:
            values = advance(job, state)
            with group.barrier():
                _must_be_finite(job, state.step - 1, values)
                watch.trained(values)
                journal.step(state.step, values)
            looked = _due(state.step, settings.evaluate_every, settings.steps)
            loss, lengths = (evaluate(job), gradient_norms(job, state)) if looked else (math.inf, {})
            with group.barrier() as vote:
                better = looked and _look(job, state, loss, lengths, journal, watch, balance)
                if better or _due(state.step, settings.checkpoint_every, settings.steps):
                    journal.keep()
                    _save(job, state)
                if job.sample and settings.sample_every and state.step % settings.sample_every == 0:
                    job.console.print(f"  {job.sample()}")
                vote.stop = bool(stop)
            if vote.stop:
                with group.barrier():
                    journal.keep()
                    _save(job, state)
                raise Interrupted(f"stopped after step {state.step} of {settings.steps}; everything is saved")
    return state


def _look(
    job: Job,
    state: State,
    loss: float,
    lengths: Mapping[str, float],
    journal: Journal,
    watch: Overfitting,
    balance: Balance,
) -> bool:
    """Take note of a validation loss: whether it is the best so far. And of how much each term weighs in truth."""
    if not math.isfinite(loss):
        raise _diverged(job, state.step, f"validation loss {loss}")
    journal.evaluation(state.step, loss, lengths)
    watch.evaluated(state.step, loss, state.best_loss)
    balance.evaluated(state.step, lengths)
    better = loss < state.best_loss
    if better:
        state.best_step, state.best_loss = state.step, loss
    return better


def _due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps


def advance(job: Job, state: State) -> dict[str, Any]:
    """One step: gradients of every part of the batch, summed in a fixed order, then AdamW."""
    settings, step = job.settings, state.step
    batch = arrays_of(job.batch(step))
    shard = job.shard or BatchShard.of(
        SINGLE_PROCESS, len(batch["inputs"]), settings.accumulate * job.stream_pool.count
    )
    if job.on_policy:
        with job.group.barrier() if job.on_policy.judge else nullcontext():  # who is asked may fail one process alone
            batch = job.on_policy.continued(job.model, batch, shard, step)
    job.model.train()
    parts = list(_parts(batch, shard))
    loss, terms, gradients = _gradients(job, parts, shard, step)
    rate = settings.schedule(step)
    norm = None if _overflowed(job, state, gradients) else _update(job, state, gradients, rate, step)
    values = {
        "loss": loss.item(),
        "terms": {name: term.item() for name, term in terms.items()},
        "learning_rate": rate,
        "gradient_norm": None if norm is None else norm.item(),
        "tokens": batch["inputs"].shape[1] * shard.batch_rows,
    }
    if job.on_policy and job.on_policy.judge:
        values["judged"] = judged(batch)
    state.step, state.last = step + 1, parts
    return values


def _overflowed(job: Job, state: State, gradients: Arrays) -> bool:
    """Whether float16 could not hold the gradient: then the step moves nothing."""
    if job.settings.precision != "float16":
        return False
    job.model.update(state.parameters)
    state.overflows = 0 if math.isfinite(global_norm(gradients).item()) else state.overflows + 1  # type: ignore[arg-type]
    return 0 < state.overflows < MAX_OVERFLOWS


def _update(job: Job, state: State, gradients: dict[str, mx.array], rate: float, step: int) -> mx.array:
    """Move the parameters. The gradients are used up: MLX writes over what nobody holds."""
    streams = _streams(job, gradients)
    slopes = unflatten(gradients)
    gradients.clear()
    state.parameters, state.moments, norm = job.settings.optimizer.update(
        state.parameters, slopes, state.moments, mx.array(rate), mx.array(step), streams
    )
    del slopes
    job.model.update(state.parameters)
    mx.eval(state.parameters, state.moments, norm)
    return norm


def _gradients(job: Job, parts: Sequence[Arrays], shard: BatchShard, step: int) -> tuple[mx.array, Arrays, Arrays]:
    """The loss of a batch, its terms and its gradient: one part a stream, summed over processes."""
    number, weights = mx.array(step), job.mixer.weights(step)
    whole = _totals(job, parts)
    value = _valued(job)
    loss, terms, gradients = mx.array(0.0), {name: mx.array(0.0) for name in whole}, Arrays()
    for start in range(0, len(parts), job.stream_pool.count):

        def compute(lane: int, start: int = start) -> Any:
            place = shard.first_part + start + lane
            mx.random.seed((job.settings.seed * 1_000_003 + step * 1009 + place) % 2**63)
            return value(parts[start + lane], number, weights, whole)

        done = job.stream_pool.map(compute, len(parts) - start)
        while done:
            (part, shares), slopes = done.pop(0)
            loss, terms = loss + part, {name: terms[name] + shares[name] for name in terms}
            gradients = _sum(job, gradients, flatten(slopes))
            del slopes  # or MLX could not write over them
        mx.eval(loss, terms, gradients)
    return _of_all(job, loss, terms, gradients)


def _of_all(job: Job, loss: mx.array, terms: Arrays, gradients: Arrays) -> tuple[mx.array, Arrays, Arrays]:
    """The sums over all machines, at their own scale again."""
    values = job.group.sum({"": loss, **terms})
    if job.group.world_size > 1:
        gradients = job.group.sum(gradients)
    factor = LOSS_SCALE[job.settings.precision]
    if factor != 1:
        values, gradients = ({n: one / factor for n, one in each.items()} for each in (values, gradients))
    return values.pop(""), values, gradients


def _valued(job: Job) -> Callable[..., Any]:
    """The loss of a part and its gradient with respect to the weights as they are kept, in float32."""
    if job.settings.precision == "float32":
        value = nn.value_and_grad(job.model, _part_loss)
        return lambda *arguments: value(job.model, job, *arguments)
    masters = job.model.trainable_parameters()

    def loss(parameters: Tree, *arguments: Any) -> Any:
        job.model.update(cast_parameters(job.model, parameters, job.settings.precision))
        return _part_loss(job.model, job, *arguments)

    slopes = mx.value_and_grad(loss)
    return lambda *arguments: slopes(masters, *arguments)


def _sum(job: Job, some: dict[str, mx.array], more: dict[str, mx.array]) -> dict[str, mx.array]:
    """Two gradients added up, each parameter's on its own stream; neither is left."""
    if not some:
        return more
    added = {}
    for name, stream in _streams(job, some).items():
        with mx.stream(stream):
            added[name] = some.pop(name) + more.pop(name)
    return added


def _streams(job: Job, arrays: Mapping[str, mx.array]) -> dict[str, mx.Stream]:
    """Which stream works on which parameter, outside of the network."""
    return job.stream_pool.assign({name: value.size for name, value in arrays.items()})


def arrays_of(batch: Rows) -> dict[str, Array]:
    """The arrays of a batch by their names, those of soft targets where there are any."""
    names = ("inputs", "hard", "weight", "from_teacher", "soft_ids", "soft_log_probs", "soft_residual", "has_soft")
    return {name: value for name in names if (value := getattr(batch, name)) is not None}


def _parts(batch: Mapping[str, Array], shard: BatchShard) -> Iterator[Arrays]:
    """This process's rows of a batch cut into their parts, as arrays of the accelerator."""
    for start, stop in pairwise((0, *shard.part_ends)):
        yield {name: mx.array(value[start:stop]) for name, value in batch.items()}


def _targets(job: Job, part: Arrays) -> Targets:
    """The targets of a part of a batch, with what the teacher thinks of them, or thought when it was stored."""
    rows = {name: value.reshape(-1) for name, value in part.items() if value.ndim == 2 and name in KNOWN}
    soft: dict[str, Any] = {}
    if job.teacher is not None:
        soft = {"has_soft": mx.ones(rows["hard"].shape), **_opinion(job.teacher(part["inputs"]))}
    elif "soft_ids" in part:
        ids, logs = (part[name].reshape(rows["hard"].size, -1) for name in ("soft_ids", "soft_log_probs"))
        soft = {"sparse": TopK(ids, logs, part["soft_residual"].reshape(-1))}
    return Targets(**{"has_soft": mx.zeros(rows["hard"].shape), **rows, **soft})


KNOWN = ("hard", "weight", "from_teacher", "from_student", "has_soft")  # of a batch, by the names they have in targets


def _opinion(asked: mx.array | Opinion) -> dict[str, Any]:
    """A teacher's opinion of a part, row by row, without a gradient."""
    if isinstance(asked, Opinion):
        hidden = mx.stop_gradient(asked.hidden)
        return {"opinion": Opinion(hidden.reshape(-1, hidden.shape[-1]), asked.head)}
    return {"teacher_logits": mx.stop_gradient(asked).reshape(-1, asked.shape[-1])}


def _totals(job: Job, parts: Sequence[Arrays]) -> Arrays:
    """What the terms of the batch's rows are divided by, for their mean at the scale of the precision."""
    factor = LOSS_SCALE[job.settings.precision]
    return {name: mx.maximum(total, 1e-9) / factor for name, total in _counted(job, parts).items()}


def _counted(job: Job, parts: Sequence[Arrays]) -> Arrays:
    """How much all rows of the batch, those of other machines too, count in each term."""
    targets = [_targets(job, part) for part in parts]
    names = term_names(job.mixer, job.vocab_size, targets[0])
    counts = [totals(job.mixer, some, names, job.settings.chunk) for some in targets]
    return job.group.sum({name: mx.stack([count[name] for count in counts]).sum() for name in names})


def _part_loss(
    model: nn.Module,
    job: Job,
    part: Arrays,
    step: mx.array,
    weights: Mapping[str, float],
    whole: Arrays,
) -> tuple[mx.array, Arrays]:
    """A part's share of the batch's loss, and of each of its terms."""
    hidden = model(part["inputs"])
    hidden = hidden.reshape(-1, hidden.shape[-1])
    targets = _targets(job, part)
    return mixed_loss(job.mixer, hidden, model.head, targets, step, weights, whole, job.settings.chunk)


def gradient_norms(job: Job, state: State) -> dict[str, float]:
    """How long each weighted term's gradient at the logits is, over the last batch of all machines.

    Terms that count none of its rows are left out.
    """
    step, weights = state.step - 1, job.mixer.weights(state.step - 1)
    counts = {name: float(count.item()) for name, count in _counted(job, state.last).items()}  # type: ignore[arg-type]
    counts = {name: count for name, count in counts.items() if count > 0}
    squares = dict.fromkeys(counts, 0.0)
    for part in state.last:
        hidden, targets = job.model(part["inputs"]), _targets(job, part)
        hidden = hidden.reshape(-1, hidden.shape[-1])
        settings = (mx.array(step), weights, counts, job.settings.chunk)
        for name, square in slope_squares(job.mixer, hidden, job.model.head, targets, *settings).items():
            squares[name] += square
    whole = job.group.sum({name: mx.array(square) for name, square in squares.items()})
    return {name: float(square.item()) ** 0.5 for name, square in whole.items()}  # type: ignore[arg-type]


def evaluate(job: Job) -> float:
    """Mean surprise, in nats a token, over the validation batches, each computed by one of the machines."""
    job.model.eval()
    total = count = 0.0
    for i, batch in enumerate(job.validation()):
        if i % job.group.world_size != job.group.rank:
            continue
        hidden = job.model(mx.array(batch.inputs))
        surprise = token_nlls(hidden.reshape(-1, hidden.shape[-1]), job.model.head, mx.array(batch.hard.reshape(-1)))
        total += float(mx.sum(surprise * mx.array(batch.weight.reshape(-1))).item())  # type: ignore[arg-type]
        count += float(batch.weight.sum())
    if job.group.world_size > 1:
        both = job.group.sum({"total": mx.array(total), "count": mx.array(count)})
        total, count = float(both["total"].item()), float(both["count"].item())  # type: ignore[arg-type]
    return total / count


def _must_be_finite(job: Job, step: int, values: Mapping[str, Any]) -> None:
    loss, norm = values["loss"], values["gradient_norm"]
    if not (math.isfinite(loss) and (norm is None or math.isfinite(norm))):
        raise _diverged(job, step, f"loss {loss}, gradient norm {norm}")


def _diverged(job: Job, step: int, what: str) -> TrainingError:
    """The error of training that cannot go on. Weights whose very next step fails were no good checkpoint."""
    for checkpoint in checkpoints.every(job.folder):
        if checkpoint.step == step > 0 and job.group.is_main:
            checkpoints.set_aside(checkpoint, "diverged")
    good, _ = checkpoints.newest_good(job.folder) if job.group.is_main else (None, None)
    kept = f"the last good checkpoint is {good.path}" if good else "there is no good checkpoint"
    return TrainingError(
        f"the loss is no longer a number after step {step} ({what}); {kept}",
        "A lower train.learning_rate, a longer train.warmup or a smaller train.clip usually helps.",
    )


def _save(job: Job, state: State) -> None:
    """Write a checkpoint, unless it is there already, and drop those no longer needed."""
    if not job.group.is_main:
        return
    folder = checkpoints.step_folder(job.folder, state.step)
    if not folder.exists():
        facts = {
            **job.facts,
            "step": state.step,
            "best_step": state.best_step,
            "best_loss": state.best_loss if math.isfinite(state.best_loss) else None,
        }
        checkpoints.save(folder, flatten(state.parameters), flatten(state.moments), dict(job.student), facts)
    checkpoints.prune(job.folder, job.settings.keep, state.best_step)


def fresh(model: nn.Module, optimizer: AdamW) -> State:
    """The state before the first step."""
    parameters = model.trainable_parameters()
    return State(parameters, optimizer.initial_moments(parameters))


def restored(model: nn.Module, saved: checkpoints.Checkpoint) -> State:
    """The state that a checkpoint holds; the network gets its weights."""
    weights, facts = saved.weights(), saved.state
    model.load_weights(list(weights.items()))
    parameters, best = model.trainable_parameters(), facts["best_loss"]
    moments = restore_moments(parameters, saved.moments())
    mx.eval(parameters, moments)
    return State(
        parameters,
        moments,
        facts["step"],
        facts["best_step"],
        math.inf if best is None else best,
    )


class Stop:
    """Whether the user has asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """Turn the first Ctrl-C into a wish that is granted after the step; the second stops at once."""
    stop = Stop()

    def wish(number: int, frame: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, where signals do not arrive anyway
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def asked(teacher: Teacher) -> Asked:
    """How a teacher is asked in every step: for hidden states, if it offers them with its head, or else for logits."""
    local: Any = teacher
    if not (hasattr(local, "hidden") and hasattr(local, "head")):
        return teacher.logits
    return lambda tokens: Opinion(local.hidden(tokens), local.head)
