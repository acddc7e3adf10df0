"""`distillkit data`: inspect the text of a recipe."""

from __future__ import annotations

import click

from .common import json_option, load_context, load_recipe, print_result, set_option


@click.group()
def data() -> None:
    """Inspect the text of a recipe."""


@data.command()
@click.argument("recipe")
@set_option
@click.option("--also", multiple=True, metavar="KIND", help="Another tokenizer: gpt2, bpe:4096, a folder, a run.")
@click.option(
    "--megabytes",
    type=click.FloatRange(min=0.01),
    default=5.0,
    show_default=True,
    help="Size of the text for training, and for measuring.",
)
@json_option
@click.pass_context
def tokenizers(
    ctx: click.Context, recipe: str, overrides: tuple[str, ...], also: tuple[str, ...], megabytes: float, as_json: bool
) -> None:
    """Compare tokenizers on the text of RECIPE: bytes per token, vocabulary used, seconds.

    Compares the recipe's own tokenizer, both kinds that can be trained at the same size, and those of --also. More
    bytes per token make texts shorter; a larger vocabulary makes the student's embedding tables larger.
    """
    context = load_context(ctx, load_recipe(recipe, overrides))
    from ..data.tokenizers import comparison

    tables = context.recipe.values()
    chosen = comparison.candidate_tables(tables["tokenizer"], also)
    result = comparison.compare_tokenizers(context.source, tables["data"], chosen, megabytes)
    print_result({"recipe": context.recipe.name, **result}, as_json, comparison.format_table)
