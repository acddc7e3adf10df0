"""What commands share: their options, how they ask, and the way from a recipe's name to the parts of a checked recipe.

Knows no command. Everything heavy is imported where it is needed, so that `--help` is quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from ..core.console import clear_live_line
from ..core.text import escape_json, printable

if TYPE_CHECKING:
    from ..core.errors import UsageError
    from ..pipeline.context import Context
    from ..plugins.manager import Plugins
    from ..recipe.recipe import Recipe

recipe_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key of the recipe: train.steps=10.",
)


def _alone(ctx: click.Context, _: Any, chosen: bool) -> bool:
    """With --json nothing else is on standard output: what plugins print goes to standard error."""
    if chosen:
        ctx.meta["out"] = sys.stdout
        ctx.with_resource(redirect_stdout(sys.stderr))
    return chosen


json_option = click.option("--json", "as_json", is_flag=True, callback=_alone, help="For machines.")


def _on(ctx: click.Context, parameter: click.Parameter, device: str | None) -> None:
    """Set the device, once the fast BLAS is there and before anything is computed."""
    if device:
        from ..student import blas

        blas.require_mlx()
        blas.use_device(device)


device_option = click.option(
    "--device", type=click.Choice(["cpu", "gpu"]), expose_value=False, callback=_on, help="Not what MLX chooses."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def agree(question: str, yes: bool, *, without_terminal: UsageError, declined: UsageError) -> None:
    """Ask whoever sits at a terminal, unless --yes has said it; nobody's silence is a yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise without_terminal
    if not click.confirm(question, err=True):
        raise declined


def recipe_of(spec: str, overrides: tuple[str, ...]) -> Recipe:
    """The recipe that a word names, changed by `--set`."""
    from ..recipe.recipe import load

    return load(spec, overrides)


def plugins_of(ctx: click.Context, requirements: tuple[str, ...] = ()) -> Plugins:
    """All plugins, with a fast BLAS in place before any of them can import mlx."""
    from ..plugins.manager import Plugins
    from ..student import blas

    blas.require_mlx()
    return Plugins.load(ctx.obj["plugins"], requirements)


def warn_of_slow_blas() -> None:
    """Say so where MLX computes with a slow BLAS."""
    from ..student import blas

    if warning := blas.load().warning:
        click.echo(printable(f"warning: {warning}"), err=True)


def load_context(ctx: click.Context, recipe: Recipe, *, silent: bool = False, **label_options: Any) -> Context:
    """The context of a recipe, which is checked. `label_options` change how teachers are asked: batch, wait, ..."""
    checked = plugins_of(ctx, tuple(recipe.plugins)).check(recipe)
    from ..core.console import Console, default_console
    from ..pipeline.context import Context
    from ..plugins.manager import current_plugins
    from ..student import blas

    console = Console() if silent else default_console()
    for warning in filter(None, [blas.load().warning, *current_plugins().warnings_for(checked)]):
        console.warn(warning)
    return Context(checked, current_plugins(), console, label_options)


def show(value: Any, as_json: bool, text: Callable[[Any], str]) -> None:
    """Print a value for machines, or as the text that is made of it; either moves no cursor."""
    told = escape_json(json.dumps(value, indent=2, ensure_ascii=False)) if as_json else printable(text(value))
    clear_live_line()
    click.echo(told, file=click.get_current_context().meta.get("out"))
