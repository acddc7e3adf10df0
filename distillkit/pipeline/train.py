"""The train stage of a run: a network, batches and a mixer come together, from a checkpoint if there is one.

The room `student` trains; what joins it with data and teachers is here. Does not know what may change between two
sittings of a run: `continuity` decides that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from ..core.errors import UsageError
from ..core.files import read_jsonl, remove_stale_parts
from ..data.batches import Batch, Batches, Prefetcher, sequential
from ..plugins.interfaces import Tracker
from ..student import blas
from ..student import checkpoint as checkpoints
from ..student.model.gpt import GPT, initialise
from ..student.trained import Trained, find_checkpoint
from ..student.training import loop
from ..student.training.distributed import BatchShard
from ..student.training.loop import TrainingJob, TrainState, evaluate, initial_state, restore_state, teacher_forward
from ..student.training.on_policy import mean_soft_target_coverage
from ..student.training.optimizers import flatten, unflatten
from ..student.training.parallel import StreamPool, enable_checkpointing, keep_freed_memory
from .checks import check_row_shares
from .continuity import Continuity
from .on_policy import Reader, must_be_counted
from .plan import MAX_USEFUL_EPOCHS, suggest_settings, warmup_warning
from .session import RunSession
from .soft_targets import SoftTargets
from .step_config import on_policy, settings, streams_of
from .trackers import GuardedTracker
from .training_data import held_out_stream, training_batches


class TrainStage:
    """The train stage of a run, in one process of its group."""

    def __init__(self, session: RunSession) -> None:
        self.session, self.context, self.run, self.group = session, session.context, session.run, session.group
        self.recipe, self.console, self.answers = session.recipe, session.console, session.run.answers
        self.continuity = Continuity(self.context, self.run, self.group)

    @cached_property
    def batches(self) -> Batches:
        """What the student reads."""
        return training_batches(self.context, self.answers)

    def execute(self) -> None:
        """Run the stage in the main process: warn, start the trackers, train, and record the result."""
        with self.group.barrier():
            self._warn_of_epochs(self.batches.epochs(self.recipe.train.steps))
            if warning := warmup_warning(self.context):
                self.session.warn(warning)
            self.session.trackers = [GuardedTracker(one, self.session.warn) for one in self.context.trackers()]
            for tracker in self.session.trackers:
                tracker.start(self.run)
        self.run.record(training=self.train(self.session.trackers))

    def _warn_of_epochs(self, epochs: float) -> None:
        if epochs > MAX_USEFUL_EPOCHS:
            self.session.warn(
                f"each token is seen {epochs:.1f} times; from about {MAX_USEFUL_EPOCHS} on, a student memorises its "
                f"text: {suggest_settings(self.context, epochs)}"
            )

    def train(self, trackers: Sequence[Tracker] = ()) -> dict[str, Any]:
        """Train to the last step. Returns the metadata of the training in the main process, nothing in the others."""
        with ExitStack() as held:
            with self.group.barrier():
                if self.group.is_main:
                    held.enter_context(self._alone())
            return self._train(trackers)

    def _train(self, trackers: Sequence[Tracker]) -> dict[str, Any]:
        keep_freed_memory()
        self._all_must_read_the_same()
        job, state = self._ready(trackers)
        begun = time.perf_counter()
        if state.step < self.recipe.train.steps:
            state = self._trained(job, state, begun)
        else:
            self._nothing_left(state)
        of_teacher = self._on_the_teachers_text(job)
        return self._came_to(state) | of_teacher | self._spent(begun) if self.group.is_main else {}

    def _ready(self, trackers: Sequence[Tracker]) -> tuple[TrainingJob, TrainState]:
        """All that a step needs, and where this sitting begins."""
        streams = self._streams()
        with self.group.barrier():
            saved = self._newest() if self.group.is_main else None
        facts = self.group.run_on_main(lambda: self.continuity.agreed(saved, self.batches.fingerprint, streams))
        blas.set_threads(facts["numerics"]["threads"])
        job = self._job(facts, trackers, streams)
        return job, self._state(job, saved)

    def _trained(self, job: TrainingJob, state: TrainState, begun: float) -> TrainState:
        """Train to the last step; what a sitting came to that ended before it is recorded, too."""
        self._announce(state.step)
        with self.group.barrier():
            if self.group.is_main:
                self.run.discard_judging()
        try:
            return loop.train(job, state)
        except BaseException:
            if self.group.is_main:
                with suppress(OSError):  # a full disk must not hide what ended the training
                    self.run.record(training=self._saved(job) | self._spent(begun))
            raise

    def _nothing_left(self, state: TrainState) -> None:
        """Say that the last step was made, and do what a sitting that was killed after it had no time for."""
        steps = self.recipe.train.steps
        self.console.print(
            f"Nothing left to train: the run has {state.step} of {steps} steps. To extend it, raise train.steps."
        )
        if self.group.is_main:
            checkpoints.prune(self.run.checkpoints, self.recipe.train.keep, state.best_step)

    def _on_the_teachers_text(self, job: TrainingJob) -> dict[str, Any]:
        """How likely the student finds the answers that were kept from training: nats a token, bits a byte."""
        stream = held_out_stream(self.answers)
        if stream is None:
            return {}
        held_out = list(sequential(stream, self.context.student.context, self.recipe.train.batch_size))
        lengths, ends = self.context.tokenizer.lengths, self.context.tokenizer.end_of_text
        learnt = [(batch.weight > 0, batch.hard) for batch in held_out]
        tokens = sum(int(mask.sum()) for mask, _ in learnt)
        size = sum(int(lengths[hard[mask & (hard != ends)]].sum()) for mask, hard in learnt)
        if not size:  # of answers of one word nothing is predicted but their end, or not even that
            return {}
        loss = evaluate(replace(job, validation=lambda: held_out))
        bits = loss * tokens / math.log(2) / size
        return {"teacher_text": {"loss": loss, "bits_per_byte": bits, "tokens": tokens}}

    def _announce(self, done: int) -> None:
        steps, words = self.recipe.train.steps, f"from step {done} " if done else ""
        crowd = f", in {self.group.world_size} processes" if self.group.world_size > 1 else ""
        self.console.print(f"Training {words}to step {steps}, {self.batches.epochs(steps):.1f} epochs{crowd}.")

    def check(self) -> None:
        """Refuse, before anything is asked, what would break a limit, has a share of no row, or fits no checkpoint."""
        must_be_counted(self.context, self.group)
        check_row_shares(self.context)
        self.continuity.check()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the run against other processes; one that only looks whether it is being trained is gone at once."""
        with ExitStack() as held:
            for pause in (0.1, 0.3, None):
                if held.enter_context(self.run.training_lock()):
                    break
                if pause is None:
                    raise self.run.busy_error
                time.sleep(pause)
            yield

    def _all_must_read_the_same(self) -> None:
        """Refuse machines whose text or program differs: without shared files, each prepared its own."""
        with self.group.barrier():
            reads = [self.continuity.before_labels(), self.batches.fingerprint, version("distillkit"), version("mlx")]
            if self.context.uses_logits_in_steps and self.context.teacher:
                reads.append(self.context.teacher.identity())
        same = self.group.all_equal(reads)
        with self.group.barrier():
            if not same:
                raise UsageError(
                    "the machines of this run do not hold the same corpus, answers, teacher or versions",
                    "Give them one DISTILLKIT_HOME in a folder that they share, and the same packages.",
                )

    # ---------------------------------------------------------------------------------------- the job

    def _newest(self) -> checkpoints.Checkpoint | None:
        remove_stale_parts(self.run.checkpoints)
        saved, faults = checkpoints.newest_valid(self.run.checkpoints)
        for fault in faults:
            self.console.warn(f"{fault}; " + (f"going on from step {saved.step}" if saved else "starting again"))
            # What is damaged is out of the way, so that it is written anew when its step comes.
        for damaged in checkpoints.list_checkpoints(self.run.checkpoints)[-len(faults) :] if faults else []:
            checkpoints.move_aside(damaged)
        return saved

    def _job(self, facts: dict[str, Any], trackers: Sequence[Tracker], streams: int) -> TrainingJob:
        table, context_length = self.recipe.train, self.context.student.context
        shard = BatchShard.of(self.group, table.rows, facts["numerics"]["parts"])
        teacher = SoftTargets(self.context).logits_teacher if self.context.uses_logits_in_steps else None

        def validation() -> Iterable[Batch]:
            return sequential(self.context.corpus.held_out, context_length, table.batch_size, table.evaluate_batches)

        if table.checkpointing:
            enable_checkpointing(self.context.network, self.recipe.student.arch)
        return TrainingJob(
            model=self.context.network,
            vocab_size=self.context.tokenizer.vocab_size,
            mixer=self.context.mixer,
            batch=Prefetcher(lambda step: self.batches.rows(step, shard.rows.start, shard.rows.stop), table.steps),
            validation=validation,
            settings=settings(self.recipe, facts["numerics"]["chunk"], facts["numerics"]["precision"]),
            student=self.continuity.student(),
            metadata=facts,
            checkpoint_folder=self.run.checkpoints,
            metrics_file=self.run.metrics,
            teacher=teacher_forward(teacher) if teacher else None,
            on_policy=on_policy(
                self.recipe, self.context.student.context, self.context.tokenizer.end_of_text, self.reader
            ),
            console=self.console,
            trackers=trackers,
            stream_pool=StreamPool(streams),
            group=self.group,
            shard=shard,
            sample=self._sampler() if table.sample_every and self.group.is_main else None,
        )

    def _streams(self) -> int:
        """How many parts this process computes at once; all must agree."""
        count = streams_of(self.recipe.train, self.group.local_world_size(), self.group.world_size)
        return min(row[0] for row in self.group.gather([count]))

    @cached_property
    def reader(self) -> Reader | None:
        """Who asks the teacher about what the student has just written, where no logits join the step."""
        if not self.context.asks_teacher_in_steps:
            return None
        return Reader(
            self.context, self.run.info.get("spent") or {}, self.run.record_spending if self.group.is_main else None
        )

    def _state(self, job: TrainingJob, saved: checkpoints.Checkpoint | None) -> TrainState:
        """Where to begin; one process knows, and tells the others."""
        with self.group.barrier():
            state = self._begun(job, saved) if self.group.is_main else initial_state(job.model, job.settings.optimizer)
        if self.group.world_size == 1:
            return state
        parameters = unflatten(self.group.broadcast_arrays(flatten(state.parameters)))
        moments = unflatten(self.group.broadcast_arrays(flatten(state.moments)))
        job.model.update(parameters)
        step, best_step, best_loss = self.group.broadcast((state.step, state.best_step, state.best_loss))
        return TrainState(parameters, moments, step, best_step, best_loss)

    def _begun(self, job: TrainingJob, saved: checkpoints.Checkpoint | None) -> TrainState:
        """The last checkpoint, another student's weights, or new ones."""
        if saved is not None:
            return restore_state(job.model, saved)
        if self.recipe.student.from_:
            self._warm_start(job)
        elif isinstance(job.model, GPT):
            initialise(job.model, self.recipe.seed)
        else:  # a plugin's network initialises itself, from MLX's own random numbers
            mx.random.seed(self.recipe.seed)
            job.model.update(self.context.student.build(job.vocab_size).parameters())
        mx.eval(job.model.parameters())
        return initial_state(job.model, job.settings.optimizer)

    def _warm_start(self, job: TrainingJob) -> None:
        """Take the weights of another student of the same shape that reads the same tokens."""
        origin, tokenizer = find_checkpoint(self.recipe.student.from_ or "")
        origin.verify()
        self.continuity.must_be_alike(origin, tokenizer)
        job.model.load_weights(list(origin.weights().items()))
        self.console.print(f"Starting from the weights of {self.recipe.student.from_}, step {origin.step}.")

    def _sampler(self) -> Any:
        from ..student import Sampling

        table = self.recipe.sampling
        student = Trained(self.context.network, self.context.tokenizer, self.context.student.context)
        text = self.context.corpus.held_out_documents[0].text
        prompt, how = (
            self.context.truncate(text, table.prompt_tokens),
            Sampling(table.temperatures[0], **table.sampler_options),
        )

        def sample() -> str:
            (written,) = student.write([prompt], [self.recipe.seed], how, table.max_tokens)
            return f"{prompt}|{written.text}".replace("\n", " ")

        return sample

    # ---------------------------------------------------------------------------------------- what it came to

    def _spent(self, begun: float) -> dict[str, float]:
        """The time of all sittings."""
        before = self.run.info.get("training", {}).get("seconds", 0.0)
        return {"seconds": round(before + time.perf_counter() - begun, 3)}

    def _saved(self, job: TrainingJob) -> dict[str, Any]:
        """What a sitting came to that did not end: the state that the next one goes on from."""
        saved, _ = checkpoints.newest_valid(self.run.checkpoints)
        return self._came_to(restore_state(job.model, saved)) if saved else {}

    def _came_to(self, state: TrainState) -> dict[str, Any]:
        table, context_length = self.recipe.train, self.context.student.context
        rows = [row for row in read_jsonl(self.run.metrics) if row["step"] <= state.step]
        losses = [row["loss"] for row in rows if row["kind"] == "train"][-20:]
        looks = [row for row in rows if row["kind"] == "validation"]
        return {
            "steps": state.step,
            "tokens": state.step * table.rows * context_length,
            "epochs": round(self.batches.epochs(state.step), 2),
            "loss": sum(losses) / len(losses) if losses else None,
            "validation_loss": looks[-1]["loss"] if looks else None,
            "best_step": state.best_step,
            "best_loss": state.best_loss if looks else None,
            "gradient_norms": looks[-1].get("gradient_norms", {}) if looks else {},
            "weights_sha256": checkpoints.weights_digest(flatten(state.parameters)),
            **mean_soft_target_coverage(rows),
        }
