"""Writing: tokens after tokens, for many prompts at once, over a cache of keys and values.

Each row has a seed of its own, so what is written to a prompt does not depend on its neighbours; a row that has ended
leaves the batch. The next token is computed while the one before is handed out. Knows tokens only; text is somebody
else's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn

from ..model.cpu.matmul import few_rows
from ..model.kv_cache import Cache
from ..training.parallel import StreamPool, thread_stream_pool
from .sampling import Said, Sampling, draw, keys_of, noise_of, turn

Texts = Sequence[Sequence[int]] | Mapping[int, Sequence[int]]  # by the number of a row

ROWS = 4  # fewer rows than that are not worth a stream of their own


def write(
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
    """The next token of every row, again and again: None for a row that has ended.

    A row ends with the token `end`, and all rows after `max_tokens`. Without either, whoever asks decides when to stop.
    """
    if max_tokens == 0:
        return
    batch = Batch(model, context, prompts, seeds, sampling, padding)
    pending = batch.next_tokens(None) if prompts else mx.array([])
    count = 0
    while batch.alive:
        count += 1
        following = batch.next_tokens(pending) if count != max_tokens else None
        tokens: list[int] = pending.tolist()  # type: ignore[assignment]
        yield batch.told(tokens)
        if following is None:
            return
        going = [place for place, token in enumerate(tokens) if token != end]
        if going and len(going) < len(tokens):
            following = following[mx.array(going)]
        batch.keep(going)
        pending = following


class Batch:
    """Rows that are written on together, shared out over the streams."""

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
        self.alive = list(range(len(self.rows)))
        self.stream_pool = thread_stream_pool()
        self.said = Said(self.rows, padding, sampling.repetition_penalty)
        self.keys = None if sampling.greedy or not seeds else keys_of(seeds)
        feed = Feed if hasattr(model, "extend") else Reread
        self.feeds = [feed(model, context, padding, share) for share in _shares(self.alive, self.stream_pool)]

    def next_tokens(self, last: mx.array | None) -> mx.array:
        """The token after the last of each living row, on its way. Those before the last must have been told."""
        noise = self._noise()
        hidden = next_hidden(self.feeds, self.stream_pool, self.rows, last)
        logits = self.said.punish(logits_of(self.model, hidden, self.stream_pool), last)
        chosen = draw(logits, noise, self.sampling)
        mx.async_eval(chosen)
        return chosen

    def _noise(self) -> mx.array | None:
        """What chance adds to the logits. It needs none of them, so the last stream makes it meanwhile."""
        if self.keys is None:
            return None
        with mx.stream(self.stream_pool.streams[-1]):
            self.keys, now = turn(self.keys)
            return noise_of(now, self.model.head[0].shape[0])

    def told(self, tokens: Sequence[int]) -> list[int | None]:
        """Note the tokens of the living rows, and say what each row was given."""
        given: list[int | None] = [None] * len(self.rows)
        for row, token in zip(self.alive, tokens, strict=True):
            self.rows[row].append(token)
            given[row] = token
        return given

    def keep(self, places: list[int]) -> None:
        """Go on with the living rows at these places only."""
        if len(places) == len(self.alive):
            return
        self.alive = [self.alive[place] for place in places]
        if not places:
            return
        for feed in self.feeds:
            feed.keep(self.alive)
        self.said.keep(places)
        if self.keys is not None:
            self.keys = self.keys[mx.array(places)]


def next_hidden(feeds: Sequence[Feed | Reread], pool: StreamPool, texts: Texts, last: mx.array | None) -> mx.array:
    """What the network makes of the last token of each row [B, D], each feed's on a stream of its own."""
    found, first = [], 0
    for feed, stream in zip(feeds, pool.streams, strict=False):
        count = len(feed.rows)
        if count:
            with mx.stream(stream):
                found.append(feed.next_hidden(texts, None if last is None else last[first : first + count]))
        first += count
    return mx.concatenate(found, axis=0) if len(found) > 1 else found[0]


def _shares(rows: Sequence[int], pool: StreamPool) -> list[list[int]]:
    """Rows for each stream, about as many each, and no stream for a handful."""
    count = max(1, min(pool.count, len(rows) // ROWS))
    cuts = [len(rows) * i // count for i in range(count + 1)]
    return [list(rows[a:b]) for a, b in pairwise(cuts)]


class Feed:
    """Feeds rows of tokens to a network over a cache, each token once as long as its row has room.

    A row that fills the context reads its later half again and goes on from there; its neighbours do not.
    """

    def __init__(self, model: nn.Module, context: int, padding: int, rows: Sequence[int]) -> None:
        self.model, self.context, self.padding = model, context, padding
        self.rows = list(rows)
        self.past: Cache | None = None

    def next_hidden(self, texts: Texts, last: mx.array | None) -> mx.array:
        """Hidden states [B, D] of the last token of each row, which its text need not hold yet."""
        if self.past is None or last is None:
            return self._begin([list(texts[row]) for row in self.rows])
        self._make_room(self.past, texts)
        hidden: mx.array = self.model.extend(last[:, None], self.past)
        return hidden[:, -1]

    def _begin(self, texts: list[list[int]]) -> mx.array:
        longest = max(len(text) for text in texts)
        self.past = self.model.cache([longest - len(text) for text in texts])
        padded = [[self.padding] * (longest - len(text)) + text for text in texts]
        hidden: mx.array = self.model.extend(mx.array(padded), self.past)
        return hidden[:, -1]

    def _make_room(self, past: Cache, texts: Texts) -> None:
        """Let full rows read half a context again, less the new token."""
        full = [place for place, start in enumerate(past.starts) if past.held - start == self.context]
        keep = self.context // 2 - 1
        if not full:
            return
        again = self.model.cache([0] * len(full))
        if keep:
            self.model.extend(mx.array([texts[self.rows[place]][-keep:] for place in full]), again)
        past.restart(full, again)

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        places = [place for place, row in enumerate(self.rows) if row in rows]
        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in places]
        if self.past is not None and places:
            self.past.keep(places)

    def join(self, other: Feed) -> None:
        """Go on with the rows of another feed as well."""
        if self.past is None or other.past is None or not self.rows:
            self.past = other.past
        else:
            self.past.join(other.past)
        self.rows += other.rows


class Reread:
    """Feeds a network that keeps no cache, as a plugin's may: every token again for each new one."""

    def __init__(self, model: nn.Module, context: int, padding: int, rows: Sequence[int]) -> None:
        self.model, self.context, self.padding = model, context, padding
        self.rows = list(rows)

    def next_hidden(self, texts: Texts, last: mx.array | None) -> mx.array:
        """Hidden states [B, D] of the last token of each row. Padding stands at the right, where nobody sees it."""
        new: list[list[int]] = [[] for _ in self.rows] if last is None else last[:, None].tolist()  # type: ignore[assignment]
        seen = [[*texts[row], *more][-self.context :] for row, more in zip(self.rows, new, strict=True)]
        longest = max(len(text) for text in seen)
        hidden = self.model(mx.array([text + [self.padding] * (longest - len(text)) for text in seen]))
        ends = mx.array([len(text) - 1 for text in seen])
        return mx.take_along_axis(hidden, ends[:, None, None], axis=1)[:, 0]

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        self.rows = [row for row in self.rows if row in rows]

    def join(self, other: Reread) -> None:
        """Go on with the rows of another feed as well."""
        self.rows += other.rows


def logits_of(model: nn.Module, hidden: mx.array, pool: StreamPool | None = None) -> mx.array:
    """The logits of hidden states, by the network's own head."""
    weight, bias = model.head
    logits: mx.array = hidden @ weight.T if pool is None else few_rows(hidden, weight, pool)
    return logits if bias is None else logits + bias
