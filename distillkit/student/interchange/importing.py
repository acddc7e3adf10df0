"""A student brought in: somebody else's checkpoint becomes a run that can be judged, benched, exported and begun with.

Read are a nanoGPT-on-MLX checkpoint (.npz), a nanoGPT or gpt2-nano checkpoint (.pt) and a folder of transformers. What
its file does not hold is asked for, not guessed silently. No file may run code: pickles are read as weights only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError  # only its name: torch raises it
from typing import Any

import mlx.core as mx
import numpy as np

from ...core.errors import CorruptError, UsageError
from ...core.files import file_digest, read_json, write_text
from ...core.run_folder import Run, creating
from ...data.tokenizer import Tokenizer, build
from ...plugins.manager import current_plugins
from ...recipe.schema import NAME, NAME_WORDS
from .. import checkpoint
from ..model.gpt import GPT, GPTConfig, named_parameters
from ..model.positions import sinusoidal_table
from ..trained import parameter_counts
from ..training.optimizers import unflatten
from . import hf_tokenizer, safetensors
from .hf_weights import Arrays, from_gpt2, from_llama, shape_of, turned

GPT2_TOKENS = 50257
PADDED = 50304  # what nanoGPT makes of it, for speed
SEED_HEADS = 8  # of nanoGPT-on-MLX, whose .npz does not say

IN_SEED = {
    "attention_norm": "ln1",
    "attention.qkv": "attn.qkv_proj",
    "attention.out": "attn.out_proj",
    "hidden_norm": "ln2",
    "up": "ff.fc1",
    "down": "ff.fc2",
}


@dataclass
class Found:
    """Somebody else's student, in our words."""

    kind: str
    shape: GPTConfig
    weights: Arrays
    notes: list[str] = field(default_factory=list)
    step: int = 0
    tokenizer: Tokenizer | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def read(path: Path, tokenizer: str | None, ranks: str | None, heads: int | None) -> Found:
    """The student of a file or folder, checked: every weight has its place, and every token its row."""
    with _told(path):
        found = _read(path, heads)
    found.tokenizer = _tokenizer(path, found.shape.vocab_size, tokenizer, ranks)
    with _told(path):
        _crop(found)
        _must_fit(found, path)
        model = GPT(found.shape)
    file = path / "model.safetensors" if path.is_dir() else path
    found.facts = {
        "imported": {"from": path.name, "kind": found.kind, "sha256": file_digest(file) if file.is_file() else None},
        "student": {"arch": "gpt", "parameters": parameter_counts(model)},
        "parameters": parameter_counts(model),
        "notes": found.notes,
    }
    return found


# What a file of others leads to that is not what it seems, in more ways than one would list.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say of whatever goes wrong inside that it is the file's fault."""
    try:
        yield
    except _DAMAGE as error:
        first = next(iter(str(error).splitlines()), "")[:200]
        raise CorruptError(f"{path} cannot be read: {type(error).__name__}: {first}", "Is it whole?") from error


def _read(path: Path, heads: int | None) -> Found:
    if path.is_dir():
        return _of_folder(path, heads)
    if path.suffix == ".npz":
        return _of_seed(path, _npz(path), _beside(path), heads)
    if path.suffix in (".pt", ".pth"):
        return _of_torch(path, heads)
    raise UsageError(
        f"{path} is none of the files that can be brought in",
        "An .npz of nanoGPT-on-MLX, a .pt of nanoGPT or gpt2-nano, or a folder of transformers.",
    )


# ------------------------------------------------------------------------------------------- nanoGPT-on-MLX


def _of_seed(path: Path, arrays: Arrays, config: Mapping[str, Any], heads: int | None) -> Found:
    if "token_embedding.weight" not in arrays:
        raise UsageError(f"{path} holds no nanoGPT-on-MLX student: there is no token_embedding.weight in it", _NAMES)
    notes = []
    said = heads or config.get("n_heads") or config.get("n_head")
    if said is None:
        notes.append(f"the file does not say how many attention heads it has; taken as {SEED_HEADS} (--heads N)")
    tokens, head = arrays["token_embedding.weight"], arrays.get("lm_head.weight")
    shape = GPTConfig(
        vocab_size=tokens.shape[0],
        layers=_layers(arrays, r"blocks\.(\d+)\."),
        heads=said or SEED_HEADS,
        width=tokens.shape[1],
        hidden=_array(arrays, "blocks.0.ff.fc1.weight", path).shape[0],
        context=_array(arrays, "position_embedding.weight", path).shape[0],
        dropout=float(config.get("dropout", 0.0)),
        tied=head is None or _same(head, tokens),
    )
    names = {"tokens.weight": "token_embedding.weight", "positions.weight": "position_embedding.weight"}
    for what in ("weight", "bias"):
        names[f"norm.{what}"] = f"ln_f.{what}"
        names |= {
            f"blocks.{i}.{n}.{what}": f"blocks.{i}.{t}.{what}" for i in range(shape.layers) for n, t in IN_SEED.items()
        }
    names |= {} if shape.tied else {"out.weight": "lm_head.weight"}
    if not shape.tied:
        notes.append("its head is not its token embedding, so both are kept")
    weights = {ours: _array(arrays, theirs, path) for ours, theirs in names.items()}
    return Found("nanoGPT-on-MLX", shape, weights, notes, _number(path.stem))


_NAMES = "docs/export.md lists the names that are known."


def _npz(path: Path) -> Arrays:
    """Arrays of numbers; those of objects would be pickles, which may run code."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: mx.array(np.asarray(file[name], np.float32)) for name in file.files}
    except ValueError as error:
        raise UsageError(f"{path} is refused: it holds a pickle, which may run code", "Save it as arrays.") from error
    except Exception as error:  # zipfile raises what it likes for a damaged file
        raise CorruptError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _beside(path: Path) -> dict[str, Any]:
    """The configuration that the seed writes beside its checkpoints."""
    for file in (path.with_name(f"{path.stem}_meta.json"), path.with_name("config.json")):
        if file.is_file():
            values = read_json(file)
            return dict(values.get("config", values))
    return {}


# ------------------------------------------------------------------------------------------------- PyTorch


def _of_torch(path: Path, heads: int | None) -> Found:
    saved = _unpickled(path)
    state = next((saved[key] for key in ("model", "model_state_dict", "state_dict") if key in saved), saved)
    config = saved.get("model_args") or saved.get("config") or {}
    plain = {re.sub(r"^(_orig_mod\.|module\.)+", "", name): value for name, value in state.items()}
    arrays = {name: _from_torch(value) for name, value in plain.items() if hasattr(value, "numpy")}
    if "input_embedding.weight" in arrays:
        found = _of_nano(path, arrays, config, heads)
    elif "transformer.wte.weight" in arrays:
        found = _of_nanogpt(path, arrays, config, heads)
    else:
        raise UsageError(f"{path} holds the weights of neither nanoGPT nor gpt2-nano", _NAMES)
    found.step = int(saved.get("iter_num") or saved.get("step") or 0)
    return found


def _unpickled(path: Path) -> dict[str, Any]:
    """What torch saved, as weights only: a pickle that wants to run code is refused."""
    try:
        import torch
    except ImportError as error:
        hint = 'Install it: pip install "distillkit[torch]", or bring a folder of transformers.'
        raise UsageError(f"{path} was written by PyTorch, which is not installed", hint) from error
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UsageError(
            f"{path} is refused: it holds more than weights, and reading it might run code",
            "Have its maker save the weights alone: torch.save(model.state_dict(), FILE).",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise CorruptError(f"{path} cannot be read: {type(error).__name__}: {first[:200]}") from error
    if not isinstance(saved, dict):
        raise UsageError(f"{path} holds a {type(saved).__name__}, not the weights of a model", _NAMES)
    return saved


def _from_torch(value: Any) -> mx.array:
    return mx.array(value.detach().float().numpy())


def _of_nanogpt(path: Path, arrays: Arrays, config: Mapping[str, Any], heads: int | None) -> Found:
    plain = {name.removeprefix("transformer."): value for name, value in arrays.items()}
    tokens, head = plain["wte.weight"], plain.get("lm_head.weight")
    shape = GPTConfig(
        vocab_size=tokens.shape[0],
        layers=_layers(plain, r"h\.(\d+)\."),
        heads=_heads(path, heads, config.get("n_head")),
        width=tokens.shape[1],
        hidden=_array(plain, "h.0.mlp.c_fc.weight", path).shape[0],
        context=_array(plain, "wpe.weight", path).shape[0],
        dropout=float(config.get("dropout", 0.0)),
        bias="h.0.attn.c_attn.bias" in plain,
        tied=head is None or _same(head, tokens),
    )
    try:
        return Found("nanoGPT", shape, from_gpt2(shape, plain))
    except KeyError as error:
        raise UsageError(f"{path} lacks {error}", _NAMES) from error


def _of_nano(path: Path, arrays: Arrays, config: Mapping[str, Any], heads: int | None) -> Found:
    tokens = arrays["input_embedding.weight"]
    width, layers = tokens.shape[1], _layers(arrays, r"blocks\.(\d+)\.")
    table = arrays.get("pos_embedding")
    context = int(config.get("context_len") or (table.shape[-2] if table is not None else 1024))
    fixed = table is None or bool(
        mx.allclose(table.reshape(-1, width), sinusoidal_table(context, width), atol=1e-3).item()
    )
    shape = GPTConfig(
        vocab_size=tokens.shape[0],
        layers=layers,
        heads=_heads(path, heads, config.get("num_heads")),
        width=width,
        hidden=_array(arrays, "blocks.0.mlp.0.weight", path).shape[0],
        context=context,
        dropout=float(config.get("dropout", 0.0)),
        tied=False,
        activation="relu",
        positions="sinusoidal" if fixed else "learned",
        attention_out=False,
        final_norm=False,
        head_bias="lm_head.bias" in arrays,
    )
    names = {"tokens.weight": "input_embedding.weight", "out.weight": "lm_head.weight"}
    names |= {"out.bias": "lm_head.bias"} if shape.head_bias else {}
    inner = {"attention_norm": "attn_norm", "hidden_norm": "mlp_norm", "up": "mlp.0", "down": "mlp.2"}
    weights: Arrays = {} if fixed or table is None else {"positions.weight": table.reshape(-1, width)}
    for i in range(layers):
        for what in ("weight", "bias"):
            names |= {f"blocks.{i}.{ours}.{what}": f"blocks.{i}.{t}.{what}" for ours, t in inner.items()}
            parts = [_array(arrays, f"blocks.{i}.{n}.{what}", path) for n in "QKV"]
            weights[f"blocks.{i}.attention.qkv.{what}"] = mx.concatenate(parts)
    weights |= {ours: _array(arrays, theirs, path) for ours, theirs in names.items()}
    note = "its tokens are gpt2-nano's own: with any other tokenizer its grades mean nothing until it is trained on"
    return Found("gpt2-nano", shape, weights, [note])


def _heads(path: Path, asked: int | None, said: Any) -> int:
    if not (asked or said):
        raise UsageError(f"{path} does not say how many attention heads it has", "Say it: --heads N")
    return int(asked or said)


# -------------------------------------------------------------------------------------------- transformers


def _of_folder(folder: Path, heads: int | None) -> Found:
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no config.json, so it is no folder of transformers", _NAMES)
    config = read_json(folder / "config.json")
    if "nanogpt" in str(config.get("model_type")).lower():
        return _of_seed(folder, _as_in_mlx(_safetensors(folder)), config, heads)
    shape, arrays = shape_of(config), _safetensors(folder)
    _options(shape)  # sizes that no student can have are refused before anybody counts to them
    gpt2 = config["model_type"] == "gpt2"
    if gpt2:
        arrays = turned({name.removeprefix("transformer."): value for name, value in arrays.items()})
    try:
        weights = (from_gpt2 if gpt2 else from_llama)(shape, arrays)
    except KeyError as error:
        raise UsageError(f"the weights in {folder} lack {error}", "Is it whole?") from error
    return Found("GPT-2 of transformers" if gpt2 else "Llama of transformers", shape, weights)


def _as_in_mlx(arrays: Arrays) -> Arrays:
    """The seed's own folder for transformers, which needs remote code there, under the names of its .npz."""
    return {name.removeprefix("transformer.").replace(".mlp.fc", ".ff.fc"): value for name, value in arrays.items()}


def _safetensors(folder: Path) -> Arrays:
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        parts = (item for file in files for item in safetensors.load(file).items())
        return {name: value.astype(mx.float32) for name, value in parts}
    if (folder / "pytorch_model.bin").is_file():
        saved = _unpickled(folder / "pytorch_model.bin")
        return {name: _from_torch(value) for name, value in saved.items() if hasattr(value, "numpy")}
    raise UsageError(f"{folder} holds neither model.safetensors nor pytorch_model.bin", "Is it whole?")


# ------------------------------------------------------------------------------------------- what they share


def _array(arrays: Mapping[str, mx.array], name: str, path: Path) -> mx.array:
    if name not in arrays:
        raise UsageError(f"{path} lacks {name}", _NAMES)
    return arrays[name]


def _layers(arrays: Mapping[str, mx.array], pattern: str) -> int:
    """How many blocks there are: as many as have a number, so that no name makes us count to a billion."""
    return len({m[1] for name in arrays if (m := re.match(pattern, name))})


def _same(one: mx.array, other: mx.array) -> bool:
    return one.shape == other.shape and bool(mx.array_equal(one, other).item())


def _number(stem: str) -> int:
    """The step in a name such as checkpoint_20000."""
    found = re.search(r"(\d+)$", stem)
    return int(found[1]) if found else 0


def _tokenizer(path: Path, vocab_size: int, kind: str | None, ranks: str | None) -> Tokenizer:
    if kind is None and path.is_dir():
        return hf_tokenizer.read(path)
    if kind is None and vocab_size not in (GPT2_TOKENS, PADDED):
        raise UsageError(
            f"{path} does not hold its tokenizer, and of {vocab_size:,} tokens nobody knows which",
            "Name it: --tokenizer with a folder that holds tokenizer.json, or a run.",
        )
    folder = Path(kind or "")
    if kind and any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        return hf_tokenizer.read(folder)
    return build(kind or "gpt2", ranks=ranks)


def _crop(found: Found) -> None:
    """Leave out the rows of the vocabulary that no token has: padding, which nothing was learnt for."""
    size, tokens = found.tokenizer.vocab_size if found.tokenizer else 0, found.shape.vocab_size
    if size > tokens:
        raise UsageError(
            f"the student has {tokens:,} tokens, and its tokenizer {size:,}", "Name the one that it was trained with."
        )
    if size < tokens:
        rows = ("tokens.weight", "out.weight", "out.bias")
        found.weights |= {name: found.weights[name][:size] for name in rows if name in found.weights}
        found.shape = replace(found.shape, vocab_size=size)
        found.notes.append(f"{tokens - size} of its {tokens:,} rows stand for no token and were left out")


def _must_fit(found: Found, path: Path) -> None:
    shape = found.shape
    if shape.width % shape.heads:
        raise UsageError(f"{shape.heads} heads do not divide the width {shape.width}", "Say it: --heads N")
    expected = {name: value.shape for name, value in named_parameters(GPT(shape)).items()}
    wrong = [name for name in expected if found.weights.get(name, mx.array(0)).shape != expected[name]]
    if wrong:
        raise UsageError(f"the weights in {path} do not fit together: {', '.join(wrong[:4])}", "Is it whole?")


def name_of(path: Path) -> str:
    """The name of a run, made of that of a file."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", path.resolve().stem).lstrip("_.-")[:80] or "imported"


def run_of(found: Found, name: str, base: Mapping[str, Any], facts: Mapping[str, Any]) -> Run:
    """A run folder with the student's checkpoint, tokenizer, record and recipe."""
    import tomli_w

    if not re.match(NAME, name) or name == "latest":
        raise UsageError(f"a run cannot be called {name!r}", f"Expected {NAME_WORDS}: --name NAME")
    assert found.tokenizer is not None
    options = _options(found.shape)
    state = {"step": found.step, **found.facts["imported"]}
    student = {"arch": "gpt", "options": options, "vocab_size": found.shape.vocab_size}
    model = GPT(found.shape)
    model.update(unflatten(found.weights))
    kept = {key: value for key, value in base.items() if key in ("data", "judge", "sampling", "plugins", "seed")}
    told = {key: value for key, value in options.items() if value is not None}
    tokens = {"kind": found.tokenizer.kind, "vocab_size": found.tokenizer.vocab_size}
    with creating(name, {"recipe": name, "seed": None, **facts}) as (run, part):
        found.tokenizer.save(part.tokenizer)
        checkpoint.save(
            checkpoint.step_folder(part.checkpoints, found.step), named_parameters(model), None, student, state
        )
        recipe = {**kept, "name": name, "tokenizer": {"kind": run.name}, "student": {"arch": "gpt", **told}}
        write_text(part.recipe, tomli_w.dumps(recipe))
        part.record(
            status="done",
            tokenizer={**tokens, "fingerprint": found.tokenizer.fingerprint},
            imported=found.facts["imported"],
            student=found.facts["student"],
            training={"steps": found.step} if found.step else {},
        )
    return run


def _options(shape: GPTConfig) -> dict[str, Any]:
    """The options of the gpt plugin that make this shape, as a recipe would have them."""
    values = {key: value for key, value in shape.__dict__.items() if key != "vocab_size"}
    values["hidden"] = None if shape.hidden == 4 * shape.width else shape.hidden
    values["kv_heads"] = None if shape.num_kv_heads == shape.heads else shape.kv_heads
    options = current_plugins().options("students", "gpt", values, file="the import", table="student", folder=Path())
    return options.model_dump(mode="json")
