"""A model's folder: where it lies, what it holds, what it says of itself. Reads files, and loads no model."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from distillkit import DataError, UsageError

# What mlx-lm fetches of a model, and no more.
FILES = ["*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jsonl", "*.jinja"]
DECIDING = ("*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "*.txt")  # beside the weights
PIECE = 4096  # bytes read from the middle of each tensor


def locate(model: str, download: bool) -> Path:
    """The folder of a model: itself, or where the hub's files are kept on this machine."""
    here = Path(model).expanduser()
    if (here / "config.json").is_file():
        return here
    if here.exists():
        raise DataError(f"{model} holds no model: config.json is missing", "Name a folder that mlx-lm can load.")
    return _of_the_hub(model, download)


def _of_the_hub(model: str, download: bool) -> Path:
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _snapshot(model, local_files_only=True)
    except HFValidationError as error:
        raise UsageError(
            f"there is no model folder {model!r}, and no model of the hub has such a name", "Check teacher.model."
        ) from error
    except LocalEntryNotFoundError as error:
        if not download:
            raise UsageError(
                f"the model {model!r} is neither a folder nor on this machine",
                f"Fetch it once: hf download {model}. Or set teacher.download = true.",
            ) from error
    try:
        return _snapshot(model)
    except (OSError, ValueError) as error:  # whatever the hub or the network has to say
        told = " ".join(str(error).split())[:200]
        raise UsageError(
            f"the model {model!r} could not be fetched: {told}", "Check its name and the network."
        ) from error


def _snapshot(model: str, **how: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=FILES, **how))


# ---------------------------------------------------------------------------------------------- what it says


def config(folder: Path) -> dict[str, Any]:
    """What the model says of its shape."""
    return _json(folder / "config.json")


def quantisation(folder: Path) -> dict[str, Any] | None:
    """How its weights are packed: bits, group size, mode; None where they are not."""
    told = config(folder)
    packed = told.get("quantization") or told.get("quantization_config") or {}
    return {key: packed[key] for key in ("bits", "group_size", "mode", "quant_method") if key in packed} or None


def has_chat_template(folder: Path) -> bool:
    """Whether it was made to reply to messages."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    told = folder / "tokenizer_config.json"
    return told.is_file() and any(_json(told).get(key) for key in ("chat_template", "chat_template_type"))


def _json(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}", "Fetch the model again.") from error
    if not isinstance(told, dict):
        raise DataError(f"{file} is not what a model has there", "Fetch the model again.")
    return told


# ------------------------------------------------------------------------------------------ what it holds


def fingerprint(folder: Path) -> str:
    """A hash of what decides a model's answers, in milliseconds for any size.

    All of the small files; of the weights their table, their size, and some bytes from the middle of every tensor. A
    model that was trained further has the same table and size, but no tensor that was trained keeps its middle.
    """
    state = hashlib.sha256()
    for file in sorted({file for pattern in DECIDING for file in folder.glob(pattern)}):
        state.update(f"{file.name}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    for file in sorted(folder.glob("model*.safetensors")):
        state.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as weights:
            for piece in _pieces(weights, file):
                state.update(piece)
    return state.hexdigest()


def _pieces(weights: BinaryIO, file: Path) -> Iterator[bytes]:
    """The table of a safetensors file, and the middle of each tensor in it."""
    try:
        (length,) = struct.unpack("<Q", weights.read(8))
        header = weights.read(length)
        places = [row["data_offsets"] for name, row in sorted(json.loads(header).items()) if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, AttributeError, MemoryError, OverflowError) as error:
        raise DataError(f"{file} is no safetensors file: {error}", "Fetch the model again.") from error
    yield header
    for begin, end in places:
        weights.seek(8 + length + max(begin, (begin + end - PIECE) // 2))
        yield weights.read(min(PIECE, end - begin))
