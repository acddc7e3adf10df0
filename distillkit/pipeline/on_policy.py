"""On-policy distillation with a teacher that has another tokenizer: it scores text that the student has just written.

Each document of a row is one request. The teacher's log-probabilities are aligned with the student's tokens by their
bytes. Scores are stored like answers, so a resumed run does not request them again. Scoring a given text yields no
end-of-text probability, and an incomplete character cannot be sent: such tokens have no soft target. Does not know
which rows are scored, or what the mixer does with the result.
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

PROCESS_LIMITS = ("max_usd", "max_requests", "max_tokens_total", "requests_per_minute", "tokens_per_minute")

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
RecordSpending = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True)
class TextSpan:
    """A span of a row that can be sent as text."""

    row: int
    start: int
    tokens: NDArray[np.int64]
    text: str


class OnPolicyScorer:
    """Lets a teacher score rows, in the step in which the student wrote them.

    Spending is recorded after each step, since a killed process cannot record it at its end.
    """

    def __init__(
        self, context: Context, spent: Mapping[str, float], record_spending: RecordSpending | None = None
    ) -> None:
        table = cast(TeacherTable, context.recipe.teacher)
        self.context, self.teacher, self.aligner = context, context.teacher, Aligner(context.tokenizer)
        self.width = table.top_logprobs
        self.policy = request_policy(context, table, spent=dict(spent), batch=False, shard=None, rate_state=RateState())
        self.console, self.record_spending = WithoutProgress(context.console), record_spending

    def __call__(self, rows: Ints) -> tuple[Ints, Floats, Floats, Floats]:
        """The soft targets of rows [B, T + 1]: ids and log-probabilities [B, T, K], residuals and mask [B, T]."""
        size = rows.shape
        ids, logs = np.zeros((*size, self.width), np.int32), np.full((*size, self.width), LOG_ZERO, np.float32)
        residuals, has = np.full(size, LOG_ZERO, np.float32), np.zeros(size, np.float32)
        spans = [span for row, tokens in enumerate(rows) for span in self._spans(row, tokens)]
        for span, answer in zip(spans, self._score(spans), strict=True):
            if answer.text == span.text:  # otherwise it was refused
                targets = self.aligner.align(span.tokens, limit_alternatives(answer, self.width))
                place = span.row, slice(span.start, span.start + len(span.tokens))
                ids[place], logs[place] = targets.dense(self.width)
                residuals[place], has[place] = targets.residuals, targets.counts > 0
        return ids[:, 1:], logs[:, 1:], residuals[:, 1:], has[:, 1:]

    def _spans(self, row: int, tokens: Ints) -> Iterator[TextSpan]:
        """The documents of a row, each limited to what can be decoded as text."""
        tokenizer = self.context.tokenizer
        ends = [*np.flatnonzero(tokens == tokenizer.end_of_text), len(tokens)]
        begins = [0, *(end + 1 for end in ends)]
        for begin, end in zip(begins, ends, strict=False):
            words = [tokenizer.bytes_of(int(token)) for token in tokens[begin:end]]
            first, last = decodable_range(words)
            if begin + last > 1 and last > first:  # the first token of a row is not a target
                text = b"".join(words[first:last]).decode()
                yield TextSpan(row, begin + first, tokens[begin + first : begin + last].astype(np.int64), text)

    def _score(self, spans: list[TextSpan]) -> list[Answer]:
        """The teacher's answers with the log-probabilities of each span's tokens."""
        requests = [
            Request(str(number), span.text, max_tokens=0, top_logprobs=self.width) for number, span in enumerate(spans)
        ]
        if not requests or self.teacher is None:
            return []
        done = LabelResult([], [])
        try:
            ask(self.context, self.teacher, requests, self.policy, done, self.console)
        finally:
            if done.spent:
                self.policy = replace(self.policy, spent=done.spent)
                if self.record_spending:
                    self.record_spending(done.spent)
        return done.replies


def limit_alternatives(answer: Answer, most: int) -> Answer:
    """An answer with at most the requested number of alternatives per token: a batch has no room for more."""
    tops = (sorted(token.top, key=lambda pair: -pair[1])[:most] for token in answer.tokens)
    return replace(answer, tokens=tuple(replace(t, top=tuple(top)) for t, top in zip(answer.tokens, tops, strict=True)))


def check_countable_limits(context: Context, group: ProcessGroup) -> None:
    """Refuse limits and costs that several processes could not count together, since each asks in its own steps."""
    table, teacher = context.recipe.teacher, context.teacher
    if table is None or teacher is None or group.world_size == 1 or not context.asks_teacher_in_steps:
        return
    price = request_policy(context, table).price_of(teacher)
    if price is None or price.input or price.output:
        raise UsageError(
            f"what the teacher {table.provider!r} costs cannot be counted across {group.world_size} processes: with "
            "teacher.on_policy each process asks it, and only the main process records spending",
            "Launch one process. If it costs nothing: teacher.price = { input = 0.0, output = 0.0 }",
        )
    given = [f"teacher.{name}" for name in PROCESS_LIMITS if getattr(table, name) is not None]
    if given:
        raise UsageError(
            f"{' and '.join(given)} cannot be enforced across {group.world_size} processes: with teacher.on_policy "
            "each process asks the teacher and counts for itself",
            "Launch one process, or leave out such limits.",
        )


class WithoutProgress(Console):
    """Passes lines and warnings on to another console, but drops progress, which would be shown at every step."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def print(self, text: str) -> None:
        """Print a line."""
        self.console.print(text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.console.warn(text)


def decodable_range(words: list[bytes]) -> tuple[int, int]:
    """The range of tokens that decodes as text: skips an incomplete character at the start, and stops before one."""
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
