"""Creates the folder of a new run, and describes what the run is made with: versions, hashes, sizes, the device."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from ..core import run_folder
from ..core.files import write_json, write_text
from ..core.run_folder import Run
from .context import Context
from .teacher_calls import refuse_batched_requests


def create_run(context: Context, plan: Mapping[str, Any]) -> Run:
    """A new run folder with the recipe, the plan, the tokenizer, and the metadata that is known before the stages."""
    recipe, started = context.recipe, time.perf_counter()
    corpus = context.corpus
    refuse_batched_requests(context)
    metadata = {"recipe": recipe.name, "started": timestamp(), "seed": recipe.seed, **describe(context)}
    with run_folder.new_run_folder(recipe.name, metadata) as (run, part):
        write_text(part.recipe, recipe.to_toml())
        write_json(part.plan, plan)
        corpus.tokenizer.save(part.tokenizer)
        part.record(seconds={"data": round(time.perf_counter() - started, 3)})
    return run


def describe(context: Context) -> dict[str, Any]:
    """Metadata of a run: versions, hashes, sizes, the device."""
    from ..student.trained import parameter_counts

    recipe, corpus = context.recipe, context.corpus
    return {
        "versions": package_versions(),
        "plugins": context.plugins.versions(recipe),
        "device": describe_device(),
        "data": {"source": recipe.data.source, "fingerprint": corpus.fingerprint, **corpus.counts},
        "tokenizer": {
            "kind": recipe.tokenizer.kind,
            "vocab_size": corpus.tokenizer.vocab_size,
            "fingerprint": corpus.tokenizer.fingerprint,
        },
        "student": {"arch": recipe.student.arch, "parameters": parameter_counts(context.network)},
    }


def package_versions() -> dict[str, str]:
    """The versions of the packages that may change a result."""
    versions = {"distillkit": __version__, "python": platform.python_version()}
    for name in ("mlx", "numpy", "tiktoken"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # pragma: no cover - installed without metadata
            versions[name] = "unknown"
    return versions


def describe_device() -> str:
    """The device, operating system and BLAS in one line."""
    from ..student import blas

    backend = blas.load()
    import mlx.core as mx

    kind = "GPU" if mx.default_device().type == mx.gpu else "CPU"
    return f"{kind}, {platform.system()} {platform.machine()}, {backend if kind == 'CPU' else 'MLX'}"


def timestamp() -> str:
    """The current time (UTC, ISO 8601), as run records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
