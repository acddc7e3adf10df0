"""One next-token distribution of the teacher at four temperatures."""

from __future__ import annotations

import numpy as np
from _next_token import predict
from _style import BLUE, PALE, figure, visible

TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
SHOWN_TOKENS = 12


def main() -> None:
    """The same tokens in the same order at increasing temperatures."""
    prediction = predict()
    best = np.argsort(-prediction.logits)[:SHOWN_TOKENS]
    names = [*(visible(prediction.texts[i]) for i in best), "all others"]
    with figure("temperature", 7.0, 3.4, columns=len(TEMPERATURES), sharey=True) as panels_axes:
        for axes, temperature in zip(panels_axes, TEMPERATURES, strict=True):
            probabilities = prediction.probabilities(temperature)
            values = [*probabilities[best], 1 - probabilities[best].sum()]
            bars = axes.barh(range(len(names)), values, color=[BLUE] * SHOWN_TOKENS + [PALE], height=0.72)
            axes.bar_label(
                bars, [f"{value:.2f}" if value >= 0.005 else "" for value in values], padding=2, fontsize=8.5
            )
            axes.set(title=f"T = {temperature:g}", xlim=(0, max(values) * 1.35), xticks=[])
            axes.grid(visible=False)
            axes.spines.bottom.set_visible(False)
            axes.tick_params(length=0)
        panels_axes[0].set_yticks(range(len(names)), names)
        panels_axes[0].invert_yaxis()


if __name__ == "__main__":
    main()
