"""The report of a run, made from the files of run folders and from nothing else.

So a report can be made again at any time, also of a run that was cut off: a stage without a record is named
as missing. Knows no model, judge or teacher, only what they left behind; how it reads is `page`'s affair.
"""

from __future__ import annotations

import math
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import DistillkitError
from ...core.files import read_jsonl, write_json, write_text
from ...core.records import Grade, Sample
from ...core.run_folder import SCHEMA, VERDICTS, Run
from .. import markdown, terminal, words
from . import page

if TYPE_CHECKING:
    import pandas
    from rich.console import RenderableType

Report = dict[str, Any]
Rows = list[dict[str, Any]]

SAMPLES_IN_MARKDOWN = 8

# Reading the folder ----------------------------------------------------------------------------------------


def history(run: Run) -> Rows:
    """The rows of `metrics.jsonl`; where a resumed run did a step again, what it said last."""
    rows = lines(run.metrics)
    return list({(row.get("kind"), row.get("step")): row for row in rows}.values())


def samples_of(run: Run) -> list[Sample]:
    """What the student wrote."""
    info = run.info
    wrote = (info.get("sampling") or {}).get("weights") or info.get("judged_weights")
    return [Sample.from_json(row) for row in lines(run.samples)] if _are_its_own(info, wrote) else []


def grades_of(run: Run) -> Rows:
    """What the judges said of it."""
    info = run.info
    return lines(run.grades) if _are_its_own(info, info.get("judged_weights")) else []


def lines(path: Path) -> Rows:
    """JSON lines as plain values; a file that is not that is named."""
    try:
        rows = read_jsonl(path)
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


def build(run: Run, log: Rows | None = None) -> Report:
    """The content of `report.json`. Every key is always there; what a run lacks is empty, and `missing`.

    `log` is the run's history, for those who have read it already.
    """
    info, recipe_text = _of_these_weights(run.info), _recipe_text(run)
    report = {
        "schema": SCHEMA,
        "run": info.get("run") or run.name,
        "recipe": info.get("recipe") or run.path.parent.name,
        "status": info.get("status") or "not known",
        "started": info.get("started"),
        "missing": _missing(info, recipe_text),
        "judges": info.get("judges") or {},
        "judges_protocol": info.get("judges_protocol") or {},
        "judges_design": info.get("judges_design") or {},
        "lower_is_better": info.get("lower_is_better") or {},
        "neither_is_better": info.get("neither_is_better") or {},
        "together": info.get("together") or [],
        "student": info.get("student") or {},
        "imported": info.get("imported"),
        "data": info.get("data") or {},
        "tokenizer": info.get("tokenizer") or {},
        "teacher": _teacher(info),
        "training": info.get("training") or {},
        "speed": _speed(history(run) if log is None else log, info.get("seconds") or {}),
        "device": info.get("device"),
        "seed": info.get("seed"),
        "versions": info.get("versions") or {},
        "plugins": info.get("plugins") or [],
        "warnings": info.get("warnings") or [],
        "recipe_text": recipe_text,
    }
    return dict(plain(report))


def _teacher(info: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What is known of the teacher. It may have been asked in training, too: what it cost is that of all sittings."""
    teacher, usd = info.get("teacher"), (info.get("spent") or {}).get("usd")
    return {**teacher, "usd": round(usd, 6)} if teacher and usd else teacher


def _of_these_weights(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run's record without verdicts on other weights."""
    if _are_its_own(info, info.get("judged_weights")):
        return info
    return {key: value for key, value in info.items() if key not in VERDICTS}


def _are_its_own(info: Mapping[str, Any], weights: str | None) -> bool:
    """Whether weights are those of the run, as far as both are known: a student may be judged while it is trained."""
    own = (info.get("training") or {}).get("weights_sha256")
    return None in (weights, own) or weights == own


def missing(run: Run) -> list[str]:
    """The stages that a run's recipe asks for and that left no record of their end."""
    return _missing(_of_these_weights(run.info), _recipe_text(run))


def _missing(info: Mapping[str, Any], recipe_text: str) -> list[str]:
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
        "train": _trained(info, recipe),
        "judge": bool(info.get("judges")) or not judges,
    }
    return [stage for stage, done in there.items() if not done]


def _trained(info: Mapping[str, Any], recipe: Mapping[str, Any]) -> bool:
    """Whether the student was trained to the recipe's last step; one from elsewhere was trained there."""
    if info.get("imported"):
        return True
    training, wanted = info.get("training") or {}, (recipe.get("train") or {}).get("steps")
    if not isinstance(wanted, int):
        return bool(training)
    steps = training.get("steps")
    return isinstance(steps, int) and steps >= wanted


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
    write_text(run.path / "report.md", marked(report, samples))
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
            [{**defaults, **row} for row in grades_of(run)],
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
    """A row of metrics with its terms, and their gradients, beside the loss."""
    tables = {"terms": "term", "gradient_norms": "gradient_norm", "judged": "judged"}
    inner = {f"{word}_{name}": one for key, word in tables.items() for name, one in (row.get(key) or {}).items()}
    return {**{key: value for key, value in row.items() if key not in tables}, **inner}


# As text ---------------------------------------------------------------------------------------------------


def text(report: Report, colour: bool = False) -> str:
    """What is printed at the end of a run: figures first, then what was done."""
    from rich.console import Group
    from rich.text import Text

    title = Text.assemble((words.one_line(report["run"]), "bold"), f"  {words.one_line(report['status'])}")
    parts: list[RenderableType] = [terminal.ruled(title), Text(page.lede(report), style="dim")]
    parts += [Text(f"! {alert}", style="yellow") for alert in page.lacks(report)]
    parts += [Text(f"! {words.printable(warning)}", style="yellow") for warning in report["warnings"]]
    judged = page.headlines(report)
    sections = {**({"judged": judged} if judged else {}), **page.facts(report)}
    # The page keeps what it was made with; here it would push the figures off the screen.
    sections.pop("made with", None)
    return terminal.printed(Group(*parts, terminal.sections(sections), Text(PAGE_HINT, style="dim")), colour)


PAGE_HINT = "\nBrackets are 95% intervals. report.html beside it shows curves, samples and the recipe."


def marked(report: Report, samples: Sequence[Sample]) -> str:
    """The report for a README or a pull request."""
    parts = [f"# {markdown.line(report['run'])}", markdown.line(page.lede(report))]
    parts += [f"> **Note.** {markdown.line(words.one_line(alert))}" for alert in page.lacks(report)]
    parts += [f"> **Warning.** {markdown.line(words.one_line(warning))}" for warning in report["warnings"]]
    if figures := page.headlines(report):
        parts += ["## Judged", _marked_facts(("metric", "value [95% interval]", "reads"), figures)]
    for title, rows in page.facts(report).items():
        parts += [f"## {title.capitalize()}", _marked_facts(("", "", ""), rows)]
    if shown := page.one_a_prompt(samples)[:SAMPLES_IN_MARKDOWN]:
        parts += ["## What the student writes", "Bold is the prompt.", *(markdown.quotation(s) for s in shown)]
    if report["recipe_text"]:
        parts += ["## The recipe", markdown.code(words.printable(report["recipe_text"]), "toml")]
    return "\n\n".join(parts) + "\n"


def _marked_facts(head: Sequence[str], facts: Sequence[words.Fact]) -> str:
    return markdown.table(head, [(fact.name, fact.value, fact.note) for fact in facts])


# Many runs, a line each ------------------------------------------------------------------------------------


def listing(runs: Sequence[Run]) -> Rows:
    """One row a run for `distillkit runs`; a run whose record is broken is listed too."""
    return [_listed(run) for run in runs]


def _listed(run: Run) -> dict[str, Any]:
    try:
        info = _of_these_weights(plain(run.info))
    except DistillkitError:
        info = {"status": "unreadable"}
    judge, metric, figures = _headline(info.get("judges") or {})
    return {
        "run": run.name,
        "recipe": info.get("recipe") or run.path.parent.name,
        "status": info.get("status") or "not known",
        "parameters": ((info.get("student") or {}).get("parameters") or {}).get("unique"),
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
    return terminal.printed(table, colour)


def _listed_words(row: Mapping[str, Any]) -> list[str]:
    counts = ["" if row[key] is None else words.count(row[key]) for key in ("parameters", "steps")]
    judged = f"{words.label(row['metric'])} {words.interval(row).partition(' [')[0]}" if row["metric"] else ""
    started = words.when(row["started"]).removesuffix(" UTC") if row["started"] else ""
    return [words.one_line(row["run"]), words.one_line(row["status"]), counts[0], judged, counts[1], started]
