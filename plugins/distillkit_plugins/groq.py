"""The teacher `groq`. Groq limits requests per day and tokens per minute."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from distillkit import Teacher, hookimpl
from distillkit.teachers.chat import ChatTeacher

PATH = "/openai/v1"  # the SDK appends it to the base URL


class Groq(ChatTeacher):
    """Models on Groq; the key is in GROQ_API_KEY. Gives no log-probabilities."""

    name = "groq"
    signal = "text"
    sdk, sdk_class, variable = "groq", "AsyncGroq", "GROQ_API_KEY"
    max_tokens_name = "max_completion_tokens"
    batches = True
    spans: ClassVar[dict[str, float]] = {"requests": 86400.0, "tokens": 60.0}
    prices: ClassVar[dict[str, tuple[float, float]]] = {  # as of November 2025
        "openai/gpt-oss-20b": (0.075, 0.30),
        "openai/gpt-oss-120b": (0.15, 0.60),
        "llama-3.1-8b-instant": (0.05, 0.08),
        "llama-3.3-70b-versatile": (0.59, 0.79),
    }

    class Options(ChatTeacher.Options):
        """Options of the teacher `groq`."""

        model: str = Field("openai/gpt-oss-20b", min_length=1, description="name of the model at Groq")
        base_url: str = Field("https://api.groq.com/openai/v1", description="base URL of the API")
        api: Literal["chat"] = Field("chat", description="Groq offers only chat completions")
        reasoning_effort: str | None = Field(
            "low",
            description="reasoning effort; low is enough for stories. Set it to none for models without reasoning",
        )

    def _sdk_base_url(self) -> str:
        return str(self.options.base_url).removesuffix(PATH)


@hookimpl
def register_teachers() -> list[type[Teacher]]:
    """The teacher of this module."""
    return [Groq]
