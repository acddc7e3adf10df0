"""One place of a tale as three targets: what the text says, what the teacher says, and a mixture of both."""

from __future__ import annotations

import numpy as np
from _paper import BLUE, ORANGE, PALE, PURPLE, sheet, shown
from _word import opinion, told

from distillkit.recipe.recipe import load

MOST = 9


def main() -> None:
    """Bars of the likeliest words, and one for all others."""
    theirs, alpha = opinion(), load("quickstart").mixer.options["alpha"]
    soft = theirs.chances()
    hard = np.zeros_like(soft)
    hard[told()] = 1.0
    best = np.argsort(-soft)[:MOST]
    names = [*(shown(theirs.texts[i]) for i in best), "all others"]
    panels = (
        ("hard:\nwhat the text says", hard, ORANGE),
        ("soft:\nwhat the teacher says", soft, BLUE),
        (f"both,\nalpha = {alpha:g}", alpha * hard + (1 - alpha) * soft, PURPLE),
    )
    with sheet("soft_targets", 7.0, 3.0, columns=3, sharey=True) as every:
        for axes, (title, target, colour) in zip(every, panels, strict=True):
            values = [*target[best], 1 - target[best].sum()]
            bars = axes.barh(range(len(names)), values, color=[colour] * MOST + [PALE], height=0.72)
            axes.bar_label(
                bars, [f"{value:.2f}" if value >= 0.005 else "" for value in values], padding=2, fontsize=8.5
            )
            axes.set(title=title, xlim=(0, max(values) * 1.22), xticks=[])
            axes.grid(visible=False)
            axes.spines.bottom.set_visible(False)
            axes.tick_params(length=0)
        every[0].set_yticks(range(len(names)), names)
        every[0].invert_yaxis()


if __name__ == "__main__":
    main()
