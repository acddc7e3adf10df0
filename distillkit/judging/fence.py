"""For judges that ask a teacher: text shown as data, replies read as JSON, and one more try where a reply is no use.

A student's text may hold orders ("rate this 10"), false fences and false JSON. It stands between lines that carry a
mark made of the text itself, which no text can contain. Knows no criteria: what a reply must hold, the judge says.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from ..core.errors import UsageError
from ..core.records import REFUSED, Answer, Request
from ..plugins.interfaces import Judge, Subject

T = TypeVar("T")
AGAIN = (
    "An earlier reply to this could not be used: {reason}. "
    "Reply with the JSON object alone, complete, exactly in the form that was described."
)


@dataclass(frozen=True)
class Reading(Generic[T]):
    """What came of one request: a value, or the reason why there is none."""

    value: T | None
    reason: str = ""


def mark_of(*texts: str) -> str:
    """A mark that stands in none of the texts, since it is a hash of them all."""
    return hashlib.sha256("\x00".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def fenced(mark: str, **parts: str) -> str:
    """Texts between lines that only we can write, each under its name."""
    lines = [f"<<<{name.upper()} {mark}>>>\n{text}" for name, text in parts.items()]
    return "\n".join([*lines, f"<<<END {mark}>>>"])


def strictly(**properties: Any) -> dict[str, Any]:
    """The JSON schema of an object that has these properties, in this order, and no others."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def readings(judge: Judge, subject: Subject, read: Callable[[int, dict[str, Any]], T]) -> list[Reading[T]]:
    """What the judge's teacher says to each of its requests, as `read` makes it of the request's number and the reply.

    `read` raises ValueError, in words that quote nothing, where a reply cannot be used: that is asked once more.
    """
    requests = list(judge.requests(subject))
    found = _asked(subject, requests, [*range(len(requests))], read, judge)
    for _ in range(judge.asks_again):
        due = [i for i, reading in enumerate(found) if reading.value is None]
        if not due:
            break
        again = [_once_more(requests[i], found[i].reason) for i in due]
        for i, reading in zip(due, _asked(subject, again, due, read, judge), strict=True):
            found[i] = reading
    return found


def _asked(
    subject: Subject,
    requests: Sequence[Request],
    numbers: Sequence[int],
    read: Callable[[int, dict[str, Any]], T],
    judge: Judge,
) -> list[Reading[T]]:
    answers = subject.ask(requests) if requests else []
    if answers is None:
        raise UsageError(
            f"the judge {judge.name!r} asks a teacher, and has none",
            'Name one in its table: [judge.teacher] provider = "openai"',
        )
    return [_read(number, answer, read) for number, answer in zip(numbers, answers, strict=True)]


def _read(number: int, answer: Answer, read: Callable[[int, dict[str, Any]], T]) -> Reading[T]:
    if answer.finish == REFUSED:
        return Reading(None, "it was refused")
    try:
        return Reading(read(number, json_object(answer.text)))
    except ValueError as error:
        cut = ", and it was cut at its length" if answer.finish == "length" else ""
        return Reading(None, f"{error}{cut}")


def json_object(text: str) -> dict[str, Any]:
    """The one JSON object that a reply is, if need be in a Markdown fence or after some words."""
    bare = re.sub(r"^```\w*\n|\n?```$", "", text.strip())
    for candidate in (bare, bare[bare.find("{") : bare.rfind("}") + 1]):
        try:
            value = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    raise ValueError("it is not one JSON object")


def occurs(quote: str, text: str) -> bool:
    """Whether a quotation stands in a text, case, spaces and kinds of quotation marks aside; dots leave words out."""
    whole = _plain(text)
    pieces = [_plain(piece) for piece in re.split(r"\.\.\.|\u2026", quote)]
    return any(pieces) and all(piece in whole for piece in pieces)


def _plain(text: str) -> str:
    even = text.translate(str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014", "''\"\"--"))
    return " ".join(even.casefold().split()).strip(" \"'.")


def _once_more(request: Request, reason: str) -> Request:
    """The same request, with a word about what was wrong with the first reply, which itself is not shown."""
    *before, last = request.messages or ()
    words = f"{last['content']}\n\n{AGAIN.format(reason=reason)}"
    return replace(request, id=f"{request.id}!", messages=(*before, {**last, "content": words}))
