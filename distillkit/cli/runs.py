"""`distillkit runs`: list all runs."""

from __future__ import annotations

import click

from .common import json_option, print_result


@click.command()
@json_option
def runs(as_json: bool) -> None:
    """List all runs."""
    from ..core import run_folder as folders
    from ..reporting.run.listing import format_listing, list_runs

    print_result(list_runs(folders.all_runs()), as_json, format_listing)
