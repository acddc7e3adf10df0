"""Faults of a provider, each tested with the real SDK over a real socket, and the table of the results.

`python tests/support/provider_faults.py` writes the table in docs/trust.md; with `--check` it writes nothing and fails
if the table is out of date. The scheduler's clock runs fifty times as fast as real time here; the server's does not.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

from distillkit_plugins.compatible import Compatible

from distillkit.core.errors import DistillkitError
from distillkit.core.records import REFUSED, Request
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking.label import LabelResult, label
from distillkit.teachers.asking.policy import RequestPolicy
from distillkit.teachers.asking.rate_limits import Clock

sys.path.insert(0, str(Path(__file__).parents[1]))  # where `support` lies, when this runs as a script

from support.chat_provider import Act, Provider, error, serving
from support.paths import ROOT

FAST = 50.0
PAGE = ROOT / "docs" / "trust.md"
BEGIN = "<!-- faults: written by tests/support/provider_faults.py -->\n"
END = "<!-- end of faults -->"
PROMPTS = 6
FAULTY = "prompt 3"
KEY = "a-fake-key-that-no-provider-gave-0123456789"


def fast_clock(wall: Callable[[], float] = time.time) -> Clock:
    """A clock that runs fifty times as fast as real time."""

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / FAST)

    return Clock(now=lambda: time.monotonic() * FAST, sleep=sleep, wall=wall)


def fast(**more: Any) -> RequestPolicy:
    """A request policy with the fast clock."""
    return RequestPolicy(clock=fast_clock(), **more)


def requests(count: int = PROMPTS, **more: Any) -> list[Request]:
    return [Request(f"r{i}", prompt=f"prompt {i}", **more) for i in range(count)]


def teacher(url: str, **options: Any) -> Compatible:
    return Compatible(Compatible.Options(model="m", base_url=url, **options))


@dataclass
class Fault:
    """What the provider does to one prompt of six, and the expected outcome."""

    name: str
    responses: list[Act]
    expected: str = "answered"  # or "refused", "cut", or the exit code with which the stage stops: "exit 1", "exit 3"
    calls: int | None = None  # of the faulty prompt in all; None for one more than the failures
    request_options: dict[str, Any] = field(default_factory=dict)
    error_text: str = ""  # part of the error message, if the stage stops
    clock: Callable[[], Clock] = fast_clock


def changed(**keys: Any) -> Callable[[dict[str, Any]], None]:
    """A change of the response's only choice; `content` is the content of its message."""

    def change(body: dict[str, Any]) -> None:
        if "content" in keys:
            body["choices"][0]["message"]["content"] = keys["content"]
        body["choices"][0] |= {name: value for name, value in keys.items() if name != "content"}

    return change


def bad(change: Callable[[dict[str, Any]], Any]) -> Act:
    """A response that is not a valid answer."""
    return Act(change=change, good=False)


def _without_choices(body: dict[str, Any]) -> None:
    body["choices"] = []


def _without_usage(body: dict[str, Any]) -> None:
    del body["usage"]


def _malformed_logprobs(body: dict[str, Any]) -> None:
    body["choices"][0]["logprobs"]["content"][0]["logprob"] = "likely"


def _mlx_lm_logprobs(body: dict[str, Any]) -> None:
    """As mlx_lm.server sends them: no bytes, byte-level alphabet, unsorted, the sampled token first and repeated."""
    for row in body["choices"][0]["logprobs"]["content"]:
        for one in (row, *row["top_logprobs"]):
            one |= {"token": one["token"].replace(" ", "Ġ"), "bytes": None, "id": 7}
        row["top_logprobs"] = [dict(row["top_logprobs"][0]), *reversed(row["top_logprobs"])]


def _partial_character(body: dict[str, Any]) -> None:
    rows = body["choices"][0]["logprobs"]["content"]
    rows[-1] |= {"token": "\ufffd", "bytes": [0xF0, 0x9F]}


def _http_date(seconds: float) -> str:
    return formatdate(time.time() + seconds, usegmt=True)


def _backwards_clock() -> Clock:
    """A wall clock that goes back by an hour each time it is read."""
    times = iter(range(10**6))
    return fast_clock(lambda: time.time() - 3600.0 * next(times))


SLOW = "Rate limit reached. Please slow down."
TOP = {"top_logprobs": 2}
FAULTS = [
    *(
        Fault(f"HTTP {status}{about}", [error(status, "oops")])
        for status, about in (
            *((500, ""), (502, " (bad gateway)"), (503, " (overloaded)"), (504, ""), (529, "")),
            *((498, " (Groq: out of capacity)"), (408, ""), (409, ""), (425, "")),
        )
    ),
    Fault("HTTP 503 with Retry-After", [error(503, "oops", retry_after="5")]),
    Fault("HTTP 502 with an HTML page", [Act(502, {"Content-Type": "text/html"}, b"<html>Bad gateway</html>")]),
    Fault("four failures in a row", [error(500, "oops")] * 4),
    Fault("five failures in a row (the last attempt)", [error(500, "oops")] * 5, "exit 1", error_text="in 5 attempts"),
    Fault("HTTP 429 without Retry-After", [error(429, SLOW)]),
    Fault("HTTP 429, Retry-After: 2", [error(429, SLOW, retry_after="2")]),
    Fault("HTTP 429, Retry-After: 0.5", [error(429, SLOW, retry_after="0.5")]),
    Fault("HTTP 429, Retry-After: 12.56s", [error(429, SLOW, retry_after="12.56s")]),
    Fault("HTTP 429, Retry-After: 1m2.5s", [error(429, SLOW, retry_after="1m2.5s")]),
    Fault("HTTP 429, Retry-After: an HTTP date", [error(429, SLOW, retry_after=_http_date(20))]),
    Fault(
        "HTTP 429, Retry-After: an HTTP date, local clock wrong by a day",
        [error(429, SLOW, retry_after=_http_date(86400 + 20), date=_http_date(86400))],
    ),
    Fault("HTTP 429, Retry-After: not a time", [error(429, SLOW, retry_after="soon")]),
    Fault("HTTP 429, retry-after-ms: 1500", [error(429, SLOW, retry_after_ms="1500")]),
    Fault("HTTP 429, the wait is given in the error message", [error(429, f"{SLOW} Please try again in 1.5s.")]),
    Fault("HTTP 429 eight times (they use no attempts)", [error(429, SLOW, retry_after="1")] * 8),
    Fault("HTTP 429, Retry-After: 2h59m", [error(429, SLOW, retry_after="2h59m")], "exit 3", error_text="--wait"),
    Fault(
        "HTTP 429, requests per day (RPD)",
        [error(429, "on requests per day (RPD): Limit 1000", retry_after="90")],
        "exit 3",
        error_text="per day",
    ),
    Fault(
        "HTTP 429, insufficient_quota",
        [error(429, "You exceeded your current quota", "insufficient_quota")],
        "exit 3",
        error_text="exceeded your current quota",
    ),
    *(
        Fault(
            f"HTTP {status}", [error(status, f"the words of {status}")], "exit 1", error_text=f"the words of {status}"
        )
        for status in (400, 401, 402, 403, 404, 413, 422)
    ),
    Fault(
        "HTTP 401, the error message contains the API key",
        [error(401, f"Incorrect API key provided: {KEY}")],
        "exit 1",
        error_text="Incorrect API key provided: [key]",
    ),
    Fault("connection reset before the response", [Act(reset=0)]),
    Fault("connection reset within the body", [Act(reset=40)]),
    Fault("body shorter than Content-Length", [Act(length=10**5)]),
    Fault("body sent slowly in small pieces", [Act(drip=0.04)]),
    Fault("no response before the time-out", [Act(delay=4.0, good=False)]),
    Fault("truncated JSON", [Act(body=b'{"choices": [{"message": {"conte')]),
    Fault("empty body", [Act(body=b"")]),
    Fault("HTTP 200 with an HTML page", [Act(200, {"Content-Type": "text/html"}, b"<html>Log in</html>")]),
    Fault("JSON that is not an object", [Act(body=b"[1, 2]")]),
    Fault("body that is not UTF-8", [Act(body=b'{"choices": "\xff\xfe"}')]),
    Fault("Content-Encoding: gzip, body not compressed", [Act(200, {"Content-Encoding": "gzip"}, b'{"choices": []}')]),
    Fault("empty choices", [bad(_without_choices)]),
    Fault("content is a list", [bad(changed(content=["a"]))]),
    Fault("finish_reason null", [bad(changed(finish_reason=None))]),
    Fault("finish_reason abort", [bad(changed(finish_reason="abort"))]),
    Fault("null content", [bad(changed(content=None))]),
    Fault("content is only white space", [bad(changed(content=" \n"))]),
    Fault("null content in every attempt", [bad(changed(content=None))] * 9, "refused", calls=5),
    Fault("finish_reason content_filter", [bad(changed(finish_reason="content_filter"))]),
    Fault(
        "finish_reason content_filter in every attempt",
        [bad(changed(finish_reason="content_filter"))] * 9,
        "refused",
        calls=5,
    ),
    Fault("finish_reason length", [Act(change=changed(finish_reason="length"))], "cut", calls=1),
    Fault("usage missing", [Act(change=_without_usage)], calls=1),
    Fault("log-probabilities missing", [bad(changed(logprobs=None))], request_options=TOP),
    Fault("log-probabilities malformed", [bad(_malformed_logprobs)], request_options=TOP),
    Fault(
        "log-probabilities unsorted, repeated, without bytes",
        [Act(change=_mlx_lm_logprobs)],
        calls=1,
        request_options=TOP,
    ),
    Fault("token that is part of a UTF-8 character", [Act(change=_partial_character)], calls=1, request_options=TOP),
    Fault("local clock goes backwards", [error(429, SLOW, retry_after=_http_date(20))], clock=_backwards_clock),
]


@dataclass
class FaultResult:
    """The outcome of a fault."""

    fault: Fault
    calls: int
    outcome: str
    message: str
    lost: int
    twice: int
    wrong: int
    leaked: bool  # whether the key is in a traceback or a file
    answers: dict[str, Any]


def run_fault(fault: Fault) -> FaultResult:
    """Label six prompts, one of which meets the fault. If that stops the stage, label again without the fault."""
    with tempfile.TemporaryDirectory() as folder, serving() as provider, DiskAnswerStore(Path(folder)) as cache:
        provider.on(FAULTY, *fault.responses)
        prompts = requests(**fault.request_options)
        done, outcome, message, traceback_text = LabelResult([], []), "", "", ""
        try:
            label(
                teacher(provider.url),
                prompts,
                cache,
                policy=RequestPolicy(clock=fault.clock(), timeout=2.0),
                result=done,
            )
        except DistillkitError as failure:
            outcome, message, traceback_text = f"exit {failure.exit_code}", str(failure), traceback.format_exc()
        calls = provider.prompts.count(FAULTY)
        if outcome:
            provider.script.clear()
            done = label(teacher(provider.url), prompts, cache, policy=RequestPolicy(clock=fast_clock(), timeout=2.0))
        kept = b"".join(path.read_bytes() for path in Path(folder).iterdir())
        leaked = KEY in message + traceback_text or KEY.encode() in kept
        return _result(fault, provider, done, calls, outcome, message, leaked)


def _result(
    fault: Fault, provider: Provider, done: LabelResult, calls: int, outcome: str, message: str, leaked: bool
) -> FaultResult:
    answers = {request.prompt: answer for request, _, answer in done.answered}
    if not outcome:
        faulty = answers.get(FAULTY)
        outcome = "refused" if faulty is None else "cut" if faulty.finish == "length" else "answered"
    wrong = sum(answer.text != f"to {prompt}" or answer.finish == REFUSED for prompt, answer in answers.items())
    return FaultResult(
        fault,
        calls,
        outcome,
        message,
        lost=len(set(provider.served) - set(answers)),
        twice=sum(count - 1 for count in provider.served.values()),
        wrong=wrong,
        leaked=leaked,
        answers=answers,
    )


OUTCOMES = {
    "answered": "retried, answered",
    "refused": "recorded as refused, left out of the training data",
    "cut": "kept, marked as truncated",
    "exit 1": "stops with the provider's error message",
    "exit 3": "stops, can be resumed later",
}


def page(rows: list[FaultResult]) -> str:
    """docs/trust.md with the table in it."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + table(rows) + END + rest.partition(END)[2]


def table(rows: list[FaultResult]) -> str:
    """The table and its introduction, in Markdown."""
    lost, twice, wrong = (sum(getattr(row, name) for row in rows) for name in ("lost", "twice", "wrong"))
    lines = [
        f"{len(rows)} faults: answers lost {lost}, asked twice {twice}, wrong answers stored {wrong}.\n",
        "| Fault | Calls | Outcome | Lost | Twice | Wrong |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
        *map(_table_row, rows),
    ]
    return "\n".join(lines) + "\n"


def _table_row(row: FaultResult) -> str:
    outcome = "answered" if row.outcome == "answered" and row.calls == 1 else OUTCOMES[row.outcome]
    return f"| {row.fault.name} | {row.calls} | {outcome} | {row.lost} | {row.twice} | {row.wrong} |"


def main() -> None:
    """Write the page, or with --check compare it."""
    os.environ["DISTILLKIT_API_KEY"] = KEY
    text = page([run_fault(fault) for fault in FAULTS])
    stale = PAGE.read_text(encoding="utf-8") != text
    if "--check" in sys.argv:
        sys.exit("out of date: docs/trust.md. Run `python tests/support/provider_faults.py`." if stale else 0)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
