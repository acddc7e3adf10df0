"""Markdown in which text from a run cannot act as markup. Knows text, tables and samples, and no report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..core.records import Sample
from ..core.text import one_line


def escape(text: Any) -> str:
    """The text on one line, with all markup escaped."""
    escaped = re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with a header row; all cells are escaped."""
    lines = [" | ".join(map(escape, head)), " | ".join("---" for _ in head)]
    lines += [" | ".join(map(escape, row)) for row in rows]
    return "\n".join(f"| {row} |" for row in lines)


def quotation(sample: Sample) -> str:
    """A block quotation of a sample: the prompt in bold, followed by the completion."""
    *above, last = sample.prompt.split("\n")
    first, *below = sample.completion.split("\n")
    space = " " if last[-1:].isspace() or first[:1].isspace() else ""
    start = _bold(last) + space + escape(first) if last.strip() else _escape_start(first)
    rows = [*map(_bold, above), start, *map(_escape_start, below)]
    # Two trailing spaces are a line break.
    return "\n".join(f"> {row}  " if row else ">" for row in rows).rstrip()


def _bold(row: str) -> str:
    """Bold as HTML: whether `**` works in Markdown depends on the neighbouring characters."""
    return f"<b>{escape(row)}</b>" if row.strip() else ""


def _escape_start(row: str) -> str:
    """A line that starts neither a list nor a heading."""
    return re.sub(r"^([-+=]|\d+(?=[.)]))", lambda m: f"&#{ord(m[0][0])};{m[0][1:]}", escape(row))


def code(text: str, language: str) -> str:
    """A fenced code block; its fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
