"""The model card of an export: what `report.json` and the proof say, in the form that the Hugging Face Hub reads.

Every figure is the report's, with its interval; where the report says nothing, the card says so. Knows no format.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from ..files import read_json
from ..runs import Run
from .trained import Trained, parameters

Report = Mapping[str, Any]

HUBS = {"tinystories": "roneneldan/TinyStories", "fineweb-edu": "HuggingFaceFW/fineweb-edu"}
ENGLISH = {*HUBS, *HUBS.values()}  # of other texts nobody here knows the language
LIBRARIES = {"hf": "transformers", "mlx": "mlx", "gguf": "gguf"}
USES = {
    "hf": """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/it")
model = AutoModelForCausalLM.from_pretrained("path/to/it")
begun = tokenizer("<|endoftext|>One day", return_tensors="pt")
print(tokenizer.decode(model.generate(**begun, max_new_tokens=100, do_sample=True)[0]))""",
    "mlx": """from mlx_lm import generate, load

model, tokenizer = load("path/to/it")
print(generate(model, tokenizer, "<|endoftext|>One day", max_tokens=100))""",
    "gguf": 'llama-cli -m path/to/it/model.gguf -p "One day" -n 100 -no-cnv',
}


def card(run: Run, student: Trained, proof: Mapping[str, Any]) -> str:
    """The whole of README.md."""
    report = read_json(run.report) if run.report.is_file() else {}
    recipe = tomllib.loads(report.get("recipe_text") or "")
    parts = [
        f"---\n{_yaml(_metadata(run, report, recipe, proof))}---\n",
        f"# {run.path.resolve().parent.name}\n",
        f"{_lede(report, student)}\n",
        *(f"## {title}\n\n{text}\n" for title, text in _sections(run, report, recipe, student, proof).items() if text),
    ]
    return "\n".join(parts)


def _lede(report: Report, student: Trained) -> str:
    sizes = parameters(student.model)
    counted = f"{sizes['unique']:,} parameters"
    if sizes["total"] != sizes["unique"]:
        counted += f" ({sizes['total']:,} counting those that are used twice)"
    teacher = report.get("teacher") or {}
    who = teacher.get("model") or teacher.get("provider")
    taught = f", taught by {who}" if who else ", trained without a teacher"
    return f"A small language model of {counted}{taught}. Made with distillkit."


def _sections(run: Run, report: Report, recipe: Report, student: Trained, proof: Mapping[str, Any]) -> dict[str, str]:
    shape = student.model.shape.__dict__ if hasattr(student.model, "shape") else {}
    return {
        "Use": f"```{'python' if proof['format'] != 'gguf' else 'sh'}\n{USES[proof['format']]}\n```\n\n"
        "Every text that it was trained on begins after `<|endoftext|>`, so prompts should, too.",
        "Figures": _figures(report),
        "Training": _list(_training(report, recipe)),
        "Distillation": _list(_distillation(report, recipe)),
        "Architecture": _list((name, value) for name, value in shape.items()),
        "This file beside the student": _list(_proven(proof)),
        "Limitations": "\n".join(f"- {line}" for line in _limitations(report, student)),
        "Made by": _list(_made(run, report)),
    }


def _figures(report: Report) -> str:
    rows = [
        f"| {judge} | {name} | {_figure(metric)} | {metric.get('n') or ''} |"
        for judge, metrics in (report.get("judges") or {}).items()
        for name, metric in metrics.items()
    ]
    if not rows:
        return "Nothing was judged, so there are no figures."
    head = ["| judge | metric | value [95% interval] | n |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows, "", "On text that was held out by its hash, every token of it once."])


def _figure(metric: Mapping[str, Any]) -> str:
    value, low, high = (metric.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "not known"
    return f"{value:.4g}" + (f" [{low:.4g}, {high:.4g}]" if low is not None and high is not None else "")


def _training(report: Report, recipe: Report) -> Iterator[tuple[str, Any]]:
    data, training = report.get("data") or {}, report.get("training") or {}
    if data.get("source"):
        yield "data", data["source"]
    for name, words in (("train", "trained on"), ("held_out", "held out")):
        if isinstance(data.get(name), Mapping):
            yield words, ", ".join(f"{data[name][key]:,} {key}" for key in ("documents", "tokens") if key in data[name])
    if training.get("steps"):
        yield "steps", f"{training['steps']:,}"
        yield "tokens seen", f"{training.get('tokens', 0):,} ({training.get('epochs', 0)} times over the data)"
    for key, words in (("loss", "last training loss"), ("validation_loss", "last validation loss")):
        if training.get(key) is not None:
            yield words, f"{training[key]:.4f} nats a token"
    table = recipe.get("train") or {}
    told = ("batch_size", "learning_rate", "final_learning_rate", "warmup", "weight_decay", "clip")
    yield from ((key.replace("_", " "), table[key]) for key in told if key in table and training.get("steps"))


def _distillation(report: Report, recipe: Report) -> Iterator[tuple[str, Any]]:
    teacher, mixer = report.get("teacher") or {}, recipe.get("mixer") or {}
    if not teacher:
        return
    yield "teacher", teacher.get("model") or teacher.get("provider")
    yield from ((key, teacher[key]) for key in ("provider", "signal", "prompts") if teacher.get(key))
    yield from ((f"mixer {key}" if key != "name" else "mixer", value) for key, value in mixer.items())


def _proven(proof: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    sides, greedy = proof["perplexity"], proof["greedy"]
    yield from (("note", note) for note in proof["notes"])
    yield "loaded again by", proof["by"]
    yield "largest difference of a logit", f"{proof['largest_difference']:.2g}"
    yield "perplexity on a few texts", f"{sides['export']:.6g}, the student's {sides['student']:.6g}"
    yield "greedy tokens alike", f"{greedy['alike']} of {greedy['tokens']}"


def _limitations(report: Report, student: Trained) -> Iterator[str]:
    yield f"It reads at most {student.context:,} tokens at once."
    yield "It goes on from a text. It was not taught to follow instructions, and does not know what is true."
    source = (report.get("data") or {}).get("source")
    yield f"It knows what its training text holds{f' ({source})' if source else ''}, prejudices included."
    training = report.get("training") or {}
    if training.get("epochs", 0) >= 4:
        yield f"It saw each token {training['epochs']:.1f} times, so it may repeat its training text word for word."
    yield from (str(warning) for warning in report.get("warnings") or [])
    yield from (f"The stage {stage!r} of its run left no record of its end." for stage in report.get("missing") or [])


def _made(run: Run, report: Report) -> Iterator[tuple[str, Any]]:
    yield "run", run.name
    yield from ((key, report[key]) for key in ("started", "seed", "device") if report.get(key) is not None)
    yield from (report.get("versions") or {}).items()


def _list(rows: Any) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in rows)


# ------------------------------------------------------------------------------------------------- metadata


def _metadata(run: Run, report: Report, recipe: Report, proof: Mapping[str, Any]) -> dict[str, Any]:
    """The card's head: what the Hub shows and searches."""
    name = run.path.resolve().parent.name
    kind, data = proof["format"], recipe.get("data") or {}
    tags = ["distillkit", "text-generation", *(["knowledge-distillation"] if report.get("teacher") else [])]
    source = (report.get("data") or {}).get("source")
    head: dict[str, Any] = {
        **({"language": ["en"]} if source == "tales" or data.get("dataset") in ENGLISH else {}),
        "library_name": LIBRARIES[kind],
        "pipeline_tag": "text-generation",
        "tags": [*tags, kind] if kind != "hf" else tags,
    }
    dataset = HUBS.get(str(data.get("dataset", "")).lower(), data.get("dataset")) or source
    if dataset and "/" in str(dataset):
        head["datasets"] = [dataset]
    if metrics := list(_results(report)):
        of = {"name": f"{dataset or 'held-out text'}, held out", "type": str(dataset or "text"), "split": "held_out"}
        task = {"type": "text-generation", "name": "Text generation"}
        head["model-index"] = [{"name": name, "results": [{"task": task, "dataset": of, "metrics": metrics}]}]
    return head


def _results(report: Report) -> Iterator[dict[str, Any]]:
    for judge, metrics in (report.get("judges") or {}).items():
        for name, metric in metrics.items():
            if metric.get("value") is not None:
                yield {"type": name, "value": metric["value"], "name": f"{judge}: {name} {_figure(metric)}"}


def _yaml(value: Any, indent: int = 0) -> str:
    """YAML of tables, lists and plain values; text is quoted as JSON quotes it, which YAML reads."""
    room = " " * indent
    if isinstance(value, Mapping):
        return "".join(f"{room}{key}:{_inner(inner, indent)}" for key, inner in value.items())
    lines = []
    for item in value:
        text = _yaml(item, indent + 2) if isinstance(item, Mapping) else f"{room}  {json.dumps(item)}\n"
        lines.append(f"{room}- {text[indent + 2 :]}")
    return "".join(lines)


def _inner(value: Any, indent: int) -> str:
    if isinstance(value, Mapping | list):
        return f"\n{_yaml(value, indent + (2 if isinstance(value, Mapping) else 0))}"
    return f" {json.dumps(value, ensure_ascii=False)}\n"
