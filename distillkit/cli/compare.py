"""`distillkit compare`: compare several runs."""

from __future__ import annotations

from pathlib import Path

import click

from .common import json_option, print_result


@click.command()
@click.argument("where", nargs=-1, required=True, metavar="RUN RUN...")
@json_option
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Also write an HTML page.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Also write Markdown.")
@click.option(
    "--csv", type=click.Path(file_okay=False, path_type=Path), help="Also write the tables as CSV files into a folder."
)
@click.option("--anyway", is_flag=True, help="Also compare metrics that were not judged in the same way.")
def compare(
    where: tuple[str, ...], as_json: bool, html: Path | None, markdown: Path | None, csv: Path | None, anyway: bool
) -> None:
    """Compare runs with the first one: differences, confidence intervals, verdicts.

    Takes 2 to 50 runs.
    """
    from ..core import run_folder as runs
    from ..reporting.compare.comparison import build_comparison, read_runs
    from ..reporting.compare.files import write_files
    from ..reporting.compare.text import format_text

    found = read_runs([runs.find_run(spec) for spec in where])
    comparison = build_comparison(found, anyway)
    write_files(comparison, found, html=html, markdown=markdown, csv=csv)
    print_result(comparison, as_json, format_text)
