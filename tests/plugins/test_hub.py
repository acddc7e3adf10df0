"""The hub source, against local data sets and a hub on the loopback interface."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from distillkit_plugins.hub import Hub

from distillkit.core.errors import DataError
from distillkit.data.corpus import prepare
from distillkit.data.downloads import Download
from support import hub_server
from support.corpora import BPE, STORIES


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cache"


# The datasets library.


def library() -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict({"text": STORIES, "other": list(range(len(STORIES)))})


def copies(folder: Path) -> dict[str, Path]:
    """One dataset in the library's own formats."""
    whole = library()
    (folder / "parquet").mkdir()
    whole.select(range(150)).to_parquet(folder / "parquet" / "train-0.parquet")
    whole.select(range(150, 400)).to_parquet(folder / "parquet" / "train-1.parquet")
    (folder / "json").mkdir()
    whole.to_json(folder / "json" / "rows.jsonl")
    whole.save_to_disk(folder / "disk")
    return {
        "a folder of parquet": folder / "parquet",
        "a folder of JSON lines": folder / "json",
        "a file of JSON lines": folder / "json" / "rows.jsonl",
        "what save_to_disk wrote": folder / "disk",
    }


def hub(**options: Any) -> Hub:
    return Hub(Hub.Options(**options))


@pytest.mark.slow
@pytest.mark.peer
@pytest.mark.usefixtures("cache")
def test_a_local_copy_is_read_in_each_format_of_the_library(peer: Callable[[str], ModuleType], tmp_path: Path) -> None:
    peer("datasets")
    for name, path in copies(tmp_path).items():
        source = hub(path=str(path))
        assert source.here, name
        assert [document.text for document in source.documents("train")] == STORIES, name
        first = next(iter(source.documents("train")))
        assert first.id == "train:0"
    assert len({json.dumps(hub(path=str(path)).fingerprint()) for path in copies_of(tmp_path)}) == 3


def copies_of(folder: Path) -> list[Path]:
    return [folder / "parquet", folder / "json", folder / "disk"]


@pytest.mark.peer
def test_a_stream_of_the_library_goes_on_where_it_was_left(
    peer: Callable[[str], ModuleType], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer("datasets")
    monkeypatch.setattr(Download.__init__, "__defaults__", (Download.__init__.__defaults__[0], 2000))  # small shards
    for path in copies_of_made(tmp_path):
        source = hub(path=str(path))
        assert [d.text for d in islice(source.documents("train"), 70)] == STORIES[:70]
        (folder,) = [one for one in (cache / "downloads").iterdir() if one.name.startswith(path.name)]
        index = json.loads((folder / "index.json").read_text())
        assert sum(shard["documents"] for shard in index["shards"]) == 70
        assert len(index["shards"]) > 2
        assert index["state"] is not None
        assert [d.text for d in source.documents("train")] == STORIES
        assert json.loads((folder / "index.json").read_text())["done"]


def copies_of_made(folder: Path) -> list[Path]:
    copies(folder)
    return copies_of(folder)


@pytest.mark.peer
@pytest.mark.usefixtures("cache")
def test_a_split_of_its_own_is_held_out(peer: Callable[[str], ModuleType], tmp_path: Path) -> None:
    datasets = peer("datasets")
    whole = library()
    both = datasets.DatasetDict({"train": whole.select(range(300)), "validation": whole.select(range(300, 400))})
    both.save_to_disk(tmp_path / "both")
    source = hub(path=str(tmp_path / "both"), held_out_split="validation")
    corpus = prepare(source, tokenizer=BPE, folder=tmp_path / "corpora")
    assert (corpus.train.documents, corpus.held_out.documents) == (300, 100)
    assert [document.text for document in corpus.held_out_documents] == STORIES[300:]


@pytest.mark.peer
@pytest.mark.usefixtures("cache")
def test_what_a_dataset_has_not_is_said(peer: Callable[[str], ModuleType], tmp_path: Path) -> None:
    peer("datasets")
    (tmp_path / "x.bin").write_bytes(b"x")
    parquet = copies(tmp_path)["a folder of parquet"]
    wrong = {
        "no column 'story'": {"path": str(parquet), "column": "story"},
        "holds no text": {"path": str(parquet), "column": "other"},
        "nope": {"path": str(parquet), "split": "nope"},
        "unknown format": {"path": str(tmp_path / "x.bin")},
    }
    for message, options in wrong.items():
        with pytest.raises(DataError, match=message):
            list(hub(**options).documents("train"))
    with pytest.raises(DataError, match="no files in"):
        hub(path=str(tmp_path / "gone")).fingerprint()
    with pytest.raises(ValueError, match="expected dataset"):
        hub()
    assert hub(dataset="fineweb-edu", path=str(parquet)).fingerprint() == hub(path=str(parquet)).fingerprint()


@pytest.mark.peer
@pytest.mark.usefixtures("cache")
def test_a_hub_that_cannot_be_reached_says_how_to_do_without(
    peer: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer("datasets")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        source = hub(dataset="tinystories")
        assert not source.here
        with pytest.raises(DataError, match=r"'roneneldan/TinyStories' cannot be downloaded") as caught:
            next(source.documents("train"))
    assert "data.source=text" in caught.value.hint


def test_ready_made_datasets_go_by_short_names() -> None:
    found = hub(dataset="fineweb-edu")
    assert (found.repository, found.config, found.column) == ("HuggingFaceFW/fineweb-edu", "sample-10BT", "text")
    assert hub(dataset="fineweb-edu", config="sample-100BT").config == "sample-100BT"
    assert hub(dataset="me/mine", column="story").fingerprint()["column"] == "story"


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="datasets") as caught:
        next(hub(dataset="tinystories").documents("train"))
    assert "distillkit[hub]" in caught.value.hint


FROM_THE_HUB = """
import json, sys
from itertools import islice
from distillkit_plugins.hub import Hub
source = Hub(Hub.Options(dataset="me/mine"))
texts = [document.text for document in islice(source.documents("train"), int(sys.argv[1]))]
print(json.dumps([texts, source.here]))
"""


@pytest.mark.slow
@pytest.mark.peer
def test_a_hub_is_streamed_at_one_commit_however_often_it_is_gone_on_with(
    peer: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    peer("datasets")
    folder = copies(tmp_path)["a folder of parquet"]

    def fetch(count: int) -> Any:
        command = [sys.executable, "-c", FROM_THE_HUB, str(count)]
        home = {"HF_HOME": str(tmp_path / "theirs"), "DISTILLKIT_HOME": str(tmp_path / "ours")}
        environment = {**os.environ, "HF_ENDPOINT": server.url, **home}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with hub_server.serving() as server:
        old = {f"data/{file.name}": file.read_bytes() for file in sorted(folder.glob("*.parquet"))}
        server.commits["a" * 40] = old
        assert fetch(170) == [STORIES[:170], False]
        server.commits["b" * 40] = {"data/train-0.parquet": old["data/train-1.parquet"]}  # the dataset moves on
        assert fetch(10**6) == [STORIES, True]
        assert {commit for commit, _ in server.asked} == {"a" * 40}
        fetched = len(server.asked)
        assert fetch(10**6) == [STORIES, True]
        assert len(server.asked) == fetched
