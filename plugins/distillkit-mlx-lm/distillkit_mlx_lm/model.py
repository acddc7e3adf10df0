"""A model and its tokenizer, loaded by mlx-lm: prompts to tokens, tokens to logits.

`distillkit.student` is imported before mlx-lm, so that the fast BLAS is loaded first on Linux. Does not know requests.
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

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
END_OF_TEXT = "<|endoftext|>"
LOG_ZERO = -1e4  # a logit whose probability is 0 in float32; finite, so that 0 times it is 0


class AnswerStart(NamedTuple):
    """Where an answer starts: after the last `mark`.

    Text without a mark is all answer, unless it contains `opener` or the prompt `opened` the reasoning already.
    """

    mark: bytes
    opener: bytes = b""
    opened: bool = False


# GPT-OSS models write reasoning and answer to different channels.
CHANNELS = {"<|channel|>", "<|message|>"}
FINAL_CHANNEL = AnswerStart(b"<|channel|>final<|message|>", b"<|channel|>")


class Model:
    """A model in a folder. Its weights are loaded on first use."""

    def __init__(self, path: Path, precision: str = "auto") -> None:
        self.path, self.precision = path, precision
        config = folder.config(path)
        lengths = [config.get("text_config", config).get(key) for key in CONTEXT_KEYS]
        self.context: int | None = next((length for length in lengths if isinstance(length, int)), None)

    @cached_property
    def network(self) -> Any:
        """The network with its weights, converted to the precision to compute in."""
        import mlx.core as mx

        if blas.load().warning:
            log.warning(blas.load().warning)
        with _loading_errors(self.path):
            from mlx_lm.utils import load_model

            network, _ = load_model(self.path, lazy=True)
        dtype = self._target_dtype(network)
        if dtype is not None:
            network.set_dtype(dtype)
        mx.eval(network.parameters())
        return network

    def _target_dtype(self, network: Any) -> Any:
        """The dtype to convert the weights to, or None to keep theirs."""
        import mlx.core as mx
        from mlx.utils import tree_flatten

        if self.precision != "auto":
            return getattr(mx, self.precision)
        leaves: Any = tree_flatten(network.parameters())
        dtypes = {value.dtype for _, value in leaves}
        if mx.default_device() != mx.cpu or dtypes.isdisjoint({mx.float16, mx.bfloat16}):
            return None
        log.warning(
            "%s is in half precision, which is about 60 times slower on a CPU. Its weights are converted to float32, "
            "which takes twice the memory.",
            self.path.name,
        )
        return mx.float32

    @cached_property
    def hf_tokenizer(self) -> Any:
        """The tokenizer, as wrapped by mlx-lm."""
        with _loading_errors(self.path):
            from mlx_lm.utils import load_config, load_tokenizer

            return load_tokenizer(self.path, eos_token_ids=load_config(self.path).get("eos_token_id"))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the model, in bytes."""
        backend = getattr(self.hf_tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UsageError(
                f"the tokenizer of {self.path.name} is implemented in Python, so the bytes of its tokens are unknown",
                "Use a model whose folder has a tokenizer.json.",
            )
        return Vocabulary(backend.to_str(), self.path.name, self.hf_tokenizer.eos_token)

    @cached_property
    def end_tokens(self) -> list[int]:
        """The tokens that end a text."""
        end_of_text = [token for token, name in self.vocabulary.special.items() if name == END_OF_TEXT.encode()]
        return sorted({*self.hf_tokenizer.eos_token_ids, *end_of_text})

    # ----------------------------------------------------------------------------------------prompts

    def prompt(self, text: str) -> list[int]:
        """The tokens of a prompt to continue. Special tokens in the text are encoded as ordinary text."""
        tokens = list(self.hf_tokenizer.encode(text, split_special_tokens=True))
        if tokens:
            return tokens
        bos = self.hf_tokenizer.bos_token_id
        return [self.end_tokens[0] if bos is None else bos]

    def chat(
        self, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any], mark: str | None
    ) -> tuple[list[int], AnswerStart | None]:
        """The tokens of messages to reply to, and where the answer starts if reasoning precedes it."""
        copies = [dict(message) for message in messages]
        try:
            prompt = self.hf_tokenizer.apply_chat_template(
                copies, add_generation_prompt=True, tokenize=False, **variables
            )
        except Exception as error:  # a template is a program from the model's folder
            raise UsageError(
                f"the chat template of {self.path.name} failed: {error}",
                'Some models take no system message: teacher.system = "". Check teacher.variables.',
            ) from error
        return list(self.hf_tokenizer.encode(prompt, add_special_tokens=False)), self._answer_start(prompt, mark)

    def _answer_start(self, prompt: str, mark: str | None) -> AnswerStart | None:
        if mark is not None:
            return AnswerStart(mark.encode(), opened=True)
        names = {name.decode() for name in self.vocabulary.special.values()}
        if names >= CHANNELS:
            return FINAL_CHANNEL
        if not self.hf_tokenizer.has_thinking:
            return None
        begin, end = self.hf_tokenizer.think_start, self.hf_tokenizer.think_end
        return AnswerStart(end.encode(), begin.encode(), opened=prompt.rfind(begin) > prompt.rfind(end))

    # ------------------------------------------------------------------------------------------ logits

    def logits(self, tokens: mx.array) -> mx.array:
        """Logits [B, T, V] in float32 over its vocabulary.

        Bytes without a token of their own are read as the unknown token, and get probability 0.
        """
        import mlx.core as mx

        known, missing = len(self.vocabulary.token_bytes), len(self.vocabulary.missing_bytes)
        inputs = mx.where(tokens < known, tokens, self.unknown) if missing else tokens
        logits = self.network(inputs).astype(mx.float32)[..., :known]
        if logits.shape[-1] < known:
            raise UsageError(
                f"{self.path.name} has {logits.shape[-1]} token ids in its network but {known} in its tokenizer",
                "Its files do not match: download the model again.",
            )
        padding = mx.full((*logits.shape[:-1], missing), LOG_ZERO)
        return mx.concatenate([logits, padding], axis=-1) if missing else logits

    @property
    def unknown(self) -> int:
        """The token to read in place of bytes without a token."""
        unk = self.hf_tokenizer.unk_token_id
        return self.end_tokens[0] if unk is None else int(unk)


class Float32Logits:
    """A network whose logits are converted to float32, so that log-probabilities are computed in float32."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The logits in float32."""
        import mlx.core as mx

        return self.network(*args, **kwargs).astype(mx.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


@contextmanager
def _loading_errors(path: Path) -> Iterator[None]:
    """Convert errors of mlx-lm while loading a model to a UsageError."""
    blas.require_mlx()
    try:
        yield
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise UsageError(
            f"mlx-lm cannot load {path}: {type(error).__name__}: {message}",
            f"For details, run: python -m mlx_lm generate --model {path}",
        ) from error
