"""What a teacher with other tokens thought, at the student's tokens: alignment by bytes.

The teacher's tokens and the student's cut one text in different places. Where a token of each begins at the same byte,
the two stand before the same choice, and the teacher's likeliest tokens become a soft target of the student's:

1. A teacher's token that ends an answer goes to the student's end of text.
2. Any other goes to the longest student's token that its bytes begin with. Two tokens of the teacher may meet there;
   their mass is added up.
3. One that is no token of the student's, but only the beginning of some, goes nowhere: the student's token would be
   longer, and which one it would be the teacher did not say. Nor do control tokens, which are no text, go anywhere.
4. For the token that stands in the text, the text itself tells: it goes to the student's token there if its bytes
   begin with that one, and nowhere if the student's token is the longer one.

What goes nowhere, and what the teacher did not list, is the residual: the mass of all other tokens together. A list
that sums to more than one is scaled down to it; of a token that is listed twice the likelier counts. Everywhere else,
and where nothing that was listed goes anywhere, there is no soft target, only the token of the text.

It is an approximation: rule 2 supposes that the student would cut the teacher's token as its longest tokens do.
Knows bytes, tokens and log-probabilities; not who the teacher is, nor how targets are kept.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...core.records import LOG_ZERO, Answer
from ...data.tokenizer import Tokenizer
from .store import SoftTargetRows

ALIGNMENT_RULE = "longest prefix, rule 1"
NOWHERE = -1
LEAST = 1e-9  # a smaller residual is rounding

# How teachers spell the end of an answer, and other tokens that are no text.
ENDS = frozenset(
    """</s> <eos> <|endoftext|> <|end_of_text|> <|im_end|> <|eot_id|> <|eom_id|> <|end|> <|return|> <|end_of_turn|>
    <end_of_turn> <|eos|> <|EOT|> <\uff5cend\u2581of\u2581sentence\uff5c> [EOS]""".split()  # noqa: SIM905
)
CONTROL = re.compile(
    rb"<s>|<pad>|<unk>|<mask>|<bos>|<start_of_turn>|\[(?:BOS|PAD|UNK|INST)\]|<\|[A-Za-z0-9_ ]{1,40}\|>"
)

Array = NDArray[np.int64]


class TokenMapping(dict[bytes, int]):
    """Which of the student's tokens gets the mass of a teacher's token, by its bytes. Filled as it is asked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__({end.encode(): tokenizer.end_of_text for end in ENDS})
        self.own = _text_tokens(tokenizer)
        self.ordered = sorted(self.own)
        self.longest = max(map(len, self.own))

    def __missing__(self, piece: bytes) -> int:
        self[piece] = found = self._found(piece)
        return found

    def _found(self, piece: bytes) -> int:
        if piece in self.own:
            return self.own[piece]
        if not piece or CONTROL.fullmatch(piece) or self._begins_another(piece):
            return NOWHERE
        starts = (piece[:size] for size in range(min(len(piece) - 1, self.longest), 0, -1))
        return next((self.own[start] for start in starts if start in self.own), NOWHERE)

    def _begins_another(self, piece: bytes) -> bool:
        """Whether some token of the student's begins with these bytes, and goes on."""
        at = bisect_right(self.ordered, piece)
        return at < len(self.ordered) and self.ordered[at].startswith(piece)


def _text_tokens(tokenizer: Tokenizer) -> dict[bytes, int]:
    """The student's tokens that are text, by their bytes; of two with the same bytes, the later.

    SentencePiece has its bytes first, and then a piece for some of them, which is what it writes.
    """
    special = set(tokenizer.special.values())
    pieces = enumerate(tokenizer.vocabulary)
    return {piece: token for token, piece in pieces if piece and token not in special}


class Aligner:
    """Aligns a teacher's answers with texts of the student's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.landing = tokenizer, TokenMapping(tokenizer)

    def align(self, tokens: Array, answer: Answer) -> SoftTargetRows:
        """The soft targets of a text: whatever came first, then the answer, and perhaps the end of text."""
        said = _Said.of(answer)
        ended = len(tokens) > 0 and tokens[-1] == self.tokenizer.end_of_text
        lengths = self.tokenizer.lengths[tokens]
        if ended:
            lengths[-1] = 0
        begins = np.cumsum(lengths) - lengths - (int(lengths.sum()) - len(answer.text.encode()))
        places = said.places(answer.text, ended)
        shared, ours, theirs = np.intersect1d(begins, places, assume_unique=False, return_indices=True)
        keep = (shared >= 0) & (said.alternatives[theirs] > 0)
        return self._rows(tokens, ours[keep], said, theirs[keep])

    def _rows(self, tokens: Array, ours: Array, said: _Said, theirs: Array) -> SoftTargetRows:
        """The targets of a text, of which some tokens (ours) begin where the teacher's (theirs) do."""
        rows, pieces, logs = said.listed(theirs)
        landing = np.array([self.landing[piece] for piece in said.table], np.int64)[pieces]
        own = said.own[theirs][rows] == pieces
        landing[own] = self._in_the_text(tokens[ours], said, theirs)[rows[own]]
        mass = np.exp(logs)
        mass /= np.maximum(1.0, np.bincount(rows, mass, len(ours)))[rows]
        landed = landing >= 0
        keys, inverse = np.unique(rows[landed] * self.tokenizer.vocab_size + landing[landed], return_inverse=True)
        sums = np.bincount(inverse, mass[landed], len(keys))
        at, ids = np.divmod(keys, self.tokenizer.vocab_size)
        return _placed(len(tokens), ours, at, ids, sums)

    def _in_the_text(self, hard: Array, said: _Said, theirs: Array) -> Array:
        """Where the teacher's tokens that stand in the text go: the text tells."""
        sizes = said.sizes[theirs]
        fits = (hard == self.tokenizer.end_of_text) | (self.tokenizer.lengths[hard] <= sizes)
        return np.where(fits, hard, NOWHERE)


def _placed(size: int, ours: Array, at: Array, ids: Array, sums: NDArray[Any]) -> SoftTargetRows:
    """Rows for every token of a text, from what was found for some; the likeliest token first."""
    order = np.lexsort((ids, -sums, at))
    at, ids, sums = at[order], ids[order], sums[order]
    counts, residuals = np.zeros(size, np.int64), np.full(size, LOG_ZERO)
    counts[ours] = np.bincount(at, minlength=len(ours))
    rest = 1 - np.bincount(at, sums, len(ours))
    some = (counts[ours] > 0) & (rest > LEAST)
    residuals[ours] = np.where(some, np.log(np.maximum(rest, LEAST)), LOG_ZERO)
    return SoftTargetRows(counts, ids, np.log(np.maximum(sums, 1e-300)), residuals)


class _Said(NamedTuple):
    """An answer's tokens as arrays: all bytes that occur, which of them stand where, and how likely."""

    table: Sequence[bytes]
    which: Array
    logs: NDArray[np.float64]
    heads: Array  # where each token of the answer stands among `which`; its alternatives follow
    alternatives: Array

    @classmethod
    def of(cls, answer: Answer) -> _Said:
        table, which, alternatives, logs = answer.columns()
        counts = np.array(alternatives, np.int64)
        heads = np.arange(len(counts)) + np.cumsum(counts) - counts
        return cls(table, np.array(which, np.int64), np.array(logs, np.float64), heads, counts)

    @property
    def own(self) -> Array:
        """The tokens of the answer itself."""
        return self.which[self.heads]

    @property
    def sizes(self) -> Array:
        """How many bytes each of them has."""
        return np.array([len(piece) for piece in self.table], np.int64)[self.own]

    def places(self, text: str, ended: bool) -> Array:
        """At which byte of the text each token begins; below 0 where it is no part of it.

        What stands before the text (the beginning of a sequence, a space that was cut off, thoughts) and behind it (the
        end, what follows a stop word) is left out; a text that ends with half a character is taken up to there.
        """
        pieces, sizes = [self.table[i] for i in self.own], self.sizes
        body = text.rstrip("\ufffd").encode()
        offset = b"".join(pieces).rfind(body) if body else -1
        if offset < 0:
            return np.full(len(pieces), NOWHERE)
        places = np.cumsum(sizes) - sizes - offset
        inside = (places >= 0) & (places < len(body)) & (sizes > 0)
        if ended and len(body) == len(text.encode()):
            inside[[i for i in np.flatnonzero(places == len(body))[:1] if _ends(pieces[i])]] = True
        return np.where(inside, places, NOWHERE)

    def listed(self, theirs: Array) -> tuple[Array, Array, NDArray[np.float64]]:
        """What was listed at some tokens: at which of them, what, and its log-probability, nothing twice."""
        counts = self.alternatives[theirs]
        rows = np.repeat(np.arange(len(theirs)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        entries = self.heads[theirs][rows] + 1 + within
        pieces, logs = self.which[entries], self.logs[entries]
        order = np.lexsort((-logs, pieces, rows))
        rows, pieces, logs = rows[order], pieces[order], logs[order]
        first = np.ones(len(rows), bool)
        first[1:] = (rows[1:] != rows[:-1]) | (pieces[1:] != pieces[:-1])
        return rows[first], pieces[first], logs[first]


def _ends(piece: bytes) -> bool:
    """Whether a token behind a text is the end of it."""
    return not piece or piece.decode("utf-8", "replace") in ENDS or bool(CONTROL.fullmatch(piece))
