"""Training: a network, batches and a mixer in; checkpoints and a log out.

Every step is a function of the state before it and of its own number: batches, dropout and the learning rate
are drawn from (seed, step). So a run that is interrupted and resumed ends where an undisturbed one ends, bit
for bit on the CPU. Knows nothing of text, of teachers beyond their logits, or of what the student is for.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import Interrupted, TrainingError
from ..files import read_lines, write_lines
from ..progress import Voice, clock
from ..roles import Mixer, Tracker
from . import checkpoint as checkpoints
from .loss import Targets, chunk_rows, counted, mixed_loss, term_names
from .optimizer import AdamW, Schedule, Tree, flat, grown, recalled
from .parallel import Lanes
from .score import token_surprises

Array = np.ndarray[Any, Any]
TeacherLogits = Callable[[mx.array], mx.array]


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
    schedule: Schedule
    optimizer: AdamW


@dataclass
class State:
    """All that a checkpoint brings back."""

    parameters: Tree
    moments: Tree
    step: int = 0
    best_step: int | None = None
    best_loss: float = math.inf


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
    teacher: TeacherLogits | None = None
    voice: Voice = field(default_factory=Voice)
    trackers: Sequence[Tracker] = ()
    sample: Callable[[], str] | None = None
    lanes: Lanes = field(default_factory=lambda: Lanes(1))


def train(job: Job, state: State) -> State:
    """Take the state to the last step. Interrupted, it saves and says so."""
    journal = Journal(job, state.step)
    watch = Overfitting(job.voice)
    _save(job, state)  # also when it is the very first: there is always something to go back to
    with asked_to_stop() as stop, journal:
        while state.step < job.settings.steps:
            values = advance(job, state)
            journal.step(state, values)
            watch.trained(values)
            if _due(state.step, job.settings.evaluate_every, job.settings.steps):
                loss = evaluate(job)
                if not math.isfinite(loss):
                    raise _diverged(job, state.step, f"validation loss {loss}")
                journal.evaluation(state.step, loss)
                watch.evaluated(state.step, loss, state.best_loss)
                better = loss < state.best_loss
                if better:
                    state.best_step, state.best_loss = state.step, loss
                if better or _due(state.step, job.settings.checkpoint_every, job.settings.steps):
                    _save(job, state)
            elif _due(state.step, job.settings.checkpoint_every, job.settings.steps):
                _save(job, state)
            if job.sample and job.settings.sample_every and state.step % job.settings.sample_every == 0:
                job.voice.say(f"  {job.sample()}")
            if stop:
                _save(job, state)
                raise Interrupted(f"stopped after step {state.step} of {job.settings.steps}; everything is saved")
    return state


def _due(step: int, every: int, steps: int) -> bool:
    return step % every == 0 or step == steps


def advance(job: Job, state: State) -> dict[str, Any]:
    """One step: gradients of every part of the batch, summed in a fixed order, then AdamW."""
    settings, step = job.settings, state.step
    job.model.train()
    batch = job.batch(step)
    loss, terms, gradients = _gradients(job, batch, step)
    rate = settings.schedule(step)
    norm = _update(job, state, gradients, rate, step)
    values = {
        "loss": loss.item(),
        "terms": {name: term.item() for name, term in terms.items()},
        "learning_rate": rate,
        "gradient_norm": norm.item(),
        "tokens": int(batch.inputs.size),
    }
    _must_be_finite(job, step, values)
    state.step = step + 1
    return values


def _update(job: Job, state: State, gradients: dict[str, mx.array], rate: float, step: int) -> mx.array:
    """Move the parameters. The gradients are used up: MLX writes over what nobody holds."""
    streams = _streams(job, gradients)
    slopes = grown(gradients)
    gradients.clear()
    state.parameters, state.moments, norm = job.settings.optimizer.update(
        state.parameters, slopes, state.moments, mx.array(rate), mx.array(step), streams
    )
    del slopes
    job.model.update(state.parameters)
    mx.eval(state.parameters, state.moments, norm)
    return norm


def _gradients(job: Job, batch: Rows, step: int) -> tuple[mx.array, dict[str, mx.array], dict[str, mx.array]]:
    """The loss of a batch, its terms and its gradient: as many parts at once as there are lanes."""
    number, weights, lanes = mx.array(step), job.mixer.weights(step), job.lanes
    parts = list(_parts(batch, job.settings.accumulate * lanes.count))
    totals = _totals(job, parts)
    value = nn.value_and_grad(job.model, _part_loss)
    loss, terms, gradients = mx.array(0.0), {name: mx.array(0.0) for name in totals}, dict[str, mx.array]()
    for start in range(0, len(parts), lanes.count):

        def share(lane: int, start: int = start) -> Any:
            place = start + lane
            mx.random.seed((job.settings.seed * 1_000_003 + step * 1009 + place) % 2**63)
            return value(job.model, job, parts[place], number, weights, totals)

        done = lanes.each(share)
        while done:
            (part, shares), slopes = done.pop(0)
            loss, terms = loss + part, {name: terms[name] + shares[name] for name in terms}
            gradients = _sum(job, gradients, flat(slopes))
            del slopes  # or MLX could not write over them
        mx.eval(loss, terms, gradients)
    return loss, terms, gradients


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
    return job.lanes.shared({name: value.size for name, value in arrays.items()})


def _parts(batch: Rows, count: int) -> Iterator[dict[str, mx.array]]:
    """A batch cut into parts as equal as can be, as arrays of the accelerator."""
    names = ("inputs", "hard", "weight", "from_teacher")
    arrays = {name: np.array_split(getattr(batch, name), count) for name in names}
    for i in range(count):
        yield {name: mx.array(pieces[i]) for name, pieces in arrays.items()}


def _targets(job: Job, part: Mapping[str, mx.array]) -> Targets:
    """The targets of a part of a batch, with the teacher's logits where there is a teacher."""
    hard, soft = part["hard"].reshape(-1), None
    if job.teacher is not None:
        soft = mx.stop_gradient(job.teacher(part["inputs"])).reshape(hard.size, -1)
    return Targets(
        hard=hard,
        weight=part["weight"].reshape(-1),
        from_teacher=part["from_teacher"].reshape(-1),
        has_soft=mx.zeros(hard.shape) if soft is None else mx.ones(hard.shape),
        teacher_logits=soft,
    )


def _totals(job: Job, parts: Sequence[Mapping[str, mx.array]]) -> dict[str, mx.array]:
    """How much all rows of the batch count in each term. No logit is computed unless a mixer's `where` looks."""
    targets = [_targets(job, part) for part in parts]
    names = term_names(job.mixer, job.vocab_size, targets[0])
    counts = [counted(job.mixer, some, names) for some in targets]
    totals = {n: mx.maximum(mx.stack([count[n].sum() for count in counts]).sum(), 1e-9) for n in names}
    return totals


def _part_loss(
    model: nn.Module,
    job: Job,
    part: Mapping[str, mx.array],
    step: mx.array,
    weights: Mapping[str, float],
    totals: Mapping[str, mx.array],
) -> tuple[mx.array, dict[str, mx.array]]:
    """A part's share of the batch's loss, and of each of its terms."""
    hidden = model(part["inputs"])
    hidden = hidden.reshape(-1, hidden.shape[-1])
    targets = _targets(job, part)
    return mixed_loss(job.mixer, hidden, model.head, targets, step, weights, totals, job.settings.chunk)


def evaluate(job: Job) -> float:
    """Mean surprise, in nats a token, over the validation batches."""
    job.model.eval()
    total = count = 0.0
    for batch in job.validation():
        hidden = job.model(mx.array(batch.inputs))
        surprise = token_surprises(
            hidden.reshape(-1, hidden.shape[-1]), job.model.head, mx.array(batch.hard.reshape(-1))
        )
        total += float(mx.sum(surprise * mx.array(batch.weight.reshape(-1))).item())  # type: ignore[arg-type]
        count += float(batch.weight.sum())
    return total / count


def _must_be_finite(job: Job, step: int, values: Mapping[str, Any]) -> None:
    loss, norm = values["loss"], values["gradient_norm"]
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise _diverged(job, step, f"loss {loss}, gradient norm {norm}")


def _diverged(job: Job, step: int, what: str) -> TrainingError:
    """The error of training that cannot go on. Weights whose very next step fails were no good checkpoint."""
    for checkpoint in checkpoints.every(job.folder):
        if checkpoint.step == step > 0:
            checkpoints.set_aside(checkpoint, "diverged")
    good, _ = checkpoints.newest_good(job.folder)
    kept = f"the last good checkpoint is {good.path}" if good else "there is no good checkpoint"
    return TrainingError(
        f"the loss is no longer a number after step {step} ({what}); {kept}",
        "A lower train.learning_rate, a longer train.warmup or a smaller train.clip usually helps.",
    )


def _save(job: Job, state: State) -> None:
    """Write a checkpoint, unless it is there already, and drop those no longer needed."""
    folder = checkpoints.step_folder(job.folder, state.step)
    if not folder.exists():
        facts = {
            **job.facts,
            "step": state.step,
            "best_step": state.best_step,
            "best_loss": state.best_loss if math.isfinite(state.best_loss) else None,
        }
        checkpoints.save(folder, flat(state.parameters), flat(state.moments), dict(job.student), facts)
    checkpoints.prune(job.folder, job.settings.keep, state.best_step)


def fresh(model: nn.Module, optimizer: AdamW) -> State:
    """The state before the first step."""
    parameters = model.trainable_parameters()
    return State(parameters, optimizer.start(parameters))


def restored(model: nn.Module, saved: checkpoints.Checkpoint) -> State:
    """The state that a checkpoint holds; the network gets its weights."""
    weights, facts = saved.weights(), saved.state
    model.load_weights(list(weights.items()))
    parameters, best = model.trainable_parameters(), facts["best_loss"]
    moments = recalled(parameters, saved.moments())
    mx.eval(parameters, moments)
    return State(
        parameters,
        moments,
        facts["step"],
        facts["best_step"],
        math.inf if best is None else best,
    )


class Journal:
    """The log of a run: a line a step in `metrics.jsonl`, the trackers, and what is said meanwhile."""

    def __init__(self, job: Job, step: int) -> None:
        self.job = job
        self.recent: deque[tuple[float, int]] = deque(maxlen=20)
        self.clock = time.perf_counter()
        self.validation: float | None = None
        kept = [row for row in read_lines(job.log) if row["step"] <= step]
        write_lines(job.log, kept)

    def __enter__(self) -> Journal:
        self.file = self.job.log.open("a", encoding="utf-8")
        return self

    def __exit__(self, *reason: object) -> None:
        self.file.close()

    def step(self, state: State, values: dict[str, Any]) -> None:
        """Log one step."""
        now = time.perf_counter()
        self.recent.append((now - self.clock, values["tokens"]))
        self.clock = now
        seconds, tokens = (sum(column) for column in zip(*self.recent, strict=True))
        speed = values.pop("tokens") / self.recent[-1][0]
        self._write({"kind": "train", "step": state.step, **values, "tokens_per_second": round(speed, 1)})
        self._tell(state.step, values, tokens / seconds)
        for tracker in self.job.trackers:
            tracker.log(state.step, _numbers(values))

    def evaluation(self, step: int, loss: float) -> None:
        """Log one evaluation."""
        self.validation = loss
        self._write({"kind": "validation", "step": step, "loss": loss})
        for tracker in self.job.trackers:
            tracker.log(step, {"validation_loss": loss})
        self.job.voice.say(f"  step {step}  validation {loss:.4f}")
        self.clock = time.perf_counter()

    def _write(self, row: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def _tell(self, step: int, values: Mapping[str, Any], speed: float) -> None:
        steps = self.job.settings.steps
        terms = "" if len(values["terms"]) < 2 else "".join(f"  {n} {v:.3f}" for n, v in values["terms"].items())
        seen = "" if self.validation is None else f"  validation {self.validation:.3f}"
        seconds = sum(pair[0] for pair in self.recent) / len(self.recent)
        self.job.voice.progress(
            f"  step {step}/{steps}  loss {values['loss']:.3f}{terms}{seen}  lr {values['learning_rate']:.1e}"
            f"  {speed:,.0f} tokens/s  {clock((steps - step) * seconds)} left",
            last=step == steps,
        )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The logged values without tables in them."""
    terms = {f"term/{name}": value for name, value in values["terms"].items()}
    return {name: value for name, value in values.items() if name != "terms"} | terms


class Overfitting:
    """Points it out, while it happens, when the validation loss leaves the training loss behind."""

    GAP = 0.3

    def __init__(self, voice: Voice) -> None:
        self.voice, self.losses, self.told = voice, list[float](), False

    def trained(self, values: Mapping[str, Any]) -> None:
        """Remember the cross-entropy of a step, which is what validation measures."""
        self.losses.append(values["terms"].get("hard", values["loss"]))

    def evaluated(self, step: int, loss: float, best: float) -> None:
        """Compare with the steps since the last evaluation."""
        mean = sum(self.losses) / max(1, len(self.losses))
        self.losses = []
        if self.told or loss <= best or loss - mean < self.GAP:
            return
        self.told = True
        self.voice.warn(
            f"step {step}: validation loss {loss:.2f} rises and training loss is {mean:.2f}: "
            "the student learns its text by heart. More documents, fewer train.steps, a smaller student or "
            "student.dropout = 0.1 would help."
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


def automatic_chunk(vocab_size: int) -> int:
    """Rows of logits held at once when the recipe does not say."""
    return chunk_rows(vocab_size)
