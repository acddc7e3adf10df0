"""A comparison as one page that needs nothing else: its tables in the markup, its pictures drawn by its own script.

Knows the content of a comparison and the sides it was made of. Whatever a run says is cleaned here and escaped by the
template or by `template.data`; the page's policy lets no script run but its own, whose hash it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from ...core.console import format_duration
from ...core.records import Sample
from .. import frames, template, words
from ..run import provenance
from ..run.page import UNITS, reads
from . import text as compare_text
from .compared_run import Side

Comparison = Mapping[str, Any]
Cell = dict[str, Any]

COLOURS = 6  # of the style sheet; the baseline has the colour of ink
SHAPES = 4  # dashes and markers, when colours come round again
SHOWN = 8  # runs that are shown at first; the others wait for a click
CHARACTERS = 2_500_000  # of samples, so that a page of fifty runs stays one that a browser opens at once
MANY = 5  # runs up to which a fact has a row and a run has a column

# What a run took: how the page writes it, and what it is called on an axis.
COSTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "parameters": ("parameters", words.short),
    "training_tokens": ("training tokens", words.short),
    "teacher_calls": ("teacher calls", words.count),
    "usd": ("dollars", lambda value: f"${value:,.2f}"),
    "seconds": ("time", format_duration),
    "tokens_per_second": ("tokens a second", lambda value: f"{value:,.0f}"),
}
WEIGHED = ("usd", "seconds", "training_tokens", "teacher_calls", "parameters", "tokens_per_second")
SIZES = ("parameters", "training_tokens")
AXES = {
    "usd": "dollars spent on the teacher",
    "seconds": "wall-clock seconds",
    "tokens_per_second": "training tokens/s",
}


def html(comparison: Comparison, found: Sequence[Side]) -> str:
    """The page."""
    script, style = template.source("compare.js"), template.source("style.css")
    prompts = _prompts(comparison, found)
    return template.render(
        "compare.html",
        policy=f"script-src {template.fingerprint(script)}; style-src {template.fingerprint(style)}",
        script=template.markup(script),
        data=template.data(_cleaned(_data(comparison, found))),
        title=_title(comparison),
        lede=_lede(comparison),
        notes=[words.printable(note) for note in comparison["notes"]],
        runs=_overview(comparison),
        differences=_differences(comparison),
        recipes=_by_run(comparison, "recipes"),
        provenance=_by_run(comparison, "provenance"),
        shared=_shared(comparison),
        prompts=prompts,
        samples_note=_of_how_many(prompts, found),
        reads=compare_text.READS,
    )


def _title(comparison: Comparison) -> str:
    names = [words.one_line(name) for name in comparison["runs"]]
    if len(names) > 3:
        return f"{len(names) - 1} runs beside {names[0]}"
    return " and ".join([", ".join(names[:-1]), names[-1]])


def _lede(comparison: Comparison) -> str:
    baseline, metric = words.one_line(comparison["baseline"]), compare_text.ranked_by(comparison)
    order = f" Ranked by {metric}, {_direction(comparison)}." if metric else ""
    return f"Each run against {baseline}, pair by pair on what both were judged on.{order}"


def _direction(comparison: Comparison) -> str:
    return reads(comparison["metrics"][_place(comparison)]["better"])


# Tables -----------------------------------------------------------------------------------------------------


def _cell(text: str, value: Any = None, **more: Any) -> Cell:
    """A cell: its text with an interval in brackets set apart, and what it is sorted by."""
    shown, _, interval = text.partition(" [")
    plain = {"verdict": "", "note": "", "style": "", "run": None, "said": False}
    return {**plain, "text": shown, "range": interval and f"[{interval}", "value": value, **more}


def _table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], numbers: int = 1) -> dict[str, Any]:
    """A table; from the column `numbers` on, cells are figures."""
    return {"heads": heads, "rows": rows, "numbers": numbers}


def _name(comparison: Comparison, run: str) -> Cell:
    """The cell of a run's name, in its colour."""
    name = words.one_line(run)
    return _cell(name, name, run=comparison["runs"].index(run), style=_style(_turns(comparison)[run]))


def _overview(comparison: Comparison) -> dict[str, Any]:
    """A row a run: its rank, its figures with a mark each, what it took."""
    records = frames.records(frames.runs(comparison))
    costs = [key for key in COSTS if len({row[key] for row in records}) > 1]
    titles = compare_text.titles(comparison)
    heads = ["run", "rank", *titles.values(), *(COSTS[key][0] for key in costs), "status"]
    return _table(heads, [[*_measured(comparison, row), *_took(row, costs)] for row in records])


def _measured(comparison: Comparison, row: Mapping[str, Any]) -> Iterator[Cell]:
    yield _name(comparison, row["run"])
    yield _cell("–" if row["rank"] is None else str(row["rank"]), row["rank"])
    for judge, metric in compare_text.titles(comparison):
        key = f"{judge}.{metric}"
        values = {"value": row[key], "low": row[f"{key}.low"], "high": row[f"{key}.high"]}
        verdict = row[f"{key}.verdict"] or ""
        yield _cell(compare_text.value_of(values if row[key] is not None else None), row[key], verdict=verdict)


def _took(row: Mapping[str, Any], costs: Sequence[str]) -> Iterator[Cell]:
    for key in costs:
        yield _cell("–" if row[key] is None else COSTS[key][1](row[key]), row[key])
    yield _cell(words.one_line(row["status"]), words.one_line(row["status"]))


def _differences(comparison: Comparison) -> dict[str, Any]:
    """A row a metric and run, as on a terminal, with the p that decided."""
    heads = ("run", "metric", "verdict", "baseline", "this", "difference", "p", "sees", "pairs")
    return _table(heads, [_difference(comparison, row) for row in comparison["rows"]], numbers=3)


def _difference(comparison: Comparison, row: Mapping[str, Any]) -> list[Cell]:
    ours, theirs = (row["values"].get(row[side]) for side in ("baseline", "versus"))
    sees = row["detectable"]
    return [
        _name(comparison, row["versus"]),
        _cell(compare_text.title_of(comparison, row)),
        _cell(row["verdict"], verdict=row["verdict"], note=words.printable(row["note"]), said=True),
        *(_cell(compare_text.value_of(values), values and values["value"]) for values in (ours, theirs)),
        _cell(compare_text.difference_of(row), row["difference"]),
        _cell(compare_text.chance(row["p_adjusted"]), row["p_adjusted"]),
        _cell("–" if sees is None else words.figure(sees), sees),
        _cell(words.count(row["n"]), row["n"]),
    ]


def _by_run(comparison: Comparison, name: str) -> dict[str, Any]:
    """What differs between the runs: a column a run, or of many runs a row a run."""
    table = frames.frames(comparison)[name]
    differing = [not provenance.same(row["values"]) for row in comparison[name]]
    table = table[differing] if len(table) else table
    if len(comparison["runs"]) > MANY and len(table):
        table = frames.wide(table)
    rows = [[_cell(_brief(value)) for value in row.values()] for row in frames.records(table)]
    return _table([words.one_line(head) for head in table.columns], rows, numbers=len(table.columns))


def _shared(comparison: Comparison) -> list[words.Fact]:
    """What is the same in all runs."""
    facts = [(row["fact"], row["values"]) for row in comparison["provenance"]]
    sizes = [(COSTS[key][0], {run: own[key] for run, own in comparison["about"].items()}) for key in SIZES]
    same = [(name, next(iter(values.values()))) for name, values in [*sizes, *facts] if provenance.same(values)]
    return [words.Fact(words.one_line(name), _brief(value)) for name, value in same if value is not None]


def _brief(value: Any) -> str:
    """A recipe's value or a fact; of a hash its beginning, and of a time its minute."""
    text = words.count(value) if type(value) is int else compare_text.setting(value)
    is_hash = len(text) >= 32 and all(letter in "0123456789abcdef" for letter in text)
    return text[: provenance.SHORT] if is_hash else words.when(text)


# Samples ----------------------------------------------------------------------------------------------------


def _prompts(comparison: Comparison, found: Sequence[Side]) -> list[dict[str, Any]]:
    """Prompts with what each run wrote, prompts of most runs first, until the page has enough.

    Whole rounds are taken: one sample of every run to each prompt, then a second, so that no run shows more.
    """
    by_prompt: dict[str, list[list[Sample]]] = {}
    for index, side in enumerate(found):
        for sample in side.samples:
            by_prompt.setdefault(sample.prompt, [[] for _ in found])[index].append(sample)
    order = sorted(by_prompt, key=lambda prompt: -sum(map(bool, by_prompt[prompt])))
    shown: dict[str, list[dict[str, Any]]] = {prompt: [] for prompt in order}
    left, scores, turns = CHARACTERS, [_scores(side) for side in found], _turns(comparison)
    for turn in range(max((len(own) for runs in by_prompt.values() for own in runs), default=0)):
        for prompt in order:
            cards = [
                _card(i, side, own[turn], scores[i], turns[side.name])
                for i, side, own in _turn(found, by_prompt[prompt], turn)
            ]
            left -= sum(len(card["text"]) + len(card["grades"]) + 200 for card in cards)
            if left < 0:
                break
            shown[prompt] += cards
    return [{"prompt": words.printable(p), "cards": sorted(c, key=itemgetter("turn"))} for p, c in shown.items() if c]


def _turn(
    found: Sequence[Side], written: Sequence[list[Sample]], turn: int
) -> Iterator[tuple[int, Side, list[Sample]]]:
    return ((i, side, own) for i, (side, own) in enumerate(zip(found, written, strict=True)) if len(own) > turn)


def _card(index: int, side: Side, sample: Sample, scores: Mapping[str, str], turn: int) -> dict[str, Any]:
    """A sample as it is shown."""
    return {
        "run": index,
        "turn": turn,
        "style": _style(turn),
        "name": words.one_line(side.name),
        "text": words.printable(sample.completion).lstrip(" "),
        "grades": scores[sample.id],
    }


def _scores(side: Side) -> dict[str, str]:
    """What is known of each sample, in a line: its temperature, where there are several, and what judges said."""
    scores: dict[str, dict[str, list[float]]] = {sample.id: {} for sample in side.samples}
    for (_, criterion), grades in side.grades.items():
        for grade in grades:
            if grade.sample in scores and grade.score is not None:
                scores[grade.sample].setdefault(words.label(criterion), []).append(grade.score)
    several = len({sample.temperature for sample in side.samples}) > 1
    lines = {}
    for sample in side.samples:
        hot = [f"temperature {sample.temperature:g}"] if several and sample.temperature is not None else []
        said = [f"{name} {sum(own) / len(own):.3g}" for name, own in scores[sample.id].items()]
        lines[sample.id] = " · ".join([*hot, *said])
    return lines


def _of_how_many(prompts: Sequence[Mapping[str, Any]], found: Sequence[Side]) -> str:
    shown, every = sum(len(prompt["cards"]) for prompt in prompts), sum(len(side.samples) for side in found)
    if shown == every:
        return ""
    return f"{words.count(shown)} of {words.count(every, 'sample')} stand here; --csv writes all of them."


# What the script draws --------------------------------------------------------------------------------------


def _order(comparison: Comparison) -> list[int]:
    """The runs by their ranks, as places in the list of runs."""
    ranked = [row["run"] for row in comparison["ranking"]["rows"]] or comparison["runs"]
    return [comparison["runs"].index(name) for name in ranked]


def _turns(comparison: Comparison) -> dict[str, int]:
    """Whose turn it is to get a colour: the best first, so that those shown at first differ most; the baseline is 0."""
    others = [index for index in _order(comparison) if index]
    return {comparison["runs"][index]: turn for turn, index in enumerate([0, *others])}


def _style(turn: int) -> str:
    """The classes that colour a run: the baseline in ink, the others in turn."""
    return f"run c{(turn - 1) % COLOURS} s{_shape(turn)}" if turn else "run base"


def _shape(turn: int) -> int:
    """Which marker and dash a run has: the next when all colours are used."""
    return max(0, turn - 1) // COLOURS % SHAPES


def _data(comparison: Comparison, found: Sequence[Side]) -> dict[str, Any]:
    order, turns = _order(comparison), _turns(comparison)
    return {
        "runs": [_run(comparison["about"][side.name], turns[side.name], side) for side in found],
        "order": order,
        "shown": sorted({0, *order[: SHOWN - 1]}) if len(order) > SHOWN else sorted(order),
        "metrics": [_metric(comparison, metric) for metric in comparison["metrics"]],
        "ranked": _place(comparison),
        "costs": _costs(comparison),
    }


def _run(about: Mapping[str, Any], turn: int, side: Side) -> dict[str, Any]:
    known = about["training_tokens"] and about["steps"]
    return {
        "name": words.one_line(side.name),
        "style": _style(turn),
        "shape": _shape(turn),
        "tokens_a_step": about["training_tokens"] / about["steps"] if known else None,
        **side.curves,
    }


def _place(comparison: Comparison) -> int:
    """Which metric decides the order."""
    ranking = comparison["ranking"]
    keys = [(metric["judge"], metric["metric"]) for metric in comparison["metrics"]]
    return keys.index((ranking["judge"], ranking["metric"])) if keys else 0


def _metric(comparison: Comparison, metric: Mapping[str, Any]) -> dict[str, Any]:
    """A metric of all runs: figures and verdicts in the order of the runs."""
    key = (metric["judge"], metric["metric"])
    figures = {row["run"]: row for row in comparison["figures"] if (row["judge"], row["metric"]) == key}
    verdicts = {row["versus"]: row["verdict"] for row in comparison["rows"] if (row["judge"], row["metric"]) == key}
    values = [figures.get(name) for name in comparison["runs"]]
    return {
        "title": compare_text.title_of(comparison, metric),
        "reads": "; ".join(filter(None, (UNITS.get(metric["metric"]), reads(metric["better"])))),
        "better": metric["better"],
        "values": [[own[part] for part in frames.FIGURES] if own else None for own in values],
        "said": [compare_text.value_of(own) for own in values],
        "verdicts": [verdicts.get(name, "") for name in comparison["runs"]],
    }


def _costs(comparison: Comparison) -> list[dict[str, Any]]:
    """What quality is weighed against: every cost in which two runs differ."""
    costs = []
    for key in WEIGHED:
        title, say = COSTS[key]
        values = [comparison["about"][name][key] for name in comparison["runs"]]
        if len({value for value in values if value is not None}) > 1:
            said = ["" if value is None else say(value) for value in values]
            costs.append({"title": AXES.get(key, title), "values": values, "said": said})
    return costs


def _cleaned(value: Any) -> Any:
    """All text of a value without what moves a cursor or turns a line around."""
    if isinstance(value, Mapping):
        return {key: _cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return words.one_line(value) if isinstance(value, str) else value
