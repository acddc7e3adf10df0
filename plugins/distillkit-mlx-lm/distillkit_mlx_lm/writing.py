"""Many answers at once: mlx-lm's continuous batching, where the next request takes the place of one that is done.

Each answer draws from a generator of its own, so that it does not depend on its neighbours. Knows tokens and bytes,
and neither requests nor chats. mlx is not imported here: `distillkit.student` must be first, for its fast BLAS.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from distillkit.student.generation.sampling import Sampling, gumbel_noise, random_keys, sample_tokens, split_keys

from .model import After, Precisely

if TYPE_CHECKING:
    import mlx.core as mx

    from .model import Model

TOGETHER = 8  # prompts that are read at once
Piece = tuple[bytes, float, tuple[tuple[bytes, float], ...]]  # of an answer: its bytes, log-probability, alternatives


@dataclass(frozen=True)
class Asked:
    """One answer to be written: what comes before it, how long it may be, how it is drawn, where it begins and ends."""

    tokens: Sequence[int]
    most: int
    sampling: Sampling
    seed: int = 0
    stop: tuple[bytes, ...] = ()
    top: int = 0
    after: After | None = None
    trim: bool = False  # whether blanks before it are no part of it, as in a reply


@dataclass(frozen=True)
class Written:
    """An answer: its text, the tokens that lie in it, why it ended, and how many tokens it took."""

    text: str
    tokens: tuple[Piece, ...]
    finish: str
    count: int


def write(model: Model, asked: Sequence[Asked], batch_size: int) -> Iterator[tuple[int, Written]]:
    """Every answer under its number, as it is done; the longest prompts first, so that few rows wait for others."""
    from mlx_lm.generate import BatchGenerator

    if not asked:
        return
    order = sorted(range(len(asked)), key=lambda number: -len(asked[number].tokens))
    generator = BatchGenerator(
        Precisely(model.network),
        stop_tokens=[[token] for token in model.ends],
        completion_batch_size=batch_size,
        prefill_batch_size=min(TOGETHER, batch_size),
    )
    try:
        names = generator.insert(
            [list(asked[number].tokens) for number in order],
            [asked[number].most for number in order],
            samplers=[_sampler(asked[number]) for number in order],
        )
        rows = {name: Row(number, asked[number], model) for name, number in zip(names, order, strict=True)}
        while rows:
            for name in _step(generator, rows):
                row = rows.pop(name)
                yield row.number, row.written()
    finally:
        generator.close()


def _step(generator: Any, rows: dict[int, Row]) -> list[int]:
    """One more token for each row that is being written; returns those that are done."""
    done, stopped = [], []
    responses = generator.next_generated()
    if not responses:
        raise RuntimeError(f"mlx-lm left {len(rows)} answers unwritten")
    for response in responses:
        row = rows[response.uid]
        row.take(response.token, response.logprobs, response.finish_reason)
        if row.finish:
            done.append(response.uid)
            if response.finish_reason is None:
                stopped.append(response.uid)
    if stopped:
        generator.remove(stopped)
    return done


def _sampler(asked: Asked) -> Any:
    """What draws an answer's tokens. All greedy ones share one, so that mlx-lm can take theirs together."""
    return likeliest if asked.sampling.greedy else Drawn(asked)


def likeliest(logprobs: mx.array) -> mx.array:
    """The likeliest token of each row."""
    return logprobs.argmax(axis=-1)


class Drawn:
    """Draws the tokens of one answer, from a generator that nobody else uses."""

    def __init__(self, asked: Asked) -> None:
        self.sampling, self.keys = asked.sampling, random_keys([asked.seed])

    def __call__(self, logprobs: mx.array) -> mx.array:
        """The next token."""
        self.keys, now = split_keys(self.keys)
        return sample_tokens(logprobs, gumbel_noise(now, logprobs.shape[-1]), self.sampling)


@dataclass
class Row:
    """An answer while it is being written."""

    number: int
    asked: Asked
    model: Model
    said: bytearray = field(default_factory=bytearray)
    tokens: list[Piece] = field(default_factory=list)
    count: int = 0
    finish: str = ""
    end: int | None = None  # where a stop word stands

    def take(self, token: int, logprobs: mx.array, finish: str | None) -> None:
        """One more token, and why mlx-lm ends the row with it, if it does."""
        self.count += 1
        self.finish = finish or ""
        if finish == "stop":  # the token that ends a text is no part of it
            return
        piece = _bytes(self.model, token)
        if self.asked.top:
            self.tokens.append((piece, *_seen(self.model, token, logprobs, self.asked.top)))
        before = len(self.said)
        self.said += piece
        self._look_for_stops(before)

    def _look_for_stops(self, before: int) -> None:
        """Whether a stop word of the answer was just completed."""
        begin = self.begin if self.asked.stop else None
        if begin is None:
            return
        places = [self.said.find(word, max(begin, before - len(word) + 1)) for word in self.asked.stop]
        if found := [place for place in places if place >= 0]:
            self.end, self.finish = min(found), "stop"

    @property
    def begin(self) -> int | None:
        """Where the answer begins; None while there are only thoughts."""
        after = self.asked.after
        place = self.said.rfind(after.mark) if after else -1
        if after is None or place < 0:
            thinks = after is not None and (after.opened or (after.opener and after.opener in self.said))
            return None if thinks else 0
        return place + len(after.mark)

    def written(self) -> Written:
        """The answer, from where it begins to where it ends or was cut, without half a character."""
        begin = self.begin
        end = len(self.said) if self.end is None else self.end
        if begin is None:
            return Written("", (), self.finish, self.count)
        if self.asked.trim:
            begin = end - len(self.said[begin:end].lstrip())
        text, whole = _whole(bytes(self.said[begin:end]))
        return Written(text, tuple(_within(self.tokens, begin, begin + whole)), self.finish, self.count)


def read(model: Model, tokens: Sequence[int], top: int) -> list[Piece]:
    """The tokens of a given text, and the likeliest in the place of each; nothing is known of the first."""
    import mlx.core as mx

    logits = model.logits(mx.array([list(tokens)]))[0]
    logs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    names = [b"" if token in model.vocabulary.special else _bytes(model, token) for token in tokens]
    seen = (_seen(model, token, row, top) for token, row in zip(tokens[1:], logs, strict=False))
    return [(names[0], 0.0, ()), *((name, *rest) for name, rest in zip(names[1:], seen, strict=True))]


def _bytes(model: Model, token: int) -> bytes:
    every = model.vocabulary.every
    return every[token] if token < len(every) else b""


def _seen(model: Model, token: int, logprobs: mx.array, top: int) -> tuple[float, tuple[tuple[bytes, float], ...]]:
    """The log-probability of a token, and the likeliest tokens of text in its place; equal bytes are one."""
    values, vocabulary = np.array(logprobs), model.vocabulary
    spoken = values.copy()
    spoken[len(vocabulary.every) :] = -np.inf
    spoken[vocabulary.unspoken[vocabulary.unspoken < values.size]] = -np.inf
    best = np.argpartition(spoken, -min(top, values.size))[max(0, values.size - top) :]
    merged: dict[bytes, float] = {}
    for other in best[np.isfinite(spoken[best])].tolist():
        piece = _bytes(model, other)
        merged[piece] = float(np.logaddexp(merged.get(piece, -np.inf), values[other]))
    return float(values[token]), tuple(sorted(merged.items(), key=lambda pair: (-pair[1], pair[0])))


def _whole(said: bytes) -> tuple[str, int]:
    """The text of bytes, and how many of them it takes: a character that is not finished at their end is left out."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(said)
    return text, len(said) - len(decoder.getstate()[0])


def _within(tokens: Sequence[Piece], begin: int, end: int) -> Iterator[Piece]:
    """The tokens that lie between two places. One that the first place cuts loses what stands before it."""
    at = 0
    for piece, logprob, top in tokens:
        start, at = at, at + len(piece)
        if at > end:
            return
        if start >= begin:
            yield piece, logprob, top
        elif at > begin:
            cut = piece[: begin - start]
            alike = tuple((other[len(cut) :], value) for other, value in top if other.startswith(cut) and other != cut)
            yield piece[len(cut) :], logprob, alike
