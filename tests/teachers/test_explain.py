"""Why an answer is not in the store: the nearest stored request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core.errors import CorruptError, UsageError
from distillkit.core.records import Answer, Request
from distillkit.teachers.answers import explain
from distillkit.teachers.answers.disk import DiskAnswerStore, answer_key, key_fields
from distillkit.teachers.asking.label import label
from support.teachers import Counting, prompts


def test_explain_names_the_fields_in_which_two_requests_differ(cache: DiskAnswerStore, tmp_path: Path) -> None:
    one = key_fields("p", {"model": "m"}, Request("r", prompt="Once", stop=("a",)))
    other = key_fields("p", {"model": "n"}, Request("r", prompt="Once", temperature=0.5, stop=("a", "b")))
    cache.put(answer_key(one), one, Answer("a"))
    (tmp_path / "other.json").write_text(json.dumps(other))
    found = explain.compare_requests(cache, answer_key(one)[:10], str(tmp_path / "other.json"))
    assert (found["one"]["key"], found["other"]["key"]) == (answer_key(one), answer_key(other))
    assert [(row["field"], row["one"], row["other"]) for row in found["differences"]] == [
        ("identity.model", "m", "n"),
        ("request.stop.1", None, "b"),
        ("request.temperature", 1.0, 0.5),
    ]
    assert explain.compare_requests(cache, answer_key(one), answer_key(one))["differences"] == []


@settings(deadline=None, max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-2, 2) | st.text("ab", max_size=2),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    ),
    st.data(),
)
def test_there_is_a_difference_exactly_where_the_keys_differ(value: Any, data: st.DataObject) -> None:
    other = data.draw(st.just(value) | st.lists(st.integers(0, 1), max_size=2))
    assert bool(explain.differences({"a": value}, {"a": other})) == (
        answer_key({"a": value}) != answer_key({"a": other})
    )


def test_true_differs_from_one_as_in_the_key() -> None:
    assert answer_key({"a": [True]}) != answer_key({"a": [1]})
    assert explain.differences({"a": [True]}, {"a": [1]}) == [{"field": "a.0", "one": True, "other": 1}]


def test_an_empty_list_is_a_field_too() -> None:
    assert explain.differences({"a": {"a": []}}, {"a": []}) == [
        {"field": "a", "one": None, "other": []},
        {"field": "a.a", "one": [], "other": None},
    ]


@pytest.mark.parametrize("spec", ["abc", "000000", "no/such/file.json"])
def test_a_request_that_is_not_there_is_said(cache: DiskAnswerStore, spec: str) -> None:
    with pytest.raises(UsageError, match="matches no rows"):
        explain.find_request(cache, spec)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[]", b'{"request": 1' + b"0" * 5000 + b"}"])
def test_a_file_that_cannot_be_read_is_said_with_its_name(
    cache: DiskAnswerStore, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CorruptError, match=r"a\.json cannot be read"):
        explain.find_request(cache, str(tmp_path / "a.json"))


def test_long_texts_are_shown_where_they_part() -> None:
    base = "Once upon a time there was a fox who lived by the river, and "
    rows = explain.differences({"request.prompt": base + "slept."}, {"request.prompt": base + "ran."})
    (line,) = explain.format_differences(rows)
    assert "slept." in line
    assert "ran." in line
    assert "Once" not in line
    assert "from character" in line


def test_the_nearest_row_to_each_request_that_is_missing_is_found(cache: DiskAnswerStore) -> None:
    teacher = Counting()
    label(teacher, prompts(20, temperature=0.5), cache)
    label(teacher, prompts(3), cache)
    found = explain.explain_missing(cache, teacher, prompts(22), show=18)
    assert (found["requests"], found["cached"], found["missing"]) == (22, 3, 19)
    assert found["differ_in"] == {"request.temperature": 17, "request.prompt": 2}
    assert found["examples"][0]["differences"] == [{"field": "request.temperature", "one": 1.0, "other": 0.5}]
    assert len(found["examples"]) == 18
    assert explain.explain_missing(cache, teacher, prompts(3))["examples"] == []
