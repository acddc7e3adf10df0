"""Conversion of a student's weights and configuration to GPT-2 and Llama as transformers names them, and back.

Parts that the target has and the student lacks are filled in where that changes no output: biases of zeros, identity
projections, a table of sinusoids. Otherwise the conversion is refused with the reason. Matrices are [out, in], as in
distillkit. Independent of file formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx

from ...core.errors import UsageError
from ..model.gpt import GPT, GPTConfig, named_parameters

Arrays = dict[str, mx.array]

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}  # distillkit's name: GPT-2's name
NORM_EPS = 1e-5  # of all norms of a student
ROPE_THETA = 10_000.0
CONV1D_WEIGHTS = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # [in, out] in transformers' GPT-2


@dataclass(frozen=True)
class ConvertedModel:
    """A student as a GPT-2 or Llama: weights under the family's names, and notes on the parts that were filled in."""

    family: str
    shape: GPTConfig
    weights: Arrays
    notes: list[str] = field(default_factory=list)

    @property
    def exported_shape(self) -> GPTConfig:
        """The shape of the converted weights, with the biases, tables and projections that were filled in."""
        if self.family == "llama":
            return replace(self.shape, attention_out=True)
        return replace(self.shape, bias=True, positions="learned", attention_out=True, kv_heads=None)


def to_gpt2(model: GPT) -> ConvertedModel:
    """The student as a GPT-2: learned positions, LayerNorm, biases everywhere."""
    if obstacles := list(gpt2_obstacles(model.config)):
        raise UsageError(f"the student cannot be a GPT-2: {'; '.join(obstacles)}")
    shape, params = model.config, named_parameters(model)
    table = params["positions.weight"] if shape.positions == "learned" else model._sinusoids
    weights = {"wte.weight": params["tokens.weight"], "wpe.weight": table}
    for i in range(shape.layers):
        weights |= _gpt2_block(shape, params, f"blocks.{i}", f"h.{i}")
    weights |= _with_bias(params, "norm", "ln_f", shape.width)
    if not shape.tied:
        weights["lm_head.weight"] = params["out.weight"]
    return ConvertedModel("gpt2", shape, weights, list(_gpt2_notes(shape)))


def gpt2_obstacles(shape: GPTConfig) -> Iterator[str]:
    """The reasons why a student cannot be a GPT-2."""
    if shape.positions == "rope":
        yield "its positions are rope"
    if shape.norm != "layernorm":
        yield f"its norm is {shape.norm}"
    if shape.activation == "swiglu":
        yield "its activation is swiglu"
    if not shape.final_norm:
        yield "it has no final norm"
    yield from _common_obstacles(shape)


def _common_obstacles(shape: GPTConfig) -> Iterator[str]:
    if shape.head_bias:
        yield "its head has a bias"
    if shape.qk_norm:
        yield "it normalizes queries and keys"


def _gpt2_notes(shape: GPTConfig) -> Iterator[str]:
    if shape.positions == "sinusoidal":
        yield "sinusoidal positions were written as a learned table"
    if not shape.attention_out:
        yield "the missing attention output projection was filled in as an identity"
    if not shape.bias:
        yield "missing biases were filled in as zeros"
    if shape.num_kv_heads != shape.heads:
        yield "shared keys and values were repeated for each head"


def _gpt2_block(shape: GPTConfig, params: Arrays, source: str, target: str) -> Arrays:
    attention = {
        name: params[f"{source}.attention.qkv.{name}"] for name in ("weight", "bias") if name == "weight" or shape.bias
    }
    block = {f"{target}.attn.c_attn.{name}": _repeat_kv_heads(shape, value) for name, value in attention.items()}
    block.setdefault(f"{target}.attn.c_attn.bias", mx.zeros(3 * shape.width))
    block |= _attention_output(shape, params, f"{source}.attention.out", f"{target}.attn.c_proj", bias=True)
    block |= _with_bias(params, f"{source}.attention_norm", f"{target}.ln_1", shape.width)
    block |= _with_bias(params, f"{source}.hidden_norm", f"{target}.ln_2", shape.width)
    block |= _with_bias(params, f"{source}.up", f"{target}.mlp.c_fc", shape.hidden)
    return block | _with_bias(params, f"{source}.down", f"{target}.mlp.c_proj", shape.width)


def _with_bias(params: Arrays, source: str, target: str, size: int) -> Arrays:
    bias = params.get(f"{source}.bias")
    return {f"{target}.weight": params[f"{source}.weight"], f"{target}.bias": mx.zeros(size) if bias is None else bias}


def _attention_output(shape: GPTConfig, params: Arrays, source: str, target: str, bias: bool) -> Arrays:
    """The attention output projection; an identity if the student has none."""
    if shape.attention_out:
        return {f"{target}.{n}": params[f"{source}.{n}"] for n in ("weight", "bias") if f"{source}.{n}" in params} | (
            {f"{target}.bias": mx.zeros(shape.width)} if bias and not shape.bias else {}
        )
    return {f"{target}.weight": mx.eye(shape.width)} | ({f"{target}.bias": mx.zeros(shape.width)} if bias else {})


def _repeat_kv_heads(shape: GPTConfig, joined: mx.array) -> mx.array:
    """Joined queries, keys and values, with the keys and values repeated for each head."""
    queries, keys, values = _split_qkv(shape, joined)
    times = shape.heads // shape.num_kv_heads
    if times == 1:
        return joined

    def each(part: mx.array) -> mx.array:
        heads = part.reshape(shape.num_kv_heads, shape.head_dim, *part.shape[1:])
        return mx.repeat(heads, times, axis=0).reshape(shape.width, *part.shape[1:])

    return mx.concatenate([queries, each(keys), each(values)])


def _split_qkv(shape: GPTConfig, joined: mx.array) -> list[mx.array]:
    kv_width = shape.num_kv_heads * shape.head_dim
    return list(mx.split(joined, [shape.width, shape.width + kv_width]))


# ------------------------------------------------------------------------------------------------------ Llama


def to_llama(model: GPT) -> ConvertedModel:
    """The student as a Llama: RoPE, RMSNorm, SwiGLU."""
    if obstacles := list(llama_obstacles(model.config)):
        raise UsageError(f"the student cannot be a Llama: {'; '.join(obstacles)}")
    shape, params = model.config, named_parameters(model)
    weights = {"model.embed_tokens.weight": params["tokens.weight"], "model.norm.weight": params["norm.weight"]}
    for i in range(shape.layers):
        weights |= _llama_block(shape, params, f"blocks.{i}", f"model.layers.{i}")
    if not shape.tied:
        weights["lm_head.weight"] = params["out.weight"]
    notes = [] if shape.attention_out else ["the missing attention output projection was filled in as an identity"]
    return ConvertedModel("llama", shape, weights, notes)


def llama_obstacles(shape: GPTConfig) -> Iterator[str]:
    """The reasons why a student cannot be a Llama."""
    if shape.positions != "rope":
        yield f"its positions are {shape.positions}"
    if shape.norm != "rmsnorm":
        yield f"its norm is {shape.norm}"
    if shape.activation != "swiglu":
        yield f"its activation is {shape.activation}"
    if not shape.final_norm:
        yield "it has no final norm"
    yield from _common_obstacles(shape)


def _llama_block(shape: GPTConfig, params: Arrays, source: str, target: str) -> Arrays:
    block: Arrays = {}
    for name in ("weight", "bias") if shape.bias else ("weight",):
        parts = _split_qkv(shape, params[f"{source}.attention.qkv.{name}"])
        block |= {f"{target}.self_attn.{n}_proj.{name}": part for n, part in zip("qkv", parts, strict=True)}
        block |= {f"{target}.mlp.{n}_proj.{name}": params[f"{source}.{n}.{name}"] for n in ("gate", "up", "down")}
    block |= _attention_output(shape, params, f"{source}.attention.out", f"{target}.self_attn.o_proj", bias=shape.bias)
    block[f"{target}.input_layernorm.weight"] = params[f"{source}.attention_norm.weight"]
    block[f"{target}.post_attention_layernorm.weight"] = params[f"{source}.hidden_norm.weight"]
    return block


# ------------------------------------------------------------------------------------- from transformers


def from_gpt2(shape: GPTConfig, weights: Mapping[str, mx.array]) -> Arrays:
    """The weights of a GPT-2 under distillkit's names."""
    params = {"tokens.weight": weights["wte.weight"], "positions.weight": weights["wpe.weight"]}
    names = {"attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj"}
    names |= {"hidden_norm": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    pairs = {f"blocks.{i}.{key}": f"h.{i}.{hf_key}" for i in range(shape.layers) for key, hf_key in names.items()}
    for key, hf_key in {**pairs, "norm": "ln_f"}.items():
        params |= {f"{key}.{n}": weights[f"{hf_key}.{n}"] for n in (("weight", "bias") if shape.bias else ("weight",))}
    return params | ({} if shape.tied else {"out.weight": weights["lm_head.weight"]})


def transpose_conv1d(weights: Mapping[str, mx.array]) -> Arrays:
    """Weights with GPT-2's Conv1D matrices transposed: to transformers' layout, or back. Llama has none of them."""
    return {name: mx.contiguous(value.T) if name.endswith(CONV1D_WEIGHTS) else value for name, value in weights.items()}


def from_llama(shape: GPTConfig, weights: Mapping[str, mx.array]) -> Arrays:
    """The weights of a Llama under distillkit's names."""
    params = {"tokens.weight": weights["model.embed_tokens.weight"], "norm.weight": weights["model.norm.weight"]}
    for i in range(shape.layers):
        key, hf_key = f"blocks.{i}", f"model.layers.{i}"
        params[f"{key}.attention_norm.weight"] = weights[f"{hf_key}.input_layernorm.weight"]
        params[f"{key}.hidden_norm.weight"] = weights[f"{hf_key}.post_attention_layernorm.weight"]
        for name in ("weight", "bias") if shape.bias else ("weight",):
            joined = [weights[f"{hf_key}.self_attn.{n}_proj.{name}"] for n in "qkv"]
            params[f"{key}.attention.qkv.{name}"] = mx.concatenate(joined)
            params[f"{key}.attention.out.{name}"] = weights[f"{hf_key}.self_attn.o_proj.{name}"]
            params |= {f"{key}.{n}.{name}": weights[f"{hf_key}.mlp.{n}_proj.{name}"] for n in ("gate", "up", "down")}
    return params | ({} if shape.tied else {"out.weight": weights["lm_head.weight"]})


# -------------------------------------------------------------------------------------------- configurations


def hf_config(converted: ConvertedModel, end_of_text: int) -> dict[str, Any]:
    """The contents of `config.json` of transformers."""
    shape = converted.shape
    common = {
        "vocab_size": shape.vocab_size,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "tie_word_embeddings": shape.tied,
        "dtype": "float32",
    }
    return {**(_gpt2_config if converted.family == "gpt2" else _llama_config)(shape), **common}


def _gpt2_config(shape: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": ACTIVATIONS[shape.activation],
        "n_ctx": shape.context,
        "n_positions": shape.context,
        "n_embd": shape.width,
        "n_head": shape.heads,
        "n_inner": shape.hidden,
        "n_layer": shape.layers,
        "layer_norm_epsilon": NORM_EPS,
        "attn_pdrop": 0.0,  # a student has no dropout on attention weights
        **{f"{place}_pdrop": shape.dropout for place in ("embd", "resid")},
    }


def _llama_config(shape: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "attention_bias": shape.bias,
        "mlp_bias": shape.bias,
    }


def shape_from_config(config: Mapping[str, Any]) -> GPTConfig:
    """The student's shape for a configuration of transformers. Raises an error for one that a student cannot have."""
    kind = config.get("model_type")
    if kind == "gpt2":
        return _gpt2_shape(config)
    if kind == "llama":
        return _llama_shape(config)
    raise UsageError(f"config.json says model_type {kind!r}", "Only gpt2 and llama can be imported.")


def _gpt2_shape(config: Mapping[str, Any]) -> GPTConfig:
    activations = {hf_name: name for name, hf_name in ACTIVATIONS.items()} | {"gelu_pytorch_tanh": "gelu_tanh"}
    activation = config.get("activation_function", "gelu_new")
    _require_values(
        config, {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    )
    _require(activation in activations, f"activation_function {activation!r}")
    _require(config.get("layer_norm_epsilon", NORM_EPS) == NORM_EPS, "a layer_norm_epsilon other than 1e-5")
    width = config.get("n_embd", 768)
    return GPTConfig(
        vocab_size=config.get("vocab_size", 50257),
        layers=config.get("n_layer", 12),
        heads=config.get("n_head", 12),
        width=width,
        hidden=config.get("n_inner") or 4 * width,
        context=config.get("n_positions", 1024),
        tied=config.get("tie_word_embeddings", True),
        activation=activations[activation],  # type: ignore[arg-type]
    )


def _llama_shape(config: Mapping[str, Any]) -> GPTConfig:
    rope = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))  # older files say `type`
    theta = rope.get("rope_theta", config.get("rope_theta", ROPE_THETA))
    _require(kind == "default" and theta == ROPE_THETA, "scaled RoPE or a rope_theta other than 10000")
    _require(config.get("rms_norm_eps", 1e-6) == NORM_EPS, "an rms_norm_eps other than 1e-5")
    bias = bool(config.get("attention_bias", False))
    _require_values(config, {"hidden_act": "silu", "mlp_bias": bias})
    heads, width = config["num_attention_heads"], config["hidden_size"]
    _require(
        (config.get("head_dim") or width // heads) * heads == width, "heads whose widths do not add up to hidden_size"
    )
    return GPTConfig(
        vocab_size=config["vocab_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        width=width,
        hidden=config["intermediate_size"],
        context=config.get("max_position_embeddings", 2048),
        bias=bias,
        tied=config.get("tie_word_embeddings", False),
        activation="swiglu",
        positions="rope",
        norm="rmsnorm",
        kv_heads=config.get("num_key_value_heads") or heads,
    )


def _require_values(config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key, value in expected.items():
        _require(config.get(key, value) == value, f"{key} = {config.get(key)!r}")


def _require(condition: bool, unsupported: str) -> None:
    if not condition:
        raise UsageError(f"config.json has {unsupported}, which a student does not support", "It cannot be imported.")
