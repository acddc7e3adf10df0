"""`distillkit label`: ask the teacher."""

from __future__ import annotations

import click

from .common import device_option, set_option, yes_option
from .run_stages import run_stage


@click.command()
@click.argument("where", metavar="[RECIPE|RUN]", default="latest")
@set_option
@click.option("--batch", is_flag=True, help="In the provider's batches: half the price, within a day.")
@click.option("--shard", metavar="K/N", help="Ask only the K-th of N shares, on each of N machines.")
@click.option("--wait", is_flag=True, help="Wait for batches or the end of a daily limit, instead of stopping.")
@click.option("--retry-refused", is_flag=True, help="Ask again what the teacher refused.")
@device_option
@yes_option
@click.pass_context
def label(
    ctx: click.Context, /, where: str, overrides: tuple[str, ...], yes: bool, shard: str | None, **label_options: bool
) -> None:
    """Ask the teacher: one stage of a run, or a new run up to it."""
    from ..teachers.asking.policy import parse_shard

    run_stage(ctx, "label", where, overrides, yes, shard=shard and parse_shard(shard), **label_options)
