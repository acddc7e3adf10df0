"""Taking a student elsewhere: what all formats share.

A format writes files and says how they are loaded again; here the student is loaded, and the proof and the card are
written. Formats are plugins; none is known here. That a folder is there whole and proven, or not at all, is the affair
of whoever hands it out: `away_commands`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
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
from .card import card
from .hf_weights import Arrays, Member, as_gpt2, as_llama, from_gpt2, from_llama, not_gpt2, not_llama
from .verify import Bounds, Own, Reader, prove, told

__all__ = [
    "Arrays",
    "Bounds",
    "Member",
    "Own",
    "Reader",
    "finish",
    "needed",
    "of_family",
    "read_back",
    "student_of",
    "versions_of",
]


def student_of(run: Run) -> tuple[Trained, GPT]:
    """The student of a run, and its network, which must be a GPT of ours."""
    student = Trained.load(run.path)
    if not isinstance(student.model, GPT):
        raise UsageError(
            f"the student of {run.name} is no gpt but a plugin's network, which no format here knows",
            "The plugin would have to offer an exporter of its own.",
        )
    return student, student.model


def of_family(model: nn.Module) -> Member:
    """The student as a GPT-2 or as a Llama, whichever it can be."""
    assert isinstance(model, GPT)
    if not list(not_gpt2(model.config)):
        return as_gpt2(model)
    if not list(not_llama(model.config)):
        return as_llama(model)
    raise UsageError(
        "the student is neither a GPT-2 nor a Llama, and other tools know no third\n"
        f"  no GPT-2: {'; '.join(not_gpt2(model.config))}\n"
        f"  no Llama: {'; '.join(not_llama(model.config))}",
        "It can be used here: distillkit generate, and as a teacher. docs/export.md says what fits where.",
    )


def read_back(family: str, shape: GPTConfig, weights: Arrays, by: str) -> Own:
    """Our own network with the weights of a family, as a file has them."""
    model, back = GPT(shape), from_gpt2 if family == "gpt2" else from_llama
    arrays = {name: value.astype(mx.float32) for name, value in back(shape, weights).items()}
    model.update(unflatten(arrays))
    mx.eval(named_parameters(model))
    return Own(model, by)


def finish(
    run: Run, folder: Path, student: Trained, reader: Callable[[], Reader], bounds: Bounds, facts: dict[str, Any]
) -> list[str]:
    """Prove what was written, and write the proof and the card beside it; returns what is to be told.

    Facts are kept with the proof. Of them `notes` are told, and the card says what the Hub calls the `library` that
    loads it, and shows its `use`, in Markdown.
    """
    proof = {"notes": [], **prove(run, student, reader(), bounds), **facts}
    write_json(folder / "proof.json", proof)
    (folder / "README.md").write_text(card(run, student, proof), encoding="utf-8")
    return [*proof["notes"], *told(proof)]


def needed(module: str, package: str, extra: str) -> Any:
    """An optional package, or how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"this format needs the package {package}, which is not installed",
            f'Install it: pip install "distillkit[{extra}]"',
        ) from error


def versions_of(*packages: str) -> str:
    """Packages with their versions, as a sentence names them."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(package)
    return " and ".join(found)
