"""Models of mlx-lm as teachers: what they say is what mlx-lm and NumPy say, one by one or many at once."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from distillkit_mlx_lm import MlxLm, folder
from distillkit_mlx_lm.generation import ActiveAnswer, GenerationRequest, Sampling
from distillkit_mlx_lm.model import FINAL_CHANNEL, AnswerStart
from distillkit_mlx_lm.vocabulary import Vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folders import TEMPLATE, byte_level, write_folder
from tokenizers import Tokenizer

from distillkit import Answer, DataError, Request, UsageError
from distillkit.data.tokenizer import GPT2_PATTERN
from distillkit.data.tokenizer import Tokenizer as Ours

PROMPTS = ("Once upon a time", "The fox", "It's 2024", "Grüße, 你", "Every day she went to the river and")
SIZE = byte_level().get_vocab_size()


def teacher(where: Path, **options: Any) -> MlxLm:
    return MlxLm(MlxLm.Options(model=str(where), **options))


def requests(count: int = len(PROMPTS), **how: Any) -> list[Request]:
    how = {"max_tokens": 12, "temperature": 0.0, **how}
    return [Request(str(i), PROMPTS[i % len(PROMPTS)], **how) for i in range(count)]


def by_id(asked: MlxLm, what: list[Request]) -> dict[str, Answer]:
    return {request.id: answer for request, answer in asked.answers(what)}


def log_softmax(logits: Any) -> Any:
    """In float64, with NumPy alone."""
    logits = np.array(logits).astype(np.float64)
    high = logits.max(-1, keepdims=True)
    return logits - high - np.log(np.exp(logits - high).sum(-1, keepdims=True))


# ------------------------------------------------------------------------------------------------ what it writes


@pytest.mark.parametrize("kind", ["tiny", "plain", "spelled"])
def test_greedy_answers_are_mlx_lms_own_token_for_token(kind: str, request: pytest.FixtureRequest) -> None:
    from mlx_lm import load, stream_generate

    where = request.getfixturevalue(kind)
    network, tokenizer = load(str(where))
    mine = teacher(where)
    for prompt in PROMPTS[:3]:
        answer = mine.answer(Request("a", prompt, max_tokens=20, temperature=0.0, top_logprobs=1))
        theirs = [step.token for step in stream_generate(network, tokenizer, prompt, max_tokens=20)]
        theirs = [token for token in theirs if token not in mine.model.end_tokens]
        every = mine.model.vocabulary.token_bytes
        assert [token.bytes for token in answer.tokens] == [every[token] for token in theirs][: len(answer.tokens)]
        assert len(theirs) - len(answer.tokens) <= 3  # of a character that is not finished


@pytest.mark.parametrize("kind", ["tiny", "plain", "spelled"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_many_at_once_answer_as_each_would_alone(kind: str, temperature: float, request: pytest.FixtureRequest) -> None:
    mine = teacher(request.getfixturevalue(kind), batch_size=3)
    what = [
        Request(str(i), PROMPTS[i % 5], max_tokens=3 + 5 * i % 17, temperature=temperature, seed=i, top_logprobs=4)
        for i in range(11)
    ]
    together = by_id(mine, what)
    assert together.keys() == {one.id for one in what}
    for one in what:
        alone = mine.answer(one)
        assert alone.text == together[one.id].text
        assert alone.finish == together[one.id].finish
        assert [token.bytes for token in alone.tokens] == [token.bytes for token in together[one.id].tokens]
        pairs = zip(alone.tokens, together[one.id].tokens, strict=True)
        assert all(abs(a.logprob - b.logprob) < 1e-4 for a, b in pairs)


def test_seeds_repeat_and_repeats_differ(tiny: Path) -> None:
    mine = teacher(tiny)
    how = {"max_tokens": 20, "temperature": 1.0}
    first, again, other = (
        mine.answer(Request("a", PROMPTS[0], seed=3, **how)),
        mine.answer(Request("b", PROMPTS[0], seed=3, **how)),
        mine.answer(Request("c", PROMPTS[0], seed=3, repeat=1, **how)),
    )
    assert first == again
    assert first.text != other.text


def test_top_p_leaves_out_what_is_unlikely(tiny: Path) -> None:
    mine = teacher(tiny)
    greedy = mine.answer(requests(1)[0])
    narrow = mine.answer(Request("a", PROMPTS[0], max_tokens=12, temperature=1.0, top_p=1e-6, seed=5))
    assert narrow.text == greedy.text


def test_a_stop_word_ends_an_answer_wherever_tokens_cut_it(tiny: Path) -> None:
    mine = teacher(tiny)
    whole = mine.answer(Request("a", PROMPTS[0], max_tokens=40, temperature=1.0, seed=1, top_logprobs=2))
    places = [i for i in range(len(whole.text) - 3) if whole.text[i : i + 3].isascii()]
    assert len(places) > 8
    for place in places:
        stop = whole.text[place : place + 3]
        cut = mine.answer(
            Request("b", PROMPTS[0], max_tokens=40, temperature=1.0, seed=1, stop=("never said", stop), top_logprobs=2)
        )
        assert cut.text.rstrip("\ufffd") == whole.text[: whole.text.find(stop)].rstrip("\ufffd")
        assert cut.finish == "stop"
        assert cut.tokens == whole.tokens[: len(cut.tokens)]
    assert mine.answer(Request("c", PROMPTS[0], max_tokens=4, temperature=1.0, seed=1)).finish == "length"


def test_the_end_of_a_text_is_no_part_of_it(tmp_path: Path) -> None:
    def ends_soon(network: Any) -> None:
        """Every token is followed by the end of the text: its row of the head is the longest."""
        network.model.norm.weight = mx.zeros_like(network.model.norm.weight)

    where = write_folder(tmp_path / "ends", byte_level(), change=ends_soon)  # all logits equal: the first token wins
    answer = teacher(where).answer(Request("a", "The fox", max_tokens=9, temperature=0.0, top_logprobs=3))
    assert (answer.text, answer.tokens, answer.finish) == ("", (), "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1


def test_an_empty_prompt_begins_a_text(tiny: Path, spelled: Path) -> None:
    assert teacher(tiny).answer(Request("a", "", max_tokens=3, temperature=0.0)).usage.prompt_tokens == 1  # type: ignore[union-attr]
    assert teacher(spelled).answer(Request("a", "", max_tokens=3, temperature=0.0)).usage.prompt_tokens == 1  # type: ignore[union-attr]


def test_special_tokens_written_in_a_prompt_are_ordinary_text(tiny: Path) -> None:
    tokens = teacher(tiny).model.prompt("The end.<|endoftext|>")
    assert not set(tokens) & {0, 1, 2}


def test_what_does_not_fit_is_refused_before_anything_is_written(plain: Path) -> None:
    with pytest.raises(UsageError, match="has a context of 256 tokens") as caught:
        list(teacher(plain).answers([*requests(2), Request("long", "fox " * 60, max_tokens=200)]))
    assert "teacher.max_tokens" in caught.value.hint


def test_it_says_how_much_it_reads_so_that_no_student_reads_more(plain: Path) -> None:
    assert teacher(plain).context == 256


def test_nothing_asked_nothing_written(tiny: Path) -> None:
    assert list(teacher(tiny).answers([])) == []


# ------------------------------------------------------------------------------------------------ what it thinks


@pytest.mark.parametrize("kind", ["tiny", "plain"])
def test_log_probabilities_are_those_of_its_logits(kind: str, request: pytest.FixtureRequest) -> None:
    mine = teacher(request.getfixturevalue(kind))
    every = mine.model.vocabulary.token_bytes
    for one in requests(3, temperature=1.0, seed=9, top_logprobs=5):
        answer = mine.answer(one)
        tokens = mine.model.prompt(one.prompt or "")
        ids = [every.index(token.bytes) for token in answer.tokens]
        logp = log_softmax(mine.logits(mx.array([[*tokens, *ids]])))[0, len(tokens) - 1 : -1]
        for row, token, chosen in zip(logp, answer.tokens, ids, strict=True):
            assert math.isclose(token.logprob, row[chosen], abs_tol=1e-4)
            text = [i for i in range(len(every)) if i not in mine.model.vocabulary.special]
            best = sorted(text, key=lambda i: -row[i])[:5]
            assert [piece for piece, _ in token.top] == [every[i] for i in best]
            np.testing.assert_allclose([value for _, value in token.top], row[best], atol=1e-4)


@pytest.mark.parametrize("kind", ["tiny", "plain"])
def test_a_given_text_is_read_by_its_logits(kind: str, request: pytest.FixtureRequest) -> None:
    mine, text = teacher(request.getfixturevalue(kind)), "The fox went home, and the hen slept."
    written = Request("w", "One day", max_tokens=2, seed=1)
    found = {
        one.id: answer for one, answer in mine.answers([written, Request("r", text, max_tokens=0, top_logprobs=3)])
    }
    answer, tokens = found["r"], mine.model.prompt(text)
    logits = mine.logits(mx.array([tokens]))
    assert logits.dtype == mx.float32
    assert logits.shape == (1, len(tokens), mine.tokenizer.vocab_size)
    logp = log_softmax(logits)[0, :-1]
    assert answer.text == text
    assert b"".join(token.bytes for token in answer.tokens) == text.encode()
    assert answer.tokens[0].top == ()
    for token, chosen, row in zip(answer.tokens[1:], tokens[1:], logp, strict=True):
        assert math.isclose(token.logprob, row[chosen], abs_tol=1e-4)
        assert len(token.top) == 3
        np.testing.assert_allclose([value for _, value in token.top], np.sort(row)[::-1][:3], atol=1e-4)


def test_a_text_that_is_read_for_no_alternatives_gets_none(tiny: Path) -> None:
    answer = teacher(tiny).answer(Request("r", "The fox went home.", max_tokens=0))
    assert answer.text == "The fox went home."
    assert not any(token.top for token in answer.tokens)


def test_numbers_that_no_token_has_are_left_out_of_its_logits(tmp_path: Path) -> None:
    where = write_folder(tmp_path / "padded", byte_level(), vocab_size=512)
    mine = teacher(where)
    tokens = mx.array([[5, 9, 300]])
    assert mine.logits(tokens).shape[-1] == mine.tokenizer.vocab_size == SIZE
    np.testing.assert_array_equal(np.array(mine.logits(tokens)), np.array(mine.model.network(tokens))[..., :SIZE])
    answer = mine.answer(Request("a", "The fox", max_tokens=6, temperature=1.0, seed=2, top_logprobs=400))
    assert all(piece for token in answer.tokens for piece, _ in token.top)


def test_no_special_token_is_among_the_likeliest(tmp_path: Path) -> None:
    def flat(network: Any) -> None:
        network.model.norm.weight = mx.zeros_like(network.model.norm.weight)

    where = write_folder(tmp_path / "flat", byte_level(), change=flat)
    answer = teacher(where).answer(Request("a", "The fox", max_tokens=6, temperature=1.0, seed=4, top_logprobs=400))
    assert len(answer.tokens[0].top) == SIZE - 3  # all but the special ones
    assert not any(piece.startswith(b"<|") for piece, _ in answer.tokens[0].top)
    assert all(math.isclose(value, -math.log(SIZE), abs_tol=1e-5) for _, value in answer.tokens[0].top)


# ------------------------------------------------------------------------------------------------ bytes


@pytest.mark.parametrize("kind", ["tiny", "spelled"])
def test_bytes_of_tokens_make_up_every_text(kind: str, request: pytest.FixtureRequest) -> None:
    where = request.getfixturevalue(kind)
    theirs = Tokenizer.from_file(str(where / "tokenizer.json"))
    known = Vocabulary(theirs.to_str(), kind)
    blank = b" " if kind == "spelled" else b""  # SentencePiece spells a blank before the first word

    @settings(max_examples=200, deadline=None)
    @given(st.text(st.characters(codec="utf-8", exclude_characters="\u2581")))
    def holds(text: str) -> None:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert b"".join(known.token_bytes[token] for token in ids) == ((blank if text else b"") + text.encode())

    holds()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=6), max_size=12), st.integers(0, 20), st.integers(0, 20))
def test_tokens_and_text_agree_however_characters_are_split(pieces: list[bytes], skip: int, more: int) -> None:
    """Tokens that are any bytes at all, an answer that begins in the middle of one, and ends in another."""
    row = ActiveAnswer(0, GenerationRequest([], 99, Sampling(0), top_logprobs=1, answer_start=AnswerStart(b"#")), None)  # type: ignore[arg-type]
    head = (b"?" * skip).replace(b"#", b"") + b"#"
    for piece in (head, *(piece.replace(b"#", b"") for piece in pieces)):
        row.tokens.append((piece, -1.0, ((piece, -1.0),)))
        row.buffer += piece
    row.end = min(len(row.buffer), len(head) + more)
    written = row.result()
    said = b"".join(piece for piece, _, _ in written.tokens)
    whole = bytes(row.buffer[len(head) : row.end])
    assert whole.startswith(said)
    assert whole.decode("utf-8", "replace").startswith(written.text.rstrip("\ufffd"))
    if written.text.isascii():
        assert written.text.encode().startswith(said)


def test_half_a_character_at_the_end_is_no_text(tiny: Path) -> None:
    row = ActiveAnswer(0, GenerationRequest([], 9, Sampling(0), top_logprobs=1), None)  # type: ignore[arg-type]
    for piece in (b"Hi ", b"\xf0\x9f", b"\xa6"):
        row.tokens.append((piece, -1.0, ()))
        row.buffer += piece
    assert row.result().text == "Hi "
    assert [piece for piece, _, _ in row.result().tokens] == [b"Hi "]


# ------------------------------------------------------------------------------------------------ tokenizers


def test_bytes_that_a_model_never_saw_get_numbers_after_its_own(tmp_path: Path) -> None:
    """As in SmolLM2, which has no token for some control characters."""
    where = write_folder(tmp_path / "gaps", byte_level(without=b"\x04\x06\xf1"))
    mine = teacher(where)
    own = len(mine.model.vocabulary.token_bytes)
    tokens = mine.tokenizer.encode("a \x04 fox \U00040000")
    assert max(tokens) >= own
    assert mine.tokenizer.decode(tokens) == "a \x04 fox \U00040000"
    assert mine.tokenizer.vocab_size == own + 3
    logits = mine.logits(mx.array([tokens]))
    assert logits.shape[-1] == own + 3
    assert np.exp(log_softmax(logits))[..., own:].max() == 0
    assert np.isfinite(np.array(logits)).all()


@pytest.mark.parametrize("digits", [False, True])
def test_a_byte_level_tokenizer_is_said_in_our_terms(digits: bool, tmp_path: Path) -> None:
    theirs = byte_level(digits=digits, size=1000)
    ours = Vocabulary(theirs.to_str(), "it", "<|im_end|>").tokenizer()
    assert ours.vocab_size == theirs.get_vocab_size()
    assert ours.end_of_text == theirs.token_to_id("<|endoftext|>")
    assert (ours.pattern == GPT2_PATTERN) is not digits
    theirs.encode_special_tokens = True

    @settings(max_examples=300, deadline=None)
    @given(st.text(st.sampled_from("aefox. \n\t1239'stdé你🦊-<|>_\r\u0301²") | st.characters(codec="utf-8")))
    def cuts_alike(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == text

    cuts_alike()
    ours.save(tmp_path)
    assert Ours.load(tmp_path).fingerprint == ours.fingerprint


def test_a_model_without_our_end_of_text_lends_its_own(tiny: Path) -> None:
    ours = Vocabulary(byte_level(["<s>", "</s>"]).to_str(), "it", "</s>").tokenizer()
    assert ours.end_of_text == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalises text"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits words in another way"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}}, "a space before"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}}, "more than one"),
        ({"model.merges": "reversed"}, "in merge order"),
        ({"model.dropout": 0.1}, "dropout"),
        ({"added_tokens": []}, "no end-of-text token"),
    ],
)
def test_a_tokenizer_that_differs_is_refused_with_the_reason(change: dict[str, Any], says: str) -> None:
    spec = json.loads(byte_level().to_str())
    for key, value in change.items():
        *path, last = key.split(".")
        table = spec[path[0]] if path else spec
        table[last] = table[last][::-1] if value == "reversed" else value
    with pytest.raises(UsageError, match=says):
        Vocabulary(json.dumps(spec), "it", "<|im_end|>").tokenizer()


def test_a_sentencepiece_tokenizer_gives_bytes_but_no_logits(spelled: Path) -> None:
    mine = teacher(spelled)
    with pytest.raises(UsageError, match="not a byte-level BPE") as caught:
        mine.logits(mx.array([[1, 2]]))
    assert "teacher.top_logprobs" in caught.value.hint
    answer = mine.answer(Request("a", "The fox", max_tokens=8, temperature=1.0, seed=1, top_logprobs=3))
    assert len(answer.tokens) > 0


# ------------------------------------------------------------------------------------------------ chats


def test_a_model_with_a_template_replies_to_messages(tiny: Path, plain: Path) -> None:
    messages = ({"role": "user", "content": "Tell of a fox."},)
    mine = teacher(tiny)
    assert mine.chats
    assert not teacher(plain).chats
    assert not teacher(tiny, chat=False).chats
    tokens, after = mine.model.chat(messages, {}, None)
    assert (
        mine.model.hf_tokenizer.decode(tokens) == "<|im_start|>user\nTell of a fox.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert after is None
    answer = mine.answer(Request("a", messages=messages, max_tokens=9, temperature=0.0))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tokens)
    with pytest.raises(UsageError, match="no chat template"):
        teacher(plain).answer(Request("a", messages=messages))


def test_the_template_gets_further_variables_and_its_faults_are_told(tiny: Path, tmp_path: Path) -> None:
    where = shutil.copytree(tiny, tmp_path / "copy")
    (where / "chat_template.jinja").write_text("{{ effort }}|" + TEMPLATE)
    messages = ({"role": "user", "content": "Hi"},)
    tokens, _ = teacher(where).model.chat(messages, {"effort": "low"}, None)
    assert teacher(where).model.hf_tokenizer.decode(tokens).startswith("low|")
    (where / "chat_template.jinja").write_text("{{ raise_exception('no system message, please') }}")
    with pytest.raises(UsageError, match="no system message, please"):
        teacher(where).answer(Request("a", messages=messages))


@pytest.mark.parametrize(
    ("after", "said", "text"),
    [
        (AnswerStart(b"</think>", b"<think>"), "<think>Hm.</think>\n\nA fox.", "A fox."),
        (AnswerStart(b"</think>", b"<think>"), "A fox.", "A fox."),
        (AnswerStart(b"</think>", b"<think>"), "<think>Hm, a fo", ""),
        (AnswerStart(b"</think>", b"<think>", opened=True), "Hm, a fo", ""),
        (
            FINAL_CHANNEL,
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>A fox.",
            "A fox.",
        ),
        (FINAL_CHANNEL, "<|channel|>analysis<|message|>Hm, a fo", ""),
        (FINAL_CHANNEL, "A fox.", "A fox."),
        (None, "A fox.", "A fox."),
    ],
)
def test_thoughts_are_no_part_of_an_answer(after: AnswerStart | None, said: str, text: str) -> None:
    row = ActiveAnswer(
        0, GenerationRequest([], 99, Sampling(0), stop=(b"Hm",), top_logprobs=1, answer_start=after, strip=True), None
    )  # type: ignore[arg-type]
    for start in range(0, len(said), 3):
        piece = said[start : start + 3].encode()
        row.tokens.append((piece, -1.0, ((piece, -1.0), (b"zzz", -2.0))))
        before = len(row.buffer)
        row.buffer += piece
        row._find_stop_word(before)
    written = row.result()
    assert written.text == text
    assert b"".join(piece for piece, _, _ in written.tokens).decode() == text
    assert row.finish == ""  # a stop word in thoughts stops nothing


def test_models_that_think_are_known_by_their_tokens(tmp_path: Path) -> None:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    where = write_folder(tmp_path / "thinks", byte_level(special))
    (where / "chat_template.jinja").write_text(TEMPLATE + "<think>\n")
    messages = ({"role": "user", "content": "Hi"},)
    assert teacher(where).model.chat(messages, {}, None)[1] == AnswerStart(b"</think>", b"<think>", opened=True)
    assert teacher(where).model.chat(messages, {}, "So:")[1] == AnswerStart(b"So:", opened=True)
    channels = [*special[:3], "<|channel|>", "<|message|>", "<|start|>", "<|end|>"]
    where = write_folder(tmp_path / "channels", byte_level(channels))
    (where / "chat_template.jinja").write_text(TEMPLATE)
    assert teacher(where).model.chat(messages, {}, None)[1] == FINAL_CHANNEL


# ------------------------------------------------------------------------------------------------ folders


def test_identity_is_what_a_model_holds_not_where_it_lies(tiny: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "elsewhere")
    first = teacher(tiny).identity()
    assert teacher(copy).identity() == first
    assert teacher(copy, batch_size=2, download=True).identity() == first
    json.dumps(first)
    assert teacher(copy, variables={"a": 1}).identity() != first
    weights = dict(mx.load(str(copy / "model.safetensors")))
    for name, value in weights.items():
        changed = dict(weights)
        changed[name] = value + 1e-3
        mx.save_safetensors(str(copy / "model.safetensors"), changed)
        assert teacher(copy).identity() != first, name
    shutil.copy(tiny / "model.safetensors", copy)
    mx.save_safetensors(str(copy / "model.safetensors"), weights)
    (copy / "chat_template.jinja").write_text("another")
    assert teacher(copy).identity() != first


def test_a_quantised_model_says_so_and_answers(tmp_path: Path) -> None:
    def packed(network: Any) -> dict[str, Any]:
        nn.quantize(network, group_size=32, bits=8)
        return {"quantization": {"group_size": 32, "bits": 8}}

    where = write_folder(tmp_path / "packed", byte_level(), change=packed)
    mine = teacher(where)
    assert mine.identity()["quantisation"] == {"bits": 8, "group_size": 32}
    assert isinstance(mine.model.network.model.layers[0].mlp.up_proj, nn.QuantizedLinear)
    what = requests(4, top_logprobs=2)
    together = by_id(mine, what)
    assert all(together[one.id].text == mine.answer(one).text for one in what)
    unpacked = teacher(write_folder(tmp_path / "unpacked", byte_level()))
    tokens = mx.array([[5, 9, 300, 17]])
    apart = np.abs(log_softmax(mine.logits(tokens)) - log_softmax(unpacked.logits(tokens)))
    assert 0 < apart.max() < 0.5


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_raised_on_a_cpu_and_that_is_said(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = write_folder(tmp_path / "half", byte_level(), change=lambda network: network.set_dtype(getattr(mx, kind)))
    mine = teacher(where)
    with caplog.at_level(logging.WARNING):
        mine.answer(requests(1)[0])
    on_cpu = mx.default_device() == mx.cpu
    assert ("converted to float32" in caplog.text) is on_cpu
    assert mine.model.network.model.norm.weight.dtype == (mx.float32 if on_cpu else getattr(mx, kind))
    assert teacher(where, precision=kind).model.network.model.norm.weight.dtype == getattr(mx, kind)
    assert teacher(where, precision=kind).identity() != mine.identity()


def test_what_is_no_model_is_named(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"config\.json is missing"):
        teacher(tmp_path).identity()
    with pytest.raises(UsageError, match="not a valid name on the Hub"):
        teacher(Path("no/such/folder/at/all")).identity()
    where = shutil.copytree(tiny, tmp_path / "broken")
    (where / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(UsageError, match="unheard-of not supported"):
        teacher(where).answer(requests(1)[0])
    (where / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not a safetensors file"):
        teacher(where).identity()


FIRST = """
import sys
from distillkit import Request
from distillkit_mlx_lm import MlxLm
assert not {"mlx.core", "mlx_lm", "transformers", "numpy"} & sys.modules.keys()
MlxLm(MlxLm.Options(model=sys.argv[1])).answer(Request("a", "The fox", max_tokens=1))
from distillkit.student import blas
print(blas.load().warning or "fast")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX brings its own")
def test_the_fast_blas_is_there_before_mlx_is(tiny: Path) -> None:
    command = [sys.executable, "-c", FIRST, str(tiny)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["fast"]


HUB = """
import sys
from distillkit import UsageError
from distillkit_mlx_lm import MlxLm
for name in ("somebody/fox", "somebody/else"):
    try:
        print(MlxLm(MlxLm.Options(model=name)).folder)
    except UsageError as error:
        print(error.message, error.hint)
"""


def test_models_of_the_hub_are_found_where_they_were_fetched_to(tiny: Path, tmp_path: Path) -> None:
    kept = tmp_path / "models--somebody--fox"
    shutil.copytree(tiny, kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HUB], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    found, missing = done.stdout.splitlines()
    assert found == str(kept / "snapshots" / "abc")
    assert "hf download somebody/else" in missing


def test_pieces_of_every_tensor_are_read_and_no_more(tiny: Path) -> None:
    with (tiny / "model.safetensors").open("rb") as weights:
        pieces = list(folder._samples(weights, tiny))
    assert len(pieces) == 1 + len(mx.load(str(tiny / "model.safetensors")))
    assert all(len(piece) <= folder.SAMPLE_SIZE for piece in pieces[1:])


@pytest.mark.parametrize("kind", ["tiny", "plain"])
def test_it_keeps_the_promises_of_a_teacher(kind: str, request: pytest.FixtureRequest) -> None:
    from distillkit.testing import check_teacher

    check_teacher(MlxLm, {"model": str(request.getfixturevalue(kind))})
