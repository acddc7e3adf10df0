"""The text of tokens while they come: whole characters only, and nothing that may yet turn out to be a stop word.

Knows how tokens are spelled, not why they came.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ...data.tokenizer import Tokenizer
from ..training.logprobs import Pick


class Wording:
    """What a row has said so far: its text, and its tokens with their places in the text."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, [stop for stop in stops if stop]
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text = ""
        self.stopped = self.ended = False
        self.picks: list[tuple[Pick, int]] = []
        self._given = self._shown = self._floor = 0

    def echo(self, picks: Sequence[Pick]) -> None:
        """Begin with tokens that are shown whatever they say."""
        for pick in picks:
            self.picks.append((pick, len(self.text)))
            self.text += self.decoder.decode(self.tokenizer.bytes_of(pick.token))
        self._floor = len(self.text)

    def add(self, pick: Pick) -> None:
        """Note a token. After a stop word nothing is noted any more."""
        if self.stopped:
            return
        before = len(self.text)
        self.picks.append((pick, before))
        self.text += self.decoder.decode(self.tokenizer.bytes_of(pick.token))
        self._look(before)

    def end(self) -> None:
        """No token follows."""
        if not self.stopped:
            before = len(self.text)
            self.text += self.decoder.decode(b"", final=True)
            self._look(before)
        self.ended = True

    def _look(self, before: int) -> None:
        """Cut the text at the first stop word, which may have begun in what stood there before."""
        begin = max(self._floor, before - max(map(len, self.stops), default=0))
        places = [place for stop in self.stops if (place := self.text.find(stop, begin)) >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True
            self.picks = [(pick, place) for pick, place in self.picks if place < len(self.text)]

    def piece(self) -> tuple[str, list[tuple[Pick, int]]]:
        """What can be handed out and was not yet: text, and tokens with their places in it."""
        over = self.stopped or self.ended
        safe = len(self.text) - (0 if over else self._doubtful())
        given, self._given = self._given, max(self._given, safe)
        shown = self._shown
        while self._shown < len(self.picks) and (self.picks[self._shown][1] < safe or over):
            self._shown += 1
        return self.text[given : self._given], self.picks[shown : self._shown]

    def _doubtful(self) -> int:
        """How many characters at the end may be the beginning of a stop word."""
        longest = min(len(self.text) - self._floor, max(map(len, self.stops), default=1) - 1)
        ends = (size for size in range(longest, 0, -1) if any(s.startswith(self.text[-size:]) for s in self.stops))
        return next(ends, 0)
