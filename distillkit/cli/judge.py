"""`distillkit judge`: a run is judged again, against others, or its judges are put to the test themselves.

Arguments in, messages out: what judges say is theirs, what it costs is the plan's.
"""

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

OF_A_JUDGE = re.compile(r"\s*judge\.\d+\.(?!name\s*=)")  # an override that needs the judge to be there


@click.command()
@click.argument("where", metavar="[RECIPE|RUN]", default="latest")
@set_option
@click.option("--samples", type=click.IntRange(min=0), help="How many samples the student writes.")
@click.option("--judge", "more", multiple=True, metavar="NAME", help="A judge beside those of the recipe: rubric.")
@click.option("--against", multiple=True, metavar="RUN", help="Further runs, for judges that compare: pairwise.")
@click.option(
    "--anchors", is_flag=True, help="Grade 20 stories of known quality instead, to see whether judges can tell."
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Set a CSV of people's grades beside the judges'.",
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
    more: tuple[str, ...],
    against: tuple[str, ...],
    anchors: bool,
    calibrate: Path | None,
    as_json: bool,
    yes: bool,
) -> None:
    """Let the student write, grade it, and report.

    A name means its newest run; a recipe that has none, or a path to one, is run first. Samples that are written
    already are kept, and no judge is asked twice for the same.
    """
    where = _newest_of(where)
    of_judging = {"--samples": samples is not None, "--against": bool(against)}
    if anchors:
        _leave_out(of_judging, "--anchors, which grades other stories than the student's")
    if calibrate is not None:
        asking = {**of_judging, "--judge": bool(more), "--anchors": anchors, "--set": bool(overrides)}
        _leave_out(asking, "--calibrate, which asks no judge but reads the grades that are there")
        _calibrate(where, calibrate, as_json)
        return
    if samples is not None:
        overrides = (*overrides, f"sampling.count={samples}")
    overrides = _with_judges(where, overrides, more)
    if anchors:
        _anchors(ctx, where, overrides, as_json, yes)
    elif is_run(where):
        if against:
            _must_compare(ctx, where, overrides)
        resume_run(ctx, where, overrides, ("judge", "report"), yes, _others(against), as_json)
    else:
        if against:
            raise UsageError("--against sets a run against others", "Name a run: distillkit judge RUN --against OTHER")
        start_run(ctx, where, overrides, STAGES, yes, as_json)


def _newest_of(where: str) -> str:
    """The newest run of a name: also of a bundled recipe's, which nobody means to train again to have it judged."""
    from ..core.run_folder import runs_of

    begun = [] if is_run(where) or "/" in where or where.endswith(".toml") else runs_of(where)
    return begun[-1].name if begun else where


def _recipe_file(where: str) -> str:
    """The recipe that a word means: a run's own, or the word itself."""
    from ..core.run_folder import find_run

    return str(find_run(where).recipe) if is_run(where) else where


def _leave_out(given: Mapping[str, bool], beside: str) -> None:
    """Refuse options that would do nothing."""
    if unused := " and ".join(option for option, there in given.items() if there):
        raise UsageError(f"{unused} would do nothing beside {beside}", f"Leave out {unused}.")


def _must_compare(ctx: click.Context, where: str, overrides: tuple[str, ...]) -> None:
    """Refuse further runs that no judge would look at."""
    judges = load_context(ctx, load_recipe(_recipe_file(where), overrides), silent=True).judges()
    if not any(judge.compares for _, judge in judges):
        raise UsageError("--against: no judge here compares runs", "Add one that does: --judge pairwise")


def _with_judges(where: str, overrides: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """Judges that the command line adds, where the recipe does not have them; what is set of a judge comes after."""
    if not names:
        return overrides
    of_judges = tuple(override for override in overrides if OF_A_JUDGE.match(override))
    before = tuple(override for override in overrides if override not in of_judges)
    there = [table.name for table in load_recipe(_recipe_file(where), before).judge]
    new = [name for name in dict.fromkeys(names) if name not in there]
    return (*before, *(f"judge.{len(there) + i}.name={name}" for i, name in enumerate(new)), *of_judges)


def _others(specs: tuple[str, ...]) -> list[Run]:
    from ..core.run_folder import find_run

    return [find_run(spec) for spec in specs]


def _anchors(ctx: click.Context, where: str, overrides: tuple[str, ...], as_json: bool, yes: bool) -> None:
    """Whether the judges of a recipe tell good stories from bad ones."""
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
    runner, orders, silent, protocols = JudgeRunner(context, {}, lambda spent: None), list["AnchorResult"](), [], {}
    for table, one in context.judges():
        try:
            result = runner.run(table, one, subject)
        except NoStudentError:
            silent.append(one.name)
            continue
        orders += anchors.correlate_with_quality(one.name, result.grades, one.lower_is_better)
        protocols[one.name] = result.protocol.hash
    rows = [order.to_json() for order in orders]
    if run:
        run.record(anchors={"protocols": protocols, "orders": rows})
    print_result(rows if as_json else orders, as_json, lambda found: anchors.format_results(found, silent))


def _calibrate(where: str, file: Path, as_json: bool) -> None:
    """How well the judges of a run agree with people."""
    from ..core.run_folder import find_run
    from ..judging import calibration
    from ..reporting.run.report import read_grades

    run = find_run(where)
    if not (rows := read_grades(run)):
        raise UsageError(f"the run {run.name} has no grades", f"Judge it: distillkit judge {run.name} --judge rubric")
    found = calibration.compare_with_people(calibration.read_human_grades(file), calibration.scores_by_judge(rows))
    print_result([one.to_json() for one in found] if as_json else found, as_json, calibration.format_agreements)
