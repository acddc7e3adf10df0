"""Labelling through a provider's Batch API: half the price, answers within a day, the same cache keys.

The Batch APIs of providers are alike: upload a file of requests, make a batch of it, poll until it has ended, download
two files, of answers and of errors. `batch_client` knows that API; the teacher writes a request's body and parses a
response's body. This module knows neither.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from ...core.console import Console
from ...core.errors import DistillkitError, Interrupted, LimitReached, TeacherError, UsageError
from ...core.files import digest
from ...core.records import REFUSED, Answer, Request, Usage
from ...plugins.interfaces import Teacher
from ..answers.disk import DiskAnswerStore
from . import batch_state
from .batch_client import PERMANENT_STATUSES, BatchClient
from .batch_state import BatchRecord
from .counting import max_usage
from .label import LabelResult, keyed_requests, validate_answer
from .policy import RequestPolicy
from .scheduler import RequestScheduler, is_empty

MAX_ATTEMPTS = 3  # of one request; attempts that expired or were never submitted do not count
POLL_INTERVAL = (2.0, 60.0)  # seconds between two polls: the first one, and the longest
ENDED = ("completed", "expired", "cancelled", "failed")
EXPIRED, UNSENT = "expired", "not sent off"
QUEUE_FULL = "token_limit_exceeded"  # OpenAI's error code if too many tokens are enqueued
REQUIRED_METHODS = ("body", "answer_of", "client")


@dataclass(frozen=True)
class BatchLimits:
    """Limits of one batch. The defaults fit every provider that we know; a teacher may have others."""

    requests: int = 50_000
    bytes: int = 100_000_000


class BatchTeacher(Protocol):
    """What a teacher must offer for the Batch API. It may also have `batch_limits`, a `BatchLimits`."""

    name: str

    @property
    def endpoint(self) -> str | None:
        """The path that answers single requests, such as /v1/chat/completions. None if there is no Batch API."""

    def identity(self) -> Any:
        """What decides the answers beside the request."""

    def body(self, request: Request) -> dict[str, Any]:
        """The JSON body of a request."""

    def answer_of(self, body: dict[str, Any], request: Request) -> Answer:
        """The answer in a response's body. Raises DistillkitError if it is malformed."""

    def client(self) -> Any:
        """A new SDK client, synchronous or asynchronous, without retries. The caller closes it."""


def label_in_batches(
    teacher: Teacher,
    requests: Sequence[Request],
    cache: DiskAnswerStore,
    folder: Path,
    *,
    policy: RequestPolicy | None = None,
    console: Console | None = None,
    result: LabelResult | None = None,
    poll_interval: tuple[float, float] = POLL_INTERVAL,
) -> LabelResult:
    """Answer every request, from the cache or in batches.

    While batches are pending, it raises LimitReached, or waits if the policy says so. `result` is filled as answers
    arrive, also if the call ends with an error.
    """
    policy, result = replace(policy or RequestPolicy(), batch=True), result or LabelResult([], [])
    session = _BatchSession(_batch_teacher(teacher), requests, cache, folder, policy, console or Console(), result)
    pause, longest = poll_interval
    try:
        while session.advance():
            if not policy.wait:
                raise session.pending_error()
            time.sleep(pause)
            pause = min(2 * pause, longest)
    except KeyboardInterrupt as error:
        raise Interrupted(
            "stopped; submitted batches continue at the provider", "The same command collects them."
        ) from error
    finally:
        session.close()
    return session.result


def _batch_teacher(teacher: Teacher) -> BatchTeacher:
    missing = [name for name in REQUIRED_METHODS if not callable(getattr(teacher, name, None))]
    if missing or getattr(teacher, "endpoint", None) is None:
        raise UsageError(
            f"the teacher {teacher.name!r} does not support the Batch API: it has no {[*missing, 'endpoint'][0]}",
            "Leave out --batch to send single requests.",
        )
    return cast(BatchTeacher, teacher)


# ------------------------------------------------------------------------------------------------- the session


@dataclass(frozen=True)
class _Outcome:
    """The outcome of one request: an answer, or [the reason, whether to retry]; and what is billed for it."""

    answer: Answer | None = None
    failure: tuple[str, bool] | None = None
    is_billed: bool = True
    usage: Usage | None = None  # None if the provider does not report it


class _BatchSession:
    """Collects the batches that have ended, submits requests that are in no batch, and counts what is missing.

    Batches without any needed request belong to other recipes and are left to them.
    """

    def __init__(
        self,
        teacher: BatchTeacher,
        requests: Sequence[Request],
        cache: DiskAnswerStore,
        folder: Path,
        policy: RequestPolicy,
        console: Console,
        result: LabelResult,
    ) -> None:
        self.teacher, self.cache, self.folder, self.console, self.result = teacher, cache, folder, console, result
        rows = keyed_requests(teacher, requests, policy.shard)
        self.identity = digest(teacher.identity())
        result.requests, result.keys = [request for request, _, _ in rows], [key for _, key, _ in rows]
        self.wanted = {key: request for request, key, _ in rows}
        self.key_fields = {key: fields for _, key, fields in rows}
        self.scheduler = RequestScheduler(cast(Teacher, teacher), policy, cache, console)  # for probes and the budget
        self.client = BatchClient(teacher)
        cached = cache.get_many(self.wanted)
        self.retried = {key for key, answer in cached.items() if policy.retry_refused and answer.finish == REFUSED}
        self.exceeded_limit: str | None = None  # the limit of the budget that keeps requests from being submitted

    def advance(self) -> bool:
        """Do all that can be done now. Returns whether answers are still missing."""
        for record in self._leased_records():
            if self._is_wanted(record):
                self._advance_batch(record)
        self._submit_missing()
        self.result.by_key = self._known(self.wanted)
        if self.missing and not self._is_pending():
            self.result.by_key = self._known(self.wanted)  # another process may just have collected them
            if self.missing:
                self._give_up()
        self.cache.release()
        return bool(self.missing)

    @property
    def missing(self) -> set[str]:
        """The keys without an answer, or whose refused answer is retried."""
        return self.wanted.keys() - self.result.by_key.keys()

    def _known(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The cached answers that need not be requested again."""
        return {key: answer for key, answer in self.cache.get_many(keys).items() if key not in self.retried}

    def close(self) -> None:
        """Release leases, close connections, and fill in the counts of the result."""
        self.cache.release()
        self.result.spent = self.scheduler.budget.spent
        self.result.cached = len(self.result.requests) - min(self.result.asked, len(self.result.requests))
        self.scheduler.close()
        self.client.close()

    def pending_error(self) -> LimitReached:
        """The error that says how many batches are pending."""
        batches = set(batch_state.keys_in_batches(self.folder, self.missing).values())
        present = len(self.wanted) - len(self.missing)
        return LimitReached(
            f"{present:,} of {len(self.wanted):,} answers are available; {len(batches)} "
            f"{'batch is' if len(batches) == 1 else 'batches are'} pending at the provider",
            "Run the same command later to collect the answers, or add --wait.",
        )

    def _records(self) -> list[BatchRecord]:
        """The batches of this teacher, those of other recipes included."""
        teacher = (self.teacher.name, self.identity)
        return [record for record in batch_state.load_all(self.folder) if (record.teacher, record.identity) == teacher]

    def _leased_records(self) -> Iterator[BatchRecord]:
        """The batches that no other process works on, read again because another one may just have changed them."""
        for record in self._records():
            if self.cache.claim([record.id]) and (current := record.reload()) is not None:
                yield current

    def _is_pending(self) -> bool:
        """Whether a batch or another process is going to answer something that is missing."""
        if batch_state.keys_in_batches(self.folder, self.missing):
            return True
        return len(self.cache.claim(self.missing)) < len(self.missing)

    # ------------------------------------------------------------------------------------------ submitting

    def _submit_missing(self) -> None:
        """Submit the requests that have no answer, are in no batch, and are not requested by another process."""
        wanted = self._absent(self.wanted)
        leased = self.cache.claim(wanted)
        absent = self._absent([key for key in wanted if key in leased])  # another process may have been quicker
        keys = self._affordable(absent)
        if keys:
            self.scheduler.probe([self.wanted[key] for key in keys])
        attempts = self._next_attempts()
        for attempt in sorted({attempts.get(key, 1) for key in keys}):
            if attempt <= MAX_ATTEMPTS:
                self._submit_batches([key for key in keys if attempts.get(key, 1) == attempt], attempt)
        for record in self._leased_records():
            if record.failed:
                record.clear_failures(record.failed.keys() - self._absent(record.failed))  # answered or submitted again

    def _affordable(self, keys: list[str]) -> list[str]:
        """The first keys that fit the budget, next to what was submitted. The others wait until that is billed."""
        budget = replace(self.scheduler.budget)
        for key in batch_state.keys_in_batches(self.folder, self.wanted):
            budget.reserve(max_usage(self.wanted[key]))
        for i, key in enumerate(keys):
            bound = max_usage(self.wanted[key])
            self.exceeded_limit = budget.exceeded_limit(bound)
            if self.exceeded_limit:
                return keys[:i]
            budget.reserve(bound)
        return keys

    def _absent(self, keys: Collection[str]) -> list[str]:
        """The keys that have no answer and are in no batch."""
        known = self._known(keys).keys() | batch_state.keys_in_batches(self.folder, keys).keys()
        return [key for key in keys if key not in known]

    def _next_attempts(self) -> dict[str, int]:
        """The number of the next attempt for keys that failed; above the maximum if a retry is useless."""
        attempts: dict[str, int] = {}
        for record in self._records():
            for key, (reason, retry) in record.failed.items():
                attempt = record.attempt + (reason not in (EXPIRED, UNSENT)) if retry else MAX_ATTEMPTS + 1
                attempts[key] = max(attempt, attempts.get(key, 1))
        return attempts

    def _submit_batches(self, keys: list[str], attempt: int) -> None:
        """Submit requests in as few batches as the limits allow."""
        limits = getattr(self.teacher, "batch_limits", BatchLimits())
        lines = ((key, self._line(key, self.wanted[key])) for key in keys)
        for group in batch_state.split_lines(lines, limits.requests, limits.bytes):
            record_id = batch_state.new_id()
            self.cache.claim([record_id])
            record = batch_state.create(
                self.folder,
                {key: self.key_fields[key] for key, _ in group},
                id=record_id,
                teacher=self.teacher.name,
                identity=self.identity,
                endpoint=self.teacher.endpoint,
                attempt=attempt,
            )
            self._submit(record, batch_state.to_json_lines(line for _, line in group))

    def _line(self, key: str, request: Request) -> dict[str, Any]:
        return {"custom_id": key, "method": "POST", "url": self.teacher.endpoint, "body": self.teacher.body(request)}

    def _submit(self, record: BatchRecord, lines: bytes) -> None:
        """Upload the lines of a batch, and submit it."""
        record = record.save(status="submitting", file=self.client.upload(record, lines))
        batch = self.client.submit(record)
        record.save(status="submitted", batch=batch)
        self.console.print(f"  batch {batch}: {record.count:,} requests submitted")

    # ------------------------------------------------------------------------------------------ collecting

    def _advance_batch(self, record: BatchRecord) -> None:
        """Bring one batch as far as possible now."""
        if record.status == "submitting":
            record = self._find_batch(record)
        if record.status == "submitted":
            self._poll(record)
        elif record.status == "collected":
            self._count_owed(record)
        elif not (record.status == "queued" and self._others_run(record)):
            self._withdraw(record)

    def _withdraw(self, record: BatchRecord) -> None:
        """Treat the requests of a batch that was not submitted as missing: within the budget, in the same attempt."""
        record.save_collected(dict.fromkeys(record.requests, (UNSENT, True)), {})

    def _is_wanted(self, record: BatchRecord) -> bool:
        """Whether this recipe needs any of the batch's answers."""
        return not self.wanted.keys().isdisjoint(record.requests)

    def _find_batch(self, record: BatchRecord) -> BatchRecord:
        """The record with the batch that was made of its file, or reset to "new" if there is none."""
        batch = self.client.find(record)
        if batch is None:
            return record.save(status="new", file=None)
        self.console.print(f"  batch {batch} was submitted before; it is not sent again")
        return record.save(status="submitted", batch=batch)

    def _poll(self, record: BatchRecord) -> None:
        """Ask for the state of a batch, and collect its results if it has ended."""
        batch = self.client.retrieve(record)
        counts = batch.request_counts
        progress = f", {counts.completed + counts.failed:,} of {counts.total:,}" if counts else ""
        self.console.progress(f"  batch {record.batch}: {batch.status}{progress}")
        if batch.status == "failed":
            self._handle_refused_batch(record, batch)
        elif batch.status in ENDED:
            self._collect(record, batch)

    def _others_run(self, record: BatchRecord) -> bool:
        """Whether other batches, of any recipe, are being processed by the provider."""
        others = (other for other in self._records() if other.status == "submitted" and other.id != record.id)
        return any(self._is_wanted(other) or self.client.retrieve(other).status not in ENDED for other in others)

    def _handle_refused_batch(self, record: BatchRecord, batch: Any) -> None:
        """A batch that the provider refused: it waits if the provider's queue is full. Otherwise raise TeacherError."""
        codes = [error.code for error in getattr(batch.errors, "data", None) or []]
        if QUEUE_FULL in codes and self._others_run(record):
            self.console.print(
                f"  the provider's queue is full; batch {record.batch} is submitted again when another one has ended"
            )
            record.save(status="queued", batch=None)
            return
        record.delete()
        message = self.client.redact(_batch_errors(batch))
        raise TeacherError(f"the provider refused the batch {record.batch}: {message}")

    def _collect(self, record: BatchRecord, batch: Any) -> None:
        """Store the answers. Failures, and answers of other recipes that are not billed yet, go into the record."""
        due = set(record.requests)
        known = {key for key, answer in self.cache.get_many(due).items() if answer.finish != REFUSED}
        failed: dict[str, tuple[str, bool]] = {}
        owed: dict[str, dict[str, int] | None] = {}
        for line in self.client.results(batch):
            key = line["custom_id"]
            if key not in due:
                self.console.warn(
                    f"the batch {record.batch} answered a request twice, or one that was not sent: {key!r}"
                )
                continue
            due.remove(key)
            outcome = self._outcome(record, line)
            if outcome.failure:
                failed[key] = outcome.failure
            if key in known:  # collected and counted by an earlier session that was interrupted
                continue
            if outcome.is_billed:
                self._bill(key, outcome.usage, owed)
            if outcome.answer:
                self.cache.put(key, record.requests[key], outcome.answer)
                self.retried.discard(key)
                self.result.asked += key in self.wanted
        reason = EXPIRED if batch.status in ("expired", "cancelled") else "left without an answer"
        failed |= dict.fromkeys(due, (reason, True))
        answered = record.count - len(failed)
        self.console.print(f"  batch {record.batch} {batch.status}: {answered:,} of {record.count:,} answered")
        record.save_collected(failed, owed)

    def _outcome(self, record: BatchRecord, line: Mapping[str, Any]) -> _Outcome:
        """The outcome in a result line: an answer, or the reason why there is none."""
        key, response = line["custom_id"], line.get("response") or {}
        request = _request(key, record.requests[key])
        status, body = response.get("status_code"), response.get("body")
        if status != 200 or line.get("error"):
            failure = (_failure_reason(line, body), status not in PERMANENT_STATUSES)
            return _Outcome(failure=failure, is_billed=False)
        try:
            parsed = self.teacher.answer_of(cast(dict[str, Any], body), request)
            answer = validate_answer(f"the teacher {self.teacher.name!r}", parsed)
        except DistillkitError as error:  # malformed, but generated, and so billed
            return _Outcome(failure=(error.message, True))
        if not is_empty(request, answer):
            return _Outcome(answer, usage=answer.usage)
        if record.attempt >= MAX_ATTEMPTS:  # it stays empty: store it as refused
            return _Outcome(replace(answer, text="", tokens=(), finish=REFUSED), usage=answer.usage)
        return _Outcome(failure=("the answer is empty or was filtered", True), usage=answer.usage)

    def _bill(self, key: str, usage: Usage | None, owed: dict[str, dict[str, int] | None]) -> None:
        """Count the cost of an answer, or note it for the recipe that needs the answer."""
        if key in self.wanted:
            self._pay(key, usage)
        else:
            owed[key] = asdict(usage) if usage else None

    def _count_owed(self, record: BatchRecord) -> None:
        """Count the answers that this recipe needs and that another one collected."""
        own = record.owed.keys() & self.wanted.keys()
        for key in own:
            usage = record.owed[key]
            self._pay(key, Usage(**usage) if usage else None)
            self.result.asked += key not in record.failed
        if own:
            record.save_collected(record.failed, {key: usage for key, usage in record.owed.items() if key not in own})

    def _pay(self, key: str, usage: Usage | None) -> None:
        """Count the cost of an answer: the highest possible cost if the provider does not report the usage."""
        bound = max_usage(self.wanted[key])
        self.scheduler.budget.reserve(bound)
        self.scheduler.budget.settle(bound, usage)

    def _give_up(self) -> None:
        """Raise the error for requests that the provider does not answer. The next command starts again with them."""
        if self.exceeded_limit:
            raise LimitReached(f"the budget is used up: {self.exceeded_limit}", "Raise it to continue.")
        reasons: dict[str, str] = {}
        for record in self._leased_records():
            reasons |= {key: reason for key, (reason, _) in record.failed.items() if key in self.missing}
            record.clear_failures(self.missing)
        reason = next(iter(reasons.values()), "no reason was given")
        raise TeacherError(
            f"{len(self.missing):,} of {len(self.wanted):,} requests were not answered in batches; the first: {reason}",
            "The other answers are kept. The same command requests only these again.",
        )


def _request(key: str, fields: Mapping[str, Any]) -> Request:
    """The request of stored key fields. It may belong to another recipe."""
    values = dict(fields["request"])
    messages = values["messages"]
    return Request(key, **{**values, "messages": messages and tuple(messages), "stop": tuple(values["stop"])})


def _failure_reason(line: Mapping[str, Any], body: Any) -> str:
    """Why a result line has no answer, in the provider's words."""
    error = line.get("error") or (body.get("error") if isinstance(body, dict) else None) or {}
    if isinstance(error, dict):
        if error.get("code") in ("batch_expired", "batch_cancelled"):
            return EXPIRED
        error = error.get("message") or error.get("code") or "no reason was given"
    status = (line.get("response") or {}).get("status_code")
    return f"status {status}: {error}" if status else str(error)


def _batch_errors(batch: Any) -> str:
    """Why a batch was refused, in the provider's words."""
    errors = getattr(batch.errors, "data", None) or []
    return "; ".join(str(error.message or error.code) for error in errors[:3]) or "no reason was given"
