"""What commands share: options, printing, confirmation, and loading a recipe with its plugins.

Heavy modules are imported where they are used, so that `--help` is quick.
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

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key of the recipe, for example train.steps=10.",
)


def _redirect_output(ctx: click.Context, _: Any, chosen: bool) -> bool:
    """With --json, only JSON goes to standard output: whatever plugins print goes to standard error."""
    if chosen:
        ctx.meta["out"] = sys.stdout
        ctx.with_resource(redirect_stdout(sys.stderr))
    return chosen


json_option = click.option("--json", "as_json", is_flag=True, callback=_redirect_output, help="Print JSON.")


def _set_device(ctx: click.Context, parameter: click.Parameter, device: str | None) -> None:
    """Set MLX's device, after the fast BLAS is loaded and before anything is computed."""
    if device:
        from ..student import blas

        blas.require_mlx()
        blas.use_device(device)


device_option = click.option(
    "--device",
    type=click.Choice(["cpu", "gpu"]),
    expose_value=False,
    callback=_set_device,
    help="Override MLX's default device.",
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


def confirm(question: str, yes: bool, *, without_terminal: UsageError, declined: UsageError) -> None:
    """Ask the user to confirm, unless --yes is given. Without a terminal, raise `without_terminal`."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise without_terminal
    if not click.confirm(question, err=True):
        raise declined


def load_recipe(spec: str, overrides: tuple[str, ...]) -> Recipe:
    """A recipe by path or bundled name, changed by `--set`."""
    from ..recipe.recipe import load

    return load(spec, overrides)


def load_plugins(ctx: click.Context, requirements: tuple[str, ...] = ()) -> Plugins:
    """Load all plugins, after the fast BLAS: a plugin may import MLX."""
    from ..plugins.manager import Plugins
    from ..student import blas

    blas.require_mlx()
    return Plugins.load(ctx.obj["plugins"], requirements)


def warn_of_slow_blas() -> None:
    """Print a warning if MLX computes with a slow BLAS."""
    from ..student import blas

    if warning := blas.load().warning:
        click.echo(printable(f"warning: {warning}"), err=True)


def load_context(ctx: click.Context, recipe: Recipe, *, silent: bool = False, **label_options: Any) -> Context:
    """The context of a recipe, after its plugins' checks. `label_options` are those of `distillkit label`."""
    checked = load_plugins(ctx, tuple(recipe.plugins)).check(recipe)
    from ..core.console import Console, default_console
    from ..pipeline.context import Context
    from ..plugins.manager import current_plugins
    from ..student import blas

    console = Console() if silent else default_console()
    for warning in filter(None, [blas.load().warning, *current_plugins().warnings_for(checked)]):
        console.warn(warning)
    return Context(checked, current_plugins(), console, label_options)


def print_result(value: Any, as_json: bool, format_text: Callable[[Any], str]) -> None:
    """Print a value as JSON, or as the text that `format_text` makes of it. Control characters are removed."""
    output = escape_json(json.dumps(value, indent=2, ensure_ascii=False)) if as_json else printable(format_text(value))
    clear_live_line()
    click.echo(output, file=click.get_current_context().meta.get("out"))
