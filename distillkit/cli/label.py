"""`distillkit label`: ask the teacher."""

from __future__ import annotations

import click

from .common import device_option, set_option, yes_option
from .run_stages import run_stage


@click.command()
@click.argument("where", metavar="[RECIPE|RUN]", default="latest")
@set_option
@click.option("--batch", is_flag=True, help="Use the provider's Batch API: half the price, results within a day.")
@click.option("--shard", metavar="K/N", help="Request only shard K of N, on each of N machines.")
@click.option("--wait", is_flag=True, help="Wait for batches, or until a daily limit ends, instead of stopping.")
@click.option("--retry-refused", is_flag=True, help="Repeat requests that the teacher refused.")
@device_option
@yes_option
@click.pass_context
def label(
    ctx: click.Context, /, where: str, overrides: tuple[str, ...], yes: bool, shard: str | None, **label_options: bool
) -> None:
    """Request the teacher's answers: one stage of a run, or a new run up to it."""
    from ..teachers.asking.policy import parse_shard

    run_stage(ctx, "label", where, overrides, yes, shard=shard and parse_shard(shard), **label_options)
