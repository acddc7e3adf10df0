"""`distillkit judge`: judge a run, compare it with others, or test the judges themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.errors import UsageError
from ..core.run_folder import STAGES
from .common import device_option, json_option, load_context, load_recipe, print_result, set_option, yes_option
from .run_stages import confirm_costs, is_run, resume_run, start_run

if TYPE_CHECKING:
    from ..core.run_folder import Run
    from ..judging.anchors import AnchorResult

JUDGE_OVERRIDE = re.compile(r"\s*judge\.\d+\.(?!name\s*=)")  # an override that needs the judge to exist


@click.command()
@click.argument("where", metavar="[RECIPE|RUN]", default="latest")
@set_option
@click.option("--samples", type=click.IntRange(min=0), help="Number of samples that the student writes.")
@click.option(
    "--judge",
    "added_judges",
    multiple=True,
    metavar="NAME",
    help="Another judge, in addition to those of the recipe: rubric.",
)
@click.option("--against", multiple=True, metavar="RUN", help="Other runs, for judges that compare runs: pairwise.")
@click.option("--anchors", is_flag=True, help="Grade 20 stories of known quality instead, to test the judges.")
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Compare the judges' grades with human grades from a CSV file.",
)
@json_option
@device_option
@yes_option
@click.pass_context
def judge(
    ctx: click.Context,
    /,
    where: str,
    overrides: tuple[str, ...],
    samples: int | None,
    added_judges: tuple[str, ...],
    against: tuple[str, ...],
    anchors: bool,
    calibrate: Path | None,
    as_json: bool,
    yes: bool,
) -> None:
    """Write samples with the student, grade them, and write the report.

    A recipe's name means its newest run. A recipe without a run, or a path to a recipe, is run first. Existing samples
    are kept, and a judge is not asked twice for the same grade.
    """
    where = _newest_of(where)
    of_judging = {"--samples": samples is not None, "--against": bool(against)}
    if anchors:
        _refuse_unused(of_judging, "--anchors, which grades other stories than the student's")
    if calibrate is not None:
        asking = {**of_judging, "--judge": bool(added_judges), "--anchors": anchors, "--set": bool(overrides)}
        _refuse_unused(asking, "--calibrate, which asks no judge but reads the grades that are there")
        _calibrate(where, calibrate, as_json)
        return
    if samples is not None:
        overrides = (*overrides, f"sampling.count={samples}")
    overrides = _with_judges(where, overrides, added_judges)
    if anchors:
        _test_with_anchors(ctx, where, overrides, as_json, yes)
    elif is_run(where):
        if against:
            _require_comparing_judge(ctx, where, overrides)
        resume_run(ctx, where, overrides, ("judge", "report"), yes, _find_runs(against), as_json)
    else:
        if against:
            raise UsageError("--against compares a run with others", "Name a run: distillkit judge RUN --against OTHER")
        start_run(ctx, where, overrides, STAGES, yes, as_json)


def _newest_of(where: str) -> str:
    """The newest run of a recipe, bundled or not: judging should not train it again."""
    from ..core.run_folder import runs_of

    runs = [] if is_run(where) or "/" in where or where.endswith(".toml") else runs_of(where)
    return runs[-1].name if runs else where


def _recipe_file(where: str) -> str:
    """The recipe file of an argument: a run's own, or the argument itself."""
    from ..core.run_folder import find_run

    return str(find_run(where).recipe) if is_run(where) else where


def _refuse_unused(given: Mapping[str, bool], beside: str) -> None:
    """Refuse options that have no effect."""
    if unused := " and ".join(option for option, is_given in given.items() if is_given):
        raise UsageError(f"{unused} has no effect with {beside}", f"Leave out {unused}.")


def _require_comparing_judge(ctx: click.Context, where: str, overrides: tuple[str, ...]) -> None:
    """Refuse --against without a judge that compares runs."""
    judges = load_context(ctx, load_recipe(_recipe_file(where), overrides), silent=True).judges()
    if not any(judge.compares for _, judge in judges):
        raise UsageError("--against: no judge here compares runs", "Add one that does: --judge pairwise")


def _with_judges(where: str, overrides: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides, with judges added that the recipe does not have. Overrides of judges' keys come last."""
    if not names:
        return overrides
    of_judges = tuple(override for override in overrides if JUDGE_OVERRIDE.match(override))
    before = tuple(override for override in overrides if override not in of_judges)
    existing = [table.name for table in load_recipe(_recipe_file(where), before).judge]
    new = [name for name in dict.fromkeys(names) if name not in existing]
    return (*before, *(f"judge.{len(existing) + i}.name={name}" for i, name in enumerate(new)), *of_judges)


def _find_runs(specs: tuple[str, ...]) -> list[Run]:
    from ..core.run_folder import find_run

    return [find_run(spec) for spec in specs]


def _test_with_anchors(ctx: click.Context, where: str, overrides: tuple[str, ...], as_json: bool, yes: bool) -> None:
    """Test whether the judges of a recipe rank stories of known quality correctly."""
    from ..core.run_folder import find_run
    from ..judging import anchors
    from ..pipeline.costs import estimate_judge_calls
    from ..pipeline.judge import JudgeRunner
    from ..pipeline.judge_subject import NoStudentError, SubjectBuilder

    run = find_run(where) if is_run(where) else None
    context = load_context(ctx, load_recipe(_recipe_file(where), overrides))
    stories = [anchor.sample for anchor in anchors.load_anchors()]
    subject = SubjectBuilder(context, run).subject_without_student(stories, "anchors are graded")
    confirm_costs(context, None, estimate_judge_calls(context, subject, subject), yes)
    runner, orders, skipped, protocols = JudgeRunner(context, {}, lambda spent: None), list["AnchorResult"](), [], {}
    for table, one in context.judges():
        try:
            result = runner.run(table, one, subject)
        except NoStudentError:
            skipped.append(one.name)
            continue
        orders += anchors.correlate_with_quality(one.name, result.grades, one.lower_is_better)
        protocols[one.name] = result.protocol.hash
    rows = [order.to_json() for order in orders]
    if run:
        run.record(anchors={"protocols": protocols, "orders": rows})
    print_result(rows if as_json else orders, as_json, lambda results: anchors.format_results(results, skipped))


def _calibrate(where: str, file: Path, as_json: bool) -> None:
    """Print the agreement of a run's judges with human grades."""
    from ..core.run_folder import find_run
    from ..judging import calibration
    from ..reporting.run.report import read_grades

    run = find_run(where)
    if not (rows := read_grades(run)):
        raise UsageError(f"the run {run.name} has no grades", f"Judge it: distillkit judge {run.name} --judge rubric")
    results = calibration.compare_with_people(calibration.read_human_grades(file), calibration.scores_by_judge(rows))
    print_result([one.to_json() for one in results] if as_json else results, as_json, calibration.format_agreements)
