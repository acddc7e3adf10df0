"""The train stage of a run: a network, batches and a mixer come together, from a checkpoint if there is one.

The room `student` trains; what joins it with data and teachers is here. Knows what may change between two
sittings (more steps, another learning rate) and what may not (the text, the network, the order of additions).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from shutil import which
from typing import Any

import mlx.core as mx

from .assembly import Assembly
from .data.batches import Ahead, Batch, Batches, sequential
from .errors import UsageError
from .files import read_lines, sweep
from .onpolicy import Reader, must_be_counted
from .recipe import Recipe
from .roles import Tracker
from .runs import Run
from .student import blas, precision
from .student import checkpoint as checkpoints
from .student.gpt import GPT, initialise
from .student.loss import chunk_rows
from .student.onpolicy import OnPolicy, judged_in_all
from .student.optimizer import AdamW, LearningRate, flat, grown
from .student.parallel import Lanes, compute_again, keep_memory
from .student.train import Job, Settings, State, asked, evaluate, fresh, restored, train
from .student.trained import Trained, filled, locate
from .student.world import ALONE, Share, World
from .tables import TeacherTable, TrainTable

HOW_FAST = {"concurrency", "timeout", "attempts", "max_usd", "max_requests", "max_tokens_total", "price"}
HOW_FAST |= {f"{of}_per_{span}" for of in ("requests", "tokens") for span in ("minute", "day")}
# What older checkpoints do not know, see `_teacher`.
LATER = ("system", "template", "prompts_file", "on_policy", "share", "held_out", "store", "store_samples")
MATTER = ("device", "blas", "mlx", "compiler", "processes", "precision")  # to the last bits
FIXED = ("data", "batches", "student", "tokenizer", "teacher", "seed")


class Training:
    """One sitting of a run's train stage."""

    def __init__(self, parts: Assembly, run: Run, answers: Path, world: World = ALONE) -> None:
        self.parts, self.run, self.answers, self.world = parts, run, answers, world
        self.recipe, self.voice = parts.recipe, parts.voice

    @cached_property
    def batches(self) -> Batches:
        """What the student reads."""
        return self.parts.batches(self.answers)

    def go(self, trackers: Sequence[Tracker] = ()) -> dict[str, Any]:
        """Train, and say what it came to; only the process that writes knows that."""
        with ExitStack() as held:
            with self.world.together():
                if self.world.writes:
                    held.enter_context(self._alone())
            return self._go(trackers)

    def _go(self, trackers: Sequence[Tracker]) -> dict[str, Any]:
        keep_memory()
        self._all_must_read_the_same()
        streams = self._streams()
        with self.world.together():
            saved = self._newest() if self.world.writes else None
        facts = self.world.first(lambda: self._agreed(saved, streams))
        blas.set_threads(facts["numerics"]["threads"])
        job = self._job(facts, trackers, streams)
        state = self._state(job, saved)
        done, steps, begun = state.step, self.recipe.train.steps, time.perf_counter()
        if done >= steps:
            self.voice.say(
                f"Nothing left to train: the run has {done} of {steps} steps. To extend it, raise train.steps."
            )
            if self.world.writes:  # what a sitting that was killed after its last step had no time for
                checkpoints.prune(self.run.checkpoints, self.recipe.train.keep, state.best_step)
        else:
            self._announce(done)
            with self.world.together():
                if self.world.writes:
                    self.run.trains_on()
            try:
                state = train(job, state)
            except BaseException:
                if self.world.writes:
                    self.run.record(training=self._saved(job) | self._spent(begun))
                raise
        of_teacher = self._on_the_teachers_text(job)
        return self._came_to(state) | of_teacher | self._spent(begun) if self.world.writes else {}

    def _on_the_teachers_text(self, job: Job) -> dict[str, Any]:
        """How likely the student finds the answers that were kept from training: nats a token, bits a byte."""
        stream = self.parts.held_out_stream(self.answers)
        if stream is None or stream.tokens < 2:
            return {}
        held_out = list(sequential(stream, self.parts.student.context, self.recipe.train.batch_size))
        loss = evaluate(replace(job, validation=lambda: held_out))
        lengths, ends = self.parts.tokenizer.lengths, self.parts.tokenizer.end_of_text
        learnt = [(batch.weight > 0, batch.hard) for batch in held_out]
        tokens = sum(int(mask.sum()) for mask, _ in learnt)
        size = sum(int(lengths[hard[mask & (hard != ends)]].sum()) for mask, hard in learnt)
        bits = loss * tokens / math.log(2) / size
        return {"teacher_text": {"loss": loss, "bits_per_byte": bits, "tokens": tokens}}

    def _announce(self, done: int) -> None:
        steps, words = self.recipe.train.steps, f"from step {done} " if done else ""
        crowd = f", in {self.world.size} processes" if self.world.size > 1 else ""
        self.voice.say(f"Training {words}to step {steps}, {self.batches.epochs(steps):.1f} epochs{crowd}.")

    def check(self) -> None:
        """Refuse a run whose limits could not be kept or whose checkpoints would not fit, before anything is asked."""
        must_be_counted(self.parts, self.world)
        saved, _ = checkpoints.newest_good(self.run.checkpoints)
        if saved is not None:
            self._must_be_the_same(saved, self._origin(), [key for key in FIXED if key != "batches"])
            if saved.step > self.recipe.train.steps:
                raise UsageError(
                    f"{self.run.name} has {saved.step} steps already, and train.steps = {self.recipe.train.steps}",
                    "What was learnt cannot be taken back: raise train.steps, or begin a new run.",
                )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the run against other processes; one that only looks whether it is being trained is gone at once."""
        with ExitStack() as held:
            for pause in (0.1, 0.3, None):
                if held.enter_context(self.run.training()):
                    break
                if pause is None:
                    raise self.run.busy
                time.sleep(pause)
            yield

    # ---------------------------------------------------------------------------------------- what is fixed

    def _all_must_read_the_same(self) -> None:
        """Refuse machines whose text or program differs: without shared files, each prepared its own."""
        with self.world.together():
            reads = [self._origin(), self.batches.fingerprint, version("distillkit"), version("mlx")]
            if self.parts.teaches_online and self.parts.teacher:
                reads.append(self.parts.teacher.identity())
        same = self.world.same(reads)
        with self.world.together():
            if not same:
                raise UsageError(
                    "the machines of this run do not hold the same corpus, answers, teacher or versions",
                    "Give them one DISTILLKIT_HOME in a folder that they share, and the same packages.",
                )

    def _agreed(self, saved: checkpoints.Checkpoint | None, streams: int) -> dict[str, Any]:
        """The facts that hold for all processes, once it is sure that a checkpoint fits them."""
        facts = self._facts(saved, streams)
        if saved is not None:
            self._must_fit(saved, facts)
        if told := precision.warning(facts["numerics"]["precision"]):
            self.voice.warn(told)
        return facts

    def _facts(self, saved: checkpoints.Checkpoint | None, streams: int) -> dict[str, Any]:
        """What a checkpoint must remember so that going on means the same."""
        return {
            **self._origin(),
            "batches": self.batches.fingerprint,
            "numerics": self._numerics(saved, streams),
            "train": self.recipe.train.model_dump(mode="json"),
            "mixer": self.recipe.mixer.model_dump(mode="json"),
        }

    def _origin(self) -> dict[str, Any]:
        """What is known before any teacher is asked."""
        corpus = self.parts.corpus
        return {
            "data": corpus.fingerprint,
            "tokenizer": corpus.tokenizer.fingerprint,
            "student": self._student(),
            "teacher": self._teacher(),
            "seed": self.recipe.seed,
        }

    def _teacher(self) -> dict[str, Any] | None:
        """Who teaches what; how fast, and for how much, changes nothing.

        Keys that older checkpoints do not know are left out where they are not set.
        """
        table = self.recipe.teacher
        if table is None:
            return None
        told = table.model_dump(mode="json", exclude=HOW_FAST)
        fields = TeacherTable.model_fields
        return {key: value for key, value in told.items() if key not in LATER or value != fields[key].default}

    def _student(self) -> dict[str, Any]:
        """All that builds the network again."""
        options = self.parts.student.options.model_dump(mode="json")
        return {
            "arch": self.recipe.student.arch,
            "options": options,
            "vocab_size": self.parts.tokenizer.vocab_size,
        }

    def _numerics(self, saved: checkpoints.Checkpoint | None, streams: int) -> dict[str, Any]:
        """What decides the order of additions: kept from the first sitting to the last."""
        backend = blas.load()
        table, vocab_size = self.recipe.train, self.parts.tokenizer.vocab_size
        here = {
            "device": str(mx.default_device()),
            "blas": backend.name,
            "threads": backend.threads,
            "processes": self.world.size,
            "streams": streams,
            "parts": self._parts(streams),
            "chunk": chunk_of(table, vocab_size),
            "precision": precision.chosen(table.precision),
            "mlx": version("mlx"),
            "compiler": which("g++") is not None,  # without one MLX compiles nothing on a CPU
        }
        if saved is None:
            return here
        before = {"processes": 1, "precision": "float32", **saved.state["numerics"]}
        differ = [key for key in MATTER if before.get(key, here[key]) != here[key]]
        if differ:
            changes = ", ".join(f"{key} was {before[key]} and is {here[key]}" for key in differ)
            self.voice.warn(f"going on will be close to an undisturbed run, but not bit for bit: {changes}")
        return {**here, **self._kept(saved, before), "threads": before["threads"]}

    def _kept(self, saved: checkpoints.Checkpoint, before: Mapping[str, Any]) -> dict[str, Any]:
        """How logits and batches were cut, unless the recipe has changed that or the processes cannot share it."""
        table = saved.state["train"]
        kept = {}
        if table["chunk"] == self.recipe.train.chunk:
            kept["chunk"] = before["chunk"]
        parts = before.get("parts", before["streams"] * table["accumulate"])
        if all(table[key] == getattr(self.recipe.train, key) for key in ("streams", "accumulate", "batch_size")):
            kept |= {"parts": parts} if parts % self.world.size == 0 else {}
        return kept

    @property
    def _rows(self) -> int:
        """The rows of a step, on all machines together."""
        return self.recipe.train.batch_size * self.recipe.train.accumulate

    def _parts(self, streams: int) -> int:
        """How many parts a step's rows are cut into: equally many for each process."""
        size = self.world.size
        if self._rows < size:
            raise UsageError(
                f"a step has {self._rows} rows and cannot be shared by {size} processes",
                "Raise train.batch_size, or launch fewer processes.",
            )
        return min(self.recipe.train.accumulate * streams * size, self._rows // size * size)

    def _streams(self) -> int:
        """How many parts this process computes at once; all must agree."""
        count = streams_of(self.recipe.train, self.world.on_this_machine(), self.world.size)
        return min(row[0] for row in self.world.gather([count]))

    def _must_fit(self, saved: checkpoints.Checkpoint, facts: dict[str, Any]) -> None:
        """Refuse to go on with other text or another network; say what else changed."""
        before = saved.state
        self._must_be_the_same(saved, facts, FIXED)
        for table in ("train", "mixer"):
            old, new = before[table], facts[table]
            keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
            if keys:
                told = ", ".join(f"{table}.{key} was {old.get(key)} and is {new.get(key)}" for key in keys)
                self.voice.say(f"Changed since the last sitting: {told}.")

    def _must_be_the_same(self, saved: checkpoints.Checkpoint, facts: dict[str, Any], keys: Sequence[str]) -> None:
        if "student" not in saved.state:
            raise UsageError(
                f"{self.run.name} was brought in from elsewhere, so there is no training to go on with",
                f'Begin a run with its weights: student.from = "{self.run.name}".',
            )
        before = {**saved.state, "student": filled(saved.state["student"])}
        changed = [key for key in keys if before.get(key) != facts[key]]
        if changed:
            raise UsageError(
                f"{self.run.name} cannot go on: {_changes(changed, before, facts)} changed "
                f"since its checkpoint at step {saved.step}",
                "Start a new run (leave out --resume), or bring back what changed.",
            )

    # ---------------------------------------------------------------------------------------- the job

    def _newest(self) -> checkpoints.Checkpoint | None:
        sweep(self.run.checkpoints)
        saved, faults = checkpoints.newest_good(self.run.checkpoints)
        for fault in faults:
            self.voice.warn(f"{fault}; " + (f"going on from step {saved.step}" if saved else "starting again"))
            # What is damaged is out of the way, so that it is written anew when its step comes.
        for damaged in checkpoints.every(self.run.checkpoints)[-len(faults) :] if faults else []:
            checkpoints.set_aside(damaged)
        return saved

    def _job(self, facts: dict[str, Any], trackers: Sequence[Tracker], streams: int) -> Job:
        table, context = self.recipe.train, self.parts.student.context
        share = Share.of(self.world, self._rows, facts["numerics"]["parts"])
        teacher = self.parts.logits_teacher()

        def validation() -> Iterable[Batch]:
            return sequential(self.parts.corpus.held_out, context, table.batch_size, table.evaluate_batches)

        if table.checkpointing:
            compute_again(self.parts.network, self.recipe.student.arch)
        return Job(
            model=self.parts.network,
            vocab_size=self.parts.tokenizer.vocab_size,
            mixer=self.parts.mixer,
            batch=Ahead(lambda step: self.batches.rows(step, share.rows.start, share.rows.stop), table.steps),
            validation=validation,
            settings=settings(self.recipe, facts["numerics"]["chunk"], facts["numerics"]["precision"]),
            student=self._student(),
            facts=facts,
            folder=self.run.checkpoints,
            log=self.run.metrics,
            teacher=asked(teacher) if teacher else None,
            on_policy=self._on_policy(),
            voice=self.voice,
            trackers=trackers,
            lanes=Lanes(streams),
            world=self.world,
            share=share,
            sample=self._sampler() if table.sample_every and self.world.writes else None,
        )

    def _on_policy(self) -> OnPolicy | None:
        """How the student writes what its teacher judges, if the recipe says so."""
        table, context, end = self.recipe.teacher, self.parts.student.context, self.parts.tokenizer.end_of_text
        if table is None or table.on_policy is None:
            return None
        return OnPolicy(table.on_policy, table.prompt_tokens, context, end, self.recipe.seed, self.reader)

    @cached_property
    def reader(self) -> Reader | None:
        """Who asks the teacher about what the student has just written, where no logits join the step."""
        if not self.parts.reads_in_steps:
            return None
        return Reader(self.parts, self.run.info.get("spent") or {}, self.run.spends if self.world.writes else None)

    def _state(self, job: Job, saved: checkpoints.Checkpoint | None) -> State:
        """Where to begin; one process knows, and tells the others."""
        with self.world.together():
            state = self._begun(job, saved) if self.world.writes else fresh(job.model, job.settings.optimizer)
        if self.world.size == 1:
            return state
        parameters = grown(self.world.spread(flat(state.parameters)))
        moments = grown(self.world.spread(flat(state.moments)))
        job.model.update(parameters)
        step, best_step, best_loss = self.world.share((state.step, state.best_step, state.best_loss))
        return State(parameters, moments, step, best_step, best_loss)

    def _begun(self, job: Job, saved: checkpoints.Checkpoint | None) -> State:
        """The last checkpoint, another student's weights, or new ones."""
        if saved is not None:
            return restored(job.model, saved)
        if self.recipe.student.from_:
            self._warm_start(job)
        elif isinstance(job.model, GPT):
            initialise(job.model, self.recipe.seed)
        else:  # a plugin's network initialises itself, from MLX's own random numbers
            mx.random.seed(self.recipe.seed)
            job.model.update(self.parts.student.build(job.vocab_size).parameters())
        mx.eval(job.model.parameters())
        return fresh(job.model, job.settings.optimizer)

    def _warm_start(self, job: Job) -> None:
        """Take the weights of another student of the same shape that reads the same tokens."""
        origin, tokenizer = locate(self.recipe.student.from_ or "")
        origin.verify()
        theirs, ours = filled(origin.student), dict(job.student)
        if theirs["arch"] != ours["arch"] or _shape(theirs) != _shape(ours):
            sides = ({"student": {"arch": one["arch"], "options": _shape(one)}} for one in (theirs, ours))
            changes = _changes(["student"], *sides)
            raise UsageError(
                f"student.from: {origin.path} is another network: {changes}",
                "Give the student the same options, or leave out student.from.",
            )
        from .data.tokenizer import Tokenizer

        if Tokenizer.load(tokenizer).fingerprint != self.parts.tokenizer.fingerprint:
            raise UsageError(
                f"student.from: {origin.path} reads other tokens than this recipe's tokenizer makes",
                f'Use its own: tokenizer.kind = "{self.recipe.student.from_}".',
            )
        job.model.load_weights(list(origin.weights().items()))
        self.voice.say(f"Starting from the weights of {self.recipe.student.from_}, step {origin.step}.")

    def _sampler(self) -> Any:
        from .student import Sampling

        table = self.recipe.sampling
        student = Trained(self.parts.network, self.parts.tokenizer, self.parts.student.context)
        text = self.parts.corpus.held_out_documents[0].text
        prompt = self.parts.beginning(text, table.prompt_tokens)

        def sample() -> str:
            (written,) = student.write([prompt], [self.recipe.seed], Sampling(table.temperatures[0]), table.max_tokens)
            return f"{prompt}|{written.text}".replace("\n", " ")

        return sample

    # ---------------------------------------------------------------------------------------- what it came to

    def _spent(self, begun: float) -> dict[str, float]:
        """The time of all sittings."""
        before = self.run.info.get("training", {}).get("seconds", 0.0)
        return {"seconds": round(before + time.perf_counter() - begun, 3)}

    def _saved(self, job: Job) -> dict[str, Any]:
        """What a sitting came to that did not end: the state that the next one goes on from."""
        saved, _ = checkpoints.newest_good(self.run.checkpoints)
        return self._came_to(restored(job.model, saved)) if saved else {}

    def _came_to(self, state: State) -> dict[str, Any]:
        table, context = self.recipe.train, self.parts.student.context
        rows = [row for row in read_lines(self.run.metrics) if row["step"] <= state.step]
        losses = [row["loss"] for row in rows if row["kind"] == "train"][-20:]
        looks = [row for row in rows if row["kind"] == "validation"]
        return {
            "steps": state.step,
            "tokens": state.step * table.batch_size * table.accumulate * context,
            "epochs": round(self.batches.epochs(state.step), 2),
            "loss": sum(losses) / len(losses) if losses else None,
            "validation_loss": looks[-1]["loss"] if looks else None,
            "best_step": state.best_step,
            "best_loss": state.best_loss if looks else None,
            "gradient_norms": looks[-1].get("gradient_norms", {}) if looks else {},
            "weights_sha256": checkpoints.weights_digest(flat(state.parameters)),
            **judged_in_all(rows),
        }


def settings(recipe: Recipe, chunk: int, precision: str = "float32") -> Settings:
    """The figures of a recipe's training; so many rows of logits are held at once."""
    table = recipe.train
    floor = table.learning_rate / 10 if table.final_learning_rate is None else table.final_learning_rate
    return Settings(
        steps=table.steps,
        accumulate=table.accumulate,
        chunk=chunk,
        evaluate_every=table.evaluate_every,
        checkpoint_every=table.checkpoint_every,
        sample_every=table.sample_every,
        keep=table.keep,
        seed=recipe.seed,
        schedule=LearningRate(table.learning_rate, floor, table.warmup, table.steps, table.schedule),
        optimizer=AdamW((table.betas[0], table.betas[1]), table.epsilon, table.weight_decay, table.clip),
        precision=precision,
    )


def streams_of(train: TrainTable, sharing: int = 1, processes: int = 1) -> int:
    """How many parts of a batch are computed at once: on a CPU, as many as there are cores for each process."""
    each = max(1, blas.cores() // sharing) if mx.default_device() == mx.cpu else 1
    chosen = each if train.streams == "auto" else train.streams
    return min(chosen, max(1, train.batch_size // processes))


def chunk_of(train: TrainTable, vocab_size: int) -> int:
    """How many rows of logits are held at once."""
    return chunk_rows(vocab_size) if train.chunk == "auto" else train.chunk


def _shape(student: dict[str, Any]) -> dict[str, Any]:
    """What decides the weights' shapes; dropout does not."""
    options = {key: value for key, value in student["options"].items() if key != "dropout"}
    return {**options, "vocab_size": student["vocab_size"]}


def _changes(keys: list[str], before: dict[str, Any], after: dict[str, Any]) -> str:
    """What differs, as a person would name it."""
    names = {
        "data": "the corpus",
        "tokenizer": "the tokenizer",
        "batches": "the order of batches",
        "teacher": "the teacher",
        "seed": "the seed",
    }
    if "data" in keys and "batches" in keys:
        keys = [key for key in keys if key != "batches"]
    told = []
    for key in keys:
        if key == "student":
            old, new = ({**side["student"], **side["student"]["options"]} for side in (before, after))
            differ = [k for k in sorted({*old, *new} - {"options"}) if old.get(k) != new.get(k)]
            told += [f"student.{k} ({old.get(k)} to {new.get(k)})" for k in differ]
        else:
            told.append(names[key])
    return " and ".join(told)
