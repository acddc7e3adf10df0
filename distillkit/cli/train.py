"""`distillkit train`: train the student."""

from __future__ import annotations

import click

from .common import device_option, set_option, yes_option
from .run_stages import run_stage


@click.command()
@click.argument("where", metavar="[RECIPE|RUN]", default="latest")
@set_option
@device_option
@yes_option
@click.pass_context
def train(ctx: click.Context, where: str, overrides: tuple[str, ...], yes: bool) -> None:
    """Train the student, from its last checkpoint if there is one."""
    run_stage(ctx, "train", where, overrides, yes)
