"""One sentence, tokenized with six vocabulary sizes trained on the same tales."""

from __future__ import annotations

from _style import BLUE, INK, ORANGE, figure, visible
from _tokens import draw_tokens, hide_axes

from distillkit.data.corpus import held_out
from distillkit.data.tales import story
from distillkit.data.tokenizer import train_bpe

SENTENCE = "Once upon a time, a little rabbit named Clover found a wooden boat."
SIZES = (258, 300, 400, 600, 1000, 2048)


def main() -> None:
    """One or two lines per vocabulary size."""
    tales = [tale for number in range(2000) if not held_out(tale := story(0, number), 0.1)]
    with figure("merges", 7.0, 4.1) as axes:
        line = 0.0
        for size in SIZES:
            tokenizer = train_bpe(iter(tales), size)
            tokens = [visible(tokenizer.bytes_of(token).decode()) for token in tokenizer.encode(SENTENCE)]
            caption = f"vocabulary of {size:,}: {len(tokens)} tokens"
            axes.text(0, line + 0.9, caption, fontsize=10, color=INK)
            line = draw_tokens(axes, tokens, line + 1.4, lambda number: ((BLUE, ORANGE)[number % 2], 0.28)) + 0.5
        hide_axes(axes, line - 0.5)


if __name__ == "__main__":
    main()
