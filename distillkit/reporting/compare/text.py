"""A comparison as text: on a terminal and in Markdown. Few runs get a table each, many get one ranking.

Knows the content of a comparison, and nothing of the runs it was made of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import frames, markdown, terminal, words
from . import comparison as compare

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Comparison = Mapping[str, Any]

PAIRS = 3  # up to so many pairs get a table each
ACROSS = 4  # metrics beside each other in one block
KEYS = 12  # differences of recipes that are printed; all stand in JSON, CSV and on the page
MARKS = {"better": "▲", "worse": "▼", "not distinguishable": "·", compare.INCOMPARABLE: "?"}
MARKS |= dict.fromkeys((compare.BASELINE, compare.NEITHER), " ")
STYLES = {"better": "green", "worse": "red"}

READS = (
    "A difference is that run minus the baseline, paired, with its 95% interval; p is corrected over the metrics "
    "of a pair (Holm). “Sees” is the smallest true difference that four in five such comparisons would find."
)
MARKED = "▲ better than the baseline, ▼ worse, · not distinguishable from it, ? not comparable with it."


# Words that both share --------------------------------------------------------------------------------------


def about(comparison: Comparison) -> list[words.Fact]:
    """The runs that are compared: the baseline first."""
    return [_about(name, run, name == comparison["baseline"]) for name, run in comparison["about"].items()]


def _about(name: str, run: Mapping[str, Any], baseline: bool) -> words.Fact:
    known = [
        f"{words.count(run['parameters'])} parameters" if run["parameters"] is not None else "",
        f"{words.count(run['training_tokens'])} training tokens" if run["training_tokens"] is not None else "",
        "" if run["status"] == "done" else words.one_line(run["status"]),
    ]
    return words.Fact(words.one_line(name), ", ".join(filter(None, known)), "the baseline" if baseline else "")


def titles(comparison: Comparison) -> dict[tuple[str, str], str]:
    """The names of all metrics; only those that two judges share are called by their judge's, too."""
    keys = [(metric["judge"], metric["metric"]) for metric in comparison["metrics"]]
    shared = Counter(metric for _, metric in keys)
    return {key: words.title(*key) if shared[key[1]] > 1 else words.label(key[1]) for key in keys}


def title_of(comparison: Comparison, row: Mapping[str, Any]) -> str:
    """The name of the metric of a row."""
    return titles(comparison)[row["judge"], row["metric"]]


def value_of(values: Mapping[str, Any] | None) -> str:
    """A figure with its interval, or a dash."""
    return words.interval(values) if values else "–"


def difference_of(row: Mapping[str, Any]) -> str:
    """A difference with its sign and interval, or a dash."""
    return "–" if row["difference"] is None else words.interval({**row, "value": row["difference"]}, signed=True)


def chance(p: float | None) -> str:
    """A probability as people write it."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def ranked_by(comparison: Comparison) -> str:
    """What decides the order of the runs."""
    ranking = comparison["ranking"]
    return "" if ranking["metric"] is None else title_of(comparison, ranking)


# On a terminal ----------------------------------------------------------------------------------------------


def text(comparison: Comparison, colour: bool = False) -> str:
    """The comparison as it is printed."""
    from rich.console import Group
    from rich.text import Text

    few = len(comparison["runs"]) - 1 <= PAIRS
    parts = list(_pairs(comparison) if few else _many(comparison))
    parts += _recipes(comparison, few)
    parts.append(Text(f"\n{READS}", style="dim"))
    parts += [Text(f"! {words.printable(note)}", style="yellow") for note in comparison["notes"]]
    return terminal.printed(Group(*parts), colour)


def _pairs(comparison: Comparison) -> Iterator[RenderableType]:
    yield terminal.sections({"runs": about(comparison)})
    for name in comparison["runs"][1:]:
        yield _pair(comparison, name)


def _pair(comparison: Comparison, name: str) -> RenderableType:
    """One run against the baseline, with what is to be known of single rows below."""
    from rich.console import Group
    from rich.text import Text

    rows = [row for row in comparison["rows"] if row["versus"] == name]
    sees = max([6, *(len(_sees(row)) for row in rows)])
    widths = {"metric": 24 - sees, "baseline": 8, "this": 8, "difference": 23, "sees": sees, "verdict": 19}
    table, notes = _table(widths), dict[str, str]()
    for row in rows:
        mark = f" [{notes.setdefault(row['note'], str(len(notes) + 1))}]" if row["note"] else ""
        ours, theirs = (value_of(row["values"][row[side]]).partition(" [")[0] for side in ("baseline", "versus"))
        cells = (f"{title_of(comparison, row)}{mark}", ours, theirs, difference_of(row), _sees(row))
        table.add_row(*map(Text, cells), Text(row["verdict"], STYLES.get(row["verdict"], "")))
    title = Text(f"{words.one_line(name)} against {words.one_line(comparison['baseline'])}", "bold")
    lines = [Text(f"[{number}] {words.printable(note)}", "dim") for note, number in notes.items()]
    return Group(terminal.ruled(title), table, *lines) if table.rows else Group(terminal.ruled(title), Text(UNJUDGED))


UNJUDGED = "Neither run was judged."


def _sees(row: Mapping[str, Any]) -> str:
    """Four decimals, where those are two to five digits that matter."""
    seen = row["detectable"]
    return "" if seen is None else words.figure(seen, 4 if 0.001 <= seen < 10 else None)


def _many(comparison: Comparison) -> Iterator[RenderableType]:
    """One ranking, then the other metrics with a mark each."""
    from rich.text import Text

    if not comparison["metrics"]:
        yield Text("None of the runs was judged.")
        return
    yield terminal.ruled(Text(f"{len(comparison['runs'])} runs by {ranked_by(comparison)}", "bold"))
    yield _ranking(comparison)
    rows = frames.records(frames.runs(comparison))
    first = (comparison["ranking"]["judge"], comparison["ranking"]["metric"])
    others = [metric for metric in comparison["metrics"] if (metric["judge"], metric["metric"]) != first]
    for start in range(0, len(others), ACROSS):
        yield Text()
        yield _block(comparison, rows, others[start : start + ACROSS])
    yield Text(f"\n{MARKED}", style="dim")


def _ranking(comparison: Comparison) -> RenderableType:
    from rich.text import Text

    table = _table({"": 3, "run": 30, "value": 22, "difference": 10, "verdict": 19})
    for row in comparison["ranking"]["rows"]:
        difference = difference_of({**row, "low": row["difference_low"], "high": row["difference_high"]})
        cells = ("" if row["rank"] is None else str(row["rank"]), words.one_line(row["run"]), value_of(row))
        moved = "" if row["verdict"] == compare.BASELINE else difference.partition(" [")[0]
        table.add_row(*map(Text, (*cells, moved)), Text(row["verdict"], STYLES.get(row["verdict"], "dim")))
    return table


def _block(comparison: Comparison, rows: Sequence[Any], metrics: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A few metrics of all runs, each figure with its mark."""
    from rich.text import Text

    heads = [title_of(comparison, metric) for metric in metrics]
    table = _table({"run": 30, **dict.fromkeys(heads, 13)})
    for row in rows:
        cells = [_marked(row, f"{metric['judge']}.{metric['metric']}") for metric in metrics]
        table.add_row(Text(words.one_line(row["run"])), *cells)
    return table


def _marked(row: Mapping[str, Any], key: str) -> Any:
    from rich.text import Text

    verdict = row[f"{key}.verdict"] or compare.BASELINE
    values = {"value": row[key], "low": row[f"{key}.low"], "high": row[f"{key}.high"]}
    said = "–" if row[key] is None else f"{words.interval(values).partition(' [')[0]} {MARKS[verdict]}"
    return Text(said, STYLES.get(verdict, ""))


def _recipes(comparison: Comparison, few: bool) -> Iterator[RenderableType]:
    """What differs between the recipes; of many runs only which keys."""
    from rich.text import Text

    rows = comparison["recipes"]
    if not rows:
        return
    if not few:
        keys = ", ".join(words.one_line(row["key"]) for row in rows[:KEYS])
        more = "" if len(rows) <= KEYS else f" and {len(rows) - KEYS} more"
        yield Text(f"\nThe recipes differ in {keys}{more}.")
        return
    facts = [
        words.Fact(words.one_line(row["key"]), " → ".join(map(setting, row["values"].values()))) for row in rows[:KEYS]
    ]
    if len(rows) > KEYS:
        facts.append(words.Fact("...", f"{len(rows) - KEYS} more keys", "see --json or --html"))
    yield terminal.sections({"recipes": facts})


def setting(value: Any) -> str:
    """A recipe's value; a key that is not there has none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return words.one_line(", ".join(map(str, value))) or "none"
    return words.one_line(value)


def _table(widths: Mapping[str, int]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for head, width in widths.items():
        table.add_column(words.one_line(head), width=width)
    return table


# Markdown ---------------------------------------------------------------------------------------------------


def marked(comparison: Comparison) -> str:
    """The comparison for a README or a pull request."""
    names = ", ".join(words.one_line(name) for name in comparison["runs"][1:])
    parts = [f"# {markdown.line(f'{names} against ' + words.one_line(comparison['baseline']))}"]
    parts += [f"> **Note.** {markdown.line(note)}" for note in comparison["notes"]]
    parts += _marked_ranking(comparison)
    parts += ["## Differences", _marked_differences(comparison), markdown.line(READS)]
    if comparison["recipes"]:
        parts += ["## What differs between the recipes", _marked_by_run(comparison, "recipes", "key")]
    parts += ["## Made with", _marked_by_run(comparison, "provenance", "fact")]
    return "\n\n".join(parts) + "\n"


def _marked_ranking(comparison: Comparison) -> Iterator[str]:
    rows = comparison["ranking"]["rows"]
    if rows:
        cells = [(row["rank"] or "", row["run"], value_of(row), row["verdict"]) for row in rows]
        yield f"## By {markdown.line(ranked_by(comparison))}"
        yield markdown.table(("", "run", "value [95% interval]", "beside the baseline"), cells)


def _marked_differences(comparison: Comparison) -> str:
    rows = []
    for row in comparison["rows"]:
        ours, theirs = (value_of(row["values"][row[side]]) for side in ("baseline", "versus"))
        p, verdict = chance(row["p_adjusted"]), f"{row['verdict']}{': ' if row['note'] else ''}{row['note']}"
        rows.append(
            (row["versus"], title_of(comparison, row), ours, theirs, difference_of(row), p, _sees(row), verdict)
        )
    return markdown.table(("run", "metric", "baseline", "this", "difference", "p", "sees", "verdict"), rows)


def _marked_by_run(comparison: Comparison, name: str, first: str) -> str:
    """A table with a column a run, or of many runs a row a run."""
    table = frames.frames(comparison)[name]
    table = table if len(comparison["runs"]) <= PAIRS + 1 else frames.wide(table)
    rows = [[setting(value) for value in row.values()] for row in frames.records(table)]
    return markdown.table([str(head) for head in table.columns], rows)
