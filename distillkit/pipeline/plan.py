"""The same run, counted instead of done: calls, memory, time. Spends nothing, fetches nothing, asks nobody.

Of a corpus that is not here yet only the budget is known.
Time is an estimate from the rate of one matrix product, measured now; it says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any, cast

from ..core.console import format_duration
from ..core.records import Price, Request, Usage
from ..core.run_folder import STAGES, Run
from ..judging.protocol import RunSubject, planned_requests
from ..plugins.interfaces import Judge, Teacher
from ..recipe.recipe import names_recipe
from ..recipe.schema import TeacherTable
from ..teachers.answers.disk import DiskAnswerStore, answer_key
from ..teachers.asking.counting import CHAT_TEMPLATE_TOKENS, max_usage, tokens_of
from ..teachers.asking.label import count_known, keyed_requests
from ..teachers.asking.scheduler import probe_key_fields
from .checks import check_judge_teacher
from .context import Context, SoftTargetSource
from .judge_subject import SubjectBuilder
from .soft_targets import SoftTargets
from .teacher_calls import count_batched_requests, open_answer_store, request_policy
from .teacher_requests import requests_or_placeholders

FLOAT = 4
FREE = {"input": 0.0, "output": 0.0}
LEAST_WRITTEN = 0.2  # of what an answer may be long
LEAST_GRADED, GRADED = 0.1, 0.4  # the same of a judge's answer, and how long it usually is
MISREAD = (0.7, 1.5)  # of a text's tokens by the student's tokenizer, how many the teacher may count
MISCOUNTED = (0.9, 1.25)  # an estimate of tokens is between these shares of the truth
MANY_EPOCHS = 4
OVERHEAD = (1.3, 4.0)  # how much longer a step takes than its matrix products alone, at best and at worst


def foresee(context: Context, run: Run | None = None) -> dict[str, Any]:
    """What a run of these parts would ask, use and take; one that is there already has written some samples."""
    from ..student.trained import parameter_counts

    sizes = parameter_counts(context.network)
    return {
        "schema": 1,
        "recipe": context.recipe.name,
        "student": {"arch": context.recipe.student.arch, "parameters": sizes},
        "begins_with": context.recipe.student.from_,
        "data": context.corpus.counts | {"here": True} if context.has_local_corpus else _awaited(context),
        "teacher": teaching(context, run=run),
        "judging": judging(context, run),
        "training": (training := _training(context)),
        "memory_bytes": _memory(context, sizes["unique"]),
        "seconds": _seconds(context, sizes, training["tokens"]),
    }


def _awaited(context: Context) -> dict[str, Any]:
    """What is known of a corpus that is to be fetched: how much of it is wanted."""
    table = context.recipe.data
    return {"here": False, "source": table.source, "train": {"documents": table.documents, "tokens": table.tokens}}


def teaching(context: Context, stages: Sequence[str] = STAGES, run: Run | None = None) -> dict[str, Any] | None:
    """How many answers are wanted, how many of them are known already, and what the others would take.

    Answers are wanted by the stage that labels; what is judged in the steps that a run has not made, by the one that
    trains.
    """
    if not {"label", "train"} & {*stages}:
        return None
    table, teacher = context.recipe.teacher, context.teacher
    if table is None or teacher is None:
        return None
    policy = request_policy(context, table)
    wanted = requests_or_placeholders(context) if "label" in stages else []
    requests = [request for request, _, _ in keyed_requests(teacher, wanted, policy.shard)]
    with open_answer_store() as cache:
        cached = count_known(teacher, requests, cache, policy)
    sent_off = count_batched_requests(teacher, requests, policy) if policy.batch else 0
    calls = len(requests) - cached - sent_off
    share = calls / max(1, len(requests))  # which of them are known matters less than how many
    read = share * sum(max_usage(request).prompt_tokens - CHAT_TEMPLATE_TOKENS for request in requests)
    tokens = {
        "input": {
            "low": round(read / 6),
            "high": round(read / 2 + (CHAT_TEMPLATE_TOKENS * calls if teacher.chats else 0)),
        },
        "output": {"low": round(calls * table.max_tokens * LEAST_WRITTEN), "high": calls * table.max_tokens},
    }
    judged = _judged_in_steps(context, stages, run)
    for end, factor in zip(("low", "high"), MISREAD, strict=True):
        tokens["input"][end] += round(factor * judged["tokens"])
    price = policy.price_of(teacher)
    return {
        "provider": table.provider,
        "prompts": len(requests),
        "cached": cached,
        "sent_off": sent_off,
        "calls": calls,
        "most_tokens": calls * table.max_tokens,
        "tokens": tokens,
        "price": None if price is None else {"input": price.input, "output": price.output},
        "usd": None if price is None else {end: _cost(price, tokens, end) for end in ("low", "high")},
        "seconds": _at_limits(policy.rate_limits, calls, tokens),
        "disk_bytes": calls * (1000 + table.max_tokens * (5 + 30 * table.top_logprobs)),
        "online": context.uses_logits_in_steps,
        "judged": judged,
        "soft": SoftTargets(context).estimate(len(requests)) if context.has_local_corpus else None,
    }


def steps_left(context: Context, run: Run | None) -> int:
    """How many steps a run still has to make; a new one, all of them."""
    from ..student.checkpoint import last_step

    return max(0, context.recipe.train.steps - (last_step(run.checkpoints) if run else 0))


def _judged_in_steps(context: Context, stages: Sequence[str], run: Run | None) -> dict[str, int]:
    """How many rows of the student's own a teacher is asked to read while it learns, and their tokens."""
    train, table = context.recipe.train, context.recipe.teacher
    if table is None or not context.asks_teacher_in_steps or "train" not in stages:
        return {"rows": 0, "tokens": 0}
    rows = steps_left(context, run) * round((table.on_policy or 0) * train.batch_size * train.accumulate)
    return {"rows": rows, "tokens": rows * context.student.context}


def judging(context: Context, run: Run | None = None, others: Sequence[Run] = ()) -> dict[str, Any]:
    """What the judges of a run would ask: exactly of samples that are written, else as if they were long."""
    subjects = SubjectBuilder(context, run)
    wordy, bare = (subjects.imagined(others, wordy) for wordy in (True, False))
    return {"samples": len(wordy.samples), "missing": subjects.missing, "judges": asked_by_judges(context, wordy, bare)}


def asked_by_judges(context: Context, wordy: RunSubject, bare: RunSubject) -> list[dict[str, Any]]:
    """For each judge that asks a teacher: how much, over samples that are long and over those that are short."""
    found = ((judge, context.judge_teacher(table, judge)) for table, judge in context.judges())
    return [_asked_by(context, judge, *whom, wordy, bare) for judge, whom in found if whom is not None]


def _asked_by(
    context: Context, judge: Judge, teacher: Teacher, table: TeacherTable, wordy: RunSubject, bare: RunSubject
) -> dict[str, Any]:
    policy = request_policy(context, table, shard=None, batch=False)
    requests = planned_requests(judge, wordy)
    with open_answer_store() as cache:
        due, short = (_unknown(teacher, of, cache) for of in (requests, planned_requests(judge, bare)))
        probes = _to_find_out(teacher, requests, cache) if due else 0
    # Of samples without a word a judge may ask nothing, or more.
    least, read = sorted(sum(tokens_of(teacher, request) for request in of) for of in (short, due))
    fewest, most = sorted(sum(request.max_tokens for request in of) for of in (short, due))
    times = 1 + judge.asks_again
    tokens = {
        "input": {"low": round(least * MISCOUNTED[0]), "expected": read, "high": round(read * MISCOUNTED[1])},
        "output": {"low": round(fewest * LEAST_GRADED), "expected": round(most * GRADED), "high": most},
    }
    worst = {way: {**ends, "high": times * ends["high"]} for way, ends in tokens.items()}
    price = policy.price_of(teacher)
    return {
        "judge": judge.name,
        "provider": teacher.name,
        "model": getattr(teacher.options, "model", None),
        "prompts": len(requests),
        "cached": len(requests) - len(due),
        "calls": len(due),
        "most_calls": times * len(due),
        "probes": probes,
        "tokens": tokens,
        "price": None if price is None else {"input": price.input, "output": price.output},
        "usd": None if price is None else {end: _cost(price, worst, end) for end in ("low", "expected", "high")},
        "seconds": _at_limits(policy.rate_limits, len(due), tokens),
    }


def _unknown(teacher: Teacher, requests: list[Request], cache: DiskAnswerStore) -> list[Request]:
    """The requests whose answers are still to come."""
    return [request for request, key, _ in keyed_requests(teacher, requests) if key not in cache]


def _to_find_out(teacher: Teacher, requests: list[Request], cache: DiskAnswerStore) -> int:
    """How many things must be found out about an endpoint first, a call or two each."""
    return sum(answer_key(probe_key_fields(teacher, need)) not in cache for need in teacher.needs(requests))


def _cost(price: Price, tokens: dict[str, dict[str, int]], end: str) -> float:
    return round(price.of(Usage(tokens["input"][end], tokens["output"][end])), 6)


def _at_limits(given: dict[tuple[str, float], float], calls: int, tokens: dict[str, dict[str, int]]) -> float | None:
    """The least time at the limits that the recipe sets; None when it sets none."""
    amounts = {"requests": calls, "tokens": tokens["input"]["low"] + tokens["output"]["low"]}
    return max((round(amounts[of] / limit * span, 1) for (of, span), limit in given.items()), default=None)


def spending(context: Context, teaching: dict[str, Any] | None) -> str | None:
    """What the calls of a plan may cost, in words; None when they cost nothing. Refuses what cannot be asked."""
    teacher = context.teacher
    if teacher is None or not teaching or not (calls := teaching["calls"] + teaching["judged"]["rows"]):
        return None
    request_policy(context, cast(TeacherTable, context.recipe.teacher)).budget(teacher)
    teacher.check(requests_or_placeholders(context))
    asking = f"{calls} calls to {teaching['provider']} may cost"
    if teaching["usd"] is None:
        return f"{asking} money; how much is unknown without teacher.price" if teacher.paid else None
    low, high = teaching["usd"]["low"], teaching["usd"]["high"]
    return f"{asking} ${low:,.4f} to ${high:,.4f}" if high else None


def judges_spending(context: Context, asked: Sequence[dict[str, Any]]) -> str | None:
    """What judges' calls may cost, in words; None when they cost nothing. Refuses what cannot be asked."""
    judges = {judge.name: (table, judge) for table, judge in context.judges()}
    told = []
    for row in asked:
        teacher, table = cast(tuple[Teacher, TeacherTable], context.judge_teacher(*judges[row["judge"]]))
        if not row["calls"]:
            continue
        request_policy(context, table, shard=None, batch=False).budget(teacher)
        check_judge_teacher(context, *judges[row["judge"]])
        asking = f"{row['calls']} calls of the judge {row['judge']} to {row['provider']} may cost"
        if row["usd"] is None and teacher.paid:
            told.append(f"{asking} money; how much is unknown without judge.teacher.price")
        elif row["usd"] and row["usd"]["high"]:
            told.append(f"{asking} ${row['usd']['low']:,.4f} to ${row['usd']['high']:,.4f}")
    return "; ".join(told) or None


def slow_start(context: Context) -> str | None:
    """What is to be said of a warm-up that never ends; None when all is well."""
    train = context.recipe.train
    if train.warmup <= train.steps:
        return None
    reached = train.learning_rate * train.steps / train.warmup
    return (
        f"train.warmup = {train.warmup:_} is longer than the run: the learning rate only gets to {reached:.2g} "
        f"of {train.learning_rate:.2g}; for a trial that learns: train.warmup = {train.steps // 10:_}"
    )


def _training(context: Context) -> dict[str, Any]:
    """Steps and tokens; epochs count the corpus, and what the teacher will write if it has a share of its own."""
    train, context_length = context.recipe.train, context.student.context
    tokens = train.steps * train.batch_size * train.accumulate * context_length
    there = _to_read(context)
    epochs = None if there is None else round(_times_read(context, tokens, max(1, there)), 2)
    told = {"advice": _advice(context, epochs), "warmup": slow_start(context)}
    return {"steps": train.steps, "tokens": tokens, "epochs": epochs, **told}


def _to_read(context: Context) -> int | None:
    """How many tokens there are to train on; of a corpus that is not here, how many are wanted."""
    return context.corpus.train.tokens if context.has_local_corpus else context.recipe.data.tokens


def _advice(context: Context, epochs: float | None) -> str | None:
    """What would be better than to read the same text so often; None when all is well."""
    return better(context, epochs) if epochs is not None and epochs > MANY_EPOCHS else None


def better(context: Context, epochs: float) -> str:
    """The settings with which each token is seen as often as it is still worth it: more text, or fewer steps."""
    train, context_length = context.recipe.train, context.student.context
    tokens = train.steps * train.batch_size * train.accumulate * context_length
    steps = max(1, int(train.steps * MANY_EPOCHS / epochs))
    more = " and ".join(_more_text(context, tokens))
    return f"{more} or train.steps = {steps:_} would be better" if more else f"train.steps = {steps:_} would be better"


def _more_text(context: Context, tokens: int) -> Iterator[str]:
    """How much text it would take to read so many tokens: of the corpus, and of a teacher with a share of its own."""
    teacher = context.recipe.teacher
    share = (teacher.share if teacher else None) or 0.0
    wanted, there = ceil(tokens * (1 - share) / MANY_EPOCHS), _to_read(context)
    if there is not None and wanted > there:
        yield f"data.tokens = {wanted:_}" if context.recipe.data.tokens else f"a corpus of {wanted:,} tokens"
    if teacher is not None and share:
        prompts = ceil(tokens * share / MANY_EPOCHS / teacher.repeats / _most_of_an_answer(teacher))
        if prompts > len(requests_or_placeholders(context)) // teacher.repeats:
            whole_file = teacher.prompts_file and not teacher.prompts
            more = f"{prompts:,} lines in teacher.prompts_file" if whole_file else f"teacher.prompts = {prompts:_}"
            yield f"at least {more}"  # most answers are shorter


def _most_of_an_answer(table: TeacherTable) -> float:
    return (table.prompt_tokens + table.max_tokens) * (1 - table.held_out)


def _times_read(context: Context, tokens: int, corpus: int) -> float:
    """How often the corpus is seen, or at least the teacher's text, whichever is more."""
    table = context.recipe.teacher
    if table is None or not table.share:
        return tokens / corpus
    most = len(requests_or_placeholders(context)) * _most_of_an_answer(table)
    return max(tokens * (1 - table.share) / corpus, tokens * table.share / most if most else 0.0)


def _memory(context: Context, parameters: int) -> int:
    """Weights, gradients and two moments, and the activations of one part of a batch; a rough sum of what MLX holds."""
    train, context_length = context.recipe.train, context.student.context
    rows = train.batch_size * context_length
    options = context.student.options.model_dump()
    width, layers = int(options.get("width", 0)), int(options.get("layers", 0))
    numbers = 4 * parameters + rows * width * layers * 24 + 3 * 2**21
    if context.uses_logits_in_steps:
        numbers += _size(SoftTargets(context).logits_teacher) + rows * width + 2**21
    return FLOAT * numbers


def _seconds(context: Context, sizes: dict[str, int], tokens: int) -> dict[str, float]:
    """Low and high, from the arithmetic of training and the rate of a matrix product here and now."""
    flops = 6.0 * sizes["unique"] * tokens
    if context.uses_logits_in_steps:
        flops += 2.0 * _size(SoftTargets(context).logits_teacher) * tokens
    elif context.soft_target_source == SoftTargetSource.STORE:
        flops += 2.0 * _size(SoftTargets(context).logits_teacher) * (_to_read(context) or 0)
    ideal = flops / _matmul_rate()
    return {"low": round(ideal * OVERHEAD[0], 1), "high": round(ideal * OVERHEAD[1], 1)}


def _size(teacher: Any) -> int:
    """The parameters of a local teacher, if it has a network that can be counted."""
    from ..student.model.gpt import count_parameters

    trained = getattr(teacher, "trained", None)
    return 0 if trained is None else count_parameters(trained.model)


def _matmul_rate() -> float:
    """Floating-point operations a second of a product of the size that training uses."""
    import mlx.core as mx

    a, b = mx.ones((1024, 256)), mx.ones((256, 1024))
    mx.eval(a @ b)
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        mx.eval(a @ b)
        times.append(time.perf_counter() - begun)
    return 2 * 1024 * 256 * 1024 / sorted(times)[len(times) // 2]


def brief(foreseen: dict[str, Any]) -> str:
    """The plan in a line or two, for the beginning of a run."""
    teacher, training = foreseen["teacher"], foreseen["training"]
    asked = ""
    if teacher:
        rows = teacher["judged"]["rows"]
        cost = f"; cost: {_cost_of(teacher)}" if (teacher["calls"] or rows) and teacher["price"] != FREE else ""
        known_already = f"{teacher['cached']} {_known_already(teacher)}"
        judged = f", {rows:,} rows are judged in the steps" if rows else ""
        asked = f"  {teacher['calls']} calls to {teacher['provider']}, {known_already}{judged}{cost}\n"
    asked += "".join(
        f"  {row['calls']} calls of the judge {row['judge']} to {row['provider']}"
        f"{'' if row['price'] == FREE else f'; cost: {_cost_of(row)}'}\n"
        for row in foreseen["judging"]["judges"]
        if row["calls"]
    )
    low, high = (format_duration(foreseen["seconds"][end]) for end in ("low", "high"))
    return (
        f"{asked}  {foreseen['student']['parameters']['unique']:,} parameters, {training['steps']:,} steps, "
        f"{training['tokens']:,} tokens ({_epochs_of(training)}), about {low} to {high} of training"
    )


def _known_already(teacher: dict[str, Any]) -> str:
    """Which answers need not be asked for: those that are there, and those that are still to come."""
    sent_off = f", {teacher['sent_off']} are in batches" if teacher["sent_off"] else ""
    return f"answers are known already{sent_off}"


def _judge_rows(judging: dict[str, Any]) -> list[tuple[str, str]]:
    """A line or two a judge that asks somebody."""
    rows = []
    for row in judging["judges"]:
        known_already = f"{row['cached']} of {row['prompts']} answers are known already"
        again = f", at most {row['most_calls']} if answers are unusable" if row["most_calls"] > row["calls"] else ""
        first = f", and {row['probes']} to find out what the endpoint takes" if row["probes"] else ""
        whom = f"{row['provider']} {row['model'] or ''}".strip()
        rows.append((row["judge"], f"{row['calls']} calls to {whom} ({known_already}){again}{first}"))
        if row["calls"]:
            tokens = f"about {row['tokens']['input']['expected']:,} tokens in"
            written = f"{row['tokens']['output']['low']:,} to {row['tokens']['output']['high']:,} out"
            rows.append(("", f"{tokens}, {written}; {_cost_of(row).replace('teacher.', 'judge.teacher.')}"))
    if rows and judging["missing"]:
        rows.append(("", f"{judging['missing']} samples are not written yet: their words are an estimate"))
    return rows


def _epochs_of(training: dict[str, Any]) -> str:
    return "epochs unknown" if training["epochs"] is None else f"{training['epochs']} epochs"


def _reading(training: dict[str, Any]) -> list[tuple[str, str]]:
    """How much is read, and what to do where that is too often."""
    rows = [("training", f"{training['steps']:,} steps, {training['tokens']:,} tokens, {_epochs_of(training)}")]
    if training["advice"]:
        rows.append(("warning", f"too often: from about {MANY_EPOCHS} on a student learns by heart;"))
        rows.append(("", f"{training['advice']} (or student.dropout, and look at the validation loss)"))
    if training["warmup"]:
        rows.append(("warning", training["warmup"]))
    return rows


def _text_of(data: dict[str, Any]) -> list[tuple[str, str]]:
    """The corpus, or what is wanted of one that is still to be fetched."""
    train = data["train"]
    if not data["here"]:
        counts = [f"{train[key]:,} {key}" for key in ("documents", "tokens") if train[key]]
        wanted = " or ".join(counts) or "all that there is"
        return [("text", f"{wanted} to train on, still to be fetched by the source {data['source']!r}")]
    return [(key, f"{train[key]:,} to train on, {data['held_out'][key]:,} held out") for key in ("documents", "tokens")]


def _asking(teacher: dict[str, Any]) -> list[tuple[str, str]]:
    """What the calls would take: tokens, money, time, disk."""
    if not teacher["calls"] and not teacher["judged"]["rows"]:
        return []
    tokens = [f"{teacher['tokens'][way]['low']:,} to {teacher['tokens'][way]['high']:,}" for way in ("input", "output")]
    rows = [("asked", f"{tokens[0]} tokens in, {tokens[1]} out, about {teacher['disk_bytes'] / 2**20:,.1f} MiB")]
    if judged := teacher["judged"]["rows"]:
        rows.insert(0, ("judged", f"{judged:,} rows that the student writes, each by a call or more in its step"))
    rows.append(("cost", _cost_of(teacher)))
    if teacher["seconds"] is not None:
        rows.append(("waiting", f"at least {format_duration(teacher['seconds'])}, by the limits of the recipe"))
    return rows


def _stored(soft: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What the soft targets that are kept would take."""
    if soft is None:
        return []
    each = f"{soft['positions']:,} of at most {soft['bytes_a_position']} bytes each"
    return [("soft targets", f"about {soft['bytes'] / 2**20:,.1f} MiB: {each}")]


def _cost_of(teacher: dict[str, Any]) -> str:
    """What the calls cost, low and high."""
    usd = teacher["usd"]
    if usd is None:
        return "unknown: set teacher.price"
    ends = f"${usd['low']:,.4f} to ${usd['high']:,.4f}"
    return f"about ${usd['expected']:,.4f} ({ends})" if "expected" in usd else ends


def text(foreseen: dict[str, Any]) -> str:
    """The plan for a reader."""
    sizes, teacher, seconds = foreseen["student"]["parameters"], foreseen["teacher"], foreseen["seconds"]
    rows = [("parameters", f"{sizes['total']:,} total, {sizes['unique']:,} unique")]
    if begins := foreseen["begins_with"]:
        first = f", run first (distillkit plan {begins})" if names_recipe(begins) else ""
        rows.append(("begins with", f"the student of {begins}{first}"))
    rows += _text_of(foreseen["data"])
    if teacher:
        in_steps = teacher["online"] or teacher["judged"]["rows"]
        rows += [
            ("teacher", f"{teacher['provider']}, {'in every step' if in_steps else 'before training'}"),
            (
                "calls",
                f"{teacher['calls']} ({teacher['cached']} of {teacher['prompts']} {_known_already(teacher)})",
            ),
            *_asking(teacher),
            *_stored(teacher["soft"]),
        ]
    rows += _judge_rows(foreseen["judging"])
    seconds = foreseen["seconds"]
    rows += [
        *_reading(foreseen["training"]),
        ("memory", f"about {foreseen['memory_bytes'] / 2**20:,.0f} MiB"),
        (
            "time",
            f"about {format_duration(seconds['low'])} to {format_duration(seconds['high'])} of training "
            "(by the rate of a matrix product)",
        ),
    ]
    return "\n".join(f"{name:<12} {value}" for name, value in rows)
