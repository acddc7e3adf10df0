"""The log of a training run: `metrics.jsonl`, the trackers, the progress line, and warnings about the losses.

Knows nothing of how a step is computed.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.console import Console, format_duration
from ...core.files import read_jsonl, write_jsonl
from ...plugins.interfaces import Tracker


class MetricsLog:
    """Writes one line per step or evaluation to `metrics.jsonl`, calls the trackers and prints progress."""

    def __init__(
        self, path: Path | None, steps: int, step: int, console: Console, trackers: Sequence[Tracker] = ()
    ) -> None:
        """`path` is None in processes other than the main one. Lines after `step` are removed from the file."""
        self.path, self.steps, self.console, self.trackers = path, steps, console, trackers
        self.recent: deque[tuple[float, int]] = deque(maxlen=20)  # seconds and tokens of the last steps
        self.last_time = time.perf_counter()
        self.validation: float | None = None
        if path is not None:
            write_jsonl(path, [row for row in read_jsonl(path) if row["step"] <= step])

    def __enter__(self) -> MetricsLog:
        self.file = self.path.open("a", encoding="utf-8") if self.path else None
        return self

    def __exit__(self, *reason: object) -> None:
        if self.file:
            self.file.close()

    def sync(self) -> None:
        """Flush the file to the disk. Called before a checkpoint is written, so that the log is not behind it."""
        if self.file:
            os.fsync(self.file.fileno())

    def log_step(self, step: int, values: dict[str, Any]) -> None:
        """Log one training step."""
        now = time.perf_counter()
        self.recent.append((now - self.last_time, values["tokens"]))
        self.last_time = now
        seconds, tokens = (sum(column) for column in zip(*self.recent, strict=True))
        speed = values.pop("tokens") / self.recent[-1][0]
        self._write({"kind": "train", "step": step, **values, "tokens_per_second": round(speed, 1)})
        self._print_progress(step, values, tokens / seconds)
        for tracker in self.trackers:
            tracker.log(step, _scalars(values))

    def log_evaluation(self, step: int, loss: float, grad_norms: Mapping[str, float]) -> None:
        """Log one evaluation: the validation loss, and the gradient norm of each weighted term at the logits."""
        self.validation = loss
        self._write({"kind": "validation", "step": step, "loss": loss, "gradient_norms": dict(grad_norms)})
        for tracker in self.trackers:
            norms = {f"gradient_norm/{name}": norm for name, norm in grad_norms.items()}
            tracker.log(step, {"validation_loss": loss, **norms})
        self.console.print(f"  step {step}  validation {loss:.4f}")
        self.last_time = time.perf_counter()

    def _write(self, row: Mapping[str, Any]) -> None:
        if self.file:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()

    def _print_progress(self, step: int, values: Mapping[str, Any], speed: float) -> None:
        terms = "" if len(values["terms"]) < 2 else "".join(f"  {n} {v:.3f}" for n, v in values["terms"].items())
        validation = "" if self.validation is None else f"  validation {self.validation:.3f}"
        seconds = sum(pair[0] for pair in self.recent) / len(self.recent)
        remaining = format_duration((self.steps - step) * seconds)
        self.console.progress(
            f"  step {step}/{self.steps}  loss {values['loss']:.3f}{terms}{validation}"
            f"  lr {values['learning_rate']:.1e}  {speed:,.0f} tokens/s  {remaining} left",
            last=step == self.steps,
        )


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The logged values as a flat dict of numbers. An overflowed gradient has no norm, which is left out."""
    tables = {"terms": "term", "judged": "judged"}
    inner = {f"{word}/{name}": one for key, word in tables.items() for name, one in values.get(key, {}).items()}
    return {name: value for name, value in values.items() if name not in tables and value is not None} | inner


class OverfittingMonitor:
    """Warns once, during training, when the validation loss rises well above the training loss."""

    GAP = 0.3

    def __init__(self, console: Console) -> None:
        self.console, self.losses, self.warned = console, list[float](), False

    def record_step(self, values: Mapping[str, Any]) -> None:
        """Add the cross-entropy of a step, which is what validation measures, unless no row of it had one."""
        if loss := values["terms"].get("hard", values["loss"]):
            self.losses.append(loss)

    def record_evaluation(self, step: int, loss: float, best: float) -> None:
        """Compare a validation loss with the mean training loss since the last evaluation."""
        losses, self.losses = self.losses, []
        mean = sum(losses) / max(1, len(losses))
        if self.warned or not losses or loss <= best or loss - mean < self.GAP:
            return
        self.warned = True
        self.console.warn(
            f"step {step}: validation loss {loss:.2f} rises and training loss is {mean:.2f}: the student is "
            "overfitting. More documents, fewer train.steps, a smaller student or student.dropout = 0.1 would help."
        )


class TermBalanceMonitor:
    """Warns once if the gradient of one term is negligible beside another's, so that its weight has no effect."""

    NEGLIGIBLE = 0.01

    def __init__(self, console: Console) -> None:
        self.console, self.warned = console, False

    def record_evaluation(self, step: int, grad_norms: Mapping[str, float]) -> None:
        """Compare the gradient norms of the weighted terms. A term of weight 0 is ignored: its weight is intended."""
        norms = {name: norm for name, norm in grad_norms.items() if norm > 0}
        if self.warned or not norms:
            return
        least, most = (choose(norms, key=norms.__getitem__) for choose in (min, max))
        if norms[least] >= self.NEGLIGIBLE * norms[most]:
            return
        self.warned = True
        self.console.warn(
            f"step {step}: the gradient of the term {least!r} is {norms[least] / norms[most]:.1%} of that of "
            f"{most!r}, so it has almost no effect. Increase its weight in [mixer], or remove it."
        )
