"""Answers in a store, sound and damaged, and files that they are exported to."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from distillkit.core.packing import pack
from distillkit.core.records import Answer, Request
from distillkit.teachers.answers import archive
from distillkit.teachers.answers.disk import DiskAnswerStore, answer_key, key_fields
from support.teachers import Bomb, full_answer, plant


def keep(cache: DiskAnswerStore, answer: Answer, i: int = 0, provider: str = "p", **identity: Any) -> str:
    """Put an answer under the key that belongs to it."""
    what = key_fields(provider, {"model": "m", **identity}, Request("r", prompt=f"prompt {i}"))
    cache.put(answer_key(what), what, answer)
    return answer_key(what)


BAD = {
    "not JSON": "{",
    "no row": "[]",
    "nothing asked": json.dumps({"answer": Answer("a").to_json(), "time": 1}),
    "half an answer": json.dumps({"asked": {}, "answer": {"text": "a"}, "time": 1}),
    "another key's": json.dumps({"asked": {}, "answer": Answer("a").to_json(), "time": 1}),
    "no time": json.dumps({"asked": {}, "answer": Answer("a").to_json(), "time": "now"}),
    "never": json.dumps({"asked": {}, "answer": Answer("a").to_json(), "time": float("nan")}),
    "text that is none": json.dumps({"asked": {}, "answer": {**Answer("a").to_json(), "text": 7}, "time": 1}),
    "deep": "[" * 100_000,
}


def spoil(cache: DiskAnswerStore, ran: Path) -> list[str]:
    """Insert every kind of damaged row, pickles included; returns their keys."""
    for key, text in BAD.items():
        plant(cache.folder, key=key, raw=1, mode=1, value=text)
    plant(cache.folder, key="pickled", raw=1, mode=4, value=pickle.dumps(Bomb(ran)))
    plant(cache.folder, key="bytes", raw=1, mode=1, value=b"{}")
    plant(cache.folder, key=b"\x80code", raw=0, mode=1, value="{}")
    cache._rows._sql("INSERT INTO Cache (key, raw, mode, value) VALUES ('no text', 1, 1, CAST(x'80ff' AS TEXT))")
    packed = {**Answer("a").to_json(), "tokens": {**pack([(b"a", -1.0, ())]), "ids": "BCQ=="}}
    what = key_fields("p", {}, Request("r", prompt="packed badly"))
    cache.add([(answer_key(what), {"asked": what, "answer": packed, "time": 1})])
    return [*BAD, "pickled", "bytes", "\\x80code", "no text", answer_key(what)]


def exported(tmp_path: Path, count: int = 3) -> list[bytes]:
    """The lines of an export file."""
    with DiskAnswerStore(tmp_path / "from") as cache:
        for i in range(count):
            keep(cache, full_answer(f"answer {i}"), i)
        archive.export_answers(cache, tmp_path / "whole.jsonl")
    return (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
