"""One process's work on a run: what all stages of a session share. Does not know the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ..core.console import Console
from ..core.run_folder import Run
from ..recipe.recipe import Recipe
from ..student.training.distributed import SINGLE_PROCESS, ProcessGroup
from .context import Context
from .trackers import GuardedTracker


@dataclass
class RunSession:
    """A run that some stages are applied to, with its context and the processes that work on it."""

    context: Context
    run: Run
    group: ProcessGroup = SINGLE_PROCESS
    compared_runs: Sequence[Run] = ()  # for judges that compare runs
    trackers: list[GuardedTracker] = field(default_factory=list)
    trained_elsewhere: bool = False  # whether another process is training this run at the moment

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.context.recipe

    @property
    def console(self) -> Console:
        """Where messages go."""
        return self.context.console

    def warn(self, text: str) -> None:
        """Print a warning, and record it in `run.json` for the report."""
        self.console.warn(text)
        self.run.update_info(lambda info: {**info, "warnings": list(dict.fromkeys([*info.get("warnings", []), text]))})

    def record_end(self, status: str, **values: Any) -> None:
        """Record how the run ended, unless another process is training it: then that process records it."""
        if not self.trained_elsewhere:
            self.run.mark_ended(status, **values)


@contextmanager
def always_record(record: Callable[[], None]) -> Iterator[None]:
    """Call `record` when the block ends, with or without an error. A full disk must not hide the block's error."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            record()
        raise
    record()
