"""`distillkit recipe`: check a recipe, show it, or print the schema of all."""

from __future__ import annotations

import json

import click

from ..core.text import printable
from .common import load_context, load_plugins, load_recipe, set_option


@click.group()
def recipe() -> None:
    """Check a recipe, show it resolved, or print the schema of all recipes."""


@recipe.command()
@click.argument("name", metavar="RECIPE")
@set_option
@click.pass_context
def check(ctx: click.Context, name: str, overrides: tuple[str, ...]) -> None:
    """Check whether a recipe can be run. Spends nothing."""
    from ..pipeline import checks

    context = load_context(ctx, load_recipe(name, overrides))
    checks.check(context)
    for error in checks.teacher_errors(context):
        context.console.warn(f"{error.message}: only answers in the cache can be used. {error.hint}")
    click.echo(f"{context.recipe.file} is valid.")


@recipe.command("show")
@click.argument("name", metavar="RECIPE")
@set_option
def show(name: str, overrides: tuple[str, ...]) -> None:
    """Print a recipe with all inherited values and defaults."""
    click.echo(printable(load_recipe(name, overrides).to_toml()), nl=False)


@recipe.command()
@click.pass_context
def schema(ctx: click.Context) -> None:
    """Print the JSON Schema of recipes, with the options of all plugins."""
    click.echo(json.dumps(load_plugins(ctx).schema(), indent=2))
