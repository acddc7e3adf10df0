"""Downloads that are interrupted lose nothing and fetch nothing twice."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core.errors import CorruptError, DataError
from distillkit.data.downloads import Download, DownloadIndex

# What is fetched.


class Stream9:
    """Nine texts, from some place on; it breaks before a text, once."""

    def __init__(self, state: Any, breaks: list[int]) -> None:
        self.at, self.breaks = state or 0, breaks

    def __iter__(self) -> Iterator[str]:
        while self.at < 9:
            if self.at in self.breaks:
                self.breaks.remove(self.at)
                raise DataError("the line went dead")
            self.at += 1
            yield f"text {self.at - 1} ünï\n"

    def state(self) -> Any:
        return self.at


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cache"


ALL9 = [f"text {i} ünï\n" for i in range(9)]


def download(breaks: list[int], opened: list[Any], asked: list[int]) -> Download:
    def open_at(origin: Any, state: Any) -> Stream9:
        opened.append(state)
        assert origin == "commit"
        return Stream9(state, breaks)

    def ask() -> str:
        asked.append(1)
        return "commit"

    return Download("nine", "identity", open_at, ask, shard_chars=30)


@pytest.mark.usefixtures("cache")
@settings(deadline=None, max_examples=40)
@given(breaks=st.lists(st.integers(0, 8), max_size=4), stops=st.lists(st.integers(1, 9), max_size=4))
def test_whatever_stops_a_download_nothing_is_lost_or_fetched_twice(
    tmp_path_factory: pytest.TempPathFactory, breaks: list[int], stops: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILLKIT_HOME", str(tmp_path_factory.mktemp("home")))
        opened: list[Any] = []
        asked: list[int] = []
        left = sorted(breaks)
        for stop in stops:  # a budget, or a line that goes dead
            try:
                found = list(islice(download(left, opened, asked), stop))
                assert found == ALL9[:stop]
            except DataError:
                pass
        for _ in range(len(left)):
            try:
                list(download(left, opened, asked))
            except DataError:
                continue
        whole = download(left, opened, asked)
        assert list(whole) == ALL9
        assert whole.done
        times = len(opened)
        assert list(download([0], opened, asked)) == ALL9  # from the disk alone
        assert len(opened) == times
        assert len(asked) <= 1 + sum(state is None for state in opened[1:])


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is full")], ids=["Ctrl-C", "a full disk"])
@pytest.mark.parametrize("border", [0, 1, 2])
def test_a_download_that_is_stopped_while_a_shard_is_noted_has_every_text_once(
    monkeypatch: pytest.MonkeyPatch, border: int, error: BaseException
) -> None:
    note, errors = Download._write_index, [error]

    def stopped(self: Download, kept: DownloadIndex) -> None:
        if len(kept.shards) == border + 1 and errors:
            raise errors.pop()
        note(self, kept)

    monkeypatch.setattr(Download, "_write_index", stopped)
    with pytest.raises(type(error)):
        list(download([], [], []))
    assert not errors
    assert list(download([], [], [])) == ALL9
    assert list(download([], [], [])) == ALL9  # from the disk alone


@pytest.mark.usefixtures("cache")
def test_a_shard_that_was_altered_is_noticed_and_named() -> None:
    one = download([], [], [])
    list(one)
    shard = next(one.folder.glob("texts-00001*"))
    shard.write_bytes(gzip.compress(b'"other"\n'))
    with pytest.raises(CorruptError, match=shard.name) as caught:
        list(download([], [], []))
    assert str(one.folder) in caught.value.hint
    (one.folder / "index.json").write_text("{")
    with pytest.raises(CorruptError, match=r"index\.json"):
        list(download([], [], []))


@pytest.mark.usefixtures("cache")
def test_two_that_fetch_the_same_do_not_fetch_at_once() -> None:
    first = iter(download([], [], []))
    next(first)
    with pytest.raises(DataError, match="another process"):
        next(iter(download([], [], [])))
    first.close()  # type: ignore[attr-defined]
    assert list(download([], [], [])) == ALL9
