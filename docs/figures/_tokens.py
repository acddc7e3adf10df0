"""Draws text token by token in a monospaced font, each token on a coloured background."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from _style import INK

COLUMNS = 84  # characters per line in a figure 7 inches wide
LINE = 1.45  # line spacing, in character heights


def draw_tokens(
    axes: Any, tokens: Sequence[str], top: float, background: Callable[[int], tuple[str, float]], first: int = 0
) -> float:
    """Draw tokens with the background (colour, alpha) of each index. Returns the position of the next line."""
    from matplotlib.patches import Rectangle

    column, line = first, top
    for number, token in enumerate(tokens):
        if column + len(token) > COLUMNS:
            column, line = first, line + LINE
        colour, alpha = background(number)
        box = Rectangle((column, line), len(token), 1.15, facecolor=colour, alpha=alpha, edgecolor="none")
        axes.add_patch(box)
        space = len(token) - len(token.lstrip(" "))
        axes.text(column + space, line + 0.85, token[space:], family="monospace", fontsize=9.5, color=INK)
        column += len(token)
    return line + LINE


def hide_axes(axes: Any, lines: float) -> None:
    """Hide the axes and set limits for this many lines."""
    axes.set(xlim=(0, COLUMNS), ylim=(lines, 0))
    axes.axis("off")
