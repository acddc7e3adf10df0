"""Files and folders are written atomically; JSON lines and digests."""

from __future__ import annotations

import json
import os
import stat
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillkit.core.errors import CorruptError
from distillkit.core.files import (
    atomic_folder,
    atomic_write,
    digest,
    file_digest,
    read_json,
    read_jsonl,
    remove_stale_parts,
    write_json,
    write_jsonl,
    write_text,
)
from support.killed_process import killed_while, names


def break_off(writing: AbstractContextManager[Path]) -> None:
    """Write half of what is due, then fail."""
    with writing as part:
        (part / "b" if part.is_dir() else part).write_text("half")
        raise RuntimeError("broken off")


def test_a_file_is_replaced_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    for text in ("old", "new ünï 漢"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert names(path.parent) == ["a.txt"]


def test_a_failure_inside_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="broken off"):
        break_off(atomic_write(path))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_until_the_end_of_the_block_readers_see_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with atomic_write(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_process_killed_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    killed_while(
        "import time; from pathlib import Path; from distillkit.core.files import atomic_write\n"
        "with atomic_write(Path('a.txt')) as part:\n"
        "    part.write_text('half'); print('middle', flush=True); time.sleep(60)",
        tmp_path,
    )
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_process_killed_in_the_middle_leaves_the_old_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "f") as part:
        (part / "a").write_text("old")
    killed_while(
        "import time; from pathlib import Path; from distillkit.core.files import atomic_folder\n"
        "with atomic_folder(Path('f')) as part:\n"
        "    (part / 'b').write_text('half'); print('middle', flush=True); time.sleep(60)",
        tmp_path,
    )
    assert names(tmp_path / "f") == ["a"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with atomic_folder(tmp_path / "f") as part:
            (part / "deep").mkdir()
            (part / "deep" / name).write_text(name)
    assert names(tmp_path / "f" / "deep") == ["b"]
    assert names(tmp_path) == ["f"]


def test_a_failure_inside_leaves_the_old_folder_and_no_part(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "f") as part:
        (part / "a").write_text("old")
    with pytest.raises(RuntimeError, match="broken off"):
        break_off(atomic_folder(tmp_path / "f"))
    assert names(tmp_path / "f") == ["a"]
    assert names(tmp_path) == ["f"]


def test_of_two_that_write_one_folder_at_once_both_succeed_and_the_last_stays(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "f") as slow:
        (slow / "slow").write_text("")
        with atomic_folder(tmp_path / "f") as quick:
            (quick / "quick").write_text("")
        assert names(tmp_path / "f") == ["quick"]
    assert names(tmp_path / "f") == ["slow"]
    assert names(tmp_path) == ["f"]


def test_what_a_killed_process_left_is_swept_away_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from distillkit.core.files import atomic_folder, atomic_write\n"
        "with atomic_write(Path('a.txt')), atomic_folder(Path('f')):\n"
        "    print('middle', flush=True); time.sleep(60)"
    )
    killed_while(code, tmp_path)
    left = {path.name for path in tmp_path.glob(".*.part")}
    assert len(left) == 2
    here = next(iter(left)).split(".")[-2].split("-")[0]
    alive = f".b.{here}-{os.getpid()}-00000000.part"
    elsewhere, long_ago = ".c.00000000-1-00000000.part", ".d.00000000-1-00000000.part"
    others = {alive, elsewhere, ".mine.part", "e.part"}
    for name in (*others, long_ago):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / long_ago, (1, 1))
    remove_stale_parts(tmp_path)
    assert set(names(tmp_path)) == others


def test_a_folder_that_its_writer_lost_does_not_cost_the_old_one(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "f") as part:
        (part / "a").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "f") as part:
        part.rmdir()
    assert names(tmp_path / "f") == ["a"]


def test_a_file_in_the_place_of_a_folder_is_not_dropped(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "precious")
    with pytest.raises(OSError), atomic_folder(tmp_path / "f") as part:
        (part / "a").write_text("")
    assert (tmp_path / "f").read_text() == "precious"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_who_may_read_is_for_the_umask_to_say(tmp_path: Path, umask: int, file: int, folder: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "")
        with atomic_folder(tmp_path / "f"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == file
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == folder


ROWS = [{"text": "漢字 \U0001f98a", "n": 1}, {"text": "line\nbreak\r\u2028", "n": None}]


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert read_jsonl(tmp_path / "a.jsonl") == ROWS
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_wherever_a_crash_cuts_the_last_line_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ROWS)
    whole = path.read_bytes()
    for end in range(len(whole)):  # also through the middle of a character
        path.write_bytes(whole[:end])
        assert read_jsonl(path) == ROWS[: whole[:end].count(b"\n")]


@pytest.mark.parametrize("line", [b"{", b"\xff\xfe", b"{'a': 1}"])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(CorruptError, match=r"a\.jsonl cannot be read: line 2 "):
        read_jsonl(path)


def test_what_is_not_json_never_replaces_what_is(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, "ü"]})
    for wrong in (float("nan"), {"a": Path()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "a.json", wrong)
    assert read_json(tmp_path / "a.json") == {"a": [1, "ü"]}
    assert names(tmp_path) == ["a.json"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def backwards(value: object) -> object:
    """The same value, its keys in another order and its lists as tuples."""
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(list(value))}
    return tuple(backwards(item) for item in value) if isinstance(value, list) else value


@given(VALUES)
def test_a_digest_sees_values_and_neither_order_nor_kind_of_sequence(value: object) -> None:
    assert digest(value) == digest(backwards(value)) == digest(json.loads(json.dumps(value)))


@given(VALUES, VALUES)
def test_different_values_have_different_digests(one: object, other: object) -> None:
    if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        assert digest(one) != digest(other)


def test_a_digest_never_changes() -> None:
    """Keys of paid answers hang on it."""
    value = {"b": [1, 2.5, None, True], "a": "ü\U0001f98a\x00"}
    assert digest(value) == "f3939e557cc19e962f28e8ac49145fd55b29a5115a8241cd36c43b7b95586be5"


def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
