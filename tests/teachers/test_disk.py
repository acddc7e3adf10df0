"""The answer store on disk: keys, rows, damage, planted rows, permissions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import random
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core.errors import CorruptError, DistillkitError
from distillkit.core.packing import pack
from distillkit.core.records import Answer, Request, Token, Usage
from distillkit.teachers.answers import archive, maintenance
from distillkit.teachers.answers.disk import DiskAnswerStore, answer_key, key_fields
from distillkit.teachers.asking.label import label
from support.stored_answers import keep
from support.teachers import ANSWERS, TEXTS, Bomb, Counting, full_answer, plant, prompts

# -------------------------------------------------------------------------------------- the cache: what goes in

NASTY = [
    "",
    "plain",
    "\x00 NUL \x00",
    "\U0001f98a\U0001f468\u200d\U0001f469\u200d\U0001f467 漢字 ünï",
    "half a fox \ud83e",
    "the other half \udd8a",
    "lines\r\n\r\n\u2028\x0b\x85",
    '"quotes" \\ {braces} \\ud83e\\udd8a',
    "long " * 50_000,
]


def test_an_answer_survives_into_a_new_process_byte_for_byte(tmp_path: Path) -> None:
    with DiskAnswerStore(tmp_path / "cache") as cache:
        for i, text in enumerate(NASTY):
            cache.put(str(i), {}, full_answer(text))
    code = (
        "import hashlib, pickle, sys; from pathlib import Path\n"
        "from distillkit.teachers.answers.disk import DiskAnswerStore\n"
        f"answers = [DiskAnswerStore(Path({str(tmp_path / 'cache')!r})).get(str(i)) for i in range({len(NASTY)})]\n"
        "print(repr([answer.to_json() for answer in answers]).encode('ascii', 'backslashreplace').decode())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    expected = repr([full_answer(text).to_json() for text in NASTY])
    assert said == expected.encode("ascii", "backslashreplace").decode() + "\n"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(TEXTS, ANSWERS), min_size=1, max_size=5))
def test_any_answer_to_any_prompt_is_read_back_by_whoever_opens_the_cache_next(
    pairs: list[tuple[str, Answer]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kept = {}
        with DiskAnswerStore(Path(folder)) as cache:
            for text, answer in pairs:
                what = key_fields("p", {"model": text}, Request("r", prompt=text))
                cache.put(answer_key(what), what, answer)
                kept[answer_key(what)] = answer
        with DiskAnswerStore(Path(folder)) as cache:
            assert {key: cache.get(key) for key in kept} == kept
            assert len(cache) == len(kept)


def test_what_is_not_in_the_cache_is_none(cache: DiskAnswerStore) -> None:
    assert cache.get("0" * 64) is None
    assert "0" * 64 not in cache
    assert len(cache) == 0


def test_a_later_answer_replaces_an_earlier_one(cache: DiskAnswerStore) -> None:
    for text in ("one", "two"):
        cache.put("key", {}, Answer(text))
    assert cache.get("key") == Answer("two")
    assert len(cache) == 1


# --------------------------------------------------------------------------------------------- the cache: keys

BASE = Request("a", prompt="Once", seed=1)
OTHERS: dict[str, Any] = {
    "prompt": "Once ",
    "max_tokens": 129,
    "temperature": 0.9,
    "top_p": 0.9,
    "stop": (".",),
    "seed": 2,
    "top_logprobs": 1,
    "repeat": 1,
    "schema": {"type": "object"},
}


def key(request: Request = BASE, provider: str = "p", identity: Any = None) -> str:
    return answer_key(key_fields(provider, identity or {"model": "m", "url": "u"}, request))


def test_a_key_changes_with_every_field_of_the_request_but_its_id() -> None:
    assert set(OTHERS) | {"id", "messages"} == set(vars(BASE))
    keys = [key(), *(key(replace(BASE, **{name: value})) for name, value in OTHERS.items())]
    keys += [key(replace(BASE, prompt=None, messages=({"role": "user", "content": "Once"},)))]
    keys += [key(replace(BASE, prompt=None, messages=({"role": "system", "content": "Once"},)))]
    keys += [key(replace(BASE, seed=None)), key(replace(BASE, stop=("", ".")))]
    assert len(set(keys)) == len(keys)
    assert key(replace(BASE, id="another name")) == key()


def test_a_key_changes_with_who_is_asked() -> None:
    keys = {key(), key(provider="q"), key(identity={"model": "m"}), key(identity={"model": "m", "url": "v"})}
    assert len(keys) == 4


def test_a_key_does_not_change_with_how_the_same_is_written() -> None:
    assert key(identity={"url": "u", "model": "m"}) == key()
    assert key(replace(BASE, temperature=1, top_p=1)) == key()  # 1 and 1.0
    turns = [({"role": "user", "content": "Hi"},), ({"content": "Hi", "role": "user"},)]
    one, other = (key(replace(BASE, prompt=None, messages=messages)) for messages in turns)
    assert one == other
    assert key(replace(BASE, stop=["."])) == key(replace(BASE, stop=(".",)))  # type: ignore[arg-type]


def test_keys_never_change_between_versions() -> None:
    """Answers that somebody paid for hang on it; raise `FORMAT` to change it on purpose."""
    assert key() == "2f66c407d2311b9f3baacd88209c3c41d276ddfd5aa1793c39e0b0c2b5d3f246"


# -------------------------------------------------------------------------------------------- the cache: trust


def test_a_pickled_row_is_refused_and_nothing_of_it_runs(tmp_path: Path, cache: DiskAnswerStore) -> None:
    """CVE-2025-69872."""
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    (cache.folder / "bomb.val").write_bytes(bomb)
    plant(cache.folder, key="in row", raw=1, mode=4, value=bomb)
    plant(cache.folder, key="in file", raw=1, mode=4, filename="bomb.val")
    for planted in ("in row", "in file"):
        with pytest.raises(CorruptError, match="not text"):
            cache.get(planted)
    assert not (tmp_path / "ran").exists()
    pickle.loads(bomb).close()  # the bomb is a live one
    assert (tmp_path / "ran").exists()


def test_a_pickled_key_is_refused_and_nothing_of_it_runs(tmp_path: Path, cache: DiskAnswerStore) -> None:
    cache.put("good", {}, Answer("good"))
    plant(cache.folder, key=pickle.dumps(Bomb(tmp_path / "ran")), raw=0, mode=1, value="{}")
    assert cache.get("good") == Answer("good")
    with pytest.raises(CorruptError, match="a pickled key"):
        list(cache._rows)
    assert not (tmp_path / "ran").exists()


def test_a_teacher_is_not_asked_past_a_refused_row(tmp_path: Path, cache: DiskAnswerStore) -> None:
    teacher, (request,) = Counting(), prompts(1)
    planted = answer_key(key_fields(teacher.name, teacher.identity(), request))
    plant(cache.folder, key=planted, raw=1, mode=4, value=pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(CorruptError):
        label(teacher, [request], cache)
    assert not teacher.asked
    assert not (tmp_path / "ran").exists()


def test_a_planted_file_name_neither_reads_nor_deletes_what_is_elsewhere(
    tmp_path: Path, cache: DiskAnswerStore
) -> None:
    (tmp_path / "secret").write_text(json.dumps({"answer": Answer("secret").to_json()}))
    plant(cache.folder, key="read", raw=1, mode=3, filename="../secret")
    plant(cache.folder, key="expired", raw=1, mode=3, filename="../secret", expire_time=1.0)
    with pytest.raises(CorruptError, match="not text"):
        cache.get("read")
    assert cache.get("expired") is None
    cache.put("expired", {}, Answer("asked again"))
    cache.put("read", {}, Answer("asked again"))
    assert (tmp_path / "secret").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"answer": 1}', '{"answer": {"text": "a"}}', "[" * 100_000], ids=range(7)
)
def test_a_damaged_answer_is_said_with_its_place(cache: DiskAnswerStore, text: str) -> None:
    plant(cache.folder, key="key", raw=1, mode=1, value=text)
    with pytest.raises(CorruptError, match="damaged") as error:
        cache.get("key")
    assert str(cache.folder) in str(error.value)


def test_a_database_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache.db").write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(DistillkitError, match="is damaged: file is not a database"):
        DiskAnswerStore(tmp_path)


def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    for name in ("new", "there"):
        with DiskAnswerStore(tmp_path / name):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700


def test_nothing_expires_and_nothing_is_culled(tmp_path: Path) -> None:
    """diskcache would cull from 1 GiB on, and forgets what is set with an expiry."""
    with DiskAnswerStore(tmp_path) as cache:
        for i in range(50):
            cache.put(str(i), {}, Answer("a"))
        with contextlib.closing(sqlite3.connect(tmp_path / "cache.db")) as rows, rows:
            rows.execute("UPDATE Settings SET value = 1 WHERE key = 'size_limit'")
            assert rows.execute("SELECT count(*) FROM Cache WHERE expire_time IS NULL").fetchone() == (50,)
    with DiskAnswerStore(tmp_path) as cache:
        assert (cache._rows.eviction_policy, cache._rows.cull_limit) == ("none", 0)
        cache.put("one more", {}, Answer("a" * 100_000))
        assert len(cache) == 51
        assert all(str(i) in cache for i in range(50))


def test_answers_are_rows_of_one_database_and_no_files_of_their_own(cache: DiskAnswerStore) -> None:
    cache.put("long", {}, Answer("a" * 1_000_000))
    assert {path.name for path in cache.folder.iterdir()} <= {"cache.db", "cache.db-wal", "cache.db-shm"}


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """As somebody whom file modes hold back: root is not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may look into; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


def test_a_folder_that_cannot_be_made_is_said(public: Path) -> None:
    public.chmod(0o555)
    with without_privileges(), pytest.raises(DistillkitError, match="cannot be opened: Permission denied") as error:
        DiskAnswerStore(public / "cache")
    assert "DISTILLKIT_HOME" in error.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of somebody else's")
def test_a_cache_of_somebody_else_is_said(public: Path) -> None:
    with DiskAnswerStore(public / "cache"):
        pass
    with without_privileges(), pytest.raises(DistillkitError, match="cannot be opened: Operation not permitted"):
        DiskAnswerStore(public / "cache")


def test_a_cache_in_the_place_of_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DistillkitError, match="cannot be opened"):
        DiskAnswerStore(tmp_path / "file")


def test_a_database_that_became_read_only_is_said(cache: DiskAnswerStore) -> None:
    cache._rows._sql("PRAGMA query_only = 1")
    with pytest.raises(DistillkitError, match="cannot be written"):
        cache.put("key", {}, Answer("a"))


def stored(cache: DiskAnswerStore, key: str) -> Any:
    """The text of a row, as it lies there."""
    return cache._rows._sql("SELECT value FROM Cache WHERE key = ?", (key,)).fetchone()[0]


# ----------------------------------------------------------------------------------------------------- reading


@settings(deadline=None, max_examples=100)
@given(ANSWERS)
def test_an_answer_comes_back_from_json_as_it_was_looked_at_or_not(answer: Answer) -> None:
    text = json.dumps(answer.to_json())
    assert Answer.from_json(json.loads(text)) == answer
    untouched = Answer.from_json(json.loads(text))
    assert json.dumps(untouched.to_json()) == text  # not unpacked, and packed again, in between
    assert hash(untouched.tokens) == hash(answer.tokens)
    assert replace(Answer.from_json(json.loads(text)), finish="cut").tokens == answer.tokens
    assert pickle.loads(pickle.dumps(Answer.from_json(json.loads(text)))) == answer


def test_rows_as_the_first_version_kept_them_are_still_read(cache: DiskAnswerStore) -> None:
    answer = full_answer("old")
    rows = [
        [token.bytes.decode("latin-1"), token.logprob, [[piece.decode("latin-1"), value] for piece, value in token.top]]
        for token in answer.tokens
    ]
    old = {"asked": {}, "answer": {**answer.to_json(), "tokens": rows}, "time": 1.5}
    plant(cache.folder, key="old", raw=1, mode=1, value=json.dumps(old))
    assert cache.get("old") == answer


def test_a_row_whose_bit_was_flipped_is_never_believed(cache: DiskAnswerStore) -> None:
    what = key_fields("p", {}, Request("r", prompt="a fox"))
    key = answer_key(what)
    cache.put(key, what, Answer("met a hen.", finish="stop"))
    ((value,),) = cache._rows._sql("SELECT CAST(value AS BLOB) FROM Cache WHERE key = ?", (key,)).fetchall()
    chance, seal = random.Random(3), value.rindex(b', "sha256": ')
    for at in range(seal):  # behind it stands the checksum itself: what it is of is whole
        spoilt = bytearray(value)
        spoilt[at] ^= 1 << chance.randrange(8)
        cache._rows._sql("UPDATE Cache SET value = CAST(? AS TEXT) WHERE key = ?", (bytes(spoilt), key))
        with pytest.raises(CorruptError):
            cache.get(key)
        with pytest.raises(CorruptError):
            maintenance.validate_row(key, spoilt.decode("utf-8", "replace"))
    assert json.loads(value)["sha256"] == hashlib.sha256(value[:seal] + b"}").hexdigest()


def test_a_row_keeps_its_checksum_wherever_it_is_taken(cache: DiskAnswerStore, tmp_path: Path) -> None:
    what = key_fields("p", {}, Request("r", prompt="ünï \ud83e"))
    cache.put(answer_key(what), what, Answer("half an emoji: \ud83e", usage=Usage(1, 2)))
    archive.export_answers(cache, tmp_path / "a.jsonl")
    with DiskAnswerStore(tmp_path / "other") as other:
        archive.import_answers(other, tmp_path / "a.jsonl")
        assert [row.text for row in other.rows()] == [row.text for row in cache.rows()]
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(text.replace("half an", "half my"))
    with (
        DiskAnswerStore(tmp_path / "third") as third,
        pytest.raises(CorruptError, match=r"line 2 is not a valid row: .*checksum"),
    ):
        archive.import_answers(third, tmp_path / "a.jsonl")


def test_a_database_that_is_none_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "cache.db").write_bytes(b"x" * 8192)
    with pytest.raises(CorruptError, match="is damaged: file is not a database") as error:
        DiskAnswerStore(tmp_path)
    assert "cache import" in error.value.hint


def test_rows_are_found_by_when_they_were_written(cache: DiskAnswerStore) -> None:
    began = time.time()
    cache.put("old", {}, Answer("a"))
    cache._rows._sql("UPDATE Cache SET store_time = ? WHERE key = 'old'", (began - 9,))
    cache.put("new", {}, Answer("b"))
    assert cache.since(["old", "new", "none"], began) == ["new"]


@pytest.mark.parametrize(
    "fields",
    [
        {"pieces": "!"},
        {"pieces": "YQ"},
        {"lengths": ""},
        {"lengths": "BAQ=="},
        {"ids": "BCQ=="},
        {"alternatives": "B//8="},
        {"logprobs": "Z"},
        {"logprobs": "fAAA="},
    ],
    ids=str,
)
def test_tokens_that_are_damaged_are_said_when_they_are_looked_at(
    cache: DiskAnswerStore, fields: dict[str, str]
) -> None:
    packed = pack([(b"ab", -1.25, ((b"c", -2.5),))])
    row = {"answer": {**Answer("a").to_json(), "tokens": {**packed, **fields}}}
    plant(cache.folder, key="key", raw=1, mode=1, value=json.dumps(row))
    answer = cache.get("key")
    assert answer is not None
    assert answer.text == "a"
    with pytest.raises(CorruptError, match="tokens of an answer are damaged"):
        _ = answer.tokens


def test_an_answer_has_no_other_attributes_than_its_own() -> None:
    with pytest.raises(AttributeError, match="no attribute 'token'"):
        _ = Answer("a").token  # type: ignore[attr-defined]


def test_many_keys_are_read_as_one_by_one(cache: DiskAnswerStore) -> None:
    keys = [keep(cache, Answer(f"answer {i}"), i) for i in range(1234)]
    several = cache.get_many([*keys, "no such key", keys[0]])
    assert several == {key: cache.get(key) for key in keys}
    assert cache.get_many([]) == {}


def test_text_that_is_none_is_said_with_what_to_do(cache: DiskAnswerStore) -> None:
    cache._rows._sql("INSERT INTO Cache (key, raw, mode, value) VALUES ('key', 1, 1, CAST(x'7b80ff' AS TEXT))")
    with pytest.raises(CorruptError, match="damaged: UnicodeDecodeError") as error:
        cache.get("key")
    assert "verify --repair" in error.value.hint


def test_answers_with_log_probabilities_are_read_almost_as_fast_as_text(tmp_path: Path) -> None:
    """The figure itself is `benchmarks/cache.py`'s. Here a bound that no busy machine breaks: rows of 2,016
    log-probabilities, as the first version kept them, took some 3 ms to read; reading must not parse them."""
    rng = random.Random(0)
    alternatives = [[(b"word %d" % rng.randrange(3000), rng.random() * -9) for _ in range(20)] for _ in range(96)]
    tokens = tuple(Token(*top[0], tuple(top)) for top in alternatives)
    answer = Answer("a story", tokens, usage=Usage(32, 96))
    with DiskAnswerStore(tmp_path) as cache:
        with cache._rows.transact():
            keys = [keep(cache, answer, i) for i in range(300)]
        began = time.process_time()
        assert len(cache.get_many(keys)) == 300
        reading = time.process_time() - began
        began = time.process_time()
        for key in keys[:30]:
            row = json.loads(stored(cache, key))
            json.loads(json.dumps([[t.bytes.decode(), t.logprob, [[p.decode(), v] for p, v in t.top]] for t in tokens]))
            assert row["answer"]["text"] == "a story"
        parsing = 10 * (time.process_time() - began)
    assert reading < parsing / 3
