"""Checkpoints: a folder that is whole or not there, with a checksum for each file.

    step-00000500/
        model.safetensors      the weights
        optimizer.safetensors  both moments of AdamW
        student.json           architecture and options, enough to build the network again
        state.json             step, best so far, and what must not have changed when training goes on
        sums.json              the SHA-256 of each file

Knows how to write, check, find and drop them; not how to train.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..core.errors import CorruptError, DistillkitError
from ..core.files import atomic_folder, file_digest, read_json, remove_folder, write_json
from .interchange import safetensors

Arrays = Mapping[str, mx.array]
NEEDED = {"model.safetensors", "student.json", "state.json"}
LARGEST = 2**31  # of a vocabulary: MLX counts with 32 bits


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of a student."""

    path: Path

    @property
    def step(self) -> int:
        """How many steps were done: its name says so, unless somebody gave it another."""
        number = self.path.name.removeprefix("step-")
        return int(number if number.isdecimal() else self.state["step"])

    @property
    def state(self) -> dict[str, Any]:
        """What stood in `state.json`."""
        return _json(self.path / "state.json")

    @property
    def student(self) -> dict[str, Any]:
        """Architecture, options and size of the vocabulary."""
        values = _json(self.path / "student.json")
        size = values.get("vocab_size")
        if not {"arch", "options"} <= values.keys() or type(size) is not int or not 0 < size < LARGEST:
            raise CorruptError(f"{self.path / 'student.json'} is damaged: it does not say what student that is")
        return values

    @property
    def sums(self) -> dict[str, Any]:
        """The SHA-256 of each file, as it was written."""
        return _json(self.path / "sums.json")

    def verify(self) -> None:
        """Hold every file against its checksum."""
        if not self.sums.keys() >= NEEDED:
            raise CorruptError(f"{self.path / 'sums.json'} is damaged: it does not name every file")
        for name, expected in self.sums.items():
            file = self.path / name
            if not file.is_file():
                raise CorruptError(f"{file} is missing")
            if file_digest(file) != expected:
                raise CorruptError(f"{file} is damaged: its checksum is not the one that was written")

    def weights(self) -> dict[str, mx.array]:
        """The weights, in float32 whatever they were stored as."""
        return {
            name: value.astype(mx.float32) for name, value in safetensors.load(self.path / "model.safetensors").items()
        }

    def moments(self) -> dict[str, mx.array]:
        """The optimizer's arrays."""
        return safetensors.load(self.path / "optimizer.safetensors")


def save(folder: Path, weights: Arrays, moments: Arrays | None, student: Any, state: Any) -> Checkpoint:
    """Write a checkpoint as `folder`."""
    with atomic_folder(folder) as part:
        _write(part / "model.safetensors", weights)
        if moments is not None:
            _write(part / "optimizer.safetensors", moments)
        write_json(part / "student.json", student)
        write_json(part / "state.json", state)
        write_json(part / "sums.json", {file.name: file_digest(file) for file in sorted(part.iterdir())})
    return Checkpoint(folder)


def _write(file: Path, arrays: Arrays) -> None:
    """Write arrays. MLX raises a RuntimeError when the disk is full, which says less than it might."""
    try:
        mx.save_safetensors(str(file), dict(arrays), {"format": "mlx"})
    except RuntimeError as error:
        hint = "Is the disk full? The same command goes on from the last checkpoint: --resume."
        raise DistillkitError(f"the checkpoint {file.parent.parent} cannot be written: {error}", hint) from error


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lives."""
    return checkpoints / f"step-{step:08d}"


def every(checkpoints: Path) -> list[Checkpoint]:
    """All checkpoints of a run, oldest first; what a crash left half-written is not among them."""
    if not checkpoints.is_dir():
        return []
    return [Checkpoint(path) for path in sorted(checkpoints.glob("step-????????")) if path.is_dir()]


def newest_good(checkpoints: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose checksums hold, and what is wrong with the newer ones."""
    faults: list[str] = []
    for checkpoint in reversed(every(checkpoints)):
        try:
            checkpoint.verify()
            return checkpoint, faults
        except CorruptError as error:
            if not checkpoint.path.is_dir():  # a process that trains has dropped it, for it has newer ones
                return newest_good(checkpoints)
            faults.append(error.message)
    return None, faults


def reached(checkpoints: Path) -> int:
    """The step that training would go on from."""
    newest, _ = newest_good(checkpoints)
    return 0 if newest is None else newest.step


def set_aside(checkpoint: Checkpoint, why: str = "damaged") -> None:
    """Rename a useless checkpoint, so that it is neither used nor in the way of a new one."""
    name = f"{why}-{checkpoint.path.name}"
    taken = sum(1 for _ in checkpoint.path.parent.glob(f"{name}*"))
    checkpoint.path.rename(checkpoint.path.with_name(f"{name}.{taken + 1}" if taken else name))


def prune(checkpoints: Path, keep: int, best_step: int | None) -> None:
    """Drop all but the last `keep` checkpoints and the best one."""
    steps = every(checkpoints)
    for checkpoint in steps[: max(0, len(steps) - keep)]:
        if checkpoint.step != best_step:
            remove_folder(checkpoint.path)


def weights_digest(weights: Arrays) -> str:
    """One SHA-256 for all weights: names, shapes and bytes, in the order of names."""
    total = hashlib.sha256()
    for name in sorted(weights):
        array = np.array(weights[name])
        total.update(f"{name}{array.shape}{array.dtype}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _json(file: Path) -> dict[str, Any]:
    try:
        values = read_json(file)
        if not isinstance(values, dict):
            raise ValueError("it holds no table")
    except FileNotFoundError as error:
        raise CorruptError(f"{file} is missing") from error
    except ValueError as error:
        raise CorruptError(f"{file} is damaged: {error}") from error
    except OSError as error:
        raise DistillkitError(f"{file} cannot be read: {error.strerror}") from error
    return values
