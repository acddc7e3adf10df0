"""The request policy: concurrency, attempts, time-out, rate limits, price and budget of the requests to a teacher.

A recipe's [teacher] table and the options of a command fill it. `retries` has the back-off, `rate_limits` the limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...core.errors import UsageError
from ...core.records import DAY, MINUTE, Price
from ...plugins.interfaces import Teacher
from .rate_limits import Budget, Clock, RateState

BATCH_PRICE_FACTOR = 0.5  # price of a request in a batch, relative to a single one, at all providers that we know


@dataclass(frozen=True)
class RequestPolicy:
    """How requests are sent to a teacher: concurrency, attempts, rate limits, budget."""

    concurrency: int = 8
    timeout: float | None = None  # seconds for one answer; None for the default of the kind of teacher
    attempts: int = 5  # calls of one request at most; rate-limited calls do not count
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_day: int | None = None
    max_usd: float | None = None
    max_requests: int | None = None
    max_tokens_total: int | None = None
    price: Price | None = None
    spent: Mapping[str, float] = field(default_factory=dict)  # usd, requests and tokens of earlier sessions of the run
    wait: bool = False  # sleep through a daily limit or until batches have ended, instead of stopping
    batch: bool = False  # use the provider's Batch API
    retry_refused: bool = False  # ask again for what is cached as refused
    shard: tuple[int, int] | None = None  # (i, n): only the i-th of n shards of the requests, from 1
    clock: Clock = field(default_factory=Clock)
    rate_state: RateState | None = None  # from earlier sessions of this process, where there are several

    @property
    def rate_limits(self) -> dict[tuple[str, float], float]:
        """The rate limits that the recipe sets: (unit, seconds) to amount."""
        rates = {
            ("requests", MINUTE): self.requests_per_minute,
            ("tokens", MINUTE): self.tokens_per_minute,
            ("requests", DAY): self.requests_per_day,
            ("tokens", DAY): self.tokens_per_day,
        }
        return {key: float(rate) for key, rate in rates.items() if rate is not None}

    def price_of(self, teacher: Teacher) -> Price | None:
        """The price of tokens: the recipe's, or else the teacher's own; None if it is unknown."""
        price = self.price or teacher.price()
        return price.times(BATCH_PRICE_FACTOR) if price and self.batch else price

    def budget(self, teacher: Teacher) -> Budget:
        """The budget for a teacher, less what was spent before. Raises UsageError if max_usd is set without a price."""
        price = self.price_of(teacher)
        if self.max_usd is not None and price is None:
            raise UsageError(
                f"teacher.max_usd needs a price, and the price of the teacher {teacher.name!r} is unknown",
                "Set teacher.price = { input = ..., output = ... }, in dollars per million tokens.",
            )
        usd, requests, tokens = (self.spent.get(name, 0) for name in ("usd", "requests", "tokens"))
        return Budget(self.max_usd, self.max_requests, self.max_tokens_total, price, usd, requests, tokens)


def parse_shard(text: str) -> tuple[int, int]:
    """The two numbers of a shard such as 2/8."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"--shard: found {text!r}, expected a shard such as 2/8", "The first of eight is 1/8.")
    return int(index), int(count)
