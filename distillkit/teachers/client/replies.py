"""What a provider says when it does not answer: how long to wait, what it allows, whether to ask again.

Knows the words and headers of OpenAI-style providers, and neither SDKs nor sockets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from ...core import secrets
from ...core.errors import DistillkitError, LimitReached, SlowDown, TeacherError, TryAgain
from ...core.records import Allowance

PASSING = {408, 409, 425, 498}  # and 5xx: a later try may be answered
NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated")
REMEDIES = {
    400: "Change what the recipe asks of the teacher.",
    401: "Set {variable} to a key that is valid, in the environment or in .env.",
    402: "Add credit with the provider, or ask another teacher.",
    403: "The key may not use this model: choose another (teacher.model), or ask for access.",
    404: "Check teacher.model and the address: teacher.base_url.",
    413: "Shorten the prompts or teacher.max_tokens.",
    422: "Change what the recipe asks of the teacher.",
}
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+"


def parse_duration(text: str | None) -> float | None:
    """A duration: `20`, `0.5`, `250ms` or `2m59.56s`."""
    text = (text or "").strip().lower()
    if re.fullmatch(r"\d+(\.\d*)?|\.\d+", text):
        return float(text)
    if not re.fullmatch(_DURATION, text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", text))


def retry_after(headers: Mapping[str, str], words: str, wall: float) -> float | None:
    """How long a provider asks to wait: in a header, as a number, a duration or a date, or else in its words."""
    if (milliseconds := parse_duration(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    told = headers.get("retry-after")
    if told is not None:
        wait = parse_duration(told)
        return wait if wait is not None else _until(told, headers.get("date"), wall)
    found = re.search(rf"try again in ({_DURATION})", words, re.IGNORECASE)
    return parse_duration(found[1]) if found else None


def _until(date: str, theirs: str | None, wall: float) -> float | None:
    """Seconds until a date; by the provider's own clock where it shows it, as ours may be wrong."""
    try:
        at = parsedate_to_datetime(date).timestamp()
        now = parsedate_to_datetime(theirs).timestamp() if theirs else wall
    except (ValueError, TypeError):
        return None
    return max(0.0, at - now)


def parse_allowances(headers: Mapping[str, str], spans: Mapping[str, float]) -> list[Allowance]:
    """What the `x-ratelimit-*` headers allow; over which span each counts differs from provider to provider."""
    found = []
    for of, span in spans.items():
        limit, remaining = (_number(headers.get(f"x-ratelimit-{kind}-{of}")) for kind in ("limit", "remaining"))
        if limit is not None:
            found.append(Allowance(of, span, limit, remaining, parse_duration(headers.get(f"x-ratelimit-reset-{of}"))))
    return found


def _number(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"\d+(\.\d+)?", text.strip()) else None


def error_message(body: Any, text: str, hide: Callable[[str], str] = str) -> str:
    """The provider's own words, in whatever shape it said them. What is hidden goes first: half a key is one, too."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    said = error.get("message") if isinstance(error, Mapping) else error
    plain = said if isinstance(said, str) and said.strip() else re.sub(r"<[^>]*>", " ", text)
    return secrets.redact(hide(" ".join(plain.split())))[:400] or "no words"


def error_of_response(
    status: int, headers: Mapping[str, str], body: Any, words: str, variable: str, wall: float
) -> DistillkitError:
    """What an answer that is none means for whoever asks."""
    told = f"HTTP {status}: {words}"
    wait = retry_after(headers, words, wall)
    if status == 429:
        if any(mark in _marks(body) for mark in NO_MONEY):
            return LimitReached(told, "The quota is used up: add credit with the provider.")
        daily = bool(re.search(r"\b(per day|RPD|TPD|daily)\b", words, re.IGNORECASE))
        return SlowDown(told, seconds=wait, daily=daily)
    if status in PASSING or status >= 500:
        return TryAgain(told, seconds=wait)
    return TeacherError(told, REMEDIES.get(status, REMEDIES[400]).format(variable=variable))


def is_output_limit_error(words: str) -> bool:
    """Whether a refusal means that a model thought up to the limit of its answer, as OpenAI says it."""
    return "max_tokens or model output limit was reached" in words


def _marks(body: Any) -> list[Any]:
    error = body.get("error", body) if isinstance(body, Mapping) else {}
    return [error.get("code"), error.get("type")] if isinstance(error, Mapping) else []
