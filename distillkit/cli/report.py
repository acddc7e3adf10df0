"""`distillkit report`: write the report of a run."""

from __future__ import annotations

import click

from .common import json_option, print_result


@click.command()
@click.argument("where", metavar="[RUN]", default="latest")
@json_option
def report(where: str, as_json: bool) -> None:
    """Write the report of a run again, from the files of its folder."""
    from ..core import run_folder
    from ..reporting.run.report import write_report
    from ..reporting.run.text import format_report

    print_result(write_report(run_folder.find_run(where)), as_json, format_report)
