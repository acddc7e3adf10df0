"""The time to read 10,000 answers from the cache: text only, and with 96 tokens with 20 alternatives each.

    python benchmarks/cache.py [--answers 10000] [--rounds 3] [--write]

Each figure is the median of several rounds that each open the cache again; the two slow ones take one round. "Rows as
they once were" have the format of the first version, JSON numbers, which can still be read. Log-probabilities are
either single-precision numbers, as most servers return them, or decimals as OpenAI prints them, which need doubles.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from distillkit.core.records import Answer, Request, Token, Usage
from distillkit.teachers.answers.disk import DiskAnswerStore, answer_key, key_fields

TOKENS, TOP, VOCABULARY = 96, 20, 5000


def words(seed: int) -> list[bytes]:
    """A vocabulary like that of a tokenizer: short words, most with a leading space."""
    rng = random.Random(seed)
    letters = [rng.choices(b"etaoinshrdlu", k=rng.randint(1, 8)) for _ in range(VOCABULARY)]
    return [(b" " if rng.random() < 0.7 else b"") + bytes(word) for word in letters]


def single(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def answers(kind: str) -> Iterator[Answer]:
    """100 answers of one kind: text, singles or decimals."""
    rng, vocabulary = random.Random(0), words(1)
    text = " ".join(rng.choices(["the", "fox", "ran", "home", "and"], k=TOKENS))
    plain = Answer(text, usage=Usage(32, TOKENS), model="m")
    rounded: Callable[[float], float] = single if kind == "singles" else lambda value: round(value, 8)
    for _ in range(100):
        rows = []
        for _ in range(TOKENS if kind != "text" else 0):
            logprobs = [rounded(-math.log(1 + i) - rng.random() * 12) for i in range(TOP)]
            top = tuple(zip(rng.sample(vocabulary, TOP), logprobs, strict=True))
            rows.append(Token(*top[0], top))
        yield replace(plain, tokens=tuple(rows))


def once(answer: Answer) -> dict[str, Any]:
    """An answer in the format of the first version."""
    tokens = [
        [token.bytes.decode("latin-1"), token.logprob, [[p.decode("latin-1"), value] for p, value in token.top]]
        for token in answer.tokens
    ]
    return {**replace(answer, tokens=()).to_json(), "tokens": tokens}


def fill(folder: Path, count: int, kind: str, old: bool) -> list[str]:
    """Fill a cache on disk and return the keys of its answers."""
    keys = []
    rows = [once(answer) if old else answer.to_json() for answer in answers(kind)]
    with DiskAnswerStore(folder) as cache, cache._rows.transact():
        for i in range(count):
            what = key_fields("bench", {"model": "m"}, Request(f"r{i}", prompt=f"prompt {i}", top_logprobs=TOP))
            keys.append(answer_key(what))
            cache._rows.set(keys[-1], json.dumps({"asked": what, "answer": rows[i % len(rows)], "time": 0.0}))
    return keys


def measure(folder: Path, keys: list[str], rounds: int, look: bool) -> float:
    """The median seconds to read all answers, and with `look` also to access every token."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        with DiskAnswerStore(folder) as cache:
            for start in range(0, len(keys), 1000):
                for answer in cache.get_many(keys[start : start + 1000]).values():
                    if look:
                        assert len(answer.tokens) in (0, TOKENS)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


ROWS = (
    ("text alone", "text", False, False),
    ("log-probabilities in singles", "singles", False, False),
    ("log-probabilities in doubles", "decimals", False, False),
    ("singles, every token looked at", "singles", False, True),
    ("rows as they once were", "decimals", True, False),
)


def main() -> None:
    """Measure, print the table, and with --write write it and the JSON."""
    parser = argparse.ArgumentParser(description="Time the cache of answers.")
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write cache.md and cache.json beside this file")
    chosen = parser.parse_args()
    results = []
    for name, kind, old, look in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            keys = fill(Path(folder), chosen.answers, kind, old)
            size = (Path(folder) / "cache.db").stat().st_size
            seconds = measure(Path(folder), keys, 1 if old or look else chosen.rounds, look)
        results.append({"what": name, "answers": len(keys), "seconds": round(seconds, 3), "bytes": size})
    lines = [f"| {chosen.answers:,} answers, read | seconds | bytes an answer |", "| --- | ---: | ---: |"]
    lines += [f"| {row['what']} | {row['seconds']:.2f} | {row['bytes'] // row['answers']:,} |" for row in results]
    table = "\n".join(lines)
    print(table)
    if chosen.write:
        machine = {"cpus": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}
        record = {"schema": 1, "rounds": chosen.rounds, "machine": machine, "results": results}
        Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
        Path(__file__).with_suffix(".md").write_text(table + "\n")


if __name__ == "__main__":
    main()
