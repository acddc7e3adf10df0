"""Teachers that record their requests and fail on demand, and answers."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from distillkit.core.records import Answer, Request, Token, Usage
from distillkit.plugins.interfaces import Teacher


def prompts(count: int, **same: Any) -> list[Request]:
    return [Request(f"r{i}", prompt=f"prompt {i}", **same) for i in range(count)]


class Counting(Teacher):
    """Answers with the prompt and records each request and its thread; may fail on one prompt."""

    name = "counting"

    def __init__(self, fails_on: str = "", error: BaseException | None = None) -> None:
        super().__init__()
        self.fails_on, self.error = fails_on, error or ValueError("no such luck")
        self.asked: list[str | None] = []
        self.threads: set[int] = set()

    def answer(self, request: Request) -> Answer:
        self.threads.add(threading.get_ident())
        if request.prompt == self.fails_on:
            raise self.error
        self.asked.append(request.prompt)
        return Answer(f"to {request.prompt}", usage=Usage(2, 3))


class Sleeping(Teacher):
    """Answers asynchronously after a delay; may fail on one prompt."""

    name = "sleeping"

    def __init__(self, seconds: float = 0.0, fails_on: str = "", error: BaseException | None = None) -> None:
        super().__init__()
        self.seconds, self.fails_on, self.error = seconds, fails_on, error or ValueError("no such luck")
        self.now = self.most = self.given = 0
        self.asked: list[str | None] = []

    async def answer(self, request: Request) -> Answer:
        self.now += 1
        self.most = max(self.most, self.now)
        self.asked.append(request.prompt)
        try:
            await asyncio.sleep(self.seconds)
            if request.prompt == self.fails_on:
                raise self.error
            self.given += 1
            return Answer(f"to {request.prompt}")
        finally:
            self.now -= 1


def full_answer(text: str) -> Answer:
    fox = "\U0001f98a".encode()  # a token may hold half of a character
    tokens = (Token(fox[:2], -0.1, ((fox[:2], -0.1), (b"\x00\xff", -1e300))), Token(fox[2:], -0.0))
    return Answer(text, tokens, "length", Usage(7, 2**40), "model\U0001f98a", {"id": text, "deep": [{"a": None}]})


TEXTS = st.text(st.characters(), max_size=30)  # lone surrogates too
LOGPROBS = st.floats(max_value=0)
PIECES = st.binary(max_size=5)
TOKENS = st.builds(
    Token, PIECES, LOGPROBS, st.lists(st.tuples(PIECES, LOGPROBS), max_size=3).map(lambda pairs: tuple(pairs))
)
COUNTS = st.integers(0, 2**62)
ANSWERS = st.builds(
    Answer,
    text=TEXTS,
    tokens=st.lists(TOKENS, max_size=3).map(lambda tokens: tuple(tokens)),
    finish=st.sampled_from(["stop", "length"]),
    usage=st.none() | st.builds(Usage, COUNTS, COUNTS),
    model=st.none() | TEXTS,
    raw=st.none() | st.dictionaries(TEXTS, st.none() | st.integers() | TEXTS, max_size=3),
)


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def plant(folder: Path, **columns: Any) -> None:
    """Insert a row into the cache's database directly."""
    names = ", ".join(columns)
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as rows, rows:
        rows.execute(f"INSERT INTO Cache ({names}) VALUES ({', '.join('?' * len(columns))})", [*columns.values()])
