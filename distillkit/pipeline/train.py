"""The train stage: joins the network, batches, mixer and teacher, and trains from the newest checkpoint.

The training loop is `student.training.loop`. What may change when a run is resumed is decided in `resume`.
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
from .on_policy import OnPolicyScorer, check_countable_limits
from .plan import MAX_USEFUL_EPOCHS, suggest_settings, warmup_warning
from .resume import ResumeChecks
from .session import RunSession
from .soft_targets import SoftTargets
from .step_config import on_policy_generator, stream_count, training_settings
from .trackers import GuardedTracker
from .training_data import held_out_stream, training_batches


class TrainStage:
    """The train stage of a run, in one process of its group."""

    def __init__(self, session: RunSession) -> None:
        self.session, self.context, self.run, self.group = session, session.context, session.run, session.group
        self.recipe, self.console, self.answers = session.recipe, session.console, session.run.answers
        self.resume_checks = ResumeChecks(self.context, self.run, self.group)

    @cached_property
    def batches(self) -> Batches:
        """The training batches."""
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
                    held.enter_context(self._training_lock())
            return self._train(trackers)

    def _train(self, trackers: Sequence[Tracker]) -> dict[str, Any]:
        keep_freed_memory()
        self._check_same_inputs()
        job, state = self._prepare(trackers)
        started = time.perf_counter()
        if state.step < self.recipe.train.steps:
            state = self._train_to_end(job, state, started)
        else:
            self._finish_trained_run(state)
        teacher_text = self._evaluate_teacher_text(job)
        return self._metadata(state) | teacher_text | self._seconds(started) if self.group.is_main else {}

    def _prepare(self, trackers: Sequence[Tracker]) -> tuple[TrainingJob, TrainState]:
        """The job for the training loop, and the state to start from."""
        streams = self._stream_count()
        with self.group.barrier():
            saved = self._newest_checkpoint() if self.group.is_main else None
        metadata = self.group.run_on_main(
            lambda: self.resume_checks.checkpoint_metadata(saved, self.batches.fingerprint, streams)
        )
        blas.set_threads(metadata["numerics"]["threads"])
        job = self._job(metadata, trackers, streams)
        return job, self._start_state(job, saved)

    def _train_to_end(self, job: TrainingJob, state: TrainState, started: float) -> TrainState:
        """Train to the last step. If an error ends it earlier, the state of the last checkpoint is recorded."""
        self._print_start(state.step)
        with self.group.barrier():
            if self.group.is_main:
                self.run.discard_judging()
        try:
            return loop.train(job, state)
        except BaseException:
            if self.group.is_main:
                with suppress(OSError):  # a full disk must not hide the error that ended the training
                    self.run.record(training=self._saved_metadata(job) | self._seconds(started))
            raise

    def _finish_trained_run(self, state: TrainState) -> None:
        """Print that training is complete, and remove old checkpoints, which a killed process could not do."""
        steps = self.recipe.train.steps
        self.console.print(
            f"Training is complete: the run has {state.step} of {steps} steps. To extend it, raise train.steps."
        )
        if self.group.is_main:
            checkpoints.prune(self.run.checkpoints, self.recipe.train.keep, state.best_step)

    def _evaluate_teacher_text(self, job: TrainingJob) -> dict[str, Any]:
        """The loss on held-out teacher answers, in nats per token and bits per byte."""
        stream = held_out_stream(self.answers)
        if stream is None:
            return {}
        held_out = list(sequential(stream, self.context.student.context, self.recipe.train.batch_size))
        lengths, ends = self.context.tokenizer.lengths, self.context.tokenizer.end_of_text
        targets = [(batch.weight > 0, batch.hard) for batch in held_out]
        tokens = sum(int(mask.sum()) for mask, _ in targets)
        size = sum(int(lengths[hard[mask & (hard != ends)]].sum()) for mask, hard in targets)
        if not size:  # answers of one token have no target but the end of text
            return {}
        loss = evaluate(replace(job, validation=lambda: held_out))
        bits = loss * tokens / math.log(2) / size
        return {"teacher_text": {"loss": loss, "bits_per_byte": bits, "tokens": tokens}}

    def _print_start(self, done: int) -> None:
        steps, words = self.recipe.train.steps, f"from step {done} " if done else ""
        processes = f", in {self.group.world_size} processes" if self.group.world_size > 1 else ""
        self.console.print(f"Training {words}to step {steps}, {self.batches.epochs(steps):.1f} epochs{processes}.")

    def check(self) -> None:
        """Refuse, before any request is sent, settings that break a limit, round to no row, or fit no checkpoint."""
        check_countable_limits(self.context, self.group)
        check_row_shares(self.context)
        self.resume_checks.check()

    @contextmanager
    def _training_lock(self) -> Iterator[None]:
        """Lock the run against other processes. Retries, since a process that only checks holds the lock briefly."""
        with ExitStack() as held:
            for pause in (0.1, 0.3, None):
                if held.enter_context(self.run.training_lock()):
                    break
                if pause is None:
                    raise self.run.busy_error
                time.sleep(pause)
            yield

    def _check_same_inputs(self) -> None:
        """Refuse processes whose text, answers, teacher or versions differ, as on machines without shared files."""
        with self.group.barrier():
            inputs = [
                self.resume_checks.metadata_before_labelling(),
                self.batches.fingerprint,
                version("distillkit"),
                version("mlx"),
            ]
            if self.context.uses_logits_in_steps and self.context.teacher:
                inputs.append(self.context.teacher.identity())
        same = self.group.all_equal(inputs)
        with self.group.barrier():
            if not same:
                raise UsageError(
                    "the processes of this run do not have the same corpus, answers, teacher or versions",
                    "Set DISTILLKIT_HOME to one shared folder on all machines, and install the same packages.",
                )

    # ---------------------------------------------------------------------------------------- the training job

    def _newest_checkpoint(self) -> checkpoints.Checkpoint | None:
        remove_stale_parts(self.run.checkpoints)
        saved, faults = checkpoints.newest_valid(self.run.checkpoints)
        for fault in faults:
            self.console.warn(
                f"{fault}; " + (f"resuming from step {saved.step}" if saved else "starting from the beginning")
            )
            # Damaged checkpoints are moved away, so that their steps can be saved again.
        for damaged in checkpoints.list_checkpoints(self.run.checkpoints)[-len(faults) :] if faults else []:
            checkpoints.move_aside(damaged)
        return saved

    def _job(self, metadata: dict[str, Any], trackers: Sequence[Tracker], streams: int) -> TrainingJob:
        table, context_length = self.recipe.train, self.context.student.context
        shard = BatchShard.of(self.group, table.rows, metadata["numerics"]["parts"])
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
            settings=training_settings(
                self.recipe, self.context.optimizer, metadata["numerics"]["chunk"], metadata["numerics"]["precision"]
            ),
            student=self.resume_checks.student_metadata(),
            metadata=metadata,
            checkpoint_folder=self.run.checkpoints,
            metrics_file=self.run.metrics,
            teacher=teacher_forward(teacher) if teacher else None,
            on_policy=on_policy_generator(
                self.recipe, self.context.student.context, self.context.tokenizer.end_of_text, self.scorer
            ),
            console=self.console,
            trackers=trackers,
            stream_pool=StreamPool(streams),
            group=self.group,
            shard=shard,
            sample=self._sampler() if table.sample_every and self.group.is_main else None,
        )

    def _stream_count(self) -> int:
        """How many parts this process computes at once: the minimum over all processes."""
        count = stream_count(self.recipe.train, self.group.local_world_size(), self.group.world_size)
        return min(row[0] for row in self.group.gather([count]))

    @cached_property
    def scorer(self) -> OnPolicyScorer | None:
        """The scorer of on-policy rows, if a teacher without logits is asked in every step."""
        if not self.context.asks_teacher_in_steps:
            return None
        return OnPolicyScorer(
            self.context, self.run.info.get("spent") or {}, self.run.record_spending if self.group.is_main else None
        )

    def _start_state(self, job: TrainingJob, saved: checkpoints.Checkpoint | None) -> TrainState:
        """The state to start from. The main process loads it and broadcasts it."""
        with self.group.barrier():
            state = (
                self._initial_state(job, saved)
                if self.group.is_main
                else initial_state(job.model, job.settings.optimizer)
            )
        if self.group.world_size == 1:
            return state
        parameters = unflatten(self.group.broadcast_arrays(flatten(state.parameters)))
        optimizer_state = self.group.broadcast_arrays(state.optimizer_state)
        job.model.update(parameters)
        step, best_step, best_loss = self.group.broadcast((state.step, state.best_step, state.best_loss))
        return TrainState(parameters, optimizer_state, step, best_step, best_loss)

    def _initial_state(self, job: TrainingJob, saved: checkpoints.Checkpoint | None) -> TrainState:
        """The state of a checkpoint, the weights of a base student, or new weights."""
        if saved is not None:
            return restore_state(job.model, job.settings.optimizer, saved)
        if self.recipe.student.from_:
            self._load_base_weights(job)
        elif isinstance(job.model, GPT):
            initialise(job.model, self.recipe.seed)
        else:  # a plugin's network initialises itself with MLX's random numbers
            mx.random.seed(self.recipe.seed)
            job.model.update(self.context.student.build(job.vocab_size).parameters())
        mx.eval(job.model.parameters())
        return initial_state(job.model, job.settings.optimizer)

    def _load_base_weights(self, job: TrainingJob) -> None:
        """Load the weights of another student with the same architecture and tokenizer."""
        origin, tokenizer = find_checkpoint(self.recipe.student.from_ or "")
        origin.verify()
        self.resume_checks.check_warm_start(origin, tokenizer)
        job.model.load_weights(list(origin.weights().items()))
        self.console.print(f"Starting from the weights of {self.recipe.student.from_}, step {origin.step}.")

    def _sampler(self) -> Any:
        from ..student import Sampling

        table = self.recipe.sampling
        student = Trained(self.context.network, self.context.tokenizer, self.context.student.context)
        text = self.context.corpus.held_out_documents[0].text
        prompt, options = (
            self.context.truncate(text, table.prompt_tokens),
            Sampling(table.temperatures[0], **table.sampler_options),
        )

        def sample() -> str:
            (written,) = student.write([prompt], [self.recipe.seed], options, table.max_tokens)
            return f"{prompt}|{written.text}".replace("\n", " ")

        return sample

    # ---------------------------------------------------------------------------------------- the result

    def _seconds(self, started: float) -> dict[str, float]:
        """The training time of all sessions."""
        before = self.run.info.get("training", {}).get("seconds", 0.0)
        return {"seconds": round(before + time.perf_counter() - started, 3)}

    def _saved_metadata(self, job: TrainingJob) -> dict[str, Any]:
        """The metadata of the newest checkpoint, from which training will be resumed."""
        saved, _ = checkpoints.newest_valid(self.run.checkpoints)
        return self._metadata(restore_state(job.model, job.settings.optimizer, saved)) if saved else {}

    def _metadata(self, state: TrainState) -> dict[str, Any]:
        table, context_length = self.recipe.train, self.context.student.context
        rows = [row for row in read_jsonl(self.run.metrics) if row["step"] <= state.step]
        losses = [row["loss"] for row in rows if row["kind"] == "train"][-20:]
        evaluations = [row for row in rows if row["kind"] == "validation"]
        return {
            "steps": state.step,
            "tokens": state.step * table.rows * context_length,
            "epochs": round(self.batches.epochs(state.step), 2),
            "loss": sum(losses) / len(losses) if losses else None,
            "validation_loss": evaluations[-1]["loss"] if evaluations else None,
            "best_step": state.best_step,
            "best_loss": state.best_loss if evaluations else None,
            "gradient_norms": evaluations[-1].get("gradient_norms", {}) if evaluations else {},
            "weights_sha256": checkpoints.weights_digest(flatten(state.parameters)),
            **mean_soft_target_coverage(rows),
        }
