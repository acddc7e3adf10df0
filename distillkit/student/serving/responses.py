"""OpenAI response bodies: complete responses and stream chunks of completions and chat completions.

Works on text, tokens and numbers only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from ..generation.logprobs import TokenLogprob

TokensWithOffsets = Sequence[tuple[TokenLogprob, int]]  # each token, and its offset in the text


def token_text(token: bytes) -> str:
    """A token as text. OpenAI writes one that is not valid UTF-8 by itself as `bytes:\\xe6\\xbc`."""
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


class ResponseFormat(ABC):
    """The format of one endpoint's choices."""

    object_name = chunk_object_name = ""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self.bytes_of = bytes_of

    @abstractmethod
    def choice(self, text: str, logprobs: Any) -> dict[str, Any]:
        """The content of a complete choice."""

    @abstractmethod
    def chunk(self, text: str, logprobs: Any) -> dict[str, Any]:
        """The content of a choice in a stream chunk."""

    def first_chunk(self) -> dict[str, Any] | None:
        """The content of a choice's first stream chunk, if it has a special one."""
        return None

    @abstractmethod
    def logprobs(self, tokens: TokensWithOffsets) -> Any:
        """Tokens with their log-probabilities."""


class CompletionFormat(ResponseFormat):
    """`/v1/completions`."""

    object_name = chunk_object_name = "text_completion"

    def choice(self, text: str, logprobs: Any) -> dict[str, Any]:
        """The content of a complete choice."""
        return {"text": text, "logprobs": logprobs}

    chunk = choice

    def logprobs(self, tokens: TokensWithOffsets) -> Any:
        """Four parallel lists. The log-probability of a token without preceding context is None."""
        return {
            "tokens": [token_text(self.bytes_of(token.token)) for token, _ in tokens],
            "token_logprobs": [token.logprob for token, _ in tokens],
            "top_logprobs": [self._top(token) for token, _ in tokens],
            "text_offset": [offset for _, offset in tokens],
        }

    def _top(self, token: TokenLogprob) -> dict[str, float] | None:
        """The most likely tokens and the token itself by text; of tokens with the same text, the most likely one."""
        if token.logprob is None:
            return None
        top: dict[str, float] = {}
        for number, logprob in (*token.top, (token.token, token.logprob)):
            top.setdefault(token_text(self.bytes_of(number)), logprob)
        return top


class ChatCompletionFormat(ResponseFormat):
    """`/v1/chat/completions`."""

    object_name, chunk_object_name = "chat.completion", "chat.completion.chunk"

    def choice(self, text: str, logprobs: Any) -> dict[str, Any]:
        """The content of a complete choice."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": logprobs}

    def chunk(self, text: str, logprobs: Any) -> dict[str, Any]:
        """The content of a choice in a stream chunk."""
        return {"delta": {"content": text} if text else {}, "logprobs": logprobs}

    def first_chunk(self) -> dict[str, Any] | None:
        """The role of the message."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def logprobs(self, tokens: TokensWithOffsets) -> Any:
        """A list of tokens, each with its alternatives."""
        rows = [
            {**self._entry(token.token, token.logprob), "top_logprobs": [self._entry(*other) for other in token.top]}
            for token, _ in tokens
        ]
        return {"content": rows, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        content = self.bytes_of(token)
        return {"token": token_text(content), "logprob": logprob, "bytes": list(content)}
