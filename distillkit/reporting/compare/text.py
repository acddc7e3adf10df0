"""A comparison as text: for the terminal and in Markdown. A few runs get a table each, many runs get one ranking.

Knows the content of a comparison, and nothing of the runs that it was built from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import formatting, markdown, terminal
from . import dataframes
from .comparison import BASELINE, INCOMPARABLE, NEITHER

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Comparison = Mapping[str, Any]

MAX_PAIR_TABLES = 3  # for more runs than that, print a ranking instead
METRICS_PER_BLOCK = 4  # columns of metrics beside each other
MAX_RECIPE_KEYS = 12  # recipe differences that are printed; JSON, CSV and the page have all of them
MARKS = {"better": "▲", "worse": "▼", "not distinguishable": "·", INCOMPARABLE: "?"}
MARKS |= dict.fromkeys((BASELINE, NEITHER), " ")
STYLES = {"better": "green", "worse": "red"}

STATISTICS_NOTE = (
    "Differences are run minus baseline, paired by document or prompt, with 95% confidence intervals. p: sign-flip "
    "permutation test, Holm-Bonferroni corrected over a run's metrics. MDE: minimum detectable effect at 80% power."
)
MARKS_NOTE = "▲ better than the baseline, ▼ worse, · not distinguishable from it, ? not comparable with it."
NOT_JUDGED = "Neither run was judged."


# Wording shared by terminal, Markdown and page --------------------------------------------------------------


def run_entries(comparison: Comparison) -> list[formatting.Entry]:
    """The compared runs, the baseline first."""
    return [_run_entry(name, run, name == comparison["baseline"]) for name, run in comparison["about"].items()]


def _run_entry(name: str, run: Mapping[str, Any], is_baseline: bool) -> formatting.Entry:
    known = [
        f"{formatting.format_count(run['parameters'])} parameters" if run["parameters"] is not None else "",
        f"{formatting.format_count(run['training_tokens'])} training tokens"
        if run["training_tokens"] is not None
        else "",
        "" if run["status"] == "done" else formatting.one_line(run["status"]),
    ]
    note = "the baseline" if is_baseline else ""
    return formatting.Entry(formatting.one_line(name), ", ".join(filter(None, known)), note)


def metric_titles(comparison: Comparison) -> dict[tuple[str, str], str]:
    """The titles of all metrics by judge and name. The judge is part of a title only if two judges share the name."""
    keys = [(metric["judge"], metric["metric"]) for metric in comparison["metrics"]]
    shared = Counter(metric for _, metric in keys)
    return {
        key: formatting.metric_title(*key) if shared[key[1]] > 1 else formatting.readable_name(key[1]) for key in keys
    }


def title_of(comparison: Comparison, row: Mapping[str, Any]) -> str:
    """The title of a row's metric."""
    return metric_titles(comparison)[row["judge"], row["metric"]]


def format_value(values: Mapping[str, Any] | None) -> str:
    """A value with its interval, or a dash."""
    return formatting.format_interval(values) if values else "–"


def format_difference(row: Mapping[str, Any]) -> str:
    """A signed difference with its interval, or a dash."""
    if row["difference"] is None:
        return "–"
    return formatting.format_interval({**row, "value": row["difference"]}, signed=True)


def format_p(p: float | None) -> str:
    """A p value with three decimals, `<0.001`, or a dash."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def ranking_title(comparison: Comparison) -> str:
    """The title of the metric that runs are ranked by, or ""."""
    ranking = comparison["ranking"]
    return "" if ranking["metric"] is None else title_of(comparison, ranking)


def format_setting(value: Any) -> str:
    """A recipe value on one line, or a dash if the key is absent."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return formatting.one_line(", ".join(map(str, value))) or "none"
    return formatting.one_line(value)


# Terminal ---------------------------------------------------------------------------------------------------


def format_text(comparison: Comparison, colour: bool = False) -> str:
    """The comparison for the terminal."""
    from rich.console import Group
    from rich.text import Text

    few = len(comparison["runs"]) - 1 <= MAX_PAIR_TABLES
    parts = list(_pair_tables(comparison) if few else _ranking_and_marks(comparison))
    parts += _recipe_differences(comparison, few)
    parts.append(Text(f"\n{STATISTICS_NOTE}", style="dim"))
    parts += [Text(f"! {formatting.printable(note)}", style="yellow") for note in comparison["notes"]]
    return terminal.render(Group(*parts), colour)


def _pair_tables(comparison: Comparison) -> Iterator[RenderableType]:
    yield terminal.sections_table({"runs": run_entries(comparison)})
    for name in comparison["runs"][1:]:
        yield _pair_table(comparison, name)


def _pair_table(comparison: Comparison, name: str) -> RenderableType:
    """One run compared with the baseline, with numbered notes below."""
    from rich.console import Group
    from rich.text import Text

    rows = [row for row in comparison["rows"] if row["versus"] == name]
    mde = max([6, *(len(_format_mde(row)) for row in rows)])
    widths = {"metric": 24 - mde, "baseline": 8, "this run": 8, "difference": 23, "MDE": mde, "verdict": 19}
    table, notes = _table(widths), dict[str, str]()
    for row in rows:
        mark = f" [{notes.setdefault(row['note'], str(len(notes) + 1))}]" if row["note"] else ""
        ours, theirs = (format_value(row["values"][row[side]]).partition(" [")[0] for side in ("baseline", "versus"))
        cells = (f"{title_of(comparison, row)}{mark}", ours, theirs, format_difference(row), _format_mde(row))
        table.add_row(*map(Text, cells), Text(row["verdict"], STYLES.get(row["verdict"], "")))
    title = Text(f"{formatting.one_line(name)} against {formatting.one_line(comparison['baseline'])}", "bold")
    lines = [Text(f"[{number}] {formatting.printable(note)}", "dim") for note, number in notes.items()]
    if not table.rows:
        return Group(terminal.heading(title), Text(NOT_JUDGED))
    return Group(terminal.heading(title), table, *lines)


def _format_mde(row: Mapping[str, Any]) -> str:
    """The minimum detectable effect, with four decimals where those are two to five significant digits."""
    mde = row["detectable"]
    return "" if mde is None else formatting.format_number(mde, 4 if 0.001 <= mde < 10 else None)


def _ranking_and_marks(comparison: Comparison) -> Iterator[RenderableType]:
    """One ranking, then the other metrics in blocks, with a mark for each verdict."""
    from rich.text import Text

    if not comparison["metrics"]:
        yield Text("None of the runs was judged.")
        return
    yield terminal.heading(Text(f"{len(comparison['runs'])} runs by {ranking_title(comparison)}", "bold"))
    yield _ranking(comparison)
    rows = dataframes.to_rows(dataframes.runs_table(comparison))
    ranked_by = (comparison["ranking"]["judge"], comparison["ranking"]["metric"])
    others = [metric for metric in comparison["metrics"] if (metric["judge"], metric["metric"]) != ranked_by]
    for start in range(0, len(others), METRICS_PER_BLOCK):
        yield Text()
        yield _block(comparison, rows, others[start : start + METRICS_PER_BLOCK])
    yield Text(f"\n{MARKS_NOTE}", style="dim")


def _ranking(comparison: Comparison) -> RenderableType:
    from rich.text import Text

    table = _table({"": 3, "run": 30, "value": 22, "difference": 10, "verdict": 19})
    for row in comparison["ranking"]["rows"]:
        difference = format_difference({**row, "low": row["difference_low"], "high": row["difference_high"]})
        cells = ("" if row["rank"] is None else str(row["rank"]), formatting.one_line(row["run"]), format_value(row))
        difference = "" if row["verdict"] == BASELINE else difference.partition(" [")[0]
        table.add_row(*map(Text, (*cells, difference)), Text(row["verdict"], STYLES.get(row["verdict"], "dim")))
    return table


def _block(comparison: Comparison, rows: Sequence[Any], metrics: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A few metrics of all runs, each value with the mark of its verdict."""
    from rich.text import Text

    heads = [title_of(comparison, metric) for metric in metrics]
    table = _table({"run": 30, **dict.fromkeys(heads, 13)})
    for row in rows:
        cells = [_value_with_mark(row, f"{metric['judge']}.{metric['metric']}") for metric in metrics]
        table.add_row(Text(formatting.one_line(row["run"])), *cells)
    return table


def _value_with_mark(row: Mapping[str, Any], key: str) -> Any:
    from rich.text import Text

    verdict = row[f"{key}.verdict"] or BASELINE
    values = {"value": row[key], "low": row[f"{key}.low"], "high": row[f"{key}.high"]}
    text = "–" if row[key] is None else f"{formatting.format_interval(values).partition(' [')[0]} {MARKS[verdict]}"
    return Text(text, STYLES.get(verdict, ""))


def _recipe_differences(comparison: Comparison, few: bool) -> Iterator[RenderableType]:
    """The recipe keys that differ; their values only for a few runs."""
    from rich.text import Text

    rows = comparison["recipes"]
    if not rows:
        return
    if not few:
        keys = ", ".join(formatting.one_line(row["key"]) for row in rows[:MAX_RECIPE_KEYS])
        more = "" if len(rows) <= MAX_RECIPE_KEYS else f" and {len(rows) - MAX_RECIPE_KEYS} more"
        yield Text(f"\nThe recipes differ in {keys}{more}.")
        return
    entries = [
        formatting.Entry(formatting.one_line(row["key"]), " → ".join(map(format_setting, row["values"].values())))
        for row in rows[:MAX_RECIPE_KEYS]
    ]
    if len(rows) > MAX_RECIPE_KEYS:
        entries.append(formatting.Entry("...", f"{len(rows) - MAX_RECIPE_KEYS} more keys", "see --json or --html"))
    yield terminal.sections_table({"recipes": entries})


def _table(widths: Mapping[str, int]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for head, width in widths.items():
        table.add_column(formatting.one_line(head), width=width)
    return table


# Markdown ---------------------------------------------------------------------------------------------------


def format_markdown(comparison: Comparison) -> str:
    """The comparison in Markdown, for a README or a pull request."""
    names = ", ".join(formatting.one_line(name) for name in comparison["runs"][1:])
    parts = [f"# {markdown.escape(f'{names} against ' + formatting.one_line(comparison['baseline']))}"]
    parts += [f"> **Note.** {markdown.escape(note)}" for note in comparison["notes"]]
    parts += _markdown_ranking(comparison)
    parts += ["## Differences", _markdown_differences(comparison), markdown.escape(STATISTICS_NOTE)]
    if comparison["recipes"]:
        parts += ["## Recipe differences", _markdown_by_run(comparison, "recipes")]
    parts += ["## Provenance", _markdown_by_run(comparison, "provenance")]
    return "\n\n".join(parts) + "\n"


def _markdown_ranking(comparison: Comparison) -> Iterator[str]:
    rows = comparison["ranking"]["rows"]
    if rows:
        cells = [(row["rank"] or "", row["run"], format_value(row), row["verdict"]) for row in rows]
        yield f"## Ranking by {markdown.escape(ranking_title(comparison))}"
        yield markdown.table(("rank", "run", "value [95% CI]", "verdict"), cells)


def _markdown_differences(comparison: Comparison) -> str:
    rows = []
    for row in comparison["rows"]:
        ours, theirs = (format_value(row["values"][row[side]]) for side in ("baseline", "versus"))
        p, verdict = format_p(row["p_adjusted"]), f"{row['verdict']}{': ' if row['note'] else ''}{row['note']}"
        title, difference = title_of(comparison, row), format_difference(row)
        rows.append((row["versus"], title, ours, theirs, difference, p, _format_mde(row), verdict))
    return markdown.table(("run", "metric", "baseline", "this run", "difference", "p", "MDE", "verdict"), rows)


def _markdown_by_run(comparison: Comparison, name: str) -> str:
    """A table with one column per run, or with one row per run for many runs."""
    table = dataframes.all_tables(comparison)[name]
    table = table if len(comparison["runs"]) <= MAX_PAIR_TABLES + 1 else dataframes.transpose(table)
    rows = [[format_setting(value) for value in row.values()] for row in dataframes.to_rows(table)]
    return markdown.table([str(head) for head in table.columns], rows)
