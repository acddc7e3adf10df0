"""The label stage: request the answers that are not cached yet, pack them for training, and store soft targets."""

from __future__ import annotations

import time
from typing import Any

from ..core.files import make_private_folder, write_jsonl
from ..core.records import Request
from ..plugins.interfaces import Teacher
from ..recipe.schema import TeacherTable
from ..teachers.asking.label import LabelResult
from .context import SoftTargetSource
from .session import RunSession, always_record
from .soft_targets import SoftTargets
from .teacher_calls import add_spending, answers_since, ask, request_policy
from .teacher_requests import teacher_requests
from .training_data import pack_answers, training_streams

LOW_COVERAGE = 0.1  # share of positions with a soft target, below which a warning is printed


def label(session: RunSession) -> None:
    """Run the label stage in the main process; the others wait."""
    with session.group.barrier():
        _label(session)


def _label(session: RunSession) -> None:
    context, run = session.context, session.run
    requests = teacher_requests(context)
    table, teacher = session.recipe.teacher, context.teacher
    if table is None or teacher is None:
        return
    metadata: dict[str, Any] = {
        "provider": table.provider,
        "model": table.options.get("model"),
        "signal": table.signal or teacher.signal,
    }
    if requests:
        labelled = _request_answers(session, table, teacher, requests)
        if context.label_options.get("shard"):  # this process requested one share of several: nothing can be packed yet
            return
        rows = labelled.answered
        make_private_folder(run.answers)
        write_jsonl(run.answers / "index.jsonl", [{"id": r.id, "key": key} for r, key, _ in rows])
        counts = labelled.counts
        asked = min(run.info["asked"], counts["prompts"])  # in all sessions
        counts |= {"asked": asked, "cached": counts["prompts"] - asked}
        metadata |= pack_answers(context, labelled, run.answers) | counts
    if context.soft_target_source == SoftTargetSource.STORE:
        soft_targets = SoftTargets(context)
        metadata["soft"] = soft_targets.summary(soft_targets.build(training_streams(context, run.answers)))
    _report_soft_targets(session, metadata.get("soft"))
    run.record(teacher=metadata)


def _request_answers(
    session: RunSession, table: TeacherTable, teacher: Teacher, requests: list[Request]
) -> LabelResult:
    """The answers to all requests. What was requested and spent is recorded even if an error ends the stage."""
    wanted = table.prompts * table.repeats
    if len(requests) < wanted:
        session.warn(f"there are prompts for only {len(requests)} of the recipe's {wanted} requests")
    policy = request_policy(session.context, table, spent=_earlier_spending(session, teacher, requests))
    session.console.print(f"Asking {teacher.name} for {len(requests)} answers.")
    done = LabelResult([], [])

    def record() -> None:
        spent = {"spent": done.spent} if done.spent else {}
        session.run.record(asked=session.run.info["asked"] + done.asked, asking=None, **spent)

    with always_record(record):
        ask(session.context, teacher, requests, policy, done)
    session.console.print(f"  {done.asked} asked, {done.cached} from the cache")
    if done.refused:
        session.warn(
            f"{done.refused} of {len(done.requests)} requests were refused or got an empty answer; "
            "if the teacher reasons before it answers, raise teacher.max_tokens. "
            "To repeat them: distillkit label --retry-refused"
        )
    return done


def _earlier_spending(session: RunSession, teacher: Teacher, requests: list[Request]) -> dict[str, float]:
    """What earlier sessions of this run spent. Also records that a new session starts to send requests.

    A session that was killed could not record what it requested. It is counted from the answers that were stored since
    that session started.
    """
    context, run = session.context, session.run
    info = run.info
    asked, spent = info.get("asked") or (info.get("teacher") or {}).get("asked") or 0, info.get("spent") or {}
    if unfinished := info.get("asking"):
        recovered = answers_since(teacher, requests, unfinished["since"])
        asked, spent = asked + len(recovered), add_spending(context, teacher, recovered, spent)
    run.record(asked=asked, spent=spent, asking={"since": time.time()})
    return spent


def _report_soft_targets(session: RunSession, soft: dict[str, Any] | None) -> None:
    """Print how many positions have a soft target, and warn if there are few."""
    if soft is None:
        return
    share = soft["with_soft"] / max(1, soft["positions"])
    session.console.print(
        f"Soft targets: {soft['with_soft']:,} of {soft['positions']:,} positions ({share:.1%}), "
        f"with {soft['mass']:.1%} of the teacher's probability; {soft['bytes_a_position']:g} bytes per position."
    )
    if share < LOW_COVERAGE:
        session.warn(
            f"only {share:.1%} of the trained positions have a soft target: the teacher's and the student's tokens "
            "start at different bytes, or the log-probabilities do not belong to the text."
        )
