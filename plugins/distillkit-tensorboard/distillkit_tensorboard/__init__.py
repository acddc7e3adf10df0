"""The tracker `tensorboard`: shows logged values as curves, and the report's metrics and samples at the end.

Maps distillkit's values to TensorBoard tags; `events` implements the file format.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from distillkit import Tracker, hookimpl

from .events import EventFile

SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
VALIDATION = "validation_"


class TensorBoard(Tracker):
    """Writes event files that TensorBoard shows: tensorboard --logdir reports."""

    name = "tensorboard"

    class Options(Tracker.Options):
        """Options of the tracker `tensorboard`."""

        folder: str | None = Field(None, description="folder for event files; the run's own folder if not set")
        samples: int = Field(8, ge=0, description="number of samples to show")

    def start(self, run: Any) -> None:
        """Start or resume a run. Earlier event files are kept, and their curves continued."""
        self.run = run
        folder = self.options.folder
        self.folder = run.path / "tensorboard" if folder is None else Path(folder).expanduser() / run.name
        self.file: EventFile | None = None
        self.last_step = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step to disk."""
        if self.file is None:
            self.file = EventFile(self.folder, step)  # invalidates earlier values of this step and later ones
        self.last_step = max(step, self.last_step)
        self.file.scalars(step, {tag(name): value for name, value in values.items()})

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write the metrics of the report, the recipe and some samples."""
        file = self.file or EventFile(self.folder)
        last = (report.get("training") or {}).get("steps") or self.last_step
        file.scalars(last, dict(report_metrics(report)))
        file.text(last, "recipe", _code_block(redact_keys(str(report.get("recipe_text") or ""))))
        for number, sample in enumerate(_samples(self.run.samples, self.options.samples)):
            file.text(last, f"samples/{number}", redact_keys(sample))
        file.close()
        self.file = None


def tag(name: str) -> str:
    """The TensorBoard tag of a logged value. Related curves share a prefix."""
    if name.startswith(VALIDATION):
        return f"evaluation/{name.removeprefix(VALIDATION)}"
    return f"train/{name.replace('term/', 'terms/', 1) if name.startswith('term/') else name}"


def report_metrics(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and values of the report: judge metrics with their intervals, and training results."""
    for judge, metrics in (report.get("judges") or {}).items():
        for name, metric in metrics.items():
            for bound in ("value", "low", "high"):
                if isinstance(metric.get(bound), int | float):
                    yield f"judges/{judge}/{name}" + ("" if bound == "value" else f"/{bound}"), metric[bound]
    for name, value in (report.get("training") or {}).items():
        if isinstance(value, int | float):
            yield f"training/{name}", value


def redact_keys(text: str) -> str:
    """The text with API keys of this process's environment replaced."""
    secrets = [value for name, value in os.environ.items() if SECRET.search(name.upper()) and len(value) >= 8]
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _samples(file: Path, count: int) -> Iterator[str]:
    """Samples as Markdown, with the prompt in bold."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            sample = json.loads(line)
            yield f"**{_escape_markdown(sample['prompt'])}**{_escape_markdown(sample['completion'])}"


def _escape_markdown(text: str) -> str:
    """Escape text for Markdown."""
    return re.sub(r"([\\`*_#<>\[\]])", r"\\\1", text).replace("\n", "  \n")


def _code_block(text: str) -> str:
    """Text as a Markdown code block."""
    return "\n".join(f"    {line}" for line in text.splitlines())


@hookimpl
def register_trackers() -> list[type[Tracker]]:
    """The tracker of this package."""
    return [TensorBoard]
