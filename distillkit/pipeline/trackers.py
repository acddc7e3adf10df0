"""Trackers, kept at arm's length: one that fails is named and hears no more, and the run goes on without it.

What it cannot do at all it says at the start, before anything is spent. Knows no tracker by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..core.run_folder import Run
from ..plugins.discovery import describe_error
from ..plugins.interfaces import Tracker


class GuardedTracker(Tracker):
    """A tracker whose failures are warnings."""

    def __init__(self, tracker: Tracker, warn: Callable[[str], None]) -> None:
        super().__init__(tracker.options)
        self.tracker, self.warn, self.listens = tracker, warn, True

    def start(self, run: Run) -> None:
        """A run begins; what goes wrong now ends the stage."""
        self.tracker.start(run)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one step."""
        self._tell(f"at step {step}", lambda: self.tracker.log(step, values))

    def finish(self, report: Mapping[str, Any]) -> None:
        """The run is over."""
        self._tell("at the end", lambda: self.tracker.finish(report))

    def _tell(self, when: str, tell: Callable[[], None]) -> None:
        if not self.listens:
            return
        try:
            tell()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - it is the plugin's code
            self.listens = False
            told = f"the tracker {self.tracker.name!r} failed {when}: {describe_error(error)}"
            self.warn(f"{told}. The run goes on without it")
