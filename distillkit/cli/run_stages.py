"""How `run`, `label`, `train` and `judge` start a run or go on with one.

Arguments in, messages out: what a stage does is the pipeline's work, and what it would cost is the plan's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..core.errors import UsageError
from ..core.run_folder import STAGES, Run
from ..core.text import printable
from .common import agree, load_context, recipe_of, show

if TYPE_CHECKING:
    from ..pipeline.context import Context
    from ..recipe.recipe import Recipe
    from ..student.training.distributed import ProcessGroup


def run_stage(
    ctx: click.Context, stage: str, where: str, overrides: tuple[str, ...], yes: bool, **label_options: Any
) -> None:
    """One stage of a run that is there, or a new run up to it. Batches are collected by the run that sent them off."""
    if is_run(where) or (label_options.get("batch") and _was_stopped(where, overrides)):
        go_on(ctx, where, overrides, (stage,), yes, **label_options)
    else:
        begin(ctx, where, overrides, STAGES[: STAGES.index(stage) + 1], yes, **label_options)


def _was_stopped(where: str, overrides: tuple[str, ...]) -> bool:
    """Whether the newest run of a recipe stopped at a limit, to be gone on with."""
    from ..core.run_folder import runs_of

    return any(run.info.get("status") == "stopped" for run in runs_of(recipe_of(where, overrides).name)[-1:])


def begin(
    ctx: click.Context,
    recipe: str,
    overrides: tuple[str, ...],
    stages: tuple[str, ...],
    yes: bool,
    as_json: bool = False,
    **label_options: Any,
) -> None:
    """A new run, from its first stage; before it, where it must be, a run of the recipe that it begins with."""
    group = _process_group()
    with group.barrier():
        chosen = recipe_of(recipe, overrides)
    if "train" in stages and chosen.begins_with_recipe:
        # What it asks and costs is settled before another run is made for it, which may take hours.
        with group.barrier():
            if group.is_main:
                context = load_context(ctx, chosen, **label_options)
                _must_be_possible(context, stages)
                _settle(context, stages, yes)
        chosen = _started(ctx, chosen, overrides, yes, group)
        yes = True  # to what it asks, which came first
    with group.barrier():
        context = load_context(ctx, chosen, silent=not group.is_main, **label_options)
    run = group.run_on_main(lambda: str(_new_run(context, stages, yes).path))
    _finish(context, run, stages, group, as_json=as_json)


def _started(ctx: click.Context, recipe: Recipe, overrides: tuple[str, ...], yes: bool, group: ProcessGroup) -> Recipe:
    """The recipe, beginning with a run in place of a recipe: one that fits, or else one that is made now."""
    from ..pipeline import base_run
    from ..recipe.recipe import must_begin

    if not recipe.begins_with_recipe:
        return recipe
    must_begin(recipe)
    down = base_run.passed_down(overrides)
    with group.barrier():
        other = base_run.recipe_for(recipe, down)
        base_run.refuse_other_tokens(recipe, other)
    other = _started(ctx, other, down, yes, group)
    with group.barrier():
        context = load_context(ctx, other, silent=not group.is_main)
    trained, begun = group.run_on_main(lambda: base_run.runs_that_fit(context.recipe))
    if trained is None:
        trained = group.run_on_main(lambda: _first_run(recipe.name, begun, context, yes))
        _finish(context, trained, STAGES, group)
    return recipe.replacing({base_run.FROM: Run(Path(trained)).name})


def _first_run(wanted_by: str, begun: str | None, context: Context, yes: bool) -> str:
    """The folder of a run that another one begins with, if the user agrees: to what is left of it, or to a new one."""
    from ..pipeline import base_run
    from ..pipeline.plan import build_plan
    from ..pipeline.plan_text import format_summary

    if begun:
        _settle(context, STAGES, yes, Run(Path(begun)))
        return begun
    other = context.recipe
    foreseen = build_plan(context)
    asking = f"{wanted_by} begins with the student of {other.name}, which is trained first:\n{format_summary(foreseen)}"
    there = base_run.others(other)
    instead = (
        f" There is {there[-1]}, trained otherwise; to begin with it: --set student.from={there[-1]}" if there else ""
    )
    agree(
        f"{asking}\n{instead.strip()}\nGo on?",
        yes,
        without_terminal=UsageError(asking, f"Say --yes, or make it now: distillkit run {other.file}.{instead}"),
        declined=UsageError("nothing was begun", "Begin with another student: --set student.from=RUN"),
    )
    return str(_new_run(context, STAGES, yes).path)


def _new_run(context: Context, stages: tuple[str, ...], yes: bool) -> Run:
    """The folder of a new run, once it is sure that it can be run."""
    from ..pipeline.new_run import create_run
    from ..pipeline.plan import build_plan
    from ..pipeline.plan_text import format_summary

    context.console.print(f"distillkit {__version__}: {context.recipe.name}")
    _must_be_possible(context, stages)
    foreseen = build_plan(context)
    context.console.print(format_summary(foreseen))
    _settle(context, stages, yes)
    return create_run(context, foreseen)


def _must_be_possible(context: Context, stages: tuple[str, ...]) -> None:
    """Refuse early what a run would fail at: parts that are missing, folders that cannot be written to, keys."""
    from ..pipeline import checks

    checks.check(context)
    _writable()
    checks.check_keys(context, "judge" in stages)


def _settle(
    context: Context, stages: tuple[str, ...], yes: bool, run: Run | None = None, others: Sequence[Run] = ()
) -> None:
    """Count what stages would ask, of a new run or of what is left of one, and have the user agree to what it costs."""

    from ..pipeline.costs import estimate_judges, estimate_teacher, remaining_steps

    teaching = estimate_teacher(context, stages, run)
    writes_anew = "train" in stages and remaining_steps(context, run) > 0
    of = None if writes_anew else run
    judges = estimate_judges(context, of, others)["judges"] if "judge" in stages else []
    agreed(context, teaching, judges, yes)


def go_on(
    ctx: click.Context,
    where: str,
    overrides: tuple[str, ...],
    stages: tuple[str, ...],
    yes: bool,
    others: Sequence[Run] = (),
    as_json: bool = False,
    **label_options: Any,
) -> None:
    """The stages of a run that is there already, with its own recipe or a newer version of it."""
    from ..pipeline import base_run

    group = _process_group()
    run, recipe = group.run_on_main(lambda: _former_run(where, overrides))
    with group.barrier():
        chosen = recipe_of(recipe, overrides)
    if "train" in stages and chosen.begins_with_recipe:
        begun = group.run_on_main(lambda: base_run.recorded(Run(Path(run))))
        again = chosen.replacing({base_run.FROM: begun}) if begun else None
        chosen = again or _started(ctx, chosen, overrides, yes, group)
    with group.barrier():
        context = load_context(ctx, chosen, silent=not group.is_main, **label_options)
        if group.is_main:
            _settle(context, stages, yes, Run(Path(run)), others)
    _finish(context, run, stages, group, others, as_json)


def _former_run(where: str, overrides: tuple[str, ...]) -> tuple[str, str]:
    """The folder of the run that is meant, and the recipe that it goes on with."""
    from ..core import run_folder

    run = run_folder.find(where) if is_run(where) else run_folder.newest(recipe_of(where, overrides).name)
    _writable()
    return str(run.path), str(run.recipe) if is_run(where) else where


def _process_group() -> ProcessGroup:
    """The processes of this run: more than one under `mlx.launch` or MPI."""
    from ..student import blas
    from ..student.training.distributed import init_process_group

    blas.require_mlx()
    return init_process_group()


def agreed(context: Context, teaching: dict[str, Any] | None, judges: Sequence[dict[str, Any]], yes: bool) -> None:
    """Before money is spent: is there a key, and does the user agree? Without a terminal only --yes does."""

    from ..pipeline.costs import describe_judge_costs, describe_teacher_cost

    told = [describe_teacher_cost(context, teaching), describe_judge_costs(context, judges)]
    if asking := "; ".join(words for words in told if words):
        agree(
            f"{asking}. Go on?",
            yes,
            without_terminal=UsageError(asking, "Say --yes if that is all right; teacher.max_usd sets a limit."),
            declined=UsageError("nothing was asked", "A limit can be set: teacher.max_usd."),
        )


def _finish(
    context: Context,
    folder: str,
    stages: tuple[str, ...],
    group: ProcessGroup,
    others: Sequence[Run] = (),
    as_json: bool = False,
) -> None:
    from ..pipeline.pipeline import Pipeline

    run = Run(Path(folder))
    context.console.print(f"Run {run.name} in {run.path}")
    Pipeline(context, run, group, others).execute(stages)
    if not group.is_main:
        return
    if stages[-1] == "report":
        from ..reporting.run.report import build_report
        from ..reporting.run.text import format_report

        show(build_report(run), as_json, format_report)
        if not as_json:
            click.echo(printable(f"The whole report: {run.path / 'report.html'}"))
    elif shard := context.label_options.get("shard"):
        bring = "distillkit cache export FILE here, distillkit cache import FILE there"
        context.console.print(f"Done with share {shard[0]}/{shard[1]}. Bring the shares together: {bring}.")
    else:
        context.console.print(f"Done up to {stages[-1]}. Go on: distillkit run {run.path} --resume")


def is_run(where: str) -> bool:
    """Whether a word means a run: `latest`, a folder of one, recipe/number, or a name that no recipe has."""
    from ..core.run_folder import reports_folder, runs_of
    from ..recipe.recipe import bundled

    if where == "latest" or (Path(where) / "run.json").is_file():
        return True
    if "/" in where:
        return Run(reports_folder() / where).info != {}
    return not Path(where).exists() and where not in bundled() and bool(runs_of(where))


def _writable() -> None:
    """Refuse early when nothing can be kept."""
    from ..core.run_folder import cache_folder, reports_folder

    for folder in (cache_folder(), reports_folder()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder} cannot be made: {error.strerror}", _ELSEWHERE) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"{folder} cannot be written to", _ELSEWHERE)


_ELSEWHERE = "Set DISTILLKIT_HOME to a folder of yours."
