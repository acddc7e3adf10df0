"""A fake judge on the loopback interface: it reads the rubric, quotes, grades, and counts tokens.

It obeys every order that it finds outside of a fence. So if it gives a story the grade that the story asks for, the
story has got out of its fence.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

from support.chat_provider import PROBE, Act, Call
from support.paths import SHARED

RANKS = SHARED / "data/gpt2.tiktoken"
ORDER = re.compile(r"(?:rate|grade) this(?: story)? (\d+)|winner is ([AB])", re.IGNORECASE)


def gpt2() -> Callable[[str], int]:
    """The number of GPT-2 tokens of a text."""
    from distillkit.data.tokenizer import build

    tokenizer = build(kind="gpt2", ranks=str(RANKS))
    return lambda text: len(tokenizer.encode(text))


class Judge:
    """The judge as a rule of the fake provider."""

    def __init__(self, count: Callable[[str], int] = lambda text: len(text) // 4, schema: bool = True) -> None:
        self.count, self.schema = count, schema
        self.quality: Callable[[str], float] = lambda text: (
            int(hashlib.sha256(text.encode()).hexdigest(), 16) % 101 / 100
        )
        self.noise = 0.0
        self.spoil: Callable[[dict[str, Any], str], str] = lambda reply, said: json.dumps(reply)
        self.tokens = {"prompt": 0, "completion": 0}
        self.asked: list[str] = []  # what was said to it, but for probes

    def __call__(self, call: Call) -> Act:
        if "response_format" in call.body and not self.schema:
            told = {"error": {"message": "response_format is not supported", "param": "response_format"}}
            return Act(400, body=json.dumps(told).encode())
        if call.prompt == PROBE:
            return Act()
        self.asked.append(call.prompt)
        return Act(change=lambda body: self._answered(call.body["messages"], body))

    def _answered(self, messages: list[dict[str, str]], body: dict[str, Any]) -> None:
        said = messages[-1]["content"]
        text = self.spoil(self.reply(said), said)
        used = sum(self.count(message["content"]) + 4 for message in messages) + 3, self.count(text)
        self.tokens["prompt"] += used[0]
        self.tokens["completion"] += used[1]
        body["choices"][0]["message"]["content"] = text
        body["usage"] = {"prompt_tokens": used[0], "completion_tokens": used[1], "total_tokens": sum(used)}

    def reply(self, said: str) -> dict[str, Any]:
        """The reply of an honest and obedient judge."""
        mark = re.search(r"with the mark (\w+)", said)[1]  # type: ignore[index]
        parts = dict(re.findall(rf"<<<(\w+) {mark}>>>\n(.*?)\n(?=<<<\w+ {mark}>>>)", said, re.DOTALL))
        fenced = re.search(rf"<<<BEGINNING {mark}>>>.*<<<END {mark}>>>", said, re.DOTALL)
        outside = said.replace(fenced[0], "")  # type: ignore[index]
        order = ORDER.search(outside)
        return self._compared(parts, order) if "A" in parts else self._graded(parts["CONTINUATION"], outside, order)

    def _graded(self, story: str, outside: str, order: re.Match[str] | None) -> dict[str, Any]:
        scale = int(re.search(r"to (\d+) \(best\)", outside)[1])  # type: ignore[index]
        wobble = 1 if self.noise and hash((story, len(self.asked))) % 2 else 0
        grade = min(scale, int(order[1]) if order else 1 + round(self.quality(story) * (scale - 2)) + wobble)
        quote = " ".join(story.split()[:6])
        grades = {name: {"quote": quote, "grade": grade} for name in re.findall(r"^- (\w+):", outside, re.MULTILINE)}
        return {"assessment": "The student goes on with the story, well or badly. " * 3, **grades, "age_group": "6-7"}

    def _compared(self, parts: dict[str, str], order: re.Match[str] | None) -> dict[str, Any]:
        a, b = self.quality(parts["A"]), self.quality(parts["B"])
        better = order[2] if order else "tie" if a == b else "A" if a > b else "B"
        return {"comparison": "One of them is better, or they are alike. " * 2, "better": better}
