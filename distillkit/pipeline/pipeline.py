"""The stages of a run in their order: label, train, judge, report.

Records status, time and warnings in `run.json`. A stage can be run again alone, from what the run folder holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ..core.errors import DistillkitError, Interrupted, LimitReached, PeerProcessError, UsageError
from ..core.files import write_text
from ..core.run_folder import STAGES, Run
from ..student.training.distributed import SINGLE_PROCESS, ProcessGroup
from .context import Context
from .judge import judge
from .label import label
from .new_run import timestamp
from .report import report
from .session import RunSession, always_record
from .teacher_calls import refuse_batched_requests

EXIT_DELAY = 1.0  # seconds that a process waits after an error, so that the main process can print its own first


def train(session: RunSession) -> None:
    """Run the train stage. MLX is imported only here: the other stages may not need it."""
    from .train import TrainStage

    TrainStage(session).execute()


STAGE_FUNCTIONS: dict[str, Callable[[RunSession], None]] = {
    "label": label,
    "train": train,
    "judge": judge,
    "report": report,
}


class Pipeline:
    """Applies stages to a run. Every stage leaves its result in the run folder and its metadata in `run.json`."""

    def __init__(
        self, context: Context, run: Run, group: ProcessGroup = SINGLE_PROCESS, compared_runs: Sequence[Run] = ()
    ) -> None:
        self.session = RunSession(context, run, group, compared_runs)
        self.context, self.run, self.group = context, run, group

    def execute(self, stages: tuple[str, ...] = STAGES) -> dict[str, Any]:
        """Run some stages in order. Returns the content of `run.json` in the main process, {} in the others."""
        if not self.group.is_main:
            self._assist(stages)
            return {}
        with self.group.barrier():
            self._check(stages)
            write_text(self.run.recipe, self.context.recipe.to_toml())
        with self._status_recorded(stages):
            for stage in stages:
                with self._timed(stage), self.context.plugins.attribute_errors(f"in the stage {stage}"):
                    STAGE_FUNCTIONS[stage](self.session)
        return self.run.info

    def _check(self, stages: tuple[str, ...]) -> None:
        """Refuse what would fail later, before the first stage starts."""
        self.session.trained_elsewhere = self.run.is_being_trained
        if "train" in stages:
            if self.session.trained_elsewhere:
                raise self.run.busy_error
            from .train import TrainStage

            TrainStage(self.session).check()
        if "label" in stages:
            refuse_batched_requests(self.context)
        if {"train", "judge"} & {*stages}:
            self._check_same_text()

    def _check_same_text(self) -> None:
        """Refuse text other than the run started with: the student may have been trained on what is held out now."""
        began_with = (self.run.info.get("data") or {}).get("fingerprint")
        if began_with not in (None, self.context.corpus.fingerprint):
            raise UsageError(
                f"{self.run.name} began with other text or another tokenizer, and may have learnt what is now held out",
                "Restore data and tokenizer, or start a new run.",
            )

    def _assist(self, stages: tuple[str, ...]) -> None:
        """The part of a process that is not the main one: it takes part in training, and otherwise only waits."""
        with _delayed_errors():
            with self.group.barrier():  # the checks before the first stage
                pass
            if "label" in stages:
                with self.group.barrier():
                    pass
            if "train" in stages:
                with self.group.barrier():
                    from .train import TrainStage

                    stage = TrainStage(self.session)
                stage.train()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the time that a block takes to the time of the stage in all sessions."""
        started = time.perf_counter()

        def add_time(info: dict[str, Any]) -> dict[str, Any]:
            earlier = info.get("seconds", {})
            seconds = round(earlier.get(stage, 0.0) + time.perf_counter() - started, 3)
            return {**info, "seconds": {**earlier, stage: seconds}}

        with always_record(lambda: self.run.update_info(add_time)):
            yield

    @contextmanager
    def _status_recorded(self, stages: tuple[str, ...]) -> Iterator[None]:
        """Keep `status` in `run.json` up to date, however the block ends."""
        if not self.session.trained_elsewhere:
            self.run.mark_running()
        try:
            yield
        except (Interrupted, KeyboardInterrupt) as error:
            self._record_failure("interrupted")
            message = error.message if isinstance(error, Interrupted) else "interrupted; the last checkpoint is kept"
            raise Interrupted(message, self._resume_hint()) from error
        except LimitReached as error:
            self._record_failure("stopped")
            error.hint = f"{error.hint}\n  {self._resume_hint()}".strip()
            raise
        except BaseException as error:
            message = error.message if isinstance(error, DistillkitError) else f"{type(error).__name__}: {error}"
            self._record_failure("failed", error=message)
            raise
        if "report" not in stages:  # the report stage records the end itself
            self.session.record_end("done", finished=timestamp())

    def _record_failure(self, status: str, **values: Any) -> None:
        """Record how the run ended, if there is room on the disk: a full disk may be what failed."""
        with suppress(OSError):
            self.session.record_end(status, **values)

    def _resume_hint(self) -> str:
        """The command that resumes the run, with the options of `label` that the recipe does not contain."""
        label_options = self.context.label_options
        options = [f"--{name.replace('_', '-')}" for name in ("batch", "retry_refused") if label_options.get(name)]
        if shard := label_options.get("shard"):
            options.append(f"--shard {shard[0]}/{shard[1]}")
        if not options:
            return f"Continue: distillkit run {self.run.path} --resume"
        return f"Continue: distillkit label {self.run.path} {' '.join(options)}"


@contextmanager
def _delayed_errors() -> Iterator[None]:
    """Let the main process end and print first: a launcher ends all other processes as soon as one has failed."""
    try:
        yield
    except BaseException as error:
        time.sleep(EXIT_DELAY)
        if isinstance(error, (Interrupted, KeyboardInterrupt)):
            raise PeerProcessError("", Interrupted.exit_code) from error
        raise
