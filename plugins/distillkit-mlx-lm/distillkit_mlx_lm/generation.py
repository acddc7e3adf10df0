"""Batched generation with mlx-lm's continuous batching: a finished answer is replaced by the next request.

Each answer has its own random generator, so it does not depend on the rest of the batch. Works on tokens and bytes;
does not know requests or chats. mlx is not imported at module level: `distillkit.student` must load its BLAS first.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from distillkit.student.generation.sampling import Sampling, gumbel_noise, random_keys, sample_tokens, split_keys

from .model import AnswerStart, Float32Logits

if TYPE_CHECKING:
    import mlx.core as mx

    from .model import Model

PREFILL_BATCH_SIZE = 8  # prompts processed at once
# The bytes of a token, its log-probability, and the top log-probabilities at its position.
TokenLogprobs = tuple[bytes, float, tuple[tuple[bytes, float], ...]]


@dataclass(frozen=True)
class GenerationRequest:
    """An answer to generate: prompt tokens, maximum length, sampling, and where the answer starts and stops."""

    tokens: Sequence[int]
    max_tokens: int
    sampling: Sampling
    seed: int = 0
    stop: tuple[bytes, ...] = ()
    top_logprobs: int = 0
    answer_start: AnswerStart | None = None
    strip: bool = False  # remove leading whitespace, as in chat replies


@dataclass(frozen=True)
class GeneratedAnswer:
    """A finished answer: text, its tokens, the reason why it ended, and the number of generated tokens."""

    text: str
    tokens: tuple[TokenLogprobs, ...]
    finish: str
    count: int


def generate(
    model: Model, requests: Sequence[GenerationRequest], batch_size: int
) -> Iterator[tuple[int, GeneratedAnswer]]:
    """Yield every answer with the index of its request when it is done. The longest prompts start first."""
    from mlx_lm.generate import BatchGenerator

    if not requests:
        return
    order = sorted(range(len(requests)), key=lambda index: -len(requests[index].tokens))
    generator = BatchGenerator(
        Float32Logits(model.network),
        stop_tokens=[[token] for token in model.end_tokens],
        completion_batch_size=batch_size,
        prefill_batch_size=min(PREFILL_BATCH_SIZE, batch_size),
    )
    try:
        uids = generator.insert(
            [list(requests[index].tokens) for index in order],
            [requests[index].max_tokens for index in order],
            samplers=[_sampler(requests[index]) for index in order],
        )
        active = {uid: ActiveAnswer(index, requests[index], model) for uid, index in zip(uids, order, strict=True)}
        while active:
            for uid in _step(generator, active):
                answer = active.pop(uid)
                yield answer.index, answer.result()
    finally:
        generator.close()


def _step(generator: Any, active: dict[int, ActiveAnswer]) -> list[int]:
    """Generate one token for each active answer; returns the ids of finished ones."""
    done, stopped = [], []
    responses = generator.next_generated()
    if not responses:
        raise RuntimeError(f"mlx-lm stopped with {len(active)} answers unfinished")
    for response in responses:
        answer = active[response.uid]
        answer.add(response.token, response.logprobs, response.finish_reason)
        if answer.finish:
            done.append(response.uid)
            if response.finish_reason is None:
                stopped.append(response.uid)
    if stopped:
        generator.remove(stopped)
    return done


def _sampler(request: GenerationRequest) -> Any:
    """The sampler of an answer. Greedy answers share one function, so that mlx-lm can batch them."""
    return greedy if request.sampling.greedy else AnswerSampler(request)


def greedy(logprobs: mx.array) -> mx.array:
    """The most likely token of each row."""
    return logprobs.argmax(axis=-1)


class AnswerSampler:
    """Samples the tokens of one answer with its own random keys."""

    def __init__(self, request: GenerationRequest) -> None:
        self.sampling, self.keys = request.sampling, random_keys([request.seed])

    def __call__(self, logprobs: mx.array) -> mx.array:
        """The next token."""
        self.keys, key = split_keys(self.keys)
        return sample_tokens(logprobs, gumbel_noise(key, logprobs.shape[-1]), self.sampling)


@dataclass
class ActiveAnswer:
    """An answer that is being generated."""

    index: int
    request: GenerationRequest
    model: Model
    buffer: bytearray = field(default_factory=bytearray)
    tokens: list[TokenLogprobs] = field(default_factory=list)
    count: int = 0
    finish: str = ""
    end: int | None = None  # position of a stop word

    def add(self, token: int, logprobs: mx.array, finish: str | None) -> None:
        """Add a token. `finish` is the reason if mlx-lm ends the answer with it."""
        self.count += 1
        self.finish = finish or ""
        if finish == "stop":  # the end token is not part of the text
            return
        piece = _bytes(self.model, token)
        if self.request.top_logprobs:
            self.tokens.append((piece, *_top_logprobs(self.model, token, logprobs, self.request.top_logprobs)))
        before = len(self.buffer)
        self.buffer += piece
        self._find_stop_word(before)

    def _find_stop_word(self, before: int) -> None:
        """End the answer if its last token completed a stop word."""
        begin = self.start if self.request.stop else None
        if begin is None:
            return
        positions = [self.buffer.find(word, max(begin, before - len(word) + 1)) for word in self.request.stop]
        if found := [position for position in positions if position >= 0]:
            self.end, self.finish = min(found), "stop"

    @property
    def start(self) -> int | None:
        """The position where the answer starts; None while there is only reasoning."""
        marker = self.request.answer_start
        position = self.buffer.rfind(marker.mark) if marker else -1
        if marker is None or position < 0:
            is_reasoning = marker is not None and (marker.opened or (marker.opener and marker.opener in self.buffer))
            return None if is_reasoning else 0
        return position + len(marker.mark)

    def result(self) -> GeneratedAnswer:
        """The answer from its start to its end, without an incomplete character."""
        begin = self.start
        end = len(self.buffer) if self.end is None else self.end
        if begin is None:
            return GeneratedAnswer("", (), self.finish, self.count)
        if self.request.strip:
            begin = end - len(self.buffer[begin:end].lstrip())
        text, size = _decode_complete(bytes(self.buffer[begin:end]))
        return GeneratedAnswer(text, tuple(_tokens_between(self.tokens, begin, begin + size)), self.finish, self.count)


def score(model: Model, tokens: Sequence[int], top: int) -> list[TokenLogprobs]:
    """The tokens of a given text with top log-probabilities at each position except the first."""
    import mlx.core as mx

    logits = model.logits(mx.array([list(tokens)]))[0]
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    pieces = [b"" if token in model.vocabulary.special else _bytes(model, token) for token in tokens]
    found = (_top_logprobs(model, token, row, top) for token, row in zip(tokens[1:], logprobs, strict=False))
    return [(pieces[0], 0.0, ()), *((piece, *rest) for piece, rest in zip(pieces[1:], found, strict=True))]


def _bytes(model: Model, token: int) -> bytes:
    token_bytes = model.vocabulary.token_bytes
    return token_bytes[token] if token < len(token_bytes) else b""


def _top_logprobs(
    model: Model, token: int, logprobs: mx.array, top: int
) -> tuple[float, tuple[tuple[bytes, float], ...]]:
    """The log-probability of a token, and the top text tokens at its position; tokens with equal bytes are merged."""
    values, vocabulary = np.array(logprobs), model.vocabulary
    of_text = values.copy()
    of_text[len(vocabulary.token_bytes) :] = -np.inf
    of_text[vocabulary.non_text_ids[vocabulary.non_text_ids < values.size]] = -np.inf
    best = np.argpartition(of_text, -min(top, values.size))[max(0, values.size - top) :]
    merged: dict[bytes, float] = {}
    for other in best[np.isfinite(of_text[best])].tolist():
        piece = _bytes(model, other)
        merged[piece] = float(np.logaddexp(merged.get(piece, -np.inf), values[other]))
    return float(values[token]), tuple(sorted(merged.items(), key=lambda pair: (-pair[1], pair[0])))


def _decode_complete(data: bytes) -> tuple[str, int]:
    """The text of bytes without an incomplete last character, and the number of bytes it takes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return text, len(data) - len(decoder.getstate()[0])


def _tokens_between(tokens: Sequence[TokenLogprobs], begin: int, end: int) -> Iterator[TokenLogprobs]:
    """The tokens between two positions. A token that spans `begin` loses its bytes before it."""
    offset = 0
    for piece, logprob, top in tokens:
        start, offset = offset, offset + len(piece)
        if offset > end:
            return
        if start >= begin:
            yield piece, logprob, top
        elif offset > begin:
            prefix = piece[: begin - start]
            rest = tuple(
                (other[len(prefix) :], value) for other, value in top if other.startswith(prefix) and other != prefix
            )
            yield piece[len(prefix) :], logprob, rest
