"""Verify, statistics and prune of the answer store."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from distillkit.core.errors import CorruptError, UsageError
from distillkit.core.records import Answer, Request, Usage
from distillkit.teachers.answers import archive, maintenance
from distillkit.teachers.answers.disk import DiskAnswerStore, answer_key, key_fields
from support.stored_answers import exported, keep, spoil
from support.teachers import full_answer


def test_verify_names_what_is_damaged_and_repair_drops_nothing_else(cache: DiskAnswerStore, tmp_path: Path) -> None:
    good = [keep(cache, full_answer(f"answer {i}"), i) for i in range(3)]
    refused = key_fields("p", {}, Request("r", prompt="refused"))
    cache.add([(answer_key(refused), {"asked": refused, "answer": Answer("", finish="refused").to_json(), "time": 1})])
    assert maintenance.verify(cache)["damaged"] == []
    bad = spoil(cache, tmp_path / "ran")
    found = maintenance.verify(cache)
    assert [row["key"] for row in found["damaged"]] == bad
    assert all(row["fault"] for row in found["damaged"])
    assert (found["rows"], found["dropped"]) == (4 + len(bad), 0)
    assert maintenance.verify(cache, repair=True)["dropped"] == len(bad)
    assert maintenance.verify(cache)["rows"] == len(cache) == 4
    assert len(cache.get_many(good)) == 3
    assert not (tmp_path / "ran").exists()
    assert cache._rows.check() == []


def test_a_row_that_was_written_again_is_not_dropped(cache: DiskAnswerStore) -> None:
    key = keep(cache, Answer("one"))
    rows = list(cache.rows())
    keep(cache, Answer("two"))
    assert cache.drop(rows) == 0
    assert cache.get(key) == Answer("two")


def test_stats_count_by_provider_and_model(cache: DiskAnswerStore, tmp_path: Path) -> None:
    usage = Usage(10, 5)
    keep(cache, Answer("a", usage=usage), 0)
    keep(cache, Answer("a", usage=usage, finish="length"), 1)
    keep(cache, Answer("a", model="by itself"), 2, provider="q", model=None)
    refused = key_fields("p", {"model": "m"}, Request("r", prompt="refused"))
    held = key_fields("p", {"model": "m"}, Request("r", prompt="held back"))
    cache.add([(answer_key(held), {"asked": held, "answer": Answer("", finish="refused").to_json(), "time": 6.0})])
    probe = {"provider": "p", "probe": True}
    cache.add(
        [(answer_key(refused), {"asked": refused, "answer": Answer("", finish="refused").to_json(), "time": 5.0})]
    )
    cache.add([(answer_key(probe), {"asked": probe, "answer": Answer("").to_json(), "time": 5.0})])
    bad = len(spoil(cache, tmp_path / "ran")) - 5  # of which some say who was asked
    found = maintenance.stats(cache)
    rows = {(row["provider"], row["model"]): row for row in found["by"]}
    row = rows["p", "m"]
    assert (row["answers"], row["refused"], row["truncated"]) == (2, 2, 1)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (20, 10)
    assert row["oldest"] == "1970-01-01T00:00:05Z"
    assert row["newest"] > "2020"
    assert rows["q", "by itself"]["answers"] == 1
    assert rows["p", ""]["other"] == 1
    assert found["damaged"] >= bad
    assert found["bytes"] > 100


UNCOUNTED: dict[str, dict[str, Any]] = {
    "later than all dates": {"time": 1e20},
    "earlier than all dates": {"time": -1e15},
    "a time without end": {"time": 10**400},
    "words for tokens": {"usage": {"prompt_tokens": "x", "completion_tokens": 1}},
    "half a token": {"usage": {"prompt_tokens": 1, "completion_tokens": 0.5}},
    "fewer tokens than none": {"usage": {"prompt_tokens": -1, "completion_tokens": 1}},
    "endlessly many tokens": {"usage": {"prompt_tokens": float("inf"), "completion_tokens": 1}},
}


@pytest.mark.parametrize("wrong", UNCOUNTED)
def test_a_row_whose_date_or_cost_cannot_be_counted_is_named_and_not_let_in(
    tmp_path: Path, cache: DiskAnswerStore, wrong: str
) -> None:
    how = {"time": 1, "usage": None, **UNCOUNTED[wrong]}
    what = key_fields("p", {"model": "m"}, Request("r", prompt="a"))
    row = {"asked": what, "answer": {**Answer("a").to_json(), "usage": how["usage"]}, "time": how["time"]}
    header, *_ = exported(tmp_path, 1)
    file = tmp_path / "foreign.jsonl"
    file.write_bytes(header + json.dumps({"key": answer_key(what), **row}).encode() + b"\n")
    with pytest.raises(CorruptError, match="line 2 is not a valid row"):
        archive.import_answers(cache, file)
    cache.add([(answer_key(what), row)])  # as versions before this one did
    assert [bad["key"] for bad in maintenance.verify(cache)["damaged"]] == [answer_key(what)]
    assert (maintenance.stats(cache)["damaged"], maintenance.stats(cache)["answers"]) == (1, 0)


def test_tokens_may_be_counted_in_whole_floats(cache: DiskAnswerStore) -> None:
    keep(cache, Answer("a", usage=Usage(3.0, 4)))  # type: ignore[arg-type]
    assert maintenance.verify(cache)["damaged"] == []
    assert maintenance.stats(cache)["prompt_tokens"] == 3


def test_prune_drops_what_all_its_conditions_name(cache: DiskAnswerStore) -> None:
    keep(cache, Answer("a"), 0)
    keep(cache, Answer("a", model="m-2026"), 1)
    keep(cache, Answer("a"), 2, provider="q")
    what = key_fields("p", {"model": "m"}, Request("r", prompt="long ago"))
    cache.add([(answer_key(what), {"asked": what, "answer": Answer("a").to_json(), "time": time.time() - 40 * 86_400})])

    def many(**conditions: str) -> int:
        return len(list(maintenance.select_rows(cache, **conditions)))

    assert (many(provider="p"), many(provider="q"), many(model="m"), many(model="m-2026")) == (3, 1, 4, 1)
    assert many(older_than="30d") == many(older_than="1w", provider="p") == 1
    assert many(older_than="30d", provider="q") == 0
    assert cache.drop(maintenance.select_rows(cache, older_than="6w")) == 0
    assert cache.drop(list(maintenance.select_rows(cache, older_than="960h"))) == 1
    assert len(cache) == 3
    with pytest.raises(UsageError, match="no rows were selected for deletion"):
        many()
    for age in ("30", "d", "30 d", "-1d", "3m"):
        with pytest.raises(UsageError, match="is not an age"):
            many(older_than=age)
