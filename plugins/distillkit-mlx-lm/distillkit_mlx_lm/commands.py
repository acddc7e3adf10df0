"""`distillkit mlx-lm tokenizer`: save a model's tokenizer in a folder that recipes can name."""

from __future__ import annotations

from pathlib import Path

import click

from distillkit import hookimpl


@click.group("mlx-lm")
def mlx_lm() -> None:
    """Work with models that mlx-lm can load."""


@mlx_lm.command()
@click.argument("model")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def tokenizer(model: str, folder: Path) -> None:
    """Write the tokenizer of MODEL to FOLDER, for students trained on its logits.

    MODEL is a folder or a name on the Hub. Use it in a recipe with tokenizer.kind = "FOLDER". Tokenizers that
    distillkit cannot represent are refused.
    """
    from . import MlxLm

    saved = MlxLm(MlxLm.Options.model_validate({"model": model})).tokenizer
    saved.save(folder)
    click.echo(f'{saved.vocab_size:,} tokens. In a recipe: tokenizer.kind = "{folder}"')


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add the command group `mlx-lm`."""
    cli.add_command(mlx_lm)
