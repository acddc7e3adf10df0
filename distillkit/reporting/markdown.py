"""Markdown in which nothing that a run says is markup. Knows text, tables and samples, and no report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..core.records import Sample
from . import words


def line(text: Any) -> str:
    """One line in which nothing is markup."""
    escaped = re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", words.one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with a head."""
    lines = [" | ".join(map(line, head)), " | ".join("---" for _ in head)]
    lines += [" | ".join(map(line, row)) for row in rows]
    return "\n".join(f"| {row} |" for row in lines)


def quotation(sample: Sample) -> str:
    """A quotation, line by line: the prompt bold, then at once what the student wrote."""
    *above, last = sample.prompt.split("\n")
    first, *below = sample.completion.split("\n")
    space = " " if last[-1:].isspace() or first[:1].isspace() else ""
    start = _bold(last) + space + line(first) if last.strip() else _start(first)
    rows = [*map(_bold, above), start, *map(_start, below)]
    # Two spaces at the end keep a line apart from the next.
    return "\n".join(f"> {row}  " if row else ">" for row in rows).rstrip()


def _bold(row: str) -> str:
    """HTML's bold: whether Markdown's works depends on the letters beside it."""
    return f"<b>{line(row)}</b>" if row.strip() else ""


def _start(row: str) -> str:
    """A line that begins neither a list nor a heading."""
    return re.sub(r"^([-+=]|\d+(?=[.)]))", lambda m: f"&#{ord(m[0][0])};{m[0][1:]}", line(row))


def code(text: str, language: str) -> str:
    """A fenced block whose fence is longer than any inside."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
