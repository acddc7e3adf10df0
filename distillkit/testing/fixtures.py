"""Inputs for the checks: unusual texts, a simple student, a tokenizer, and a finished run on disk.

Everything is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.records import Document, Sample

if TYPE_CHECKING:
    from ..core.run_folder import Run
    from ..data.tokenizer import Tokenizer

STORY = "One day, a little fox met a hen. They sat by the river and told each other what they knew. "
TEXTS = {
    "an ordinary text": "One day, a little fox",
    "an empty text": "",
    "a long text": STORY * 80,
    "a text that is not ASCII": "Ünïcödé, 漢字かな, עברית, 🦊👩‍👩‍👧, a\u0301, \u202eright to left\u202c, a\nline",
}


@dataclass
class Likelihood:
    """The negative log-likelihood of a text, and its length."""

    nats: float
    tokens: int
    bytes: int


class ByteStudent:
    """A student with a fixed byte distribution: uniform, except that spaces are ten times as likely."""

    def generate(self, prompts: Sequence[str], *, max_tokens: int, seed: int = 0) -> list[Sample]:
        """Repeat the words of each prompt."""
        return [
            Sample(f"{i}#0", prompt, " ".join((prompt.split() or ["fox"]) * max_tokens)[:max_tokens], seed + i)
            for i, prompt in enumerate(prompts)
        ]

    def score(self, texts: Sequence[str]) -> list[Likelihood]:
        """Score each text; its end counts as one more token."""
        byte_nats = math.log(256 + 9)
        sizes = [(text.encode("utf-8", "replace"), text.count(" ")) for text in texts]
        return [
            Likelihood(byte_nats * (len(raw) + 1) - math.log(10) * spaces, len(raw) + 1, len(raw))
            for raw, spaces in sizes
        ]

    def score_after(self, prompts: Sequence[str], texts: Sequence[str]) -> list[Likelihood]:
        """The same as `score`: probabilities do not depend on the prompt."""
        return self.score(texts)


def samples() -> list[Sample]:
    """Two samples for each text as a prompt: an ordinary one and an empty one."""
    return [
        Sample(f"{i}#{k}", prompt, completion, seed=10 * i + k)
        for i, prompt in enumerate(TEXTS.values())
        for k, completion in enumerate((f"{STORY}漢字 🦊", ""))
    ]


def documents(kind: str) -> list[Document]:
    """Some stories, and all non-empty texts of TEXTS."""
    texts = [f"{STORY}This is story {kind} {i}." for i in range(6)] + [text for text in TEXTS.values() if text]
    return [Document(f"{kind}:{i}", text) for i, text in enumerate(texts)]


def tokenizer() -> Tokenizer:
    """A BPE tokenizer trained on the stories."""
    from ..data.tokenizer import train_bpe

    return train_bpe(iter([document.text for document in documents("train")] * 20), 300)


def finished_run(folder: Path) -> Run:
    """A finished run on disk: a small GPT with random weights, its tokenizer and its records."""
    import mlx.core as mx

    from ..core.files import write_json, write_jsonl, write_text
    from ..core.run_folder import Run
    from ..plugins.manager import current_plugins
    from ..reporting.run.report import build_report
    from ..student import checkpoint
    from ..student.training.optimizers import flatten

    run, bpe = Run(folder / "reports" / "testing" / "1"), tokenizer()
    options = {"layers": 2, "heads": 2, "width": 16, "context": 32}
    architecture = current_plugins().build("students", "gpt", options)
    network = architecture.build(bpe.vocab_size)  # type: ignore[attr-defined]
    key, weights = mx.random.key(0), {}
    for name, value in flatten(network.parameters()).items():
        key, subkey = mx.random.split(key)
        weights[name] = 0.3 * mx.random.normal(value.shape, key=subkey)
    student = {"arch": "gpt", "options": options, "vocab_size": bpe.vocab_size}
    run.path.mkdir(parents=True)
    bpe.save(run.tokenizer)
    checkpoint.save(checkpoint.step_folder(run.checkpoints, 6), weights, None, student, {"step": 6})
    write_text(run.recipe, 'name = "testing"\n[train]\nsteps = 6\n')
    write_jsonl(run.metrics, [{"kind": "train", "step": step, "loss": 5.0 - step / 10} for step in range(1, 7)])
    run.record(recipe="testing", started="2026-01-01T00:00:00Z", seed=42, status="done")
    write_json(run.report, build_report(run))
    return run
