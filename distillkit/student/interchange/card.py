"""The model card of an export: what `report.json` and the proof say, in the form that the Hugging Face Hub reads.

Every figure is the report's, with its interval; where the report says nothing, the card says so. Of a student that
was brought in it says nothing of a training. Knows no format: how one is used, its exporter says.
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

HUBS = {"tinystories": "roneneldan/TinyStories", "fineweb-edu": "HuggingFaceFW/fineweb-edu"}
ENGLISH = {"tales", *HUBS.values()}  # of other texts nobody here knows the language
UNSEEN = "perplexity"  # the judge that grades text which was held out, and no samples
BEGINS = "Every text that it was trained on begins after `<|endoftext|>`, so prompts should, too."


def card(run: Run, student: Trained, proof: Mapping[str, Any]) -> str:
    """The whole of README.md."""
    report = _report(run)
    recipe = tomllib.loads(report.get("recipe_text") or "")
    parts = [
        f"---\n{_yaml(_metadata(run, report, recipe, proof))}---\n",
        f"# {run.path.resolve().parent.name}\n",
        f"{_lede(report, student)}\n",
        *(f"## {title}\n\n{text}\n" for title, text in _sections(run, report, recipe, student, proof).items() if text),
    ]
    return "\n".join(parts)


def _report(run: Run) -> Report:
    """The run's report. How a student that was brought in was trained nobody knows: there it tells of judging it."""
    report = read_json(run.report) if run.report.is_file() else {}
    imported = run.info.get("imported")
    unknown: Report = {"training": {}, "data": {}, "missing": []} if imported else {}
    return {**report, "imported": imported, **unknown}


def _lede(report: Report, student: Trained) -> str:
    sizes = parameter_counts(student.model)
    counted = f"{sizes['unique']:,} parameters"
    if sizes["total"] != sizes["unique"]:
        counted += f" ({sizes['total']:,} counting those that are used twice)"
    if imported := report.get("imported"):
        return f"A small language model of {counted}, brought in from `{imported['from']}` ({imported['kind']})."
    teacher = report.get("teacher") or {}
    who = teacher.get("model") or teacher.get("provider")
    taught = f", taught by {who}" if who else ", trained without a teacher"
    return f"A small language model of {counted}{taught}. Made with distillkit."


def _sections(run: Run, report: Report, recipe: Report, student: Trained, proof: Mapping[str, Any]) -> dict[str, str]:
    shape = student.model.config.__dict__ if hasattr(student.model, "config") else {}
    return {
        "Use": "\n\n".join(filter(None, [proof.get("use"), None if report.get("imported") else BEGINS])),
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
    return "\n".join([*head, *rows, *_which_text(report)])


def _which_text(report: Report) -> Iterator[str]:
    """Of which text the figures are that are of no samples."""
    if UNSEEN in report["judges"]:
        text = "that it may have learnt from" if report.get("imported") else "that was held out"
        yield from ("", f"`{UNSEEN}` is over text {text}, every token of it once.")


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
    if report.get("imported"):
        yield "What it was trained on, and what for, is not known here."
    else:
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
    library, data = proof.get("library"), recipe.get("data") or {}
    dataset = HUBS.get(str(data.get("dataset", "")).lower(), data.get("dataset"))
    dataset = str(dataset or (report.get("data") or {}).get("source") or "text")
    tags = ["distillkit", "text-generation", *(["knowledge-distillation"] if report.get("teacher") else [])]
    head: dict[str, Any] = {
        **_learnt_from(report, dataset),
        **({"library_name": library} if library else {}),
        "pipeline_tag": "text-generation",
        "tags": [*tags, *([library] if library else [])],
    }
    if metrics := list(_results(report)):
        split = data.get("held_out_split") or "held_out"
        of = {"name": f"{dataset}, held out", "type": dataset, "split": split}
        task = {"type": "text-generation", "name": "Text generation"}
        head["model-index"] = [{"name": name, "results": [{"task": task, "dataset": of, "metrics": metrics}]}]
    return head


def _learnt_from(report: Report, dataset: str) -> dict[str, Any]:
    """The text that it learnt from. The data of a student that was brought in are only what it is judged by."""
    if report.get("imported"):
        return {}
    return {
        **({"language": ["en"]} if dataset in ENGLISH else {}),
        **({"datasets": [dataset]} if "/" in dataset else {}),
    }


def _results(report: Report) -> Iterator[dict[str, Any]]:
    """The figures of the data set: what was said of samples is of none."""
    for name, metric in (report.get("judges") or {}).get(UNSEEN, {}).items():
        if metric.get("value") is not None:
            yield {"type": name, "value": metric["value"], "name": f"{UNSEEN}: {name} {_figure(metric)}"}


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
