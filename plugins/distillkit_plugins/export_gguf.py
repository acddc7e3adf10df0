"""The exporter `gguf`: one file for llama.cpp, as a gpt2 or llama model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distillkit import Exporter, UsageError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import mlx.core as mx

    from distillkit.data.tokenizer import Tokenizer
    from distillkit.student.interchange.exporting import Arrays, ConvertedModel, Reader
    from distillkit.student.model.gpt import GPTConfig

FILE = "model.gguf"
USE = f"""```sh
llama-cli -m path/to/it/{FILE} -p "One day" -n 100 -no-cnv
```"""
NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "lm_head": "output",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
}
BLOCK_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class Gguf(Exporter):
    """For llama.cpp: one file with float32 weights and tokenizer."""

    name = "gguf"

    def export(self, run: Any, folder: Path) -> list[str]:
        """Write the file, load it again and compare its output with the student's."""
        from distillkit.student.interchange import exporting, hf_tokenizer

        student, network = exporting.load_student(run)
        converted = exporting.convert(network)
        notes = [f"as {converted.family}", *converted.notes, *compatibility_notes(converted)]
        if obstacle := hf_tokenizer.bpe_obstacle(student.tokenizer):
            raise UsageError(
                f"a GGUF file contains the tokenizer, but {obstacle}", "Export it for transformers: --format hf"
            )
        exporting.require_package("gguf", "gguf", "export-gguf")
        folder.mkdir(parents=True, exist_ok=True)
        save(folder / FILE, converted, student.tokenizer, run.path.resolve().parent.name)

        def reader() -> Reader:
            return open_exported(folder / FILE, converted)

        metadata = {"format": self.name, "notes": notes, "library": "gguf", "use": USE}
        bounds = exporting.Bounds(exact=False, perplexity=0.01, why="Nothing was kept.")
        return exporting.finish(run, folder, student, reader, bounds, metadata)


def compatibility_notes(converted: ConvertedModel) -> list[str]:
    """Notes on differences in llama.cpp's implementation. Raises a UsageError if it cannot represent the student."""
    shape = converted.config
    if converted.family == "gpt2" and shape.activation == "relu":
        raise UsageError(
            "llama.cpp's gpt2 supports only tanh GELU, but this student uses relu",
            "Export it for transformers: --format hf",
        )
    if converted.family == "gpt2" and shape.activation == "gelu":
        return ["llama.cpp approximates exact GELU by the tanh formula, which differs by up to 0.0005"]
    return []


def save(file: Path, converted: ConvertedModel, tokenizer: Tokenizer, name: str) -> None:
    """Write metadata, tokenizer and weights."""
    import gguf
    import mlx.core as mx
    import numpy as np

    writer = gguf.GGUFWriter(str(file), converted.family)
    writer.add_name(name)
    _write_metadata(writer, converted)
    _write_tokenizer(writer, tokenizer)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, value in gguf_weights(converted).items():
        writer.add_tensor(name, np.array(value.astype(mx.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_metadata(writer: Any, converted: ConvertedModel) -> None:
    from distillkit.student.interchange.hf_weights import NORM_EPS, ROPE_THETA

    shape, pairs = (
        converted.config,
        converted.config.heads if converted.family == "gpt2" else converted.config.num_kv_heads,
    )
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(pairs)
    writer.add_vocab_size(shape.vocab_size)
    if converted.family == "gpt2":
        writer.add_layer_norm_eps(NORM_EPS)
    else:
        writer.add_layer_norm_rms_eps(NORM_EPS)
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_rope_freq_base(ROPE_THETA)


def _write_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    """Write the vocabulary in GPT-2's byte alphabet; unused ids get placeholder names."""
    import gguf

    from distillkit.student.interchange import hf_tokenizer

    pieces = [f"<|unused_{token}|>" for token in range(tokenizer.vocab_size)]
    types = [gguf.TokenType.UNUSED] * tokenizer.vocab_size
    for piece, token in tokenizer.ranks.items():
        pieces[token], types[token] = hf_tokenizer.token_to_unicode(piece), gguf.TokenType.NORMAL
    for special, token in tokenizer.special.items():
        pieces[token], types[token] = special, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    writer.add_token_merges([f"{left} {right}" for left, right in hf_tokenizer.merge_pairs(tokenizer)])
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(True)  # the student's texts begin after an end-of-text token


def gguf_weights(converted: ConvertedModel) -> Arrays:
    """The weights under GGUF's names."""
    weights = {}
    for name, value in converted.weights.items():
        module, _, what = name.rpartition(".")
        if module.endswith(("q_proj", "k_proj")):
            value = interleave(value, converted.config)
        weights[f"{_module(module)}.{what}"] = value
    return weights


def _module(module: str) -> str:
    if module in NAMES:
        return NAMES[module]
    number, _, inner = module.removeprefix("model.layers.").removeprefix("h.").partition(".")
    return f"blk.{number}.{BLOCK_NAMES[inner]}"


def interleave(value: mx.array, shape: GPTConfig) -> mx.array:
    """Query or key rows in llama.cpp's order: the two coordinates that rope rotates are adjacent."""
    halves = value.reshape(-1, 2, shape.head_dim // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


def deinterleave(value: mx.array, shape: GPTConfig) -> mx.array:
    """The inverse of `interleave`."""
    pairs = value.reshape(-1, shape.head_dim // 2, 2, *value.shape[1:])
    return pairs.swapaxes(1, 2).reshape(value.shape)


def open_exported(file: Path, converted: ConvertedModel) -> Reader:
    """The file loaded by llama.cpp, or read back by distillkit if llama_cpp is not installed."""
    from importlib.util import find_spec

    if find_spec("llama_cpp"):
        return LlamaCpp(file, converted.config.context)
    from distillkit.student.interchange.exporting import network_from_weights, package_versions

    by = f"reading the file back with {package_versions('gguf')} (llama_cpp is not installed)"
    shape = converted.exported_config
    if converted.family == "gpt2":
        shape = replace(shape, activation="gelu_tanh")  # the only one that llama.cpp has for gpt2
    return network_from_weights(converted.family, shape, load_weights(file, converted), by)


def load_weights(file: Path, converted: ConvertedModel) -> Arrays:
    """The weights of a file under the family's names."""
    import gguf
    import mlx.core as mx

    tensors = {tensor.name: mx.array(tensor.data) for tensor in gguf.GGUFReader(str(file)).tensors}
    weights = {}
    for name in converted.weights:
        module, _, what = name.rpartition(".")
        value = tensors[f"{_module(module)}.{what}"]
        weights[name] = deinterleave(value, converted.config) if module.endswith(("q_proj", "k_proj")) else value
    return weights


class LlamaCpp:
    """A file loaded by llama.cpp, through llama-cpp-python."""

    def __init__(self, file: Path, context: int) -> None:
        import llama_cpp

        self.model = llama_cpp.Llama(str(file), n_ctx=context, n_batch=context, logits_all=True, verbose=False)
        self.by = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"

    def logits(self, tokens: Sequence[int]) -> Any:
        """Logits [T, V] of tokens."""
        self.model.reset()
        self.model.eval(list(tokens))
        return self.model.scores[: len(tokens)].copy()

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """Tokens from greedy decoding with llama.cpp's KV cache."""
        self.model.reset()
        generated, new = [], list(tokens)
        for _ in range(count):
            self.model.eval(new)
            new = [int(self.model.scores[self.model.n_tokens - 1].argmax())]
            generated += new
        return generated


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    """The exporter of this module."""
    return [Gguf]
