"""A model and its tokenizer, loaded by mlx-lm: prompts to tokens, tokens to logits.

On Linux the fast BLAS comes first: that is why `distillkit.student` is imported before mlx-lm is. Knows no requests.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distillkit import UsageError
from distillkit.student import blas

from . import folder
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    import mlx.core as mx

log = logging.getLogger(__name__)

LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
END_OF_TEXT = "<|endoftext|>"
NEVER = -1e4  # a logit whose share is nothing in float32, and whose product with nothing is a number


class After(NamedTuple):
    """Where an answer begins: after the last `mark`. Without one it is all answer, unless thoughts were `opened`."""

    mark: bytes
    opener: bytes = b""
    opened: bool = False


# GPT-OSS and its kin write their thoughts and their answer into channels.
CHANNELS = {"<|channel|>", "<|message|>"}
FINAL = After(b"<|channel|>final<|message|>", b"<|channel|>")


class Model:
    """A model folder, ready to be asked. Weights are read when they are first needed."""

    def __init__(self, where: Path, precision: str = "auto") -> None:
        self.where, self.precision = where, precision
        told = folder.config(where)
        lengths = [told.get("text_config", told).get(key) for key in LENGTHS]
        self.context: int | None = next((length for length in lengths if isinstance(length, int)), None)

    @cached_property
    def network(self) -> Any:
        """The network, its weights read and in the precision that it computes in."""
        import mlx.core as mx

        if blas.load().warning:
            log.warning(blas.load().warning)
        with _blamed(self.where):
            from mlx_lm.utils import load_model

            network, _ = load_model(self.where, lazy=True)
        kind = self._precision(network)
        if kind is not None:
            network.set_dtype(kind)
        mx.eval(network.parameters())
        return network

    def _precision(self, network: Any) -> Any:
        """The precision to convert to, or None for the one that the weights have."""
        import mlx.core as mx
        from mlx.utils import tree_flatten

        if self.precision != "auto":
            return getattr(mx, self.precision)
        leaves: Any = tree_flatten(network.parameters())
        kinds = {value.dtype for _, value in leaves}
        if mx.default_device() != mx.cpu or kinds.isdisjoint({mx.float16, mx.bfloat16}):
            return None
        log.warning(
            "%s is in half precision, which is some 60 times slower on a CPU: its weights are read as float32, "
            "in twice the memory.",
            self.where.name,
        )
        return mx.float32

    @cached_property
    def texts(self) -> Any:
        """Its tokenizer, as mlx-lm wraps it."""
        with _blamed(self.where):
            from mlx_lm.utils import load_config, load_tokenizer

            return load_tokenizer(self.where, eos_token_ids=load_config(self.where).get("eos_token_id"))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What its tokens are."""
        backend = getattr(self.texts, "backend_tokenizer", None)
        if backend is None:
            raise UsageError(
                f"the tokenizer of {self.where.name} is a program of its own, so its tokens are not known",
                "Take a model whose folder has a tokenizer.json.",
            )
        return Vocabulary(backend.to_str(), self.where.name, self.texts.eos_token)

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that end a text."""
        between = [token for token, name in self.vocabulary.special.items() if name == END_OF_TEXT.encode()]
        return sorted({*self.texts.eos_token_ids, *between})

    # ------------------------------------------------------------------------------------------ words

    def prompt(self, text: str) -> list[int]:
        """The tokens of a text to go on from. Special tokens that are written in it are ordinary text."""
        tokens = list(self.texts.encode(text, split_special_tokens=True))
        if tokens:
            return tokens
        first = self.texts.bos_token_id
        return [self.ends[0] if first is None else first]

    def chat(
        self, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any], mark: str | None
    ) -> tuple[list[int], After | None]:
        """The tokens of messages to reply to, and where the reply begins when thoughts come before it."""
        said = [dict(message) for message in messages]
        try:
            words = self.texts.apply_chat_template(said, add_generation_prompt=True, tokenize=False, **variables)
        except Exception as error:  # a template is a program in the model's folder
            raise UsageError(
                f"the chat template of {self.where.name} failed: {error}",
                'Some models take no system message: teacher.system = "". Check teacher.variables.',
            ) from error
        return list(self.texts.encode(words, add_special_tokens=False)), self._after(words, mark)

    def _after(self, words: str, mark: str | None) -> After | None:
        if mark is not None:
            return After(mark.encode(), opened=True)
        names = {name.decode() for name in self.vocabulary.special.values()}
        if names >= CHANNELS:
            return FINAL
        if not self.texts.has_thinking:
            return None
        begin, end = self.texts.think_start, self.texts.think_end
        return After(end.encode(), begin.encode(), opened=words.rfind(begin) > words.rfind(end))

    # ------------------------------------------------------------------------------------------ logits

    def logits(self, tokens: mx.array) -> mx.array:
        """Logits [B, T, V] in float32 of the tokens of its vocabulary.

        Bytes that it has no token for are read as what it does not know, and never expected.
        """
        import mlx.core as mx

        known, lent = len(self.vocabulary.every), len(self.vocabulary.lent)
        read = mx.where(tokens < known, tokens, self.unknown) if lent else tokens
        logits = self.network(read).astype(mx.float32)[..., :known]
        if logits.shape[-1] < known:
            raise UsageError(
                f"{self.where.name} has {logits.shape[-1]} numbers in its network and {known} in its tokenizer",
                "Its files do not belong together: fetch the model again.",
            )
        never = mx.full((*logits.shape[:-1], lent), NEVER)
        return mx.concatenate([logits, never], axis=-1) if lent else logits

    @property
    def unknown(self) -> int:
        """The token that it reads in the place of what it does not know."""
        own = self.texts.unk_token_id
        return self.ends[0] if own is None else int(own)


class Precisely:
    """A network whose logits come in float32, so that log-probabilities are those of its own logits."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Its logits."""
        import mlx.core as mx

        return self.network(*arguments, **named).astype(mx.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


@contextmanager
def _blamed(where: Path) -> Iterator[None]:
    """Say in a sentence why mlx-lm could not load a model."""
    blas.require_mlx()
    try:
        yield
    except Exception as error:
        told = " ".join(str(error).split())[:300]
        raise UsageError(
            f"mlx-lm cannot load {where}: {type(error).__name__}: {told}",
            f"See what it says itself: python -m mlx_lm generate --model {where}",
        ) from error
