"""Words the content of `report.json`: metrics and sections of entries that the terminal, Markdown and the page share.

Knows the content of `report.json`, not where it came from: it reads no files. Text from a run is untrusted and is
escaped with `printable` or `one_line`; the page's template escapes it for HTML as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from ...core.console import format_duration
from ...core.records import Sample
from ..formatting import (
    Entry,
    abbreviate,
    format_bytes,
    format_count,
    format_interval,
    format_number,
    format_time,
    metric_title,
    one_line,
    readable_name,
)

Report = Mapping[str, Any]
Direction = Literal["lower", "higher"]

ENVIRONMENT = "environment"  # the section about versions, device and seed

# Units that the name of a metric does not say.
UNITS = {"loss": "nats per token", "perplexity": "exp(loss)"}

# Metrics for which lower is better, for runs that did not record the direction.
LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte")

MISSING_STAGES = {
    "data": "The data was not prepared",
    "label": "Labelling did not finish",
    "train": "Training did not finish",
    "judge": "Judging did not finish",
}


def summary_sentence(report: Report) -> str:
    """The run in one sentence: the student's size, its teacher and its data."""
    student, teacher = report["student"], report["teacher"]
    sizes = student.get("parameters") or {}
    parameters = sizes.get("unique", sizes.get("total"))
    who = f"A {abbreviate(parameters)}-parameter student" if isinstance(parameters, int) else "A student"
    arch = f" ({one_line(student['arch'])})" if "arch" in student else ""
    taught = f", distilled from {one_line(teacher.get('model') or teacher.get('provider'))}" if teacher else ""
    source = report["data"].get("source")
    return f"{who}{arch}{taught}{f', trained on {one_line(source)}' if source else ''}."


def missing_stage_alerts(report: Report) -> list[str]:
    """One sentence for each stage that did not finish."""
    return [
        f"{MISSING_STAGES.get(stage, stage)}: the stage {stage!r} left no record that it finished."
        for stage in report["missing"]
    ]


# Metrics ---------------------------------------------------------------------------------------------------


def metrics(report: Report) -> list[Entry]:
    """Every metric of every judge with its confidence interval, bits per byte first."""
    rows = [
        (judge, name, metric)
        for judge, metrics in report["judges"].items()
        for name, metric in metrics.items()
        if isinstance(metric, Mapping)
    ]
    rows.sort(key=lambda row: row[1] != "bits_per_byte")
    return [
        Entry(metric_title(judge, name), format_interval(metric), _unit_and_direction(report, judge, name))
        for judge, name, metric in rows
    ]


def _unit_and_direction(report: Report, judge: str, metric: str) -> str:
    if metric not in LOWER_IS_BETTER:
        return ""
    return "; ".join(filter(None, (UNITS.get(metric), describe_direction(direction(report, judge, metric)))))


def direction(report: Report, judge: str, metric: str) -> Direction | None:
    """Whether lower or higher values are better, None if neither is: as recorded, or the known default."""
    name = metric.partition("@")[0]
    if name in report["neither_is_better"].get(judge, ()):
        return None
    return "lower" if name in report["lower_is_better"].get(judge, LOWER_IS_BETTER) else "higher"


def describe_direction(better: Direction | None) -> str:
    """The direction in words: `lower is better`."""
    return f"{better or 'neither direction'} is better"


# Sections --------------------------------------------------------------------------------------------------


def sections(report: Report) -> dict[str, list[Entry]]:
    """What was done, stage by stage. Empty sections are left out."""
    imported = report["imported"]
    found = {
        "student": [*_imported(imported), *_student(report["student"])],
        "data": list(_data(report["data"], report["tokenizer"])),
        "teacher": list(_teacher(report["teacher"], known=not imported and "label" not in report["missing"])),
        "training": list(_training(report["training"])),
        "speed": list(_speed(report["speed"])),
        "judging": list(_judging(report["judges_design"], report["judges_protocol"])),
        ENVIRONMENT: list(_environment(report)),
    }
    return {name: entries for name, entries in found.items() if entries}


def _other_entries(table: Mapping[str, Any], *known: str) -> list[Entry]:
    """Plain values under keys that this module has no wording for, so that nothing recorded is hidden."""
    plain = {k: v for k, v in table.items() if k not in known and isinstance(v, str | int | float)}
    return [
        Entry(readable_name(k), format_number(v) if isinstance(v, float) else format_count(v)) for k, v in plain.items()
    ]


def _imported(imported: Mapping[str, Any] | None) -> Iterator[Entry]:
    """Where an imported student came from. Whether it had a teacher is unknown."""
    if imported:
        yield Entry("imported from", one_line(imported["from"]), one_line(imported["kind"]))


def _student(student: Mapping[str, Any]) -> Iterator[Entry]:
    if "arch" in student:
        yield Entry("architecture", one_line(student["arch"]))
    parameters = student.get("parameters") or {}
    if "total" in parameters:
        total = parameters["total"]
        unique = parameters.get("unique", total)
        note = "" if unique == total else f"unique; {format_count(total)} with shared ones counted at each use"
        yield Entry("parameters", format_count(unique), note)
    yield from _other_entries(student, "arch", "parameters")


def _data(data: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> Iterator[Entry]:
    if "source" in data:
        yield Entry("source", one_line(data["source"]))
    for key, name in (("train", "training set"), ("held_out", "held-out set")):
        if isinstance(data.get(key), Mapping):
            yield Entry(name, _split_size(data[key]))
    if data.get("duplicates"):
        yield Entry("duplicates", format_count(data["duplicates"], "document"), "removed")
    if data.get("empty"):
        yield Entry("empty", format_count(data["empty"], "document"), "removed")
    if tokenizer:
        kind, vocab_size = one_line(tokenizer.get("kind", "")), tokenizer.get("vocab_size")
        yield Entry("tokenizer", f"{kind}, {format_count(vocab_size, 'token')}" if vocab_size else kind)
    yield from _other_entries(data, "source", "train", "held_out", "duplicates", "empty", "fingerprint")


def _split_size(split: Mapping[str, Any]) -> str:
    parts = [format_count(split[key], key.removesuffix("s")) for key in ("documents", "tokens") if key in split]
    return ", ".join([*parts, *([format_bytes(split["bytes"])] if "bytes" in split else [])])


def _teacher(teacher: Mapping[str, Any] | None, known: bool) -> Iterator[Entry]:
    """The teacher's entries. `known` says whether an absent teacher means that there was none."""
    if not teacher:
        if known:
            yield Entry("teacher", "none", "trained on the documents only")
        return
    yield Entry("teacher", one_line(teacher.get("model") or teacher.get("provider", "")), _provider(teacher))
    if "signal" in teacher:
        yield Entry("signal", readable_name(teacher["signal"]), "the part of its output that is learned from")
    if "asked" in teacher or "cached" in teacher:
        asked, cached = teacher.get("asked", 0), teacher.get("cached", 0)
        value = f"{format_count(asked)} requested, {format_count(cached)} from the cache"
        yield Entry("answers", value, _failures(teacher))
    if "prompt_tokens" in teacher or "completion_tokens" in teacher:
        prompts, completions = teacher.get("prompt_tokens", 0), teacher.get("completion_tokens", 0)
        yield Entry("tokens", f"{format_count(prompts)} in prompts, {format_count(completions)} in answers")
    if teacher.get("held_out"):
        yield Entry(
            "held-out answers", format_count(teacher["held_out"]), "not trained on; for the loss on teacher text"
        )
    yield from _soft_targets(teacher.get("soft") or {})
    if teacher.get("usd"):
        yield Entry("cost", f"${teacher['usd']:,.4f}", "at known prices")
    yield from _other_entries(
        teacher,
        *("provider", "model", "signal", "prompts", "asked", "cached", "failed", "refused", "truncated"),
        *("prompt_tokens", "completion_tokens", "fingerprint", "usd", "held_out", "soft"),
    )


def _soft_targets(soft: Mapping[str, Any]) -> Iterator[Entry]:
    """The share of positions with a soft target, the probability mass that these cover, and their size on disk."""
    positions, with_soft = soft.get("positions"), soft.get("with_soft")
    if not positions or with_soft is None:
        return
    yield Entry(
        "soft targets",
        f"{format_count(with_soft)} of {format_count(positions)} positions",
        f"{with_soft / positions:.1%}",
    )
    yield Entry(
        "mass covered", f"{soft.get('mass', 0):.1%}", "of the teacher's probability mass; the rest is one residual"
    )
    note = f"{soft['bytes_a_position']:g} bytes per position" if "bytes_a_position" in soft else ""
    yield Entry("stored", format_bytes(soft.get("bytes", 0)), note)


def _provider(teacher: Mapping[str, Any]) -> str:
    provider = teacher.get("provider")
    return f"through {one_line(provider)}" if provider and provider != teacher.get("model") else ""


def _failures(teacher: Mapping[str, Any]) -> str:
    kinds = ("failed", "refused", "truncated")
    return ", ".join(f"{format_count(teacher[kind])} {kind}" for kind in kinds if teacher.get(kind))


def _training(training: Mapping[str, Any]) -> Iterator[Entry]:
    if "steps" in training:
        epochs = training.get("epochs")
        yield Entry("steps", format_count(training["steps"]), f"{epochs:.1f} epochs" if epochs else "")
    if "tokens" in training:
        yield Entry("training tokens", format_count(training["tokens"]))
    if training.get("loss") is not None:
        yield Entry("final training loss", format_number(training["loss"]), "nats per token")
    if training.get("validation_loss") is not None:
        best, step = training.get("best_loss"), training.get("best_step")
        note = f"; best {format_number(best)} at step {format_count(step)}" if best is not None else ""
        yield Entry("final validation loss", format_number(training["validation_loss"]), f"nats per token{note}")
    if norms := training.get("gradient_norms"):
        value = ", ".join(f"{one_line(name)} {format_number(norm)}" for name, norm in norms.items())
        yield Entry("gradient norms", value, "of the weighted loss terms, at the logits of the last evaluation")
    if teacher_text := training.get("teacher_text"):
        note = f"nats per token; {format_number(teacher_text['bits_per_byte'])} bits per byte of held-out answers"
        yield Entry("loss on teacher text", format_number(teacher_text["loss"]), note)
    if judged := training.get("judged"):
        note = f"of the student's own tokens, covering {judged['mass']:.1%} of the teacher's probability mass"
        yield Entry("on-policy tokens scored", f"{judged['share']:.1%}", note)
    yield from _other_entries(
        training,
        *("steps", "tokens", "epochs", "seconds", "loss", "validation_loss", "best_step", "best_loss"),
        *("gradient_norms", "weights_sha256", "teacher_text", "judged"),
    )


def _speed(speed: Mapping[str, Any]) -> Iterator[Entry]:
    rate = speed.get("training_tokens_per_second")
    if rate:
        yield Entry("training", f"{rate:,.0f} tokens/s", "median over training steps")
    seconds = speed.get("seconds") or {}
    if seconds:
        known = {stage: value for stage, value in seconds.items() if value is not None}
        stages = ", ".join(f"{one_line(stage)} {format_duration(value)}" for stage, value in known.items())
        yield Entry("time", format_duration(sum(known.values())), stages)


def _judging(designs: Mapping[str, Any], protocols: Mapping[str, Any]) -> Iterator[Entry]:
    """The variance components of repeated grades, and the protocol hash of each judge."""
    for judge, criteria in designs.items():
        for criterion, design in criteria.items():
            sizes = (format_count(design[key], key.removesuffix("s")) for key in ("prompts", "samples", "grades"))
            yield Entry(metric_title(judge, criterion), ", ".join(sizes), _judge_noise(design))
    for judge, protocol in protocols.items():
        yield Entry(
            one_line(judge), one_line(protocol.get("hash", "")), "protocol hash; only grades of equal protocols compare"
        )


def _judge_noise(design: Mapping[str, Any]) -> str:
    """The judge's share of the variance, and the minimum detectable difference, as far as they are known."""
    components, detectable = design["variance"], design["detectable"]
    total = sum(filter(None, components.values()))
    noise = components.get("noise")
    notes = [
        f"{100 * noise / total:.0f}% of the variance is judge noise" if noise is not None and total else "",
        f"minimum detectable difference {format_number(detectable)}" if detectable is not None else "",
    ]
    return "; ".join(filter(None, notes))


def _environment(report: Report) -> Iterator[Entry]:
    if report["started"]:
        yield Entry("started", format_time(report["started"]))
    if report["seed"] is not None:
        yield Entry("seed", one_line(report["seed"]))
    if report["device"]:
        yield Entry("device", one_line(report["device"]))
    if report["versions"]:
        pairs = report["versions"].items()
        yield Entry("versions", ", ".join(f"{one_line(name)} {one_line(version)}" for name, version in pairs))
    if report["plugins"]:
        yield Entry("plugins", ", ".join(_plugin(plugin) for plugin in report["plugins"]))
    if weights := report["training"].get("weights_sha256"):
        yield Entry("weights", one_line(weights)[:16], "first digits of the SHA-256")


def _plugin(plugin: Any) -> str:
    if not isinstance(plugin, Mapping):
        return one_line(plugin)
    return f"{one_line(plugin.get('name', ''))} {one_line(plugin.get('version') or '')}".strip()


# Samples ---------------------------------------------------------------------------------------------------


def one_per_prompt(samples: Sequence[Sample]) -> list[Sample]:
    """The first sample of each prompt, in order."""
    return list({sample.prompt: sample for sample in reversed(samples)}.values())[::-1]
