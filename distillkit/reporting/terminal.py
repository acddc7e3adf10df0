"""Tables on a terminal: the same width and the same words everywhere, with colour only where it is asked for.

Knows rich, and nothing of runs.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from . import words

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

WIDTH = 88


def sections(facts: Mapping[str, Sequence[words.Fact]]) -> RenderableType:
    """All facts in the same columns, with the title of a section before its first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), width=WIDTH)
    table.add_column(width=max(map(len, facts), default=0), style="bold")
    table.add_column(width=max((_cells(f.name) for rows in facts.values() for f in rows), default=0))
    table.add_column(ratio=1)
    for title, rows in facts.items():
        table.add_row()
        for i, fact in enumerate(rows):
            said = Text.assemble(fact.value, (f"  {fact.note}" if fact.note else "", "dim"))
            table.add_row(Text("" if i else title), Text(fact.name, style="dim"), said)
    return table


def _cells(text: str) -> int:
    """How wide a name stands on the terminal, as far as a column may give way to it."""
    from rich.cells import cell_len

    return min(cell_len(text), 28)


def ruled(title: Text) -> RenderableType:
    """A title on a line of its own, with air above."""
    from rich.padding import Padding
    from rich.rule import Rule

    return Padding(Rule(title, align="left", style="dim"), (1, 0, 0, 0))


def printed(content: RenderableType, colour: bool) -> str:
    """Rich's rendering as a string: the same on every terminal, and without one."""
    from rich.console import Console

    stream = io.StringIO()
    console = Console(
        file=stream,
        width=WIDTH,
        color_system="standard" if colour else None,
        force_terminal=colour,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(content)
    return "\n".join(row.rstrip() for row in stream.getvalue().splitlines()) + "\n"
