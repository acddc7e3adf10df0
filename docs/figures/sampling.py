"""A next-token distribution of the quickstart's student at three temperatures and with three filters."""

from __future__ import annotations

from typing import Any

import numpy as np
from _next_token import predict
from _runs import run
from _style import BLUE, ORANGE, PALE, figure, visible

from distillkit.student import Sampling
from distillkit.student.generation.sampling import filter_logits

PROMPT = "One day, a little fox"
SHOWN_TOKENS = 14
SETTINGS = {
    "temperature 0.5": Sampling(0.5),
    "temperature 1": Sampling(1.0),
    "temperature 1.5": Sampling(1.5),
    "top-k 5": Sampling(1.0, top_k=5),
    "top-p 0.9": Sampling(1.0, top_p=0.9),
    "min-p 0.1": Sampling(1.0, min_p=0.1),
}


def main() -> None:
    """The same tokens in the same order under each sampling setting."""
    prediction = predict(str(run("quickstart").path), PROMPT)
    best = np.argsort(-prediction.logits)[:SHOWN_TOKENS]
    names = [visible(prediction.texts[i]) for i in best] + ["others"]
    with figure("sampling", 7.0, 5.8, rows=2, columns=3, sharex=True, sharey=True) as grid:
        for axes, (title, sampling) in zip(grid.flat, SETTINGS.items(), strict=True):
            probabilities = sampling_probabilities(prediction.logits, sampling)
            values = [*probabilities[best], 1 - probabilities[best].sum()]
            colour = BLUE if title.startswith("temperature") else ORANGE
            axes.barh(range(len(names)), values, color=[colour] * SHOWN_TOKENS + [PALE], height=0.74)
            left = int((probabilities > 0).sum())
            axes.set_title(f"{title}: " + ("all" if left == len(probabilities) else f"{left} left"))
            axes.grid(visible=False, axis="y")
            axes.tick_params(length=0)
        for axes in grid[:, 0]:
            axes.set_yticks(range(len(names)), names, fontsize=8.5)
        grid[0, 0].invert_yaxis()
        for axes in grid[1]:
            axes.set_xlabel("probability")


def sampling_probabilities(logits: Any, sampling: Sampling) -> Any:
    """The probabilities that tokens are sampled with, computed by the sampler."""
    import mlx.core as mx

    return np.array(mx.softmax(filter_logits(mx.array(logits)[None] / sampling.temperature, sampling), axis=-1))[0]


if __name__ == "__main__":
    main()
