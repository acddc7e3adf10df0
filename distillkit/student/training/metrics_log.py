"""What is said of training while it goes on: a line a step in `metrics.jsonl`, the trackers, and the user.

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


class Journal:
    """The log of a run: a line a step in `metrics.jsonl`, the trackers, and what is said meanwhile."""

    def __init__(
        self, log: Path | None, steps: int, step: int, console: Console, trackers: Sequence[Tracker] = ()
    ) -> None:
        """`log` is None in a process that does not write."""
        self.log, self.steps, self.console, self.trackers = log, steps, console, trackers
        self.recent: deque[tuple[float, int]] = deque(maxlen=20)
        self.clock = time.perf_counter()
        self.validation: float | None = None
        if log is not None:
            write_jsonl(log, [row for row in read_jsonl(log) if row["step"] <= step])

    def __enter__(self) -> Journal:
        self.file = self.log.open("a", encoding="utf-8") if self.log else None
        return self

    def __exit__(self, *reason: object) -> None:
        if self.file:
            self.file.close()

    def keep(self) -> None:
        """Have it on the disk, as the checkpoint that is about to be written will be."""
        if self.file:
            os.fsync(self.file.fileno())

    def step(self, at: int, values: dict[str, Any]) -> None:
        """Log one step."""
        now = time.perf_counter()
        self.recent.append((now - self.clock, values["tokens"]))
        self.clock = now
        seconds, tokens = (sum(column) for column in zip(*self.recent, strict=True))
        speed = values.pop("tokens") / self.recent[-1][0]
        self._write({"kind": "train", "step": at, **values, "tokens_per_second": round(speed, 1)})
        self._tell(at, values, tokens / seconds)
        for tracker in self.trackers:
            tracker.log(at, _numbers(values))

    def evaluation(self, step: int, loss: float, lengths: Mapping[str, float]) -> None:
        """Log one evaluation, and how long the gradient of each weighted term is at the logits."""
        self.validation = loss
        self._write({"kind": "validation", "step": step, "loss": loss, "gradient_norms": dict(lengths)})
        for tracker in self.trackers:
            of_terms = {f"gradient_norm/{name}": length for name, length in lengths.items()}
            tracker.log(step, {"validation_loss": loss, **of_terms})
        self.console.print(f"  step {step}  validation {loss:.4f}")
        self.clock = time.perf_counter()

    def _write(self, row: Mapping[str, Any]) -> None:
        if self.file:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()

    def _tell(self, step: int, values: Mapping[str, Any], speed: float) -> None:
        terms = "" if len(values["terms"]) < 2 else "".join(f"  {n} {v:.3f}" for n, v in values["terms"].items())
        seen = "" if self.validation is None else f"  validation {self.validation:.3f}"
        seconds = sum(pair[0] for pair in self.recent) / len(self.recent)
        self.console.progress(
            f"  step {step}/{self.steps}  loss {values['loss']:.3f}{terms}{seen}  lr {values['learning_rate']:.1e}"
            f"  {speed:,.0f} tokens/s  {format_duration((self.steps - step) * seconds)} left",
            last=step == self.steps,
        )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The logged values without tables in them; a gradient that overflowed has no length."""
    tables = {"terms": "term", "judged": "judged"}
    inner = {f"{word}/{name}": one for key, word in tables.items() for name, one in values.get(key, {}).items()}
    return {name: value for name, value in values.items() if name not in tables and value is not None} | inner


class Overfitting:
    """Points it out, while it happens, when the validation loss leaves the training loss behind."""

    GAP = 0.3

    def __init__(self, console: Console) -> None:
        self.console, self.losses, self.told = console, list[float](), False

    def trained(self, values: Mapping[str, Any]) -> None:
        """Remember the cross-entropy of a step, which is what validation measures: if any row of it had one."""
        if loss := values["terms"].get("hard", values["loss"]):
            self.losses.append(loss)

    def evaluated(self, step: int, loss: float, best: float) -> None:
        """Compare with the steps since the last evaluation."""
        losses, self.losses = self.losses, []
        mean = sum(losses) / max(1, len(losses))
        if self.told or not losses or loss <= best or loss - mean < self.GAP:
            return
        self.told = True
        self.console.warn(
            f"step {step}: validation loss {loss:.2f} rises and training loss is {mean:.2f}: "
            "the student learns its text by heart. More documents, fewer train.steps, a smaller student or "
            "student.dropout = 0.1 would help."
        )


class Balance:
    """Points out, once, a term whose gradient is lost beside another's: then its weight means nothing."""

    LOST = 0.01

    def __init__(self, console: Console) -> None:
        self.console, self.told = console, False

    def evaluated(self, step: int, lengths: Mapping[str, float]) -> None:
        """Compare the lengths of the weighted terms' gradients; a weight of 0 is nobody's mistake."""
        weighing = {name: length for name, length in lengths.items() if length > 0}
        if self.told or not weighing:
            return
        least, most = (choose(weighing, key=weighing.__getitem__) for choose in (min, max))
        if weighing[least] >= self.LOST * weighing[most]:
            return
        self.told = True
        self.console.warn(
            f"step {step}: the gradient of the term {least!r} is {weighing[least] / weighing[most]:.1%} of that of "
            f"{most!r}, so it hardly counts. Give it more weight in [mixer], or leave it out."
        )
