"""One word of one tale that nobody was trained on, and what the bundled teacher thinks should stand there."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distillkit.data.tales import story
from distillkit.student import Trained

TALE = 13  # it is held out in every recipe: by its hash
BEFORE = ' "Plant it," said her'


class Opinion(NamedTuple):
    """What a model makes of the place: the logits of all tokens, and the tokens' texts."""

    logits: NDArray[np.float64]
    texts: list[str]

    def chances(self, temperature: float = 1.0) -> NDArray[np.float64]:
        """How likely each token is at a temperature."""
        powers = np.exp((self.logits - self.logits.max()) / temperature)
        return np.asarray(powers / powers.sum(), np.float64)


@cache
def place() -> tuple[str, str]:
    """The text before the word, and what the tale goes on with."""
    text = story(0, TALE)
    at = text.index(BEFORE) + len(BEFORE)
    return text[:at], text[at:]


@cache
def opinion(who: str = "tales-teacher", prompt: str | None = None) -> Opinion:
    """What a student or teacher thinks of the next word of a prompt."""
    import mlx.core as mx

    model = Trained.load(who)
    tokens = [model.tokenizer.end_of_text, *model.tokenizer.encode(place()[0] if prompt is None else prompt)]
    logits = np.array(model.logits(mx.array([tokens]))[0, -1], np.float64)
    texts = [model.tokenizer.bytes_of(i).decode("utf-8", "replace") for i in range(len(logits))]
    return Opinion(logits, texts)


def told() -> int:
    """The token that the tale itself goes on with."""
    model = Trained.load("tales-teacher")
    return int(model.tokenizer.encode(place()[1])[0])


if __name__ == "__main__":
    print(place()[0])
