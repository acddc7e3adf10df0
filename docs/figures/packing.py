"""How tales are concatenated into a token stream that is split into windows."""

from __future__ import annotations

from _style import COLOURS, INK, RED, figure

from distillkit.data.tales import story
from distillkit.data.tokenizer import build

TALES, CONTEXT = 5, 128


def main() -> None:
    """One bar of documents above one of windows."""
    tokenizer = build("tales-teacher")
    sizes = [len(tokenizer.encode(story(0, number))) + 1 for number in range(1, TALES + 1)]
    with figure("packing", 7.0, 2.3) as axes:
        start = 0
        for number, size in enumerate(sizes):
            axes.barh(1, size, left=start, height=0.5, color=COLOURS[number % len(COLOURS)], alpha=0.45)
            axes.text(start + size / 2, 1, f"tale {number + 1}\n{size} tokens", ha="center", va="center", fontsize=9)
            start += size
            axes.plot([start, start], [0.7, 1.3], color=RED, linewidth=2.5)
        windows = -(-start // CONTEXT)
        for window in range(windows):
            line = "dashed" if (window + 1) * CONTEXT > start else "solid"
            axes.barh(0, CONTEXT, left=window * CONTEXT, height=0.5, color="white", edgecolor=INK, linestyle=line)
            axes.text((window + 0.5) * CONTEXT, 0, f"{window}", ha="center", va="center", fontsize=9)
        axes.set(xlim=(0, windows * CONTEXT), ylim=(-0.45, 1.45), xlabel="position in the stream", yticks=[0, 1])
        axes.set_yticklabels(["windows", "documents"])
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)


if __name__ == "__main__":
    main()
