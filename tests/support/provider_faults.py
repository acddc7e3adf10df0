"""Every fault that a provider may show, tried on the real SDK over a real socket, and what became of it.

`python tests/support/provider_faults.py` writes the table of the README; with `--check` it writes nothing and fails
when that is out of date.
Time runs fifty times as fast here as elsewhere, for the host and for nobody else.
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
PAGE = ROOT / "README.md"
BEGIN = "<!-- faults: made by tests/support/provider_faults.py from what really happened -->\n"
END = "<!-- end of faults -->"
PROMPTS = 6
FAULTY = "prompt 3"
KEY = "a-fake-key-that-no-provider-gave-0123456789"


def fast_clock(wall: Callable[[], float] = time.time) -> Clock:
    """Time in which a minute takes a second."""

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / FAST)

    return Clock(now=lambda: time.monotonic() * FAST, sleep=sleep, wall=wall)


def requests(count: int = PROMPTS, **more: Any) -> list[Request]:
    return [Request(f"r{i}", prompt=f"prompt {i}", **more) for i in range(count)]


def teacher(url: str, **options: Any) -> Compatible:
    return Compatible(Compatible.Options(model="m", base_url=url, **options))


@dataclass
class Fault:
    """What the provider does to one prompt of six, and what is to become of it."""

    name: str
    acts: list[Act]
    becomes: str = "answered"  # or "refused", "cut", or how the stage stops: "exit 1", "exit 3"
    calls: int | None = None  # how often the prompt is asked in all; once more than it failed, if not said
    asked: dict[str, Any] = field(default_factory=dict)
    says: str = ""  # what the message has in it, if it stops
    clock: Callable[[], Clock] = fast_clock


def changed(**keys: Any) -> Callable[[dict[str, Any]], None]:
    """A change of the only choice; `content` is that of its message."""

    def change(body: dict[str, Any]) -> None:
        if "content" in keys:
            body["choices"][0]["message"]["content"] = keys["content"]
        body["choices"][0] |= {name: value for name, value in keys.items() if name != "content"}

    return change


def bad(change: Callable[[dict[str, Any]], Any]) -> Act:
    """An answer that is none."""
    return Act(change=change, good=False)


def _without_choices(body: dict[str, Any]) -> None:
    body["choices"] = []


def _without_usage(body: dict[str, Any]) -> None:
    del body["usage"]


def _misshapen(body: dict[str, Any]) -> None:
    body["choices"][0]["logprobs"]["content"][0]["logprob"] = "likely"


def _mixed_up(body: dict[str, Any]) -> None:
    """As mlx_lm.server gives them: no bytes, the byte-level alphabet, unsorted, the sampled token first and twice."""
    for row in body["choices"][0]["logprobs"]["content"]:
        for one in (row, *row["top_logprobs"]):
            one |= {"token": one["token"].replace(" ", "Ġ"), "bytes": None, "id": 7}
        row["top_logprobs"] = [dict(row["top_logprobs"][0]), *reversed(row["top_logprobs"])]


def _half_a_character(body: dict[str, Any]) -> None:
    rows = body["choices"][0]["logprobs"]["content"]
    rows[-1] |= {"token": "\ufffd", "bytes": [0xF0, 0x9F]}


def _date(seconds: float) -> str:
    return formatdate(time.time() + seconds, usegmt=True)


def _backwards() -> Clock:
    """The wall clock goes an hour back at every look."""
    times = iter(range(10**6))
    return fast_clock(lambda: time.time() - 3600.0 * next(times))


SLOW = "Rate limit reached. Please slow down."
TOP = {"top_logprobs": 2}
FAULTS = [
    *(
        Fault(f"HTTP {status}{about}", [error(status, "oops")])
        for status, about in (
            *((500, ""), (502, ", bad gateway"), (503, ", overloaded"), (504, ""), (529, "")),
            *((498, ", Groq has no room"), (408, ""), (409, ""), (425, "")),
        )
    ),
    Fault("HTTP 503 with Retry-After", [error(503, "oops", retry_after="5")]),
    Fault("HTTP 502 with a page of HTML", [Act(502, {"Content-Type": "text/html"}, b"<html>Bad gateway</html>")]),
    Fault("four failures one after another", [error(500, "oops")] * 4),
    Fault("five failures, which is the end", [error(500, "oops")] * 5, "exit 1", says="in 5 attempts"),
    Fault("HTTP 429 without a word of when", [error(429, SLOW)]),
    Fault("HTTP 429, Retry-After: 2", [error(429, SLOW, retry_after="2")]),
    Fault("HTTP 429, Retry-After: 0.5", [error(429, SLOW, retry_after="0.5")]),
    Fault("HTTP 429, Retry-After: 12.56s", [error(429, SLOW, retry_after="12.56s")]),
    Fault("HTTP 429, Retry-After: 1m2.5s", [error(429, SLOW, retry_after="1m2.5s")]),
    Fault("HTTP 429, Retry-After: an HTTP date", [error(429, SLOW, retry_after=_date(20))]),
    Fault(
        "the same, and the wall clock is wrong by a day",
        [error(429, SLOW, retry_after=_date(86400 + 20), date=_date(86400))],
    ),
    Fault("HTTP 429, Retry-After: nonsense", [error(429, SLOW, retry_after="soon")]),
    Fault("HTTP 429, retry-after-ms: 1500", [error(429, SLOW, retry_after_ms="1500")]),
    Fault("HTTP 429, when stands in its words", [error(429, f"{SLOW} Please try again in 1.5s.")]),
    Fault("HTTP 429 eight times, which costs no attempt", [error(429, SLOW, retry_after="1")] * 8),
    Fault("HTTP 429, Retry-After: 2h59m", [error(429, SLOW, retry_after="2h59m")], "exit 3", says="--wait"),
    Fault(
        "HTTP 429, requests per day (RPD)",
        [error(429, "on requests per day (RPD): Limit 1000", retry_after="90")],
        "exit 3",
        says="per day",
    ),
    Fault(
        "HTTP 429, insufficient_quota",
        [error(429, "You exceeded your current quota", "insufficient_quota")],
        "exit 3",
        says="exceeded your current quota",
    ),
    *(
        Fault(f"HTTP {status}", [error(status, f"the words of {status}")], "exit 1", says=f"the words of {status}")
        for status in (400, 401, 402, 403, 404, 413, 422)
    ),
    Fault(
        "HTTP 401 that quotes the key",
        [error(401, f"Incorrect API key provided: {KEY}")],
        "exit 1",
        says="Incorrect API key provided: [key]",
    ),
    Fault("reset before the response", [Act(reset=0)]),
    Fault("reset in the middle of the body", [Act(reset=40)]),
    Fault("a body shorter than its length", [Act(length=10**5)]),
    Fault("a body that drips", [Act(drip=0.04)]),
    Fault("no response in time", [Act(delay=4.0, good=False)]),
    Fault("truncated JSON", [Act(body=b'{"choices": [{"message": {"conte')]),
    Fault("an empty body", [Act(body=b"")]),
    Fault("a page of HTML as an answer", [Act(200, {"Content-Type": "text/html"}, b"<html>Log in</html>")]),
    Fault("JSON that is no object", [Act(body=b"[1, 2]")]),
    Fault("a body that is not UTF-8", [Act(body=b'{"choices": "\xff\xfe"}')]),
    Fault("a body that claims to be gzip", [Act(200, {"Content-Encoding": "gzip"}, b'{"choices": []}')]),
    Fault("empty choices", [bad(_without_choices)]),
    Fault("content that is a list", [bad(changed(content=["a"]))]),
    Fault("finish_reason null", [bad(changed(finish_reason=None))]),
    Fault("finish_reason abort", [bad(changed(finish_reason="abort"))]),
    Fault("null content", [bad(changed(content=None))]),
    Fault("content of spaces", [bad(changed(content=" \n"))]),
    Fault("null content to the end", [bad(changed(content=None))] * 9, "refused", calls=5),
    Fault("finish_reason content_filter", [bad(changed(finish_reason="content_filter"))]),
    Fault("content_filter to the end", [bad(changed(finish_reason="content_filter"))] * 9, "refused", calls=5),
    Fault("finish_reason length", [Act(change=changed(finish_reason="length"))], "cut", calls=1),
    Fault("usage missing", [Act(change=_without_usage)], calls=1),
    Fault("log-probabilities missing", [bad(changed(logprobs=None))], asked=TOP),
    Fault("log-probabilities misshapen", [bad(_misshapen)], asked=TOP),
    Fault("log-probabilities unsorted, twice, without bytes", [Act(change=_mixed_up)], calls=1, asked=TOP),
    Fault("a token that is half a character", [Act(change=_half_a_character)], calls=1, asked=TOP),
    Fault("the clock goes backwards", [error(429, SLOW, retry_after=_date(20))], clock=_backwards),
]


@dataclass
class Row:
    """What became of a fault."""

    fault: Fault
    calls: int
    became: str
    message: str
    lost: int
    twice: int
    wrong: int
    leaked: bool  # whether the key is in a traceback or a file
    answers: dict[str, Any]


def tried(fault: Fault) -> Row:
    """Label six prompts while one of them meets the fault; if that stops the stage, label again without it."""
    with tempfile.TemporaryDirectory() as folder, serving() as provider, DiskAnswerStore(Path(folder)) as cache:
        provider.on(FAULTY, *fault.acts)
        asked = requests(**fault.asked)
        done, became, message, traced = LabelResult([], []), "", "", ""
        try:
            label(
                teacher(provider.url), asked, cache, policy=RequestPolicy(clock=fault.clock(), timeout=2.0), done=done
            )
        except DistillkitError as failure:
            became, message, traced = f"exit {failure.exit_code}", str(failure), traceback.format_exc()
        calls = provider.prompts.count(FAULTY)
        if became:
            provider.script.clear()
            done = label(teacher(provider.url), asked, cache, policy=RequestPolicy(clock=fast_clock(), timeout=2.0))
        kept = b"".join(path.read_bytes() for path in Path(folder).iterdir())
        leaked = KEY in message + traced or KEY.encode() in kept
        return _row(fault, provider, done, calls, became, message, leaked)


def _row(
    fault: Fault, provider: Provider, done: LabelResult, calls: int, became: str, message: str, leaked: bool
) -> Row:
    answers = {request.prompt: answer for request, _, answer in done.answered}
    if not became:
        of_it = answers.get(FAULTY)
        became = "refused" if of_it is None else "cut" if of_it.finish == "length" else "answered"
    wrong = sum(answer.text != f"to {prompt}" or answer.finish == REFUSED for prompt, answer in answers.items())
    return Row(
        fault,
        calls,
        became,
        message,
        lost=len(set(provider.served) - set(answers)),
        twice=sum(count - 1 for count in provider.served.values()),
        wrong=wrong,
        leaked=leaked,
        answers=answers,
    )


WORDS = {
    "answered": "asked again, answered",
    "refused": "recorded as a refusal, left out of the training data",
    "cut": "kept, and marked as cut",
    "exit 1": "stops with the provider's words",
    "exit 3": "stops, to go on later",
}


def page(rows: list[Row]) -> str:
    """The README with the table in it."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + table(rows) + END + rest.partition(END)[2]


def table(rows: list[Row]) -> str:
    """The table, for people."""
    told = [_told(row) for row in rows]
    lost, twice, wrong = (sum(getattr(row, name) for row in rows) for name in ("lost", "twice", "wrong"))
    head = [
        f"<details>\n<summary>{len(rows)} faults of teachers, tried on real sockets: "
        f"answers lost {lost}, asked twice {twice}, wrong answers stored {wrong}.</summary>\n",
        "Six prompts are asked of a server on the loopback interface, over the real SDK; one of them meets the fault.",
        "Where that stops the stage, the same command is run again without it. An answer is lost when the server sent",
        "it whole and the cache does not have it, and asked twice when the server had to send it whole again.\n",
        "| fault | calls | what became of it | lost | twice | wrong |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *told, "", *ELSEWHERE, "\n</details>"]) + "\n"


ELSEWHERE = [
    "What takes more than one prompt is tried by tests of its own in `tests/teachers/test_chat.py`, to the same end: a",
    "server that stops and starts again, SIGKILL of the labeller at a random moment, two processes with a share each.",
]


def _told(row: Row) -> str:
    words = "answered" if row.became == "answered" and row.calls == 1 else WORDS[row.became]
    return f"| {row.fault.name} | {row.calls} | {words} | {row.lost} | {row.twice} | {row.wrong} |"


def main() -> None:
    """Write the page, or check it."""
    os.environ["DISTILLKIT_API_KEY"] = KEY
    text = page([tried(fault) for fault in FAULTS])
    stale = PAGE.read_text(encoding="utf-8") != text
    if "--check" in sys.argv:
        sys.exit("out of date: README.md. Run `python tests/support/provider_faults.py`." if stale else 0)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
