"""Where four heads look when the teacher is to name who speaks."""

from __future__ import annotations

from _paper import BLUE, INK, sheet
from _teacher import read
from _tokens import bare, written

HEADS = ((4, 4), (3, 2), (2, 3), (2, 2))  # block and head, counted from 1


def main() -> None:
    """The same words four times, each as dark as the head takes from it for the last word."""
    found = read()
    tokens = [token.replace("\n", "↵") for token in found.tokens]
    with sheet("attention_words", 7.0, 4.0) as axes:
        line = 0.0
        for block, head in HEADS:
            weights = found.weights[block - 1, head - 1, -1]
            axes.text(0, line + 0.9, f"block {block}, head {head}", fontsize=10, fontweight="bold", color=INK)
            line = written(axes, tokens, line + 1.4, lambda number, weights=weights: (BLUE, float(weights[number])))
            line += 0.7
        bare(axes, line - 0.7)


if __name__ == "__main__":
    main()
