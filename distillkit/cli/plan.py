"""`distillkit plan`: estimate a run without running it."""

from __future__ import annotations

import click

from .common import json_option, load_context, load_recipe, print_result, set_option
from .run_stages import is_run


@click.command()
@click.argument("where", metavar="RECIPE|RUN")
@set_option
@click.option("--batch", is_flag=True, help="Estimate at Batch API prices.")
@json_option
@click.pass_context
def plan(ctx: click.Context, where: str, overrides: tuple[str, ...], batch: bool, as_json: bool) -> None:
    """Estimate calls, cost, memory and time of a run without running it.

    With a RUN: estimate judging from its existing samples.
    """
    from ..core.run_folder import find_run
    from ..pipeline.plan import build_plan
    from ..pipeline.plan_text import format_plan

    run = find_run(where) if is_run(where) else None
    recipe = load_recipe(str(run.recipe) if run else where, overrides)
    plan_values = build_plan(load_context(ctx, recipe, batch=batch), run)
    print_result(plan_values, as_json, format_plan)
