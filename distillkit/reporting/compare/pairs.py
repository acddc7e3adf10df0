"""Which grades of two runs are of the same thing, so that they may be set against each other. Knows no statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...core.records import Grade
from .compared_run import Side

Thing = tuple[str, str]  # "document" or "prompt", and its name


@dataclass(frozen=True)
class Graded:
    """All that one criterion said of one thing: the score and its weight."""

    score: float
    weight: float


@dataclass(frozen=True)
class Pairs:
    """What both runs were graded on, and what the reader must know of it; `reason` says why there is nothing."""

    first: Mapping[Thing, Graded] = field(default_factory=dict)
    other: Mapping[Thing, Graded] = field(default_factory=dict)
    note: str = ""
    reason: str = ""


def pairs(first: Side, other: Side, key: tuple[str, str]) -> Pairs:
    """The documents or prompts that both were graded on, with one score of each run.

    Two samples of one prompt have no more in common than the prompt, so a run's score there is that of all of them.
    """
    ours, theirs = (_by_thing(side.graded(*key)) for side in (first, other))
    both = [thing for thing in ours if thing in theirs]
    if not ours or not theirs:
        return Pairs(reason="not graded one by one, so nothing can be paired")
    if reason := _other_things(first, other, ours, theirs, both):
        return Pairs(reason=reason)

    prompts = first.prompts, other.prompts
    same = [thing for thing in both if _same_prompt(prompts, thing)]
    if len(same) < 2:
        return Pairs(reason="fewer than two pairs: no interval can be given")
    notes = [_dropped(len(same), max(len(ours), len(theirs)))]
    if not _weighed_alike(ours, theirs, same):
        notes.append(f"weighted as in {first.name}, since the weights differ")
    return Pairs({t: ours[t] for t in same}, {t: theirs[t] for t in same}, "; ".join(filter(None, notes)))


def _weighed_alike(ours: Mapping[Thing, Graded], theirs: Mapping[Thing, Graded], same: Sequence[Thing]) -> bool:
    """Whether both runs weigh things alike: prompts in the same measure, for one may have more samples of each."""
    scale = 1.0
    if same[0][0] == "prompt":
        scale = ours[same[0]].weight / theirs[same[0]].weight
    return all(math.isclose(ours[thing].weight, scale * theirs[thing].weight, rel_tol=1e-6) for thing in same)


def _dropped(used: int, most: int) -> str:
    return f"{used:,} of {most:,} were graded in both" if used < most else ""


def _by_thing(grades: Sequence[Grade]) -> dict[Thing, Graded]:
    """Grades by what they are of. Several of one thing become their mean, with the weight of all of them."""
    sums: dict[Thing, Graded] = {}
    for grade in grades:
        # What was not finite was read as None: it is no score, and the note on pairs will count it as lost.
        if grade.cluster is None or grade.score is None or (grade.weight or 0) <= 0:
            continue
        thing = ("prompt" if grade.document is None else "document", grade.cluster)
        so_far = sums.setdefault(thing, Graded(0.0, 0.0))
        score, weight = so_far.score + grade.score * grade.weight, so_far.weight + grade.weight
        sums[thing] = replace(so_far, score=score, weight=weight)
    return {thing: replace(graded, score=graded.score / graded.weight) for thing, graded in sums.items()}


def _other_things(
    first: Side, other: Side, ours: Mapping[Thing, Graded], theirs: Mapping[Thing, Graded], both: Sequence[Thing]
) -> str:
    """Why what bears the same name may yet be something else, or nothing.

    Documents of the same data are the same. Of other data, equal names prove nothing (they are often
    numbers): there all names, all weights and the size of the held-out text must agree.
    """
    if not both:
        return "different held-out documents" if next(iter(ours))[0] == "document" else "different prompts"
    print_of = first.fingerprint("data")
    if both[0][0] == "prompt" or (print_of is not None and print_of == other.fingerprint("data")):
        return ""
    sizes = [_held_out(side) for side in (first, other)]
    agree = (
        ours.keys() == theirs.keys()
        and all(math.isclose(ours[thing].weight, theirs[thing].weight) for thing in both)
        and sizes[0] == sizes[1]
        and None not in sizes[0]
    )
    return "" if agree else "different held-out documents"


def _held_out(side: Side) -> tuple[Any, Any]:
    held_out = side.report["data"].get("held_out") or {}
    return held_out.get("documents"), held_out.get("bytes")


def _same_prompt(prompts: tuple[Mapping[str, str], Mapping[str, str]], thing: Thing) -> bool:
    """Whether prompts of one name are one prompt, as far as the runs kept their prompts."""
    kind, name = thing
    return len({side[name] for side in prompts if kind == "prompt" and name in side}) < 2
