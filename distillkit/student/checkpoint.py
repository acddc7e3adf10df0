"""Checkpoints: a folder that is written atomically, with a checksum for each file.

    step-00000500/
        model.safetensors      the weights
        optimizer.safetensors  the optimizer's state: arrays named slot.parameter
        student.json           architecture and options, enough to rebuild the network
        state.json             step, best loss, and what must not change when training resumes
        sums.json              the SHA-256 of each file

Writes, verifies, finds and deletes checkpoints. Knows nothing of training.
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
REQUIRED_FILES = {"model.safetensors", "student.json", "state.json"}
MAX_VOCAB_SIZE = 2**31  # MLX indexes with 32 bits


@dataclass(frozen=True)
class Checkpoint:
    """A saved state of a student, in a folder."""

    path: Path

    @property
    def step(self) -> int:
        """The number of training steps: from the folder's name, or from `state.json` if the folder was renamed."""
        number = self.path.name.removeprefix("step-")
        return int(number if number.isdecimal() else self.state["step"])

    @property
    def state(self) -> dict[str, Any]:
        """The contents of `state.json`."""
        return _read_json(self.path / "state.json")

    @property
    def student(self) -> dict[str, Any]:
        """The contents of `student.json`: architecture, options and vocabulary size."""
        values = _read_json(self.path / "student.json")
        size = values.get("vocab_size")
        if not {"arch", "options"} <= values.keys() or type(size) is not int or not 0 < size < MAX_VOCAB_SIZE:
            raise CorruptError(f"{self.path / 'student.json'} is damaged: it does not describe a student")
        return values

    @property
    def checksums(self) -> dict[str, Any]:
        """The SHA-256 of each file at the time of writing."""
        return _read_json(self.path / "sums.json")

    def verify(self) -> None:
        """Compare every file with its checksum; raise a `CorruptError` if one is missing or differs."""
        if not self.checksums.keys() >= REQUIRED_FILES:
            raise CorruptError(f"{self.path / 'sums.json'} is damaged: it does not list every file")
        for name, expected in self.checksums.items():
            file = self.path / name
            if not file.is_file():
                raise CorruptError(f"{file} is missing")
            if file_digest(file) != expected:
                raise CorruptError(f"{file} is damaged: its checksum differs from that in sums.json")

    def weights(self) -> dict[str, mx.array]:
        """The weights by name, converted to float32."""
        return {
            name: value.astype(mx.float32) for name, value in safetensors.load(self.path / "model.safetensors").items()
        }

    def optimizer_arrays(self) -> dict[str, mx.array]:
        """The optimizer's arrays by name."""
        return safetensors.load(self.path / "optimizer.safetensors")


def save(folder: Path, weights: Arrays, optimizer_state: Arrays | None, student: Any, state: Any) -> Checkpoint:
    """Write a checkpoint to `folder`, which appears only once it is complete."""
    with atomic_folder(folder) as part:
        _save_arrays(part / "model.safetensors", weights)
        if optimizer_state is not None:
            _save_arrays(part / "optimizer.safetensors", optimizer_state)
        write_json(part / "student.json", student)
        write_json(part / "state.json", state)
        write_json(part / "sums.json", {file.name: file_digest(file) for file in sorted(part.iterdir())})
    return Checkpoint(folder)


def _save_arrays(file: Path, arrays: Arrays) -> None:
    """Write arrays to a file. MLX raises a bare RuntimeError if the disk is full."""
    try:
        mx.save_safetensors(str(file), dict(arrays), {"format": "mlx"})
    except RuntimeError as error:
        hint = "Is the disk full? Continue from the last checkpoint with the same command and --resume."
        raise DistillkitError(f"the checkpoint {file.parent.parent} cannot be written: {error}", hint) from error


def step_folder(checkpoints: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return checkpoints / f"step-{step:08d}"


def list_checkpoints(checkpoints: Path) -> list[Checkpoint]:
    """All checkpoints of a run, oldest first, without incomplete ones that a crash left behind."""
    if not checkpoints.is_dir():
        return []
    return [Checkpoint(path) for path in sorted(checkpoints.glob("step-????????")) if path.is_dir()]


def newest_valid(checkpoints: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose checksums are correct, and the faults of all newer ones."""
    faults: list[str] = []
    for checkpoint in reversed(list_checkpoints(checkpoints)):
        try:
            checkpoint.verify()
            return checkpoint, faults
        except CorruptError as error:
            if not checkpoint.path.is_dir():  # deleted meanwhile by the training process, which has newer ones
                return newest_valid(checkpoints)
            faults.append(error.message)
    return None, faults


def last_step(checkpoints: Path) -> int:
    """The step of the newest valid checkpoint, from which training would resume; 0 without one."""
    newest, _ = newest_valid(checkpoints)
    return 0 if newest is None else newest.step


def move_aside(checkpoint: Checkpoint, reason: str = "damaged") -> None:
    """Rename an unusable checkpoint, so that it is not used and a new one can take its name."""
    name = f"{reason}-{checkpoint.path.name}"
    taken = sum(1 for _ in checkpoint.path.parent.glob(f"{name}*"))
    checkpoint.path.rename(checkpoint.path.with_name(f"{name}.{taken + 1}" if taken else name))


def prune(checkpoints: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the last `keep` checkpoints and the best one."""
    steps = list_checkpoints(checkpoints)
    for checkpoint in steps[: max(0, len(steps) - keep)]:
        if checkpoint.step != best_step:
            remove_folder(checkpoint.path)


def weights_digest(weights: Arrays) -> str:
    """The SHA-256 of all weights: names, shapes, dtypes and bytes, sorted by name."""
    total = hashlib.sha256()
    for name in sorted(weights):
        array = np.array(weights[name])
        total.update(f"{name}{array.shape}{array.dtype}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = read_json(file)
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
    except FileNotFoundError as error:
        raise CorruptError(f"{file} is missing") from error
    except ValueError as error:
        raise CorruptError(f"{file} is damaged: {error}") from error
    except OSError as error:
        raise DistillkitError(f"{file} cannot be read: {error.strerror}") from error
    return values
