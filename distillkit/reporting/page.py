"""What a person reads of a report: its figures in words, in one order, and the page that shows them.

`facts` and `headlines` put a report into words; the terminal, Markdown and the page all show the same.
Knows the content of `report.json` and nothing of where it came from: it reads no file of any run. Whatever a
run says is hostile until `clean` and the template's escaping have seen it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ..progress import clock
from ..records import Sample
from .plots import compare_losses, losses

Report = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]

SAMPLES_SHOWN = 20

# What a figure is measured in, and how to read it.
UNITS = {
    "bits_per_byte": "bits a byte; lower is better",
    "loss": "nats a token; lower is better",
    "perplexity": "e to the loss; lower is better",
}


# Words -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """One line of a report: what, how much, and what to know about it."""

    name: str
    value: str
    note: str = ""


def clean(value: Any) -> str:
    """Text in which whatever would move a cursor, turn a line around or be no character is spelt out."""
    return "".join(_visible(letter) for letter in str(value))


def line(value: Any) -> str:
    """Clean text on one line."""
    return clean(" ".join(str(value).split()))


def _visible(letter: str) -> str:
    # Joiners are format characters too, but scripts and emoji need them, and they move nothing.
    harmless = letter in "\n\t\u200c\u200d"
    odd = not harmless and unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return letter if not odd else f"\\u{ord(letter):04x}"


def figure(value: float | None, decimals: int | None = None) -> str:
    """A number, as precisely as asked, or else with four digits that matter."""
    if value is None or not math.isfinite(value):
        return "not known"
    if abs(value) >= 1e7 or 0 < abs(value) < 1e-5:
        return f"{value:.3g}"
    if decimals is None:
        decimals = 4 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text


def interval(metric: Mapping[str, Any], signed: bool = False) -> str:
    """A figure with its interval, `2.01 [1.98, 2.05]`, no more precise than the interval allows."""
    value, low, high = (metric.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "not known"
    sign = "+" if signed and value > 0 else ""
    if low is None or high is None:
        return sign + figure(value)
    decimals = _decimals(value, high - low)
    return f"{sign}{figure(value, decimals)} [{figure(low, decimals)}, {figure(high, decimals)}]"


def _decimals(value: float, width: float) -> int | None:
    """How many decimals still say something, when the interval is this wide."""
    if not math.isfinite(width) or width <= 0:
        return None
    least = 2 if abs(value) < 10 else int(abs(value) < 100)
    return min(6, max(least, -math.floor(math.log10(width / 5))))


def count(value: Any, unit: str = "") -> str:
    """A whole number with its unit: `1 document`, `3,000 documents`."""
    number = f"{value:,}" if isinstance(value, int) else line(value)
    return f"{number} {unit if value == 1 else unit + 's'}" if unit else number


def size(value: float) -> str:
    """Bytes as people say them."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.{0 if units[0] == 'bytes' else 1}f} {units[0]}"


def short(value: int) -> str:
    """A large number in three digits: 1.07M."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{letter}"
    return str(value)


def label(name: str) -> str:
    """The name of a metric or key, for reading."""
    return line(name).replace("_", " ")


def title(judge: str, metric: str) -> str:
    """A metric under the name of its judge, unless that would say the same twice."""
    return label(metric) if judge == metric else f"{line(judge)}: {label(metric)}"


def _unknown(table: Mapping[str, Any], *known: str) -> list[Fact]:
    """Plain values under keys that this module has no words for, so that nothing recorded is hidden."""
    plain = {k: v for k, v in table.items() if k not in known and isinstance(v, str | int | float)}
    return [Fact(label(k), figure(v) if isinstance(v, float) else count(v)) for k, v in plain.items()]


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
    return [Fact(title(judge, name), interval(metric), UNITS.get(name, "")) for judge, name, metric in rows]


def facts(report: Report) -> dict[str, list[Fact]]:
    """What was done, stage by stage. A section without facts is left out."""
    sections = {
        "student": list(_student(report["student"])),
        "data": list(_data(report["data"], report["tokenizer"])),
        "teacher": list(_teacher(report["teacher"], "label" in report["missing"])),
        "training": list(_training(report["training"])),
        "speed": list(_speed(report["speed"])),
        "made with": list(_made_with(report)),
    }
    return {name: rows for name, rows in sections.items() if rows}


def _student(student: Mapping[str, Any]) -> Iterator[Fact]:
    if "arch" in student:
        yield Fact("architecture", line(student["arch"]))
    parameters = student.get("parameters") or {}
    if "total" in parameters:
        total = parameters["total"]
        unique = parameters.get("unique", total)
        shared = "" if unique == total else f"unique; {count(total)} counting those that are used twice"
        yield Fact("parameters", count(unique), shared)
    yield from _unknown(student, "arch", "parameters")


def _data(data: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> Iterator[Fact]:
    if "source" in data:
        yield Fact("source", line(data["source"]))
    for key in ("train", "held_out"):
        if isinstance(data.get(key), Mapping):
            yield Fact({"train": "trained on"}.get(key, "held out"), _amount(data[key]))
    if data.get("duplicates"):
        yield Fact("duplicates", count(data["duplicates"], "document"), "left out")
    if data.get("empty"):
        yield Fact("empty", count(data["empty"], "document"), "left out")
    if tokenizer:
        kind, words = line(tokenizer.get("kind", "")), tokenizer.get("vocab_size")
        yield Fact("tokenizer", f"{kind}, {count(words, 'token')}" if words else kind)
    yield from _unknown(data, "source", "train", "held_out", "duplicates", "empty", "fingerprint")


def _amount(split: Mapping[str, Any]) -> str:
    parts = [count(split[key], key.removesuffix("s")) for key in ("documents", "tokens") if key in split]
    return ", ".join([*parts, *([size(split["bytes"])] if "bytes" in split else [])])


def _teacher(teacher: Mapping[str, Any] | None, missing: bool) -> Iterator[Fact]:
    if not teacher:
        if not missing:
            yield Fact("teacher", "none", "the student learned from the documents alone")
        return
    yield Fact("teacher", line(teacher.get("model") or teacher.get("provider", "")), _through(teacher))
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
    return f"through {line(provider)}" if provider and provider != teacher.get("model") else ""


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
        told = ", ".join(f"{line(name)} {figure(norm)}" for name, norm in norms.items())
        yield Fact("gradients of the terms", told, "weighted, at the logits of the last evaluation")
    if spoken := training.get("teacher_text"):
        note = f"nats a token; {figure(spoken['bits_per_byte'])} bits per byte of the answers that were held out"
        yield Fact("on the teacher's text", figure(spoken["loss"]), note)
    yield from _unknown(
        training,
        *("steps", "tokens", "epochs", "seconds", "loss", "validation_loss", "best_step", "best_loss"),
        *("gradient_norms", "weights_sha256", "teacher_text"),
    )


def _speed(speed: Mapping[str, Any]) -> Iterator[Fact]:
    rate = speed.get("training_tokens_per_second")
    if rate:
        yield Fact("training", f"{rate:,.0f} tokens a second", "the median while training")
    seconds = speed.get("seconds") or {}
    if seconds:
        known = {stage: value for stage, value in seconds.items() if value is not None}
        stages = ", ".join(f"{line(stage)} {clock(value)}" for stage, value in known.items())
        yield Fact("time", clock(sum(known.values())), stages)


def _made_with(report: Report) -> Iterator[Fact]:
    if report["started"]:
        yield Fact("started", when(report["started"]))
    if report["seed"] is not None:
        yield Fact("seed", line(report["seed"]))
    if report["device"]:
        yield Fact("device", line(report["device"]))
    if report["versions"]:
        pairs = report["versions"].items()
        yield Fact("versions", ", ".join(f"{line(name)} {line(version)}" for name, version in pairs))
    if report["plugins"]:
        yield Fact("plugins", ", ".join(_plugin(plugin) for plugin in report["plugins"]))
    if weights := report["training"].get("weights_sha256"):
        yield Fact("weights", line(weights)[:16], "the beginning of their SHA-256")


def _plugin(plugin: Any) -> str:
    if not isinstance(plugin, Mapping):
        return line(plugin)
    return f"{line(plugin.get('name', ''))} {line(plugin.get('version') or '')}".strip()


def when(stamp: Any) -> str:
    """A time as people read it, from the one that was recorded."""
    text = line(stamp)
    return f"{text[:10]} {text[11:16]} UTC" if len(text) == 20 and text.endswith("Z") else text


STAGES = {
    "data": "No data was read",
    "label": "The teacher was not asked, or not to the end",
    "train": "The student was not trained, or not to the end",
    "judge": "Nothing was judged",
}


def lacks(report: Report) -> list[str]:
    """What this run did not do, one sentence a stage."""
    return [f"{STAGES.get(stage, stage)}: the stage {stage!r} left no record." for stage in report["missing"]]


def lede(report: Report) -> str:
    """The run in one sentence."""
    student, teacher = report["student"], report["teacher"]
    sizes = student.get("parameters") or {}
    own = sizes.get("unique", sizes.get("total"))
    who = f"A {short(own)}-parameter student" if isinstance(own, int) else "A student"
    arch = f" ({line(student['arch'])})" if "arch" in student else ""
    taught = f", taught by {line(teacher.get('model') or teacher.get('provider'))}" if teacher else ""
    source = report["data"].get("source")
    return f"{who}{arch}{taught}{f', on {line(source)}' if source else ''}."


# Pages -----------------------------------------------------------------------------------------------------


def html(report: Report, metrics: Rows, samples: Sequence[Sample]) -> str:
    """The report as one page that needs nothing else: no script, no font, no picture from elsewhere."""
    return _render(
        title=line(report["run"]),
        kind="Run report",
        lede=lede(report),
        status=line(report["status"]),
        alerts=lacks(report),
        warnings=[clean(warning) for warning in report["warnings"]],
        headlines=headlines(report),
        chart=losses(metrics),
        chart_note="Thin: as measured at each step. Thick and dashed: smoothed over a twentieth of the run.",
        sections=facts(report),
        samples=[_shown(sample) for sample in one_a_prompt(samples)[:SAMPLES_SHOWN]],
        samples_note=_of_how_many(samples),
        recipe=clean(report["recipe_text"]),
        comparison=None,
    )


def compare_html(comparison: Report, histories: Mapping[str, Rows]) -> str:
    """The comparison as one page of the same kind."""
    return _render(
        title=" and ".join(line(name) for name in comparison["runs"]),
        kind="Comparison",
        lede=f"Each run against {line(comparison['runs'][0])}, pair by pair on what both were judged on.",
        status="done",
        chart=compare_losses(histories),
        chart_note="Points: validation. Faint: training, smoothed. "
        "Losses over different tokenizers do not compare; bits per byte do.",
        comparison=contrasts(comparison),
        about=about(comparison),
        alerts=[clean(note) for note in comparison["notes"]],
    )


def one_a_prompt(samples: Sequence[Sample]) -> list[Sample]:
    """The first sample of each prompt, in order."""
    return list({sample.prompt: sample for sample in reversed(samples)}.values())[::-1]


def _shown(sample: Sample) -> dict[str, str]:
    return {"id": line(sample.id), "prompt": clean(sample.prompt), "completion": clean(sample.completion)}


def _of_how_many(samples: Sequence[Sample]) -> str:
    shown = min(SAMPLES_SHOWN, len(one_a_prompt(samples)))
    if shown == len(samples):
        return ""
    return f"{count(shown)} of {count(len(samples), 'sample')}, one a prompt; all are in tables/samples.csv."


def about(comparison: Report) -> list[Fact]:
    """The runs that are compared: the baseline first."""
    rows = []
    for i, (name, run) in enumerate(comparison["about"].items()):
        known = [
            f"{count(run['parameters'])} parameters" if run["parameters"] is not None else "",
            f"{count(run['training_tokens'])} training tokens" if run["training_tokens"] is not None else "",
            "" if run["status"] == "done" else line(run["status"]),
        ]
        rows.append(Fact(line(name), ", ".join(filter(None, known)), "the baseline" if i == 0 else ""))
    return rows


def contrasts(comparison: Report) -> list[dict[str, Any]]:
    """The comparison in words: a table for each other run, a row for each metric."""
    baseline = comparison["runs"][0]
    tables = []
    for other in comparison["runs"][1:]:
        rows = [_contrast(row, baseline, other) for row in comparison["rows"] if row["versus"] == other]
        tables.append({"versus": line(other), "baseline": line(baseline), "rows": rows})
    return tables


def _contrast(row: Mapping[str, Any], baseline: str, other: str) -> dict[str, str]:
    values = row["values"]
    return {
        "metric": title(row["judge"], row["metric"]),
        "first": interval(values[baseline]) if values.get(baseline) else "–",
        "other": interval(values[other]) if values.get(other) else "–",
        "difference": interval({**row, "value": row["difference"]}, signed=True)
        if row["difference"] is not None
        else "–",
        "verdict": row["verdict"],
        "note": clean(row["note"]),
    }


def _render(**values: Any) -> str:
    """Fill the template. Everything is escaped but the charts, which matplotlib has escaped already."""
    from jinja2 import Environment
    from markupsafe import Markup

    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render({**values, "chart": Markup(values["chart"])})
