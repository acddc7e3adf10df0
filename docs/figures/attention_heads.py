"""Attention weights of all sixteen heads of the bundled teacher on the beginning of one tale."""

from __future__ import annotations

from _attention import attention_map
from _style import INK, figure


def main() -> None:
    """One square per head: rows are queries, columns are keys."""
    from matplotlib.colors import PowerNorm

    weights = attention_map().weights
    blocks, heads, length, _ = weights.shape
    with figure("attention_heads", 7.0, 7.4, blocks, heads) as squares:
        for block in range(blocks):
            for head in range(heads):
                axes = squares[block][head]
                axes.imshow(weights[block, head], cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
                axes.set(xticks=[], yticks=[], title=f"block {block + 1}, head {head + 1}")
                axes.title.set_fontsize(9)
                axes.plot([0.5, length - 0.5], [-0.5, length - 1.5], color=INK, linewidth=0.4)
        squares[-1][0].set(xlabel="is looked at →", ylabel="← looks")


if __name__ == "__main__":
    main()
