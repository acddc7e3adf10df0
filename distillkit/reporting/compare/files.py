"""Writes a comparison to files: an HTML page, Markdown, and CSV tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.files import write_text
from . import dataframes, page, text
from .compared_run import ComparedRun


def write_files(
    comparison: Mapping[str, Any],
    runs: Sequence[ComparedRun],
    *,
    html: Path | None = None,
    markdown: Path | None = None,
    csv: Path | None = None,
) -> None:
    """Write the requested files atomically. `csv` is a folder."""
    if html:
        write_text(html, page.render_html(comparison, runs))
    if markdown:
        write_text(markdown, text.format_markdown(comparison))
    if csv:
        for name, table in dataframes.csv_tables(comparison, runs).items():
            write_text(csv / name, table.to_csv(index=False, lineterminator="\n"))
