"""Isolates trackers: one that fails after the start is reported and dropped, and the run continues without it.

An error at the start ends the stage, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..core.run_folder import Run
from ..plugins.discovery import describe_error
from ..plugins.interfaces import Tracker


class GuardedTracker(Tracker):
    """A tracker whose errors become warnings."""

    def __init__(self, tracker: Tracker, warn: Callable[[str], None]) -> None:
        super().__init__(tracker.options)
        self.tracker, self.warn, self.is_active = tracker, warn, True

    def start(self, run: Run) -> None:
        """Start tracking a run. An error ends the stage."""
        self.tracker.start(run)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one step."""
        self._guard(f"at step {step}", lambda: self.tracker.log(step, values))

    def finish(self, report: Mapping[str, Any]) -> None:
        """Log the report, and close the tracker."""
        self._guard("at the end", lambda: self.tracker.finish(report))

    def _guard(self, when: str, call: Callable[[], None]) -> None:
        if not self.is_active:
            return
        try:
            call()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - it is the plugin's code
            self.is_active = False
            message = f"the tracker {self.tracker.name!r} failed {when}: {describe_error(error)}"
            self.warn(f"{message}. The run continues without it")
