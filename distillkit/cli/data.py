"""`distillkit data`: looking at texts before a student does. Arguments in, messages out; the work is in data/."""

from __future__ import annotations

import click

from .common import json_option, load_context, load_recipe, print_result, set_option


@click.group()
def data() -> None:
    """Look at the text of a recipe before a student does."""


@data.command()
@click.argument("recipe")
@set_option
@click.option("--also", multiple=True, metavar="KIND", help="One more: gpt2, bpe:4096, a folder, a run.")
@click.option(
    "--megabytes",
    type=click.FloatRange(min=0.01),
    default=5.0,
    show_default=True,
    help="Of text, to train on and to measure on.",
)
@json_option
@click.pass_context
def tokenizers(
    ctx: click.Context, recipe: str, overrides: tuple[str, ...], also: tuple[str, ...], megabytes: float, as_json: bool
) -> None:
    """Compare tokenizers on the text of RECIPE: bytes a token, vocabulary used, seconds.

    Its own, both kinds that are trained here at the same size, and what --also names. More bytes a token make texts
    shorter; a bigger vocabulary makes the student's tables bigger.
    """
    context = load_context(ctx, load_recipe(recipe, overrides))
    from ..data.tokenizers import comparison as comparing

    tables = context.recipe.values()
    chosen = comparing.candidate_tables(tables["tokenizer"], also)
    found = comparing.compare_tokenizers(context.source, tables["data"], chosen, megabytes)
    print_result({"recipe": context.recipe.name, **found}, as_json, comparing.format_table)
