"""The tracker `wandb`: shows logged values as curves, and the report's metrics and samples at the end.

It sends only distillkit's values: no environment, command line, code, console output or host name. wandb is imported
when a run starts.
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
ID_FILE = "wandb.json"  # in the run's folder; holds the id of the run at W&B

# Disable what wandb collects about the machine and the program.
PRIVACY_SETTINGS = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "host": "-",  # or it would be the host's name
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


class WandB(Tracker):
    """Weights & Biases, online, or offline for a later `wandb sync`."""

    name = "wandb"

    class Options(Tracker.Options):
        """Options of the tracker `wandb`."""

        project: str = Field("distillkit", min_length=1, description="W&B project")
        entity: str | None = Field(None, description="W&B user or team; W&B's default if not set")
        mode: Literal["online", "offline"] = Field(
            "online", description="offline writes files for a later `wandb sync` and uses no network"
        )
        tags: list[str] = Field([], description="tags of the run")
        samples: int = Field(50, ge=0, description="number of samples to show")

    def start(self, run: Any) -> None:
        """Start a run, or resume it under its earlier id."""
        self.run = run
        self.last_step = _last_step(run.metrics) if (run.path / ID_FILE).is_file() else 0
        wandb = self._import_wandb()
        self.wandb_run = wandb.init(
            project=self.options.project,
            entity=self.options.entity,
            dir=str(run.path.resolve()),
            id=self._id(),
            resume="allow",
            name=run.name,
            group=run.path.resolve().parent.name,
            tags=list(self.options.tags) or None,
            mode=self.options.mode,
            config=redact_keys(tomllib.loads(run.recipe.read_text(encoding="utf-8"))) if run.recipe.is_file() else {},
            settings=wandb.Settings(**_supported(wandb, PRIVACY_SETTINGS | {"silent": True})),
        )

    def _import_wandb(self) -> Any:
        """Import wandb, without its error reporting; raises a UsageError if it has no key in online mode."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if self.options.mode == "online" and not _has_key(wandb):
            raise UsageError(
                "the tracker 'wandb' has no API key of Weights & Biases",
                'Run wandb login, set WANDB_API_KEY, or set mode = "offline" under [[tracker]].',
            )
        return wandb

    def _id(self) -> str:
        """The id of the run at W&B, which stays the same when the run is resumed."""
        file = self.run.path / ID_FILE
        if not file.is_file():
            file.write_text(json.dumps({"id": uuid.uuid4().hex[:12]}) + "\n", encoding="utf-8")
        return str(json.loads(file.read_text(encoding="utf-8"))["id"])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step, unless they were logged before the run was resumed."""
        if step > self.last_step:
            self.wandb_run.log({tag(name): value for name, value in values.items()}, step=step)

    def finish(self, report: Mapping[str, Any]) -> None:
        """Log the metrics of the report as the run's summary, and some samples as a table."""
        import wandb

        rows = list(_samples(self.run.samples, self.options.samples))
        if rows:
            self.wandb_run.log({"samples": wandb.Table(columns=["id", "prompt", "completion"], data=rows)})
        self.wandb_run.summary.update(dict(report_metrics(report)))
        self.wandb_run.finish()


def tag(name: str) -> str:
    """The W&B name of a logged value. Related charts share a prefix."""
    if name.startswith(VALIDATION):
        return f"evaluation/{name.removeprefix(VALIDATION)}"
    return f"train/{name.replace('term/', 'terms/', 1) if name.startswith('term/') else name}"


def report_metrics(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and values of the report: judge metrics with their intervals, and training results."""
    for judge, metrics in (report.get("judges") or {}).items():
        for name, metric in metrics.items():
            for bound in ("value", "low", "high"):
                if isinstance(metric.get(bound), int | float):
                    yield f"judges/{judge}/{name}" + ("" if bound == "value" else f"/{bound}"), metric[bound]
    for name, value in (report.get("training") or {}).items():
        if isinstance(value, int | float):
            yield f"training/{name}", value


def redact_keys(value: Any) -> Any:
    """The value with API keys of this process's environment and of `.env` replaced."""
    if isinstance(value, Mapping):
        return {key: redact_keys(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [redact_keys(inner) for inner in value]
    if isinstance(value, str):
        for secret in _secrets():
            value = value.replace(secret, "***")
    return value


def _secrets() -> list[str]:
    """All API keys of the environment and of `.env`, the longest first."""
    variables = dict(os.environ)
    if Path(".env").is_file():
        lines = Path(".env").read_text(encoding="utf-8", errors="replace").splitlines()
        variables |= {name: value.strip().strip("\"'") for name, _, value in (line.partition("=") for line in lines)}
    found = {value for name, value in variables.items() if SECRET.search(name.strip().upper()) and len(value) >= 8}
    return sorted(found, key=len, reverse=True)


def _supported(wandb: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that this version of wandb has."""
    return {name: value for name, value in settings.items() if name in wandb.Settings.model_fields}


def _has_key(wandb: Any) -> bool:
    """Whether wandb has an API key from its settings, the environment or `wandb login`."""
    return bool(wandb.setup().settings.api_key or wandb.setup().settings.identity_token_file or wandb.api.api_key)


def _last_step(metrics: Path) -> int:
    """The last step in metrics.jsonl."""
    if not metrics.is_file():
        return 0
    steps = [
        json.loads(line)["step"] for line in metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")
    ]
    return max(steps, default=0)


def _samples(file: Path, count: int) -> Iterator[list[str]]:
    """Samples of the student: id, prompt, completion."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            sample = json.loads(line)
            yield [redact_keys(sample[key]) for key in ("id", "prompt", "completion")]


@hookimpl
def register_trackers() -> list[type[Tracker]]:
    """The tracker of this package."""
    return [WandB]
