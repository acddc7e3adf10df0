"""The teacher `mlx-lm`: any model that mlx-lm can load, on this machine.

It gives text, log-probabilities and logits, and scores given text. This module has the options and the interface of the
host; `folder` locates models, `vocabulary` maps tokens to bytes, `generation` generates answers in batches. mlx and
mlx-lm are imported only when a model is needed.
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

    from .generation import GeneratedAnswer, GenerationRequest
    from .model import Model


class MlxLm(Teacher):
    """A model folder or a model of the Hugging Face Hub, run on this machine by mlx-lm."""

    name = "mlx-lm"
    signal = "logits"

    class Options(Teacher.Options):
        """Options of the teacher `mlx-lm`."""

        model: str = Field(min_length=1, description="a model folder, or a name on the Hugging Face Hub")
        download: bool = Field(False, description="download a model of the Hub that is not on this machine yet")
        chat: bool | None = Field(
            None, description="whether it replies to messages; if not set, whether it has a chat template"
        )
        variables: dict[str, Any] = Field(
            {}, description='variables of the chat template, such as { reasoning_effort = "low" }'
        )
        answer_after: str | None = Field(
            None,
            min_length=1,
            description="text after which the answer starts, for models that reason first; known for most models",
        )
        precision: Literal["auto", "float32", "float16", "bfloat16"] = Field(
            "auto",
            description="precision of unquantized weights; auto keeps the model's, but uses float32 on a CPU",
        )
        batch_size: int = Field(16, gt=0, description="number of answers generated at once")

    # ------------------------------------------------------------------------------------------ identity

    @cached_property
    def folder(self) -> Path:
        """The folder of the model."""
        return folder.locate(self.options.model, self.options.download)

    def identity(self) -> Any:
        """A fingerprint of the model's files, and the options that affect answers."""
        options = self.options.model_dump(
            mode="json", include={"chat", "variables", "answer_after", "precision"}, exclude_defaults=True
        )
        return {"model": folder.fingerprint(self.folder), "quantisation": folder.quantisation(self.folder), **options}

    @property
    def chats(self) -> bool:
        """Whether it replies to messages."""
        chat = self.options.chat
        return folder.has_chat_template(self.folder) if chat is None else bool(chat)

    @cached_property
    def model(self) -> Model:
        """The model, loaded on first use."""
        from .model import Model

        return Model(self.folder, self.options.precision)

    # ------------------------------------------------------------------------------------------ answers

    def answer(self, request: Request) -> Answer:
        """Answer one request."""
        ((_, answer),) = self.answers([request])
        return answer

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """Answer requests with continuous batching: a finished answer is replaced by the next request."""
        from .generation import generate

        prepared = [self._prepare(request) for request in requests]  # invalid requests fail first
        to_score = [i for i, one in enumerate(prepared) if not one.max_tokens]
        yield from ((requests[i], self._score(requests[i], prepared[i])) for i in to_score)
        to_generate = [i for i, one in enumerate(prepared) if one.max_tokens]
        for index, answer in generate(self.model, [prepared[i] for i in to_generate], self.options.batch_size):
            i = to_generate[index]
            yield requests[i], self._answer(requests[i], prepared[i], answer)

    def _prepare(self, request: Request) -> GenerationRequest:
        from distillkit.student.generation.sampling import Sampling

        from .generation import GenerationRequest

        tokens, answer_start = self._prompt(request)
        if self.model.context and len(tokens) + request.max_tokens > self.model.context:
            raise UsageError(
                f"{self.options.model} has a context of {self.model.context} tokens; a request has {len(tokens)} "
                f"tokens and max_tokens = {request.max_tokens}",
                "Lower teacher.max_tokens or teacher.prompt_tokens.",
            )
        return GenerationRequest(
            tokens=tokens,
            max_tokens=request.max_tokens,
            sampling=Sampling(request.temperature, top_p=request.top_p),
            seed=(request.seed or 0) + request.repeat,
            stop=tuple(word.encode() for word in request.stop if word),
            top_logprobs=request.top_logprobs,
            answer_start=answer_start,
            strip=request.messages is not None,
        )

    def _prompt(self, request: Request) -> tuple[list[int], Any]:
        """The prompt's tokens, and the marker of the answer's start."""
        if request.messages is None:
            return self.model.prompt(request.prompt or ""), None
        if not self.chats:
            raise UsageError(
                f"{self.options.model} has no chat template, so it cannot reply to messages",
                "Use a chat model (names often end in -Instruct or -it), or give it prompts to continue.",
            )
        return self.model.chat(request.messages, self.options.variables, self.options.answer_after)

    def _answer(self, request: Request, prepared: GenerationRequest, answer: GeneratedAnswer) -> Answer:
        usage = Usage(len(prepared.tokens), answer.count)
        tokens = tuple(Token(*token) for token in answer.tokens) if request.top_logprobs else ()
        return Answer(answer.text, tokens, answer.finish, usage, self.options.model)

    @property
    def reads(self) -> bool:
        """It scores any text, even if it is a chat model."""
        return True

    def _score(self, request: Request, prepared: GenerationRequest) -> Answer:
        """The prompt itself as the answer, with top log-probabilities at each token."""
        from .generation import score

        if request.prompt is None:
            raise UsageError(
                "scoring a text (max_tokens = 0) needs a prompt, not messages", "Set max_tokens, or give a prompt."
            )
        tokens = tuple(Token(*token) for token in score(self.model, prepared.tokens, request.top_logprobs))
        return Answer(request.prompt, tokens, "length", Usage(len(prepared.tokens), 0), self.options.model)

    # ------------------------------------------------------------------------------------------ logits

    @property
    def tokenizer(self) -> Tokenizer:
        """The equivalent distillkit tokenizer; raises a UsageError if there is none."""
        return self.model.vocabulary.tokenizer()

    @property
    def context(self) -> int | None:
        """The context length, if the model's configuration has one."""
        return self.model.context

    def logits(self, tokens: mx.array) -> mx.array:
        """Logits [B, T, V] in float32 for tokens [B, T]."""
        self.tokenizer  # noqa: B018 - raises if token ids would have another meaning
        return self.model.logits(tokens)


@hookimpl
def register_teachers() -> list[type[Teacher]]:
    """The teacher of this package."""
    return [MlxLm]
