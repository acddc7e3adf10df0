"""The exporter `hf`: a folder that transformers loads, as GPT-2 or as Llama, without a line of remote code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distillkit import Exporter, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from distillkit.student.interchange.exporting import Arrays, Member, Reader


USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/it")
model = AutoModelForCausalLM.from_pretrained("path/to/it")
begun = tokenizer("<|endoftext|>One day", return_tensors="pt")
print(tokenizer.decode(model.generate(**begun)[0]))
```"""
USE_WITHOUT_TOKENIZER = """```python
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/it")
begun = torch.tensor([[{end}]])  # the end of a text, in the tokens of {kind}
print(model.generate(begun)[0].tolist())
```"""


class HuggingFace(Exporter):
    """For transformers: safetensors, configuration, tokenizer.json and a model card."""

    name = "hf"

    def export(self, run: Any, folder: Path) -> list[str]:
        """Write, load again, compare."""
        from distillkit.student.interchange import exporting, hf_tokenizer

        student, network = exporting.student_of(run)
        member = exporting.of_family(network)
        notes = [f"as {'GPT2LMHeadModel' if member.family == 'gpt2' else 'LlamaForCausalLM'}", *member.notes]
        folder.mkdir(parents=True, exist_ok=True)
        save(folder, member, student.tokenizer.end_of_text)
        words, use = student.tokenizer, USE
        if fault := hf_tokenizer.why_not(words):
            notes.append(f"without tokenizer.json: {fault}")
            use = USE_WITHOUT_TOKENIZER.format(end=words.end_of_text, kind=words.kind)
        else:
            hf_tokenizer.write(words, folder, student.context)

        def reader() -> Reader:
            return loaded(folder, member)

        facts = {"format": self.name, "notes": notes, "library": "transformers", "use": use}
        return exporting.finish(run, folder, student, reader, exporting.Bounds(), facts)


def save(folder: Path, member: Member, end_of_text: int) -> None:
    """Weights and configurations; keys of a GPT-2 stand without the prefix `transformer.`."""
    import json

    import mlx.core as mx

    from distillkit.student.interchange.hf_weights import configuration, turned

    mx.save_safetensors(str(folder / "model.safetensors"), turned(member.weights), {"format": "pt"})
    whole = configuration(member, end_of_text)
    ends = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": end_of_text}
    generation = {**ends, "do_sample": True, "temperature": 0.8, "max_new_tokens": member.shape.context // 2}
    for name, values in {"config": whole, "generation_config": generation}.items():
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def loaded(folder: Path, member: Member) -> Reader:
    """The folder as transformers loads it; where it is not installed, as we read the files back."""
    from importlib.util import find_spec

    if find_spec("transformers") and find_spec("torch"):
        return Transformers(folder)
    from distillkit.student.interchange.exporting import read_back

    by = "reading the files back (transformers and torch are not installed)"
    return read_back(member.family, member.written_out, weights_of(folder), by)


def weights_of(folder: Path) -> Arrays:
    """The weights of a folder, matrices as ours stand."""
    import mlx.core as mx

    from distillkit.student.interchange.hf_weights import turned

    arrays: Any = mx.load(str(folder / "model.safetensors"))
    return turned(arrays)


class Transformers:
    """A folder loaded by transformers, in float32."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, utils

        from distillkit.student.interchange.exporting import versions_of

        utils.logging.disable_progress_bar()
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
        self.model.eval()
        self.by = versions_of("transformers", "torch")

    def logits(self, tokens: Sequence[int]) -> Any:
        """Logits [T, V] of tokens."""
        with self.torch.no_grad():
            return self.model(self.torch.tensor([list(tokens)])).logits[0].float().numpy()

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """What transformers' own `generate` writes; the end of text does not end it."""
        begun = self.torch.tensor([list(tokens)])
        how = {"do_sample": False, "max_new_tokens": count, "temperature": None}
        self.model.generation_config.eos_token_id = None
        written = self.model.generate(begun, attention_mask=self.torch.ones_like(begun), **how)
        return [int(token) for token in written[0, len(tokens) :]]


@hookimpl
def register_exporters() -> list[type[Exporter]]:
    """The exporter of this module."""
    return [HuggingFace]
