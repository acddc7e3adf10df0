"""Code from data: nothing that lies in a cache, a checkpoint, an import or an archive runs, or writes elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from distillkit.core.errors import CorruptError
from distillkit.core.files import file_digest, make_private_folder, write_json
from distillkit.core.records import Answer, Request
from distillkit.student.interchange import safetensors
from distillkit.teachers.answers import archive, maintenance
from distillkit.teachers.answers.disk import DiskAnswerStore, answer_key, key_fields
from support import batch_provider
from support.bad_input import CONFIGS, HEADERS, SETTINGS, TINY, Bomb, archives, bombs, mine, plant, preset
from support.limited_commands import Outcome, faults, outcomes
from support.students import tokenizer
from support.trust_ledger import held

pytestmark = pytest.mark.trust


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder in a folder with things of others, and a place that exists only once a bomb went off."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("not ours")
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def elsewhere(home: Path) -> dict[str, str]:
    """All that lies outside of a home."""
    files = (path for path in home.parent.rglob("*") if not path.is_relative_to(home))
    return {str(path): file_digest(path) if path.is_file() else "" for path in files}


def ran(home: Path) -> Path:
    return home.parent / "ran"


def test_the_bomb_is_a_live_one(home: Path) -> None:
    import pickle

    for bomb in bombs(ran(home)):
        pickle.loads(bomb)
        ran(home).rmdir()
    Bomb(ran(home)).__reduce__()[0](str(ran(home)))
    assert ran(home).is_dir()


def test_no_planted_row_runs_however_the_cache_is_looked_at(home: Path) -> None:
    requests = [Request(f"r{i}", prompt=f"prompt {i}") for i in range(200)]
    keys = [answer_key(key_fields("p", {}, request)) for request in requests]
    folder = home / "cache" / "teachers"
    planted = mine(folder, ran(home), keys)
    assert planted > 70
    refused = 0
    with DiskAnswerStore(folder) as cache:
        for key in keys[:planted]:
            for look in (cache.get, cache.row):
                try:
                    look(key)
                except CorruptError:
                    refused += 1
        assert answer_key({}) not in cache
        cache.claim(keys)
        damaged = len(maintenance.verify(cache)["damaged"])
        maintenance.stats(cache)
        archive.export_answers(cache, home / "a.jsonl")
        for key in keys[:3]:
            cache.put(key, {}, Answer("over it"))
        maintenance.verify(cache, repair=True)
        assert maintenance.verify(cache)["damaged"] == []
    assert damaged >= planted - 6  # text that is no JSON is damaged, too
    assert refused > planted
    assert not ran(home).exists()
    held(
        "Code from data: no planted row of the cache executes code",
        planted,
        planted,
        f"pickles of {len(bombs(home))} protocols",
    )


def test_a_row_cannot_name_a_file_that_is_then_read_or_deleted(home: Path) -> None:
    folder = home / "cache" / "teachers"
    DiskAnswerStore(folder).__exit__()
    secret = home.parent / "outside" / "secret"
    for i, name in enumerate((str(secret), "../../../outside/secret", "../../../outside/gone")):
        for mode in (1, 2, 3, 4):
            plant(folder, key=f"k{i}{mode}", raw=1, mode=mode, filename=name, expire_time=None if i else 1.0)
    before = elsewhere(home)
    with DiskAnswerStore(folder) as cache:
        maintenance.verify(cache, repair=True)
        for i in range(3):
            for mode in (1, 2, 3, 4):
                cache.put(f"k{i}{mode}", {}, Answer("over it"))
        assert len(cache) == 12
    assert elsewhere(home) == before
    held("Code from data: no row of the cache causes a file to be read, written or deleted", 12, 12)


def test_no_planted_setting_of_the_cache_is_believed(home: Path) -> None:
    folder = home / "cache" / "teachers"
    before = elsewhere(home)
    for number, (key, value) in enumerate(SETTINGS.items()):
        place = folder / str(number)
        preset(place, key, value)
        with pytest.raises(CorruptError, match="is damaged in its settings") as refused:
            DiskAnswerStore(place)
        assert f"sqlite3 {place / 'cache.db'} 'DELETE FROM Settings'" in refused.value.hint
        with contextlib.closing(sqlite3.connect(place / "cache.db")) as rows, rows:
            rows.execute("DELETE FROM Settings")
        with DiskAnswerStore(place) as cache:
            cache.put("k", {}, Answer("sound again"))
            assert len(cache) == 1
    known = {"eviction_policy": "evil", "cull_limit": bombs(ran(home))[0], "sqlite_journal_mode": "(evil", "count": "x"}
    for key, value in known.items():
        preset(folder, key, value)
        with DiskAnswerStore(folder) as cache:
            cache.put(key, {}, Answer("a"))
            assert cache.get(key) == Answer("a")
    assert [path for path in folder.rglob("*") if path.suffix == ".val"] == []
    assert not ran(home).exists()
    assert elsewhere(home) == before
    tried = len(SETTINGS) + len(known)
    held("Code from data: no planted setting of the cache is used", tried, tried)


def test_an_index_that_leads_to_another_answer_is_told(home: Path) -> None:
    """As a flipped bit in it would: both rows are sound, but they change places."""
    folder = home / "cache" / "teachers"
    with DiskAnswerStore(folder) as cache:
        for key in ("one", "two"):
            cache.put(key, {}, Answer(key))
    with contextlib.closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as rows:
        index = rows.execute("SELECT * FROM sqlite_schema WHERE name = 'Cache_key_raw'").fetchone()
        rows.execute("PRAGMA writable_schema = 1")
        rows.execute("DELETE FROM sqlite_schema WHERE name = 'Cache_key_raw'")
    with contextlib.closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as rows:
        rows.execute("UPDATE Cache SET key = CASE key WHEN 'one' THEN 'two' ELSE 'one' END")
        rows.execute("PRAGMA writable_schema = 1")
        rows.execute("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", index)
    with DiskAnswerStore(folder) as cache, pytest.raises(CorruptError, match="its index finds another row") as refused:
        cache.get("one")
    assert "REINDEX" in refused.value.hint
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as rows:
        rows.execute("REINDEX")
    with DiskAnswerStore(folder) as cache:
        assert cache.get("one") == Answer("two")  # as the rows say whose they are
    held("Disk: a damaged index of the cache never returns the answer to another request", 1, 1)


# ------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(HEADERS[name])
    if name == "other weights":
        assert list(safetensors.load(tmp_path / "model.safetensors")) == ["a"]
        return
    with pytest.raises(CorruptError, match="is damaged"):
        safetensors.load(tmp_path / "model.safetensors")
    held("Code from data: weights with an invalid header are refused", 1, 1)


def student(home: Path) -> Path:
    """A checkpoint of ours, as it was bundled."""
    import distillkit_recipes

    bundled = Path(str(distillkit_recipes.__file__)).parent / "checkpoints" / "tales-teacher"
    return Path(shutil.copytree(bundled, home / "student"))


def summed(folder: Path) -> None:
    """The sums of a checkpoint as its forger would write them."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name != "sums.json"]
    write_json(folder / "sums.json", {file.name: file_digest(file) for file in files})


def forged(home: Path) -> list[list[str]]:
    """Checkpoints that somebody made on purpose, with sums that fit; the commands that load them."""
    whole = student(home)
    lies: dict[str, dict[str, Any]] = {
        "no arch": {},
        "a list": [],  # type: ignore[dict-item]
        "a module": {"arch": "os.system", "options": {}, "vocab_size": 300},
        "a path": {"arch": "../evil", "options": {}, "vocab_size": 300},
        "huge": {"arch": "gpt", "options": {"width": 20_000, "layers": 200}, "vocab_size": 10**12},
        "a size in words": {"arch": "gpt", "options": {}, "vocab_size": "many"},
        "below nothing": {"arch": "gpt", "options": {"width": -1}, "vocab_size": -5},
    }
    for name, said in lies.items():
        folder = Path(shutil.copytree(whole, home / f"student {name}"))
        (folder / "student.json").write_text(json.dumps(said))
        summed(folder)
    for i, (name, content) in enumerate(HEADERS.items()):
        folder = Path(shutil.copytree(whole, home / f"weights {i}"))
        (folder / "model.safetensors").write_bytes(content)
        summed(folder)
        assert name
    tokens = {"spec.json": b"[" * 100_000, "ranks.tiktoken": bombs(ran(home))[0]}
    for i, (name, content) in enumerate(tokens.items()):
        folder = Path(shutil.copytree(whole, home / f"tokens {i}"))
        (folder / "tokenizer" / name).write_bytes(content)
    places = [path.name for path in home.iterdir() if path.is_dir() and path != whole]
    return [["generate", place, "--prompt", "Once", "--max-tokens", "2"] for place in sorted(places)]


@pytest.mark.slow
def test_no_checkpoint_runs_anything_or_ends_the_program(home: Path) -> None:
    commands = forged(home)
    before = elsewhere(home)
    fine = outcomes([["generate", "student", "--prompt", "Once", "--max-tokens", "2"]], home)
    assert fine[0].code == 0, fine[0].err
    ended = outcomes(commands, home, at_once=4)
    refused_all(ended, "Code from data: no forged checkpoint executes code or crashes the program", home, before)


def refused_all(ended: list[Outcome], promise: str, home: Path, before: dict[str, str]) -> None:
    """Every command was refused in words, nothing ran, nothing lies elsewhere."""
    assert not faults(ended), json.dumps(faults(ended), indent=2)
    assert [one for one in ended if one.code == 0] == []
    assert not ran(home).exists()
    assert elsewhere(home) == before
    held(promise, len(ended), len(ended))


def imports(home: Path) -> list[list[str]]:
    """Files and folders of others, each with something in it that wants to get out."""
    tokenizer().save(home / "words")
    commands = []
    for i, content in enumerate(archives(ran(home)).values()):
        (home / f"archive{i}.npz").write_bytes(content)
        commands.append(["import", f"archive{i}.npz", "--tokenizer", "words"])
    for i, content in enumerate(HEADERS.values()):
        folder = home / f"folder{i}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1}))
        (folder / "model.safetensors").write_bytes(content)
        commands.append(["import", f"folder{i}", "--tokenizer", "words"])
    for i, config in enumerate(CONFIGS.values()):
        folder = home / f"config{i}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "modeling.py").write_text(f"import os\nos.mkdir({str(ran(home))!r})\n")
        (folder / "model.safetensors").write_bytes(HEADERS["other weights"])
        commands.append(["import", f"config{i}", "--tokenizer", "words"])
    for i, bomb in enumerate(bombs(ran(home))):
        (home / f"bomb{i}.pt").write_bytes(bomb)
        (home / f"lines{i}.jsonl").write_bytes(bomb)
        commands += [["import", f"bomb{i}.pt"], ["cache", "import", f"lines{i}.jsonl"]]
    (home / "folder0" / "pytorch_model.bin").write_bytes(bombs(ran(home))[2])
    commands.append(["import", "archive0.npz", "--name", "../../outside/secret"])
    return commands


@pytest.mark.slow
def test_no_import_runs_anything_or_writes_elsewhere(home: Path) -> None:
    commands = imports(home)
    before = elsewhere(home)
    ended = outcomes(commands, home, at_once=4)
    refused_all(ended, "Code from data: no import executes code or writes outside its folder", home, before)
    assert not list((home / "reports").glob("*/*")) if (home / "reports").exists() else True


# ------------------------------------------------------------------------------------------------ folders


def test_a_private_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    before = os.umask(0)
    try:
        for name in ("there", "new", "new/inner"):
            assert stat.S_IMODE(make_private_folder(tmp_path / name).stat().st_mode) == 0o700
    finally:
        os.umask(before)


SOFT = """
extends = "tiny.toml"
name = "pupil"
[tokenizer]
kind = "tales-teacher"
[teacher]
provider = "checkpoint"
model = "tales-teacher"
prompts = 2
prompt_tokens = 4
max_tokens = 6
store = true
top_logprobs = 5
[mixer]
name = "alpha-temperature"
"""


@pytest.mark.slow
def test_what_teachers_said_lies_in_folders_for_their_owner_alone(home: Path) -> None:
    (home / "tiny.toml").write_text(TINY)
    (home / "pupil.toml").write_text(SOFT)
    before = os.umask(0)
    try:
        (done,) = outcomes([["run", "pupil.toml", "--until", "label"]], home, seconds=60)
    finally:
        os.umask(before)
    assert done.code == 0, done.err
    wanted = [home / "cache" / "teachers", home / "cache" / "soft", home / "reports" / "pupil" / "1" / "answers"]
    assert {str(folder): oct(stat.S_IMODE(folder.stat().st_mode)) for folder in wanted} == {
        str(folder): oct(0o700) for folder in wanted
    }
    said = [folder for folder in home.rglob("*") if folder.is_dir() and folder.name in ("teachers", "soft", "answers")]
    assert sorted(said) == sorted(wanted)
    held("Code from data: folders with answers have mode 0700", len(wanted), len(wanted))


BATCHED = f"""{TINY.replace('"tiny"', '"batched"')}
[teacher]
provider = "openai"
model = "m"
base_url = "URL"
prompts = 2
prompt_tokens = 4
max_tokens = 6
"""


@pytest.mark.slow
def test_what_is_out_in_batches_lies_in_such_a_folder_too(home: Path) -> None:
    before = os.umask(0)
    try:
        with batch_provider.serving() as (batches, url):
            batches.looks = 9
            (home / "batched.toml").write_text(BATCHED.replace("URL", url))
            (sent,) = outcomes([["label", "batched.toml", "--batch"]], home, OPENAI_API_KEY="no-key-at-all")
    finally:
        os.umask(before)
    assert sent.code == 3, sent.err
    parts = list((home / "cache").rglob("*.asked.jsonl"))
    assert parts
    assert {stat.S_IMODE(part.parent.stat().st_mode) for part in parts} == {0o700}
    held("Code from data: folders with answers have mode 0700", len(parts), len(parts))
