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
    config: GPTConfig
    weights: Arrays
    notes: list[str] = field(default_factory=list)

    @property
    def exported_config(self) -> GPTConfig:
        """The config of the converted weights, with the biases, tables and projections that were filled in."""
        if self.family == "llama":
            return replace(self.config, attention_out=True)
        return replace(self.config, bias=True, positions="learned", attention_out=True, kv_heads=None)


def to_gpt2(model: GPT) -> ConvertedModel:
    """The student as a GPT-2: learned positions, LayerNorm, biases everywhere."""
    if obstacles := list(gpt2_obstacles(model.config)):
        raise UsageError(f"the student cannot be a GPT-2: {'; '.join(obstacles)}")
    config, params = model.config, named_parameters(model)
    table = params["positions.weight"] if config.positions == "learned" else model._sinusoids
    weights = {"wte.weight": params["tokens.weight"], "wpe.weight": table}
    for i in range(config.layers):
        weights |= _gpt2_block(config, params, f"blocks.{i}", f"h.{i}")
    weights |= _with_bias(params, "norm", "ln_f", config.width)
    if not config.tied:
        weights["lm_head.weight"] = params["out.weight"]
    return ConvertedModel("gpt2", config, weights, list(_gpt2_notes(config)))


def gpt2_obstacles(config: GPTConfig) -> Iterator[str]:
    """The reasons why a student cannot be a GPT-2."""
    if config.positions == "rope":
        yield "its positions are rope"
    if config.norm != "layernorm":
        yield f"its norm is {config.norm}"
    if config.activation == "swiglu":
        yield "its activation is swiglu"
    if not config.final_norm:
        yield "it has no final norm"
    yield from _common_obstacles(config)


def _common_obstacles(config: GPTConfig) -> Iterator[str]:
    if config.head_bias:
        yield "its head has a bias"
    if config.qk_norm:
        yield "it normalizes queries and keys"


def _gpt2_notes(config: GPTConfig) -> Iterator[str]:
    if config.positions == "sinusoidal":
        yield "sinusoidal positions were written as a learned table"
    if not config.attention_out:
        yield "the missing attention output projection was filled in as an identity"
    if not config.bias:
        yield "missing biases were filled in as zeros"
    if config.num_kv_heads != config.heads:
        yield "shared keys and values were repeated for each head"


def _gpt2_block(config: GPTConfig, params: Arrays, source: str, target: str) -> Arrays:
    attention = {
        name: params[f"{source}.attention.qkv.{name}"] for name in ("weight", "bias") if name == "weight" or config.bias
    }
    block = {f"{target}.attn.c_attn.{name}": _repeat_kv_heads(config, value) for name, value in attention.items()}
    block.setdefault(f"{target}.attn.c_attn.bias", mx.zeros(3 * config.width))
    block |= _attention_output(config, params, f"{source}.attention.out", f"{target}.attn.c_proj", bias=True)
    block |= _with_bias(params, f"{source}.attention_norm", f"{target}.ln_1", config.width)
    block |= _with_bias(params, f"{source}.hidden_norm", f"{target}.ln_2", config.width)
    block |= _with_bias(params, f"{source}.up", f"{target}.mlp.c_fc", config.hidden)
    return block | _with_bias(params, f"{source}.down", f"{target}.mlp.c_proj", config.width)


def _with_bias(params: Arrays, source: str, target: str, size: int) -> Arrays:
    bias = params.get(f"{source}.bias")
    return {f"{target}.weight": params[f"{source}.weight"], f"{target}.bias": mx.zeros(size) if bias is None else bias}


def _attention_output(config: GPTConfig, params: Arrays, source: str, target: str, bias: bool) -> Arrays:
    """The attention output projection; an identity if the student has none."""
    if config.attention_out:
        return {f"{target}.{n}": params[f"{source}.{n}"] for n in ("weight", "bias") if f"{source}.{n}" in params} | (
            {f"{target}.bias": mx.zeros(config.width)} if bias and not config.bias else {}
        )
    return {f"{target}.weight": mx.eye(config.width)} | ({f"{target}.bias": mx.zeros(config.width)} if bias else {})


def _repeat_kv_heads(config: GPTConfig, joined: mx.array) -> mx.array:
    """Joined queries, keys and values, with the keys and values repeated for each head."""
    queries, keys, values = _split_qkv(config, joined)
    times = config.heads // config.num_kv_heads
    if times == 1:
        return joined

    def each(part: mx.array) -> mx.array:
        heads = part.reshape(config.num_kv_heads, config.head_dim, *part.shape[1:])
        return mx.repeat(heads, times, axis=0).reshape(config.width, *part.shape[1:])

    return mx.concatenate([queries, each(keys), each(values)])


def _split_qkv(config: GPTConfig, joined: mx.array) -> list[mx.array]:
    kv_width = config.num_kv_heads * config.head_dim
    return list(mx.split(joined, [config.width, config.width + kv_width]))


# ------------------------------------------------------------------------------------------------------ Llama


def to_llama(model: GPT) -> ConvertedModel:
    """The student as a Llama: RoPE, RMSNorm, SwiGLU."""
    if obstacles := list(llama_obstacles(model.config)):
        raise UsageError(f"the student cannot be a Llama: {'; '.join(obstacles)}")
    config, params = model.config, named_parameters(model)
    weights = {"model.embed_tokens.weight": params["tokens.weight"], "model.norm.weight": params["norm.weight"]}
    for i in range(config.layers):
        weights |= _llama_block(config, params, f"blocks.{i}", f"model.layers.{i}")
    if not config.tied:
        weights["lm_head.weight"] = params["out.weight"]
    notes = [] if config.attention_out else ["the missing attention output projection was filled in as an identity"]
    return ConvertedModel("llama", config, weights, notes)


def llama_obstacles(config: GPTConfig) -> Iterator[str]:
    """The reasons why a student cannot be a Llama."""
    if config.positions != "rope":
        yield f"its positions are {config.positions}"
    if config.norm != "rmsnorm":
        yield f"its norm is {config.norm}"
    if config.activation != "swiglu":
        yield f"its activation is {config.activation}"
    if not config.final_norm:
        yield "it has no final norm"
    yield from _common_obstacles(config)


def _llama_block(config: GPTConfig, params: Arrays, source: str, target: str) -> Arrays:
    block: Arrays = {}
    for name in ("weight", "bias") if config.bias else ("weight",):
        parts = _split_qkv(config, params[f"{source}.attention.qkv.{name}"])
        block |= {f"{target}.self_attn.{n}_proj.{name}": part for n, part in zip("qkv", parts, strict=True)}
        block |= {f"{target}.mlp.{n}_proj.{name}": params[f"{source}.{n}.{name}"] for n in ("gate", "up", "down")}
    block |= _attention_output(
        config, params, f"{source}.attention.out", f"{target}.self_attn.o_proj", bias=config.bias
    )
    block[f"{target}.input_layernorm.weight"] = params[f"{source}.attention_norm.weight"]
    block[f"{target}.post_attention_layernorm.weight"] = params[f"{source}.hidden_norm.weight"]
    return block


# ------------------------------------------------------------------------------------- from transformers


def from_gpt2(config: GPTConfig, weights: Mapping[str, mx.array]) -> Arrays:
    """The weights of a GPT-2 under distillkit's names."""
    params = {"tokens.weight": weights["wte.weight"], "positions.weight": weights["wpe.weight"]}
    names = {"attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj"}
    names |= {"hidden_norm": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    pairs = {f"blocks.{i}.{key}": f"h.{i}.{hf_key}" for i in range(config.layers) for key, hf_key in names.items()}
    for key, hf_key in {**pairs, "norm": "ln_f"}.items():
        params |= {f"{key}.{n}": weights[f"{hf_key}.{n}"] for n in (("weight", "bias") if config.bias else ("weight",))}
    return params | ({} if config.tied else {"out.weight": weights["lm_head.weight"]})


def transpose_conv1d(weights: Mapping[str, mx.array]) -> Arrays:
    """Weights with GPT-2's Conv1D matrices transposed: to transformers' layout, or back. Llama has none of them."""
    return {name: mx.contiguous(value.T) if name.endswith(CONV1D_WEIGHTS) else value for name, value in weights.items()}


def from_llama(config: GPTConfig, weights: Mapping[str, mx.array]) -> Arrays:
    """The weights of a Llama under distillkit's names."""
    params = {"tokens.weight": weights["model.embed_tokens.weight"], "norm.weight": weights["model.norm.weight"]}
    for i in range(config.layers):
        key, hf_key = f"blocks.{i}", f"model.layers.{i}"
        params[f"{key}.attention_norm.weight"] = weights[f"{hf_key}.input_layernorm.weight"]
        params[f"{key}.hidden_norm.weight"] = weights[f"{hf_key}.post_attention_layernorm.weight"]
        for name in ("weight", "bias") if config.bias else ("weight",):
            joined = [weights[f"{hf_key}.self_attn.{n}_proj.{name}"] for n in "qkv"]
            params[f"{key}.attention.qkv.{name}"] = mx.concatenate(joined)
            params[f"{key}.attention.out.{name}"] = weights[f"{hf_key}.self_attn.o_proj.{name}"]
            params |= {f"{key}.{n}.{name}": weights[f"{hf_key}.mlp.{n}_proj.{name}"] for n in ("gate", "up", "down")}
    return params | ({} if config.tied else {"out.weight": weights["lm_head.weight"]})


# -------------------------------------------------------------------------------------------- configurations


def hf_config(converted: ConvertedModel, end_of_text: int) -> dict[str, Any]:
    """The contents of `config.json` of transformers."""
    config = converted.config
    common = {
        "vocab_size": config.vocab_size,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "tie_word_embeddings": config.tied,
        "dtype": "float32",
    }
    return {**(_gpt2_hf_config if converted.family == "gpt2" else _llama_hf_config)(config), **common}


def _gpt2_hf_config(config: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": ACTIVATIONS[config.activation],
        "n_ctx": config.context,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_inner": config.hidden,
        "n_layer": config.layers,
        "layer_norm_epsilon": NORM_EPS,
        "attn_pdrop": 0.0,  # a student has no dropout on attention weights
        **{f"{place}_pdrop": config.dropout for place in ("embd", "resid")},
    }


def _llama_hf_config(config: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
    }


def gpt_config_from_hf(hf: Mapping[str, Any]) -> GPTConfig:
    """The student's shape for a configuration of transformers. Raises an error for one that a student cannot have."""
    kind = hf.get("model_type")
    if kind == "gpt2":
        return _gpt2_config_from_hf(hf)
    if kind == "llama":
        return _llama_config_from_hf(hf)
    raise UsageError(f"config.json says model_type {kind!r}", "Only gpt2 and llama can be imported.")


def _gpt2_config_from_hf(hf: Mapping[str, Any]) -> GPTConfig:
    activations = {hf_name: name for name, hf_name in ACTIVATIONS.items()} | {"gelu_pytorch_tanh": "gelu_tanh"}
    activation = hf.get("activation_function", "gelu_new")
    _require_values(
        hf, {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    )
    _require(activation in activations, f"activation_function {activation!r}")
    _require(hf.get("layer_norm_epsilon", NORM_EPS) == NORM_EPS, "a layer_norm_epsilon other than 1e-5")
    width = hf.get("n_embd", 768)
    return GPTConfig(
        vocab_size=hf.get("vocab_size", 50257),
        layers=hf.get("n_layer", 12),
        heads=hf.get("n_head", 12),
        width=width,
        hidden=hf.get("n_inner") or 4 * width,
        context=hf.get("n_positions", 1024),
        tied=hf.get("tie_word_embeddings", True),
        activation=activations[activation],  # type: ignore[arg-type]
    )


def _llama_config_from_hf(hf: Mapping[str, Any]) -> GPTConfig:
    rope = {**(hf.get("rope_parameters") or {}), **(hf.get("rope_scaling") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))  # older files say `type`
    theta = rope.get("rope_theta", hf.get("rope_theta", ROPE_THETA))
    _require(kind == "default" and theta == ROPE_THETA, "scaled RoPE or a rope_theta other than 10000")
    _require(hf.get("rms_norm_eps", 1e-6) == NORM_EPS, "an rms_norm_eps other than 1e-5")
    bias = bool(hf.get("attention_bias", False))
    _require_values(hf, {"hidden_act": "silu", "mlp_bias": bias})
    heads, width = hf["num_attention_heads"], hf["hidden_size"]
    _require((hf.get("head_dim") or width // heads) * heads == width, "heads whose widths do not add up to hidden_size")
    return GPTConfig(
        vocab_size=hf["vocab_size"],
        layers=hf["num_hidden_layers"],
        heads=heads,
        width=width,
        hidden=hf["intermediate_size"],
        context=hf.get("max_position_embeddings", 2048),
        bias=bias,
        tied=hf.get("tie_word_embeddings", False),
        activation="swiglu",
        positions="rope",
        norm="rmsnorm",
        kv_heads=hf.get("num_key_value_heads") or heads,
    )


def _require_values(hf: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key, value in expected.items():
        _require(hf.get(key, value) == value, f"{key} = {hf.get(key)!r}")


def _require(condition: bool, unsupported: str) -> None:
    if not condition:
        raise UsageError(f"config.json has {unsupported}, which a student does not support", "It cannot be imported.")
