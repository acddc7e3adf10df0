"""Tables for the terminal: one width and style everywhere, with colour only on request. Knows rich, and no runs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from . import formatting

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

WIDTH = 88


def sections_table(sections: Mapping[str, Sequence[formatting.Entry]]) -> RenderableType:
    """All sections in the same columns, with the title of a section beside its first entry."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), width=WIDTH)
    table.add_column(width=max(map(len, sections), default=0), style="bold")
    table.add_column(width=max((_name_width(e.name) for rows in sections.values() for e in rows), default=0))
    table.add_column(ratio=1)
    for title, entries in sections.items():
        table.add_row()
        for i, entry in enumerate(entries):
            value = Text.assemble(entry.value, (f"  {entry.note}" if entry.note else "", "dim"))
            table.add_row(Text("" if i else title), Text(entry.name, style="dim"), value)
    return table


def _name_width(text: str) -> int:
    """The width of a name in terminal cells, limited so that values keep enough room."""
    from rich.cells import cell_len

    return min(cell_len(text), 28)


def heading(title: Text) -> RenderableType:
    """A title with a rule beside it and an empty line above."""
    from rich.padding import Padding
    from rich.rule import Rule

    return Padding(Rule(title, align="left", style="dim"), (1, 0, 0, 0))


def render(content: RenderableType, colour: bool) -> str:
    """The content as a string of a fixed width, independent of the terminal."""
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
