"""A student's weights under the names of the two families that other tools know, GPT-2 and Llama, and back.

What a family has and a student has not is written out where that changes nothing: a bias of zeros, an identity, a
table of sinusoids. What cannot be written so is refused, with the reason. Matrices stand as ours do, [out, in].
Knows no file format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx

from ...core.errors import UsageError
from ..model.gpt import GPT, GPTConfig, named_parameters

Arrays = dict[str, mx.array]

GELUS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}  # ours, and what GPT-2's configuration calls them
EPSILON = 1e-5  # of all our norms
TURNS = 10_000.0  # the base of rope
TURNED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # transformers' GPT-2 keeps these [in, out]


@dataclass(frozen=True)
class Member:
    """A student as one of a family: weights under its names, and what was written out to make it one."""

    family: str
    shape: GPTConfig
    weights: Arrays
    notes: list[str] = field(default_factory=list)

    @property
    def written_out(self) -> GPTConfig:
        """The shape that its weights have: biases, tables and projections that were only implied are there now."""
        if self.family == "llama":
            return replace(self.shape, attention_out=True)
        return replace(self.shape, bias=True, positions="learned", attention_out=True, kv_heads=None)


def as_gpt2(model: GPT) -> Member:
    """The student as a GPT-2: pre-norm, learned positions, biases everywhere."""
    if faults := list(not_gpt2(model.config)):
        raise UsageError(f"the student is not in GPT-2's family: {'; '.join(faults)}")
    shape, own = model.config, named_parameters(model)
    table = own["positions.weight"] if shape.positions == "learned" else model._sinusoids
    weights = {"wte.weight": own["tokens.weight"], "wpe.weight": table}
    for i in range(shape.layers):
        weights |= _gpt2_block(shape, own, f"blocks.{i}", f"h.{i}")
    weights |= _with_bias(own, "norm", "ln_f", shape.width)
    if not shape.tied:
        weights["lm_head.weight"] = own["out.weight"]
    return Member("gpt2", shape, weights, list(_gpt2_notes(shape)))


def not_gpt2(shape: GPTConfig) -> Iterator[str]:
    """What keeps a student from being a GPT-2."""
    if shape.positions == "rope":
        yield "its positions are rope"
    if shape.norm != "layernorm":
        yield f"its norm is {shape.norm}"
    if shape.activation == "swiglu":
        yield "its activation is swiglu"
    if not shape.final_norm:
        yield "it has no final norm"
    yield from _in_neither(shape)


def _in_neither(shape: GPTConfig) -> Iterator[str]:
    if shape.head_bias:
        yield "its head has a bias"
    if shape.qk_norm:
        yield "it norms queries and keys"


def _gpt2_notes(shape: GPTConfig) -> Iterator[str]:
    if shape.positions == "sinusoidal":
        yield "sinusoids became a learned table"
    if not shape.attention_out:
        yield "the missing attention output projection became an identity"
    if not shape.bias:
        yield "missing biases became zeros"
    if shape.num_kv_heads != shape.heads:
        yield "shared keys and values were repeated for each head"


def _gpt2_block(shape: GPTConfig, own: Arrays, ours: str, theirs: str) -> Arrays:
    attention = {
        name: own[f"{ours}.attention.qkv.{name}"] for name in ("weight", "bias") if name == "weight" or shape.bias
    }
    block = {f"{theirs}.attn.c_attn.{name}": _repeated(shape, value) for name, value in attention.items()}
    block.setdefault(f"{theirs}.attn.c_attn.bias", mx.zeros(3 * shape.width))
    block |= _output(shape, own, f"{ours}.attention.out", f"{theirs}.attn.c_proj", bias=True)
    block |= _with_bias(own, f"{ours}.attention_norm", f"{theirs}.ln_1", shape.width)
    block |= _with_bias(own, f"{ours}.hidden_norm", f"{theirs}.ln_2", shape.width)
    block |= _with_bias(own, f"{ours}.up", f"{theirs}.mlp.c_fc", shape.hidden)
    return block | _with_bias(own, f"{ours}.down", f"{theirs}.mlp.c_proj", shape.width)


def _with_bias(own: Arrays, ours: str, theirs: str, size: int) -> Arrays:
    bias = own.get(f"{ours}.bias")
    return {f"{theirs}.weight": own[f"{ours}.weight"], f"{theirs}.bias": mx.zeros(size) if bias is None else bias}


def _output(shape: GPTConfig, own: Arrays, ours: str, theirs: str, bias: bool) -> Arrays:
    """The projection after attention; where there is none, one that changes nothing."""
    if shape.attention_out:
        return {f"{theirs}.{n}": own[f"{ours}.{n}"] for n in ("weight", "bias") if f"{ours}.{n}" in own} | (
            {f"{theirs}.bias": mx.zeros(shape.width)} if bias and not shape.bias else {}
        )
    return {f"{theirs}.weight": mx.eye(shape.width)} | ({f"{theirs}.bias": mx.zeros(shape.width)} if bias else {})


def _repeated(shape: GPTConfig, joined: mx.array) -> mx.array:
    """Queries, keys and values with a key and a value for each head."""
    queries, keys, values = _apart(shape, joined)
    times = shape.heads // shape.num_kv_heads
    if times == 1:
        return joined

    def each(part: mx.array) -> mx.array:
        heads = part.reshape(shape.num_kv_heads, shape.head_dim, *part.shape[1:])
        return mx.repeat(heads, times, axis=0).reshape(shape.width, *part.shape[1:])

    return mx.concatenate([queries, each(keys), each(values)])


def _apart(shape: GPTConfig, joined: mx.array) -> list[mx.array]:
    own = shape.num_kv_heads * shape.head_dim
    return list(mx.split(joined, [shape.width, shape.width + own]))


# ------------------------------------------------------------------------------------------------------ Llama


def as_llama(model: GPT) -> Member:
    """The student as a Llama: rope, RMS norms, SwiGLU."""
    if faults := list(not_llama(model.config)):
        raise UsageError(f"the student is not in Llama's family: {'; '.join(faults)}")
    shape, own = model.config, named_parameters(model)
    weights = {"model.embed_tokens.weight": own["tokens.weight"], "model.norm.weight": own["norm.weight"]}
    for i in range(shape.layers):
        weights |= _llama_block(shape, own, f"blocks.{i}", f"model.layers.{i}")
    if not shape.tied:
        weights["lm_head.weight"] = own["out.weight"]
    notes = [] if shape.attention_out else ["the missing attention output projection became an identity"]
    return Member("llama", shape, weights, notes)


def not_llama(shape: GPTConfig) -> Iterator[str]:
    """What keeps a student from being a Llama."""
    if shape.positions != "rope":
        yield f"its positions are {shape.positions}"
    if shape.norm != "rmsnorm":
        yield f"its norm is {shape.norm}"
    if shape.activation != "swiglu":
        yield f"its activation is {shape.activation}"
    if not shape.final_norm:
        yield "it has no final norm"
    yield from _in_neither(shape)


def _llama_block(shape: GPTConfig, own: Arrays, ours: str, theirs: str) -> Arrays:
    block: Arrays = {}
    for name in ("weight", "bias") if shape.bias else ("weight",):
        parts = _apart(shape, own[f"{ours}.attention.qkv.{name}"])
        block |= {f"{theirs}.self_attn.{n}_proj.{name}": part for n, part in zip("qkv", parts, strict=True)}
        block |= {f"{theirs}.mlp.{n}_proj.{name}": own[f"{ours}.{n}.{name}"] for n in ("gate", "up", "down")}
    block |= _output(shape, own, f"{ours}.attention.out", f"{theirs}.self_attn.o_proj", bias=shape.bias)
    block[f"{theirs}.input_layernorm.weight"] = own[f"{ours}.attention_norm.weight"]
    block[f"{theirs}.post_attention_layernorm.weight"] = own[f"{ours}.hidden_norm.weight"]
    return block


# ------------------------------------------------------------------------------------------------- and back


def from_gpt2(shape: GPTConfig, weights: Mapping[str, mx.array]) -> Arrays:
    """Our own names for the weights of a GPT-2 of a shape."""
    found = {"tokens.weight": weights["wte.weight"], "positions.weight": weights["wpe.weight"]}
    names = {"attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj"}
    names |= {"hidden_norm": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    pairs = {f"blocks.{i}.{ours}": f"h.{i}.{theirs}" for i in range(shape.layers) for ours, theirs in names.items()}
    for ours, theirs in {**pairs, "norm": "ln_f"}.items():
        found |= {f"{ours}.{n}": weights[f"{theirs}.{n}"] for n in (("weight", "bias") if shape.bias else ("weight",))}
    return found | ({} if shape.tied else {"out.weight": weights["lm_head.weight"]})


def turned(weights: Mapping[str, mx.array]) -> Arrays:
    """Weights as transformers keeps them, or from there as ours stand: a GPT-2's matrices are turned, a Llama's not."""
    return {name: mx.contiguous(value.T) if name.endswith(TURNED) else value for name, value in weights.items()}


def from_llama(shape: GPTConfig, weights: Mapping[str, mx.array]) -> Arrays:
    """Our own names for the weights of a Llama of a shape."""
    found = {"tokens.weight": weights["model.embed_tokens.weight"], "norm.weight": weights["model.norm.weight"]}
    for i in range(shape.layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        found[f"{ours}.attention_norm.weight"] = weights[f"{theirs}.input_layernorm.weight"]
        found[f"{ours}.hidden_norm.weight"] = weights[f"{theirs}.post_attention_layernorm.weight"]
        for name in ("weight", "bias") if shape.bias else ("weight",):
            joined = [weights[f"{theirs}.self_attn.{n}_proj.{name}"] for n in "qkv"]
            found[f"{ours}.attention.qkv.{name}"] = mx.concatenate(joined)
            found[f"{ours}.attention.out.{name}"] = weights[f"{theirs}.self_attn.o_proj.{name}"]
            found |= {f"{ours}.{n}.{name}": weights[f"{theirs}.mlp.{n}_proj.{name}"] for n in ("gate", "up", "down")}
    return found | ({} if shape.tied else {"out.weight": weights["lm_head.weight"]})


# -------------------------------------------------------------------------------------------- configurations


def configuration(member: Member, end_of_text: int) -> dict[str, Any]:
    """What `config.json` says of a member, in the words of transformers."""
    shape = member.shape
    common = {
        "vocab_size": shape.vocab_size,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "tie_word_embeddings": shape.tied,
        "dtype": "float32",
    }
    return {**(_of_gpt2 if member.family == "gpt2" else _of_llama)(shape), **common}


def _of_gpt2(shape: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": GELUS[shape.activation],
        "n_ctx": shape.context,
        "n_positions": shape.context,
        "n_embd": shape.width,
        "n_head": shape.heads,
        "n_inner": shape.hidden,
        "n_layer": shape.layers,
        "layer_norm_epsilon": EPSILON,
        "attn_pdrop": 0.0,  # what a student looks at is not dropped in training
        **{f"{place}_pdrop": shape.dropout for place in ("embd", "resid")},
    }


def _of_llama(shape: GPTConfig) -> dict[str, Any]:
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
        "rms_norm_eps": EPSILON,
        "rope_theta": TURNS,
        "rope_parameters": {"rope_type": "default", "rope_theta": TURNS},
        "attention_bias": shape.bias,
        "mlp_bias": shape.bias,
    }


def shape_of(config: Mapping[str, Any]) -> GPTConfig:
    """The shape that a configuration of transformers means, or why it means none."""
    kind = config.get("model_type")
    if kind == "gpt2":
        return _gpt2_shape(config)
    if kind == "llama":
        return _llama_shape(config)
    raise UsageError(f"the configuration says model_type {kind!r}", "Only gpt2 and llama can be brought in.")


def _gpt2_shape(config: Mapping[str, Any]) -> GPTConfig:
    activations = {theirs: ours for ours, theirs in GELUS.items()} | {"gelu_pytorch_tanh": "gelu_tanh"}
    said = config.get("activation_function", "gelu_new")
    _plain(config, {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False})
    _must(said in activations, f"activation_function {said!r}")
    _must(config.get("layer_norm_epsilon", EPSILON) == EPSILON, "another layer_norm_epsilon than 1e-5")
    width = config.get("n_embd", 768)
    return GPTConfig(
        vocab_size=config.get("vocab_size", 50257),
        layers=config.get("n_layer", 12),
        heads=config.get("n_head", 12),
        width=width,
        hidden=config.get("n_inner") or 4 * width,
        context=config.get("n_positions", 1024),
        tied=config.get("tie_word_embeddings", True),
        activation=activations[said],  # type: ignore[arg-type]
    )


def _llama_shape(config: Mapping[str, Any]) -> GPTConfig:
    rope = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))  # older files say `type`
    theta = rope.get("rope_theta", config.get("rope_theta", TURNS))
    _must(kind == "default" and theta == TURNS, "another rope than the plain one")
    _must(config.get("rms_norm_eps", 1e-6) == EPSILON, "another rms_norm_eps than 1e-5")
    bias = bool(config.get("attention_bias", False))
    _plain(config, {"hidden_act": "silu", "mlp_bias": bias})
    heads, width = config["num_attention_heads"], config["hidden_size"]
    _must((config.get("head_dim") or width // heads) * heads == width, "heads that do not add up to hidden_size")
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


def _plain(config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key, value in expected.items():
        _must(config.get(key, value) == value, f"{key} = {config.get(key)!r}")


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(f"the configuration has {otherwise}, which our student has not", "It cannot be brought in.")
