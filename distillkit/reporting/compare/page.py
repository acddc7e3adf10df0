"""The HTML page of a comparison: one self-contained file with tables in the markup and plots drawn by its own script.

Knows the content of a comparison and the runs that it was built from. Text from a run is untrusted: it is cleaned here
and escaped by the template or by `template.embed_json`. The page's content-security policy allows its own script only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from ...core.console import format_duration
from ...core.records import Sample
from .. import formatting, template
from ..run.summary import UNITS, describe_direction
from . import dataframes, provenance
from . import text as comparison_text
from .compared_run import ComparedRun

Comparison = Mapping[str, Any]
Cell = dict[str, Any]

COLOURS = 6  # in the style sheet; the baseline has the text colour
SHAPES = 4  # dashes and markers, which change when colours repeat
MAX_RUNS_SHOWN = 8  # runs that are visible at first; the others can be switched on
MAX_SAMPLE_CHARACTERS = 2_500_000  # so that a page of fifty runs still opens quickly
MAX_RUN_COLUMNS = 5  # for more runs than that, tables have one row per run

# Cost columns: their titles and formats.
COSTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "parameters": ("parameters", formatting.abbreviate),
    "training_tokens": ("training tokens", formatting.abbreviate),
    "teacher_calls": ("teacher calls", formatting.format_count),
    "usd": ("dollars", lambda value: f"${value:,.2f}"),
    "seconds": ("time", format_duration),
    "tokens_per_second": ("tokens/s", lambda value: f"{value:,.0f}"),
}
COST_AXES = ("usd", "seconds", "training_tokens", "teacher_calls", "parameters", "tokens_per_second")
SIZE_KEYS = ("parameters", "training_tokens")
AXIS_TITLES = {
    "usd": "dollars spent on the teacher",
    "seconds": "wall-format_duration seconds",
    "tokens_per_second": "training tokens/s",
}


def render_html(comparison: Comparison, runs: Sequence[ComparedRun]) -> str:
    """The page, as one HTML document."""
    script, style = template.read_asset("compare.js"), template.read_asset("style.css")
    prompts = _prompts(comparison, runs)
    return template.render(
        "compare.html",
        policy=f"script-src {template.csp_hash(script)}; style-src {template.csp_hash(style)}",
        script=template.trusted_markup(script),
        data=template.embed_json(_clean_all(_script_data(comparison, runs))),
        title=_title(comparison),
        lede=_lede(comparison),
        notes=[formatting.printable(note) for note in comparison["notes"]],
        runs=_overview(comparison),
        differences=_differences(comparison),
        recipes=_by_run(comparison, "recipes"),
        provenance=_by_run(comparison, "provenance"),
        shared=_shared(comparison),
        prompts=prompts,
        samples_note=_samples_note(prompts, runs),
        statistics_note=comparison_text.STATISTICS_NOTE,
    )


def _title(comparison: Comparison) -> str:
    names = [formatting.one_line(name) for name in comparison["runs"]]
    if len(names) > 3:
        return f"{len(names) - 1} runs compared with {names[0]}"
    return " and ".join([", ".join(names[:-1]), names[-1]])


def _lede(comparison: Comparison) -> str:
    baseline, metric = formatting.one_line(comparison["baseline"]), comparison_text.ranking_title(comparison)
    order = f" Ranked by {metric}, {_direction(comparison)}." if metric else ""
    return f"Each run is compared with {baseline}, paired by document or prompt.{order}"


def _direction(comparison: Comparison) -> str:
    return describe_direction(comparison["metrics"][_ranking_metric(comparison)]["better"])


# Tables -----------------------------------------------------------------------------------------------------


def _cell(text: str, value: Any = None, **more: Any) -> Cell:
    """A table cell: its text with the interval in brackets split off, and the value that it is sorted by."""
    shown, _, interval = text.partition(" [")
    defaults = {"verdict": "", "note": "", "style": "", "run": None, "show_verdict": False}
    return {**defaults, "text": shown, "range": interval and f"[{interval}", "value": value, **more}


def _table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], numbers: int = 1) -> dict[str, Any]:
    """A table; columns from index `numbers` on are right-aligned numbers."""
    return {"heads": heads, "rows": rows, "numbers": numbers}


def _name_cell(comparison: Comparison, run: str) -> Cell:
    """A cell with a run's name and its colour."""
    name = formatting.one_line(run)
    return _cell(name, name, run=comparison["runs"].index(run), style=_style(_colour_slots(comparison)[run]))


def _overview(comparison: Comparison) -> dict[str, Any]:
    """One row per run: rank, metrics with marks, cost."""
    records = dataframes.to_rows(dataframes.runs_table(comparison))
    costs = [key for key in COSTS if len({row[key] for row in records}) > 1]
    titles = comparison_text.metric_titles(comparison)
    heads = ["run", "rank", *titles.values(), *(COSTS[key][0] for key in costs), "status"]
    return _table(heads, [[*_metric_cells(comparison, row), *_cost_cells(row, costs)] for row in records])


def _metric_cells(comparison: Comparison, row: Mapping[str, Any]) -> Iterator[Cell]:
    yield _name_cell(comparison, row["run"])
    yield _cell("–" if row["rank"] is None else str(row["rank"]), row["rank"])
    for judge, metric in comparison_text.metric_titles(comparison):
        key = f"{judge}.{metric}"
        values = {"value": row[key], "low": row[f"{key}.low"], "high": row[f"{key}.high"]}
        verdict = row[f"{key}.verdict"] or ""
        yield _cell(comparison_text.format_value(values if row[key] is not None else None), row[key], verdict=verdict)


def _cost_cells(row: Mapping[str, Any], costs: Sequence[str]) -> Iterator[Cell]:
    for key in costs:
        yield _cell("–" if row[key] is None else COSTS[key][1](row[key]), row[key])
    yield _cell(formatting.one_line(row["status"]), formatting.one_line(row["status"]))


def _differences(comparison: Comparison) -> dict[str, Any]:
    """One row per metric and run, with the corrected p value."""
    heads = ("run", "metric", "verdict", "baseline", "this run", "difference", "p", "MDE", "pairs")
    return _table(heads, [_difference_cells(comparison, row) for row in comparison["rows"]], numbers=3)


def _difference_cells(comparison: Comparison, row: Mapping[str, Any]) -> list[Cell]:
    ours, theirs = (row["values"].get(row[side]) for side in ("baseline", "versus"))
    mde = row["detectable"]
    return [
        _name_cell(comparison, row["versus"]),
        _cell(comparison_text.title_of(comparison, row)),
        _cell(row["verdict"], verdict=row["verdict"], note=formatting.printable(row["note"]), show_verdict=True),
        *(_cell(comparison_text.format_value(values), values and values["value"]) for values in (ours, theirs)),
        _cell(comparison_text.format_difference(row), row["difference"]),
        _cell(comparison_text.format_p(row["p_adjusted"]), row["p_adjusted"]),
        _cell("–" if mde is None else formatting.format_number(mde), mde),
        _cell(formatting.format_count(row["n"]), row["n"]),
    ]


def _by_run(comparison: Comparison, name: str) -> dict[str, Any]:
    """The rows that differ between runs: one column per run, or for many runs one row per run."""
    table = dataframes.all_tables(comparison)[name]
    differing = [not provenance.all_equal(row["values"]) for row in comparison[name]]
    table = table[differing] if len(table) else table
    if len(comparison["runs"]) > MAX_RUN_COLUMNS and len(table):
        table = dataframes.transpose(table)
    rows = [[_cell(_format_fact(value)) for value in row.values()] for row in dataframes.to_rows(table)]
    return _table([formatting.one_line(head) for head in table.columns], rows, numbers=len(table.columns))


def _shared(comparison: Comparison) -> list[formatting.Entry]:
    """Facts that are the same in all runs."""
    facts = [(row["fact"], row["values"]) for row in comparison["provenance"]]
    sizes = [(COSTS[key][0], {run: own[key] for run, own in comparison["about"].items()}) for key in SIZE_KEYS]
    same = [(name, next(iter(values.values()))) for name, values in [*sizes, *facts] if provenance.all_equal(values)]
    return [
        formatting.Entry(formatting.one_line(name), _format_fact(value)) for name, value in same if value is not None
    ]


def _format_fact(value: Any) -> str:
    """A recipe value or a fact. Hashes are shortened, and times are shown to the minute."""
    shown = formatting.format_count(value) if type(value) is int else comparison_text.format_setting(value)
    is_hash = len(shown) >= 32 and all(letter in "0123456789abcdef" for letter in shown)
    return shown[: provenance.SHORT_HASH] if is_hash else formatting.format_time(shown)


# Samples ----------------------------------------------------------------------------------------------------


def _prompts(comparison: Comparison, runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Prompts with the samples of each run, prompts that most runs share first, up to the page's limit.

    Samples are added in rounds: one of each run for each prompt, then a second one, so that all runs show equally many.
    """
    by_prompt: dict[str, list[list[Sample]]] = {}
    for index, run in enumerate(runs):
        for sample in run.samples:
            by_prompt.setdefault(sample.prompt, [[] for _ in runs])[index].append(sample)
    order = sorted(by_prompt, key=lambda prompt: -sum(map(bool, by_prompt[prompt])))
    shown: dict[str, list[dict[str, Any]]] = {prompt: [] for prompt in order}
    left, captions, slots = MAX_SAMPLE_CHARACTERS, [_captions(run) for run in runs], _colour_slots(comparison)
    for number in range(max((len(samples) for lists in by_prompt.values() for samples in lists), default=0)):
        for prompt in order:
            cards = [
                _card(i, run, samples[number], captions[i], slots[run.name])
                for i, (run, samples) in enumerate(zip(runs, by_prompt[prompt], strict=True))
                if len(samples) > number
            ]
            left -= sum(len(card["text"]) + len(card["grades"]) + 200 for card in cards)
            if left < 0:
                break
            shown[prompt] += cards
    return [
        {"prompt": formatting.printable(prompt), "cards": sorted(cards, key=itemgetter("slot"))}
        for prompt, cards in shown.items()
        if cards
    ]


def _card(index: int, run: ComparedRun, sample: Sample, captions: Mapping[str, str], slot: int) -> dict[str, Any]:
    return {
        "run": index,
        "slot": slot,
        "style": _style(slot),
        "name": formatting.one_line(run.name),
        "text": formatting.printable(sample.completion).lstrip(" "),
        "grades": captions[sample.id],
    }


def _captions(run: ComparedRun) -> dict[str, str]:
    """One line per sample: its temperature, if there are several, and its mean grade by each criterion."""
    scores: dict[str, dict[str, list[float]]] = {sample.id: {} for sample in run.samples}
    for (_, criterion), grades in run.grades.items():
        for grade in grades:
            if grade.sample in scores and grade.score is not None:
                scores[grade.sample].setdefault(formatting.readable_name(criterion), []).append(grade.score)
    several = len({sample.temperature for sample in run.samples}) > 1
    captions = {}
    for sample in run.samples:
        temperature = [f"temperature {sample.temperature:g}"] if several and sample.temperature is not None else []
        means = [f"{name} {sum(values) / len(values):.3g}" for name, values in scores[sample.id].items()]
        captions[sample.id] = " · ".join([*temperature, *means])
    return captions


def _samples_note(prompts: Sequence[Mapping[str, Any]], runs: Sequence[ComparedRun]) -> str:
    shown, total = sum(len(prompt["cards"]) for prompt in prompts), sum(len(run.samples) for run in runs)
    if shown == total:
        return ""
    return f"Showing {formatting.format_count(shown)} of {formatting.format_count(total, 'sample')}; --csv writes all."


# Colours ----------------------------------------------------------------------------------------------------


def _ranking_order(comparison: Comparison) -> list[int]:
    """Indices of the runs in ranking order."""
    ranked = [row["run"] for row in comparison["ranking"]["rows"]] or comparison["runs"]
    return [comparison["runs"].index(name) for name in ranked]


def _colour_slots(comparison: Comparison) -> dict[str, int]:
    """The colour slot of each run: 0 for the baseline, then in ranking order, so that the best runs differ most."""
    others = [index for index in _ranking_order(comparison) if index]
    return {comparison["runs"][index]: slot for slot, index in enumerate([0, *others])}


def _style(slot: int) -> str:
    """The CSS classes of a colour slot."""
    return f"run c{(slot - 1) % COLOURS} s{_shape(slot)}" if slot else "run base"


def _shape(slot: int) -> int:
    """The marker and dash of a colour slot; they change when all colours are used."""
    return max(0, slot - 1) // COLOURS % SHAPES


# Data of the script -----------------------------------------------------------------------------------------


def _script_data(comparison: Comparison, runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """What `compare.js` draws its plots from."""
    order, slots = _ranking_order(comparison), _colour_slots(comparison)
    return {
        "runs": [_run_data(comparison["about"][run.name], slots[run.name], run) for run in runs],
        "order": order,
        "shown": sorted({0, *order[: MAX_RUNS_SHOWN - 1]}) if len(order) > MAX_RUNS_SHOWN else sorted(order),
        "metrics": [_metric_data(comparison, metric) for metric in comparison["metrics"]],
        "ranking_metric": _ranking_metric(comparison),
        "costs": _cost_data(comparison),
    }


def _run_data(about: Mapping[str, Any], slot: int, run: ComparedRun) -> dict[str, Any]:
    known = about["training_tokens"] and about["steps"]
    return {
        "name": formatting.one_line(run.name),
        "style": _style(slot),
        "shape": _shape(slot),
        "tokens_per_step": about["training_tokens"] / about["steps"] if known else None,
        **run.curves,
    }


def _ranking_metric(comparison: Comparison) -> int:
    """The index of the metric that runs are ranked by."""
    ranking = comparison["ranking"]
    keys = [(metric["judge"], metric["metric"]) for metric in comparison["metrics"]]
    return keys.index((ranking["judge"], ranking["metric"])) if keys else 0


def _metric_data(comparison: Comparison, metric: Mapping[str, Any]) -> dict[str, Any]:
    """Values, labels and verdicts of a metric, in the order of the runs."""
    key = (metric["judge"], metric["metric"])
    by_run = {row["run"]: row for row in comparison["figures"] if (row["judge"], row["metric"]) == key}
    verdicts = {row["versus"]: row["verdict"] for row in comparison["rows"] if (row["judge"], row["metric"]) == key}
    rows = [by_run.get(name) for name in comparison["runs"]]
    return {
        "title": comparison_text.title_of(comparison, metric),
        "description": "; ".join(filter(None, (UNITS.get(metric["metric"]), describe_direction(metric["better"])))),
        "better": metric["better"],
        "values": [[row[part] for part in dataframes.VALUE_KEYS] if row else None for row in rows],
        "labels": [comparison_text.format_value(row) for row in rows],
        "verdicts": [verdicts.get(name, "") for name in comparison["runs"]],
    }


def _cost_data(comparison: Comparison) -> list[dict[str, Any]]:
    """Values and labels of each cost that differs between runs."""
    costs = []
    for key in COST_AXES:
        title, format_cost = COSTS[key]
        values = [comparison["about"][name][key] for name in comparison["runs"]]
        if len({value for value in values if value is not None}) > 1:
            labels = ["" if value is None else format_cost(value) for value in values]
            costs.append({"title": AXIS_TITLES.get(key, title), "values": values, "labels": labels})
    return costs


def _clean_all(value: Any) -> Any:
    """A copy in which all text is cleaned of control and bidirectional characters."""
    if isinstance(value, Mapping):
        return {key: _clean_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean_all(item) for item in value]
    return formatting.one_line(value) if isinstance(value, str) else value
