"""Teachers asked in batches: half the price, within a day. What comes back goes into the cache under the usual keys.

The providers' Batch APIs are alike: upload a file of requests, make a batch of it, look now and then whether it has
ended, fetch two files, of answers and of errors. `batch_client` knows that API, and the teacher how a request is put
into words and what an answer looks like; this module knows neither.
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
from .batch_client import HOPELESS, Provider
from .batch_state import BatchRecord
from .counting import max_usage
from .label import LabelResult, checked, keyed_requests
from .policy import RequestPolicy
from .scheduler import RequestScheduler, is_empty

TRIES = 3  # of one request; what expired or was never sent off does not count
POLLS = (2.0, 60.0)  # seconds between two looks, at first and in the end
ENDED = ("completed", "expired", "cancelled", "failed")
EXPIRED, UNSENT = "expired", "not sent off"
QUEUE_FULL = "token_limit_exceeded"  # how OpenAI says that too much is waiting already
NEEDED = ("body", "answer_of", "client")


@dataclass(frozen=True)
class BatchLimits:
    """The most that one batch may hold. These fit every provider that we know; a teacher may say its own."""

    requests: int = 50_000
    bytes: int = 100_000_000


class Batched(Protocol):
    """What a teacher offers so that it can be asked in batches. `batch_limits` may stand beside it."""

    name: str

    @property
    def endpoint(self) -> str | None:
        """The path that answers requests one by one: /v1/chat/completions. None where there are no batches."""

    def identity(self) -> Any:
        """What decides the answers beside the request."""

    def body(self, request: Request) -> dict[str, Any]:
        """A request as the endpoint reads it."""

    def answer_of(self, body: dict[str, Any], request: Request) -> Answer:
        """What the endpoint said to a request, as an answer; a DistillkitError when it is misshapen."""

    def client(self) -> Any:
        """A new client of the provider's SDK, plain or asynchronous, without retries; whoever asks for it closes it."""


def label_in_batches(
    teacher: Teacher,
    requests: Sequence[Request],
    cache: DiskAnswerStore,
    folder: Path,
    *,
    policy: RequestPolicy | None = None,
    console: Console | None = None,
    done: LabelResult | None = None,
    polls: tuple[float, float] = POLLS,
) -> LabelResult:
    """Answer every request, from the cache or in batches. It stops where answers are still to come, or waits for them.

    `done` is filled as answers come, even if it ends badly.
    """
    policy = replace(policy or RequestPolicy(), batch=True)
    stage = _Stage(
        _batched(teacher), requests, cache, folder, policy, console or Console(), done or LabelResult([], [])
    )
    pause, longest = polls
    try:
        while stage.goes_on():
            if not policy.wait:
                raise stage.stopped()
            time.sleep(pause)
            pause = min(2 * pause, longest)
    except KeyboardInterrupt as error:
        raise Interrupted("stopped; batches that were sent off go on", "The same command collects them.") from error
    finally:
        stage.close()
    return stage.done


def _batched(teacher: Teacher) -> Batched:
    missing = [name for name in NEEDED if not callable(getattr(teacher, name, None))]
    if missing or getattr(teacher, "endpoint", None) is None:
        raise UsageError(
            f"the teacher {teacher.name!r} cannot be asked in batches: it has no {[*missing, 'endpoint'][0]}",
            "Leave out --batch to ask request by request.",
        )
    return cast(Batched, teacher)


# ------------------------------------------------------------------------------------------------- the stage


@dataclass(frozen=True)
class _Said:
    """What came of one request: an answer, or [the reason, whether to ask again]; and what is billed for it."""

    answer: Answer | None = None
    failure: tuple[str, bool] | None = None
    billed: bool = True
    usage: Usage | None = None  # None where nobody says


class _Stage:
    """One sitting: settle the batches that are there, send off what is in none, count what is missing.

    Batches in which nothing is wanted are other recipes', and left to them.
    """

    def __init__(
        self,
        teacher: Batched,
        requests: Sequence[Request],
        cache: DiskAnswerStore,
        folder: Path,
        policy: RequestPolicy,
        console: Console,
        done: LabelResult,
    ) -> None:
        self.teacher, self.cache, self.folder, self.console, self.done = teacher, cache, folder, console, done
        rows = keyed_requests(teacher, requests, policy.shard)
        self.identity = digest(teacher.identity())
        done.requests, done.keys = [request for request, _, _ in rows], [key for _, key, _ in rows]
        self.wanted = {key: request for request, key, _ in rows}
        self.whats = {key: what for _, key, what in rows}
        self.asking = RequestScheduler(cast(Teacher, teacher), policy, cache, console)
        self.provider = Provider(teacher)
        found = cache.get_many(self.wanted)
        self.again = {key for key, answer in found.items() if policy.retry_refused and answer.finish == REFUSED}
        self.short_of: str | None = None  # the limit of the budget that keeps requests from being sent off

    def goes_on(self) -> bool:
        """Do all that can be done now; whether answers are still to come."""
        for part in self._held():
            if self._is_wanted(part):
                self._settle(part)
        self._send()
        self.done.found = self._known(self.wanted)
        if self.missing and not self._pending():
            self.done.found = self._known(self.wanted)  # another process may have collected them between the two looks
            if self.missing:
                self._give_up()
        self.cache.free()
        return bool(self.missing)

    @property
    def missing(self) -> set[str]:
        """What has no answer yet, or is to be asked again."""
        return self.wanted.keys() - self.done.found.keys()

    def _known(self, keys: Iterable[str]) -> dict[str, Answer]:
        """What need not be asked again."""
        return {key: answer for key, answer in self.cache.get_many(keys).items() if key not in self.again}

    def close(self) -> None:
        """Let go of claims and connections, and say what it came to."""
        self.cache.free()
        self.done.spent = self.asking.budget.spent
        self.done.cached = len(self.done.requests) - min(self.done.asked, len(self.done.requests))
        self.asking.close()
        self.provider.close()

    def stopped(self) -> LimitReached:
        """What is still to come, for whoever does not wait."""
        batches = set(batch_state.keys_in_batches(self.folder, self.missing).values())
        there = len(self.wanted) - len(self.missing)
        return LimitReached(
            f"{there:,} of {len(self.wanted):,} answers are there; {len(batches)} "
            f"{'batch is' if len(batches) == 1 else 'batches are'} pending at the provider",
            "The same command collects what has come, tomorrow or elsewhere; --wait waits for it.",
        )

    def _parts(self) -> list[BatchRecord]:
        """The batches of this teacher, those of other recipes too."""
        every = batch_state.load_all(self.folder)
        return [part for part in every if (part.teacher, part.identity) == (self.teacher.name, self.identity)]

    def _held(self) -> Iterator[BatchRecord]:
        """Those that nobody else is at, read again: another process may just have left them."""
        for part in self._parts():
            if self.cache.claim([part.id]) and (now := part.read()) is not None:
                yield now

    def _pending(self) -> bool:
        """Whether somebody is to answer what is missing: a batch, or another process."""
        if batch_state.keys_in_batches(self.folder, self.missing):
            return True
        return len(self.cache.claim(self.missing)) < len(self.missing)

    # ------------------------------------------------------------------------------------------ sending off

    def _send(self) -> None:
        """Send off what is neither known nor in a batch nor being asked for by another process."""
        wanted = self._absent(self.wanted)
        mine = self.cache.claim(wanted)
        still = self._absent([key for key in wanted if key in mine])  # somebody may have been quicker
        due = self._affordable(still)
        if due:
            self.asking.find_out([self.wanted[key] for key in due])
        tries = self._tries()
        for attempt in sorted({tries.get(key, 1) for key in due}):
            if attempt <= TRIES:
                self._send_together([key for key in due if tries.get(key, 1) == attempt], attempt)
        for part in self._held():
            if part.failed:
                part.forget(part.failed.keys() - self._absent(part.failed))  # they are answered, or sent off again

    def _affordable(self, keys: list[str]) -> list[str]:
        """Those for which the budget has room beside what is out; others are sent when what is out costs less."""
        budget = replace(self.asking.budget)
        for key in batch_state.keys_in_batches(self.folder, self.wanted):
            budget.set_aside(max_usage(self.wanted[key]))
        for i, key in enumerate(keys):
            most = max_usage(self.wanted[key])
            self.short_of = budget.short_of(most)
            if self.short_of:
                return keys[:i]
            budget.set_aside(most)
        return keys

    def _absent(self, keys: Collection[str]) -> list[str]:
        """Those keys that have no answer and are in no batch."""
        known = self._known(keys).keys() | batch_state.keys_in_batches(self.folder, keys).keys()
        return [key for key in keys if key not in known]

    def _tries(self) -> dict[str, int]:
        """Which try the next one is, for what failed before; beyond the last for what is hopeless."""
        tries: dict[str, int] = {}
        for part in self._parts():
            for key, (reason, hopeful) in part.failed.items():
                attempt = part.attempt + (reason not in (EXPIRED, UNSENT)) if hopeful else TRIES + 1
                tries[key] = max(attempt, tries.get(key, 1))
        return tries

    def _send_together(self, keys: list[str], attempt: int) -> None:
        """Requests in as few batches as their sizes allow."""
        sizes = getattr(self.teacher, "batch_limits", BatchLimits())
        for group in batch_state.split_lines(
            ((key, self._line(key, self.wanted[key])) for key in keys), sizes.requests, sizes.bytes
        ):
            mine = batch_state.new_id()
            self.cache.claim([mine])
            part = batch_state.create(
                self.folder,
                {key: self.whats[key] for key, _ in group},
                id=mine,
                teacher=self.teacher.name,
                identity=self.identity,
                endpoint=self.teacher.endpoint,
                attempt=attempt,
            )
            self._submit(part, batch_state.to_json_lines(line for _, line in group))

    def _line(self, key: str, request: Request) -> dict[str, Any]:
        return {"custom_id": key, "method": "POST", "url": self.teacher.endpoint, "body": self.teacher.body(request)}

    def _submit(self, part: BatchRecord, lines: bytes) -> None:
        """Upload the lines of a part and make a batch of them."""
        part = part.save(status="submitting", file=self.provider.upload(part, lines))
        batch = self.provider.submit(part)
        part.save(status="submitted", batch=batch)
        self.console.print(f"  batch {batch}: {part.count:,} requests sent off")

    # ------------------------------------------------------------------------------------------ collecting

    def _settle(self, part: BatchRecord) -> None:
        """Bring one part as far as it goes now."""
        if part.status == "submitting":
            part = self._found(part)
        if part.status == "submitted":
            self._look(part)
        elif part.status == "collected":
            self._pay_for_own(part)
        elif not (part.status == "queued" and self._others_run(part)):
            self._take_back(part)

    def _take_back(self, part: BatchRecord) -> None:
        """What it asks is due again like all else: as far as can be afforded, and on the same try."""
        part.collected(dict.fromkeys(part.asked, (UNSENT, True)), {})

    def _is_wanted(self, part: BatchRecord) -> bool:
        """Whether any of its answers is for this recipe."""
        return not self.wanted.keys().isdisjoint(part.asked)

    def _found(self, part: BatchRecord) -> BatchRecord:
        """A part of which nobody heard whether a batch was made of it, once that is known."""
        batch = self.provider.find(part)
        if batch is None:
            return part.save(status="new", file=None)
        self.console.print(f"  batch {batch} had been sent off before; it is not sent again")
        return part.save(status="submitted", batch=batch)

    def _look(self, part: BatchRecord) -> None:
        """See how far a batch is, and collect it when it has ended."""
        batch = self.provider.look(part)
        counts = batch.request_counts
        told = f", {counts.completed + counts.failed:,} of {counts.total:,}" if counts else ""
        self.console.progress(f"  batch {part.batch}: {batch.status}{told}")
        if batch.status == "failed":
            self._refused(part, batch)
        elif batch.status in ENDED:
            self._collect(part, batch)

    def _others_run(self, part: BatchRecord) -> bool:
        """Whether other batches are with the provider now, whoever sent them off."""
        others = (other for other in self._parts() if other.status == "submitted" and other.id != part.id)
        return any(self._is_wanted(other) or self.provider.look(other).status not in ENDED for other in others)

    def _refused(self, part: BatchRecord, batch: Any) -> None:
        """A batch that the provider took and then refused: for its queue's sake it waits, else the stage ends."""
        codes = [error.code for error in getattr(batch.errors, "data", None) or []]
        if QUEUE_FULL in codes and self._others_run(part):
            self.console.print(
                f"  the provider's queue is full; batch {part.batch} is sent again when another one has ended"
            )
            part.save(status="queued", batch=None)
            return
        part.drop()
        raise TeacherError(f"the provider refused the batch {part.batch}: {self.provider.hidden(_words(batch))}")

    def _collect(self, part: BatchRecord, batch: Any) -> None:
        """Answers into the cache; failures, and what others owe, into the record of the part."""
        due = set(part.asked)
        known = {key for key, answer in self.cache.get_many(due).items() if answer.finish != REFUSED}
        failed: dict[str, tuple[str, bool]] = {}
        owed: dict[str, dict[str, int] | None] = {}
        for line in self.provider.lines(batch):
            key = line["custom_id"]
            if key not in due:
                self.console.warn(f"the batch {part.batch} answered what was not asked, or twice: {key!r}")
                continue
            due.remove(key)
            said = self._said(part, line)
            if said.failure:
                failed[key] = said.failure
            if key in known:  # and paid for: a former sitting came so far
                continue
            if said.billed:
                self._bill(key, said.usage, owed)
            if said.answer:
                self.cache.put(key, part.asked[key], said.answer)
                self.again.discard(key)
                self.done.asked += key in self.wanted
        left = EXPIRED if batch.status in ("expired", "cancelled") else "left without an answer"
        failed |= dict.fromkeys(due, (left, True))
        got = part.count - len(failed)
        self.console.print(f"  batch {part.batch} {batch.status}: {got:,} of {part.count:,} answered")
        part.collected(failed, owed)

    def _said(self, part: BatchRecord, line: Mapping[str, Any]) -> _Said:
        """What a line holds: an answer, or the reason why it is none."""
        key, response = line["custom_id"], line.get("response") or {}
        request = _request(key, part.asked[key])
        status, body = response.get("status_code"), response.get("body")
        if status != 200 or line.get("error"):
            return _Said(failure=(_reason(line, body), status not in HOPELESS), billed=False)
        try:
            found = self.teacher.answer_of(cast(dict[str, Any], body), request)
            answer = checked(f"the teacher {self.teacher.name!r}", found)
        except DistillkitError as error:  # misshapen, but written, and so billed
            return _Said(failure=(error.message, True))
        if not is_empty(request, answer):
            return _Said(answer, usage=answer.usage)
        if part.attempt >= TRIES:  # it will not be better: that there is no answer is kept, too
            return _Said(replace(answer, text="", tokens=(), finish=REFUSED), usage=answer.usage)
        return _Said(failure=("the answer is empty or was held back", True), usage=answer.usage)

    def _bill(self, key: str, usage: Usage | None, owed: dict[str, dict[str, int] | None]) -> None:
        """Count what an answer cost, or leave that to whoever wants it."""
        if key in self.wanted:
            self._pay(key, usage)
        else:
            owed[key] = asdict(usage) if usage else None

    def _pay_for_own(self, part: BatchRecord) -> None:
        """Count what was answered to this recipe when another one collected it."""
        own = part.owed.keys() & self.wanted.keys()
        for key in own:
            bill = part.owed[key]
            self._pay(key, Usage(**bill) if bill else None)
            self.done.asked += key not in part.failed
        if own:
            part.collected(part.failed, {key: bill for key, bill in part.owed.items() if key not in own})

    def _pay(self, key: str, usage: Usage | None) -> None:
        """Count what an answer cost; at the most where the provider does not say."""
        most = max_usage(self.wanted[key])
        self.asking.budget.set_aside(most)
        self.asking.budget.settle(most, usage)

    def _give_up(self) -> None:
        """Say what the provider will not answer. The record of it goes: the next command begins anew."""
        if self.short_of:
            raise LimitReached(f"the budget is used up: {self.short_of}", "Raise it to go on.")
        reasons: dict[str, str] = {}
        for part in self._held():
            reasons |= {key: reason for key, (reason, _) in part.failed.items() if key in self.missing}
            part.forget(self.missing)
        words = next(iter(reasons.values()), "no reason was given")
        raise TeacherError(
            f"{len(self.missing):,} of {len(self.wanted):,} requests were not answered in batches; the first: {words}",
            "The other answers are kept. The same command asks only for these again.",
        )


def _request(key: str, what: Mapping[str, Any]) -> Request:
    """A request again, from what is kept of it: it may be of another recipe."""
    values = dict(what["request"])
    messages = values["messages"]
    return Request(key, **{**values, "messages": messages and tuple(messages), "stop": tuple(values["stop"])})


def _reason(line: Mapping[str, Any], body: Any) -> str:
    """Why a line has no answer, in the provider's words."""
    error = line.get("error") or (body.get("error") if isinstance(body, dict) else None) or {}
    if isinstance(error, dict):
        if error.get("code") in ("batch_expired", "batch_cancelled"):
            return EXPIRED
        error = error.get("message") or error.get("code") or "it gave no reason"
    status = (line.get("response") or {}).get("status_code")
    return f"status {status}: {error}" if status else str(error)


def _words(batch: Any) -> str:
    """Why a batch was refused, in the provider's words."""
    errors = getattr(batch.errors, "data", None) or []
    return "; ".join(str(error.message or error.code) for error in errors[:3]) or "it gave no reason"
