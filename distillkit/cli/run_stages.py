"""Starting and resuming runs, for the commands run, label, train and judge.

Also asks the user before money is spent. What a stage does is in `pipeline`.
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
from .common import confirm, load_context, load_recipe, print_result

if TYPE_CHECKING:
    from ..pipeline.context import Context
    from ..recipe.recipe import Recipe
    from ..student.training.distributed import ProcessGroup


def run_stage(
    ctx: click.Context, stage: str, where: str, overrides: tuple[str, ...], yes: bool, **label_options: Any
) -> None:
    """Run one stage of an existing run, or a new run up to that stage.

    With --batch, a recipe's newest run is resumed if it stopped: a batch is collected by the run that submitted it.
    """
    if is_run(where) or (label_options.get("batch") and _newest_is_stopped(where, overrides)):
        resume_run(ctx, where, overrides, (stage,), yes, **label_options)
    else:
        start_run(ctx, where, overrides, STAGES[: STAGES.index(stage) + 1], yes, **label_options)


def _newest_is_stopped(where: str, overrides: tuple[str, ...]) -> bool:
    """Whether the newest run of a recipe stopped at a limit or for a batch."""
    from ..core.run_folder import runs_of

    return any(run.info.get("status") == "stopped" for run in runs_of(load_recipe(where, overrides).name)[-1:])


def is_run(where: str) -> bool:
    """Whether an argument names a run: `latest`, a run folder, recipe/number, or a name that no recipe has."""
    from ..core.run_folder import reports_folder, runs_of
    from ..recipe.recipe import bundled_recipes

    if where == "latest" or (Path(where) / "run.json").is_file():
        return True
    if "/" in where:
        return Run(reports_folder() / where).info != {}
    return not Path(where).exists() and where not in bundled_recipes() and bool(runs_of(where))


# ------------------------------------------------------------------------------------------------- a new run


def start_run(
    ctx: click.Context,
    where: str,
    overrides: tuple[str, ...],
    stages: tuple[str, ...],
    yes: bool,
    as_json: bool = False,
    **label_options: Any,
) -> None:
    """Run stages of a recipe in a new run. If the recipe begins with another recipe, a run of that one comes first."""
    group = _process_group()
    with group.barrier():
        recipe = load_recipe(where, overrides)
    if "train" in stages and recipe.starts_from_recipe:
        # Check it and confirm its costs before the other run is made, which may take hours.
        with group.barrier():
            if group.is_main:
                context = load_context(ctx, recipe, **label_options)
                _check(context, stages)
                _confirm_stage_costs(context, stages, yes)
        recipe = _with_base_run(ctx, recipe, overrides, yes, group)
        yes = True  # its costs were confirmed above
    with group.barrier():
        context = load_context(ctx, recipe, silent=not group.is_main, **label_options)
    run = group.run_on_main(lambda: str(_new_run(context, stages, yes).path))
    _execute(context, run, stages, group, as_json=as_json)


def _new_run(context: Context, stages: tuple[str, ...], yes: bool) -> Run:
    """A new run folder, after checks and confirmation."""
    from ..pipeline.new_run import create_run
    from ..pipeline.plan import build_plan
    from ..pipeline.plan_text import format_summary

    context.console.print(f"distillkit {__version__}: {context.recipe.name}")
    _check(context, stages)
    plan = build_plan(context)
    context.console.print(format_summary(plan))
    _confirm_stage_costs(context, stages, yes)
    return create_run(context, plan)


def _check(context: Context, stages: tuple[str, ...]) -> None:
    """Refuse early what a run would fail at: missing packages, folders that cannot be written to, missing keys."""
    from ..pipeline import checks

    checks.check(context)
    _check_folders()
    checks.check_keys(context, "judge" in stages)


# ----------------------------------------------------------------------------- a recipe that begins with another


def _with_base_run(
    ctx: click.Context, recipe: Recipe, overrides: tuple[str, ...], yes: bool, group: ProcessGroup
) -> Recipe:
    """The recipe, beginning with a run instead of a recipe: an existing run that fits, or one that is made now."""
    from ..pipeline import base_run
    from ..recipe.recipe import check_start_chain

    if not recipe.starts_from_recipe:
        return recipe
    check_start_chain(recipe)
    inherited = base_run.inherited_overrides(overrides)
    with group.barrier():
        base = base_run.base_recipe(recipe, inherited)
        base_run.check_same_tokenizer(recipe, base)
    base = _with_base_run(ctx, base, inherited, yes, group)
    with group.barrier():
        context = load_context(ctx, base, silent=not group.is_main)
    trained, unfinished = group.run_on_main(lambda: base_run.matching_runs(context.recipe))
    if trained is None:
        trained = group.run_on_main(lambda: _confirm_base_run(recipe.name, unfinished, context, yes))
        _execute(context, trained, STAGES, group)
    return recipe.with_values({base_run.FROM: Run(Path(trained)).name})


def _confirm_base_run(recipe_name: str, unfinished: str | None, context: Context, yes: bool) -> str:
    """The folder of the run to train first, if the user agrees: an unfinished run, or a new one."""
    from ..pipeline import base_run
    from ..pipeline.plan import build_plan
    from ..pipeline.plan_text import format_summary

    if unfinished:
        _confirm_stage_costs(context, STAGES, yes, Run(Path(unfinished)))
        return unfinished
    base = context.recipe
    summary = format_summary(build_plan(context))
    message = f"{recipe_name} begins with the student of {base.name}, which is trained first:\n{summary}"
    others = base_run.other_trained_runs(base)
    hint = (
        f" There is {others[-1]}, trained with other settings; to begin with it: --set student.from={others[-1]}"
        if others
        else ""
    )
    confirm(
        f"{message}\n{hint.strip()}\nContinue?",
        yes,
        without_terminal=UsageError(message, f"Add --yes, or train it now: distillkit run {base.file}.{hint}"),
        declined=UsageError("no run was started", "Begin with another student: --set student.from=RUN"),
    )
    return str(_new_run(context, STAGES, yes).path)


# ------------------------------------------------------------------------------------------------- an existing run


def resume_run(
    ctx: click.Context,
    where: str,
    overrides: tuple[str, ...],
    stages: tuple[str, ...],
    yes: bool,
    compared_runs: Sequence[Run] = (),
    as_json: bool = False,
    **label_options: Any,
) -> None:
    """Run stages of an existing run, with its own recipe or with a newer version of it."""
    from ..pipeline import base_run

    group = _process_group()
    run, recipe_file = group.run_on_main(lambda: _find_run(where, overrides))
    with group.barrier():
        recipe = load_recipe(recipe_file, overrides)
    if "train" in stages and recipe.starts_from_recipe:
        base = group.run_on_main(lambda: base_run.recorded_base(Run(Path(run))))
        recorded = recipe.with_values({base_run.FROM: base}) if base else None
        recipe = recorded or _with_base_run(ctx, recipe, overrides, yes, group)
    with group.barrier():
        context = load_context(ctx, recipe, silent=not group.is_main, **label_options)
        if group.is_main:
            _confirm_stage_costs(context, stages, yes, Run(Path(run)), compared_runs)
    _execute(context, run, stages, group, compared_runs, as_json)


def _find_run(where: str, overrides: tuple[str, ...]) -> tuple[str, str]:
    """The folder of a run, and its recipe file: a run's own, or the recipe that was named."""
    from ..core import run_folder

    run = run_folder.find_run(where) if is_run(where) else run_folder.newest_run(load_recipe(where, overrides).name)
    _check_folders()
    return str(run.path), str(run.recipe) if is_run(where) else where


# ------------------------------------------------------------------------------------------------- both


def _process_group() -> ProcessGroup:
    """The processes of this run: more than one under `mlx.launch` or MPI."""
    from ..student import blas
    from ..student.training.distributed import init_process_group

    blas.require_mlx()
    return init_process_group()


def _confirm_stage_costs(
    context: Context, stages: tuple[str, ...], yes: bool, run: Run | None = None, compared_runs: Sequence[Run] = ()
) -> None:
    """Estimate the calls that stages still need, and let the user confirm their cost."""
    from ..pipeline.costs import estimate_judges, estimate_teacher, remaining_steps

    teacher = estimate_teacher(context, stages, run)
    changes_weights = "train" in stages and remaining_steps(context, run) > 0
    sampled_run = None if changes_weights else run  # new weights write new samples
    judges = estimate_judges(context, sampled_run, compared_runs)["judges"] if "judge" in stages else []
    confirm_costs(context, teacher, judges, yes)


def confirm_costs(
    context: Context, teacher: dict[str, Any] | None, judges: Sequence[dict[str, Any]], yes: bool
) -> None:
    """Let the user confirm the cost of calls. Refuses teachers without a key; without a terminal needs --yes."""
    from ..pipeline.costs import describe_judge_costs, describe_teacher_cost

    costs = [describe_teacher_cost(context, teacher), describe_judge_costs(context, judges)]
    if message := "; ".join(cost for cost in costs if cost):
        confirm(
            f"{message}. Continue?",
            yes,
            without_terminal=UsageError(message, "Add --yes to accept this; teacher.max_usd sets a limit."),
            declined=UsageError("no request was sent", "To set a limit: teacher.max_usd."),
        )


def _execute(
    context: Context,
    folder: str,
    stages: tuple[str, ...],
    group: ProcessGroup,
    compared_runs: Sequence[Run] = (),
    as_json: bool = False,
) -> None:
    """Run the stages, then print the report or how to continue."""
    from ..pipeline.pipeline import Pipeline

    run = Run(Path(folder))
    context.console.print(f"Run {run.name} in {run.path}")
    Pipeline(context, run, group, compared_runs).execute(stages)
    if not group.is_main:
        return
    if stages[-1] == "report":
        from ..reporting.run.report import build_report
        from ..reporting.run.text import format_report

        print_result(build_report(run), as_json, format_report)
        if not as_json:
            click.echo(printable(f"Full report: {run.path / 'report.html'}"))
    elif shard := context.label_options.get("shard"):
        merge = "distillkit cache export FILE here, distillkit cache import FILE there"
        context.console.print(f"Finished shard {shard[0]}/{shard[1]}. Merge the shards: {merge}.")
    else:
        context.console.print(f"Finished the stage {stages[-1]}. Continue: distillkit run {run.path} --resume")


def _check_folders() -> None:
    """Refuse early if results cannot be stored."""
    from ..core.run_folder import cache_folder, reports_folder

    for folder in (cache_folder(), reports_folder()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder} cannot be created: {error.strerror}", _SET_HOME) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"{folder} cannot be written to", _SET_HOME)


_SET_HOME = "Set DISTILLKIT_HOME to a folder that you can write to."
