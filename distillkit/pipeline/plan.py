"""Estimates what a run would take: teacher calls, memory, time. Spends nothing and fetches nothing.

If the corpus is not on this machine, only its budget is known. Time is estimated from the measured rate of one matrix
product. `costs` has the estimates for teachers and judges, `plan_text` prints a plan.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import ceil
from typing import Any

from ..core.run_folder import Run
from ..recipe.schema import TeacherTable
from .context import Context, SoftTargetSource
from .costs import estimate_judges, estimate_teacher
from .soft_targets import SoftTargets
from .teacher_requests import requests_or_placeholders

FLOAT_BYTES = 4
MAX_USEFUL_EPOCHS = 4  # more often seen, a student memorises its text
STEP_OVERHEAD = (1.3, 4.0)  # time of a step divided by the time of its matrix products: low and high


def build_plan(context: Context, run: Run | None = None) -> dict[str, Any]:
    """What a run would ask, use and take. With an existing run, samples that it has already written are counted."""
    from ..student.trained import parameter_counts

    sizes = parameter_counts(context.network)
    return {
        "schema": 1,
        "recipe": context.recipe.name,
        "student": {"arch": context.recipe.student.arch, "parameters": sizes},
        "begins_with": context.recipe.student.from_,
        "data": context.corpus.counts | {"here": True} if context.has_local_corpus else _remote_corpus(context),
        "teacher": estimate_teacher(context, run=run),
        "judging": estimate_judges(context, run),
        "training": (training := _training(context)),
        "memory_bytes": _memory(context, sizes["unique"]),
        "seconds": _seconds(context, sizes, training["tokens"]),
    }


def _remote_corpus(context: Context) -> dict[str, Any]:
    """What is known of a corpus that is not fetched yet: its budget."""
    table = context.recipe.data
    return {"here": False, "source": table.source, "train": {"documents": table.documents, "tokens": table.tokens}}


def warmup_warning(context: Context) -> str | None:
    """A warning if the warm-up is longer than the run, else None."""
    train = context.recipe.train
    if train.warmup <= train.steps:
        return None
    reached = train.learning_rate * train.steps / train.warmup
    return (
        f"train.warmup = {train.warmup:_} is longer than the run: the learning rate only reaches {reached:.2g} "
        f"of {train.learning_rate:.2g}; for a trial that learns: train.warmup = {train.steps // 10:_}"
    )


def _training(context: Context) -> dict[str, Any]:
    """Steps, tokens and epochs. Epochs count the corpus, or the teacher's text if it is seen more often."""
    tokens = _step_tokens(context)
    available = _corpus_tokens(context)
    epochs = None if available is None else round(_epochs(context, tokens, max(1, available)), 2)
    advice = suggest_settings(context, epochs) if epochs is not None and epochs > MAX_USEFUL_EPOCHS else None
    warnings = {"advice": advice, "warmup": warmup_warning(context)}
    return {"steps": context.recipe.train.steps, "tokens": tokens, "epochs": epochs, **warnings}


def _step_tokens(context: Context) -> int:
    """The tokens of all steps."""
    train = context.recipe.train
    return train.steps * train.batch_size * train.accumulate * context.student.context


def _corpus_tokens(context: Context) -> int | None:
    """The tokens of the corpus, or the budget of one that is not fetched yet, if it has one."""
    return context.corpus.train.tokens if context.has_local_corpus else context.recipe.data.tokens


def suggest_settings(context: Context, epochs: float) -> str:
    """The settings with which each token is seen `MAX_USEFUL_EPOCHS` times: more text, or fewer steps."""
    steps = max(1, int(context.recipe.train.steps * MAX_USEFUL_EPOCHS / epochs))
    more_text = " and ".join(_suggest_text(context, _step_tokens(context)))
    fewer_steps = f"train.steps = {steps:_} would be better"
    return f"{more_text} or {fewer_steps}" if more_text else fewer_steps


def _suggest_text(context: Context, tokens: int) -> Iterator[str]:
    """How much text that many tokens of training need: of the corpus, and of a teacher with its own share of rows."""
    teacher = context.recipe.teacher
    share = (teacher.share if teacher else None) or 0.0
    wanted, available = ceil(tokens * (1 - share) / MAX_USEFUL_EPOCHS), _corpus_tokens(context)
    if available is not None and wanted > available:
        yield f"data.tokens = {wanted:_}" if context.recipe.data.tokens else f"a corpus of {wanted:,} tokens"
    if teacher is not None and share:
        prompts = ceil(tokens * share / MAX_USEFUL_EPOCHS / teacher.repeats / _max_answer_tokens(teacher))
        if prompts > len(requests_or_placeholders(context)) // teacher.repeats:
            whole_file = teacher.prompts_file and not teacher.prompts
            more = f"{prompts:,} lines in teacher.prompts_file" if whole_file else f"teacher.prompts = {prompts:_}"
            yield f"at least {more}"  # most answers are shorter


def _max_answer_tokens(table: TeacherTable) -> float:
    return (table.prompt_tokens + table.max_tokens) * (1 - table.held_out)


def _epochs(context: Context, tokens: int, corpus: int) -> float:
    """How often the corpus is seen, or the teacher's text if that is more often."""
    table = context.recipe.teacher
    if table is None or not table.share:
        return tokens / corpus
    answers = len(requests_or_placeholders(context)) * _max_answer_tokens(table)
    return max(tokens * (1 - table.share) / corpus, tokens * table.share / answers if answers else 0.0)


def _memory(context: Context, parameters: int) -> int:
    """Bytes of weights, gradients, two moments, and the activations of one part of a batch. A rough estimate."""
    train = context.recipe.train
    rows = train.batch_size * context.student.context
    options = context.student.options.model_dump()
    width, layers = int(options.get("width", 0)), int(options.get("layers", 0))
    numbers = 4 * parameters + rows * width * layers * 24 + 3 * 2**21
    if context.uses_logits_in_steps:
        # The teacher's weights, its hidden states, and the logits of some rows.
        numbers += _teacher_parameters(SoftTargets(context).logits_teacher) + rows * width + 2**21
    return FLOAT_BYTES * numbers


def _seconds(context: Context, sizes: dict[str, int], tokens: int) -> dict[str, float]:
    """Low and high estimate of the training time: operations divided by the rate of a matrix product."""
    flops = 6.0 * sizes["unique"] * tokens
    if context.uses_logits_in_steps:
        flops += 2.0 * _teacher_parameters(SoftTargets(context).logits_teacher) * tokens
    elif context.soft_target_source == SoftTargetSource.STORE:
        flops += 2.0 * _teacher_parameters(SoftTargets(context).logits_teacher) * (_corpus_tokens(context) or 0)
    ideal = flops / _matmul_rate()
    return {"low": round(ideal * STEP_OVERHEAD[0], 1), "high": round(ideal * STEP_OVERHEAD[1], 1)}


def _teacher_parameters(teacher: Any) -> int:
    """The parameters of a local teacher; 0 if it has no network that can be counted."""
    from ..student.model.gpt import count_parameters

    trained = getattr(teacher, "trained", None)
    return 0 if trained is None else count_parameters(trained.model)


def _matmul_rate() -> float:
    """Floating-point operations per second of a matrix product of the size that training uses. The median of five."""
    import mlx.core as mx

    a, b = mx.ones((1024, 256)), mx.ones((256, 1024))
    mx.eval(a @ b)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        mx.eval(a @ b)
        times.append(time.perf_counter() - started)
    return 2 * 1024 * 256 * 1024 / sorted(times)[len(times) // 2]
