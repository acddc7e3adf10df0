"""`distillkit run`: run all stages of a recipe, or resume a run."""

from __future__ import annotations

import click

from ..core.run_folder import STAGES
from .common import device_option, set_option, yes_option
from .run_stages import resume_run, start_run


@click.command()
@click.argument("recipe")
@set_option
@click.option("--until", type=click.Choice(STAGES), default="report", help="The last stage to run.")
@click.option("--resume", is_flag=True, help="Continue the newest run of the recipe.")
@device_option
@yes_option
@click.pass_context
def run(ctx: click.Context, recipe: str, overrides: tuple[str, ...], until: str, resume: bool, yes: bool) -> None:
    """Run a recipe: label, train, judge, report.

    With --resume, RECIPE may also be a run.
    """
    stages = STAGES[: STAGES.index(until) + 1]
    if resume:
        resume_run(ctx, recipe, overrides, stages, yes)
    else:
        start_run(ctx, recipe, overrides, stages, yes)
