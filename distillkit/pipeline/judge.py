"""The judge stage: the student writes samples, the judges grade them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..core.files import write_jsonl
from ..core.records import Answer, Request
from ..judging import protocol
from ..plugins.interfaces import Judge, Teacher
from ..recipe.schema import JudgeTable
from ..teachers.asking.label import LabelResult
from .context import Context
from .judge_subject import SubjectBuilder
from .session import RunSession
from .teacher_calls import ask as ask_teacher
from .teacher_calls import request_policy


def judge(session: RunSession) -> None:
    """Generate the samples that are missing, run every judge on them, and record grades and metrics."""
    from ..student import Trained

    context, run = session.context, session.run
    student = Trained.load(run.path)
    subject = SubjectBuilder(context, run).subject(student, session.compared_runs)
    spent = dict(run.info.get("spent_on_judges") or {})
    runner = JudgeRunner(context, spent, lambda spent: run.record(spent_on_judges=spent))
    results, judges = [], []
    for table, one in context.judges():
        session.console.print(f"Judging: {one.name}.")
        _warn_of_same_family(session, table, one)
        results.append(runner.run(table, one, subject))
        judges.append(one)
        if results[-1].power_summary:
            session.console.print(f"  {results[-1].power_summary}")
    write_jsonl(run.grades, [row for result in results for row in result.rows()])
    _record_held_out(session)
    run.record(
        judges={
            result.judge: {name: metric.to_json() for name, metric in result.metrics.items()} for result in results
        },
        judges_protocol={result.judge: result.protocol.to_json() for result in results},
        judges_design={result.judge: result.design for result in results if result.design},
        lower_is_better={one.name: sorted(one.lower_is_better) for one in judges},
        neither_is_better={one.name: sorted(one.neither_is_better) for one in judges},
        together=[one.name for one in judges if one.together],
        judged_weights=student.weights_sha256,
    )


def _record_held_out(session: RunSession) -> None:
    """Record the held-out text of a run that was imported: without it, `compare` cannot match its metrics."""
    if not session.run.info.get("data") and session.context.has_local_corpus:
        session.run.record(data={"held_out": session.context.corpus.counts["held_out"]})


def _warn_of_same_family(session: RunSession, table: JudgeTable, judge: Judge) -> None:
    """Warn if the judge's model is of the teacher's family: it may prefer the style that the student learnt."""
    found, teacher = session.context.judge_teacher(table, judge), session.context.teacher
    if found is None or teacher is None:
        return
    of_teacher, of_judge = (protocol.model_family(getattr(one.options, "model", None)) for one in (teacher, found[0]))
    if of_teacher is not None and of_teacher == of_judge:
        session.warn(
            f"the judge {judge.name!r} asks a model of the teacher's own family, {of_teacher}: models prefer text of "
            "their own family. Choose another one: judge.teacher.model"
        )


class JudgeRunner:
    """Runs judges with their teachers. `record_spending` gets all spending, also when a judge fails."""

    def __init__(
        self, context: Context, spent: dict[str, Any], record_spending: Callable[[dict[str, Any]], None]
    ) -> None:
        self.context, self.spent, self.record_spending = context, spent, record_spending

    def run(self, table: JudgeTable, judge: Judge, subject: protocol.RunSubject) -> protocol.JudgeResult:
        """The result of one judge for a subject."""
        found = self.context.judge_teacher(table, judge)
        if found is None:
            return protocol.run_judge(judge, subject)
        teacher, teacher_table = found

        def ask(requests: Sequence[Request]) -> Sequence[Answer]:
            done, used = LabelResult([], []), self.spent.get(judge.name) or {}
            policy = request_policy(self.context, teacher_table, shard=None, batch=False, spent=used)
            try:
                return ask_teacher(self.context, teacher, list(requests), policy, done).replies
            finally:
                if done.spent:
                    self.spent[judge.name] = done.spent
                    self.record_spending(self.spent)

        return protocol.run_judge(
            judge, replace(subject, teacher=protocol.JudgeTeacher(ask, teacher_identity(teacher)))
        )


def teacher_identity(teacher: Teacher) -> dict[str, Any]:
    """The identity of a teacher in a protocol, without its address, which does not change answers."""
    identity = teacher.identity()
    if isinstance(identity, dict):
        identity = {key: value for key, value in identity.items() if key != "base_url"}
    return {"provider": teacher.name, "identity": identity}
