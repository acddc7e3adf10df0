"""The model card of an export, in the format of the Hugging Face Hub, from `report.json` and `proof.json`.

All figures are those of the report, with their intervals; missing ones are marked as missing. The card of an imported
student says nothing about its training. Independent of formats: the exporter provides the usage example.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from ...core.files import read_json
from ...core.run_folder import Run
from ..trained import Trained, parameter_counts

Report = Mapping[str, Any]

HUB_NAMES = {"tinystories": "roneneldan/TinyStories", "fineweb-edu": "HuggingFaceFW/fineweb-edu"}
ENGLISH_DATASETS = {"tales", *HUB_NAMES.values()}  # the language of other texts is not known
HELD_OUT_JUDGE = "perplexity"  # the judge of held-out text; other judges grade samples
PROMPT_ADVICE = "Every training text follows `<|endoftext|>`, so start prompts with it, too."


def model_card(run: Run, student: Trained, proof: Mapping[str, Any]) -> str:
    """The contents of README.md."""
    report = _report(run)
    recipe = tomllib.loads(report.get("recipe_text") or "")
    parts = [
        f"---\n{_yaml(_metadata(run, report, recipe, proof))}---\n",
        f"# {run.path.resolve().parent.name}\n",
        f"{_introduction(report, student)}\n",
        *(f"## {title}\n\n{text}\n" for title, text in _sections(run, report, recipe, student, proof).items() if text),
    ]
    return "\n".join(parts)


def _report(run: Run) -> Report:
    """The run's report. For an imported student, without what it cannot know about the training."""
    report = read_json(run.report) if run.report.is_file() else {}
    imported = run.info.get("imported")
    unknown: Report = {"training": {}, "data": {}, "missing": []} if imported else {}
    return {**report, "imported": imported, **unknown}


def _introduction(report: Report, student: Trained) -> str:
    sizes = parameter_counts(student.model)
    size = f"{sizes['unique']:,} parameters"
    if sizes["total"] != sizes["unique"]:
        size += f" ({sizes['total']:,} if shared ones are counted at each use)"
    if imported := report.get("imported"):
        return f"A small language model with {size}, imported from `{imported['from']}` ({imported['kind']})."
    teacher = report.get("teacher") or {}
    name = teacher.get("model") or teacher.get("provider")
    training = f", distilled from {name}" if name else ", trained without a teacher"
    return f"A small language model with {size}{training}. Made with distillkit."


def _sections(run: Run, report: Report, recipe: Report, student: Trained, proof: Mapping[str, Any]) -> dict[str, str]:
    shape = student.model.config.__dict__ if hasattr(student.model, "config") else {}
    return {
        "Usage": "\n\n".join(filter(None, [proof.get("use"), None if report.get("imported") else PROMPT_ADVICE])),
        "Evaluation": _evaluation(report),
        "Training": _list(_training(report, recipe)),
        "Distillation": _list(_distillation(report, recipe)),
        "Architecture": _list((name, value) for name, value in shape.items()),
        "Verification of the export": _list(_verification(proof)),
        "Limitations": "\n".join(f"- {line}" for line in _limitations(report, student)),
        "Provenance": _list(_provenance(run, report)),
    }


def _evaluation(report: Report) -> str:
    rows = [
        f"| {judge} | {name} | {_format_metric(metric)} | {metric.get('n') or ''} |"
        for judge, metrics in (report.get("judges") or {}).items()
        for name, metric in metrics.items()
    ]
    if not rows:
        return "The student was not evaluated."
    head = ["| judge | metric | value [95% interval] | n |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows, *_held_out_note(report)])


def _held_out_note(report: Report) -> Iterator[str]:
    """Which text the figures of the held-out judge are about."""
    if HELD_OUT_JUDGE in report["judges"]:
        text = "text that it may have been trained on" if report.get("imported") else "held-out text"
        yield from ("", f"`{HELD_OUT_JUDGE}` is over {text}, counting every token once.")


def _format_metric(metric: Mapping[str, Any]) -> str:
    value, low, high = (metric.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "unknown"
    return f"{value:.4g}" + (f" [{low:.4g}, {high:.4g}]" if low is not None and high is not None else "")


def _training(report: Report, recipe: Report) -> Iterator[tuple[str, Any]]:
    data, training = report.get("data") or {}, report.get("training") or {}
    if data.get("source"):
        yield "data", data["source"]
    for name, label in (("train", "training text"), ("held_out", "held-out text")):
        if isinstance(data.get(name), Mapping):
            yield label, ", ".join(f"{data[name][key]:,} {key}" for key in ("documents", "tokens") if key in data[name])
    if training.get("steps"):
        yield "steps", f"{training['steps']:,}"
        yield "tokens seen", f"{training.get('tokens', 0):,} ({training.get('epochs', 0)} epochs)"
    for key, label in (("loss", "last training loss"), ("validation_loss", "last validation loss")):
        if training.get(key) is not None:
            yield label, f"{training[key]:.4f} nats per token"
    table = recipe.get("train") or {}
    keys = ("batch_size", "learning_rate", "final_learning_rate", "warmup", "weight_decay", "clip")
    yield from ((key.replace("_", " "), table[key]) for key in keys if key in table and training.get("steps"))


def _distillation(report: Report, recipe: Report) -> Iterator[tuple[str, Any]]:
    teacher, mixer = report.get("teacher") or {}, recipe.get("mixer") or {}
    if not teacher:
        return
    yield "teacher", teacher.get("model") or teacher.get("provider")
    yield from ((key, teacher[key]) for key in ("provider", "signal", "prompts") if teacher.get(key))
    yield from ((f"mixer {key}" if key != "name" else "mixer", value) for key, value in mixer.items())


def _verification(proof: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    perplexity, greedy = proof["perplexity"], proof["greedy"]
    yield from (("note", note) for note in proof["notes"])
    yield "verified by", proof["by"]
    yield "largest logit difference", f"{proof['largest_difference']:.2g}"
    yield "perplexity of a few texts", f"{perplexity['export']:.6g} (student: {perplexity['student']:.6g})"
    yield "equal greedy tokens", f"{greedy['alike']} of {greedy['tokens']}"


def _limitations(report: Report, student: Trained) -> Iterator[str]:
    yield f"Its context is {student.context:,} tokens."
    if report.get("imported"):
        yield "Its training data and purpose are not known to distillkit."
    else:
        yield "It continues text. It was not trained to follow instructions, and its statements may be false."
    source = (report.get("data") or {}).get("source")
    yield f"It reproduces the biases of its training text{f' ({source})' if source else ''}."
    training = report.get("training") or {}
    if training.get("epochs", 0) >= 4:
        yield f"It saw each token {training['epochs']:.1f} times, so it may repeat its training text verbatim."
    yield from (str(warning) for warning in report.get("warnings") or [])
    yield from (
        f"The run has no record that its stage {stage!r} was completed." for stage in report.get("missing") or []
    )


def _provenance(run: Run, report: Report) -> Iterator[tuple[str, Any]]:
    yield "run", run.name
    yield from ((key, report[key]) for key in ("started", "seed", "device") if report.get(key) is not None)
    yield from (report.get("versions") or {}).items()


def _list(rows: Any) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in rows)


# ------------------------------------------------------------------------------------------------- metadata


def _metadata(run: Run, report: Report, recipe: Report, proof: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML metadata of the card, which the Hub shows and searches."""
    name = run.path.resolve().parent.name
    library, data = proof.get("library"), recipe.get("data") or {}
    dataset = HUB_NAMES.get(str(data.get("dataset", "")).lower(), data.get("dataset"))
    dataset = str(dataset or (report.get("data") or {}).get("source") or "text")
    tags = ["distillkit", "text-generation", *(["knowledge-distillation"] if report.get("teacher") else [])]
    metadata: dict[str, Any] = {
        **_training_data(report, dataset),
        **({"library_name": library} if library else {}),
        "pipeline_tag": "text-generation",
        "tags": [*tags, *([library] if library else [])],
    }
    if metrics := list(_results(report)):
        split = data.get("held_out_split") or "held_out"
        dataset_entry = {"name": f"{dataset}, held out", "type": dataset, "split": split}
        task = {"type": "text-generation", "name": "Text generation"}
        metadata["model-index"] = [
            {"name": name, "results": [{"task": task, "dataset": dataset_entry, "metrics": metrics}]}
        ]
    return metadata


def _training_data(report: Report, dataset: str) -> dict[str, Any]:
    """Metadata of the training data. The data of an imported student's run is only used to judge it."""
    if report.get("imported"):
        return {}
    return {
        **({"language": ["en"]} if dataset in ENGLISH_DATASETS else {}),
        **({"datasets": [dataset]} if "/" in dataset else {}),
    }


def _results(report: Report) -> Iterator[dict[str, Any]]:
    """The metrics of the held-out text: metrics of samples belong to no dataset."""
    for name, metric in (report.get("judges") or {}).get(HELD_OUT_JUDGE, {}).items():
        if metric.get("value") is not None:
            yield {"type": name, "value": metric["value"], "name": f"{HELD_OUT_JUDGE}: {name} {_format_metric(metric)}"}


def _yaml(value: Any, indent: int = 0) -> str:
    """YAML of mappings, lists and scalars. Strings are quoted as in JSON, which is valid YAML."""
    spaces = " " * indent
    if isinstance(value, Mapping):
        return "".join(f"{spaces}{key}:{_yaml_value(inner, indent)}" for key, inner in value.items())
    lines = []
    for item in value:
        text = _yaml(item, indent + 2) if isinstance(item, Mapping) else f"{spaces}  {json.dumps(item)}\n"
        lines.append(f"{spaces}- {text[indent + 2 :]}")
    return "".join(lines)


def _yaml_value(value: Any, indent: int) -> str:
    if isinstance(value, Mapping | list):
        return f"\n{_yaml(value, indent + (2 if isinstance(value, Mapping) else 0))}"
    return f" {json.dumps(value, ensure_ascii=False)}\n"
