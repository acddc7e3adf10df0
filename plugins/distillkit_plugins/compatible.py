"""The teacher `compatible`: any server with the OpenAI API (vLLM, llama.cpp, Ollama, LM Studio, mlx_lm.server)."""

from __future__ import annotations

from distillkit import Teacher, hookimpl
from distillkit.teachers.chat import ChatTeacher


class Compatible(ChatTeacher):
    """Any server with the OpenAI API, at base_url; the key, if one is needed, is in DISTILLKIT_API_KEY."""

    name = "compatible"
    signal = "top_logprobs"
    variable = "DISTILLKIT_API_KEY"
    needs_key = False


@hookimpl
def register_teachers() -> list[type[Teacher]]:
    """The teacher of this module."""
    return [Compatible]
