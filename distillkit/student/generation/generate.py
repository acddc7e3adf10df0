"""Generating tokens for many prompts at once, with a KV cache.

Each row has its own seed, so its output does not depend on the other rows of the batch; a row that has ended leaves
the batch. The next token is computed while the caller handles the previous one. Works on token ids only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn

from ..model.cpu.matmul import matmul_few_rows
from ..model.kv_cache import KVCache
from ..training.parallel import StreamPool, thread_stream_pool
from .sampling import RepetitionPenalty, Sampling, gumbel_noise, random_keys, sample_tokens, split_keys

TokenRows = Sequence[Sequence[int]] | Mapping[int, Sequence[int]]  # the tokens of each row, by its number

MIN_ROWS_PER_STREAM = 4  # fewer rows are not worth a separate stream


def generate_tokens(
    model: nn.Module,
    context: int,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    padding: int,
    *,
    end: int | None = None,
    max_tokens: int | None = None,
) -> Iterator[list[int | None]]:
    """Yield the next token of every row at each step; None for a row that has ended.

    A row ends with the token `end`, and all rows after `max_tokens`. Without either, the caller decides when to stop.
    """
    if max_tokens == 0:
        return
    batch = DecodingBatch(model, context, prompts, seeds, sampling, padding)
    pending = batch.next_tokens(None) if prompts else mx.array([])
    count = 0
    while batch.active:
        count += 1
        following = batch.next_tokens(pending) if count != max_tokens else None
        tokens: list[int] = pending.tolist()  # type: ignore[assignment]
        yield batch.append(tokens)
        if following is None:
            return
        going = [place for place, token in enumerate(tokens) if token != end]
        if going and len(going) < len(tokens):
            following = following[mx.array(going)]
        batch.keep(going)
        pending = following


class DecodingBatch:
    """Rows that are decoded together, distributed over the CPU streams."""

    def __init__(
        self,
        model: nn.Module,
        context: int,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        padding: int,
    ) -> None:
        self.model, self.sampling = model, sampling
        self.rows = [list(prompt)[-(context - 1) :] or [padding] for prompt in prompts]
        self.active = list(range(len(self.rows)))
        self.pool = thread_stream_pool()
        self.penalty = RepetitionPenalty(self.rows, padding, sampling.repetition_penalty)
        self.keys = None if sampling.greedy or not seeds else random_keys(seeds)
        decoder = CachedDecoder if hasattr(model, "extend") else UncachedDecoder
        self.decoders = [decoder(model, context, padding, part) for part in _split_rows(self.active, self.pool)]

    def next_tokens(self, last: mx.array | None) -> mx.array:
        """The token after the last one of each active row, evaluated asynchronously.

        Tokens before `last` must have been passed to `append`.
        """
        noise = self._noise()
        hidden = next_hidden(self.decoders, self.pool, self.rows, last)
        logits = self.penalty.apply(compute_logits(self.model, hidden, self.pool), last)
        chosen = sample_tokens(logits, noise, self.sampling)
        mx.async_eval(chosen)
        return chosen

    def _noise(self) -> mx.array | None:
        """Gumbel noise for this step. It does not depend on the logits, so the last stream computes it meanwhile."""
        if self.keys is None:
            return None
        with mx.stream(self.pool.streams[-1]):
            self.keys, now = split_keys(self.keys)
            return gumbel_noise(now, self.model.head[0].shape[0])

    def append(self, tokens: Sequence[int]) -> list[int | None]:
        """Append the tokens of the active rows, and return the token of every row: None for an inactive one."""
        appended: list[int | None] = [None] * len(self.rows)
        for row, token in zip(self.active, tokens, strict=True):
            self.rows[row].append(token)
            appended[row] = token
        return appended

    def keep(self, places: list[int]) -> None:
        """Keep only the active rows at these places."""
        if len(places) == len(self.active):
            return
        self.active = [self.active[place] for place in places]
        if not places:
            return
        for decoder in self.decoders:
            decoder.keep(self.active)
        self.penalty.keep(places)
        if self.keys is not None:
            self.keys = self.keys[mx.array(places)]


def next_hidden(
    decoders: Sequence[CachedDecoder | UncachedDecoder], pool: StreamPool, rows: TokenRows, last: mx.array | None
) -> mx.array:
    """Hidden states [B, D] of the last token of each row, each decoder computing on a separate stream."""
    hidden, first = [], 0
    for decoder, stream in zip(decoders, pool.streams, strict=False):
        count = len(decoder.rows)
        if count:
            with mx.stream(stream):
                hidden.append(decoder.next_hidden(rows, None if last is None else last[first : first + count]))
        first += count
    return mx.concatenate(hidden, axis=0) if len(hidden) > 1 else hidden[0]


def _split_rows(rows: Sequence[int], pool: StreamPool) -> list[list[int]]:
    """Rows divided evenly among the streams, with at least MIN_ROWS_PER_STREAM rows each."""
    count = max(1, min(pool.count, len(rows) // MIN_ROWS_PER_STREAM))
    bounds = [len(rows) * i // count for i in range(count + 1)]
    return [list(rows[a:b]) for a, b in pairwise(bounds)]


class CachedDecoder:
    """Decodes rows with a KV cache: each token is computed once while its row fits into the context.

    A row that fills the context recomputes its later half and continues from there; the other rows do not.
    """

    def __init__(self, model: nn.Module, context: int, padding: int, rows: Sequence[int]) -> None:
        self.model, self.context, self.padding = model, context, padding
        self.rows = list(rows)
        self.cache: KVCache | None = None

    def next_hidden(self, rows: TokenRows, last: mx.array | None) -> mx.array:
        """Hidden states [B, D] of the last token of each row; `rows` need not contain the last tokens yet."""
        if self.cache is None or last is None:
            return self._prefill([list(rows[row]) for row in self.rows])
        self._restart_full_rows(self.cache, rows)
        hidden: mx.array = self.model.extend(last[:, None], self.cache)
        return hidden[:, -1]

    def _prefill(self, texts: list[list[int]]) -> mx.array:
        longest = max(len(text) for text in texts)
        self.cache = self.model.cache([longest - len(text) for text in texts])
        padded = [[self.padding] * (longest - len(text)) + text for text in texts]
        hidden: mx.array = self.model.extend(mx.array(padded), self.cache)
        return hidden[:, -1]

    def _restart_full_rows(self, cache: KVCache, rows: TokenRows) -> None:
        """Recompute the last half context, less the new token, of rows that fill the context."""
        full = [place for place, start in enumerate(cache.starts) if cache.length - start == self.context]
        keep = self.context // 2 - 1
        if not full:
            return
        recomputed = self.model.cache([0] * len(full))
        if keep:
            self.model.extend(mx.array([rows[self.rows[place]][-keep:] for place in full]), recomputed)
        cache.restart(full, recomputed)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        places = [place for place, row in enumerate(self.rows) if row in rows]
        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in places]
        if self.cache is not None and places:
            self.cache.keep(places)

    def join(self, other: CachedDecoder) -> None:
        """Take over the rows of another decoder."""
        if self.cache is None or other.cache is None or not self.rows:
            self.cache = other.cache
        else:
            self.cache.join(other.cache)
        self.rows += other.rows


class UncachedDecoder:
    """Decodes with a network that offers no KV cache, as a plugin's may: recomputes all tokens for each new one."""

    def __init__(self, model: nn.Module, context: int, padding: int, rows: Sequence[int]) -> None:
        self.model, self.context, self.padding = model, context, padding
        self.rows = list(rows)

    def next_hidden(self, rows: TokenRows, last: mx.array | None) -> mx.array:
        """Hidden states [B, D] of the last token of each row. Padding is on the right, so attention ignores it."""
        new: list[list[int]] = [[] for _ in self.rows] if last is None else last[:, None].tolist()  # type: ignore[assignment]
        texts = [[*rows[row], *more][-self.context :] for row, more in zip(self.rows, new, strict=True)]
        longest = max(len(text) for text in texts)
        hidden = self.model(mx.array([text + [self.padding] * (longest - len(text)) for text in texts]))
        ends = mx.array([len(text) - 1 for text in texts])
        return mx.take_along_axis(hidden, ends[:, None, None], axis=1)[:, 0]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        self.rows = [row for row in self.rows if row in rows]

    def join(self, other: UncachedDecoder) -> None:
        """Take over the rows of another decoder."""
        self.rows += other.rows


def compute_logits(model: nn.Module, hidden: mx.array, pool: StreamPool | None = None) -> mx.array:
    """Logits [..., V] of hidden states [..., D], by the head of the network."""
    weight, bias = model.head
    logits: mx.array = hidden @ weight.T if pool is None else matmul_few_rows(hidden, weight, pool)
    return logits if bias is None else logits + bias
