"""Import of other checkpoints: a run is created that can be judged, benchmarked, exported and used as a start.

Supported are nanoGPT-on-MLX checkpoints (.npz), nanoGPT and gpt2-nano checkpoints (.pt) and transformers folders. What
a file does not contain must be given by an option or is reported in a note. No file can run code: pickles are read as
weights only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError  # raised by torch; nothing is unpickled here
from typing import Any

import mlx.core as mx
import numpy as np

from ...core.errors import CorruptError, UsageError
from ...core.files import file_digest, read_json, write_text
from ...core.run_folder import Run, new_run_folder
from ...data.tokenizer import Tokenizer, build
from ...plugins.manager import current_plugins
from ...recipe.schema import NAME, NAME_WORDS
from .. import checkpoint
from ..model.gpt import GPT, GPTConfig, named_parameters
from ..model.positions import sinusoidal_table
from ..trained import parameter_counts
from ..training.optimizers import unflatten
from . import hf_tokenizer, safetensors
from .hf_weights import Arrays, from_gpt2, from_llama, gpt_config_from_hf, transpose_conv1d

GPT2_TOKENS = 50257
PADDED_GPT2_TOKENS = 50304  # nanoGPT pads the vocabulary for speed
DEFAULT_HEADS = 8  # of nanoGPT-on-MLX, whose .npz does not contain the number

MLX_NANOGPT_NAMES = {  # distillkit's names of a block's weights, and those of nanoGPT-on-MLX
    "attention_norm": "ln1",
    "attention.qkv": "attn.qkv_proj",
    "attention.out": "attn.out_proj",
    "hidden_norm": "ln2",
    "up": "ff.fc1",
    "down": "ff.fc2",
}


@dataclass
class ImportedModel:
    """An imported model, with a GPTConfig and the weight names of distillkit."""

    kind: str
    config: GPTConfig
    weights: Arrays
    notes: list[str] = field(default_factory=list)
    step: int = 0
    tokenizer: Tokenizer | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def read_model(path: Path, tokenizer: str | None, ranks: str | None, heads: int | None) -> ImportedModel:
    """Read and validate the model of a file or folder: weights, configuration and tokenizer must fit together."""
    with _report_damage(path):
        imported = _read(path, heads)
    imported.tokenizer = _find_tokenizer(path, imported.config.vocab_size, tokenizer, ranks)
    with _report_damage(path):
        _drop_unused_rows(imported)
        _check_shapes(imported, path)
        model = GPT(imported.config)
    file = path / "model.safetensors" if path.is_dir() else path
    imported.metadata = {
        "imported": {"from": path.name, "kind": imported.kind, "sha256": file_digest(file) if file.is_file() else None},
        "student": {"arch": "gpt", "parameters": parameter_counts(model)},
        "parameters": parameter_counts(model),
        "notes": imported.notes,
    }
    return imported


# What an invalid file may raise.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@contextmanager
def _report_damage(path: Path) -> Iterator[None]:
    """Turn exceptions inside into an error that names the file."""
    try:
        yield
    except _DAMAGE as error:
        first = next(iter(str(error).splitlines()), "")[:200]
        raise CorruptError(
            f"{path} cannot be read: {type(error).__name__}: {first}", "Check that it is complete."
        ) from error


def _read(path: Path, heads: int | None) -> ImportedModel:
    if path.is_dir():
        return _read_transformers(path, heads)
    if path.suffix == ".npz":
        return _read_mlx_nanogpt(path, _load_npz(path), _config_beside(path), heads)
    if path.suffix in (".pt", ".pth"):
        return _read_torch(path, heads)
    raise UsageError(
        f"{path} cannot be imported",
        "Expected an .npz of nanoGPT-on-MLX, a .pt of nanoGPT or gpt2-nano, or a transformers folder.",
    )


# ------------------------------------------------------------------------------------------- nanoGPT-on-MLX


def _read_mlx_nanogpt(path: Path, arrays: Arrays, saved_config: Mapping[str, Any], heads: int | None) -> ImportedModel:
    if "token_embedding.weight" not in arrays:
        raise UsageError(f"{path} is not a nanoGPT-on-MLX checkpoint: it has no token_embedding.weight", _NAMES_HINT)
    notes = []
    heads = heads or saved_config.get("n_heads") or saved_config.get("n_head")
    if heads is None:
        notes.append(f"the file does not contain the number of attention heads: assuming {DEFAULT_HEADS} (--heads N)")
    tokens, head = arrays["token_embedding.weight"], arrays.get("lm_head.weight")
    config = GPTConfig(
        vocab_size=tokens.shape[0],
        layers=_count_layers(arrays, r"blocks\.(\d+)\."),
        heads=heads or DEFAULT_HEADS,
        width=tokens.shape[1],
        hidden=_get_array(arrays, "blocks.0.ff.fc1.weight", path).shape[0],
        context=_get_array(arrays, "position_embedding.weight", path).shape[0],
        dropout=float(saved_config.get("dropout", 0.0)),
        tied=head is None or _arrays_equal(head, tokens),
    )
    names = {"tokens.weight": "token_embedding.weight", "positions.weight": "position_embedding.weight"}
    for what in ("weight", "bias"):
        names[f"norm.{what}"] = f"ln_f.{what}"
        names |= {
            f"blocks.{i}.{n}.{what}": f"blocks.{i}.{t}.{what}"
            for i in range(config.layers)
            for n, t in MLX_NANOGPT_NAMES.items()
        }
    names |= {} if config.tied else {"out.weight": "lm_head.weight"}
    if not config.tied:
        notes.append("the head differs from the token embedding, so it is imported untied")
    weights = {name: _get_array(arrays, source, path) for name, source in names.items()}
    return ImportedModel("nanoGPT-on-MLX", config, weights, notes, _step_in_name(path.stem))


_NAMES_HINT = "docs/export.md lists the supported names."


def _load_npz(path: Path) -> Arrays:
    """The numeric arrays of a file. Object arrays are refused: they are pickles, which may run code."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: mx.array(np.asarray(file[name], np.float32)) for name in file.files}
    except ValueError as error:
        raise UsageError(
            f"{path} is refused: it contains a pickle, which may run code", "Save it as plain arrays."
        ) from error
    except Exception as error:  # zipfile raises many kinds of errors for a damaged file
        raise CorruptError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _config_beside(path: Path) -> dict[str, Any]:
    """The configuration that nanoGPT-on-MLX writes beside its checkpoints; empty if there is none."""
    for file in (path.with_name(f"{path.stem}_meta.json"), path.with_name("config.json")):
        if file.is_file():
            values = read_json(file)
            return dict(values.get("config", values))
    return {}


# ------------------------------------------------------------------------------------------------- PyTorch


def _read_torch(path: Path, heads: int | None) -> ImportedModel:
    saved = _load_torch(path)
    state = next((saved[key] for key in ("model", "model_state_dict", "state_dict") if key in saved), saved)
    saved_config = saved.get("model_args") or saved.get("config") or {}
    plain = {re.sub(r"^(_orig_mod\.|module\.)+", "", name): value for name, value in state.items()}
    arrays = {name: _to_mlx(value) for name, value in plain.items() if hasattr(value, "numpy")}
    if "input_embedding.weight" in arrays:
        imported = _read_gpt2_nano(path, arrays, saved_config, heads)
    elif "transformer.wte.weight" in arrays:
        imported = _read_nanogpt(path, arrays, saved_config, heads)
    else:
        raise UsageError(f"{path} contains weights of neither nanoGPT nor gpt2-nano", _NAMES_HINT)
    imported.step = int(saved.get("iter_num") or saved.get("step") or 0)
    return imported


def _load_torch(path: Path) -> dict[str, Any]:
    """The contents of a file of torch, read as weights only: a pickle that would run code is refused."""
    try:
        import torch
    except ImportError as error:
        hint = 'Install it: pip install "distillkit[torch]", or import a transformers folder.'
        raise UsageError(f"{path} was written by PyTorch, which is not installed", hint) from error
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UsageError(
            f"{path} is refused: it contains more than weights, and reading it might run code",
            "It must be saved with weights only: torch.save(model.state_dict(), FILE).",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise CorruptError(f"{path} cannot be read: {type(error).__name__}: {first[:200]}") from error
    if not isinstance(saved, dict):
        raise UsageError(f"{path} contains a {type(saved).__name__}, not the weights of a model", _NAMES_HINT)
    return saved


def _to_mlx(value: Any) -> mx.array:
    return mx.array(value.detach().float().numpy())


def _read_nanogpt(path: Path, arrays: Arrays, saved_config: Mapping[str, Any], heads: int | None) -> ImportedModel:
    plain = {name.removeprefix("transformer."): value for name, value in arrays.items()}
    tokens, head = plain["wte.weight"], plain.get("lm_head.weight")
    config = GPTConfig(
        vocab_size=tokens.shape[0],
        layers=_count_layers(plain, r"h\.(\d+)\."),
        heads=_heads(path, heads, saved_config.get("n_head")),
        width=tokens.shape[1],
        hidden=_get_array(plain, "h.0.mlp.c_fc.weight", path).shape[0],
        context=_get_array(plain, "wpe.weight", path).shape[0],
        dropout=float(saved_config.get("dropout", 0.0)),
        bias="h.0.attn.c_attn.bias" in plain,
        tied=head is None or _arrays_equal(head, tokens),
    )
    try:
        return ImportedModel("nanoGPT", config, from_gpt2(config, plain))
    except KeyError as error:
        raise UsageError(f"{path} lacks {error}", _NAMES_HINT) from error


def _read_gpt2_nano(path: Path, arrays: Arrays, saved_config: Mapping[str, Any], heads: int | None) -> ImportedModel:
    tokens = arrays["input_embedding.weight"]
    width, layers = tokens.shape[1], _count_layers(arrays, r"blocks\.(\d+)\.")
    table = arrays.get("pos_embedding")
    context = int(saved_config.get("context_len") or (table.shape[-2] if table is not None else 1024))
    fixed = table is None or _arrays_close(table.reshape(-1, width), sinusoidal_table(context, width))
    config = GPTConfig(
        vocab_size=tokens.shape[0],
        layers=layers,
        heads=_heads(path, heads, saved_config.get("num_heads")),
        width=width,
        hidden=_get_array(arrays, "blocks.0.mlp.0.weight", path).shape[0],
        context=context,
        dropout=float(saved_config.get("dropout", 0.0)),
        tied=False,
        activation="relu",
        positions="sinusoidal" if fixed else "learned",
        attention_out=False,
        final_norm=False,
        head_bias="lm_head.bias" in arrays,
    )
    names = {"tokens.weight": "input_embedding.weight", "out.weight": "lm_head.weight"}
    names |= {"out.bias": "lm_head.bias"} if config.head_bias else {}
    inner = {"attention_norm": "attn_norm", "hidden_norm": "mlp_norm", "up": "mlp.0", "down": "mlp.2"}
    weights: Arrays = {} if fixed or table is None else {"positions.weight": table.reshape(-1, width)}
    for i in range(layers):
        for what in ("weight", "bias"):
            names |= {f"blocks.{i}.{name}.{what}": f"blocks.{i}.{t}.{what}" for name, t in inner.items()}
            parts = [_get_array(arrays, f"blocks.{i}.{n}.{what}", path) for n in "QKV"]
            weights[f"blocks.{i}.attention.qkv.{what}"] = mx.concatenate(parts)
    weights |= {name: _get_array(arrays, source, path) for name, source in names.items()}
    note = (
        "its tokens are those of gpt2-nano: with another tokenizer, grades are meaningless until it is trained further"
    )
    return ImportedModel("gpt2-nano", config, weights, [note])


def _heads(path: Path, option: int | None, configured: Any) -> int:
    if not (option or configured):
        raise UsageError(f"{path} does not contain the number of attention heads", "Set --heads N.")
    return int(option or configured)


# -------------------------------------------------------------------------------------------- transformers


def _read_transformers(folder: Path, heads: int | None) -> ImportedModel:
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} has no config.json, so it is not a transformers folder", _NAMES_HINT)
    saved_config = read_json(folder / "config.json")
    if "nanogpt" in str(saved_config.get("model_type")).lower():
        return _read_mlx_nanogpt(folder, _mlx_nanogpt_names(_load_folder_weights(folder)), saved_config, heads)
    config, arrays = gpt_config_from_hf(saved_config), _load_folder_weights(folder)
    _gpt_options(config)  # refuses invalid sizes before anything loops over them
    gpt2 = saved_config["model_type"] == "gpt2"
    if gpt2:
        arrays = transpose_conv1d({name.removeprefix("transformer."): value for name, value in arrays.items()})
    try:
        weights = (from_gpt2 if gpt2 else from_llama)(config, arrays)
    except KeyError as error:
        raise UsageError(f"the weights in {folder} lack {error}", "Check that the folder is complete.") from error
    return ImportedModel("GPT-2 of transformers" if gpt2 else "Llama of transformers", config, weights)


def _mlx_nanogpt_names(arrays: Arrays) -> Arrays:
    """Weights that nanoGPT-on-MLX published for transformers with remote code, under the names of its .npz."""
    return {name.removeprefix("transformer.").replace(".mlp.fc", ".ff.fc"): value for name, value in arrays.items()}


def _load_folder_weights(folder: Path) -> Arrays:
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        parts = (item for file in files for item in safetensors.load(file).items())
        return {name: value.astype(mx.float32) for name, value in parts}
    if (folder / "pytorch_model.bin").is_file():
        saved = _load_torch(folder / "pytorch_model.bin")
        return {name: _to_mlx(value) for name, value in saved.items() if hasattr(value, "numpy")}
    raise UsageError(
        f"{folder} has neither model.safetensors nor pytorch_model.bin", "Check that the folder is complete."
    )


# ---------------------------------------------------------------------------------------------- common parts


def _get_array(arrays: Mapping[str, mx.array], name: str, path: Path) -> mx.array:
    if name not in arrays:
        raise UsageError(f"{path} lacks {name}", _NAMES_HINT)
    return arrays[name]


def _count_layers(arrays: Mapping[str, mx.array], pattern: str) -> int:
    """The number of distinct block numbers in the names. The largest number is not trusted: it could be a billion."""
    return len({m[1] for name in arrays if (m := re.match(pattern, name))})


def _arrays_equal(one: mx.array, other: mx.array) -> bool:
    return one.shape == other.shape and bool(mx.array_equal(one, other).item())


def _arrays_close(one: mx.array, other: mx.array) -> bool:
    return bool(mx.allclose(one, other, atol=1e-3).item())


def _step_in_name(stem: str) -> int:
    """The step in a name such as checkpoint_20000."""
    match = re.search(r"(\d+)$", stem)
    return int(match[1]) if match else 0


def _find_tokenizer(path: Path, vocab_size: int, kind: str | None, ranks: str | None) -> Tokenizer:
    if kind is None and path.is_dir():
        return hf_tokenizer.read_tokenizer(path)
    if kind is None and vocab_size not in (GPT2_TOKENS, PADDED_GPT2_TOKENS):
        raise UsageError(
            f"{path} does not contain its tokenizer, and a vocabulary of {vocab_size:,} tokens does not identify one",
            "Name it: --tokenizer with a folder that contains tokenizer.json, or a run.",
        )
    folder = Path(kind or "")
    if kind and any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        return hf_tokenizer.read_tokenizer(folder)
    return build(kind or "gpt2", ranks=ranks)


def _drop_unused_rows(imported: ImportedModel) -> None:
    """Drop the rows of the embeddings and the head that belong to no token (padding)."""
    size, tokens = imported.tokenizer.vocab_size if imported.tokenizer else 0, imported.config.vocab_size
    if size > tokens:
        raise UsageError(
            f"the model has {tokens:,} tokens, but the tokenizer has {size:,}", "Name the one that it was trained with."
        )
    if size < tokens:
        rows = ("tokens.weight", "out.weight", "out.bias")
        imported.weights |= {name: imported.weights[name][:size] for name in rows if name in imported.weights}
        imported.config = replace(imported.config, vocab_size=size)
        imported.notes.append(f"{tokens - size} of its {tokens:,} vocabulary rows belong to no token and were dropped")


def _check_shapes(imported: ImportedModel, path: Path) -> None:
    config = imported.config
    if config.width % config.heads:
        raise UsageError(f"{config.heads} heads do not divide the width {config.width}", "Set --heads N.")
    expected = {name: value.shape for name, value in named_parameters(GPT(config)).items()}
    wrong = [name for name in expected if imported.weights.get(name, mx.array(0)).shape != expected[name]]
    if wrong:
        raise UsageError(
            f"weights in {path} have inconsistent shapes: {', '.join(wrong[:4])}", "Check that the file is complete."
        )


def default_run_name(path: Path) -> str:
    """A valid run name made from the name of a file."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", path.resolve().stem).lstrip("_.-")[:80] or "imported"


def create_imported_run(imported: ImportedModel, name: str, base: Mapping[str, Any], info: Mapping[str, Any]) -> Run:
    """Create a run with the model's checkpoint, tokenizer, run.json and recipe.

    `base` is a recipe that lends its data and judges; `info` goes into run.json.
    """
    import tomli_w

    if not re.match(NAME, name) or name == "latest":
        raise UsageError(f"{name!r} is not a valid run name", f"Expected {NAME_WORDS}: --name NAME")
    assert imported.tokenizer is not None
    options = _gpt_options(imported.config)
    state = {"step": imported.step, **imported.metadata["imported"]}
    student = {"arch": "gpt", "options": options, "vocab_size": imported.config.vocab_size}
    model = GPT(imported.config)
    model.update(unflatten(imported.weights))
    shared = {key: value for key, value in base.items() if key in ("data", "judge", "sampling", "plugins", "seed")}
    set_options = {key: value for key, value in options.items() if value is not None}
    tokens = {"kind": imported.tokenizer.kind, "vocab_size": imported.tokenizer.vocab_size}
    with new_run_folder(name, {"recipe": name, "seed": None, **info}) as (run, part):
        imported.tokenizer.save(part.tokenizer)
        folder = checkpoint.step_folder(part.checkpoints, imported.step)
        checkpoint.save(folder, named_parameters(model), None, student, state)
        recipe = {**shared, "name": name, "tokenizer": {"kind": run.name}, "student": {"arch": "gpt", **set_options}}
        write_text(part.recipe, tomli_w.dumps(recipe))
        part.record(
            status="done",
            tokenizer={**tokens, "fingerprint": imported.tokenizer.fingerprint},
            imported=imported.metadata["imported"],
            student=imported.metadata["student"],
            training={"steps": imported.step} if imported.step else {},
        )
    return run


def _gpt_options(config: GPTConfig) -> dict[str, Any]:
    """The options of the gpt plugin that result in this configuration, as in a recipe."""
    values = {key: value for key, value in config.__dict__.items() if key != "vocab_size"}
    values["hidden"] = None if config.hidden == 4 * config.width else config.hidden
    values["kv_heads"] = None if config.num_kv_heads == config.heads else config.kv_heads
    options = current_plugins().options("students", "gpt", values, file="the import", table="student", folder=Path())
    return options.model_dump(mode="json")
