"""A plan as text: a table for `distillkit plan`, and a summary of a few lines for the start of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.console import format_duration
from ..recipe.recipe import refers_to_recipe
from .plan import MAX_USEFUL_EPOCHS

FREE = {"input": 0.0, "output": 0.0}

Rows = list[tuple[str, str]]


def format_plan(plan: Mapping[str, Any]) -> str:
    """The whole plan, one line per row: a name and a text."""
    sizes, teacher, seconds = plan["student"]["parameters"], plan["teacher"], plan["seconds"]
    low, high = format_duration(seconds["low"]), format_duration(seconds["high"])
    rows = [
        ("parameters", f"{sizes['total']:,} total, {sizes['unique']:,} unique"),
        *_base_run_rows(plan["begins_with"]),
        *_corpus_rows(plan["data"]),
        *(_teacher_rows(teacher) if teacher else []),
        *_judge_rows(plan["judging"]),
        *_training_rows(plan["training"]),
        ("memory", f"about {plan['memory_bytes'] / 2**20:,.0f} MiB"),
        ("time", f"about {low} to {high} of training (estimated from the rate of a matrix product)"),
    ]
    return "\n".join(f"{name:<12} {value}" for name, value in rows)


def format_summary(plan: Mapping[str, Any]) -> str:
    """The plan in a few lines, for the start of a run."""
    teacher, training = plan["teacher"], plan["training"]
    calls = ""
    if teacher:
        rows = teacher["judged"]["rows"]
        cost = f"; cost: {_format_cost(teacher)}" if (teacher["calls"] or rows) and teacher["price"] != FREE else ""
        scored = f", {rows:,} rows are scored during training" if rows else ""
        known = f"{teacher['cached']} {_format_known(teacher)}"
        calls = f"  {teacher['calls']} calls to {teacher['provider']}, {known}{scored}{cost}\n"
    calls += "".join(
        f"  {row['calls']} calls of the judge {row['judge']} to {row['provider']}"
        f"{'' if row['price'] == FREE else f'; cost: {_format_cost(row)}'}\n"
        for row in plan["judging"]["judges"]
        if row["calls"]
    )
    low, high = (format_duration(plan["seconds"][end]) for end in ("low", "high"))
    return (
        f"{calls}  {plan['student']['parameters']['unique']:,} parameters, {training['steps']:,} steps, "
        f"{training['tokens']:,} tokens ({_format_epochs(training)}), about {low} to {high} of training"
    )


def _base_run_rows(begins_with: str | None) -> Rows:
    if not begins_with:
        return []
    first = f", which is trained first (distillkit plan {begins_with})" if refers_to_recipe(begins_with) else ""
    return [("begins with", f"the student of {begins_with}{first}")]


def _corpus_rows(data: Mapping[str, Any]) -> Rows:
    """The size of the corpus, or the budget of one that is not fetched yet."""
    train = data["train"]
    if not data["here"]:
        counts = [f"{train[key]:,} {key}" for key in ("documents", "tokens") if train[key]]
        wanted = " or ".join(counts) or "all documents"
        return [("text", f"{wanted} to train on, not fetched yet from the source {data['source']!r}")]
    return [(key, f"{train[key]:,} to train on, {data['held_out'][key]:,} held out") for key in ("documents", "tokens")]


def _teacher_rows(teacher: Mapping[str, Any]) -> Rows:
    """The teacher and its calls: tokens, cost, time, disk space."""
    scored = teacher["judged"]["rows"]
    in_steps = teacher["online"] or scored
    known = f"{teacher['cached']} of {teacher['prompts']} {_format_known(teacher)}"
    rows = [
        ("teacher", f"{teacher['provider']}, {'in every step' if in_steps else 'before training'}"),
        ("calls", f"{teacher['calls']} ({known})"),
    ]
    if scored:
        rows.append(("scored", f"{scored:,} rows that the student writes, with one call or more each"))
    if teacher["calls"] or scored:
        ranges = (teacher["tokens"][way] for way in ("input", "output"))
        tokens = [f"{ends['low']:,} to {ends['high']:,}" for ends in ranges]
        size = f"about {teacher['disk_bytes'] / 2**20:,.1f} MiB"
        rows.append(("usage", f"{tokens[0]} tokens in, {tokens[1]} out, {size}"))
        rows.append(("cost", _format_cost(teacher)))
        if teacher["seconds"] is not None:
            rows.append(("wait", f"at least {format_duration(teacher['seconds'])}, by the rate limits of the recipe"))
    if soft := teacher["soft"]:
        each = f"{soft['positions']:,} of at most {soft['bytes_a_position']} bytes each"
        rows.append(("soft targets", f"about {soft['bytes'] / 2**20:,.1f} MiB: {each}"))
    return rows


def _format_known(teacher: Mapping[str, Any]) -> str:
    """Which answers need no call: those in the cache, and those in batches that are not collected yet."""
    submitted = f", {teacher['sent_off']} are in batches" if teacher["sent_off"] else ""
    return f"answers are cached{submitted}"


def _judge_rows(judging: Mapping[str, Any]) -> Rows:
    """The calls of each judge that asks a teacher."""
    rows = []
    for row in judging["judges"]:
        known = f"{row['cached']} of {row['prompts']} answers are cached"
        retries = f", at most {row['most_calls']} if answers are unusable" if row["most_calls"] > row["calls"] else ""
        probes = f", and {row['probes']} to probe the endpoint" if row["probes"] else ""
        model = f"{row['provider']} {row['model'] or ''}".strip()
        rows.append((row["judge"], f"{row['calls']} calls to {model} ({known}){retries}{probes}"))
        if row["calls"]:
            tokens_in = f"about {row['tokens']['input']['expected']:,} tokens in"
            tokens_out = f"{row['tokens']['output']['low']:,} to {row['tokens']['output']['high']:,} out"
            cost = _format_cost(row).replace("teacher.", "judge.teacher.")
            rows.append(("", f"{tokens_in}, {tokens_out}; {cost}"))
    if rows and judging["missing"]:
        rows.append(("", f"{judging['missing']} samples are not written yet: their length is an estimate"))
    return rows


def _training_rows(training: Mapping[str, Any]) -> Rows:
    """Steps, tokens and epochs, with warnings."""
    rows = [("training", f"{training['steps']:,} steps, {training['tokens']:,} tokens, {_format_epochs(training)}")]
    if training["advice"]:
        rows.append(("warning", f"too many epochs: from about {MAX_USEFUL_EPOCHS} on, a student memorises its text;"))
        rows.append(("", f"{training['advice']} (or set student.dropout, and watch the validation loss)"))
    if training["warmup"]:
        rows.append(("warning", training["warmup"]))
    return rows


def _format_epochs(training: Mapping[str, Any]) -> str:
    return "epochs unknown" if training["epochs"] is None else f"{training['epochs']} epochs"


def _format_cost(calls: Mapping[str, Any]) -> str:
    """The cost of calls, low to high."""
    usd = calls["usd"]
    if usd is None:
        return "unknown: set teacher.price"
    ends = f"${usd['low']:,.4f} to ${usd['high']:,.4f}"
    return f"about ${usd['expected']:,.4f} ({ends})" if "expected" in usd else ends
