"""`distillkit mlx-lm tokenizer`: a model's tokenizer as a folder that recipes can name."""

from __future__ import annotations

from pathlib import Path

import click

from distillkit import hookimpl


@click.group("mlx-lm")
def mlx_lm() -> None:
    """Models that mlx-lm can load."""


@mlx_lm.command()
@click.argument("model")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def tokenizer(model: str, folder: Path) -> None:
    """Write the tokenizer of MODEL to FOLDER, for students that learn from its logits.

    MODEL is a folder or a name on the hub. A recipe then says tokenizer.kind = "FOLDER". A tokenizer that cannot be
    said in distillkit's terms is refused.
    """
    from . import MlxLm

    found = MlxLm(MlxLm.Options.model_validate({"model": model})).tokenizer
    found.save(folder)
    click.echo(f'{found.vocab_size:,} tokens. In a recipe: tokenizer.kind = "{folder}"')


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add it."""
    cli.add_command(mlx_lm)
