"""How the aligner maps a teacher's top log-probabilities to a student's tokens, for one answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from _next_token import split_tale
from _style import BLUE, INK, ORANGE, PALE, figure, visible

from distillkit import Answer, Request
from distillkit.data.tales import story
from distillkit.data.tokenizer import Tokenizer, train_bpe
from distillkit.plugins.manager import Plugins
from distillkit.teachers.soft_targets.align import Aligner, TokenMapping
from distillkit.teachers.soft_targets.store import SoftTargetRows


def main() -> None:
    """Top: the answer in both tokenizations. Bottom: how the probability mass of the first token is mapped."""
    teacher: Any = Plugins.load().build("teachers", "checkpoint", {"model": "tales-teacher"}, file="the guide")
    student = train_bpe((story(0, i) for i in range(300)), 512)
    answer = teacher.answer(Request("", prompt=split_tale()[0], max_tokens=6, top_logprobs=8, seed=4))
    tokens = np.array(student.encode(answer.text))
    rows = Aligner(student).align(tokens, answer)
    with figure("alignment", 7.0, 4.3, rows=2, height_ratios=(1, 1.9)) as (above, below):
        draw_tokenizations(above, answer, student, tokens, rows)
        draw_mapping(below, answer, student, rows)


def draw_tokenizations(axes: Any, answer: Answer, student: Tokenizer, tokens: Any, rows: SoftTargetRows) -> None:
    """The answer in the teacher's tokens, above the student's."""
    theirs = [token.bytes.decode() for token in answer.tokens]
    ours = [student.bytes_of(token).decode() for token in tokens]
    draw_boxes(axes, 1.0, theirs, [BLUE] * len(theirs))
    draw_boxes(axes, 0.0, ours, [ORANGE if count else PALE for count in rows.counts])
    axes.set(xlim=(-0.2, len(answer.text) + 0.2), ylim=(-0.5, 1.5), yticks=(1, 0), xticks=[])
    axes.set_yticklabels(("teacher", "student"))
    starts = np.cumsum([0, *map(len, ours[:-1])])
    for start in starts[rows.counts > 0]:
        axes.plot((start, start), (0.32, 0.68), color=INK, linewidth=1.4, marker="o", markersize=3)
    axes.set_title("One text, two tokenizations. Dots: both have a token boundary")
    hide_axes(axes)


def draw_boxes(axes: Any, height: float, texts: list[str], colours: list[str]) -> None:
    """Draw tokens as boxes, as wide as their characters."""
    at = 0
    for text, colour in zip(texts, colours, strict=True):
        axes.barh(
            height, len(text) - 0.12, left=at + 0.06, height=0.56, color=colour, alpha=0.32 if colour != PALE else 0.6
        )
        axes.text(at + len(text) / 2, height, visible(text), ha="center", va="center", fontsize=9)
        at += len(text)


def draw_mapping(axes: Any, answer: Answer, student: Tokenizer, rows: SoftTargetRows) -> None:
    """Lines from the teacher's listed tokens to the student's tokens, as thick as the probability mass."""
    listed = [(piece, np.exp(log)) for piece, log in answer.tokens[0].top]
    named = [
        (int(i), float(np.exp(v)))
        for i, v in zip(rows.ids[: rows.counts[0]], rows.values[: rows.counts[0]], strict=True)
    ]
    mapping, high = TokenMapping(student), [len(listed) - 1 - i for i in range(len(listed))]
    low = {token: (len(listed) - 1) * (1 - i / max(1, len(named) - 1)) for i, (token, _) in enumerate(named)}
    for (piece, probability), y in zip(listed, high, strict=True):
        to = mapping[piece]
        axes.text(0, y, f"{visible(piece.decode())}  {probability:.2f}", ha="right", va="center", fontsize=9.5)
        if to in low:
            axes.plot(
                (0.04, 0.96),
                (y, low[to]),
                color=BLUE,
                linewidth=0.6 + 16 * probability,
                alpha=0.45,
                solid_capstyle="butt",
            )
    for token, total in named:
        text = visible(student.bytes_of(token).decode())
        axes.text(1, low[token], f"{text}  {total:.2f}", ha="left", va="center", fontsize=9.5)
    axes.set(xlim=(-0.45, 1.45), ylim=(-0.7, len(listed) - 0.3), yticks=[], xticks=[])
    axes.set_title("First token: listed by the teacher (left), mapped to the student (right)")
    hide_axes(axes)


def hide_axes(axes: Any) -> None:
    """Hide grid, ticks and frame."""
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


if __name__ == "__main__":
    main()
