"""One sentence, cut by tokenizers of six sizes that were trained on the same tales."""

from __future__ import annotations

from _paper import BLUE, INK, ORANGE, sheet, shown
from _tokens import bare, written

from distillkit.data.corpus import held_out
from distillkit.data.tales import story
from distillkit.data.tokenizer import train_bpe

SENTENCE = "Once upon a time, a little rabbit named Clover found a wooden boat."
SIZES = (258, 300, 400, 600, 1000, 2048)


def main() -> None:
    """A line or two for each size."""
    tales = [tale for number in range(2000) if not held_out(tale := story(0, number), 0.1)]
    with sheet("merges", 7.0, 4.1) as axes:
        line = 0.0
        for size in SIZES:
            tokenizer = train_bpe(iter(tales), size)
            tokens = [shown(tokenizer.bytes_of(token).decode()) for token in tokenizer.encode(SENTENCE)]
            told = f"vocabulary of {size:,}: {len(tokens)} tokens"
            axes.text(0, line + 0.9, told, fontsize=10, color=INK)
            line = written(axes, tokens, line + 1.4, lambda number: ((BLUE, ORANGE)[number % 2], 0.28)) + 0.5
        bare(axes, line - 0.5)


if __name__ == "__main__":
    main()
