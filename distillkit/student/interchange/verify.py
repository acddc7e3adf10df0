"""Verification of an export: it is loaded again, and its outputs are compared with the student's.

Compared are logits, perplexity and greedily generated tokens. A `Reader` is an export loaded by some library; this
module knows neither the libraries nor any file format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
GREEDY_TOKENS = 64  # tokens that both generate
PROMPT_TOKENS = 8  # the greedy prompt, at most half of the context, so that there is room to generate
MAX_LOGITS = 30_000_000  # the random row has no more logits than this
ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE = 1e-3, 1e-4  # of logits; the relative one is of the largest logit


class Reader(Protocol):
    """An export as some library loaded it; `by` names the library."""

    by: str

    def logits(self, tokens: Sequence[int]) -> Array:
        """Logits [T, V] of tokens."""

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """The `count` tokens that greedy generation appends to tokens."""


@dataclass(frozen=True)
class Bounds:
    """How far an export may differ from its student. `exact` also compares logits and greedy tokens."""

    exact: bool = True
    perplexity: float = 1e-3  # relative difference
    why: str = ""  # the hint of the error


class NetworkReader:
    """A reader that runs distillkit's network."""

    def __init__(self, model: GPT, by: str) -> None:
        self.model, self.by = model, by
        model.eval()

    def logits(self, tokens: Sequence[int]) -> Array:
        """Logits [T, V] of tokens."""
        return np.array(compute_logits(self.model, self.model(mx.array([list(tokens)])))[0])

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """The `count` tokens that greedy generation appends to tokens."""
        context, greedy = self.model.config.context, Sampling(0.0)
        steps = generate_tokens(self.model, context, [tokens], [0], greedy, 0, max_tokens=count)
        return [token for (token,) in steps if token is not None]


def verify_export(run: Run, student: Trained, reader: Reader, bounds: Bounds) -> dict[str, Any]:
    """Compare an export with its student, and return the figures. Raises an error if they differ too much."""
    assert isinstance(student.model, GPT)
    original = NetworkReader(student.model, "the student itself")
    texts, random_row = verification_texts(run, student), _random_tokens(student)
    logits = [(original.logits(row), reader.logits(row)) for row in (*texts, random_row)]
    prompt = texts[0][: min(PROMPT_TOKENS, student.context // 2)]
    count = min(GREEDY_TOKENS, student.context - len(prompt))
    expected, actual = original.greedy(prompt, count), reader.greedy(prompt, count)
    proof = {
        "schema": 1,
        "by": reader.by,
        "largest_logit": max(float(np.abs(one).max()) for one, _ in logits),
        "largest_difference": max(float(np.abs(one - other).max()) for one, other in logits),
        "perplexity": {"student": _perplexity(texts, logits, 0), "export": _perplexity(texts, logits, 1)},
        "tokens": sum(len(row) - 1 for row in texts),
        "greedy": {"tokens": count, "alike": _common_prefix_length(expected, actual)},
        "exact": bounds.exact,
    }
    if failures := list(_failures(proof, bounds)):
        raise DistillkitError(
            f"the export differs from the student (compared by {reader.by}): {'; '.join(failures)}",
            bounds.why or "Nothing was kept. Please report this, with the versions of the packages above.",
        )
    return proof


def verification_texts(run: Run, student: Trained) -> list[list[int]]:
    """Token rows that both read: samples of the run, or if it has none, newly generated ones."""
    samples = [f"{row['prompt']}{row['completion']}" for row in read_jsonl(run.samples)[:TEXTS]]
    longest = min(TEXT_TOKENS, student.context)
    if not any(samples):
        seeds = list(range(TEXTS))
        samples = [one.text for one in student.write([""] * TEXTS, seeds, Sampling(1.0), longest - 2)]
    rows = [[student.tokenizer.end_of_text, *student.tokenizer.encode(text)][:longest] for text in samples]
    scorable = [row for row in rows if len(row) > 1]
    return scorable or [[student.tokenizer.end_of_text] * 2]


def _random_tokens(student: Trained) -> list[int]:
    """Uniformly random tokens, as many as the context and MAX_LOGITS allow."""
    vocabulary = student.model.head[0].shape[0]
    length = max(2, min(student.context, MAX_LOGITS // vocabulary))
    tokens: list[int] = np.random.default_rng(0).integers(0, vocabulary, length).tolist()
    return tokens


def _perplexity(texts: Sequence[Sequence[int]], logits: Sequence[tuple[Array, Array]], side: int) -> float:
    """exp of the mean -log p of all tokens but each text's first, in float64."""
    nlls = [_token_nlls(pair[side][:-1], row[1:]) for row, pair in zip(texts, logits, strict=False)]
    return float(np.exp(np.concatenate(nlls).mean()))


def _token_nlls(logits: Array, tokens: Sequence[int]) -> Array:
    logits = logits.astype(np.float64)
    largest = logits.max(axis=-1)
    log_sums: Array = np.log(np.exp(logits - largest[:, None]).sum(axis=-1)) + largest
    nlls: Array = log_sums - logits[np.arange(len(tokens)), list(tokens)]
    return nlls


def _common_prefix_length(expected: Sequence[int], actual: Sequence[int]) -> int:
    pairs = enumerate(zip(expected, actual, strict=False))
    return next((i for i, (one, other) in pairs if one != other), len(expected))


def _failures(proof: dict[str, Any], bounds: Bounds) -> Iterator[str]:
    """What exceeds the bounds, in words."""
    allowed = max(ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE * proof["largest_logit"])
    perplexity, greedy = proof["perplexity"], proof["greedy"]
    if bounds.exact and not proof["largest_difference"] <= allowed:
        yield f"logits differ by up to {proof['largest_difference']:.2g} (allowed: {allowed:.2g})"
    if not abs(perplexity["export"] / perplexity["student"] - 1) <= bounds.perplexity:
        yield (
            f"its perplexity is {perplexity['export']:.5g}, the student's {perplexity['student']:.5g} "
            f"(allowed difference: {bounds.perplexity:.2%})"
        )
    if bounds.exact and greedy["alike"] < greedy["tokens"]:
        yield f"of {greedy['tokens']} greedy tokens only the first {greedy['alike']} are equal"


def summarize(proof: Mapping[str, Any]) -> list[str]:
    """The figures of a verification as lines to print."""
    perplexity, greedy = proof["perplexity"], proof["greedy"]
    return [
        f"verified by {proof['by']}",
        f"largest logit difference: {proof['largest_difference']:.2g} (largest logit: {proof['largest_logit']:.3g})",
        f"perplexity over {proof['tokens']} tokens: {perplexity['export']:.6g} (student: {perplexity['student']:.6g})",
        f"equal greedy tokens: {greedy['alike']} of {greedy['tokens']}",
    ]
