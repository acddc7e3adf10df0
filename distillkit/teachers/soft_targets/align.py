"""Alignment by bytes: soft targets for the student's tokens from a teacher with another tokenizer.

The two tokenizers split one text at different places. Where a token of each starts at the same byte, both predict the
same continuation, and the teacher's most likely tokens become a soft target for the student's position:

1. A teacher's token that ends an answer maps to the student's end-of-text token.
2. Any other token maps to the longest student token that is a prefix of its bytes. The probabilities of teacher tokens
   that map to the same student token are added.
3. A token that is no student token, but a proper prefix of one, is not mapped: the student's token would be longer, and
   the teacher does not say which one it would be. Control tokens, which are not text, are not mapped either.
4. For the token that occurs in the text, the text decides: it maps to the student's token there if its bytes start with
   that token, and is not mapped if the student's token is longer.

Probability that is not mapped, and what the teacher did not list, is the residual: the mass of all other tokens. A list
that sums to more than 1 is scaled down to 1; of a token that is listed twice, the higher probability counts. All other
positions, and those where nothing can be mapped, have no soft target, only the token of the text.

This is an approximation: rule 2 assumes that the student tokenizes the teacher's token greedily by its longest tokens.
Knows bytes, tokens and log-probabilities, but neither teachers nor how targets are stored.
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
UNMAPPED = -1
MIN_RESIDUAL = 1e-9  # a smaller one is a rounding error

# End-of-text tokens of known tokenizers, and other tokens that are not text.
END_TOKENS = frozenset(
    """</s> <eos> <|endoftext|> <|end_of_text|> <|im_end|> <|eot_id|> <|eom_id|> <|end|> <|return|> <|end_of_turn|>
    <end_of_turn> <|eos|> <|EOT|> <\uff5cend\u2581of\u2581sentence\uff5c> [EOS]""".split()  # noqa: SIM905
)
CONTROL_TOKENS = re.compile(
    rb"<s>|<pad>|<unk>|<mask>|<bos>|<start_of_turn>|\[(?:BOS|PAD|UNK|INST)\]|<\|[A-Za-z0-9_ ]{1,40}\|>"
)

Array = NDArray[np.int64]


class TokenMapping(dict[bytes, int]):
    """The student's token for the bytes of a teacher's token, or UNMAPPED. Filled on demand."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__({end.encode(): tokenizer.end_of_text for end in END_TOKENS})
        self.student_tokens = _text_tokens(tokenizer)
        self.sorted_pieces = sorted(self.student_tokens)
        self.max_length = max(map(len, self.student_tokens))

    def __missing__(self, piece: bytes) -> int:
        self[piece] = token = self._map(piece)
        return token

    def _map(self, piece: bytes) -> int:
        if piece in self.student_tokens:
            return self.student_tokens[piece]
        if not piece or CONTROL_TOKENS.fullmatch(piece) or self._is_proper_prefix(piece):
            return UNMAPPED
        prefixes = (piece[:size] for size in range(min(len(piece) - 1, self.max_length), 0, -1))
        return next((self.student_tokens[prefix] for prefix in prefixes if prefix in self.student_tokens), UNMAPPED)

    def _is_proper_prefix(self, piece: bytes) -> bool:
        """Whether a longer student token starts with these bytes."""
        at = bisect_right(self.sorted_pieces, piece)
        return at < len(self.sorted_pieces) and self.sorted_pieces[at].startswith(piece)


def _text_tokens(tokenizer: Tokenizer) -> dict[bytes, int]:
    """The student's tokens that are text, by their bytes; of two with the same bytes, the later.

    SentencePiece lists the byte tokens first. Where a piece has the same bytes, it encodes with that piece.
    """
    special = set(tokenizer.special.values())
    pieces = enumerate(tokenizer.vocabulary)
    return {piece: token for token, piece in pieces if piece and token not in special}


class Aligner:
    """Turns a teacher's answers into soft targets for the student's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.mapping = tokenizer, TokenMapping(tokenizer)

    def align(self, tokens: Array, answer: Answer) -> SoftTargetRows:
        """The soft targets of a text [T], one row per token: a prompt or nothing, the answer, end-of-text or not."""
        columns = _AnswerColumns.of(answer)
        ended = len(tokens) > 0 and tokens[-1] == self.tokenizer.end_of_text
        lengths = self.tokenizer.lengths[tokens]
        if ended:
            lengths[-1] = 0
        starts = np.cumsum(lengths) - lengths - (int(lengths.sum()) - len(answer.text.encode()))
        teacher_starts = columns.starts(answer.text, ended)
        shared, student_at, teacher_at = np.intersect1d(
            starts, teacher_starts, assume_unique=False, return_indices=True
        )
        keep = (shared >= 0) & (columns.alternatives[teacher_at] > 0)
        return self._rows(tokens, student_at[keep], columns, teacher_at[keep])

    def _rows(self, tokens: Array, student_at: Array, columns: _AnswerColumns, teacher_at: Array) -> SoftTargetRows:
        """The targets of a text, given the student's and the teacher's tokens that start at the same bytes."""
        rows, pieces, logs = columns.listed(teacher_at)
        mapped = np.array([self.mapping[piece] for piece in columns.table], np.int64)[pieces]
        in_text = columns.own[teacher_at][rows] == pieces
        mapped[in_text] = self._map_text_tokens(tokens[student_at], columns, teacher_at)[rows[in_text]]
        mass = np.exp(logs)
        mass /= np.maximum(1.0, np.bincount(rows, mass, len(student_at)))[rows]
        is_mapped = mapped >= 0
        keys, inverse = np.unique(rows[is_mapped] * self.tokenizer.vocab_size + mapped[is_mapped], return_inverse=True)
        sums = np.bincount(inverse, mass[is_mapped], len(keys))
        at, ids = np.divmod(keys, self.tokenizer.vocab_size)
        return _sorted_rows(len(tokens), student_at, at, ids, sums)

    def _map_text_tokens(self, hard: Array, columns: _AnswerColumns, teacher_at: Array) -> Array:
        """The mapping of the teacher's tokens that occur in the text (rule 4)."""
        sizes = columns.sizes[teacher_at]
        fits = (hard == self.tokenizer.end_of_text) | (self.tokenizer.lengths[hard] <= sizes)
        return np.where(fits, hard, UNMAPPED)


def _sorted_rows(size: int, student_at: Array, at: Array, ids: Array, sums: NDArray[Any]) -> SoftTargetRows:
    """Rows for all `size` tokens of a text, from those at `student_at`; the most likely token first."""
    order = np.lexsort((ids, -sums, at))
    at, ids, sums = at[order], ids[order], sums[order]
    counts, residuals = np.zeros(size, np.int64), np.full(size, LOG_ZERO)
    counts[student_at] = np.bincount(at, minlength=len(student_at))
    rest = 1 - np.bincount(at, sums, len(student_at))
    some = (counts[student_at] > 0) & (rest > MIN_RESIDUAL)
    residuals[student_at] = np.where(some, np.log(np.maximum(rest, MIN_RESIDUAL)), LOG_ZERO)
    return SoftTargetRows(counts, ids, np.log(np.maximum(sums, 1e-300)), residuals)


class _AnswerColumns(NamedTuple):
    """An answer's tokens as arrays: a table of all byte strings, and for each entry its index and log-probability."""

    table: Sequence[bytes]
    which: Array  # index into the table
    logs: NDArray[np.float64]
    heads: Array  # index into `which` of each token of the answer; its alternatives follow it
    alternatives: Array  # their number for each token of the answer

    @classmethod
    def of(cls, answer: Answer) -> _AnswerColumns:
        table, which, alternatives, logs = answer.columns()
        counts = np.array(alternatives, np.int64)
        heads = np.arange(len(counts)) + np.cumsum(counts) - counts
        return cls(table, np.array(which, np.int64), np.array(logs, np.float64), heads, counts)

    @property
    def own(self) -> Array:
        """The table indices of the answer's own tokens."""
        return self.which[self.heads]

    @property
    def sizes(self) -> Array:
        """The number of bytes of each of the answer's tokens."""
        return np.array([len(piece) for piece in self.table], np.int64)[self.own]

    def starts(self, text: str, ended: bool) -> Array:
        """The byte of the text at which each token starts; below 0 if the token is not part of the text.

        Tokens before the text (start of sequence, a stripped space, reasoning) and after it (end of text, what follows
        a stop sequence) are left out. Of a text that ends within a character, that last character is left out.
        """
        pieces, sizes = [self.table[i] for i in self.own], self.sizes
        body = text.rstrip("\ufffd").encode()
        offset = b"".join(pieces).rfind(body) if body else -1
        if offset < 0:
            return np.full(len(pieces), UNMAPPED)
        starts = np.cumsum(sizes) - sizes - offset
        inside = (starts >= 0) & (starts < len(body)) & (sizes > 0)
        if ended and len(body) == len(text.encode()):
            inside[[i for i in np.flatnonzero(starts == len(body))[:1] if _is_end(pieces[i])]] = True
        return np.where(inside, starts, UNMAPPED)

    def listed(self, at: Array) -> tuple[Array, Array, NDArray[np.float64]]:
        """The alternatives at some tokens without duplicates: index into `at`, table index, log-probability."""
        counts = self.alternatives[at]
        rows = np.repeat(np.arange(len(at)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        entries = self.heads[at][rows] + 1 + within
        pieces, logs = self.which[entries], self.logs[entries]
        order = np.lexsort((-logs, pieces, rows))
        rows, pieces, logs = rows[order], pieces[order], logs[order]
        first = np.ones(len(rows), bool)
        first[1:] = (rows[1:] != rows[:-1]) | (pieces[1:] != pieces[:-1])
        return rows[first], pieces[first], logs[first]


def _is_end(piece: bytes) -> bool:
    """Whether a token after a text is an end-of-text token."""
    return not piece or piece.decode("utf-8", "replace") in END_TOKENS or bool(CONTROL_TOKENS.fullmatch(piece))
