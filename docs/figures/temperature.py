"""One opinion of the teacher at four temperatures."""

from __future__ import annotations

import numpy as np
from _paper import BLUE, PALE, sheet, shown
from _word import opinion

HEATS = (0.5, 1.0, 2.0, 4.0)
MOST = 12


def main() -> None:
    """The same words in the same order, softened more and more."""
    theirs = opinion()
    best = np.argsort(-theirs.logits)[:MOST]
    names = [*(shown(theirs.texts[i]) for i in best), "all others"]
    with sheet("temperature", 7.0, 3.4, columns=len(HEATS), sharey=True) as every:
        for axes, heat in zip(every, HEATS, strict=True):
            chances = theirs.chances(heat)
            values = [*chances[best], 1 - chances[best].sum()]
            bars = axes.barh(range(len(names)), values, color=[BLUE] * MOST + [PALE], height=0.72)
            axes.bar_label(
                bars, [f"{value:.2f}" if value >= 0.005 else "" for value in values], padding=2, fontsize=8.5
            )
            axes.set(title=f"T = {heat:g}", xlim=(0, max(values) * 1.35), xticks=[])
            axes.grid(visible=False)
            axes.spines.bottom.set_visible(False)
            axes.tick_params(length=0)
        every[0].set_yticks(range(len(names)), names)
        every[0].invert_yaxis()


if __name__ == "__main__":
    main()
