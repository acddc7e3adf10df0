"""Text drawn token by token, in letters of one width: each token on a ground of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from _paper import INK

COLUMNS = 84  # letters in a line, when the picture is 7 inches wide
LINE = 1.45  # lines apart, in heights of a letter


def written(
    axes: Any, tokens: Sequence[str], top: float, ground: Callable[[int], tuple[str, float]], first: int = 0
) -> float:
    """Draw tokens from a line on, each on the ground (colour, strength) of its number. Returns the line below them."""
    from matplotlib.patches import Rectangle

    column, line = first, top
    for number, token in enumerate(tokens):
        if column + len(token) > COLUMNS:
            column, line = first, line + LINE
        colour, strength = ground(number)
        box = Rectangle((column, line), len(token), 1.15, facecolor=colour, alpha=strength, edgecolor="none")
        axes.add_patch(box)
        space = len(token) - len(token.lstrip(" "))
        axes.text(column + space, line + 0.85, token[space:], family="monospace", fontsize=9.5, color=INK)
        column += len(token)
    return line + LINE


def bare(axes: Any, lines: float) -> None:
    """Axes that show nothing of themselves, with room for so many lines."""
    axes.set(xlim=(0, COLUMNS), ylim=(lines, 0))
    axes.axis("off")
