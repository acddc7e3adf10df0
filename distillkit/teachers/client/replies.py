"""Error responses and rate-limit headers of OpenAI-compatible providers: which error to raise, how long to wait.

Knows their error messages and headers, but neither SDKs nor sockets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from ...core import secrets
from ...core.errors import DistillkitError, LimitReached, SlowDown, TeacherError, TryAgain
from ...core.records import Allowance

RETRYABLE_STATUSES = {408, 409, 425, 498}  # and 5xx
QUOTA_ERROR_CODES = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated")
HINTS = {
    400: "Change the options of the teacher in the recipe.",
    401: "Set {variable} to a valid key, in the environment or in .env.",
    402: "Add credit at the provider, or use another teacher.",
    403: "The key has no access to this model: choose another (teacher.model), or request access.",
    404: "Check teacher.model and teacher.base_url.",
    413: "Shorten the prompts or teacher.max_tokens.",
    422: "Change the options of the teacher in the recipe.",
}
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+"


def parse_duration(text: str | None) -> float | None:
    """The seconds of a duration such as `20`, `0.5`, `250ms` or `2m59.56s`; None if it is not one."""
    text = (text or "").strip().lower()
    if re.fullmatch(r"\d+(\.\d*)?|\.\d+", text):
        return float(text)
    if not re.fullmatch(_DURATION, text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", text))


def retry_after(headers: Mapping[str, str], message: str, wall: float) -> float | None:
    """The seconds that a provider asks to wait: from a header (number, duration or date), or from its message."""
    if (milliseconds := parse_duration(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    header = headers.get("retry-after")
    if header is not None:
        wait = parse_duration(header)
        return wait if wait is not None else _seconds_until(header, headers.get("date"), wall)
    match = re.search(rf"try again in ({_DURATION})", message, re.IGNORECASE)
    return parse_duration(match[1]) if match else None


def _seconds_until(date: str, provider_date: str | None, wall: float) -> float | None:
    """Seconds until an HTTP date, by the provider's clock if it sends one, because the local clock may be wrong."""
    try:
        at = parsedate_to_datetime(date).timestamp()
        now = parsedate_to_datetime(provider_date).timestamp() if provider_date else wall
    except (ValueError, TypeError):
        return None
    return max(0.0, at - now)


def parse_allowances(headers: Mapping[str, str], spans: Mapping[str, float]) -> list[Allowance]:
    """The limits in the `x-ratelimit-*` headers. `spans`: seconds over which "requests" and "tokens" are counted."""
    allowances = []
    for unit, span in spans.items():
        limit, remaining = (_number(headers.get(f"x-ratelimit-{kind}-{unit}")) for kind in ("limit", "remaining"))
        if limit is not None:
            reset = parse_duration(headers.get(f"x-ratelimit-reset-{unit}"))
            allowances.append(Allowance(unit, span, limit, remaining, reset))
    return allowances


def _number(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"\d+(\.\d+)?", text.strip()) else None


def error_message(body: Any, text: str, redact: Callable[[str], str] = str) -> str:
    """The error message in a response, in one line. Keys are redacted before it is cut, so that no part remains."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    message = error.get("message") if isinstance(error, Mapping) else error
    plain = message if isinstance(message, str) and message.strip() else re.sub(r"<[^>]*>", " ", text)
    return secrets.redact(redact(" ".join(plain.split())))[:400] or "no error message"


def error_of_response(
    status: int, headers: Mapping[str, str], body: Any, message: str, variable: str, wall: float
) -> DistillkitError:
    """The exception for an error response: SlowDown, TryAgain, LimitReached, or TeacherError if a retry is useless."""
    text = f"HTTP {status}: {message}"
    wait = retry_after(headers, message, wall)
    if status == 429:
        if any(code in _error_codes(body) for code in QUOTA_ERROR_CODES):
            return LimitReached(text, "The quota is used up: add credit at the provider.")
        daily = bool(re.search(r"\b(per day|RPD|TPD|daily)\b", message, re.IGNORECASE))
        return SlowDown(text, seconds=wait, daily=daily)
    if status in RETRYABLE_STATUSES or status >= 500:
        return TryAgain(text, seconds=wait)
    return TeacherError(text, HINTS.get(status, HINTS[400]).format(variable=variable))


def is_output_limit_error(message: str) -> bool:
    """Whether an error of OpenAI means that a model used all of max_tokens for reasoning."""
    return "max_tokens or model output limit was reached" in message


def _error_codes(body: Any) -> list[Any]:
    error = body.get("error", body) if isinstance(body, Mapping) else {}
    return [error.get("code"), error.get("type")] if isinstance(error, Mapping) else []
