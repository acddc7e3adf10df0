"""The exporter `hf`: a folder for transformers, as a GPT-2 or Llama model, without remote code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distillkit import Exporter, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from distillkit.student.interchange.exporting import Arrays, ConvertedModel, Reader


USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/it")
model = AutoModelForCausalLM.from_pretrained("path/to/it")
inputs = tokenizer("<|endoftext|>One day", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0]))
```"""
USE_WITHOUT_TOKENIZER = """```python
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/it")
inputs = torch.tensor([[{end}]])  # the end-of-text token of {kind}
print(model.generate(inputs)[0].tolist())
```"""


class HuggingFace(Exporter):
    """For transformers: safetensors, configuration, tokenizer.json and a model card."""

    name = "hf"

    def export(self, run: Any, folder: Path) -> list[str]:
        """Write the folder, load it again and compare its output with the student's."""
        from distillkit.student.interchange import exporting, hf_tokenizer

        student, network = exporting.load_student(run)
        converted = exporting.convert(network)
        notes = [f"as {'GPT2LMHeadModel' if converted.family == 'gpt2' else 'LlamaForCausalLM'}", *converted.notes]
        folder.mkdir(parents=True, exist_ok=True)
        save(folder, converted, student.tokenizer.end_of_text)
        tokenizer, use = student.tokenizer, USE
        if obstacle := hf_tokenizer.export_obstacle(tokenizer):
            notes.append(f"without tokenizer.json: {obstacle}")
            use = USE_WITHOUT_TOKENIZER.format(end=tokenizer.end_of_text, kind=tokenizer.kind)
        else:
            hf_tokenizer.write_tokenizer(tokenizer, folder, student.context)

        def reader() -> Reader:
            return open_exported(folder, converted)

        metadata = {"format": self.name, "notes": notes, "library": "transformers", "use": use}
        return exporting.finish(run, folder, student, reader, exporting.Bounds(), metadata)


def save(folder: Path, converted: ConvertedModel, end_of_text: int) -> None:
    """Write weights and configurations. Keys of a GPT-2 have no prefix `transformer.`."""
    import json

    import mlx.core as mx

    from distillkit.student.interchange.hf_weights import hf_config, transpose_conv1d

    mx.save_safetensors(str(folder / "model.safetensors"), transpose_conv1d(converted.weights), {"format": "pt"})
    config = hf_config(converted, end_of_text)
    special_tokens = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": end_of_text}
    generation = {
        **special_tokens,
        "do_sample": True,
        "temperature": 0.8,
        "max_new_tokens": converted.config.context // 2,
    }
    for name, values in {"config": config, "generation_config": generation}.items():
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def open_exported(folder: Path, converted: ConvertedModel) -> Reader:
    """The folder loaded by transformers, or read back by distillkit if transformers is not installed."""
    from importlib.util import find_spec

    if find_spec("transformers") and find_spec("torch"):
        return Transformers(folder)
    from distillkit.student.interchange.exporting import network_from_weights

    by = "reading the files back (transformers and torch are not installed)"
    return network_from_weights(converted.family, converted.exported_config, load_weights(folder), by)


def load_weights(folder: Path) -> Arrays:
    """The weights of a folder, with matrices in distillkit's orientation."""
    import mlx.core as mx

    from distillkit.student.interchange.hf_weights import transpose_conv1d

    arrays: Any = mx.load(str(folder / "model.safetensors"))
    return transpose_conv1d(arrays)


class Transformers:
    """A folder loaded by transformers, in float32."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, utils

        from distillkit.student.interchange.exporting import package_versions

        utils.logging.disable_progress_bar()
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
        self.model.eval()
        self.by = package_versions("transformers", "torch")

    def logits(self, tokens: Sequence[int]) -> Any:
        """Logits [T, V] of tokens."""
        with self.torch.no_grad():
            return self.model(self.torch.tensor([list(tokens)])).logits[0].float().numpy()

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """Tokens from greedy decoding with transformers' `generate`, without stopping at end-of-text."""
        inputs = self.torch.tensor([list(tokens)])
        options = {"do_sample": False, "max_new_tokens": count, "temperature": None}
        self.model.generation_config.eos_token_id = None
        generated = self.model.generate(inputs, attention_mask=self.torch.ones_like(inputs), **options)
        return [int(token) for token in generated[0, len(tokens) :]]


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    """The exporter of this module."""
    return [HuggingFace]
