"""The teacher and judge calls of a run before it is made: how many, their tokens, cost and time, and the disk space.

Sends no request and fetches no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from ..core.records import Price, Request, Usage
from ..core.run_folder import STAGES, Run
from ..judging.protocol import RunSubject, planned_requests
from ..plugins.interfaces import Judge, Teacher
from ..recipe.schema import TeacherTable
from ..teachers.answers.disk import DiskAnswerStore, answer_key
from ..teachers.asking.counting import CHAT_TEMPLATE_TOKENS, max_usage, tokens_of
from ..teachers.asking.label import count_known, keyed_requests
from ..teachers.asking.scheduler import probe_key_fields
from .checks import check_judge_teacher
from .context import Context
from .judge_subject import SubjectBuilder
from .soft_targets import SoftTargets
from .teacher_calls import count_batched_requests, open_answer_store, request_policy
from .teacher_requests import requests_or_placeholders

MIN_ANSWER_SHARE = 0.2  # share of max_tokens that an answer has at least
MIN_GRADE_SHARE, USUAL_GRADE_SHARE = 0.1, 0.4  # the same for a judge's answer: at least, and usually
TOKENIZER_RATIO = (0.7, 1.5)  # teacher tokens per student token of the same text: low and high
TOKEN_COUNT_ERROR = (0.9, 1.25)  # true number of tokens divided by the estimate: low and high


def estimate_teacher(context: Context, stages: Sequence[str] = STAGES, run: Run | None = None) -> dict[str, Any] | None:
    """The calls to the teacher that stages need, how many answers are stored already, and what the others take.

    The label stage asks for answers. The train stage asks the teacher to score on-policy rows, in the steps that the
    run has not made yet.
    """
    if not {"label", "train"} & {*stages}:
        return None
    table, teacher = context.recipe.teacher, context.teacher
    if table is None or teacher is None:
        return None
    policy = request_policy(context, table)
    wanted = requests_or_placeholders(context) if "label" in stages else []
    requests = [request for request, _, _ in keyed_requests(teacher, wanted, policy.shard)]
    with open_answer_store() as store:
        cached = count_known(teacher, requests, store, policy)
    submitted = count_batched_requests(teacher, requests, policy) if policy.batch else 0
    calls = len(requests) - cached - submitted
    share = calls / max(1, len(requests))  # an average over all requests, whichever of them are stored
    read = share * sum(max_usage(request).prompt_tokens - CHAT_TEMPLATE_TOKENS for request in requests)
    template = CHAT_TEMPLATE_TOKENS * calls if teacher.chats else 0
    tokens = {
        "input": {"low": round(read / 6), "high": round(read / 2 + template)},
        "output": {"low": round(calls * table.max_tokens * MIN_ANSWER_SHARE), "high": calls * table.max_tokens},
    }
    scored = _on_policy_rows(context, stages, run)
    for end, factor in zip(("low", "high"), TOKENIZER_RATIO, strict=True):
        tokens["input"][end] += round(factor * scored["tokens"])
    price = policy.price_of(teacher)
    return {
        "provider": table.provider,
        "prompts": len(requests),
        "cached": cached,
        "sent_off": submitted,
        "calls": calls,
        "most_tokens": calls * table.max_tokens,
        "tokens": tokens,
        "price": None if price is None else {"input": price.input, "output": price.output},
        "usd": None if price is None else {end: _usd(price, tokens, end) for end in ("low", "high")},
        "seconds": _seconds_at_limits(policy.rate_limits, calls, tokens),
        "disk_bytes": calls * (1000 + table.max_tokens * (5 + 30 * table.top_logprobs)),
        "online": context.uses_logits_in_steps,
        "judged": scored,
        "soft": SoftTargets(context).estimate(len(requests)) if context.has_local_corpus else None,
    }


def remaining_steps(context: Context, run: Run | None) -> int:
    """The steps that a run still has to make; all steps for a new run."""
    from ..student.checkpoint import last_step

    return max(0, context.recipe.train.steps - (last_step(run.checkpoints) if run else 0))


def _on_policy_rows(context: Context, stages: Sequence[str], run: Run | None) -> dict[str, int]:
    """The rows written by the student that the teacher scores during training, and their tokens."""
    train, table = context.recipe.train, context.recipe.teacher
    if table is None or not context.asks_teacher_in_steps or "train" not in stages:
        return {"rows": 0, "tokens": 0}
    rows = remaining_steps(context, run) * round((table.on_policy or 0) * train.batch_size * train.accumulate)
    return {"rows": rows, "tokens": rows * context.student.context}


def estimate_judges(context: Context, run: Run | None = None, compared_runs: Sequence[Run] = ()) -> dict[str, Any]:
    """The judges' calls. Counted from the samples of a run; samples that do not exist yet are assumed to be long."""
    builder = SubjectBuilder(context, run)
    longest, empty = (builder.placeholder_subject(compared_runs, long) for long in (True, False))
    judges = estimate_judge_calls(context, longest, empty)
    return {"samples": len(longest.samples), "missing": builder.missing, "judges": judges}


def estimate_judge_calls(context: Context, longest: RunSubject, empty: RunSubject) -> list[dict[str, Any]]:
    """For each judge that asks a teacher: its calls, between those for the longest and for empty samples."""
    found = ((judge, context.judge_teacher(table, judge)) for table, judge in context.judges())
    return [_estimate_judge(context, judge, *pair, longest, empty) for judge, pair in found if pair is not None]


def _estimate_judge(
    context: Context, judge: Judge, teacher: Teacher, table: TeacherTable, longest: RunSubject, empty: RunSubject
) -> dict[str, Any]:
    policy = request_policy(context, table, shard=None, batch=False)
    requests = planned_requests(judge, longest)
    with open_answer_store() as store:
        due, short = (_not_stored(teacher, some, store) for some in (requests, planned_requests(judge, empty)))
        probes = _count_probes(teacher, requests, store) if due else 0
    # For empty samples a judge may ask nothing, or more.
    least, read = sorted(sum(tokens_of(teacher, request) for request in some) for some in (short, due))
    fewest, most = sorted(sum(request.max_tokens for request in some) for some in (short, due))
    attempts = 1 + judge.asks_again
    low, high = TOKEN_COUNT_ERROR
    tokens = {
        "input": {"low": round(least * low), "expected": read, "high": round(read * high)},
        "output": {"low": round(fewest * MIN_GRADE_SHARE), "expected": round(most * USUAL_GRADE_SHARE), "high": most},
    }
    worst = {direction: {**ends, "high": attempts * ends["high"]} for direction, ends in tokens.items()}
    price = policy.price_of(teacher)
    return {
        "judge": judge.name,
        "provider": teacher.name,
        "model": getattr(teacher.options, "model", None),
        "prompts": len(requests),
        "cached": len(requests) - len(due),
        "calls": len(due),
        "most_calls": attempts * len(due),
        "probes": probes,
        "tokens": tokens,
        "price": None if price is None else {"input": price.input, "output": price.output},
        "usd": None if price is None else {end: _usd(price, worst, end) for end in ("low", "expected", "high")},
        "seconds": _seconds_at_limits(policy.rate_limits, len(due), tokens),
    }


def _not_stored(teacher: Teacher, requests: list[Request], store: DiskAnswerStore) -> list[Request]:
    """The requests whose answers are not stored yet."""
    return [request for request, key, _ in keyed_requests(teacher, requests) if key not in store]


def _count_probes(teacher: Teacher, requests: list[Request], store: DiskAnswerStore) -> int:
    """How many capabilities of an endpoint have to be probed first, with a call or two each."""
    return sum(answer_key(probe_key_fields(teacher, need)) not in store for need in teacher.needs(requests))


def _usd(price: Price, tokens: dict[str, dict[str, int]], end: str) -> float:
    return round(price.of(Usage(tokens["input"][end], tokens["output"][end])), 6)


def _seconds_at_limits(
    limits: dict[tuple[str, float], float], calls: int, tokens: dict[str, dict[str, int]]
) -> float | None:
    """The minimum time within the rate limits of the recipe. None without limits."""
    amounts = {"requests": calls, "tokens": tokens["input"]["low"] + tokens["output"]["low"]}
    return max((round(amounts[kind] / limit * span, 1) for (kind, span), limit in limits.items()), default=None)


# --------------------------------------------------------------------------------------------- before money is spent


def describe_teacher_cost(context: Context, estimate: dict[str, Any] | None) -> str | None:
    """What the teacher's calls may cost, as a sentence; None if nothing. Refuses a teacher that cannot be asked."""
    teacher = context.teacher
    if teacher is None or not estimate or not (calls := estimate["calls"] + estimate["judged"]["rows"]):
        return None
    request_policy(context, cast(TeacherTable, context.recipe.teacher)).budget(teacher)
    teacher.check(requests_or_placeholders(context))
    subject = f"{calls} calls to {estimate['provider']} may cost"
    if estimate["usd"] is None:
        return f"{subject} money; how much is unknown without teacher.price" if teacher.paid else None
    low, high = estimate["usd"]["low"], estimate["usd"]["high"]
    return f"{subject} ${low:,.4f} to ${high:,.4f}" if high else None


def describe_judge_costs(context: Context, estimates: Sequence[dict[str, Any]]) -> str | None:
    """What the judges' calls may cost, as a sentence; None if nothing. Refuses a teacher that cannot be asked."""
    judges = {judge.name: (table, judge) for table, judge in context.judges()}
    sentences = []
    for row in estimates:
        teacher, table = cast(tuple[Teacher, TeacherTable], context.judge_teacher(*judges[row["judge"]]))
        if not row["calls"]:
            continue
        request_policy(context, table, shard=None, batch=False).budget(teacher)
        check_judge_teacher(context, *judges[row["judge"]])
        subject = f"{row['calls']} calls of the judge {row['judge']} to {row['provider']} may cost"
        if row["usd"] is None and teacher.paid:
            sentences.append(f"{subject} money; how much is unknown without judge.teacher.price")
        elif row["usd"] and row["usd"]["high"]:
            sentences.append(f"{subject} ${row['usd']['low']:,.4f} to ${row['usd']['high']:,.4f}")
    return "; ".join(sentences) or None
