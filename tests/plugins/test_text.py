"""The text source: formats, separators, globs, fingerprints, error messages."""

from __future__ import annotations

import gzip
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest
from distillkit_plugins.text import Text
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core.errors import UsageError
from distillkit.core.records import Document
from distillkit.data.tokenizer import END_OF_TEXT
from support.corpora import STORIES

# Sources.


def read(**options: Any) -> list[Document]:
    return list(Text(Text.Options(**options)).documents("train"))


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "one.txt"
    file.write_bytes(b"\xef\xbb\xbfline one\r\nline two\n")
    assert [(d.id, d.text) for d in read(path=str(file))] == [("one.txt:0", "line one\r\nline two\n")]


@pytest.mark.parametrize("packing", ["", ".gz", ".xz"])
def test_a_separator_parts_documents(tmp_path: Path, packing: str) -> None:
    file = tmp_path / f"many.txt{packing}"
    raw = f"\n{END_OF_TEXT}\n".join(STORIES).encode() + f"\n{END_OF_TEXT}\n".encode()
    {"": Path.write_bytes, ".gz": _gzip, ".xz": _xz}[packing](file, raw)
    assert [d.text for d in read(path=[str(file)], separator=END_OF_TEXT)] == STORIES


def test_an_end_of_text_parts_documents_unless_told_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "many.txt"
    file.write_text(f"one\n{END_OF_TEXT}\ntwo\n")
    assert [d.text for d in read(path=str(file))] == ["one", "two"]
    assert [d.text for d in read(path=str(file), separator="")] == [file.read_text()]


def _gzip(file: Path, raw: bytes) -> None:
    file.write_bytes(gzip.compress(raw))


def _xz(file: Path, raw: bytes) -> None:
    file.write_bytes(lzma.compress(raw))


@settings(deadline=None, max_examples=60)
@given(parts=st.lists(st.text(alphabet="ab|<é", max_size=6), min_size=1), chunk=st.integers(1, 7))
def test_a_separator_is_found_across_the_pieces_a_file_is_read_in(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], chunk: int
) -> None:
    file = tmp_path_factory.mktemp("parts") / "x.txt"
    text = "<|>".join(parts)
    file.write_text(text)
    expected = text.split("<|>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distillkit_plugins.text.CHUNK_SIZE", chunk)
        found = [d.text for d in read(path=str(file), separator="<|>")]
    assert found == (expected if expected[-1] else expected[:-1])


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.xz"])
def test_json_lines_are_read_by_their_key(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows{suffix}"
    raw = "\n\n".join(json.dumps({"story": story}) for story in STORIES).encode()
    {"": Path.write_bytes, ".gz": _gzip, ".xz": _xz}[suffix.removeprefix(".jsonl")](file, raw)
    assert [d.text for d in read(path=str(file), field="story")] == STORIES


def test_parquet_is_read_by_its_column(tmp_path: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    file = tmp_path / "rows.parquet"
    parquet.write_table(arrow.table({"story": [*STORIES, None], "n": [*range(400), 0]}), file)
    assert [d.text for d in read(path=str(file), field="story")] == [*STORIES, ""]
    with pytest.raises(UsageError, match="no column 'text'"):
        read(path=str(file))
    with pytest.raises(UsageError, match="no text under 'n'"):
        read(path=str(file), field="n")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        read(path=str(file))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(UsageError, match=r"distillkit\[parquet\]"):
        read(path=str(tmp_path / "rows.parquet"))
    with pytest.raises(UsageError, match=r"distillkit\[parquet\]"):
        Text(Text.Options(path=f"{tmp_path}/*")).check()
    Text(Text.Options(path=f"{tmp_path}/*.txt")).check()


def test_globs_find_files_in_order_each_once(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(name)
    (tmp_path / "c" / "a.txt").write_text("other a")
    found = read(path=[f"{tmp_path}/b/*.txt", f"{tmp_path}/**/*.txt"])
    assert [d.text for d in found] == ["b", "a", "other a", "c"]
    assert len({d.id for d in found}) == 4


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.txt", b"good " * 5 + b"\xff bad", r"a\.txt is not UTF-8: byte 25 is 0xff"),
        ("b.txt", b"one<|>two\0", r"b\.txt is a binary file: a NUL at byte 9"),
        ("c.jsonl", b'{"text": "a"}\n{"text": \n', r"c\.jsonl, line 2 is not JSON"),
        ("d.jsonl", b'{"story": "a"}', r"line 1 has no text under 'text' \(it has: story\)"),
        ("e.jsonl", b"[1]", "no object"),
        ("f.txt.gz", gzip.compress(b"cut short" * 1000, mtime=0)[:40], r"f\.txt\.gz cannot be read"),
        ("g.txt.xz", lzma.compress(b"cut short" * 1000)[:40], r"g\.txt\.xz cannot be read"),
        ("h.txt.gz", b"not gzip", r"h\.txt\.gz cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(
    tmp_path: Path, name: str, raw: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UsageError, match=message) as caught:
        read(path=str(tmp_path / name), separator="<|>")
    assert caught.value.hint


def test_a_missing_file_is_known_before_anything_is_read(tmp_path: Path) -> None:
    for files in (str(tmp_path / "no.txt"), [f"{tmp_path}/*.none"], []):
        with pytest.raises(UsageError, match=r"data\.path"):
            Text(Text.Options(path=files))


def test_the_fingerprint_of_files_follows_their_content(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    first = Text(Text.Options(path=str(file))).fingerprint()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.txt").write_text("one")
    assert Text(Text.Options(path=str(tmp_path / "b" / "a.txt"))).fingerprint() == first
    file.write_text("two")
    assert Text(Text.Options(path=str(file))).fingerprint() != first


# One word for files.


def test_path_is_the_word_and_files_its_former_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    assert [d.text for d in read(files=str(tmp_path / "a.txt"))] == ["one"]
    for wrong in ({}, {"path": "a", "files": "b"}):
        with pytest.raises(ValueError, match="expected path"):
            Text.Options(**wrong)
