"""Model folders: location, configuration and fingerprint. Reads files, but does not load models."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from distillkit import DataError, UsageError

# The files that mlx-lm downloads of a model.
FILES = ["*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jsonl", "*.jinja"]
FINGERPRINTED = ("*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "*.txt")  # in full, besides the weights
SAMPLE_SIZE = 4096  # bytes read from the middle of each tensor


def locate(model: str, download: bool) -> Path:
    """The folder of a model: the given path, or its folder in the Hugging Face cache."""
    path = Path(model).expanduser()
    if (path / "config.json").is_file():
        return path
    if path.exists():
        raise DataError(f"{model} is not a model folder: config.json is missing", "Name a folder that mlx-lm can load.")
    return _locate_on_hub(model, download)


def _locate_on_hub(model: str, download: bool) -> Path:
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _snapshot(model, local_files_only=True)
    except HFValidationError as error:
        raise UsageError(
            f"there is no model folder {model!r}, and it is not a valid name on the Hub", "Check teacher.model."
        ) from error
    except LocalEntryNotFoundError as error:
        if not download:
            raise UsageError(
                f"the model {model!r} is neither a folder nor downloaded",
                f"Download it: hf download {model}. Or set teacher.download = true.",
            ) from error
    try:
        return _snapshot(model)
    except (OSError, ValueError) as error:  # of the Hub or the network
        message = " ".join(str(error).split())[:200]
        raise UsageError(
            f"the model {model!r} could not be downloaded: {message}", "Check its name and the network."
        ) from error


def _snapshot(model: str, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=FILES, **options))


# --------------------------------------------------------------------------------------------- configuration


def config(folder: Path) -> dict[str, Any]:
    """The content of config.json."""
    return _json(folder / "config.json")


def quantisation(folder: Path) -> dict[str, Any] | None:
    """Bits, group size and mode of quantized weights; None if they are not quantized."""
    values = config(folder)
    settings = values.get("quantization") or values.get("quantization_config") or {}
    return {key: settings[key] for key in ("bits", "group_size", "mode", "quant_method") if key in settings} or None


def has_chat_template(folder: Path) -> bool:
    """Whether the model has a chat template."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    file = folder / "tokenizer_config.json"
    return file.is_file() and any(_json(file).get(key) for key in ("chat_template", "chat_template_type"))


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}", "Download the model again.") from error
    if not isinstance(values, dict):
        raise DataError(f"{file} does not contain a JSON object", "Download the model again.")
    return values


# -------------------------------------------------------------------------------------------- fingerprint


def fingerprint(folder: Path) -> str:
    """A hash of everything that determines a model's answers. Takes milliseconds for any model size.

    It covers the small files, and for weight files the header, the size and a sample from the middle of every tensor.
    Further training keeps header and size, but changes the samples of trained tensors.
    """
    state = hashlib.sha256()
    for file in sorted({file for pattern in FINGERPRINTED for file in folder.glob(pattern)}):
        state.update(f"{file.name}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    for file in sorted(folder.glob("model*.safetensors")):
        state.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as weights:
            for sample in _samples(weights, file):
                state.update(sample)
    return state.hexdigest()


def _samples(weights: BinaryIO, file: Path) -> Iterator[bytes]:
    """The header of a safetensors file, and bytes from the middle of each tensor."""
    try:
        (length,) = struct.unpack("<Q", weights.read(8))
        header = weights.read(length)
        offsets = [row["data_offsets"] for name, row in sorted(json.loads(header).items()) if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, AttributeError, MemoryError, OverflowError) as error:
        raise DataError(f"{file} is not a safetensors file: {error}", "Download the model again.") from error
    yield header
    for begin, end in offsets:
        weights.seek(8 + length + max(begin, (begin + end - SAMPLE_SIZE) // 2))
        yield weights.read(min(SAMPLE_SIZE, end - begin))
