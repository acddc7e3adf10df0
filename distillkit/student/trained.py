"""A student that has been trained: it loads from a folder, writes, and says how likely texts are.

The folder may be a run, one of its checkpoints, or a student that ships with the package.
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
from ..core.run_folder import bundled_checkpoint, bundled_checkpoints, find
from ..data.tokenizer import Tokenizer
from ..plugins.interfaces import Student
from ..plugins.manager import current_plugins
from .checkpoint import Checkpoint, newest_good, weights_digest
from .generation.generate import compute_logits, generate_tokens
from .generation.sampling import Sampling
from .generation.score import TextScore, document_nlls
from .training.optimizers import flatten

BATCH = 32


@dataclass(frozen=True)
class Written:
    """A continuation, and why it ended: "stop" at the end of text, "length" when there was no more room."""

    text: str
    tokens: int
    finish: str


class Trained:
    """A network with its tokenizer; `fingerprint` names its weights, where they came from a file."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, context: int, fingerprint: str | None = None) -> None:
        self.model, self.tokenizer, self.context, self.fingerprint = model, tokenizer, context, fingerprint

    @classmethod
    def load(cls, where: str | Path) -> Trained:
        """The student of a run, a checkpoint folder or a bundled student."""
        while True:
            checkpoint, tokenizer = locate(where)
            try:
                return cls._of(checkpoint, tokenizer)
            except (CorruptError, OSError, RuntimeError):
                if checkpoint.path.is_dir():
                    raise
                # A process that trains has dropped it, for it has newer ones.

    @classmethod
    def _of(cls, checkpoint: Checkpoint, tokenizer: Path) -> Trained:
        checkpoint.verify()
        network = checkpoint.student
        student = current_plugins().build("students", network["arch"], network["options"], file=str(checkpoint.path))
        if not isinstance(student, Student):
            raise UsageError(f"{network['arch']!r} is not a student")
        model = student.build(network["vocab_size"])
        try:
            model.load_weights(list(checkpoint.weights().items()))
        except ValueError as error:
            raise CorruptError(f"the weights in {checkpoint.path} are not those of its student: {error}") from error
        mx.eval(model.parameters())
        return cls(model, Tokenizer.load(tokenizer), student.context, _fingerprint(checkpoint, tokenizer))

    @property
    def weights_sha256(self) -> str:
        """The SHA-256 of its weights, as a run records it of what it trained."""
        return weights_digest(flatten(self.model.trainable_parameters()))

    def logits(self, tokens: mx.array) -> mx.array:
        """Logits [B, T, V] of tokens [B, T]."""
        return compute_logits(self.model, self.hidden(tokens))

    def hidden(self, tokens: mx.array) -> mx.array:
        """Hidden states [B, T, D] of tokens [B, T], which the head makes logits of."""
        self.model.eval()
        hidden: mx.array = self.model(tokens)
        return hidden

    def attention(self, tokens: mx.array) -> list[mx.array]:
        """How much each position takes from each position [B, H, T, T] of tokens [B, T], block by block."""
        if not hasattr(self.model, "attention"):
            raise UsageError("this student does not show its attention", 'A student of arch = "gpt" does.')
        self.model.eval()
        weights: list[mx.array] = self.model.attention(tokens)
        return weights

    def write(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Iterator[Written]:
        """Continue each prompt, in order, many at once."""
        for start in range(0, len(prompts), BATCH):
            cut = slice(start, start + BATCH)
            yield from self._write(prompts[cut], seeds[cut], sampling, max_tokens)

    def _write(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> list[Written]:
        end = self.tokenizer.end_of_text
        rows: list[list[int]] = [[] for _ in prompts]
        ends = ["length"] * len(prompts)
        for drawn in self._drawn(prompts, seeds, sampling, max_tokens):
            for i, token in enumerate(drawn):
                if token == end:
                    ends[i] = "stop"
                elif token is not None:
                    rows[i].append(token)
        return [Written(self.tokenizer.decode(row), len(row), why) for row, why in zip(rows, ends, strict=True)]

    def _drawn(
        self, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Iterator[list[int | None]]:
        """The next token of every row, until all have ended."""
        self.model.eval()
        end, read = self.tokenizer.end_of_text, self._read(prompts)
        return generate_tokens(self.model, self.context, read, seeds, sampling, end, end=end, max_tokens=max_tokens)

    def stream(self, prompt: str, seed: int, sampling: Sampling, max_tokens: int) -> Iterator[str]:
        """Continue one prompt, piece by piece, never cutting a character in two."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for (token,) in self._drawn([prompt], [seed], sampling, max_tokens):
            if token is None or token == self.tokenizer.end_of_text:
                break
            if piece := decoder.decode(self.tokenizer.bytes_of(token)):
                yield piece
        if rest := decoder.decode(b"", final=True):
            yield rest

    def _read(self, prompts: Sequence[str]) -> list[list[int]]:
        """Prompts as tokens, each at the beginning of a document."""
        return [[self.tokenizer.end_of_text, *tokens] for tokens in self.tokenizer.encode_batch(list(prompts))]

    def generate(
        self, prompts: Sequence[str], *, max_tokens: int, seed: int = 0, temperature: float = 1.0
    ) -> list[Sample]:
        """A sample to each prompt."""
        seeds = [seed + i for i in range(len(prompts))]
        texts = self.write(prompts, seeds, Sampling(temperature), max_tokens)
        rows = zip(prompts, seeds, texts, strict=True)
        return [Sample(f"{i}#0", prompt, text.text, own) for i, (prompt, own, text) in enumerate(rows)]

    def score(self, texts: Sequence[str]) -> list[TextScore]:
        """How likely each text is as a whole document, its end included."""
        self.model.eval()
        end = self.tokenizer.end_of_text
        documents = [[end, *tokens, end] for tokens in self.tokenizer.encode_batch(list(texts))]
        nats = document_nlls(self.model, self.context, documents)
        sizes = zip(nats, documents, texts, strict=True)
        return [TextScore(n, len(tokens) - 1, len(text.encode())) for n, tokens, text in sizes]

    def score_after(self, prompts: Sequence[str], texts: Sequence[str]) -> list[TextScore]:
        """How likely each text is after its prompt. The end of the text is not counted: it may have been cut."""
        self.model.eval()
        begun = self._read(prompts)
        whole = [[*b, *tokens] for b, tokens in zip(begun, self.tokenizer.encode_batch(list(texts)), strict=True)]
        nats = document_nlls(self.model, self.context, [*whole, *begun])
        rows = zip(nats[: len(whole)], nats[len(whole) :], whole, begun, texts, strict=True)
        return [TextScore(all_ - first, len(w) - len(b), len(text.encode())) for all_, first, w, b, text in rows]


def locate(where: str | Path) -> tuple[Checkpoint, Path]:
    """The checkpoint and the tokenizer folder that a name or path means."""
    folder = Path(where)
    bundled = bundled_checkpoint(str(where))
    if bundled and not folder.exists():
        folder = bundled
    if (folder / "student.json").is_file():
        own, of_run = folder / "tokenizer", folder.parent.parent / "tokenizer"
        return Checkpoint(folder), own if own.is_dir() else of_run
    try:
        run = find(str(where))
    except UsageError as error:
        hint = did_you_mean(str(where), bundled_checkpoints()) if "/" not in str(where) else error.hint
        raise UsageError(
            f"there is no student {str(where)!r}: neither a run, a checkpoint nor a bundled one", hint
        ) from error
    checkpoint, faults = newest_good(run.checkpoints)
    if checkpoint is None:
        raise UsageError(f"the run {run.name} has no usable checkpoint", "; ".join(faults) or "It was never trained.")
    return checkpoint, run.tokenizer


def filled(student: dict[str, Any]) -> dict[str, Any]:
    """A student as a checkpoint has it, with the options that are newer than the checkpoint at their defaults."""
    options = current_plugins().options(
        "students", student["arch"], student["options"], file="", table="student", folder=Path()
    )
    return {**student, "options": options.model_dump(mode="json")}


def fingerprint(where: str | Path) -> str:
    """The SHA-256 of a student's weights and tokenizer, from the sums that were written with them."""
    return _fingerprint(*locate(where))


def _fingerprint(checkpoint: Checkpoint, tokenizer: Path) -> str:
    return digest([checkpoint.sums["model.safetensors"], read_json(tokenizer / "spec.json")["fingerprint"]])


def parameters(model: nn.Module) -> dict[str, Any]:
    """How many parameters a network has: counting a shared matrix at each use, and once."""
    from .model.gpt import count_parameters

    unique = count_parameters(model)
    return {"total": unique + int(getattr(model, "shared", 0)), "unique": unique}
