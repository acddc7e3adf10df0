"""`distillkit doctor`: check this machine."""

from __future__ import annotations

import click

from ..core.errors import UsageError
from .common import json_option, load_plugins, print_result


@click.command()
@click.option("--online", is_flag=True, help="Ask each provider with a key for its models and log-probabilities.")
@click.option(
    "--base-url", metavar="URL", default="", help="With --online: also ask the OpenAI-compatible server at URL."
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, online: bool, base_url: str, as_json: bool) -> None:
    """Check this machine, and list problems with their remedies.

    Checks CPU, MLX, BLAS, memory, disk, keys, packages, plugins and the answer cache.

    Exits with 0 if a run would work, else with 1.
    """
    from ..pipeline import doctor as examination
    from ..reporting.doctor import format_report

    if base_url and not online:
        raise UsageError("--base-url is for --online", "Add --online.")
    report = examination.examine(lambda: load_plugins(ctx), online=online, base_url=base_url)
    print_result(report, as_json, format_report)
    ctx.exit(0 if report["ok"] else 1)
