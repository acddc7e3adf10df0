"""Attention weights of four heads at the position where the teacher predicts the speaker."""

from __future__ import annotations

from _attention import attention_map
from _style import BLUE, INK, figure
from _tokens import draw_tokens, hide_axes

HEADS = ((4, 4), (3, 2), (2, 3), (2, 2))  # block and head, counted from 1


def main() -> None:
    """The same words four times, shaded by the attention weight for the last word."""
    found = attention_map()
    tokens = [token.replace("\n", "↵") for token in found.tokens]
    with figure("attention_words", 7.0, 4.0) as axes:
        line = 0.0
        for block, head in HEADS:
            weights = found.weights[block - 1, head - 1, -1]
            axes.text(0, line + 0.9, f"block {block}, head {head}", fontsize=10, fontweight="bold", color=INK)
            line = draw_tokens(axes, tokens, line + 1.4, lambda number, weights=weights: (BLUE, float(weights[number])))
            line += 0.7
        hide_axes(axes, line - 0.7)


if __name__ == "__main__":
    main()
