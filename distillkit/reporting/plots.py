"""Loss curves as SVG, from the rows of `metrics.jsonl`. Knows nothing of files, judges or pages.

The SVG is deterministic to the byte. Text and axes use the page's text colour (`currentColor`), so that one image
suits a light and a dark page.
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

# Colours of medium lightness, legible on white and on near-black.
COLOURS = ("#2a7fa8", "#c4652f", "#8d6cc0", "#4f8f45", "#c14a7a", "#8c7a34")
VALIDATION = "#d0383e"
# A placeholder that is replaced by `currentColor`, which matplotlib does not support.
TEXT_COLOUR = "#123457"

STYLE: Any = {
    "svg.hashsalt": "distillkit",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a term called "$x$" is a name, not a formula
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": TEXT_COLOUR,
    "axes.edgecolor": TEXT_COLOUR,
    "axes.labelcolor": TEXT_COLOUR,
    "xtick.color": TEXT_COLOUR,
    "ytick.color": TEXT_COLOUR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
}


def plot_losses(metrics: Rows) -> str:
    """The training loss (thin: raw, thick: smoothed), its terms and the validation loss. "" if there are no rows."""
    train, validation = _rows_of(metrics, "train"), _rows_of(metrics, "validation")

    def draw(axes: Axes) -> None:
        steps, values = _series(train, "loss")
        axes.plot(steps, values, color=COLOURS[0], linewidth=0.6, alpha=0.4)
        axes.plot(steps, smooth(values), color=COLOURS[0], linewidth=2.0, label="training, smoothed")
        for i, name in enumerate(_term_names(train)):
            steps, values = _series(train, name, table="terms")
            colour = COLOURS[1 + i % (len(COLOURS) - 1)]
            axes.plot(
                steps,
                smooth(values),
                color=colour,
                linewidth=1.2,
                linestyle="--",
                label=_legend_label(f"term: {name}"),
            )
        steps, values = _series(validation, "loss")
        if len(steps):
            axes.plot(steps, values, color=VALIDATION, linewidth=1.0, marker="o", markersize=4, label="validation")

    return _svg(draw) if train or validation else ""


def smooth(values: Floats) -> Floats:
    """A centred moving average over a twentieth of the curve."""
    count = len(values)
    index = np.arange(count)
    # Near an end the window shrinks on both sides, so that a steep start is not averaged away.
    half = np.minimum(np.minimum(index, count - 1 - index), max(1, count // 40))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray((sums[index + half + 1] - sums[index - half]) / (2 * half + 1), np.float64)


def _legend_label(name: str) -> str:
    """A printable name for the legend. Gets a leading space before an underscore: matplotlib hides such labels."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)[:48]
    return f" {shown}" if shown.startswith("_") else shown


def _rows_of(metrics: Rows, kind: str) -> list[Mapping[str, Any]]:
    return [row for row in metrics if row.get("kind") == kind and isinstance(row.get("step"), int)]


def _term_names(train: Rows) -> list[str]:
    """The names of the loss terms; none if there is a single one, which equals the loss."""
    names = dict.fromkeys(str(name) for row in train for name in row.get("terms") or {})
    return list(names) if len(names) > 1 else []


def _series(rows: Rows, key: str, table: str = "") -> tuple[Floats, Floats]:
    """Steps and values of a key (of a nested table), without missing and non-finite values."""
    pairs = [(row["step"], ((row.get(table) or {}) if table else row).get(key)) for row in rows]
    known = [(step, value) for step, value in pairs if isinstance(value, int | float) and np.isfinite(value)]
    points = np.asarray(known, np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _svg(draw: Any) -> str:
    """Call `draw` with styled axes and return the `<svg>` element."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    stream = io.StringIO()
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        figure = Figure(figsize=(6.4, 3.5), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.grid(axis="y", color=TEXT_COLOUR, alpha=0.12, linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        draw(axes)
        axes.set_xlabel("step")
        axes.set_ylabel("nats per token")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8.5)
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    image = stream.getvalue()
    return image[image.index("<svg") :].replace(TEXT_COLOUR, "currentColor").strip()
