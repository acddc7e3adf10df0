"""Next-token distributions of a student or teacher at one position of a held-out tale."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distillkit.data.tales import story
from distillkit.student import Trained

TALE = 13  # held out in every recipe, by its hash
BEFORE = ' "Plant it," said her'


class Prediction(NamedTuple):
    """The logits of all tokens at one position, and the tokens' texts."""

    logits: NDArray[np.float64]
    texts: list[str]

    def probabilities(self, temperature: float = 1.0) -> NDArray[np.float64]:
        """softmax(logits / temperature)."""
        exponentials = np.exp((self.logits - self.logits.max()) / temperature)
        return np.asarray(exponentials / exponentials.sum(), np.float64)


@cache
def split_tale() -> tuple[str, str]:
    """The text before the position, and the text after it."""
    text = story(0, TALE)
    at = text.index(BEFORE) + len(BEFORE)
    return text[:at], text[at:]


@cache
def predict(name: str = "tales-teacher", prompt: str | None = None) -> Prediction:
    """The prediction of a student or teacher for the next token of a prompt."""
    import mlx.core as mx

    model = Trained.load(name)
    tokens = [model.tokenizer.end_of_text, *model.tokenizer.encode(split_tale()[0] if prompt is None else prompt)]
    logits = np.array(model.logits(mx.array([tokens]))[0, -1], np.float64)
    texts = [model.tokenizer.bytes_of(i).decode("utf-8", "replace") for i in range(len(logits))]
    return Prediction(logits, texts)


def true_token() -> int:
    """The token that follows in the tale."""
    model = Trained.load("tales-teacher")
    return int(model.tokenizer.encode(split_tale()[1])[0])


if __name__ == "__main__":
    print(split_tale()[0])
