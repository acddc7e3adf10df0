"""What plugins are tried on: texts of all kinds, a small student that anybody can compute, and a run on disk.

Nothing here is random: the same in every process.
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
    """How likely one text is to the pupil."""

    nats: float
    tokens: int
    bytes: int


class Pupil:
    """A student of one rule: every byte is as likely as any other, but for spaces, which are ten times likelier."""

    def generate(self, prompts: Sequence[str], *, max_tokens: int, seed: int = 0) -> list[Sample]:
        """Words of the prompt, again and again."""
        return [
            Sample(f"{i}#0", prompt, " ".join((prompt.split() or ["fox"]) * max_tokens)[:max_tokens], seed + i)
            for i, prompt in enumerate(prompts)
        ]

    def score(self, texts: Sequence[str]) -> list[Likelihood]:
        """By the rule; the end of a text is one token more."""
        rest = math.log(256 + 9)
        sizes = [(text.encode("utf-8", "replace"), text.count(" ")) for text in texts]
        return [
            Likelihood(rest * (len(raw) + 1) - math.log(10) * spaces, len(raw) + 1, len(raw)) for raw, spaces in sizes
        ]

    def score_after(self, prompts: Sequence[str], texts: Sequence[str]) -> list[Likelihood]:
        """By the same rule, for which it does not matter what stood before."""
        return self.score(texts)


def samples() -> list[Sample]:
    """Two samples to each text as a prompt: one as it should be, one that is empty."""
    return [
        Sample(f"{i}#{k}", prompt, completion, seed=10 * i + k)
        for i, prompt in enumerate(TEXTS.values())
        for k, completion in enumerate((f"{STORY}漢字 🦊", ""))
    ]


def documents(kind: str) -> list[Document]:
    """Some stories, and each of the texts that is not empty."""
    texts = [f"{STORY}This is story {kind} {i}." for i in range(6)] + [text for text in TEXTS.values() if text]
    return [Document(f"{kind}:{i}", text) for i, text in enumerate(texts)]


def tokenizer() -> Tokenizer:
    """Byte pairs learnt from the stories."""
    from ..data.tokenizer import train_bpe

    return train_bpe(iter([document.text for document in documents("train")] * 20), 300)


def finished_run(folder: Path) -> Run:
    """A run as it lies there when it is done: a small GPT with random weights, its tokenizer, and the records."""
    import mlx.core as mx

    from ..core.files import write_json, write_jsonl, write_text
    from ..core.run_folder import Run
    from ..plugins.manager import current_plugins
    from ..reporting.run.report import build_report
    from ..student import checkpoint
    from ..student.training.optimizers import flatten

    run, words = Run(folder / "reports" / "testing" / "1"), tokenizer()
    shape = {"layers": 2, "heads": 2, "width": 16, "context": 32}
    built = current_plugins().build("students", "gpt", shape)
    network = built.build(words.vocab_size)  # type: ignore[attr-defined]
    key, weights = mx.random.key(0), {}
    for name, value in flatten(network.parameters()).items():
        key, own = mx.random.split(key)
        weights[name] = 0.3 * mx.random.normal(value.shape, key=own)
    student = {"arch": "gpt", "options": shape, "vocab_size": words.vocab_size}
    run.path.mkdir(parents=True)
    words.save(run.tokenizer)
    checkpoint.save(checkpoint.step_folder(run.checkpoints, 6), weights, None, student, {"step": 6})
    write_text(run.recipe, 'name = "testing"\n[train]\nsteps = 6\n')
    write_jsonl(run.metrics, [{"kind": "train", "step": step, "loss": 5.0 - step / 10} for step in range(1, 7)])
    run.record(recipe="testing", started="2026-01-01T00:00:00Z", seed=42, status="done")
    write_json(run.report, build_report(run))
    return run
