"""Any server that speaks as OpenAI does: vLLM, llama.cpp, Ollama, LM Studio, mlx_lm.server, and clusters of them."""

from __future__ import annotations

from distillkit import Teacher, hookimpl
from distillkit.teachers.chat import ChatTeacher


class Compatible(ChatTeacher):
    """Any OpenAI-style server, by its base_url; a key, if it wants one, is in DISTILLKIT_API_KEY."""

    name = "compatible"
    signal = "top_logprobs"
    variable = "DISTILLKIT_API_KEY"
    needs_key = False


@hookimpl
def register_teachers() -> list[type[Teacher]]:
    """Offer it."""
    return [Compatible]
