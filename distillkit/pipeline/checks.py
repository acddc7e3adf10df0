"""Checks of a context that need no corpus and cost nothing: made before a run starts or a teacher is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ..core.errors import DataError, UsageError
from ..plugins.interfaces import Judge
from ..recipe.recipe import JudgeTable, check_start_chain
from ..recipe.schedules import Schedule
from .context import Context, SoftTargetSource
from .teacher_calls import open_answer_store


def check(context: Context) -> None:
    """Refuse missing packages, unknown students, and settings that contradict the teacher."""
    _check_source_and_tokenizer(context)
    if context.recipe.starts_from_recipe:
        check_start_chain(context.recipe)
    elif context.recipe.student.from_:
        from ..student.trained import find_checkpoint

        find_checkpoint(context.recipe.student.from_)
    table = context.recipe.teacher
    if context.teacher is not None and table is not None:
        context.teacher.identity()
        check_soft_targets(context)
        if context.asks_teacher_in_steps and not context.teacher.reads:
            raise UsageError(
                f"the teacher {table.provider!r} cannot score given text, which teacher.on_policy needs "
                f"({context.recipe.file})",
                'Leave out teacher.on_policy, or choose a teacher that can: provider = "compatible", api = "plain".',
            )
        if table.system and not context.teacher.chats:
            raise UsageError(
                f"teacher.system: the teacher {table.provider!r} does not chat ({context.recipe.file})",
                "Leave it out, or choose a chat model.",
            )
        check_row_shares(context)


def check_row_shares(context: Context) -> None:
    """Refuse a share of a step's rows that rounds to no row: the teacher's answers would be paid for but not used."""
    table, rows = context.recipe.teacher, context.recipe.train.rows
    if table is None:
        return
    for key, share in {"share": table.share, "on_policy": table.on_policy}.items():
        if share and not round(share * rows):
            raise UsageError(
                f"teacher.{key} = {share} of {rows} rows per step rounds to 0 ({context.recipe.file})",
                "Raise it, raise train.batch_size, or leave it out.",
            )


def _check_source_and_tokenizer(context: Context) -> None:
    """Refuse a source or tokenizer whose package is missing. A corpus in the cache needs no source."""
    from ..data.tokenizer import check_installed

    check_installed(context.recipe.values()["tokenizer"])
    try:
        context.source.check()
    except DataError:
        if not context.has_cached_corpus:
            raise


def check_soft_targets(context: Context) -> None:
    """Refuse soft targets that would be wrong."""
    _check_sampled_targets(context)
    if context.soft_target_source in (SoftTargetSource.STEP, SoftTargetSource.STORE):
        check_teacher_context(context)


def _check_sampled_targets(context: Context) -> None:
    """Refuse sampled soft targets with a temperature: counts of samples drawn at temperature 1 cannot be softened."""
    temperature = getattr(context.mixer.options, "temperature", 1.0)
    temperatures = temperature.values if isinstance(temperature, Schedule) else (temperature,)
    table = context.recipe.teacher
    if table and table.store_samples and any(one != 1 for one in temperatures):
        raise UsageError(
            f"teacher.store_samples stores samples drawn at temperature 1, but mixer.temperature is not 1 "
            f"({context.recipe.file})",
            "Set mixer.temperature = 1.0, or leave out store_samples: stored top tokens can be softened.",
        )


def check_teacher_context(context: Context) -> None:
    """Refuse a teacher whose context is shorter than the student's: it has no logits for later positions."""
    teacher, of_student = context.teacher, context.student.context
    assert teacher is not None
    of_teacher = teacher.context
    if of_teacher is not None and of_teacher < of_student:
        raise UsageError(
            f"student.context = {of_student}, but the teacher's context is {of_teacher} tokens ({context.recipe.file})",
            f"Set student.context = {of_teacher}, or choose a teacher with a context of {of_student}.",
        )


# --------------------------------------------------------------------------------------- teachers that can be asked


def teacher_errors(context: Context, judging: bool = True) -> Iterator[UsageError]:
    """Why the teacher, or a judge's teacher, cannot be asked: for example a missing key. Sends no request."""
    checks: list[Callable[[], None]] = [partial(_check_teacher, context)]
    checks += [partial(check_judge_teacher, context, table, judge) for table, judge in context.judges() if judging]
    for one in checks:
        try:
            one()
        except UsageError as error:
            yield error


def _check_teacher(context: Context) -> None:
    table = context.recipe.teacher
    asks = table and (table.prompts or table.prompts_file or context.asks_teacher_in_steps)
    if context.teacher is not None and asks:
        context.teacher.check([])


def check_judge_teacher(context: Context, table: JudgeTable, judge: Judge) -> None:
    """Refuse a judge whose teacher cannot be asked, and name the judge."""
    found = context.judge_teacher(table, judge)
    try:
        if found is not None:
            found[0].check([])
    except UsageError as error:
        alternative = """Or leave out that judge: --set 'judge=[{name="perplexity"}]'"""
        message = f"{error.message}, which the judge {judge.name!r} asks"
        raise UsageError(message, f"{error.hint} {alternative}") from error


def check_keys(context: Context, judging: bool) -> None:
    """Refuse teachers that cannot be asked, if no answer at all is stored yet.

    If some answers are stored, they may be all that the run needs. That is known only once the corpus is read.
    """
    with open_answer_store() as store:
        if len(store):
            return
    for error in teacher_errors(context, judging):
        raise error
