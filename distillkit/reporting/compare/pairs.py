"""Pairs the grades of two runs by document or prompt. Knows no statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...core.records import Grade
from .compared_run import ComparedRun

Item = tuple[str, str]  # what was graded: "document" or "prompt", and its id


@dataclass(frozen=True)
class ItemScore:
    """The weighted mean of all grades of one item by one criterion, and the sum of their weights."""

    score: float
    weight: float


@dataclass(frozen=True)
class Pairs:
    """The scores of both runs on the items that both were graded on.

    `note` is a remark on the pairs; `reason` says why there are none.
    """

    baseline: Mapping[Item, ItemScore] = field(default_factory=dict)
    other: Mapping[Item, ItemScore] = field(default_factory=dict)
    note: str = ""
    reason: str = ""


def pair_grades(baseline: ComparedRun, other: ComparedRun, metric: tuple[str, str]) -> Pairs:
    """Pair the grades of a metric, given as judge and name, by document or prompt.

    Samples of one prompt are not paired one by one, since only the prompt is common: each run's score of a prompt is
    the mean over its samples.
    """
    ours, theirs = (_score_items(run.grades_of(*metric)) for run in (baseline, other))
    common = [item for item in ours if item in theirs]
    if not ours or not theirs:
        return Pairs(reason="no grades of single documents or prompts, so nothing can be paired")
    if reason := _mismatch(baseline, other, ours, theirs, common):
        return Pairs(reason=reason)

    prompts = baseline.prompts, other.prompts
    paired = [item for item in common if _is_same_prompt(prompts, item)]
    if len(paired) < 2:
        return Pairs(reason="fewer than two pairs, so there is no confidence interval")
    notes = [_unpaired_note(len(paired), max(len(ours), len(theirs)))]
    if not _have_equal_weights(ours, theirs, paired):
        notes.append(f"weighted as in {baseline.name}, since the weights differ")
    note = "; ".join(filter(None, notes))
    return Pairs({item: ours[item] for item in paired}, {item: theirs[item] for item in paired}, note)


def _have_equal_weights(
    ours: Mapping[Item, ItemScore], theirs: Mapping[Item, ItemScore], items: Sequence[Item]
) -> bool:
    """Whether the weights agree; those of prompts up to a factor, since one run may have more samples per prompt."""
    scale = 1.0
    if items[0][0] == "prompt":
        scale = ours[items[0]].weight / theirs[items[0]].weight
    return all(math.isclose(ours[item].weight, scale * theirs[item].weight, rel_tol=1e-6) for item in items)


def _unpaired_note(paired: int, total: int) -> str:
    return f"{paired:,} of {total:,} were graded in both runs" if paired < total else ""


def _score_items(grades: Sequence[Grade]) -> dict[Item, ItemScore]:
    """One score per item: the weighted mean of its grades, with the sum of their weights."""
    sums: dict[Item, ItemScore] = {}
    for grade in grades:
        # Non-finite scores were read as None. They are dropped, which the note about unpaired items shows.
        if grade.cluster is None or grade.score is None or (grade.weight or 0) <= 0:
            continue
        item = ("prompt" if grade.document is None else "document", grade.cluster)
        total = sums.setdefault(item, ItemScore(0.0, 0.0))
        score, weight = total.score + grade.score * grade.weight, total.weight + grade.weight
        sums[item] = replace(total, score=score, weight=weight)
    return {item: replace(total, score=total.score / total.weight) for item, total in sums.items()}


def _mismatch(
    baseline: ComparedRun,
    other: ComparedRun,
    ours: Mapping[Item, ItemScore],
    theirs: Mapping[Item, ItemScore],
    common: Sequence[Item],
) -> str:
    """Why items with equal ids may not be the same items, or "".

    Documents of data with one fingerprint are the same. Otherwise equal ids prove nothing (they are often numbers):
    then all ids, all weights and the size of the held-out text must agree.
    """
    if not common:
        return "different held-out documents" if next(iter(ours))[0] == "document" else "different prompts"
    fingerprint = baseline.fingerprint("data")
    if common[0][0] == "prompt" or (fingerprint is not None and fingerprint == other.fingerprint("data")):
        return ""
    sizes = [_held_out_size(run) for run in (baseline, other)]
    agree = (
        ours.keys() == theirs.keys()
        and all(math.isclose(ours[item].weight, theirs[item].weight) for item in common)
        and sizes[0] == sizes[1]
        and None not in sizes[0]
    )
    return "" if agree else "different held-out documents"


def _held_out_size(run: ComparedRun) -> tuple[Any, Any]:
    held_out = run.report["data"].get("held_out") or {}
    return held_out.get("documents"), held_out.get("bytes")


def _is_same_prompt(prompts: tuple[Mapping[str, str], Mapping[str, str]], item: Item) -> bool:
    """Whether a prompt id has the same text in both runs, as far as the texts are known."""
    kind, name = item
    return len({texts[name] for texts in prompts if kind == "prompt" and name in texts}) < 2
