"""The style of the guide's figures. SVG files are deterministic to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

HERE = Path(__file__).parent
INK, PALE = "#26323d", "#c9d1d8"
BLUE, ORANGE, GREEN, PURPLE, RED = "#2a7fa8", "#c4652f", "#4f8f45", "#8d6cc0", "#d0383e"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE)

STYLE: dict[str, Any] = {
    "svg.hashsalt": "distillkit",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.facecolor": "white",
}


@contextmanager
def figure(
    name: str, width: float = 7.0, height: float = 3.4, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[Any]:
    """Axes to draw on; saved as `name`.svg on exit."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        canvas = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(canvas)
        yield canvas.subplots(rows, columns, **options)
        canvas.savefig(HERE / f"{name}.svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))


def visible(token: str) -> str:
    """A token with visible spaces and line breaks, for labels."""
    return token.replace(" ", "␣").replace("\n", "↵")
