"""What a teacher with tokens of its own makes of rows that the student has just written: it reads them, as text.

Each document of a row is told to it alone, and what it held for likely is aligned with the student's tokens by their
bytes. What it read is kept in the cache as answers are, so a run that is taken up again asks for nothing twice. Whether
a text should end where it ends nobody says who is given a text; half a character cannot be told; such tokens have no
soft target. Does not know which rows these are, nor what a mixer makes of them.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from ..core.console import Console
from ..core.errors import UsageError
from ..core.records import LOG_ZERO, Answer, Request
from ..recipe.schema import TeacherTable
from ..teachers.asking.label import LabelResult
from ..teachers.asking.rate_limits import RateState
from ..teachers.soft_targets.align import Aligner
from .context import Context
from .teacher_calls import ask, request_policy

if TYPE_CHECKING:
    from ..student.training.distributed import ProcessGroup

COUNTED_HERE = ("max_usd", "max_requests", "max_tokens_total", "requests_per_minute", "tokens_per_minute")

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Told = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True)
class Piece:
    """A stretch of a row that can be told as text."""

    row: int
    start: int
    tokens: NDArray[np.int64]
    text: str


class Reader:
    """Asks a teacher what it thinks of rows, in the step in which they were written.

    What that has cost is told each time, for a process that is killed says nothing at its end.
    """

    def __init__(self, context: Context, spent: Mapping[str, float], told: Told | None = None) -> None:
        table = cast(TeacherTable, context.recipe.teacher)
        self.context, self.teacher, self.aligner = context, context.teacher, Aligner(context.tokenizer)
        self.width = table.top_logprobs
        self.policy = request_policy(context, table, spent=dict(spent), batch=False, shard=None, rate_state=RateState())
        self.console, self.told = WithoutProgress(context.console), told

    def __call__(self, rows: Ints) -> tuple[Ints, Floats, Floats, Floats]:
        """Of rows of tokens [B, T + 1] the soft targets of all but the first [B, T], as a batch has them."""
        size = rows.shape
        ids, logs = np.zeros((*size, self.width), np.int32), np.full((*size, self.width), LOG_ZERO, np.float32)
        residuals, has = np.full(size, LOG_ZERO, np.float32), np.zeros(size, np.float32)
        pieces = [piece for row, tokens in enumerate(rows) for piece in self._pieces(row, tokens)]
        for piece, answer in zip(pieces, self._read(pieces), strict=True):
            if answer.text == piece.text:  # else it was refused
                found = self.aligner.align(piece.tokens, cut(answer, self.width))
                place = piece.row, slice(piece.start, piece.start + len(piece.tokens))
                ids[place], logs[place] = found.dense(self.width)
                residuals[place], has[place] = found.residuals, found.counts > 0
        return ids[:, 1:], logs[:, 1:], residuals[:, 1:], has[:, 1:]

    def _pieces(self, row: int, tokens: Ints) -> Iterator[Piece]:
        """The documents of a row, each as far as it is text."""
        tokenizer = self.context.tokenizer
        ends = [*np.flatnonzero(tokens == tokenizer.end_of_text), len(tokens)]
        begins = [0, *(end + 1 for end in ends)]
        for begin, end in zip(begins, ends, strict=False):
            words = [tokenizer.bytes_of(int(token)) for token in tokens[begin:end]]
            first, last = readable(words)
            if begin + last > 1 and last > first:  # a row's first token is no target
                text = b"".join(words[first:last]).decode()
                yield Piece(row, begin + first, tokens[begin + first : begin + last].astype(np.int64), text)

    def _read(self, pieces: list[Piece]) -> list[Answer]:
        """What the teacher thinks of each."""
        requests = [
            Request(str(number), piece.text, max_tokens=0, top_logprobs=self.width)
            for number, piece in enumerate(pieces)
        ]
        if not requests or self.teacher is None:
            return []
        done = LabelResult([], [])
        try:
            ask(self.context, self.teacher, requests, self.policy, done, self.console)
        finally:
            if done.spent:
                self.policy = replace(self.policy, spent=done.spent)
                if self.told:
                    self.told(done.spent)
        return done.replies


def cut(answer: Answer, most: int) -> Answer:
    """An answer with no more alternatives than were asked for: a batch has no place for others."""
    tops = (sorted(token.top, key=lambda pair: -pair[1])[:most] for token in answer.tokens)
    return replace(answer, tokens=tuple(replace(t, top=tuple(top)) for t, top in zip(answer.tokens, tops, strict=True)))


def must_be_counted(context: Context, group: ProcessGroup) -> None:
    """Refuse, of asking in the step, what each of several processes would count for itself: limits, and money."""
    table, teacher = context.recipe.teacher, context.teacher
    if table is None or teacher is None or group.world_size == 1 or not context.asks_teacher_in_steps:
        return
    price = request_policy(context, table).price_of(teacher)
    if price is None or price.input or price.output:
        raise UsageError(
            f"what the teacher {table.provider!r} costs cannot be counted by {group.world_size} processes: with "
            "teacher.on_policy each asks it in the step, and only the first one writes down what it spends",
            "Launch one process. If it costs nothing: teacher.price = { input = 0.0, output = 0.0 }",
        )
    given = [f"teacher.{name}" for name in COUNTED_HERE if getattr(table, name) is not None]
    if given:
        raise UsageError(
            f"{' and '.join(given)} cannot be kept by {group.world_size} processes: with teacher.on_policy each asks "
            "the teacher in the step, and counts for itself",
            "Launch one process, or leave such limits out.",
        )


class WithoutProgress(Console):
    """Passes lines and warnings on to another console, but drops progress, which would be shown at every step."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def print(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text)

    def warn(self, text: str) -> None:
        """A line that the reader should act on."""
        self.console.warn(text)


def readable(words: list[bytes]) -> tuple[int, int]:
    """From which token to which a row is text: not a half of a character at its beginning, nor what follows another."""
    first = 0
    while first < len(words) and words[first] and words[first][0] & 0xC0 == 0x80:
        first += 1
    decoder, last = codecs.getincrementaldecoder("utf-8")(), first
    for number, word in enumerate(words[first:], start=first + 1):
        try:
            decoder.decode(word)
        except UnicodeDecodeError:
            break
        if not decoder.getstate()[0]:
            last = number
    return first, last
