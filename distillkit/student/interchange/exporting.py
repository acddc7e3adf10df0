"""What all exporters share: loading the student, converting it to GPT-2 or Llama, verification and the model card.

Exporters are plugins: each writes files and says how they are loaded again. No format is known here. That the folder
appears complete and verified, or not at all, is ensured by the caller (`distillkit export`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...core.errors import UsageError
from ...core.files import write_json
from ...core.run_folder import Run
from ..model.gpt import GPT, GPTConfig, named_parameters
from ..trained import Trained
from ..training.optimizers import unflatten
from .card import model_card
from .hf_weights import (
    Arrays,
    ConvertedModel,
    from_gpt2,
    from_llama,
    gpt2_obstacles,
    llama_obstacles,
    to_gpt2,
    to_llama,
)
from .verify import Bounds, NetworkReader, Reader, summarize, verify_export

__all__ = [
    "Arrays",
    "Bounds",
    "ConvertedModel",
    "NetworkReader",
    "Reader",
    "convert",
    "finish",
    "load_student",
    "network_from_weights",
    "package_versions",
    "require_package",
]


def load_student(run: Run) -> tuple[Trained, GPT]:
    """The student of a run and its network, which must be a GPT of distillkit."""
    student = Trained.load(run.path)
    if not isinstance(student.model, GPT):
        raise UsageError(
            f"the student of {run.name} is not a gpt but a network of a plugin, which no format here supports",
            "The plugin would have to provide an exporter for it.",
        )
    return student, student.model


def convert(model: nn.Module) -> ConvertedModel:
    """The network as a GPT-2 or, if that is not possible, as a Llama."""
    assert isinstance(model, GPT)
    if not list(gpt2_obstacles(model.config)):
        return to_gpt2(model)
    if not list(llama_obstacles(model.config)):
        return to_llama(model)
    raise UsageError(
        "the student is neither a GPT-2 nor a Llama, and no other architecture can be exported\n"
        f"  not a GPT-2: {'; '.join(gpt2_obstacles(model.config))}\n"
        f"  not a Llama: {'; '.join(llama_obstacles(model.config))}",
        "You can still use it with distillkit generate and serve, and as a teacher. See docs/export.md.",
    )


def network_from_weights(family: str, config: GPTConfig, weights: Arrays, by: str) -> NetworkReader:
    """A reader that runs distillkit's network with exported weights; `by` says how they were loaded."""
    model, convert_back = GPT(config), from_gpt2 if family == "gpt2" else from_llama
    arrays = {name: value.astype(mx.float32) for name, value in convert_back(config, weights).items()}
    model.update(unflatten(arrays))
    mx.eval(named_parameters(model))
    return NetworkReader(model, by)


def finish(
    run: Run,
    folder: Path,
    student: Trained,
    load_reader: Callable[[], Reader],
    bounds: Bounds,
    metadata: Mapping[str, Any],
) -> list[str]:
    """Verify an export, write `proof.json` and the model card beside it, and return the lines to print.

    The metadata is kept in `proof.json`. Its `notes` are printed; its `library` is the name under which the Hub knows
    the library that loads the export; its `use` is Markdown that shows how to load it. Both go into the model card.
    """
    proof = {"notes": [], **verify_export(run, student, load_reader(), bounds), **metadata}
    write_json(folder / "proof.json", proof)
    (folder / "README.md").write_text(model_card(run, student, proof), encoding="utf-8")
    return [*proof["notes"], *summarize(proof)]


def require_package(module: str, package: str, extra: str) -> Any:
    """Import an optional package, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"this format needs the package {package}, which is not installed",
            f'Install it: pip install "distillkit[{extra}]"',
        ) from error


def package_versions(*packages: str) -> str:
    """Packages with their versions, joined by "and"."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(package)
    return " and ".join(found)


# Former names, kept for exporters of other authors.
Member = ConvertedModel
Own = NetworkReader
student_of = load_student
of_family = convert
read_back = network_from_weights
needed = require_package
versions_of = package_versions
