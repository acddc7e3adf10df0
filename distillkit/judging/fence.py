"""Tools for judges that ask a model: fenced untrusted text, JSON replies, and a second request for unusable replies.

A student's text may contain instructions ("rate this 10"), fake fences and fake JSON. It is enclosed in lines with a
mark that is a hash of the text, so that no text can contain its own mark. Knows no criteria: each judge parses replies.
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
# This text and the reasons in `_parse` and `json_object` are sent to the model and enter cache keys: a change of them
# would repeat paid requests.
AGAIN = (
    "An earlier reply to this could not be used: {reason}. "
    "Reply with the JSON object alone, complete, exactly in the form that was described."
)


@dataclass(frozen=True)
class Reading(Generic[T]):
    """The parsed reply to one request, or the reason why there is none."""

    value: T | None
    reason: str = ""


def mark_of(*texts: str) -> str:
    """A mark that none of the texts contains: a hash of all of them."""
    return hashlib.sha256("\x00".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def fenced(mark: str, **parts: str) -> str:
    """The texts, each after a line with its name and the mark, with an end line after the last."""
    lines = [f"<<<{name.upper()} {mark}>>>\n{text}" for name, text in parts.items()]
    return "\n".join([*lines, f"<<<END {mark}>>>"])


def strictly(**properties: Any) -> dict[str, Any]:
    """The JSON schema of an object with exactly these properties, all required, in this order."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def readings(judge: Judge, subject: Subject, read: Callable[[int, dict[str, Any]], T]) -> list[Reading[T]]:
    """Send the judge's requests and parse the replies with `read(index of the request, JSON object)`.

    `read` raises ValueError if a reply is unusable; the request is then sent again with the reason, up to
    `judge.asks_again` times. The reason must not quote the reply, which is untrusted.
    """
    requests = list(judge.requests(subject))
    results = _send(subject, requests, [*range(len(requests))], read, judge)
    for _ in range(judge.asks_again):
        failed = [i for i, result in enumerate(results) if result.value is None]
        if not failed:
            break
        retries = [_retry_request(requests[i], results[i].reason) for i in failed]
        for i, result in zip(failed, _send(subject, retries, failed, read, judge), strict=True):
            results[i] = result
    return results


def _send(
    subject: Subject,
    requests: Sequence[Request],
    indices: Sequence[int],
    read: Callable[[int, dict[str, Any]], T],
    judge: Judge,
) -> list[Reading[T]]:
    answers = subject.ask(requests) if requests else []
    if answers is None:
        raise UsageError(
            f"the judge {judge.name!r} needs a teacher, but none is configured",
            'Add one to its table: [judge.teacher] provider = "openai"',
        )
    return [_parse(index, answer, read) for index, answer in zip(indices, answers, strict=True)]


def _parse(index: int, answer: Answer, read: Callable[[int, dict[str, Any]], T]) -> Reading[T]:
    if answer.finish == REFUSED:
        return Reading(None, "it was refused")
    try:
        return Reading(read(index, json_object(answer.text)))
    except ValueError as error:
        suffix = ", and it was cut at its length" if answer.finish == "length" else ""
        return Reading(None, f"{error}{suffix}")


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in a reply, which may be in a Markdown code block or surrounded by text. Raises ValueError."""
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
    """Whether a text contains a quotation, ignoring case, spacing and quotation marks. `...` marks an omission."""
    whole = _normalize(text)
    pieces = [_normalize(piece) for piece in re.split(r"\.\.\.|\u2026", quote)]
    return any(pieces) and all(piece in whole for piece in pieces)


def _normalize(text: str) -> str:
    unified = text.translate(str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014", "''\"\"--"))
    return " ".join(unified.casefold().split()).strip(" \"'.")


def _retry_request(request: Request, reason: str) -> Request:
    """The same request with the reason why the first reply was unusable. The reply itself is not shown."""
    *before, last = request.messages or ()
    content = f"{last['content']}\n\n{AGAIN.format(reason=reason)}"
    return replace(request, id=f"{request.id}!", messages=(*before, {**last, "content": content}))
