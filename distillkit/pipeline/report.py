"""The report stage: write the report files from what the run folder holds. Judges and plugins are not needed."""

from __future__ import annotations

from ..reporting.run.report import missing_stages, write_report
from .new_run import timestamp
from .session import RunSession


def report(session: RunSession) -> None:
    """Write the report. The run is done if no stage is missing."""
    session.record_end("unfinished" if missing_stages(session.run) else "done", finished=timestamp())
    written = write_report(session.run)
    for tracker in session.trackers:
        tracker.finish(written)
