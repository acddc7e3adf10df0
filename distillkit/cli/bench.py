"""`distillkit bench`: measure the speed of a student on this machine."""

from __future__ import annotations

import click

from .common import device_option, json_option, load_context, load_recipe, print_result


@click.command()
@click.argument("where", metavar="[RUN]", default="latest")
@click.option(
    "--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Batches to measure of each kind."
)
@click.option("--batch", type=click.IntRange(min=1), help="Rows per batch. Default: the recipe's train.batch_size.")
@device_option
@json_option
@click.pass_context
def bench(ctx: click.Context, where: str, steps: int, batch: int | None, as_json: bool) -> None:
    """Measure the speed and memory of a student on this machine.

    Forward passes, training steps and generation, with random tokens. Does not change the run."""
    from ..core import run_folder as runs

    run = runs.find_run(where)
    context = load_context(ctx, load_recipe(str(run.recipe), (f"train.batch_size={batch}",) if batch else ()))
    from ..pipeline.bench import measure  # after load_context, which loads the fast BLAS before MLX
    from ..pipeline.bench_text import format_benchmark

    print_result(measure(context, run, steps), as_json, format_benchmark)
