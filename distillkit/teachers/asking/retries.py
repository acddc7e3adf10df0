"""Retries and back-off: how long to wait before a failed call is repeated, and how often it is repeated.

Change the back-off here. Three cases use it:

- A single request that failed (`TryAgain`): `retry_request`, driven by `scheduler`.
- A rate limit (HTTP 429, `SlowDown`): `rate_limit_backoff`, used by `rate_limits`. It costs no attempt.
- A call of the Batch API: `retry_batch_call`, used by `batch_client`.

Knows neither teachers nor providers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ...core.errors import TryAgain

BACKOFF = (0.5, 30.0)  # seconds: bound of the random wait before the second attempt (it doubles), and its maximum
RATE_LIMIT_BACKOFF = (1.0, 60.0)  # seconds: first pause after a 429 without Retry-After (it doubles), and its maximum
BATCH_BACKOFF = (0.5, 20.0)  # as BACKOFF, for calls of the Batch API
BATCH_ATTEMPTS = 5  # of one call of the Batch API
MAX_WAIT = 300.0  # seconds: the longest wait that a provider may ask for; beyond it the stage stops, or announces it


async def retry_request(
    call: Callable[..., Awaitable[Any]],
    *args: Any,
    attempts: int,
    sleep: Callable[[float], Awaitable[None]],
    is_stopped: Callable[[], bool],
) -> Any:
    """Await `call(*args)` until it succeeds, at most `attempts` times. Only `TryAgain` is retried.

    The last error is raised when the attempts are used up, or at once when `is_stopped()` is true.
    """
    from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

    retrying = AsyncRetrying(
        stop=lambda state: is_stopped() or stop_after_attempt(attempts)(state),
        wait=_request_wait,
        retry=retry_if_exception_type(TryAgain),
        sleep=sleep,
        reraise=True,
    )
    return await retrying(call, *args)


def _request_wait(state: Any) -> float:
    """Seconds until the next attempt: what the error says (Retry-After), or a random exponential back-off."""
    from tenacity import wait_random_exponential

    seconds: float | None = getattr(state.outcome.exception(), "seconds", None)
    backoff = wait_random_exponential(multiplier=BACKOFF[0], max=BACKOFF[1])
    return backoff(state) if seconds is None else min(seconds, MAX_WAIT)


def rate_limit_backoff(rejections: int) -> float:
    """Seconds to pause after so many rate-limit responses in a row, where the provider names no time."""
    first, longest = RATE_LIMIT_BACKOFF
    return min(longest, first * 2.0 ** (rejections - 1))


def retry_batch_call(call: Callable[[], Any], is_retryable: Callable[[BaseException], bool]) -> Any:
    """The result of `call()`, repeated with back-off while it raises a retryable error."""
    import tenacity

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(BATCH_ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=BATCH_BACKOFF[0], max=BATCH_BACKOFF[1]),
        retry=tenacity.retry_if_exception(is_retryable),
        reraise=True,
    )
    return retrying(call)
