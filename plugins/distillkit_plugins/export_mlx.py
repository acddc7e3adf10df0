"""The exporter `mlx`: a folder for mlx-lm, as a gpt2, gpt_bigcode or llama model, optionally quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from distillkit import Exporter, UsageError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from distillkit.student.interchange.exporting import Arrays, ConvertedModel, Reader

GROUP_SIZE = 64  # weights that share a scale
USE = """```python
from mlx_lm import generate, load

model, tokenizer = load("path/to/it")
print(generate(model, tokenizer, "<|endoftext|>One day", max_tokens=100))
```"""


class Mlx(Exporter):
    """For mlx-lm: safetensors and a configuration, optionally quantized to 8 or 4 bits."""

    name = "mlx"

    class Options(Exporter.Options):
        """Options of the exporter `mlx`."""

        quantize: Literal[4, 8] | None = Field(None, description="bits per weight; not quantized if not set")

    def export(self, run: Any, folder: Path) -> list[str]:
        """Write the folder, load it again and compare its output with the student's."""
        from distillkit.student.interchange import exporting, hf_tokenizer

        (student, network), bits = exporting.load_student(run), self.options.quantize
        converted = exporting.convert(network)
        kind = model_type(converted)
        notes = [f"as {kind}", *converted.notes, *([f"{bits} bits a weight"] if bits else [])]
        if obstacle := hf_tokenizer.export_obstacle(student.tokenizer):
            raise UsageError(f"mlx-lm needs a tokenizer.json, but {obstacle}", "Try --format hf.")
        exporting.require_package("mlx_lm", "mlx-lm", "export-mlx")
        folder.mkdir(parents=True, exist_ok=True)
        save(folder, converted, kind, student.tokenizer.end_of_text, bits)
        hf_tokenizer.write_tokenizer(student.tokenizer, folder, student.context)

        def reader() -> Reader:
            return MlxLm(folder)

        metadata = {"format": self.name, "quantize": bits, "notes": notes, "library": "mlx", "use": USE}
        return exporting.finish(run, folder, student, reader, bounds(bits), metadata)


def bounds(bits: int | None) -> Any:
    """The allowed differences: exact for unquantized weights, a relative perplexity for quantized ones."""
    from distillkit.student.interchange.exporting import Bounds

    if bits is None:
        return Bounds()
    share = {8: 0.02, 4: 0.5}[bits]
    return Bounds(
        exact=False,
        perplexity=share,
        why=f"{bits} bits are too few for this student: use more bits, or do not quantize.",
    )


def model_type(converted: ConvertedModel) -> str:
    """The model type of mlx-lm that is equivalent to the student."""
    shape = converted.config
    if converted.family == "llama":
        return "llama"
    if shape.activation == "gelu":
        return "gpt_bigcode"
    if shape.activation == "gelu_tanh" and shape.tied and shape.hidden == 4 * shape.width:
        return "gpt2"
    if shape.activation == "gelu_tanh":
        raise UsageError(
            "mlx-lm has tanh GELU only in its gpt2, whose head is tied and whose hidden size is four times the width",
            "Export it for transformers: --format hf. With exact GELU, mlx-lm supports other sizes and untied heads.",
        )
    raise UsageError(
        f"mlx-lm has no GPT-2 with {shape.activation}",
        "Export it for transformers: --format hf. mlx-lm supports gelu, gelu_tanh and swiglu.",
    )


def save(folder: Path, converted: ConvertedModel, kind: str, end_of_text: int, bits: int | None) -> None:
    """Write the weights under mlx-lm's names, and the configuration."""
    import json

    import mlx.core as mx

    from distillkit.student.interchange.hf_weights import hf_config

    config = {**hf_config(converted, end_of_text), "model_type": kind}
    if kind == "gpt_bigcode":
        config |= {"architectures": ["GPTBigCodeForCausalLM"], "multi_query": False, "activation_function": "gelu"}
    prefix = {"gpt2": "model.", "gpt_bigcode": "transformer.", "llama": ""}[kind]
    weights = {n if n.startswith("lm_head") else prefix + n: v for n, v in converted.weights.items()}
    if bits:
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": bits}
        weights = quantize(weights, bits)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def quantize(weights: Arrays, bits: int) -> Arrays:
    """The weights with all matrices quantized whose rows can be split into groups."""
    import mlx.core as mx

    if not any(value.ndim == 2 and value.shape[1] % GROUP_SIZE == 0 for value in weights.values()):
        raise UsageError(
            f"mlx-lm quantizes groups of {GROUP_SIZE} weights, which divides no width of this student",
            "Export it without quantization.",
        )
    quantized: Arrays = {}
    for name, value in weights.items():
        if value.ndim == 2 and value.shape[1] % GROUP_SIZE == 0:
            module = name.removesuffix(".weight")
            packed, scales, biases = mx.quantize(value, group_size=GROUP_SIZE, bits=bits)
            quantized |= {name: packed, f"{module}.scales": scales, f"{module}.biases": biases}
        else:
            quantized[name] = value
    return quantized


class MlxLm:
    """A folder loaded by mlx-lm."""

    def __init__(self, folder: Path) -> None:
        from mlx_lm.utils import load_model

        from distillkit.student.interchange.exporting import package_versions

        self.model, _ = load_model(folder)
        self.by = package_versions("mlx-lm")

    def logits(self, tokens: Sequence[int]) -> Any:
        """Logits [T, V] of tokens."""
        import mlx.core as mx
        import numpy as np

        return np.array(self.model(mx.array([list(tokens)]))[0].astype(mx.float32))

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """Tokens from greedy decoding with mlx-lm's generator and KV cache."""
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        steps = generate_step(mx.array(list(tokens)), self.model, max_tokens=count)
        return [int(token) for token, _ in steps]


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    """The exporter of this module."""
    return [Mlx]
