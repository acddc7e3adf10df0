"""What a person reads of a report: its figures in words, in one order, and the page that shows them.

`facts` and `headlines` put a report into words; the terminal, Markdown and the page all show the same.
Knows the content of `report.json` and nothing of where it came from: it reads no file of any run. Whatever a
run says is hostile until `clean` and the template's escaping have seen it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from ...core.console import format_duration
from ...core.records import Sample
from .. import template
from ..plots import losses
from ..words import Fact, count, figure, interval, label, one_line, printable, short, size, title, when

Report = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]
Better = Literal["lower", "higher"]

SAMPLES_SHOWN = 20

# What a figure is measured in.
UNITS = {"bits_per_byte": "bits a byte", "loss": "nats a token", "perplexity": "e to the loss"}

# What less is more of, in runs that did not record it.
LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte")


# A report in words -----------------------------------------------------------------------------------------


def headlines(report: Report) -> list[Fact]:
    """Every metric of every judge, bits per byte first."""
    rows = [
        (judge, name, metric)
        for judge, metrics in report["judges"].items()
        for name, metric in metrics.items()
        if isinstance(metric, Mapping)
    ]
    rows.sort(key=lambda row: row[1] != "bits_per_byte")
    return [Fact(title(judge, name), interval(metric), _measured(report, judge, name)) for judge, name, metric in rows]


def _measured(report: Report, judge: str, metric: str) -> str:
    return f"{UNITS[metric]}; {reads(better(report, judge, metric))}" if metric in UNITS else ""


def better(report: Report, judge: str, metric: str) -> Better | None:
    """Which way is better, as the judge said, or as it is known of runs that did not record it; None if neither is."""
    name = metric.partition("@")[0]
    if name in report["neither_is_better"].get(judge, ()):
        return None
    return "lower" if name in report["lower_is_better"].get(judge, LOWER_IS_BETTER) else "higher"


def reads(way: Better | None) -> str:
    """Which way is better, in words."""
    return f"{way or 'neither way'} is better"


def facts(report: Report) -> dict[str, list[Fact]]:
    """What was done, stage by stage. A section without facts is left out."""
    origin = report["imported"]
    sections = {
        "student": [*_brought_in(origin), *_student(report["student"])],
        "data": list(_data(report["data"], report["tokenizer"])),
        "teacher": list(_teacher(report["teacher"], known=not origin and "label" not in report["missing"])),
        "training": list(_training(report["training"])),
        "speed": list(_speed(report["speed"])),
        "judging": list(_judging(report["judges_design"], report["judges_protocol"])),
        "made with": list(_made_with(report)),
    }
    return {name: rows for name, rows in sections.items() if rows}


def _unknown(table: Mapping[str, Any], *known: str) -> list[Fact]:
    """Plain values under keys that this module has no words for, so that nothing recorded is hidden."""
    plain = {k: v for k, v in table.items() if k not in known and isinstance(v, str | int | float)}
    return [Fact(label(k), figure(v) if isinstance(v, float) else count(v)) for k, v in plain.items()]


def _brought_in(origin: Mapping[str, Any] | None) -> Iterator[Fact]:
    """From where; whether it had a teacher there nobody knows."""
    if origin:
        yield Fact("brought in from", one_line(origin["from"]), one_line(origin["kind"]))


def _student(student: Mapping[str, Any]) -> Iterator[Fact]:
    if "arch" in student:
        yield Fact("architecture", one_line(student["arch"]))
    parameters = student.get("parameters") or {}
    if "total" in parameters:
        total = parameters["total"]
        unique = parameters.get("unique", total)
        shared = "" if unique == total else f"unique; {count(total)} counting those that are used twice"
        yield Fact("parameters", count(unique), shared)
    yield from _unknown(student, "arch", "parameters")


def _data(data: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> Iterator[Fact]:
    if "source" in data:
        yield Fact("source", one_line(data["source"]))
    for key in ("train", "held_out"):
        if isinstance(data.get(key), Mapping):
            yield Fact({"train": "trained on"}.get(key, "held out"), _amount(data[key]))
    if data.get("duplicates"):
        yield Fact("duplicates", count(data["duplicates"], "document"), "left out")
    if data.get("empty"):
        yield Fact("empty", count(data["empty"], "document"), "left out")
    if tokenizer:
        kind, words = one_line(tokenizer.get("kind", "")), tokenizer.get("vocab_size")
        yield Fact("tokenizer", f"{kind}, {count(words, 'token')}" if words else kind)
    yield from _unknown(data, "source", "train", "held_out", "duplicates", "empty", "fingerprint")


def _amount(split: Mapping[str, Any]) -> str:
    parts = [count(split[key], key.removesuffix("s")) for key in ("documents", "tokens") if key in split]
    return ", ".join([*parts, *([size(split["bytes"])] if "bytes" in split else [])])


def _teacher(teacher: Mapping[str, Any] | None, known: bool) -> Iterator[Fact]:
    if not teacher:
        if known:
            yield Fact("teacher", "none", "the student learned from the documents alone")
        return
    yield Fact("teacher", one_line(teacher.get("model") or teacher.get("provider", "")), _through(teacher))
    if "signal" in teacher:
        yield Fact("signal", label(teacher["signal"]), "what was used of what it gives")
    if "asked" in teacher or "cached" in teacher:
        asked, cached = teacher.get("asked", 0), teacher.get("cached", 0)
        yield Fact("answers", f"{count(asked)} asked for, {count(cached)} from the cache", _flaws(teacher))
    if "prompt_tokens" in teacher or "completion_tokens" in teacher:
        read, wrote = teacher.get("prompt_tokens", 0), teacher.get("completion_tokens", 0)
        yield Fact("tokens", f"{count(read)} in prompts, {count(wrote)} in answers")
    if teacher.get("held_out"):
        yield Fact("held out", count(teacher["held_out"], "answer"), "kept from training, to look at its own words")
    yield from _soft(teacher.get("soft") or {})
    if teacher.get("usd"):
        yield Fact("spent", f"${teacher['usd']:,.4f}", "by the prices that are known")
    yield from _unknown(
        teacher,
        *("provider", "model", "signal", "prompts", "asked", "cached", "failed", "refused", "truncated"),
        *("prompt_tokens", "completion_tokens", "fingerprint", "usd", "held_out", "soft"),
    )


def _soft(soft: Mapping[str, Any]) -> Iterator[Fact]:
    """How much of the text has a soft target, how much of the teacher's mass those name, and what they take."""
    positions, there = soft.get("positions"), soft.get("with_soft")
    if not positions or there is None:
        return
    yield Fact("soft targets", f"{count(there)} of {count(positions)} positions", f"{there / positions:.1%}")
    yield Fact("mass carried", f"{soft.get('mass', 0):.1%}", "of the teacher's distribution; the rest is one residual")
    note = f"{soft['bytes_a_position']:g} bytes a position" if "bytes_a_position" in soft else ""
    yield Fact("stored", size(soft.get("bytes", 0)), note)


def _through(teacher: Mapping[str, Any]) -> str:
    provider = teacher.get("provider")
    return f"through {one_line(provider)}" if provider and provider != teacher.get("model") else ""


def _flaws(teacher: Mapping[str, Any]) -> str:
    flaws = {"failed": "failed", "refused": "refused", "truncated": "cut short"}
    return ", ".join(f"{count(teacher[key])} {words}" for key, words in flaws.items() if teacher.get(key))


def _training(training: Mapping[str, Any]) -> Iterator[Fact]:
    if "steps" in training:
        epochs = training.get("epochs")
        yield Fact("steps", count(training["steps"]), f"{epochs:.1f} times over the data" if epochs else "")
    if "tokens" in training:
        yield Fact("tokens seen", count(training["tokens"]))
    if training.get("loss") is not None:
        yield Fact("last training loss", figure(training["loss"]), "nats a token")
    if training.get("validation_loss") is not None:
        best, step = training.get("best_loss"), training.get("best_step")
        note = f"; best {figure(best)} at step {count(step)}" if best is not None else ""
        yield Fact("last validation loss", figure(training["validation_loss"]), f"nats a token{note}")
    if norms := training.get("gradient_norms"):
        told = ", ".join(f"{one_line(name)} {figure(norm)}" for name, norm in norms.items())
        yield Fact("gradients of the terms", told, "weighted, at the logits of the last evaluation")
    if spoken := training.get("teacher_text"):
        note = f"nats a token; {figure(spoken['bits_per_byte'])} bits per byte of the answers that were held out"
        yield Fact("on the teacher's text", figure(spoken["loss"]), note)
    if judged := training.get("judged"):
        note = f"of its tokens, which name {judged['mass']:.1%} of the teacher's mass"
        yield Fact("judged of the student's own text", f"{judged['share']:.1%}", note)
    yield from _unknown(
        training,
        *("steps", "tokens", "epochs", "seconds", "loss", "validation_loss", "best_step", "best_loss"),
        *("gradient_norms", "weights_sha256", "teacher_text", "judged"),
    )


def _speed(speed: Mapping[str, Any]) -> Iterator[Fact]:
    rate = speed.get("training_tokens_per_second")
    if rate:
        yield Fact("training", f"{rate:,.0f} tokens a second", "the median while training")
    seconds = speed.get("seconds") or {}
    if seconds:
        known = {stage: value for stage, value in seconds.items() if value is not None}
        stages = ", ".join(f"{one_line(stage)} {format_duration(value)}" for stage, value in known.items())
        yield Fact("time", format_duration(sum(known.values())), stages)


def _judging(designs: Mapping[str, Any], protocols: Mapping[str, Any]) -> Iterator[Fact]:
    """Where the spread of grades came from, and by what each judge judged."""
    for judge, criteria in designs.items():
        for criterion, design in criteria.items():
            sizes = (count(design[key], key.removesuffix("s")) for key in ("prompts", "samples", "grades"))
            yield Fact(title(judge, criterion), ", ".join(sizes), _spread(design))
    for judge, protocol in protocols.items():
        yield Fact(one_line(judge), one_line(protocol.get("hash", "")), "its protocol: grades of equal ones compare")


def _spread(design: Mapping[str, Any]) -> str:
    """How much of the spread is the judge's own noise, and what could have been seen through it, as far as is known."""
    parts, sees = design["variance"], design["detectable"]
    whole = sum(filter(None, parts.values()))
    noise = parts.get("noise")
    said = [
        f"{100 * noise / whole:.0f}% of the spread is the judge's own noise" if noise is not None and whole else "",
        f"two such runs differ visibly from {figure(sees)} on" if sees is not None else "",
    ]
    return "; ".join(filter(None, said))


def _made_with(report: Report) -> Iterator[Fact]:
    if report["started"]:
        yield Fact("started", when(report["started"]))
    if report["seed"] is not None:
        yield Fact("seed", one_line(report["seed"]))
    if report["device"]:
        yield Fact("device", one_line(report["device"]))
    if report["versions"]:
        pairs = report["versions"].items()
        yield Fact("versions", ", ".join(f"{one_line(name)} {one_line(version)}" for name, version in pairs))
    if report["plugins"]:
        yield Fact("plugins", ", ".join(_plugin(plugin) for plugin in report["plugins"]))
    if weights := report["training"].get("weights_sha256"):
        yield Fact("weights", one_line(weights)[:16], "the beginning of their SHA-256")


def _plugin(plugin: Any) -> str:
    if not isinstance(plugin, Mapping):
        return one_line(plugin)
    return f"{one_line(plugin.get('name', ''))} {one_line(plugin.get('version') or '')}".strip()


LACKING = {
    "data": "No data was read",
    "label": "The teacher was not asked, or not to the end",
    "train": "The student was not trained, or not to the end",
    "judge": "Nothing was judged",
}


def lacks(report: Report) -> list[str]:
    """What this run did not do, one sentence a stage."""
    return [
        f"{LACKING.get(stage, stage)}: the stage {stage!r} left no record of its end." for stage in report["missing"]
    ]


def lede(report: Report) -> str:
    """The run in one sentence."""
    student, teacher = report["student"], report["teacher"]
    sizes = student.get("parameters") or {}
    own = sizes.get("unique", sizes.get("total"))
    who = f"A {short(own)}-parameter student" if isinstance(own, int) else "A student"
    arch = f" ({one_line(student['arch'])})" if "arch" in student else ""
    taught = f", taught by {one_line(teacher.get('model') or teacher.get('provider'))}" if teacher else ""
    source = report["data"].get("source")
    return f"{who}{arch}{taught}{f', on {one_line(source)}' if source else ''}."


# Pages -----------------------------------------------------------------------------------------------------


def html(report: Report, metrics: Rows, samples: Sequence[Sample]) -> str:
    """The report as one page that needs nothing else: no script, no font, no picture from elsewhere."""
    return template.render(
        "report.html",
        title=one_line(report["run"]),
        kind="Run report",
        lede=lede(report),
        status=one_line(report["status"]),
        alerts=lacks(report),
        warnings=[printable(warning) for warning in report["warnings"]],
        headlines=headlines(report),
        chart=template.markup(losses(metrics)),  # matplotlib has escaped what stands in it
        sections=facts(report),
        samples=[_shown(sample) for sample in one_a_prompt(samples)[:SAMPLES_SHOWN]],
        samples_note=_of_how_many(samples),
        recipe=printable(report["recipe_text"]),
    )


def one_a_prompt(samples: Sequence[Sample]) -> list[Sample]:
    """The first sample of each prompt, in order."""
    return list({sample.prompt: sample for sample in reversed(samples)}.values())[::-1]


def _shown(sample: Sample) -> dict[str, str]:
    return {"id": one_line(sample.id), "prompt": printable(sample.prompt), "completion": printable(sample.completion)}


def _of_how_many(samples: Sequence[Sample]) -> str:
    shown = min(SAMPLES_SHOWN, len(one_a_prompt(samples)))
    if shown == len(samples):
        return ""
    return f"{count(shown)} of {count(len(samples), 'sample')}, one a prompt; all are in tables/samples.csv."
