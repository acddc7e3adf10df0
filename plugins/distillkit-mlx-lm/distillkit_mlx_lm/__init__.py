"""Any model that mlx-lm can load, as a teacher on this machine: text, log-probabilities, full logits, and of given text
what is likely in it.

Here stand the options and what the host calls. Where a model lies is `folder`'s affair, what its tokens are in bytes
`vocabulary`'s, how many answers are written at once `writing`'s. Neither mlx nor mlx-lm is imported before a model is
needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from distillkit import Answer, Request, Teacher, Token, Usage, UsageError, hookimpl

from . import folder

if TYPE_CHECKING:
    import mlx.core as mx

    from distillkit.data.tokenizer import Tokenizer

    from .model import Model
    from .writing import Asked, Written


class MlxLm(Teacher):
    """A model folder or a model of the Hugging Face hub, run on this machine by mlx-lm."""

    name = "mlx-lm"
    signal = "logits"

    class Options(Teacher.Options):
        """Which model teaches, and how it is spoken to."""

        model: str = Field(min_length=1, description="a model folder, or a name on the Hugging Face hub")
        download: bool = Field(False, description="fetch a model of the hub that is not on this machine yet")
        chat: bool | None = Field(
            None, description="whether it replies to messages; if not set, where it has a chat template"
        )
        variables: dict[str, Any] = Field(
            {}, description='further variables of its chat template, such as { reasoning_effort = "low" }'
        )
        answer_after: str | None = Field(
            None, min_length=1, description="where its answer begins, after its thoughts; known for most models"
        )
        precision: Literal["auto", "float32", "float16", "bfloat16"] = Field(
            "auto", description="of weights that are not quantised; auto is the model's own, on a CPU float32"
        )
        batch_size: int = Field(16, gt=0, description="how many answers are written at once")

    # ------------------------------------------------------------------------------------------ who it is

    @cached_property
    def folder(self) -> Path:
        """Where the model lies."""
        return folder.locate(self.options.model, self.options.download)

    def identity(self) -> Any:
        """What the model's files hold, wherever they lie, and how it is spoken to; its speed decides nothing."""
        how = self.options.model_dump(
            mode="json", include={"chat", "variables", "answer_after", "precision"}, exclude_defaults=True
        )
        return {"model": folder.fingerprint(self.folder), "quantisation": folder.quantisation(self.folder), **how}

    @property
    def chats(self) -> bool:
        """Whether it replies to messages."""
        told = self.options.chat
        return folder.has_chat_template(self.folder) if told is None else bool(told)

    @cached_property
    def model(self) -> Model:
        """The model, loaded when it is first needed."""
        from .model import Model

        return Model(self.folder, self.options.precision)

    # ------------------------------------------------------------------------------------------ answers

    def answer(self, request: Request) -> Answer:
        """Answer one request."""
        ((_, answer),) = self.answers([request])
        return answer

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """Answer many at once: as one is done, the next takes its place."""
        from .writing import write

        asked = [self._asked(request) for request in requests]  # what cannot be answered is refused before any is
        given = [number for number, one in enumerate(asked) if not one.most]
        yield from ((requests[number], self._read(requests[number], asked[number])) for number in given)
        rest = [number for number, one in enumerate(asked) if one.most]
        for place, written in write(self.model, [asked[number] for number in rest], self.options.batch_size):
            number = rest[place]
            yield requests[number], self._answer(requests[number], asked[number], written)

    def _asked(self, request: Request) -> Asked:
        from distillkit.student.generation.sampling import Sampling

        from .writing import Asked

        tokens, after = self._begun(request)
        if self.model.context and len(tokens) + request.max_tokens > self.model.context:
            raise UsageError(
                f"{self.options.model} reads {self.model.context} tokens at most; a request has {len(tokens)}, "
                f"and {request.max_tokens} to come",
                "Lower teacher.max_tokens or teacher.prompt_tokens.",
            )
        return Asked(
            tokens=tokens,
            most=request.max_tokens,
            sampling=Sampling(request.temperature, top_p=request.top_p),
            seed=(request.seed or 0) + request.repeat,
            stop=tuple(word.encode() for word in request.stop if word),
            top=request.top_logprobs,
            after=after,
            trim=request.messages is not None,
        )

    def _begun(self, request: Request) -> tuple[list[int], Any]:
        """What the model reads first, and after which words its answer begins."""
        if request.messages is None:
            return self.model.prompt(request.prompt or ""), None
        if not self.chats:
            raise UsageError(
                f"{self.options.model} has no chat template, so it cannot reply to messages",
                "Take a model that chats (names often end in -Instruct or -it), or give it prompts to go on from.",
            )
        return self.model.chat(request.messages, self.options.variables, self.options.answer_after)

    def _answer(self, request: Request, asked: Asked, written: Written) -> Answer:
        usage = Usage(len(asked.tokens), written.count)
        tokens = tuple(Token(*token) for token in written.tokens) if request.top_logprobs else ()
        return Answer(written.text, tokens, written.finish, usage, self.options.model)

    @property
    def reads(self) -> bool:
        """It can read any text, also where it chats."""
        return True

    def _read(self, request: Request, asked: Asked) -> Answer:
        """A text that is given, and what is likely at each of its tokens."""
        from .writing import read

        if request.prompt is None:
            raise UsageError("a text to be read is a prompt, not messages", "Ask for some words, or give a prompt.")
        tokens = tuple(Token(*token) for token in read(self.model, asked.tokens, request.top_logprobs))
        return Answer(request.prompt, tokens, "length", Usage(len(asked.tokens), 0), self.options.model)

    # ------------------------------------------------------------------------------------------ logits

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer in distillkit's own terms; refused where it cannot be said in them."""
        return self.model.vocabulary.tokenizer()

    @property
    def context(self) -> int | None:
        """The most tokens it reads at once, if its configuration says so."""
        return self.model.context

    def logits(self, tokens: mx.array) -> mx.array:
        """What it thinks of every next token, in float32, by the numbers of its tokenizer."""
        self.tokenizer  # noqa: B018 - refused where numbers would mean other tokens
        return self.model.logits(tokens)


@hookimpl
def register_teachers() -> list[type[Teacher]]:
    """Offer it."""
    return [MlxLm]
