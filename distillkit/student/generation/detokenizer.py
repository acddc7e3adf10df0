"""Incremental detokenization with stop strings: complete characters only, and no text that may begin a stop string.

Works on tokens and text only.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ...data.tokenizer import Tokenizer
from .logprobs import TokenLogprob


class Detokenizer:
    """The text of one row so far, and its tokens with their offsets in the text."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, [stop for stop in stops if stop]
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text = ""
        self.stopped = self.finished = False
        self.tokens: list[tuple[TokenLogprob, int]] = []  # with the offset of each in the text
        self._text_taken = self._tokens_taken = self._prompt_length = 0

    def echo(self, tokens: Sequence[TokenLogprob]) -> None:
        """Start with the tokens of a prompt, in which stop strings are ignored."""
        for token in tokens:
            self.tokens.append((token, len(self.text)))
            self.text += self.decoder.decode(self.tokenizer.bytes_of(token.token))
        self._prompt_length = len(self.text)

    def add(self, token: TokenLogprob) -> None:
        """Append a token. Tokens after a stop string are ignored."""
        if self.stopped:
            return
        before = len(self.text)
        self.tokens.append((token, before))
        self.text += self.decoder.decode(self.tokenizer.bytes_of(token.token))
        self._cut_at_stop(before)

    def finish(self) -> None:
        """Mark the end of the tokens."""
        if not self.stopped:
            before = len(self.text)
            self.text += self.decoder.decode(b"", final=True)
            self._cut_at_stop(before)
        self.finished = True

    def _cut_at_stop(self, before: int) -> None:
        """Cut the text at the first stop string, which may begin before the text that was added at `before`."""
        begin = max(self._prompt_length, before - max(map(len, self.stops), default=0))
        found = [at for stop in self.stops if (at := self.text.find(stop, begin)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
            self.tokens = [(token, at) for token, at in self.tokens if at < len(self.text)]

    def take(self) -> tuple[str, list[tuple[TokenLogprob, int]]]:
        """The text, and the tokens with their offsets, that are final and were not taken before."""
        over = self.stopped or self.finished
        safe = len(self.text) - (0 if over else self._held_back())
        text_taken, self._text_taken = self._text_taken, max(self._text_taken, safe)
        tokens_taken = self._tokens_taken
        while self._tokens_taken < len(self.tokens) and (self.tokens[self._tokens_taken][1] < safe or over):
            self._tokens_taken += 1
        return self.text[text_taken : self._text_taken], self.tokens[tokens_taken : self._tokens_taken]

    def _held_back(self) -> int:
        """The number of characters at the end that may be the beginning of a stop string."""
        longest = min(len(self.text) - self._prompt_length, max(map(len, self.stops), default=1) - 1)
        ends = (size for size in range(longest, 0, -1) if any(s.startswith(self.text[-size:]) for s in self.stops))
        return next(ends, 0)
