"""One run, stage by stage: label, train, judge, report. Each can be run again alone from what the run folder holds."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core import run_folder
from ..core.errors import DistillkitError, Elsewhere, Interrupted, LimitReached, UsageError
from ..core.files import private, write_json, write_lines, write_text
from ..core.records import Request
from ..core.run_folder import STAGES, Run
from ..judging import protocol
from ..plugins.interfaces import Judge, Teacher
from ..recipe.schema import JudgeTable
from ..student.training.distributed import SINGLE_PROCESS, ProcessGroup
from ..teachers.asking.label import LabelResult
from ..teachers.asking.policy import RequestPolicy
from .context import Context
from .judge import Jury, Subjects
from .plan import MANY_EPOCHS, better, slow_start
from .soft_targets import STORE
from .trackers import Guarded

if TYPE_CHECKING:
    from .train import Training

LAST_WORDS = 1.0  # seconds
FEW = 0.1
WHY_FEW = (
    "the teacher's tokens and the student's begin at different bytes, or its log-probabilities are not of its text."
)


class Pipeline:
    """A run of an context. Every stage leaves its result in the run folder, and its figures in `run.json`."""

    def __init__(
        self, context: Context, run: Run, group: ProcessGroup = SINGLE_PROCESS, others: Sequence[Run] = ()
    ) -> None:
        self.context, self.run, self.group, self.others = context, run, group, others
        self.recipe, self.console = context.recipe, context.console
        self.trackers: list[Guarded] = []
        self.watched = False  # whether another process trains this run meanwhile

    def go(self, stages: tuple[str, ...] = STAGES) -> dict[str, Any]:
        """Run some stages in order, and record how it ended."""
        if not self.group.is_main:
            self._help(stages)
            return {}
        with self.group.barrier():
            self.watched = self.run.is_being_trained
            if "train" in stages:
                if self.watched:
                    raise self.run.busy
                self._training().check()
            if "label" in stages:
                self.context.refuse_twice()
            if {"train", "judge"} & {*stages}:
                self._must_be_its_text()
            write_text(self.run.recipe, self.recipe.to_toml())
        with self._recorded(stages):
            for stage in stages:
                with self._timed(stage), self.context.plugins.named(f"in the stage {stage}"):
                    getattr(self, stage)()
        return self.run.info

    def _must_be_its_text(self) -> None:
        """Refuse another text than the run began with: what is held out of that, the student may have learnt from."""
        began_with = (self.run.info.get("data") or {}).get("fingerprint")
        if began_with not in (None, self.context.corpus.fingerprint):
            raise UsageError(
                f"{self.run.name} began with other text or another tokenizer, and may have learnt what this holds out",
                "Leave data and tokenizer as they were, or begin a new run.",
            )

    def _help(self, stages: tuple[str, ...]) -> None:
        """What a process does that does not write: it trains with the others, and is done."""
        with _out_of_the_way():
            with self.group.barrier():  # what is checked before the first stage
                pass
            if "label" in stages:
                with self.group.barrier():
                    pass
            if "train" in stages:
                with self.group.barrier():
                    training = self._training()
                training.go()

    # ------------------------------------------------------------------------------------------ stages

    def label(self) -> None:
        """Ask the teacher what is not yet known, and pack what it said."""
        with self.group.barrier():
            self._label()

    def _label(self) -> None:
        requests = self.context.requests()
        table, teacher = self.recipe.teacher, self.context.teacher
        if table is None or teacher is None:
            return
        facts: dict[str, Any] = {
            "provider": table.provider,
            "model": table.options.get("model"),
            "signal": self._signal(),
        }
        if requests:
            self._fewer_prompts(len(requests), table.prompts * table.repeats)
            spent = self._earlier(teacher, requests)
            labelled = self._labelled(teacher, requests, self.context.request_policy(table, spent=spent))
            if self.context.manner.get("shard"):  # one share of several teaches nobody yet
                return
            rows = labelled.answered
            private(self.run.answers)
            write_lines(self.run.answers / "index.jsonl", [{"id": r.id, "key": key} for r, key, _ in rows])
            counts = labelled.counts
            asked = min(self.run.info["asked"], counts["prompts"])  # in all sittings
            counts |= {"asked": asked, "cached": counts["prompts"] - asked}
            facts |= self.context.pack(labelled, self.run.answers) | counts
        if self.context.soft.source == STORE:
            stores = self.context.soft.keep(self.context.streams(self.run.answers))
            facts["soft"] = self.context.soft.facts(stores)
        self._tell_of_soft(facts.get("soft"))
        self.run.record(teacher=facts)

    def _tell_of_soft(self, soft: dict[str, Any] | None) -> None:
        """Say how much of the text has a soft target; nobody should train on a handful of them unawares."""
        if soft is None:
            return
        share = soft["with_soft"] / max(1, soft["positions"])
        self.console.print(
            f"Soft targets: {soft['with_soft']:,} of {soft['positions']:,} positions ({share:.1%}), "
            f"which name {soft['mass']:.1%} of the teacher's mass; {soft['bytes_a_position']:g} bytes a position."
        )
        if share < FEW:
            self._warn(f"only {share:.1%} of the positions that are learnt have a soft target; {WHY_FEW}")

    def _labelled(self, teacher: Teacher, requests: list[Request], policy: RequestPolicy) -> LabelResult:
        """The answers to requests; how many came and what they cost is recorded even when it ends badly."""
        self.console.print(f"Asking {teacher.name} for {len(requests)} answers.")
        done = LabelResult([], [])

        def recorded() -> None:
            spent = {"spent": done.spent} if done.spent else {}
            self.run.record(asked=self.run.info["asked"] + done.asked, asking=None, **spent)

        with _in_the_end(recorded):
            self.context.ask(teacher, requests, policy, done)
        self.console.print(f"  {done.asked} asked, {done.cached} from the cache")
        if done.refused:
            self._warn(
                f"{done.refused} of {len(done.requests)} requests were refused or answered by nothing; "
                "if the teacher thinks before it writes, raise teacher.max_tokens. "
                "Ask them again: distillkit label --retry-refused"
            )
        return done

    def train(self) -> None:
        """Train the student to its last step, from its last checkpoint if there is one."""
        training = self._training()
        with self.group.barrier():
            self._warn_of_epochs(training.batches.epochs(self.recipe.train.steps))
            if told := slow_start(self.context):
                self._warn(told)
            self.trackers = [Guarded(tracker, self._warn) for tracker in self.context.trackers()]
            for tracker in self.trackers:
                tracker.start(self.run)
        self.run.record(training=training.go(self.trackers))

    def judge(self) -> None:
        """Let the student write, and the judges grade."""
        from ..student import Trained

        student = Trained.load(self.run.path)
        subject = Subjects(self.context, self.run).subject(student, self.others)
        spent = dict(self.run.info.get("spent_on_judges") or {})
        jury = Jury(self.context, spent, lambda spent: self.run.record(spent_on_judges=spent))
        verdicts, judges = [], []
        for table, judge in self.context.judges():
            self.console.print(f"Judging: {judge.name}.")
            self._warn_of_kin(table, judge)
            verdicts.append(jury.hear(table, judge, subject))
            judges.append(judge)
            if verdicts[-1].reach:
                self.console.print(f"  {verdicts[-1].reach}")
        write_lines(self.run.grades, [row for verdict in verdicts for row in verdict.rows()])
        self._record_held_out()
        self.run.record(
            judges={v.judge: {name: metric.to_json() for name, metric in v.metrics.items()} for v in verdicts},
            judges_protocol={v.judge: v.protocol.to_json() for v in verdicts},
            judges_design={v.judge: v.design for v in verdicts if v.design},
            lower_is_better={judge.name: sorted(judge.lower_is_better) for judge in judges},
            neither_is_better={judge.name: sorted(judge.neither_is_better) for judge in judges},
            together=[judge.name for judge in judges if judge.together],
            judged_weights=student.weights_sha256,
        )

    def report(self) -> None:
        """Write the report from what the run folder holds; the run is done if no stage is missing."""
        from ..reporting.run import tables

        self._ended("unfinished" if tables.missing(self.run) else "done", finished=now())
        report = tables.write(self.run)
        for tracker in self.trackers:
            tracker.finish(report)

    # ------------------------------------------------------------------------------------------ helpers

    def _record_held_out(self) -> None:
        """What a run that was brought in from elsewhere is judged by: without it, nothing compares with its figures."""
        if not self.run.info.get("data") and self.context.at_hand:
            self.run.record(data={"held_out": self.context.corpus.counts["held_out"]})

    def _earlier(self, teacher: Teacher, requests: list[Request]) -> dict[str, float]:
        """What earlier sittings of this run spent. Records that, and that another one begins to ask.

        One that was killed could not say what it asked for: that is read off the answers that came since it began.
        """
        info = self.run.info
        asked, spent = info.get("asked") or (info.get("teacher") or {}).get("asked") or 0, info.get("spent") or {}
        if killed := info.get("asking"):
            came = self.context.came_since(teacher, requests, killed["since"])
            asked, spent = asked + len(came), self.context.at_least(teacher, came, spent)
        self.run.record(asked=asked, spent=spent, asking={"since": time.time()})
        return spent

    def _training(self) -> Training:
        from .train import Training

        return Training(self.context, self.run, self.run.answers, self.group)

    def _signal(self) -> str:
        """What is used of the teacher: what the recipe narrows it to, or what it can give."""
        table, teacher = self.recipe.teacher, self.context.teacher
        return (table and table.signal) or (teacher.signal if teacher else "none")

    def _warn_of_kin(self, table: JudgeTable, judge: Judge) -> None:
        """A judge prefers what its own family writes, and a student writes as its teacher does."""
        found, teacher = self.context.teacher_of(table, judge), self.context.teacher
        if found is None or teacher is None:
            return
        ours, theirs = (protocol.family(getattr(one.options, "model", None)) for one in (teacher, found[0]))
        if ours is not None and ours == theirs:
            self._warn(
                f"the judge {judge.name!r} asks a model of the teacher's own family, {ours}: models grade their kin "
                "too well. Let another family judge: judge.teacher.model"
            )

    def _fewer_prompts(self, got: int, wanted: int) -> None:
        if got < wanted:
            self._warn(f"there are prompts for {got} of the {wanted} requests of the recipe")

    def _warn_of_epochs(self, epochs: float) -> None:
        if epochs > MANY_EPOCHS:
            self._warn(
                f"each token is seen {epochs:.1f} times, and from about {MANY_EPOCHS} on a student learns by heart: "
                f"{better(self.context, epochs)}"
            )

    def _warn(self, text: str) -> None:
        self.console.warn(text)
        self.run.revise(lambda info: {**info, "warnings": list(dict.fromkeys([*info.get("warnings", []), text]))})

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()

        def longer(info: dict[str, Any]) -> dict[str, Any]:
            spent = info.get("seconds", {})  # in all sittings
            seconds = round(spent.get(stage, 0.0) + time.perf_counter() - begun, 3)
            return {**info, "seconds": {**spent, stage: seconds}}

        with _in_the_end(lambda: self.run.revise(longer)):
            yield

    @contextmanager
    def _recorded(self, stages: tuple[str, ...]) -> Iterator[None]:
        """Keep `status` true, whatever happens."""
        if not self.watched:
            self.run.begins()
        try:
            yield
        except (Interrupted, KeyboardInterrupt) as error:
            self._broke_off("interrupted")
            told = error.message if isinstance(error, Interrupted) else "interrupted; the last checkpoint is kept"
            raise Interrupted(told, self._to_go_on()) from error
        except LimitReached as error:
            self._broke_off("stopped")
            error.hint = f"{error.hint}\n  {self._to_go_on()}".strip()
            raise
        except BaseException as error:
            told = error.message if isinstance(error, DistillkitError) else f"{type(error).__name__}: {error}"
            self._broke_off("failed", error=told)
            raise
        if "report" not in stages:  # that stage has said it, as far as nothing is missing
            self._ended("done", finished=now())

    def _to_go_on(self) -> str:
        """The command that goes on: a recipe does not say how its teacher is asked."""
        manner = self.context.manner
        words = [f"--{name.replace('_', '-')}" for name in ("batch", "retry_refused") if manner.get(name)]
        if shard := manner.get("shard"):
            words.append(f"--shard {shard[0]}/{shard[1]}")
        if not words:
            return f"Go on: distillkit run {self.run.path} --resume"
        return f"Go on: distillkit label {self.run.path} {' '.join(words)}"

    def _ended(self, status: str, **more: Any) -> None:
        """Record how the run ended, unless that is for the process to say that trains it."""
        if not self.watched:
            self.run.ends(status, **more)

    def _broke_off(self, status: str, **more: Any) -> None:
        """Record it of a run that did not end well, as far as there is room: what failed may have been the disk."""
        with suppress(OSError):
            self._ended(status, **more)


@contextmanager
def _in_the_end(record: Callable[[], None]) -> Iterator[None]:
    """Record something however a block ends. A disk that is full by then does not hide what ended it."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            record()
        raise
    record()


@contextmanager
def _out_of_the_way() -> Iterator[None]:
    """Let the process that writes end first, and speak: a launcher ends all others as soon as one has failed."""
    try:
        yield
    except BaseException as error:
        time.sleep(LAST_WORDS)
        if isinstance(error, (Interrupted, KeyboardInterrupt)):
            raise Elsewhere("", Interrupted.exit_code) from error
        raise


def begin(context: Context, foreseen: Mapping[str, Any]) -> Run:
    """A new run folder for an context, with all that is known before the first stage."""
    recipe, began = context.recipe, time.perf_counter()
    corpus = context.corpus
    context.refuse_twice()
    facts = {"recipe": recipe.name, "started": now(), "seed": recipe.seed, **describe(context)}
    with run_folder.creating(recipe.name, facts) as (run, part):
        write_text(part.recipe, recipe.to_toml())
        write_json(part.plan, foreseen)
        corpus.tokenizer.save(part.tokenizer)
        part.record(seconds={"data": round(time.perf_counter() - began, 3)})
    return run


def describe(context: Context) -> dict[str, Any]:
    """What a run records of its parts: versions, hashes, sizes, the machine."""
    from ..student.trained import parameters

    recipe, corpus = context.recipe, context.corpus
    return {
        "versions": versions(),
        "plugins": context.plugins.versions(recipe),
        "device": device(),
        "data": {"source": recipe.data.source, "fingerprint": corpus.fingerprint, **corpus.counts},
        "tokenizer": {
            "kind": recipe.tokenizer.kind,
            "vocab_size": corpus.tokenizer.vocab_size,
            "fingerprint": corpus.tokenizer.fingerprint,
        },
        "student": {"arch": recipe.student.arch, "parameters": parameters(context.network)},
    }


def versions() -> dict[str, str]:
    """The versions that matter for a result."""
    found = {"distillkit": __version__, "python": platform.python_version()}
    for name in ("mlx", "numpy", "tiktoken"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # pragma: no cover - installed without metadata
            found[name] = "unknown"
    return found


def device() -> str:
    """The machine in a few words: what computes, and with what."""
    from ..student import blas

    backend = blas.load()
    import mlx.core as mx

    kind = "GPU" if mx.default_device().type == mx.gpu else "CPU"
    return f"{kind}, {platform.system()} {platform.machine()}, {backend if kind == 'CPU' else 'MLX'}"


def now() -> str:
    """The time, for records."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
