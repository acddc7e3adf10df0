"""A comparison as files: a page, Markdown, and tables for spreadsheets. Knows where they go, not how they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.files import write_text
from .. import frames
from . import page, text
from .compared_run import Side


def write(
    comparison: Mapping[str, Any],
    found: Sequence[Side],
    *,
    html: Path | None = None,
    markdown: Path | None = None,
    csv: Path | None = None,
) -> None:
    """Write what is asked for; each file is whole or not there."""
    if html:
        write_text(html, page.html(comparison, found))
    if markdown:
        write_text(markdown, text.marked(comparison))
    if csv:
        for name, table in frames.csvs(comparison, found).items():
            write_text(csv / name, table.to_csv(index=False, lineterminator="\n"))
