"""Log-probabilities as servers return them."""

from __future__ import annotations

from typing import Any

import pytest

from distillkit.teachers.client import logprobs


def chat_logprobs(*rows: tuple[Any, ...]) -> dict[str, Any]:
    names = ("token", "logprob", "bytes", "top_logprobs")
    return {"content": [dict(zip(names, (*one, None, [])[:4], strict=False)) for one in rows]}


@pytest.mark.parametrize(
    ("given", "text", "expected"),
    [
        (chat_logprobs(("Ġis", -1.0), ("ĠÃ©", -1.0)), " is é", [b" is", " é".encode()]),
        (chat_logprobs(("▁is", -1.0), ("<0x0A>", -1.0)), "is\n", [b" is", b"\n"]),
        (chat_logprobs(("é", -1.0), (" is", -1.0)), "é is", ["é".encode(), b" is"]),
        (chat_logprobs(("\x00", -1.0, [0])), "\x00", [b"\x00"]),
        ({"tokens": ["a", " b"], "token_logprobs": [-1, -2], "top_logprobs": [{"a": -1}, None]}, "a b", [b"a", b" b"]),
        ({"tokens": ["bytes:\\xf0\\x9f"], "token_logprobs": [-1]}, "\ufffd", [b"\xf0\x9f"]),
    ],
)
def test_tokens_are_bytes_however_they_are_spelt(given: Any, text: str, expected: list[bytes]) -> None:
    assert [token.bytes for token in logprobs.parse_tokens(given, text, 5)] == expected


def test_alternatives_are_sorted_each_once_and_no_more_than_asked() -> None:
    top = [{"token": t, "logprob": p, "bytes": None} for t, p in (("a", -3.0), ("b", -1.0), ("a", -2.0), ("c", -9.0))]
    (token,) = logprobs.parse_tokens(chat_logprobs(("a", -2.0, None, top)), "a", 2)
    assert token.top == ((b"b", -1.0), (b"a", -2.0))


def test_tokens_that_are_not_those_of_the_text_are_told_by_it() -> None:
    """mlx_lm.server names the first alternative instead of the sampled token."""

    def row(*names: str) -> tuple[Any, ...]:
        top = [{"token": name, "logprob": -1.0 - i, "bytes": None} for i, name in enumerate(names)]
        return names[0], -1.0, None, top

    given = chat_logprobs(row("A", "The"), row("Ġcat", "Ġdog"), row("Ġran", "Ġsat"), row("!", "."))
    tokens = logprobs.parse_tokens(given, "The dog flew.", 2)
    assert [token.bytes for token in tokens] == [b"The", b" dog", b" flew", b"."]
    assert [token.logprob for token in tokens] == pytest.approx([-2.0, -2.0, -0.6996, -2.0], abs=0.001)
    assert tokens[2].top == ((b" ran", -1.0), (b" sat", -2.0))
    unknown = logprobs.parse_tokens(given, "The big fish.", 2)
    assert [token.bytes for token in unknown] == [b"The", b" big fish", b"."]
    with pytest.raises(ValueError, match="not those of the text"):
        logprobs.parse_tokens(given, "A word " * 40, 2)


@pytest.mark.parametrize("wrong", [None, [], {"content": 1}, chat_logprobs(("a", "x")), chat_logprobs((1, -1.0)), {}])
def test_what_is_misshapen_is_said(wrong: Any) -> None:
    with pytest.raises(ValueError):
        logprobs.parse_tokens(wrong, "text", 3)
