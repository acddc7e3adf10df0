"""The requests that a recipe makes to its teacher: from documents, a template, or a file of prompts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

from ..core.records import Request
from ..recipe.schema import TeacherTable
from ..teachers.asking import prompts
from .context import Context

CONTINUE = (
    "Continue the story from exactly where it stops, in the same style. Reply with the continuation only: "
    "do not repeat the beginning, and add no title and no comment."
)


def teacher_requests(context: Context, placeholders: bool = False) -> list[Request]:
    """All requests of a recipe, in order.

    With `placeholders`, text of the same length takes the place of documents, so that a plan fetches nothing.
    """
    table = context.recipe.teacher
    if table is None:
        return []
    placeholder_prompts = (("train", "word " * table.prompt_tokens) for _ in range(table.prompts))
    kinds_and_prompts = (
        placeholder_prompts if placeholders and not (table.template or table.prompts_file) else _prompts(context, table)
    )
    return [
        Request(
            id=f"{kind}:{i}#{repeat}",
            **_prompt_fields(context, kind, prompt),
            max_tokens=table.max_tokens,
            temperature=table.temperature,
            top_p=table.top_p,
            stop=tuple(table.stop),
            seed=_request_seed(context.recipe.seed, i),
            top_logprobs=table.top_logprobs,
            repeat=repeat,
        )
        for i, (kind, prompt) in enumerate(kinds_and_prompts)
        for repeat in range(table.repeats)
    ]


def requests_or_placeholders(context: Context) -> list[Request]:
    """The requests of a recipe, or as many placeholders if the corpus is not on this machine."""
    return teacher_requests(context, placeholders=not context.has_local_corpus)


def _prompts(context: Context, table: TeacherTable) -> Iterator[tuple[str, prompts.Prompt]]:
    """Each prompt with its kind: template, file, or train (the beginning of a training document)."""
    if table.template:
        seed = context.recipe.seed
        yield from (("template", text) for text in prompts.sample_prompts(table.template, table.prompts, seed))
    elif table.prompts_file:
        yield from (("file", prompt) for prompt in prompts.read_prompts(Path(table.prompts_file), table.prompts))
    else:
        texts = islice(context.corpus.train_text(), table.prompts) if table.prompts else ()
        yield from (("train", _beginning(context, text, table.prompt_tokens)) for text in texts)


def _beginning(context: Context, text: str, tokens: int) -> str:
    """The beginning of a document. For a chat model it ends at the end of a word."""
    beginning = context.truncate(text, tokens)
    if _is_chat(context) and text[len(beginning) : len(beginning) + 1].isalnum():
        beginning = re.sub(r"\s*\w+$", "", beginning) or beginning
    return beginning


def _prompt_fields(context: Context, kind: str, prompt: prompts.Prompt) -> dict[str, Any]:
    """A prompt as fields of a `Request`: messages for a chat model, plain text for others."""
    table = cast(TeacherTable, context.recipe.teacher)
    system = CONTINUE if table.system is None and kind == "train" else table.system
    first = ({"role": "system", "content": system},) if system else ()
    if not isinstance(prompt, str):
        return {"messages": prompt if prompt[0]["role"] == "system" else (*first, *prompt)}
    return {"messages": (*first, {"role": "user", "content": prompt})} if _is_chat(context) else {"prompt": prompt}


def _is_chat(context: Context) -> bool:
    return context.teacher is not None and context.teacher.chats


def _request_seed(seed: int, index: int) -> int:
    """The seed of one request, derived from the recipe's seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:4], "big")
