"""How a run asks a teacher: with which policy, from which answer store, one by one or through the Batch API.

Used for the teacher of a recipe and for those of its judges. Does not know what is asked (`teacher_requests`) or what
the answers are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, cast

from ..core.console import Console
from ..core.records import Answer, Price, Request
from ..core.run_folder import cache_folder
from ..plugins.interfaces import Teacher
from ..recipe.schema import TeacherTable
from ..teachers.answers.disk import DiskAnswerStore
from ..teachers.asking.label import LabelResult, answer_keys, known_answers, label
from ..teachers.asking.policy import RequestPolicy
from .context import Context
from .teacher_requests import teacher_requests


def open_answer_store() -> DiskAnswerStore:
    """The store of all teachers' answers."""
    return DiskAnswerStore(cache_folder() / "teachers")


def request_policy(context: Context, table: TeacherTable, **overrides: Any) -> RequestPolicy:
    """The policy for asking a teacher: from its table, the options of the command line, and `overrides`."""
    same = {field.name for field in fields(RequestPolicy)} & set(TeacherTable.model_fields) - {"price"}
    price = Price(table.price.input, table.price.output) if table.price else None
    values = {name: getattr(table, name) for name in same}
    return RequestPolicy(**values, price=price, **{**context.label_options, **overrides})


def ask(
    context: Context,
    teacher: Teacher,
    requests: list[Request],
    policy: RequestPolicy,
    done: LabelResult | None = None,
    console: Console | None = None,
) -> LabelResult:
    """The answers to all requests, from the store or from the teacher. `done` is filled even if an error ends it."""
    from ..teachers.asking import batch_state
    from ..teachers.asking.batch_api import label_in_batches

    console = console or context.console
    with open_answer_store() as store:
        if policy.batch:
            return label_in_batches(
                teacher, requests, store, _batch_folder(), policy=policy, console=console, result=done
            )
        check = partial(batch_state.refuse_batched, _batch_folder(), store)
        return label(teacher, requests, store, policy=policy, console=console, result=done, check=check)


def refuse_batched_requests(context: Context) -> None:
    """Refuse to ask one by one what is in a batch already: it would be paid for twice."""
    from ..teachers.asking import batch_state

    if context.teacher is None or context.label_options.get("batch") or not batch_state.load_all(_batch_folder()):
        return
    with open_answer_store() as store:
        keys = answer_keys(context.teacher, teacher_requests(context), context.label_options.get("shard"))
        batch_state.refuse_batched(_batch_folder(), store, keys)


def count_batched_requests(teacher: Teacher, requests: list[Request], policy: RequestPolicy) -> int:
    """How many requests are in a batch that is not collected yet, so that they need not be paid for again."""
    from ..teachers.asking import batch_state

    keys = answer_keys(teacher, requests)
    found = batch_state.keys_in_batches(_batch_folder(), keys, batch_state.SUBMITTED_STATES)
    with open_answer_store() as store:
        return len(found.keys() - known_answers(store, found, policy).keys())


def answers_since(teacher: Teacher, requests: list[Request], moment: float) -> list[Answer]:
    """The answers to requests that were stored since a moment, except those whose cost is still to be counted."""
    from ..teachers.asking import batch_state

    keys = set(answer_keys(teacher, requests)) - batch_state.unbilled_keys(_batch_folder())
    with open_answer_store() as store:
        return list(store.get_many(store.since(keys, moment)).values())


def add_spending(
    context: Context, teacher: Teacher, answers: list[Answer], spent: Mapping[str, float]
) -> dict[str, float]:
    """`spent` plus what these answers of the recipe's teacher cost, were requested and had in tokens."""
    price = request_policy(context, cast(TeacherTable, context.recipe.teacher)).price_of(teacher)
    usages = [answer.usage for answer in answers if answer.usage]
    added = {
        "usd": sum(price.of(usage) for usage in usages) if price else 0.0,
        "requests": len(answers),
        "tokens": sum(usage.prompt_tokens + usage.completion_tokens for usage in usages),
    }
    return {name: spent.get(name, 0) + amount for name, amount in added.items()}


def _batch_folder() -> Path:
    """Where the state of submitted batches is stored."""
    return cache_folder() / "batches"
