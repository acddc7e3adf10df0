"""The teacher `openai`. Only models without reasoning give log-probabilities; supported parameters are probed."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from distillkit import Teacher, hookimpl
from distillkit.teachers.chat import ChatTeacher


class OpenAI(ChatTeacher):
    """Models of OpenAI; the key is in OPENAI_API_KEY."""

    name = "openai"
    signal = "top_logprobs"
    variable = "OPENAI_API_KEY"
    max_tokens_name = "max_completion_tokens"
    batches = True
    prices: ClassVar[dict[str, tuple[float, float]]] = {  # as of November 2025
        "gpt-4.1": (2.00, 8.00),
        "gpt-4.1-mini": (0.40, 1.60),
        "gpt-4.1-nano": (0.10, 0.40),
        "gpt-4o": (2.50, 10.00),
        "gpt-4o-mini": (0.15, 0.60),
        "gpt-5": (1.25, 10.00),
        "gpt-5-mini": (0.25, 2.00),
        "gpt-5-nano": (0.05, 0.40),
    }

    class Options(ChatTeacher.Options):
        """Options of the teacher `openai`."""

        model: str = Field("gpt-4.1-nano", min_length=1, description="name of the model at OpenAI")
        base_url: str = Field("https://api.openai.com/v1", description="base URL of the API")


@hookimpl
def register_teachers() -> list[type[Teacher]]:
    """The teacher of this module."""
    return [OpenAI]
