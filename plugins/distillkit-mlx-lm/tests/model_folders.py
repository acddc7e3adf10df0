"""Small model folders: random weights, a tokenizer trained here, and all files that a real model has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distillkit_mlx_lm.vocabulary import _byte_alphabet
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from distillkit.student import blas

blas.load()

import mlx.core as mx  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

TEXT = (
    "Once upon a time there was a little fox. The fox lived in a wood, and every day she went to the river. "
    '"It\'s a fine day," said the fox; "I\'ll swim!" The 3 ducks of 2024 didn\'t like it. Grüße, 你好, 🦊🦆! '
) * 20
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(special: list[str] = SPECIAL, size: int = 400, digits: bool = False, without: bytes = b"") -> Tokenizer:
    """A byte-level BPE, as GPT-2's; with `digits` as SmolLM2's; it may have no token for some bytes."""
    made = Tokenizer(models.BPE())
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    first = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*first, as_bytes]) if digits else as_bytes
    made.decoder = decoders.ByteLevel()
    letters = {byte: letter for letter, byte in _byte_alphabet().items() if byte not in without}
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=[*letters.values()], show_progress=False
    )
    made.train_from_iterator([TEXT], trainer)
    return made


def sentencepiece() -> Tokenizer:
    """A BPE as SentencePiece makes them: low line blocks for blanks, tokens for single bytes."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    blank = normalizers.Replace(" ", "\u2581")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), blank])
    as_blank = decoders.Replace("\u2581", " ")
    made.decoder = decoders.Sequence([as_blank, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"]
    plain = TEXT.encode("ascii", "ignore").decode()
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    made.train_from_iterator(
        [plain], trainers.BpeTrainer(vocab_size=600, special_tokens=[*special, *in_bytes], show_progress=False)
    )
    config = json.loads(made.to_str())
    config["added_tokens"] = [row for row in config["added_tokens"] if row["content"] in special]
    return Tokenizer.from_str(json.dumps(config))


def write_folder(
    folder: Path, tokenizer: Tokenizer, arch: str = "llama", change: Callable[[Any], Any] | None = None, **config: Any
) -> Path:
    """A model folder; `change` may make another network of the first, and returns more of its config."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = {"vocab_size": tokenizer.get_vocab_size(), "tie_word_embeddings": True, **SHAPES[arch], **config}
    network = build(arch, shape)
    more = change(network) if change else {}
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())))
    (folder / "config.json").write_text(json.dumps({"model_type": arch, **shape, **(more or {})}))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = set(tokenizer.get_vocab())
    end = "</s>" if "</s>" in names else "<|im_end|>" if "<|im_end|>" in names else "<|endoftext|>"
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
    },
    "gpt2": {
        "n_ctx": 256,
        "n_positions": 256,
        "n_embd": 32,
        "n_head": 4,
        "n_layer": 2,
        "layer_norm_epsilon": 1e-5,
        "num_key_value_heads": 4,
    },
}


def build(arch: str, shape: dict[str, Any]) -> Any:
    """A network with random weights, large enough that its words differ."""
    from importlib import import_module

    module = import_module(f"mlx_lm.models.{arch}")
    mx.random.seed(7)
    network = module.Model(module.ModelArgs.from_dict({"model_type": arch, **shape}))
    network.apply(lambda value: value * 3 if value.ndim > 1 else value)
    mx.eval(network.parameters())
    return network
