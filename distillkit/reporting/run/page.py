"""The HTML page of one run: a single file without scripts, fonts or images from other hosts.

Text from a run is untrusted: it is escaped with `printable` or `one_line` here, and for HTML by the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.records import Sample
from .. import template
from ..formatting import format_count, one_line, printable
from ..plots import plot_losses
from . import summary

Report = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]

SAMPLES_SHOWN = 20


def render_html(report: Report, metrics: Rows, samples: Sequence[Sample]) -> str:
    """The page. `metrics` are the rows of `metrics.jsonl`."""
    return template.render(
        "report.html",
        title=one_line(report["run"]),
        kind="Run report",
        lede=summary.summary_sentence(report),
        status=one_line(report["status"]),
        alerts=summary.missing_stage_alerts(report),
        warnings=[printable(warning) for warning in report["warnings"]],
        metrics=summary.metrics(report),
        chart=template.trusted_markup(plot_losses(metrics)),  # matplotlib has escaped its text
        sections=summary.sections(report),
        samples=[_escape_sample(sample) for sample in summary.one_per_prompt(samples)[:SAMPLES_SHOWN]],
        samples_note=_samples_note(samples),
        recipe=printable(report["recipe_text"]),
    )


def _escape_sample(sample: Sample) -> dict[str, str]:
    return {"id": one_line(sample.id), "prompt": printable(sample.prompt), "completion": printable(sample.completion)}


def _samples_note(samples: Sequence[Sample]) -> str:
    shown = min(SAMPLES_SHOWN, len(summary.one_per_prompt(samples)))
    if shown == len(samples):
        return ""
    return (
        f"{format_count(shown)} of {format_count(len(samples), 'sample')}, one per prompt; tables/samples.csv has all."
    )
