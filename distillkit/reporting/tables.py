"""The report of a run, and runs side by side, made from the files of run folders and from nothing else.

So a report can be made again at any time, also of a run that was cut off: a stage without a record is named
as missing. Knows no model, judge or teacher, only what they left behind; how it reads is `page`'s affair.
"""

from __future__ import annotations

import io
import math
import re
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DistillkitError, UsageError
from ..files import read_lines, write_json, write_text
from ..records import Grade, Metric, Sample
from ..runs import SCHEMA, Run
from ..stats import paired_interval
from . import page

if TYPE_CHECKING:
    import pandas
    from rich.console import RenderableType
    from rich.text import Text

Report = dict[str, Any]
Rows = list[dict[str, Any]]

WIDTH = 88
SAMPLES_IN_MARKDOWN = 8

# Criteria of which less is more; of every other, more is better.
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "bits_per_byte"})
# Criteria counted a token, so that they say nothing across tokenizers.
BY_THE_TOKEN = frozenset({"loss", "perplexity"})

BETTER, WORSE, SAME, INCOMPARABLE = "better", "worse", "no difference seen", "not comparable"


# Reading the folder ----------------------------------------------------------------------------------------


def history(run: Run) -> Rows:
    """The rows of `metrics.jsonl`; where a resumed run did a step again, what it said last."""
    rows = _rows(run.metrics)
    return list({(row.get("kind"), row.get("step")): row for row in rows}.values())


def samples_of(run: Run) -> list[Sample]:
    """What the student wrote."""
    return [Sample.from_json(row) for row in _rows(run.samples)]


def _rows(path: Path) -> Rows:
    """JSON lines as plain values; a file that is not that is named."""
    try:
        rows = read_lines(path)
    except (ValueError, OSError) as error:
        raise DistillkitError(f"{path} cannot be read: {error}", "Run that stage again.") from error
    return [plain(row) for row in rows]


def _recipe_text(run: Run) -> str:
    return run.recipe.read_text(encoding="utf-8", errors="replace") if run.recipe.is_file() else ""


def plain(value: Any) -> Any:
    """A value that every JSON reader takes: None for what is not finite, "?" for half a character."""
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return None if isinstance(value, float) and not math.isfinite(value) else value


# The report ------------------------------------------------------------------------------------------------


def build(run: Run) -> Report:
    """The content of `report.json`. Every key is always there; what a run lacks is empty, and `missing`."""
    info, recipe_text = run.info, _recipe_text(run)
    report = {
        "schema": SCHEMA,
        "run": info.get("run") or run.name,
        "recipe": info.get("recipe") or run.path.parent.name,
        "status": info.get("status") or "not known",
        "started": info.get("started"),
        "missing": _missing(info, recipe_text),
        "judges": info.get("judges") or {},
        "student": info.get("student") or {},
        "data": info.get("data") or {},
        "tokenizer": info.get("tokenizer") or {},
        "teacher": info.get("teacher"),
        "training": info.get("training") or {},
        "speed": _speed(history(run), info.get("seconds") or {}),
        "device": info.get("device"),
        "seed": info.get("seed"),
        "versions": info.get("versions") or {},
        "plugins": info.get("plugins") or [],
        "warnings": info.get("warnings") or [],
        "recipe_text": recipe_text,
    }
    return dict(plain(report))


def _missing(info: Mapping[str, Any], recipe_text: str) -> list[str]:
    """The stages that the recipe asks for and that left no record."""
    try:
        recipe = tomllib.loads(recipe_text)
    except tomllib.TOMLDecodeError:
        recipe = {}
    teaches = bool((recipe.get("teacher") or {}).get("provider"))
    # Without a recipe nobody knows whether judging was asked for; then its absence is worth a word.
    judges = bool(recipe.get("judge")) or not recipe
    there = {
        "data": bool(info.get("data")),
        "label": bool(info.get("teacher")) or not teaches,
        "train": bool(info.get("training")),
        "judge": bool(info.get("judges")) or not judges,
    }
    return [stage for stage, done in there.items() if not done]


def _speed(metrics: Rows, seconds: Mapping[str, Any]) -> dict[str, Any]:
    """How fast it was: the median over training steps, which a slow first step does not pull down."""
    rates = [row.get("tokens_per_second") for row in metrics if row.get("kind") == "train"]
    known = [rate for rate in rates if rate]
    return {"training_tokens_per_second": statistics.median(known) if known else None, "seconds": seconds}


def write(run: Run) -> Report:
    """Make all files of the report: for machines, for people, for the browser and for spreadsheets."""
    report, metrics, samples = build(run), history(run), samples_of(run)
    for name, table in csvs(run, report).items():
        write_text(run.path / name, table.to_csv(index=False, lineterminator="\n"))
    write_text(run.path / "report.md", markdown(report, samples))
    write_text(run.path / "report.html", page.html(report, metrics, samples))
    # Last, so that whoever sees it may rely on the others.
    write_json(run.report, report)
    return report


def csvs(run: Run, report: Report) -> dict[str, pandas.DataFrame]:
    """The tables, by their place in the run folder. Text stands in them as it was written, unescaped."""
    import pandas

    judged = [
        {"judge": judge, "metric": name, **{key: metric.get(key) for key in ("value", "low", "high", "n")}}
        for judge, metrics in report["judges"].items()
        for name, metric in metrics.items()
    ]
    defaults = {**Grade("", 0.0).__dict__, "judge": ""}
    tables: dict[str, tuple[Rows, list[str]]] = {
        "judges": (judged, ["judge", "metric", "value", "low", "high", "n"]),
        "training": ([_flat(row) for row in history(run)], ["kind", "step", "loss"]),
        "grades": (
            [{**defaults, **row} for row in _rows(run.grades)],
            ["judge", "criterion", "score", "sample", "document", "weight", "note"],
        ),
        "samples": ([sample.to_json() for sample in samples_of(run)], ["id", "prompt", "completion", "seed"]),
    }
    return {
        f"tables/{name}.csv": pandas.DataFrame(rows, columns=_columns(rows, first))
        for name, (rows, first) in tables.items()
    }


def _columns(rows: Rows, first: list[str]) -> list[str]:
    """All keys of all rows: the known ones first, the others as they come."""
    return list(dict.fromkeys([*first, *(key for row in rows for key in row)]))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics with its terms beside the loss."""
    terms = {f"term_{name}": value for name, value in (row.get("terms") or {}).items()}
    return {**{key: value for key, value in row.items() if key != "terms"}, **terms}


# As text ---------------------------------------------------------------------------------------------------


def text(report: Report, colour: bool = False) -> str:
    """What is printed at the end of a run: figures first, then what was done."""
    from rich.console import Group
    from rich.text import Text

    title = Text.assemble((page.line(report["run"]), "bold"), f"  {page.line(report['status'])}")
    parts: list[RenderableType] = [_ruled(title), Text(page.lede(report), style="dim")]
    parts += [Text(f"! {alert}", style="yellow") for alert in page.lacks(report)]
    parts += [Text(f"! {page.clean(warning)}", style="yellow") for warning in report["warnings"]]
    judged = page.headlines(report)
    sections = {**({"judged": judged} if judged else {}), **page.facts(report)}
    # The page keeps what it was made with; here it would push the figures off the screen.
    sections.pop("made with", None)
    return _printed(Group(*parts, _section_table(sections), Text(PAGE_HINT, style="dim")), colour)


PAGE_HINT = "\nBrackets are 95% intervals. report.html beside it shows curves, samples and the recipe."


def _section_table(sections: Mapping[str, Sequence[page.Fact]]) -> RenderableType:
    """All facts in the same columns, with the title of a section before its first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), width=WIDTH)
    table.add_column(width=max(map(len, sections), default=0), style="bold")
    table.add_column(width=max((_cells(f.name) for rows in sections.values() for f in rows), default=0))
    table.add_column(ratio=1)
    for title, rows in sections.items():
        table.add_row()
        for i, fact in enumerate(rows):
            said = Text.assemble(fact.value, (f"  {fact.note}" if fact.note else "", "dim"))
            table.add_row(Text("" if i else title), Text(fact.name, style="dim"), said)
    return table


def _cells(text: str) -> int:
    """How wide a name stands on the terminal, as far as a column may give way to it."""
    from rich.cells import cell_len

    return min(cell_len(text), 28)


def _ruled(title: Text) -> RenderableType:
    """A title on a line of its own, with air above."""
    from rich.padding import Padding
    from rich.rule import Rule

    return Padding(Rule(title, align="left", style="dim"), (1, 0, 0, 0))


def _printed(content: RenderableType, colour: bool) -> str:
    """Rich's rendering as a string: the same on every terminal, and without one."""
    from rich.console import Console

    stream = io.StringIO()
    console = Console(
        file=stream,
        width=WIDTH,
        color_system="standard" if colour else None,
        force_terminal=colour,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(content)
    return "\n".join(row.rstrip() for row in stream.getvalue().splitlines()) + "\n"


def markdown(report: Report, samples: Sequence[Sample]) -> str:
    """The report for a README or a pull request."""
    parts = [f"# {_md(report['run'])}", _md(page.lede(report))]
    parts += [f"> **Note.** {_md(page.line(alert))}" for alert in page.lacks(report)]
    parts += [f"> **Warning.** {_md(page.line(warning))}" for warning in report["warnings"]]
    if figures := page.headlines(report):
        parts += ["## Judged", _md_table(("metric", "value [95% interval]", "reads"), figures)]
    for title, rows in page.facts(report).items():
        parts += [f"## {title.capitalize()}", _md_table(("", "", ""), rows)]
    if shown := page.one_a_prompt(samples)[:SAMPLES_IN_MARKDOWN]:
        parts += ["## What the student writes", "Bold is the prompt.", *(_md_sample(s) for s in shown)]
    if report["recipe_text"]:
        parts += ["## The recipe", _md_code(page.clean(report["recipe_text"]), "toml")]
    return "\n\n".join(parts) + "\n"


def _md(text: Any) -> str:
    """One line in which nothing is markup."""
    escaped = re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", page.line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _md_table(head: Sequence[str], rows: Sequence[page.Fact]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(map(_md, (fact.name, fact.value, fact.note))) for fact in rows]
    return "\n".join(f"| {row} |" for row in lines)


def _md_sample(sample: Sample) -> str:
    """A quotation, line by line: the prompt bold, then at once what the student wrote."""
    *above, last = sample.prompt.split("\n")
    first, *below = sample.completion.split("\n")
    space = " " if last[-1:].isspace() or first[:1].isspace() else ""
    start = _md_bold(last) + space + _md(first) if last.strip() else _md_start(first)
    rows = [*map(_md_bold, above), start, *map(_md_start, below)]
    # Two spaces at the end keep a line apart from the next.
    return "\n".join(f"> {row}  " if row else ">" for row in rows).rstrip()


def _md_bold(row: str) -> str:
    """HTML's bold: whether Markdown's works depends on the letters beside it."""
    return f"<b>{_md(row)}</b>" if row.strip() else ""


def _md_start(row: str) -> str:
    """A line that begins neither a list nor a heading."""
    return re.sub(r"^([-+=]|\d+(?=[.)]))", lambda m: f"&#{ord(m[0][0])};{m[0][1:]}", _md(row))


def _md_code(text: str, language: str) -> str:
    """A fenced block whose fence is longer than any inside."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


# Runs side by side -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """One run under comparison."""

    name: str
    report: Report
    grades: Mapping[tuple[str, str], Sequence[Grade]]
    prompts: Mapping[str, str]

    def values(self, judge: str, metric: str) -> dict[str, Any] | None:
        """A metric as the judge gave it, or None."""
        found = (self.report["judges"].get(judge) or {}).get(metric)
        return {key: found.get(key) for key in ("value", "low", "high", "n")} if found else None

    def print_of(self, part: str) -> str | None:
        """The fingerprint of the data or the tokenizer."""
        found = self.report[part].get("fingerprint")
        return None if found is None else str(found)


@dataclass(frozen=True)
class _Graded:
    """All that one criterion said of one thing: the score, its weight, and what it is resampled with."""

    score: float
    weight: float
    cluster: str


@dataclass(frozen=True)
class _Pairs:
    """What both runs were graded on, and what the reader must know of it."""

    first: list[_Graded]
    other: list[_Graded]
    note: str = ""
    reason: str = ""


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Every run against the first one: a row a metric and run, paired by document or sample."""
    if len(runs) < 2:
        raise UsageError("a comparison needs two runs", "Name the baseline first: distillkit compare RUN RUN")
    sides = [_side(run, name) for run, name in zip(runs, _names(runs), strict=True)]
    first, *others = sides
    rows = [_row(judge, metric, first, other) for other in others for judge, metric in _metrics(first, other)]
    return {
        "schema": SCHEMA,
        "runs": [side.name for side in sides],
        "about": {side.name: _about(side.report) for side in sides},
        "rows": plain(rows),
        "notes": _notes(sides, rows),
    }


def _names(runs: Sequence[Run]) -> list[str]:
    """The runs' names; those that two folders share get a number."""
    names: list[str] = []
    for run in runs:
        same = sum(name.partition(" (")[0] == run.name for name in names)
        names.append(f"{run.name} ({same + 1})" if same else run.name)
    return names


def _side(run: Run, name: str) -> _Side:
    grades: dict[tuple[str, str], list[Grade]] = {}
    for row in _rows(run.grades):
        grade = Grade.from_json(row)
        grades.setdefault((row.get("judge", ""), grade.criterion), []).append(grade)
    return _Side(name, build(run), grades, {sample.id: sample.prompt for sample in samples_of(run)})


def _about(report: Report) -> dict[str, Any]:
    return {
        "status": report["status"],
        "parameters": (report["student"].get("parameters") or {}).get("total"),
        "training_tokens": report["training"].get("tokens"),
    }


def _metrics(*sides: _Side) -> list[tuple[str, str]]:
    """Judges and metrics that any of the runs has, in the order of the first; bits per byte before all."""
    found = dict.fromkeys(
        (judge, metric)
        for side in sides
        for judge, metrics in side.report["judges"].items()
        for metric in metrics
    )
    return sorted(found, key=lambda pair: pair[1] != "bits_per_byte")


def _row(judge: str, metric: str, first: _Side, other: _Side) -> dict[str, Any]:
    """One metric of one run against the baseline's."""
    row = {
        "judge": judge,
        "metric": metric,
        "values": {side.name: side.values(judge, metric) for side in (first, other)},
        "baseline": first.name,
        "versus": other.name,
        **{"difference": None, "low": None, "high": None, "n": 0, "verdict": INCOMPARABLE, "note": ""},
    }
    if reason := _why_not(judge, metric, first, other):
        return {**row, "note": reason}
    if metric == "perplexity" and (judge, metric) not in first.grades:
        return {**row, **_by_loss(_row(judge, "loss", first, other))}
    pairs = _pairs(first, other, (judge, metric))
    if pairs.reason:
        return {**row, "note": pairs.reason}
    contrast = paired_interval(
        [graded.score for graded in pairs.other],
        [graded.score for graded in pairs.first],
        [graded.weight for graded in pairs.first],
        [graded.cluster for graded in pairs.first],
    )
    figures = {"difference": contrast.value, "low": contrast.low, "high": contrast.high, "n": contrast.n}
    return {**row, **figures, "verdict": _verdict(metric, contrast), "note": pairs.note}


def _why_not(judge: str, metric: str, first: _Side, other: _Side) -> str:
    """The reason why two figures cannot be set against each other at all, or nothing."""
    for side in (first, other):
        if side.values(judge, metric) is None:
            return f"{side.name} has no such figure"
    if metric in BY_THE_TOKEN:
        ours, theirs = first.print_of("tokenizer"), other.print_of("tokenizer")
        if ours is None or theirs is None:
            return "nobody recorded whether the tokenizers are the same"
        if ours != theirs:
            return "different tokenizers: a token is not the same amount of text; see bits per byte"
    return ""


def _by_loss(loss: Mapping[str, Any]) -> dict[str, Any]:
    """Perplexity rises and falls with the loss, so their verdicts agree; a difference would say no more."""
    return {
        "verdict": loss["verdict"],
        "n": loss["n"],
        "note": loss["note"] or "decided by the loss, which it follows",
    }


def _verdict(metric: str, contrast: Metric) -> str:
    if contrast.low is None or contrast.high is None:
        return INCOMPARABLE
    if contrast.low <= 0 <= contrast.high:
        return SAME
    return BETTER if (contrast.value < 0) == (metric in LOWER_IS_BETTER) else WORSE


def _pairs(first: _Side, other: _Side, key: tuple[str, str]) -> _Pairs:
    """The documents or samples that both were graded on, with one score of each run."""
    ours, theirs = (_by_thing(side.grades.get(key, ())) for side in (first, other))
    both = [thing for thing in ours if thing in theirs]
    if not ours or not theirs:
        return _Pairs([], [], reason="not graded one by one, so nothing can be paired")
    if reason := _other_things(first, other, ours, theirs, both):
        return _Pairs([], [], reason=reason)

    same = [thing for thing in both if _same_prompt(first, other, thing)]
    if len({ours[thing].cluster for thing in same}) < 2:
        return _Pairs([], [], reason="fewer than two pairs: no interval can be given")
    notes = [_dropped(len(same), max(len(ours), len(theirs)))]
    if any(not math.isclose(ours[t].weight, theirs[t].weight) for t in same):
        notes.append(f"weighted as in {first.name}, since the weights differ")
    return _Pairs([ours[t] for t in same], [theirs[t] for t in same], "; ".join(filter(None, notes)))


def _dropped(used: int, most: int) -> str:
    return f"{used:,} of {most:,} were graded in both" if used < most else ""


def _by_thing(grades: Sequence[Grade]) -> dict[tuple[str, str], _Graded]:
    """Grades by what they are of. Several of one thing become their mean, with the weight of all of them."""
    sums: dict[tuple[str, str], _Graded] = {}
    for grade in grades:
        thing = ("document", grade.document) if grade.document is not None else ("sample", grade.sample)
        # What was not finite was read as None: it is no score, and the note on pairs will count it as lost.
        if thing[1] is None or grade.score is None or (grade.weight or 0) <= 0:
            continue
        so_far = sums.setdefault((thing[0], thing[1]), _Graded(0.0, 0.0, str(grade.cluster)))
        score, weight = so_far.score + grade.score * grade.weight, so_far.weight + grade.weight
        sums[thing[0], thing[1]] = replace(so_far, score=score, weight=weight)
    return {thing: replace(graded, score=graded.score / graded.weight) for thing, graded in sums.items()}


def _other_things(
    first: _Side,
    other: _Side,
    ours: Mapping[tuple[str, str], _Graded],
    theirs: Mapping[tuple[str, str], _Graded],
    both: Sequence[tuple[str, str]],
) -> str:
    """Why what bears the same name may yet be something else, or nothing.

    Documents of the same data are the same. Of other data, equal names prove nothing (they are often
    numbers): there all names, all weights and the size of the held-out text must agree.
    """
    if not both:
        return "different held-out documents" if next(iter(ours))[0] == "document" else "different samples"
    print_of = first.print_of("data")
    if both[0][0] == "sample" or (print_of is not None and print_of == other.print_of("data")):
        return ""
    sizes = [_held_out(side) for side in (first, other)]
    agree = (
        ours.keys() == theirs.keys()
        and all(math.isclose(ours[thing].weight, theirs[thing].weight) for thing in both)
        and sizes[0] == sizes[1]
        and None not in sizes[0]
    )
    return "" if agree else "different held-out documents"


def _held_out(side: _Side) -> tuple[Any, Any]:
    held_out = side.report["data"].get("held_out") or {}
    return held_out.get("documents"), held_out.get("bytes")


def _same_prompt(first: _Side, other: _Side, thing: tuple[str, str]) -> bool:
    """Whether two samples of one name answer one prompt, as far as the runs kept their prompts."""
    kind, name = thing
    prompts = {side.prompts[name] for side in (first, other) if kind == "sample" and name in side.prompts}
    return len(prompts) < 2


def _notes(sides: Sequence[_Side], rows: Rows) -> list[str]:
    """What a reader must know of the comparison as a whole."""
    notes = [f"{side.name}: {lack}" for side in sides for lack in page.lacks(side.report)]
    first, *others = sides
    ours = first.report["training"].get("tokens")
    for other in others:
        theirs = other.report["training"].get("tokens")
        if ours is not None and theirs is not None and ours != theirs:
            notes.append(
                f"{first.name} was trained on {ours:,} tokens and {other.name} on {theirs:,}: "
                "part of a difference may be that of the budgets."
            )
    if tested := sum(row["low"] is not None for row in rows):
        notes += _chance(tested)
    return notes


def _chance(tested: int) -> list[str]:
    """The warning that many comparisons need: each interval is right for itself alone."""
    if tested < 2:
        return []
    return [
        f"{tested} differences were tested, each at 95%: one in twenty shows by chance where there is none."
    ]


def compare_text(comparison: Mapping[str, Any], colour: bool = False) -> str:
    """The comparison as it is printed."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_section_table({"runs": page.about(comparison)})]
    parts += [_contrast_table(table) for table in page.contrasts(comparison)]
    parts.append(Text("\nA difference is that run minus the baseline, with its 95% interval.", style="dim"))
    parts += [Text(f"! {page.clean(note)}", style="yellow") for note in comparison["notes"]]
    return _printed(Group(*parts), colour)


def _contrast_table(contrasts: Mapping[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), width=WIDTH, header_style="dim")
    for head, width in (("metric", 25), ("baseline", 8), ("this", 8), ("difference", 23), ("verdict", 20)):
        table.add_column(head, width=width)
    styles = {BETTER: "green", WORSE: "red"}
    notes: dict[str, str] = {}
    for row in contrasts["rows"]:
        mark = f" [{notes.setdefault(row['note'], str(len(notes) + 1))}]" if row["note"] else ""
        verdict = Text(f"{row['verdict']}{mark}", styles.get(row["verdict"], ""))
        first, other = (row[key].partition(" [")[0] for key in ("first", "other"))
        table.add_row(*map(Text, (row["metric"], first, other, row["difference"])), verdict)
    title = Text(f"{contrasts['versus']} against {contrasts['baseline']}", "bold")
    lines = [Text(f"[{number}] {note}", "dim") for note, number in notes.items()]
    return Group(_ruled(title), table, *lines)


# Many runs, a line each ------------------------------------------------------------------------------------


def listing(runs: Sequence[Run]) -> Rows:
    """One row a run for `distillkit runs`; a run whose record is broken is listed too."""
    return [_listed(run) for run in runs]


def _listed(run: Run) -> dict[str, Any]:
    try:
        info = plain(run.info)
    except DistillkitError:
        info = {"status": "unreadable"}
    judge, metric, figures = _headline(info.get("judges") or {})
    return {
        "run": run.name,
        "recipe": info.get("recipe") or run.path.parent.name,
        "status": info.get("status") or "not known",
        "parameters": ((info.get("student") or {}).get("parameters") or {}).get("total"),
        "judge": judge,
        "metric": metric,
        **{key: figures.get(key) for key in ("value", "low", "high")},
        "steps": (info.get("training") or {}).get("steps"),
        "started": info.get("started"),
    }


def _headline(judges: Mapping[str, Any]) -> tuple[str | None, str | None, Mapping[str, Any]]:
    """The one metric that stands for a run: bits per byte, or else the first there is."""
    found = [(judge, name, value) for judge, metrics in judges.items() for name, value in metrics.items()]
    found.sort(key=lambda row: row[1] != "bits_per_byte")
    return found[0] if found else (None, None, {})


def listing_text(rows: Rows, colour: bool = False) -> str:
    """The listing as it is printed."""
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return "There are no runs yet. Make one: distillkit run quickstart\n"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in ("run", "status", "parameters", "judged", "steps", "started"):
        table.add_column(head, justify="right" if head in ("parameters", "steps") else "left")
    for row in rows:
        table.add_row(*map(Text, _listed_words(row)))
    return _printed(table, colour)


def _listed_words(row: Mapping[str, Any]) -> list[str]:
    counts = ["" if row[key] is None else page.count(row[key]) for key in ("parameters", "steps")]
    judged = f"{page.label(row['metric'])} {page.interval(row).partition(' [')[0]}" if row["metric"] else ""
    started = page.when(row["started"]).removesuffix(" UTC") if row["started"] else ""
    return [page.line(row["run"]), page.line(row["status"]), counts[0], judged, counts[1], started]
