"""`distillkit init`: write a first recipe."""

from __future__ import annotations

from pathlib import Path

import click

from ..core.errors import UsageError


@click.command()
@click.argument("name", default="my_recipe")
def init(name: str) -> None:
    """Write a first recipe, NAME.toml, into the current folder."""
    from ..recipe.recipe import starter_recipe

    path = Path(f"{name.removesuffix('.toml')}.toml")
    if path.exists():
        raise UsageError(f"{path} already exists", "Choose another name: distillkit init NAME")
    text = starter_recipe(path.stem)
    from ..core.files import write_text

    write_text(path, text)
    click.echo(f"Wrote {path}. Edit it, then: distillkit run {path}")
