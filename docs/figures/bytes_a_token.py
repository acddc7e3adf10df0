"""Bytes per token by vocabulary size, on text like the tokenizers' training text and on other text."""

from __future__ import annotations

from collections.abc import Sequence

from _style import BLUE, ORANGE, figure

from distillkit.data.corpus import held_out
from distillkit.data.tales import story
from distillkit.data.tokenizer import Tokenizer, train_bpe

SIZES = (258, 300, 350, 512, 724, 1024, 1448, 2048, 2896)


def main() -> None:
    """One curve per kind of text, with the same tokenizers."""
    from pydoc_data.topics import topics

    tales = [story(0, number) for number in range(4000)]
    train_tales = [tale for tale in tales if not held_out(tale, 0.1)]
    kinds = {
        "held-out tales": (BLUE, [tale for tale in tales if held_out(tale, 0.1)]),
        "Python's own documentation": (ORANGE, list(topics.values())[:40]),
    }
    tokenizers = [train_bpe(iter(train_tales), size) for size in SIZES]
    with figure("bytes_a_token") as axes:
        for label, (colour, texts) in kinds.items():
            axes.plot(SIZES, [bytes_per_token(one, texts) for one in tokenizers], "o-", color=colour, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks([256, 512, 1024, 2048], ["256", "512", "1,024", "2,048"])
        axes.minorticks_off()
        axes.set(ylim=(0, None), xlabel="vocabulary size, trained on tales", ylabel="bytes per token")
        axes.legend(loc="upper left")


def bytes_per_token(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Mean bytes per token over all texts."""
    return sum(len(text.encode()) for text in texts) / sum(map(len, tokenizer.encode_batch(texts)))


if __name__ == "__main__":
    main()
