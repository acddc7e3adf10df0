"""The proof of an export: what was written is loaded again, and must say what the student says.

Logits, perplexity and what is written greedily are held against the student's own. Whoever loads the export is a
`Reader`; this file knows none of them, nor any file format.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from ...core.errors import DistillkitError
from ...core.files import read_jsonl
from ...core.run_folder import Run
from ..generation.generate import compute_logits, generate_tokens
from ..generation.sampling import Sampling
from ..model.gpt import GPT
from ..trained import Trained

Array = np.ndarray[Any, Any]

TEXTS, TEXT_TOKENS = 4, 128
GREEDY = 64  # tokens written by both
BEGUN = 8  # tokens that they go on from, and half of the context at most: a small one must have room for more
NUMBERS = 30_000_000  # of logits, at most, that one row of chance may have
EXACT, OF_LARGEST = 1e-3, 1e-4  # how far logits may be apart: so much, or that share of the largest


class Reader(Protocol):
    """An export as somebody loaded it again."""

    by: str

    def logits(self, tokens: Sequence[int]) -> Array:
        """Logits [T, V] of tokens."""

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """The likeliest tokens after tokens."""


@dataclass(frozen=True)
class Bounds:
    """How far an export may be from its student. `exact` holds logits and greedy tokens to rounding."""

    exact: bool = True
    perplexity: float = 1e-3  # the share by which it may differ
    why: str = ""


class Own:
    """Our own network, with weights as a file has them."""

    def __init__(self, model: GPT, by: str) -> None:
        self.model, self.by = model, by
        model.eval()

    def logits(self, tokens: Sequence[int]) -> Array:
        """Logits [T, V] of tokens."""
        return np.array(compute_logits(self.model, self.model(mx.array([list(tokens)])))[0])

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """The likeliest tokens after tokens."""
        context, coldest = self.model.config.context, Sampling(0.0)
        steps = generate_tokens(self.model, context, [tokens], [0], coldest, 0, max_tokens=count)
        return [token for (token,) in steps if token is not None]


def prove(run: Run, student: Trained, reader: Reader, bounds: Bounds) -> dict[str, Any]:
    """Hold an export against its student; what is too far apart is an error, and nothing is done."""
    assert isinstance(student.model, GPT)
    own = Own(student.model, "the student itself")
    texts, chance = texts_of(run, student), _chance(student)
    pairs = [(own.logits(row), reader.logits(row)) for row in (*texts, chance)]
    begun = texts[0][: min(BEGUN, student.context // 2)]
    count = min(GREEDY, student.context - len(begun))
    mine, theirs = own.greedy(begun, count), reader.greedy(begun, count)
    proof = {
        "schema": 1,
        "by": reader.by,
        "largest_logit": max(float(np.abs(one).max()) for one, _ in pairs),
        "largest_difference": max(float(np.abs(one - other).max()) for one, other in pairs),
        "perplexity": {"student": _perplexity(texts, pairs, 0), "export": _perplexity(texts, pairs, 1)},
        "tokens": sum(len(row) - 1 for row in texts),
        "greedy": {"tokens": count, "alike": _alike(mine, theirs)},
        "exact": bounds.exact,
    }
    if faults := list(_faults(proof, bounds)):
        raise DistillkitError(
            f"the export is not the student, by {reader.by}: {'; '.join(faults)}",
            bounds.why or "Nothing was kept. Tell us of it, with the versions of the packages above.",
        )
    return proof


def texts_of(run: Run, student: Trained) -> list[list[int]]:
    """What is read by both: samples of the run, or else what the student writes now, each from its beginning."""
    samples = [f"{row['prompt']}{row['completion']}" for row in read_jsonl(run.samples)[:TEXTS]]
    longest = min(TEXT_TOKENS, student.context)
    if not any(samples):
        seeds = list(range(TEXTS))
        samples = [one.text for one in student.write([""] * TEXTS, seeds, Sampling(1.0), longest - 2)]
    rows = [[student.tokenizer.end_of_text, *student.tokenizer.encode(text)][:longest] for text in samples]
    fitting = [row for row in rows if len(row) > 1]
    return fitting or [[student.tokenizer.end_of_text] * 2]


def _chance(student: Trained) -> list[int]:
    """Tokens drawn from the whole vocabulary, as many as the network has places."""
    vocabulary = student.model.head[0].shape[0]
    length = max(2, min(student.context, NUMBERS // vocabulary))
    drawn: list[int] = np.random.default_rng(0).integers(0, vocabulary, length).tolist()
    return drawn


def _perplexity(texts: Sequence[Sequence[int]], pairs: Sequence[tuple[Array, Array]], side: int) -> float:
    """exp of the mean surprise of all tokens but each text's first, in float64."""
    surprises = [_surprise(pair[side][:-1], row[1:]) for row, pair in zip(texts, pairs, strict=False)]
    return float(np.exp(np.concatenate(surprises).mean()))


def _surprise(logits: Array, tokens: Sequence[int]) -> Array:
    exact = logits.astype(np.float64)
    top = exact.max(axis=-1)
    total: Array = np.log(np.exp(exact - top[:, None]).sum(axis=-1)) + top
    return total - exact[np.arange(len(tokens)), list(tokens)]


def _alike(mine: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens are the same before the first that is not."""
    return next((i for i, (one, other) in enumerate(zip(mine, theirs, strict=False)) if one != other), len(mine))


def _faults(proof: dict[str, Any], bounds: Bounds) -> Iterator[str]:
    allowed = max(EXACT, OF_LARGEST * proof["largest_logit"])
    sides = proof["perplexity"]
    if bounds.exact and not proof["largest_difference"] <= allowed:
        yield f"logits differ by up to {proof['largest_difference']:.2g}, and {allowed:.2g} was allowed"
    if not abs(sides["export"] / sides["student"] - 1) <= bounds.perplexity:
        yield (
            f"perplexity is {sides['export']:.5g}, the student's {sides['student']:.5g}, "
            f"and {bounds.perplexity:.2%} was allowed"
        )
    if bounds.exact and proof["greedy"]["alike"] < proof["greedy"]["tokens"]:
        yield f"of {proof['greedy']['tokens']} greedy tokens only the first {proof['greedy']['alike']} are alike"


def told(proof: dict[str, Any]) -> list[str]:
    """A proof in a few lines."""
    sides, greedy = proof["perplexity"], proof["greedy"]
    return [
        f"loaded again by {proof['by']}",
        f"largest difference of a logit: {proof['largest_difference']:.2g} (the largest logit is "
        f"{proof['largest_logit']:.3g})",
        f"perplexity over {proof['tokens']} tokens: {sides['export']:.6g}, the student's {sides['student']:.6g}",
        f"greedy tokens alike: {greedy['alike']} of {greedy['tokens']}",
    ]
