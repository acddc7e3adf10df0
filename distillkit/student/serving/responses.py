"""Answers in the shapes that OpenAI's clients read: whole and in pieces, of completions and of chats.

Knows words and numbers only; where they come from is somebody else's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from ..training.logprobs import Pick

Placed = Sequence[tuple[Pick, int]]  # tokens, and where in the text they begin
Bytes = Callable[[int], bytes]


def spelled(piece: bytes) -> str:
    """A token as text; one that is no text by itself as OpenAI spells it."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class Shape(ABC):
    """What the two endpoints have in common; they differ in one choice's shape."""

    kind = piece_kind = ""

    def __init__(self, bytes_of: Bytes) -> None:
        self.bytes_of = bytes_of

    @abstractmethod
    def whole(self, text: str, logprobs: Any) -> dict[str, Any]:
        """A choice that is complete."""

    @abstractmethod
    def piece(self, text: str, logprobs: Any) -> dict[str, Any]:
        """A piece of a choice."""

    def first(self) -> dict[str, Any] | None:
        """What a choice begins with in a stream, if anything."""
        return None

    @abstractmethod
    def logprobs(self, placed: Placed) -> Any:
        """Tokens with their log-probabilities."""


class CompletionShape(Shape):
    """`/v1/completions`."""

    kind = piece_kind = "text_completion"

    def whole(self, text: str, logprobs: Any) -> dict[str, Any]:
        """A choice that is complete."""
        return {"text": text, "logprobs": logprobs}

    piece = whole

    def logprobs(self, placed: Placed) -> Any:
        """Four lists side by side. A token that nothing stands before has no log-probability."""
        return {
            "tokens": [spelled(self.bytes_of(pick.token)) for pick, _ in placed],
            "token_logprobs": [pick.logprob for pick, _ in placed],
            "top_logprobs": [self._top(pick) for pick, _ in placed],
            "text_offset": [place for _, place in placed],
        }

    def _top(self, pick: Pick) -> dict[str, float] | None:
        """The likeliest tokens, and the token itself; where two are spelled alike, the likelier one."""
        if pick.logprob is None:
            return None
        found: dict[str, float] = {}
        for token, logprob in (*pick.top, (pick.token, pick.logprob)):
            found.setdefault(spelled(self.bytes_of(token)), logprob)
        return found


class ChatShape(Shape):
    """`/v1/chat/completions`."""

    kind, piece_kind = "chat.completion", "chat.completion.chunk"

    def whole(self, text: str, logprobs: Any) -> dict[str, Any]:
        """A choice that is complete."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": logprobs}

    def piece(self, text: str, logprobs: Any) -> dict[str, Any]:
        """A piece of a choice."""
        return {"delta": {"content": text} if text else {}, "logprobs": logprobs}

    def first(self) -> dict[str, Any] | None:
        """Who speaks."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def logprobs(self, placed: Placed) -> Any:
        """A list of tokens, each with its alternatives."""
        rows = [
            {**self._one(pick.token, pick.logprob), "top_logprobs": [self._one(*other) for other in pick.top]}
            for pick, _ in placed
        ]
        return {"content": rows, "refusal": None}

    def _one(self, token: int, logprob: float | None) -> dict[str, Any]:
        piece = self.bytes_of(token)
        return {"token": spelled(piece), "logprob": logprob, "bytes": list(piece)}
