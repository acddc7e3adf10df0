"""The teacher `checkpoint`: any distillkit student, which gives text, top log-probabilities or logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import Field

from distillkit import Answer, Request, Teacher, Token, Usage, UsageError, hookimpl

if TYPE_CHECKING:
    import mlx.core as mx

    from distillkit.data.tokenizer import Tokenizer
    from distillkit.student.trained import Trained

BATCH_SIZE = 32


class Checkpoint(Teacher):
    """A run, a checkpoint folder or a bundled student."""

    name = "checkpoint"
    signal = "logits"

    class Options(Teacher.Options):
        """Options of the teacher `checkpoint`."""

        model: str = Field("tales-teacher", description="a run, a checkpoint folder, or a bundled student's name")
        min_p: float = Field(
            0.0, ge=0, le=1, description="sample only tokens with at least this fraction of the highest probability"
        )
        repetition_penalty: float = Field(1.0, gt=0, description="above 1, tokens already generated become less likely")

    _fingerprint: str | None = None  # of the weights; fixed once it was first read, since answers are stored under it

    @cached_property
    def trained(self) -> Trained:
        """The student, loaded on first use."""
        from distillkit.student import Trained

        student = Trained.load(self.options.model)
        if self._fingerprint not in (None, student.fingerprint):  # another process trained it further meanwhile
            raise UsageError(
                f"the weights of {self.options.model} changed during this run",
                "Start again, preferably after its training has ended.",
            )
        self._fingerprint = student.fingerprint
        return student

    @property
    def tokenizer(self) -> Tokenizer:
        """The student's tokenizer."""
        return self.trained.tokenizer

    @property
    def context(self) -> int:
        """The student's context length."""
        return self.trained.context

    def identity(self) -> Any:
        """The hash of the weights, wherever they are stored, and the sampling options."""
        from distillkit.student import fingerprint

        self._fingerprint = self._fingerprint or fingerprint(self.options.model)
        return {"weights": self._fingerprint, **self._sampling_options(exclude_defaults=True)}

    def tokens(self, request: Request) -> int:
        """The number of tokens, by the student's tokenizer."""
        return len(self.tokenizer.encode(_prompt(request)))

    def _sampling_options(self, **dump: bool) -> dict[str, Any]:
        """The options that affect sampling."""
        return dict(self.options.model_dump(include={"min_p", "repetition_penalty"}, **dump))

    def answer(self, request: Request) -> Answer:
        """Answer one request."""
        ((_, answer),) = self.answers([request])
        return answer

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """Answer requests in batches of equal max_tokens, temperature and top_p."""
        groups: dict[tuple[Any, ...], list[Request]] = {}
        for request in requests:
            _prompt(request)  # refuses messages before anything is generated
            key = (request.max_tokens, request.temperature, request.top_p)
            groups.setdefault(key, []).append(request)
        for (max_tokens, *_), group in groups.items():
            for start in range(0, len(group), BATCH_SIZE):
                batch = group[start : start + BATCH_SIZE]
                yield from self._generate(batch) if max_tokens else map(self._score, batch)

    def _generate(self, requests: list[Request]) -> Iterator[tuple[Request, Answer]]:
        from distillkit.student import Sampling

        prompts = [_prompt(request) for request in requests]
        seeds = [(request.seed or 0) + request.repeat for request in requests]
        sampling = Sampling(requests[0].temperature, top_p=requests[0].top_p, **self._sampling_options())
        written = self.trained.write(prompts, seeds, sampling, requests[0].max_tokens)
        for request, prompt, generated in zip(requests, prompts, written, strict=True):
            usage = Usage(len(self.tokenizer.encode(prompt)), generated.tokens)
            text, stopped = _cut_at_stop_word(generated.text, request.stop)
            finish = "stop" if stopped else generated.finish
            ended = not stopped and generated.finish == "stop"
            tokens = self._top_logprobs(prompt, text, ended, request.top_logprobs) if request.top_logprobs else ()
            yield request, Answer(text, tokens, finish, usage, self.options.model)

    @property
    def reads(self) -> bool:
        """It scores any text."""
        return True

    def _score(self, request: Request) -> tuple[Request, Answer]:
        """The prompt itself as the answer, with the top log-probabilities at each token."""
        text = _prompt(request)
        tokens = self._top_logprobs("", text, False, request.top_logprobs)
        return request, Answer(text, tokens, "length", Usage(len(tokens), 0), self.options.model)

    def _top_logprobs(self, prompt: str, text: str, ended: bool, k: int) -> tuple[Token, ...]:
        """The tokens of a text after a prompt, each with the k most likely tokens at its position."""
        import mlx.core as mx
        import numpy as np

        from distillkit.student.generation.score import scoring_windows

        end = self.tokenizer.end_of_text
        context = [end, *self.tokenizer.encode(prompt)]
        tokens = [*self.tokenizer.encode(text), *([end] if ended else [])]
        logprobs = []
        for window in scoring_windows(0, [*context, *tokens], self.trained.context):
            logits = np.array(self.trained.logits(mx.array([window.inputs])))[0, -window.count :].astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            logprobs.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
        rows = np.concatenate(logprobs)[len(context) - 1 :]
        order = np.argsort(-rows, axis=1, kind="stable")[:, :k]
        bytes_of = self.tokenizer.bytes_of
        return tuple(
            Token(bytes_of(token), float(row[token]), tuple((bytes_of(i), float(row[i])) for i in top.tolist()))
            for token, row, top in zip(tokens, rows, order, strict=True)
        )

    def logits(self, tokens: mx.array) -> mx.array:
        """Logits [B, T, V] for tokens [B, T]."""
        return self.trained.logits(tokens)

    def hidden(self, tokens: mx.array) -> mx.array:
        """Hidden states [B, T, D], so that training can compute logits a few rows at a time."""
        return self.trained.hidden(tokens)

    @property
    def head(self) -> tuple[mx.array, mx.array | None]:
        """The weight [V, D] and the bias [V] (or None) that map hidden states to logits."""
        head: tuple[mx.array, mx.array | None] = self.trained.model.head
        return head


def _prompt(request: Request) -> str:
    if request.prompt is None:
        raise UsageError(
            "the teacher 'checkpoint' continues prompts, but was given messages",
            "Use a chat model to answer messages.",
        )
    return request.prompt


def _cut_at_stop_word(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop word, and whether there is one."""
    positions = [position for word in stop if word and (position := text.find(word)) >= 0]
    return (text[: min(positions)], True) if positions else (text, False)


@hookimpl
def register_teachers() -> list[type[Teacher]]:
    """The teacher of this module."""
    return [Checkpoint]
