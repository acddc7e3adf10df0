"""What the student trains on: the corpus, and the teacher's answers packed into token streams.

A run folder has the packed answers in `answers/packed`, and those that are held out of training in `answers/held_out`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

from ..core.records import Answer, Request
from ..data.batches import Batches
from ..data.corpus import held_out, pack_texts
from ..data.shards import Stream
from ..recipe.schema import TeacherTable
from ..teachers.asking.label import LabelResult
from .context import Context, SoftTargetSource
from .soft_targets import SoftTargets

PACKED, HELD_OUT = "packed", "held_out"


def training_batches(context: Context, answers: Path) -> Batches:
    """The batches of a run: corpus and answers, with soft targets where they are stored."""
    streams, table = training_streams(context, answers), context.recipe.teacher
    return Batches(
        streams,
        context.student.context,
        context.recipe.train.rows,
        context.recipe.seed,
        soft=SoftTargets(context).open(streams),
        share=table.share if table else None,
    )


def training_streams(context: Context, answers: Path) -> list[Stream]:
    """The corpus, and the packed answers if there are any and the recipe uses them."""
    table = context.recipe.teacher
    uses_answers = (answers / PACKED).is_dir() and (table is None or table.share != 0)
    return [context.corpus.train, *([_open_packed(answers / PACKED)] if uses_answers else [])]


def held_out_stream(answers: Path) -> Stream | None:
    """The packed answers that are held out of training, if there are any."""
    return _open_packed(answers / HELD_OUT) if (answers / HELD_OUT).is_dir() else None


def _open_packed(folder: Path) -> Stream:
    """Packed answers, after their checksums are verified."""
    stream = Stream(folder, f"Pack them again, from the cache: distillkit label {folder.parent.parent}")
    stream.verify()
    return stream


# ------------------------------------------------------------------------------------------------- packing


def pack_answers(context: Context, labelled: LabelResult, folder: Path) -> dict[str, Any]:
    """Pack answers for training, with their soft targets if the mixer needs them. Returns metadata for `run.json`."""
    if context.recipe.teacher is None:
        return {}
    held_out_ids = _held_out_ids(context, labelled)
    pairs = [(request, answer) for request, _, answer in labelled.answered if answer.text]
    training = [pair for pair in pairs if pair[0].id not in held_out_ids]
    kept_out = [pair for pair in pairs if pair[0].id in held_out_ids]
    metadata: dict[str, Any] = {"held_out": len(kept_out)} if kept_out else {}
    stream = _pack(context, training, folder / PACKED)
    if stream and context.soft_target_source == SoftTargetSource.ANSWERS:
        soft_targets = SoftTargets(context)
        store = soft_targets.align(stream, [answer for _, answer in training])
        metadata["soft"] = soft_targets.summary([store])
    _pack(context, kept_out, folder / HELD_OUT)
    return metadata


def _pack(context: Context, pairs: list[tuple[Request, Answer]], folder: Path) -> Stream | None:
    """Pack answers into a folder. Without answers, the folder is removed and None returned."""
    table = cast(TeacherTable, context.recipe.teacher)
    if not pairs:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    texts = [(*_training_text(request, answer.text), answer.finish == "stop") for request, answer in pairs]
    return pack_texts(texts, context.tokenizer, folder, table.learn_prompts)


def _held_out_ids(context: Context, labelled: LabelResult) -> set[str]:
    """The requests whose answers are held out: decided by a hash of the prompt, not by its position."""
    share = context.recipe.teacher.held_out if context.recipe.teacher else 0.0
    return {request.id for request, _, _ in labelled.answered if held_out(_prompt_text(request), share)}


def _prompt_text(request: Request) -> str:
    """The prompt as one text, equal for all repeats: answers to one prompt stay together."""
    return request.prompt if request.prompt is not None else json.dumps(request.messages, ensure_ascii=False)


def _training_text(request: Request, text: str) -> tuple[str, str]:
    """The prompt and answer that the student reads. The prompt is empty if it was an instruction to a chat model."""
    if request.prompt is not None:
        return request.prompt, text
    if not request.id.startswith("train:") or not request.messages:
        return "", text
    beginning = request.messages[-1]["content"]
    separated = beginning[-1:].isspace() or text[:1].isspace() or text[:1] in ".,;:!?'\")"
    return beginning, text if separated else f" {text}"
