"""Loss curves as SVG, from the rows of `metrics.jsonl`. Knows nothing of files, judges or pages.

The pictures are the same byte for byte whenever they are drawn again, and take the colour of text from the
page they stand in, so one drawing suits a light page and a dark one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]

# Colours of middling lightness: each reads on white and on near-black.
COLOURS = ("#2a7fa8", "#c4652f", "#8d6cc0", "#4f8f45", "#c14a7a", "#8c7a34")
VALIDATION = "#d0383e"
# Drawn in this colour, then renamed: SVG knows the page's own colour of text, matplotlib does not.
INK = "#123457"

STYLE: Any = {
    "svg.hashsalt": "distillkit",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a term called "$x$" is a name, not a formula
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
}


def losses(metrics: Rows) -> str:
    """Training loss (thin as measured, thick as smoothed), its terms, and validation. "" without any rows."""
    train, validation = _of(metrics, "train"), _of(metrics, "validation")

    def draw(axes: Axes) -> None:
        steps, values = _series(train, "loss")
        axes.plot(steps, values, color=COLOURS[0], linewidth=0.6, alpha=0.4)
        axes.plot(steps, smooth(values), color=COLOURS[0], linewidth=2.0, label="training, smoothed")
        for i, name in enumerate(_terms(train)):
            steps, values = _series(train, name, of="terms")
            colour = COLOURS[1 + i % (len(COLOURS) - 1)]
            axes.plot(
                steps,
                smooth(values),
                color=colour,
                linewidth=1.2,
                linestyle="--",
                label=_label(f"term: {name}"),
            )
        steps, values = _series(validation, "loss")
        if len(steps):
            axes.plot(steps, values, color=VALIDATION, linewidth=1.0, marker="o", markersize=4, label="validation")

    return _svg(draw) if train or validation else ""


def smooth(values: Floats) -> Floats:
    """A centred moving average over a twentieth of the curve; it does not lag behind what it averages."""
    count = len(values)
    place = np.arange(count)
    # Near an end the window shrinks on both sides, or a steep start would be averaged away.
    half = np.minimum(np.minimum(place, count - 1 - place), max(1, count // 40))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray((sums[place + half + 1] - sums[place - half]) / (2 * half + 1), np.float64)


def _label(name: str) -> str:
    """A name as the legend can show it: matplotlib hides those that begin with an underscore."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)[:48]
    return f" {shown}" if shown.startswith("_") else shown


def _of(metrics: Rows, kind: str) -> list[Mapping[str, Any]]:
    return [row for row in metrics if row.get("kind") == kind and isinstance(row.get("step"), int)]


def _terms(train: Rows) -> list[str]:
    """The names of the terms; a single term is the loss itself, and is not drawn twice."""
    names = dict.fromkeys(str(name) for row in train for name in row.get("terms") or {})
    return list(names) if len(names) > 1 else []


def _series(rows: Rows, key: str, of: str = "") -> tuple[Floats, Floats]:
    """Steps and values, without those that are missing or not finite."""
    pairs = [(row["step"], ((row.get(of) or {}) if of else row).get(key)) for row in rows]
    known = [(step, value) for step, value in pairs if isinstance(value, int | float) and np.isfinite(value)]
    table = np.asarray(known, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _svg(draw: Any) -> str:
    """Draw on axes that all pictures share, and give the `<svg>` element alone."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    stream = io.StringIO()
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        figure = Figure(figsize=(6.4, 3.5), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        draw(axes)
        axes.set_xlabel("step")
        axes.set_ylabel("nats a token")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8.5)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    picture = stream.getvalue()
    return picture[picture.index("<svg") :].replace(INK, "currentColor").strip()
