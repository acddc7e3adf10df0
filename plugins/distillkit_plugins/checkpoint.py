"""A teacher made here: any distillkit student, asked for text, for likely tokens beside it, or for full logits."""

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

BATCH = 32


class Checkpoint(Teacher):
    """A run, a checkpoint folder or a student that ships with distillkit."""

    name = "checkpoint"
    signal = "logits"

    class Options(Teacher.Options):
        """Which student teaches."""

        model: str = Field("tales-teacher", description="a run, a checkpoint folder, or a bundled student's name")
        min_p: float = Field(
            0.0, ge=0, le=1, description="draw from tokens at least this share as likely as the likeliest"
        )
        repetition_penalty: float = Field(
            1.0, gt=0, description="above 1, tokens that were written are less likely to come again"
        )

    _weights: str | None = None  # under which answers are kept, from the first time that it is asked for

    @cached_property
    def trained(self) -> Trained:
        """The teaching student, loaded when it is first needed."""
        from distillkit.student import Trained

        found = Trained.load(self.options.model)
        if self._weights not in (None, found.fingerprint):  # a process that trains it has saved newer ones
            raise UsageError(
                f"the weights of {self.options.model} changed while its answers were looked for",
                "Start again, best when its training has ended.",
            )
        self._weights = found.fingerprint
        return found

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that it was trained with."""
        return self.trained.tokenizer

    @property
    def context(self) -> int:
        """The most tokens it reads at once."""
        return self.trained.context

    def identity(self) -> Any:
        """Its weights, whatever they are called and wherever they lie, and how it was told to write."""
        from distillkit.student import fingerprint

        self._weights = self._weights or fingerprint(self.options.model)
        return {"weights": self._weights, **self._how(exclude_defaults=True)}

    def tokens(self, request: Request) -> int:
        """By its own tokenizer."""
        return len(self.tokenizer.encode(_prompt(request)))

    def _how(self, **which: bool) -> dict[str, Any]:
        """The options that decide which tokens are drawn."""
        return dict(self.options.model_dump(include={"min_p", "repetition_penalty"}, **which))

    def answer(self, request: Request) -> Answer:
        """Answer one request."""
        ((_, answer),) = self.answers([request])
        return answer

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """Answer many at once: requests alike in length and temperature share their batches."""
        groups: dict[tuple[Any, ...], list[Request]] = {}
        for request in requests:
            _prompt(request)  # what cannot be answered is refused before anything is written
            alike = (request.max_tokens, request.temperature, request.top_p)
            groups.setdefault(alike, []).append(request)
        for (most, *_), group in groups.items():
            for start in range(0, len(group), BATCH):
                some = group[start : start + BATCH]
                yield from self._together(some) if most else map(self._read, some)

    def _together(self, requests: list[Request]) -> Iterator[tuple[Request, Answer]]:
        from distillkit.student import Sampling

        prompts = [_prompt(request) for request in requests]
        seeds = [(request.seed or 0) + request.repeat for request in requests]
        sampling = Sampling(requests[0].temperature, top_p=requests[0].top_p, **self._how())
        written = self.trained.write(prompts, seeds, sampling, requests[0].max_tokens)
        for request, prompt, one in zip(requests, prompts, written, strict=True):
            usage = Usage(len(self.tokenizer.encode(prompt)), one.tokens)
            text, stopped = _until(one.text, request.stop)
            finish = "stop" if stopped else one.finish
            ended = not stopped and one.finish == "stop"
            tokens = self._opinions(prompt, text, ended, request.top_logprobs) if request.top_logprobs else ()
            yield request, Answer(text, tokens, finish, usage, self.options.model)

    @property
    def reads(self) -> bool:
        """It can read any text."""
        return True

    def _read(self, request: Request) -> tuple[Request, Answer]:
        """A text that is given, and what it held for likely at each token."""
        text = _prompt(request)
        tokens = self._opinions("", text, False, request.top_logprobs)
        return request, Answer(text, tokens, "length", Usage(len(tokens), 0), self.options.model)

    def _opinions(self, prompt: str, text: str, ended: bool, most: int) -> tuple[Token, ...]:
        """What it holds for likely at each token of a text behind a prompt, by reading both."""
        import mlx.core as mx
        import numpy as np

        from distillkit.student.generation.score import scoring_windows

        end = self.tokenizer.end_of_text
        read, said = [end, *self.tokenizer.encode(prompt)], [*self.tokenizer.encode(text), *([end] if ended else [])]
        found = []
        for window in scoring_windows(0, [*read, *said], self.trained.context):
            logits = np.array(self.trained.logits(mx.array([window.inputs])))[0, -window.count :].astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            found.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
        rows = np.concatenate(found)[len(read) - 1 :]
        order = np.argsort(-rows, axis=1, kind="stable")[:, :most]
        name = self.tokenizer.bytes_of
        return tuple(
            Token(name(token), float(row[token]), tuple((name(i), float(row[i])) for i in top.tolist()))
            for token, row, top in zip(said, rows, order, strict=True)
        )

    def logits(self, tokens: mx.array) -> mx.array:
        """What it thinks of every next token."""
        return self.trained.logits(tokens)

    def hidden(self, tokens: mx.array) -> mx.array:
        """The same before the head, so that nobody must hold all logits at once."""
        return self.trained.hidden(tokens)

    @property
    def head(self) -> tuple[mx.array, mx.array | None]:
        """The weight and the bias that make logits of hidden states."""
        head: tuple[mx.array, mx.array | None] = self.trained.model.head
        return head


def _prompt(request: Request) -> str:
    if request.prompt is None:
        raise UsageError(
            "the teacher 'checkpoint' continues prompts; it was given messages",
            "Only chat models reply to messages.",
        )
    return request.prompt


def _until(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop word, and whether there was one."""
    places = [place for word in stop if word and (place := text.find(word)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


@hookimpl
def register_teachers() -> list[type[Teacher]]:
    """Offer it."""
    return [Checkpoint]
