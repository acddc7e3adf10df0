"""`distillkit import`: make a run of a student that was trained with other tools."""

from __future__ import annotations

from pathlib import Path

import click

from .common import json_option, load_plugins, load_recipe, print_result


@click.command(name="import")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", help="Name of the run. Default: the file's name.")
@click.option("--tokenizer", metavar="KIND", help="Tokenizer of the student: gpt2, a tiktoken name, a folder or a run.")
@click.option(
    "--ranks", type=click.Path(exists=True, dir_okay=False), help="File with the ranks of a tiktoken encoding."
)
@click.option("--heads", type=click.IntRange(min=1), help="Number of attention heads, if the file does not contain it.")
@click.option("--recipe", metavar="RECIPE", help="Recipe with the data and judges for judging it.")
@json_option
@click.pass_context
def import_(
    ctx: click.Context,
    /,
    path: Path,
    name: str | None,
    tokenizer: str | None,
    ranks: str | None,
    heads: int | None,
    recipe: str | None,
    as_json: bool,
) -> None:
    """Import a model that was trained with other tools, as a run.

    The run can be judged, benchmarked, compared, exported, or used as `student.from`.

    PATH is a nanoGPT-on-MLX checkpoint (.npz), a nanoGPT or gpt2-nano checkpoint (.pt), or a GPT-2 or Llama folder of
    transformers.
    """
    load_plugins(ctx)
    from ..pipeline import new_run
    from ..student.interchange import importing

    base = load_recipe(recipe, ()).values() if recipe else {}
    imported = importing.read_model(path, tokenizer, ranks, heads)
    metadata = {
        "started": new_run.timestamp(),
        "versions": new_run.package_versions(),
        "device": new_run.describe_device(),
    }
    run = importing.create_imported_run(imported, name or importing.default_run_name(path), base, metadata)
    lines = [
        f"{run.name} in {run.path}: {imported.metadata['parameters']['unique']:,} parameters, {imported.kind}",
        *(f"  {note}" for note in imported.notes),
        f'Judge it: distillkit judge {run.name}    Begin with it: student.from = "{run.name}"',
    ]
    facts = {"schema": 1, "run": run.name, "folder": str(run.path), **imported.metadata}
    print_result(facts, as_json, lambda _: "\n".join(lines))
