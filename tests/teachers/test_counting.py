"""Budgets in dollars, requests and tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distillkit.core.errors import LimitReached, UsageError
from distillkit.core.records import Price, Usage
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.answers.leases import LEASE_SECONDS
from distillkit.teachers.asking.label import LabelResult, label
from support.chat_provider import Provider, serving
from support.provider_faults import fast, requests, teacher


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving() as served:
        yield served


def test_a_budget_is_never_passed(provider: Provider, cache: DiskAnswerStore) -> None:
    price = Price(1000.0, 100_000.0)
    cost = price.of(Usage(5, 7))
    done = LabelResult([], [])
    with pytest.raises(LimitReached, match=r"teacher.max_usd = 60"):
        label(
            teacher(provider.url),
            requests(500, max_tokens=20),
            cache,
            policy=fast(max_usd=60.0, price=price, concurrency=16),
            result=done,
        )
    spent = len(provider.calls) * cost
    assert 40 < spent <= 60
    assert spent <= done.spent["usd"] <= 60


def test_a_budget_in_dollars_needs_a_price(cache: DiskAnswerStore) -> None:
    with pytest.raises(UsageError, match="max_usd needs a price"):
        label(teacher("https://somewhere.example/v1"), requests(1), cache, policy=fast(max_usd=1.0))


@pytest.mark.parametrize("limit", ["max_requests", "max_tokens_total"])
def test_requests_and_tokens_have_budgets_too(provider: Provider, cache: DiskAnswerStore, limit: str) -> None:
    most = {"max_requests": 7, "max_tokens_total": 1000}[limit]
    with pytest.raises(LimitReached, match=f"teacher.{limit} = {most}"):
        label(teacher(provider.url), requests(500, max_tokens=20), cache, policy=fast(**{limit: most}))
    assert len(provider.calls) <= 7 if limit == "max_requests" else len(provider.calls) * 12 <= 1000


@pytest.mark.parametrize("limit", [{"max_requests": 3}, {"max_tokens_total": 600}])
def test_a_budget_that_is_used_up_frees_what_was_claimed(
    provider: Provider, tmp_path: Path, limit: dict[str, int]
) -> None:
    with DiskAnswerStore(tmp_path) as one, DiskAnswerStore(tmp_path) as two:
        with pytest.raises(LimitReached):
            label(teacher(provider.url), requests(20), one, policy=fast(**limit))
        began = time.monotonic()
        assert len(label(teacher(provider.url), requests(20), two).answers) == 20
        assert time.monotonic() - began < LEASE_SECONDS / 2  # it waits for no lease to end
    assert sorted(provider.prompts) == sorted(f"prompt {i}" for i in range(20))
