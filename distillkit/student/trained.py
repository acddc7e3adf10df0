"""A trained student: load it from a folder, generate text, and compute the likelihood of texts.

The folder is that of a run, of a checkpoint, or of a student that ships with the package.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..core.errors import CorruptError, UsageError, did_you_mean
from ..core.files import digest, read_json
from ..core.records import Sample
from ..core.run_folder import bundled_checkpoint, bundled_checkpoints, find_run
from ..data.tokenizer import Tokenizer
from ..plugins.interfaces import Student
from ..plugins.manager import current_plugins
from .checkpoint import Checkpoint, newest_valid, weights_digest
from .generation.generate import compute_logits, generate_tokens
from .generation.sampling import Sampling
from .generation.score import TextScore, document_nlls
from .training.optimizers import flatten

BATCH_ROWS = 32  # prompts that are continued at once


@dataclass(frozen=True)
class Continuation:
    """A generated continuation. `finish` is "stop" at the end-of-text token and "length" at the token limit."""

    text: str
    tokens: int
    finish: str


class Trained:
    """A network with its tokenizer. `fingerprint` identifies both if they were loaded from a file."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, context: int, fingerprint: str | None = None) -> None:
        self.model, self.tokenizer, self.context, self.fingerprint = model, tokenizer, context, fingerprint

    @classmethod
    def load(cls, where: str | Path) -> Trained:
        """Load the student of a run, a checkpoint folder or a bundled student."""
        while True:
            checkpoint, tokenizer = find_checkpoint(where)
            try:
                return cls._load(checkpoint, tokenizer)
            except (CorruptError, OSError, RuntimeError):
                if checkpoint.path.is_dir():
                    raise
                # Deleted meanwhile by the training process, which has newer ones.

    @classmethod
    def _load(cls, checkpoint: Checkpoint, tokenizer: Path) -> Trained:
        checkpoint.verify()
        network = checkpoint.student
        student = current_plugins().build("students", network["arch"], network["options"], file=str(checkpoint.path))
        if not isinstance(student, Student):
            raise UsageError(f"{network['arch']!r} is not a student")
        model = student.build(network["vocab_size"])
        try:
            model.load_weights(list(checkpoint.weights().items()))
        except ValueError as error:
            raise CorruptError(
                f"the weights in {checkpoint.path} do not fit the student in student.json: {error}"
            ) from error
        mx.eval(model.parameters())
        return cls(model, Tokenizer.load(tokenizer), student.context, _fingerprint(checkpoint, tokenizer))

    @property
    def weights_sha256(self) -> str:
        """The SHA-256 of the weights, as a run records it for the student that it trained."""
        return weights_digest(flatten(self.model.trainable_parameters()))

    def logits(self, tokens: mx.array) -> mx.array:
        """Logits [B, T, V] of tokens [B, T]."""
        return compute_logits(self.model, self.hidden(tokens))

    def hidden(self, tokens: mx.array) -> mx.array:
        """Hidden states [B, T, D] of tokens [B, T], the input of the head."""
        self.model.eval()
        hidden: mx.array = self.model(tokens)
        return hidden

    def attention(self, tokens: mx.array) -> list[mx.array]:
        """Attention weights [B, H, T, T] of each block for tokens [B, T]."""
        if not hasattr(self.model, "attention"):
            raise UsageError("this student does not show its attention weights", 'A student with arch = "gpt" does.')
        self.model.eval()
        weights: list[mx.array] = self.model.attention(tokens)
        return weights

    def write(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Iterator[Continuation]:
        """Continue each prompt with its seed, in batches. Yields the continuations in order."""
        for start in range(0, len(prompts), BATCH_ROWS):
            batch = slice(start, start + BATCH_ROWS)
            yield from self._write_batch(prompts[batch], seeds[batch], sampling, max_tokens)

    def _write_batch(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> list[Continuation]:
        end = self.tokenizer.end_of_text
        rows: list[list[int]] = [[] for _ in prompts]
        finishes = ["length"] * len(prompts)
        for tokens in self._generate(prompts, seeds, sampling, max_tokens):
            for i, token in enumerate(tokens):
                if token == end:
                    finishes[i] = "stop"
                elif token is not None:
                    rows[i].append(token)
        pairs = zip(rows, finishes, strict=True)
        return [Continuation(self.tokenizer.decode(row), len(row), finish) for row, finish in pairs]

    def _generate(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Iterator[list[int | None]]:
        """The next token of every row, or None for a row that has ended, until all have."""
        self.model.eval()
        end, encoded = self.tokenizer.end_of_text, self._encode(prompts)
        return generate_tokens(self.model, self.context, encoded, seeds, sampling, end, end=end, max_tokens=max_tokens)

    def stream(self, prompt: str, seed: int, sampling: Sampling, max_tokens: int) -> Iterator[str]:
        """Continue one prompt and yield the text in pieces that consist of whole characters."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for (token,) in self._generate([prompt], [seed], sampling, max_tokens):
            if token is None or token == self.tokenizer.end_of_text:
                break
            if piece := decoder.decode(self.tokenizer.bytes_of(token)):
                yield piece
        if rest := decoder.decode(b"", final=True):
            yield rest

    def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of prompts, each after an end-of-text token, as at the beginning of a document."""
        return [[self.tokenizer.end_of_text, *tokens] for tokens in self.tokenizer.encode_batch(list(prompts))]

    def generate(
        self, prompts: Sequence[str], *, max_tokens: int, seed: int = 0, temperature: float = 1.0
    ) -> list[Sample]:
        """One sample per prompt; the seed of prompt i is `seed + i`."""
        seeds = [seed + i for i in range(len(prompts))]
        texts = self.write(prompts, seeds, Sampling(temperature), max_tokens)
        rows = zip(prompts, seeds, texts, strict=True)
        return [Sample(f"{i}#0", prompt, text.text, own) for i, (prompt, own, text) in enumerate(rows)]

    def score(self, texts: Sequence[str]) -> list[TextScore]:
        """The negative log-likelihood of each text as a whole document, including its end-of-text token."""
        self.model.eval()
        end = self.tokenizer.end_of_text
        documents = [[end, *tokens, end] for tokens in self.tokenizer.encode_batch(list(texts))]
        nats = document_nlls(self.model, self.context, documents)
        sizes = zip(nats, documents, texts, strict=True)
        return [TextScore(n, len(tokens) - 1, len(text.encode())) for n, tokens, text in sizes]

    def score_after(self, prompts: Sequence[str], texts: Sequence[str]) -> list[TextScore]:
        """The negative log-likelihood of each text given its prompt, without an end-of-text token."""
        self.model.eval()
        starts = self._encode(prompts)
        encoded = self.tokenizer.encode_batch(list(texts))
        whole = [[*start, *tokens] for start, tokens in zip(starts, encoded, strict=True)]
        nats = document_nlls(self.model, self.context, [*whole, *starts])
        rows = zip(nats[: len(whole)], nats[len(whole) :], whole, starts, texts, strict=True)
        return [
            TextScore(total - of_prompt, len(tokens) - len(start), len(text.encode()))
            for total, of_prompt, tokens, start, text in rows
        ]


def find_checkpoint(where: str | Path) -> tuple[Checkpoint, Path]:
    """The checkpoint and the tokenizer folder for a name or path."""
    folder = Path(where)
    bundled = bundled_checkpoint(str(where))
    if bundled and not folder.exists():
        folder = bundled
    if (folder / "student.json").is_file():
        own, of_run = folder / "tokenizer", folder.parent.parent / "tokenizer"
        return Checkpoint(folder), own if own.is_dir() else of_run
    try:
        run = find_run(str(where))
    except UsageError as error:
        hint = did_you_mean(str(where), bundled_checkpoints()) if "/" not in str(where) else error.hint
        raise UsageError(
            f"there is no student {str(where)!r}: no run, checkpoint or bundled student has this name", hint
        ) from error
    checkpoint, faults = newest_valid(run.checkpoints)
    if checkpoint is None:
        raise UsageError(f"the run {run.name} has no usable checkpoint", "; ".join(faults) or "It was never trained.")
    return checkpoint, run.tokenizer


def with_default_options(student: dict[str, Any]) -> dict[str, Any]:
    """The contents of a `student.json`, with options that are newer than the checkpoint at their defaults."""
    options = current_plugins().options(
        "students", student["arch"], student["options"], file="", table="student", folder=Path()
    )
    return {**student, "options": options.model_dump(mode="json")}


def fingerprint(where: str | Path) -> str:
    """The SHA-256 of a student's weights and tokenizer, computed from the stored checksums."""
    return _fingerprint(*find_checkpoint(where))


def _fingerprint(checkpoint: Checkpoint, tokenizer: Path) -> str:
    return digest([checkpoint.checksums["model.safetensors"], read_json(tokenizer / "spec.json")["fingerprint"]])


def parameter_counts(model: nn.Module) -> dict[str, Any]:
    """The number of parameters: `total` counts a shared matrix at each use, `unique` counts it once."""
    from .model.gpt import count_parameters

    unique = count_parameters(model)
    return {"total": unique + int(getattr(model, "shared", 0)), "unique": unique}
