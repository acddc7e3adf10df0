"""A tracker that shows runs in Weights & Biases: what is logged as curves, the report's figures and samples at the end.

Nothing is sent but what distillkit says: no environment, no command line, no code, no console, no name of the machine.
Knows distillkit's values and W&B's names for them. wandb is not imported before a run begins.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from distillkit import Tracker, UsageError, hookimpl

SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
VALIDATION = "validation_"
NOTE = "wandb.json"  # in the run's folder: under which id W&B knows it

# What wandb would tell of the machine, the program and its surroundings.
PRIVATE = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "host": "-",  # or it would say its name
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


class WandB(Tracker):
    """Weights & Biases, online or into files that `wandb sync` sends later."""

    name = "wandb"

    class Options(Tracker.Options):
        """Where to, and how much."""

        project: str = Field("distillkit", min_length=1, description="the project of W&B")
        entity: str | None = Field(None, description="the user or team; if not set, W&B's own default")
        mode: Literal["online", "offline"] = Field(
            "online", description="offline writes files that `wandb sync` sends later, and uses no network"
        )
        tags: list[str] = Field([], description="tags of the run")
        samples: int = Field(50, ge=0, description="how many samples of the student to show")

    def start(self, run: Any) -> None:
        """A run begins, or goes on under the id that it had."""
        self.run = run
        self.last = _last_step(run.metrics) if (run.path / NOTE).is_file() else 0
        wandb = self._ready()
        self.told = wandb.init(
            project=self.options.project,
            entity=self.options.entity,
            dir=str(run.path.resolve()),
            id=self._id(),
            resume="allow",
            name=run.name,
            group=run.path.resolve().parent.name,
            tags=list(self.options.tags) or None,
            mode=self.options.mode,
            config=scrubbed(tomllib.loads(run.recipe.read_text(encoding="utf-8"))) if run.recipe.is_file() else {},
            settings=wandb.Settings(**_known(wandb, PRIVATE | {"silent": True})),
        )

    def _ready(self) -> Any:
        """wandb itself, which neither asks for a key nor reports its own errors."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if self.options.mode == "online" and not _has_key(wandb):
            raise UsageError(
                "the tracker 'wandb' has no key of Weights & Biases",
                'Log in once (wandb login), or set WANDB_API_KEY, or say mode = "offline" under [[tracker]].',
            )
        return wandb

    def _id(self) -> str:
        """The id of the run at W&B: the same in all its sittings."""
        note = self.run.path / NOTE
        if not note.is_file():
            note.write_text(json.dumps({"id": uuid.uuid4().hex[:12]}) + "\n", encoding="utf-8")
        return str(json.loads(note.read_text(encoding="utf-8"))["id"])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step, unless an earlier sitting has said them."""
        if step > self.last:
            self.told.log({tag(name): value for name, value in values.items()}, step=step)

    def finish(self, report: Mapping[str, Any]) -> None:
        """The figures of the report as the run's summary, and some samples as a table."""
        import wandb

        rows = list(_samples(self.run.samples, self.options.samples))
        if rows:
            self.told.log({"samples": wandb.Table(columns=["id", "prompt", "completion"], data=rows)})
        self.told.summary.update(dict(figures(report)))
        self.told.finish()


def tag(name: str) -> str:
    """What W&B calls a value of distillkit: charts that belong together have the same first word."""
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


def scrubbed(value: Any) -> Any:
    """A value without the keys of this process's environment or of `.env`, should one have got into it."""
    if isinstance(value, Mapping):
        return {key: scrubbed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [scrubbed(inner) for inner in value]
    if isinstance(value, str):
        for secret in _secrets():
            value = value.replace(secret, "***")
    return value


def _secrets() -> list[str]:
    """Every key at hand, the longest first."""
    named = dict(os.environ)
    if Path(".env").is_file():
        lines = Path(".env").read_text(encoding="utf-8", errors="replace").splitlines()
        named |= {name: value.strip().strip("\"'") for name, _, value in (line.partition("=") for line in lines)}
    found = {value for name, value in named.items() if SECRET.search(name.strip().upper()) and len(value) >= 8}
    return sorted(found, key=len, reverse=True)


def _known(wandb: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that this version of wandb has."""
    return {name: value for name, value in settings.items() if name in wandb.Settings.model_fields}


def _has_key(wandb: Any) -> bool:
    """Whether wandb knows who is asking: by its own settings, the environment or what `wandb login` left."""
    return bool(wandb.setup().settings.api_key or wandb.setup().settings.identity_token_file or wandb.api.api_key)


def _last_step(metrics: Path) -> int:
    """The last step that an earlier sitting logged."""
    if not metrics.is_file():
        return 0
    steps = [
        json.loads(line)["step"] for line in metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")
    ]
    return max(steps, default=0)


def _samples(file: Path, count: int) -> Iterator[list[str]]:
    """What the student wrote: id, beginning, completion."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            sample = json.loads(line)
            yield [scrubbed(sample[key]) for key in ("id", "prompt", "completion")]


@hookimpl
def register_trackers() -> list[type[Tracker]]:
    """Offer it."""
    return [WandB]
