"""Three targets at one position of a tale: hard, soft, and their mixture."""

from __future__ import annotations

import numpy as np
from _next_token import predict, true_token
from _style import BLUE, ORANGE, PALE, PURPLE, figure, visible

from distillkit.recipe.recipe import load

SHOWN_TOKENS = 9


def main() -> None:
    """Bars of the most likely tokens, and one for all others."""
    prediction, alpha = predict(), load("quickstart").mixer.options["alpha"]
    soft = prediction.probabilities()
    hard = np.zeros_like(soft)
    hard[true_token()] = 1.0
    best = np.argsort(-soft)[:SHOWN_TOKENS]
    names = [*(visible(prediction.texts[i]) for i in best), "all others"]
    panels = (
        ("hard:\nthe token in the text", hard, ORANGE),
        ("soft:\nthe teacher's distribution", soft, BLUE),
        (f"both,\nalpha = {alpha:g}", alpha * hard + (1 - alpha) * soft, PURPLE),
    )
    with figure("soft_targets", 7.0, 3.0, columns=3, sharey=True) as panels_axes:
        for axes, (title, target, colour) in zip(panels_axes, panels, strict=True):
            values = [*target[best], 1 - target[best].sum()]
            bars = axes.barh(range(len(names)), values, color=[colour] * SHOWN_TOKENS + [PALE], height=0.72)
            axes.bar_label(
                bars, [f"{value:.2f}" if value >= 0.005 else "" for value in values], padding=2, fontsize=8.5
            )
            axes.set(title=title, xlim=(0, max(values) * 1.22), xticks=[])
            axes.grid(visible=False)
            axes.spines.bottom.set_visible(False)
            axes.tick_params(length=0)
        panels_axes[0].set_yticks(range(len(names)), names)
        panels_axes[0].invert_yaxis()


if __name__ == "__main__":
    main()
