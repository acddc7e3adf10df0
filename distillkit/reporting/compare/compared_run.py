"""What one run brings to a comparison, read from its folder alone: its report, grades, samples and curves.

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
from ..run import tables


@dataclass(frozen=True)
class Side:
    """One run under comparison."""

    name: str
    report: Mapping[str, Any]
    grades: Mapping[tuple[str, str], Sequence[Grade]]
    samples: Sequence[Sample]
    curves: Mapping[str, Any]
    recipe: Mapping[str, Any]

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts by their names."""
        return {sample.prompt_id: sample.prompt for sample in self.samples}

    def graded(self, judge: str, metric: str) -> Sequence[Grade]:
        """The grades behind a metric; `grammar@0.5` is that of the samples which were written at that temperature."""
        name, at, warm = metric.rpartition("@")
        if not at or (judge, metric) in self.grades:
            return self.grades.get((judge, metric), ())
        own = {
            sample.id for sample in self.samples if sample.temperature is not None and f"{sample.temperature:g}" == warm
        }
        return [grade for grade in self.grades.get((judge, name), ()) if grade.sample in own]

    def counted(self, judge: str, metric: str) -> set[str | None]:
        """The samples that were graded together for a metric, whether each got a grade by it or not."""
        criteria = {criterion for name, criterion in self.grades if name == judge}
        warm = "" if metric in criteria else "".join(metric.rpartition("@")[1:])
        return {grade.sample for criterion in criteria for grade in self.graded(judge, criterion + warm)}

    def values(self, judge: str, metric: str) -> dict[str, Any] | None:
        """A metric as the judge gave it, or None."""
        found = (self.report["judges"].get(judge) or {}).get(metric)
        return {key: found.get(key) for key in ("value", "low", "high", "n")} if found else None

    def fingerprint(self, part: str) -> str | None:
        """The fingerprint of the data or the tokenizer."""
        found = self.report[part].get("fingerprint")
        return None if found is None else str(found)

    def protocol(self, judge: str) -> Mapping[str, Any] | None:
        """How a judge judged: its hash and the facts behind it. None where nobody recorded that."""
        found: Mapping[str, Mapping[str, Any]] = self.report["judges_protocol"]
        return found.get(judge)


def read(run: Run, name: str) -> Side:
    """A run's side; the rows of its log are let go of as soon as the curves are drawn from them."""
    log = tables.history(run)
    report = tables.build(run, log)
    return Side(name, report, _grades(run), tables.samples_of(run), curves.thinned(log), _recipe(report["recipe_text"]))


def names(runs: Sequence[Run]) -> list[str]:
    """The runs' names; those that two folders share get a number."""
    found: list[str] = []
    for run in runs:
        same = sum(name.partition(" (")[0] == run.name for name in found)
        found.append(f"{run.name} ({same + 1})" if same else run.name)
    return found


def _grades(run: Run) -> dict[tuple[str, str], list[Grade]]:
    grades: dict[tuple[str, str], list[Grade]] = {}
    for row in tables.grades_of(run):
        grade = Grade.from_json(row)
        grades.setdefault((row.get("judge", ""), grade.criterion), []).append(grade)
    return grades


def _recipe(text: str) -> dict[str, Any]:
    """Every key of a resolved recipe by its full name, `train.steps`; of a broken one, none."""
    try:
        return dict(_flat(tables.plain(tomllib.loads(text))))
    except tomllib.TOMLDecodeError:
        return {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for i, item in enumerate(value):
                yield from _flat(item, f"{prefix}{key}.{item.get('name', i)}.")
        else:
            yield f"{prefix}{key}", value
