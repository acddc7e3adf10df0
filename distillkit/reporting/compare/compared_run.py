"""One run of a comparison, read from its folder: its report, grades, samples and curves.

Knows the files of a run and nothing of any other run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.records import Grade, Sample
from ...core.run_folder import Run
from .. import curves
from ..run.report import build_report, read_grades, read_metrics, read_samples, to_json_values


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison. `grades` are keyed by judge and criterion, `recipe` by dotted keys."""

    name: str
    report: Mapping[str, Any]
    grades: Mapping[tuple[str, str], Sequence[Grade]]
    samples: Sequence[Sample]
    curves: Mapping[str, Any]
    recipe: Mapping[str, Any]

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts by their ids."""
        return {sample.prompt_id: sample.prompt for sample in self.samples}

    def grades_of(self, judge: str, metric: str) -> Sequence[Grade]:
        """The grades behind a metric. `grammar@0.5` selects the samples that were drawn at temperature 0.5."""
        name, at, temperature = metric.rpartition("@")
        if not at or (judge, metric) in self.grades:
            return self.grades.get((judge, metric), ())
        selected = {
            sample.id
            for sample in self.samples
            if sample.temperature is not None and f"{sample.temperature:g}" == temperature
        }
        return [grade for grade in self.grades.get((judge, name), ()) if grade.sample in selected]

    def samples_graded_for(self, judge: str, metric: str) -> set[str | None]:
        """The ids of all samples that a metric was computed over, including those without a grade of their own."""
        criteria = {criterion for name, criterion in self.grades if name == judge}
        suffix = "" if metric in criteria else "".join(metric.rpartition("@")[1:])
        return {grade.sample for criterion in criteria for grade in self.grades_of(judge, criterion + suffix)}

    def metric(self, judge: str, metric: str) -> dict[str, Any] | None:
        """Value, interval and n of a metric, or None."""
        found = (self.report["judges"].get(judge) or {}).get(metric)
        return {key: found.get(key) for key in ("value", "low", "high", "n")} if found else None

    def fingerprint(self, part: str) -> str | None:
        """The fingerprint of `data` or `tokenizer`."""
        found = self.report[part].get("fingerprint")
        return None if found is None else str(found)

    def protocol(self, judge: str) -> Mapping[str, Any] | None:
        """The protocol of a judge: its hash and the facts behind it. None if it was not recorded."""
        found: Mapping[str, Mapping[str, Any]] = self.report["judges_protocol"]
        return found.get(judge)


def read_run(run: Run, name: str) -> ComparedRun:
    """Read a run under the given name. Only its thinned curves stay in memory, not the rows of its metrics."""
    metrics = read_metrics(run)
    report = build_report(run, metrics)
    recipe = _recipe(report["recipe_text"])
    return ComparedRun(name, report, _grades(run), read_samples(run), curves.downsample(metrics), recipe)


def unique_names(runs: Sequence[Run]) -> list[str]:
    """The names of the runs. Repeated names get a number: `a/1`, `a/1 (2)`."""
    found: list[str] = []
    for run in runs:
        same = sum(name.partition(" (")[0] == run.name for name in found)
        found.append(f"{run.name} ({same + 1})" if same else run.name)
    return found


def _grades(run: Run) -> dict[tuple[str, str], list[Grade]]:
    grades: dict[tuple[str, str], list[Grade]] = {}
    for row in read_grades(run):
        grade = Grade.from_json(row)
        grades.setdefault((row.get("judge", ""), grade.criterion), []).append(grade)
    return grades


def _recipe(text: str) -> dict[str, Any]:
    """The resolved recipe with dotted keys such as `train.steps`; empty if it is not valid TOML."""
    try:
        return dict(_flatten(to_json_values(tomllib.loads(text))))
    except tomllib.TOMLDecodeError:
        return {}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for i, item in enumerate(value):
                yield from _flatten(item, f"{prefix}{key}.{item.get('name', i)}.")
        else:
            yield f"{prefix}{key}", value
