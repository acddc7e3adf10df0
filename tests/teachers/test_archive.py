"""Export and import of answers."""

from __future__ import annotations

import contextlib
import gzip
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core.errors import CorruptError, UsageError
from distillkit.core.records import Answer, Request
from distillkit.teachers.answers import archive, maintenance
from distillkit.teachers.answers.disk import DiskAnswerStore, answer_key, key_fields
from support.stored_answers import BAD, exported, keep, spoil
from support.teachers import full_answer

ENDINGS = [".jsonl", ".jsonl.gz", pytest.param(".jsonl.zst", marks=pytest.mark.peer)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_answers_travel_in_a_file_and_nothing_is_overwritten(tmp_path: Path, ending: str, peer: Any) -> None:
    if ending.endswith("zst"):
        peer("zstandard")
    file = tmp_path / f"answers{ending}"
    with DiskAnswerStore(tmp_path / "from") as one, DiskAnswerStore(tmp_path / "to") as two:
        kept = {key: one.get(key) for key in [keep(one, full_answer(f"answer {i}"), i) for i in range(5)]}
        refused = key_fields("p", {"model": "m"}, Request("r", prompt="refused"))
        one.add(
            [(answer_key(refused), {"asked": refused, "answer": Answer("", finish="refused").to_json(), "time": 1})]
        )
        spoil(one, tmp_path / "ran")
        before = {row.key: row.text for row in one.rows() if row.key in kept}
        header = archive.export_answers(one, file, "CC0")
        assert (header["rows"], header["left_out"], header["licence"]) == (6, len(BAD) + 5, "CC0")
        assert header["sources"] == [
            {"provider": "p", "model": "m", "kind": "answer", "rows": 5},
            {"provider": "p", "model": "m", "kind": "refused", "rows": 1},
        ]
        mine = keep(two, Answer("mine, and first"), 0)
        found = archive.import_answers(two, file)
        assert (found["rows"], found["new"], found["known"]) == (6, 5, 1)
        assert two.get(mine) == Answer("mine, and first")
        assert {key: two.get(key) for key in kept if key != mine} == {k: v for k, v in kept.items() if k != mine}
        assert {
            row.key: row.text for row in two.rows() if row.key in kept and row.key != mine
        }.items() <= before.items()
        assert archive.import_answers(two, file)["new"] == 0
        assert maintenance.verify(two)["damaged"] == []
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob(".*part"))


SPOILT: dict[str, Any] = {
    "empty": lambda lines: b"",
    "a pickle": lambda lines: pickle.dumps({"format": "distillkit-answers"}),
    "no header": lambda lines: b"".join(lines[1:]),
    "a header of tomorrow": lambda lines: b"".join([lines[0].replace(b'"version": 1', b'"version": 2'), *lines[1:]]),
    "a row too few": lambda lines: b"".join(lines[:-1]),
    "a row too many": lambda lines: b"".join([*lines, lines[-1]]),
    "half a row": lambda lines: b"".join(lines)[:-40],
    "another answer's key": lambda lines: b"".join([*lines[:2], lines[2].replace(b"prompt 1", b"prompt 7"), lines[3]]),
    "no key": lambda lines: b"".join([*lines[:3], b'{"asked": {}}\n']),
    "a list": lambda lines: b"".join([*lines[:3], b"[]\n"]),
    "a pickled row": lambda lines: b"".join([*lines[:3], pickle.dumps("row") + b"\n"]),
    "a deep row": lambda lines: b"".join([*lines[:3], b"[" * 200_000 + b"\n"]),
    "half a gzip": lambda lines: gzip.compress(b"".join(lines))[:-20],
    "a damaged gzip": lambda lines: gzip.compress(b"".join(lines))[:30] + b"damage" * 50,
    "a bare zstd": lambda lines: b"\x28\xb5\x2f\xfd" + b"damage" * 50,
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_bad_file_leaves_the_cache_as_it_was(tmp_path: Path, cache: DiskAnswerStore, how: str, peer: Any) -> None:
    if "zstd" in how:
        peer("zstandard")
    file = tmp_path / "spoilt.jsonl"
    file.write_bytes(SPOILT[how](exported(tmp_path)))
    with pytest.raises(CorruptError, match=r"spoilt\.jsonl"):
        archive.import_answers(cache, file)
    assert len(cache) == 0


def test_a_line_without_end_is_refused_before_it_is_all_in_memory(
    tmp_path: Path, cache: DiskAnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_LINE_BYTES", 10_000)
    lines = exported(tmp_path, 1)
    file = tmp_path / "long.jsonl.gz"
    file.write_bytes(gzip.compress(lines[0] + b" " * 20_000 + lines[1]))
    with pytest.raises(CorruptError, match="line 2 is longer than 10,000 bytes"):
        archive.import_answers(cache, file)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_change_of_a_byte_brings_in_what_was_not_asked(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = bytearray(b"".join(exported(folder, 1)))
        content[data.draw(st.integers(0, 10_000)) % len(content)] = data.draw(st.integers(0, 255))
        (folder / "changed.jsonl").write_bytes(content)
        with DiskAnswerStore(folder / "to") as cache:
            with contextlib.suppress(CorruptError):
                archive.import_answers(cache, folder / "changed.jsonl")
            assert maintenance.verify(cache)["damaged"] == []


def test_an_ending_that_nobody_knows_is_refused(cache: DiskAnswerStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an unknown suffix") as error:
        archive.export_answers(cache, tmp_path / "answers.zip")
    assert ".jsonl.gz" in error.value.hint


def test_what_is_written_during_an_export_is_not_half_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DiskAnswerStore(tmp_path / "cache") as one, DiskAnswerStore(tmp_path / "cache") as two:
        keep(one, Answer("a"), 0)
        counted = archive._header

        def then_another(*given: Any) -> Any:
            found = counted(*given)
            keep(two, Answer("b"), 1)
            return found

        monkeypatch.setattr(archive, "_header", then_another)
        archive.export_answers(one, tmp_path / "a.jsonl")
    with DiskAnswerStore(tmp_path / "to") as cache:
        assert archive.import_answers(cache, tmp_path / "a.jsonl")["new"] == 1
