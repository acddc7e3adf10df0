"""The report stage: write the report files from what the run folder holds. Judges and plugins are not needed."""

from __future__ import annotations

from ..reporting.run import tables
from .new_run import timestamp
from .session import RunSession


def report(session: RunSession) -> None:
    """Write the report. The run is done if no stage is missing."""
    session.record_end("unfinished" if tables.missing(session.run) else "done", finished=timestamp())
    written = tables.write(session.run)
    for tracker in session.trackers:
        tracker.finish(written)
