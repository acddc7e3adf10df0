"""One distribution of the quickstart's student, at three temperatures and under three cuts."""

from __future__ import annotations

from typing import Any

import numpy as np
from _paper import BLUE, ORANGE, PALE, sheet, shown
from _runs import run
from _word import opinion

from distillkit.student import Sampling
from distillkit.student.generation.sampling import filter_logits

PROMPT = "One day, a little fox"
MOST = 14
WAYS = {
    "temperature 0.5": Sampling(0.5),
    "temperature 1": Sampling(1.0),
    "temperature 1.5": Sampling(1.5),
    "top-k 5": Sampling(1.0, top_k=5),
    "top-p 0.9": Sampling(1.0, top_p=0.9),
    "min-p 0.1": Sampling(1.0, min_p=0.1),
}


def main() -> None:
    """The same tokens in the same order under each way to draw."""
    ours = opinion(str(run("quickstart").path), PROMPT)
    best = np.argsort(-ours.logits)[:MOST]
    names = [shown(ours.texts[i]) for i in best] + ["others"]
    with sheet("sampling", 7.0, 5.8, rows=2, columns=3, sharex=True, sharey=True) as grid:
        for axes, (title, how) in zip(grid.flat, WAYS.items(), strict=True):
            chances = drawn(ours.logits, how)
            values = [*chances[best], 1 - chances[best].sum()]
            colour = BLUE if title.startswith("temperature") else ORANGE
            axes.barh(range(len(names)), values, color=[colour] * MOST + [PALE], height=0.74)
            left = int((chances > 0).sum())
            axes.set_title(f"{title}: " + ("all" if left == len(chances) else f"{left} left"))
            axes.grid(visible=False, axis="y")
            axes.tick_params(length=0)
        for axes in grid[:, 0]:
            axes.set_yticks(range(len(names)), names, fontsize=8.5)
        grid[0, 0].invert_yaxis()
        for axes in grid[1]:
            axes.set_xlabel("chance")


def drawn(logits: Any, how: Sampling) -> Any:
    """The chances that a draw is made from, by the code that draws."""
    import mlx.core as mx

    return np.array(mx.softmax(filter_logits(mx.array(logits)[None] / how.temperature, how), axis=-1))[0]


if __name__ == "__main__":
    main()
