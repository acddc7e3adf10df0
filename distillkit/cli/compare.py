"""`distillkit compare`: several runs beside each other."""

from __future__ import annotations

from pathlib import Path

import click

from .common import json_option, print_result


@click.command()
@click.argument("where", nargs=-1, required=True, metavar="RUN RUN...")
@json_option
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page as well.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write it as Markdown as well.")
@click.option("--csv", type=click.Path(file_okay=False, path_type=Path), help="Write the tables into a folder as well.")
@click.option("--anyway", is_flag=True, help="Compare also what was not judged in the same way.")
def compare(
    where: tuple[str, ...], as_json: bool, html: Path | None, markdown: Path | None, csv: Path | None, anyway: bool
) -> None:
    """Compare runs with the first one: differences, their intervals, and what can be said. Takes 2 to 50."""
    from ..core import run_folder as runs
    from ..reporting.compare.comparison import build_comparison, read_runs
    from ..reporting.compare.files import write_files
    from ..reporting.compare.text import format_text

    found = read_runs([runs.find_run(spec) for spec in where])
    comparison = build_comparison(found, anyway)
    write_files(comparison, found, html=html, markdown=markdown, csv=csv)
    print_result(comparison, as_json, format_text)
