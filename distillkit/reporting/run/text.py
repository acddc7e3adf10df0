"""The report of one run as text: for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...core.records import Sample
from .. import formatting, markdown, terminal
from . import summary

if TYPE_CHECKING:
    from rich.console import RenderableType

Report = Mapping[str, Any]

SAMPLES_IN_MARKDOWN = 8
HINT = "\nBrackets: 95% confidence intervals. report.html has loss curves, samples and the recipe."


def format_report(report: Report, colour: bool = False) -> str:
    """The report for the terminal, printed at the end of a run: metrics first, then what was done."""
    from rich.console import Group
    from rich.text import Text

    title = Text.assemble((formatting.one_line(report["run"]), "bold"), f"  {formatting.one_line(report['status'])}")
    parts: list[RenderableType] = [terminal.heading(title), Text(summary.summary_sentence(report), style="dim")]
    parts += [Text(f"! {alert}", style="yellow") for alert in summary.missing_stage_alerts(report)]
    parts += [Text(f"! {formatting.printable(warning)}", style="yellow") for warning in report["warnings"]]
    metrics = summary.metrics(report)
    sections = {**({"metrics": metrics} if metrics else {}), **summary.sections(report)}
    # Left to the page: on a terminal it would push the metrics off the screen.
    sections.pop(summary.ENVIRONMENT, None)
    return terminal.render(Group(*parts, terminal.sections_table(sections), Text(HINT, style="dim")), colour)


def format_markdown(report: Report, samples: Sequence[Sample]) -> str:
    """The report in Markdown, for a README or a pull request."""
    parts = [f"# {markdown.escape(report['run'])}", markdown.escape(summary.summary_sentence(report))]
    parts += [f"> **Note.** {markdown.escape(alert)}" for alert in summary.missing_stage_alerts(report)]
    parts += [f"> **Warning.** {markdown.escape(warning)}" for warning in report["warnings"]]
    if metrics := summary.metrics(report):
        parts += ["## Metrics", _table(("metric", "value [95% CI]", "unit; direction"), metrics)]
    for title, entries in summary.sections(report).items():
        parts += [f"## {title.capitalize()}", _table(("", "", ""), entries)]
    if shown := summary.one_per_prompt(samples)[:SAMPLES_IN_MARKDOWN]:
        parts += ["## Samples", "The prompt is bold.", *(markdown.quotation(sample) for sample in shown)]
    if report["recipe_text"]:
        parts += ["## The recipe", markdown.code(formatting.printable(report["recipe_text"]), "toml")]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], entries: Sequence[formatting.Entry]) -> str:
    return markdown.table(head, [(entry.name, entry.value, entry.note) for entry in entries])
