"""A tracker that shows runs in TensorBoard: what is logged as curves, the report's figures and samples at the end.

Knows distillkit's values and TensorBoard's names for them. What an event file is made of is `events`' affair.
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
        """Where to, and how much text."""

        folder: str | None = Field(None, description="where the event files go; if not set, into the run's own folder")
        samples: int = Field(8, ge=0, description="how many samples of the student to show")

    def start(self, run: Any) -> None:
        """A run begins, or goes on: its earlier files stay, and its curves are continued."""
        self.run = run
        folder = self.options.folder
        self.folder = run.path / "tensorboard" if folder is None else Path(folder).expanduser() / run.name
        self.file: EventFile | None = None
        self.last = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step, on disk when this returns."""
        if self.file is None:
            self.file = EventFile(self.folder, step)  # what an earlier sitting said of this step or later is void
        self.last = max(step, self.last)
        self.file.scalars(step, {tag(name): value for name, value in values.items()})

    def finish(self, report: Mapping[str, Any]) -> None:
        """The figures of the report, the recipe and some samples."""
        file = self.file or EventFile(self.folder)
        last = (report.get("training") or {}).get("steps") or self.last
        file.scalars(last, dict(figures(report)))
        file.text(last, "recipe", _fenced(scrubbed(str(report.get("recipe_text") or ""))))
        for number, sample in enumerate(_samples(self.run.samples, self.options.samples)):
            file.text(last, f"samples/{number}", scrubbed(sample))
        file.close()
        self.file = None


def tag(name: str) -> str:
    """What TensorBoard calls a value of distillkit: curves that belong together have the same first word."""
    if name.startswith(VALIDATION):
        return f"evaluation/{name.removeprefix(VALIDATION)}"
    return f"train/{name.replace('term/', 'terms/', 1) if name.startswith('term/') else name}"


def figures(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What judges said, each metric with its interval, and what training came to."""
    for judge, metrics in (report.get("judges") or {}).items():
        for name, metric in metrics.items():
            for bound in ("value", "low", "high"):
                if isinstance(metric.get(bound), int | float):
                    yield f"judges/{judge}/{name}" + ("" if bound == "value" else f"/{bound}"), metric[bound]
    for name, value in (report.get("training") or {}).items():
        if isinstance(value, int | float):
            yield f"training/{name}", value


def scrubbed(text: str) -> str:
    """A text without the keys of this process's environment, should one have got into it."""
    secrets = [value for name, value in os.environ.items() if SECRET.search(name.upper()) and len(value) >= 8]
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _samples(file: Path, count: int) -> Iterator[str]:
    """What the student wrote, as text for a page: its beginning in bold."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            sample = json.loads(line)
            yield f"**{_escaped(sample['prompt'])}**{_escaped(sample['completion'])}"


def _escaped(text: str) -> str:
    """Text that a page of Markdown shows as it is."""
    return re.sub(r"([\\`*_#<>\[\]])", r"\\\1", text).replace("\n", "  \n")


def _fenced(text: str) -> str:
    """Text as it is, in a block of code."""
    return "\n".join(f"    {line}" for line in text.splitlines())


@hookimpl
def register_trackers() -> list[type[Tracker]]:
    """Offer it."""
    return [TensorBoard]
