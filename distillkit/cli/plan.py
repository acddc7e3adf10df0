"""`distillkit plan`: what a run would ask, cost and take."""

from __future__ import annotations

import click

from .common import json_option, load_context, load_recipe, print_result, set_option
from .run_stages import is_run


@click.command()
@click.argument("where", metavar="RECIPE|RUN")
@set_option
@click.option("--batch", is_flag=True, help="As if it was labelled in batches.")
@json_option
@click.pass_context
def plan(ctx: click.Context, where: str, overrides: tuple[str, ...], batch: bool, as_json: bool) -> None:
    """Count what a run would ask, use and take. Spends nothing.

    Of a RUN: what judging it would ask, by the samples that it has written.
    """
    from ..core.run_folder import find_run
    from ..pipeline.plan import build_plan
    from ..pipeline.plan_text import format_plan

    run = find_run(where) if is_run(where) else None
    recipe = load_recipe(str(run.recipe) if run else where, overrides)
    foreseen = build_plan(load_context(ctx, recipe, batch=batch), run)
    print_result(foreseen, as_json, format_plan)
