"""Alignment of a teacher's tokens with the student's, against one that enumerates every byte and every token."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.core.records import LOG_ZERO, Answer, Token
from distillkit.data.tales import story
from distillkit.data.tokenizer import END_OF_TEXT, GPT2_PATTERN, O200K_PATTERN, Tokenizer, build, train_bpe
from distillkit.teachers.soft_targets.align import CONTROL_TOKENS, END_TOKENS, Aligner
from distillkit.teachers.soft_targets.store import SoftTargetRows
from support.paths import ROOT, SHARED

GPT2 = SHARED / "data" / "gpt2.tiktoken"
STORIES = ["The old fox said: “Naïve 😀 hens!” They ran, they hid; nobody won 1,234 races…\n\nThe end."] * 3
TALES = [story(1, i) for i in range(400)]
TALE = TALES[-1][:400]
Top = tuple[tuple[bytes, float], ...]


def vocabulary(pieces: list[bytes], pattern: str = GPT2_PATTERN) -> Tokenizer:
    """Every byte, and these."""
    singles = [bytes([b]) for b in range(256)]
    ranks = {piece: i for i, piece in enumerate(dict.fromkeys([*singles, *(p for p in pieces if p)]))}
    return Tokenizer("test", pattern, ranks, {END_OF_TEXT: len(ranks)})


def masses(rows: SoftTargetRows) -> list[dict[int, float]]:
    """What each token's record names, with its mass."""
    ends = np.cumsum(rows.counts)
    spans = zip(ends - rows.counts, ends, strict=True)
    return [dict(zip(rows.ids[a:b].tolist(), np.exp(rows.values[a:b]).tolist(), strict=True)) for a, b in spans]


# ------------------------------------------------------------------------------------- the slow and plain way


@cache
def text_tokens(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Every token that is text, by its bytes; of a byte and a piece of SentencePiece's, the piece."""
    everything = range(tokenizer.vocab_size)
    found = {tokenizer.bytes_of(token): token for token in everything if token != tokenizer.end_of_text}
    return {piece: token for piece, token in found.items() if piece}


@cache
def destination(piece: bytes, tokenizer: Tokenizer) -> int | None:
    """Where a teacher's token goes, by looking at every token there is."""
    if piece.decode("utf-8", "replace") in END_TOKENS:
        return tokenizer.end_of_text
    everything = text_tokens(tokenizer)
    if piece in everything:
        return everything[piece]
    if not piece or CONTROL_TOKENS.fullmatch(piece):
        return None
    if any(other.startswith(piece) for other in everything):
        return None
    begun = [other for other in everything if piece.startswith(other)]
    return everything[max(begun, key=len)] if begun else None


def brute(tokens: list[int], prompt: bytes, answer: Answer, tokenizer: Tokenizer) -> list[dict[int, float]]:
    """Every token of the student beside every token of the teacher, byte by byte."""
    found: list[dict[int, float]] = []
    text, ours = answer.text.encode(), 0
    for token in tokens:
        sums: dict[int, float] = {}
        theirs = len(prompt)
        for said in answer.tokens:
            over = theirs >= len(prompt) + len(text)
            if theirs == ours and (token == tokenizer.end_of_text) == over and (said.bytes or over):
                sums = spread(said, token, tokenizer)
                break
            theirs += len(said.bytes)
        found.append(sums)
        ours += 0 if token == tokenizer.end_of_text else len(tokenizer.bytes_of(token))
    return found


def spread(said: Token, hard: int, tokenizer: Tokenizer) -> dict[int, float]:
    listed: dict[bytes, float] = {}
    for piece, logprob in said.top:
        listed[piece] = max(listed.get(piece, 0.0), math.exp(logprob))
    scale = max(1.0, sum(listed.values()))
    sums: dict[int, float] = {}
    for piece, mass in listed.items():
        goes = destination(piece, tokenizer)
        if piece == said.bytes:
            fits = hard == tokenizer.end_of_text or piece.startswith(tokenizer.bytes_of(hard))
            goes = hard if fits else None
        if goes is not None:
            sums[goes] = sums.get(goes, 0.0) + mass / scale
    return sums


def agree(tokens: list[int], prompt: str, answer: Answer, tokenizer: Tokenizer) -> SoftTargetRows:
    """The aligner says what enumeration says, and what is left is the residual."""
    rows = Aligner(tokenizer).align(np.array(tokens), answer)
    expected = brute(tokens, prompt.encode(), answer, tokenizer)
    found = masses(rows)
    assert [set(one) for one in found] == [set(one) for one in expected]
    for one, other, rest in zip(found, expected, rows.residuals, strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12)
        left = 1 - sum(other.values())
        if one:
            assert math.exp(rest) == pytest.approx(left, abs=2e-9)
        else:
            assert rest == LOG_ZERO
    return rows


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], str, Answer, Tokenizer]:
    text = draw(st.text(alphabet="abcé漢😀 \n", min_size=1, max_size=14))
    prompt = draw(st.text(alphabet="ab 😀", max_size=4))
    whole, raw = (prompt + text).encode(), text.encode()
    random = draw(st.randoms(use_true_random=False))

    def some() -> bytes:
        begin = random.randrange(len(whole))
        return whole[begin : begin + random.randint(1, 5)]

    tokenizer = vocabulary([some() for _ in range(random.randint(0, 12))] + [b"ab", b"abc", " é".encode()])
    tokens = [tokenizer.ranks[piece] for piece in cut(whole, random) if piece in tokenizer.ranks or len(piece) == 1]
    if b"".join(map(tokenizer.bytes_of, tokens)) != whole:  # a piece that is no token: byte by byte then
        tokens = [tokenizer.ranks[bytes([b])] for b in whole]
    pieces = [*cut(raw, random)]
    finish = random.choice(["stop", "length"])
    if finish == "stop":
        tokens.append(tokenizer.end_of_text)
        pieces += random.choice([[], [b"<|im_end|>"], [b""], [b"</s>"]])
    strange = [b"", b"<|im_end|>", b"<|im_start|>", b"<s>", b"\xf0\x9f", b"\x98", b"zz", raw, raw + b"a"]

    def listed(piece: bytes) -> Top:
        names = [some() for _ in range(random.randint(0, 4))] + random.sample(strange, random.randint(0, 3))
        names += [piece] * random.randint(0, 2)  # perhaps not at all, perhaps twice
        random.shuffle(names)
        return tuple((name, math.log(random.uniform(1e-6, 0.5))) for name in names)

    said = tuple(Token(piece, -0.5, listed(piece)) for piece in pieces)
    return tokens, prompt, Answer(text, said, finish), tokenizer


def cut(whole: bytes, random: random.Random) -> list[bytes]:
    places = sorted(random.sample(range(1, len(whole)), random.randint(0, len(whole) - 1))) if len(whole) > 1 else []
    return [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]


@settings(max_examples=120, deadline=None)
@given(cases())
def test_alignment_is_what_enumeration_says(case: tuple[list[int], str, Answer, Tokenizer]) -> None:
    agree(*case)


# ------------------------------------------------------------------------------------------- real vocabularies


@cache
def gpt2() -> Tokenizer:
    """GPT-2's own, where its ranks are at hand; otherwise one that was learnt in the same manner."""
    return build("gpt2", ranks=GPT2) if GPT2.exists() else train_bpe(iter([*TALES, *STORIES]), 3000)


@cache
def o200k_like() -> Tokenizer:
    """Four thousand tokens of words that another pattern cuts out: with contractions, with a quote before them."""
    shouted = [tale.upper() for tale in TALES[:100]]  # or there are not so many
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distillkit.data.tokenizer._GPT2_AS_PUBLISHED", O200K_PATTERN)
        learnt = train_bpe(iter([*TALES, *shouted, *STORIES]), 4000)
    return Tokenizer("like", O200K_PATTERN, learnt.ranks, {END_OF_TEXT: learnt.end_of_text})


def answered(tokenizer: Tokenizer, text: str, most: int, seed: int = 0, end: bytes = b"<|im_end|>") -> Answer:
    """An answer in a teacher's own tokens, each with its likeliest alternatives."""
    drawn = random.Random(seed)
    said = []
    for piece in [*(tokenizer.bytes_of(token) for token in tokenizer.encode(text)), end]:
        others = [tokenizer.bytes_of(drawn.randrange(tokenizer.vocab_size - 1)) for _ in range(most - 1)]
        weights = sorted((drawn.random() for _ in range(most)), reverse=True)
        logs = [math.log(weight / (sum(weights) + 0.3)) for weight in weights]
        said.append(Token(piece, logs[0], tuple(zip([piece, *others], logs, strict=True))))
    return Answer(text, tuple(said))


@pytest.mark.parametrize(
    "text", [pytest.param(STORIES[0], id="all sorts"), pytest.param(TALE, id="a tale", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("way", ["gpt2 learns", "gpt2 teaches"])
def test_gpt2_and_an_o200k_like_vocabulary(way: str, text: str) -> None:
    student, teacher = (gpt2(), o200k_like()) if way == "gpt2 learns" else (o200k_like(), gpt2())
    answer = answered(teacher, text, 20)
    tokens = [*student.encode(text), student.end_of_text]
    rows = agree(tokens, "", answer, student)
    assert (rows.counts > 0).mean() > 0.3
    assert rows.counts[-1] > 0  # the end of the text, too


def test_the_o200k_like_vocabulary_is_another_one() -> None:
    mine, theirs = o200k_like(), gpt2()
    assert mine.vocab_size == 4000
    assert len(mine.ranks.keys() - theirs.ranks.keys()) > 500
    assert [*map(mine.bytes_of, mine.encode(TALE))] != [*map(theirs.bytes_of, theirs.encode(TALE))]


def test_equal_vocabularies_lose_nothing() -> None:
    student = train_bpe(iter(STORIES), 300)
    answer = answered(student, STORIES[0], 20, end=b"</s>")
    rows = agree([*student.encode(STORIES[0]), student.end_of_text], "", answer, student)
    for said, named in zip(answer.tokens, masses(rows), strict=True):
        assert sum(named.values()) == pytest.approx(sum(math.exp(v) for v in dict(said.top).values()), abs=0.2)
        assert len(named) >= len({piece for piece, _ in said.top}) - 1


@cache
def unigrams() -> Tokenizer:
    return build("sentencepiece", vocab_size=900, texts=lambda: iter(TALES))


@pytest.mark.peer
@pytest.mark.parametrize("teacher", [gpt2, o200k_like], ids=["gpt2 teaches", "o200k teaches"])
def test_a_student_of_sentencepiece_is_taught_as_one_of_bpe_is(
    teacher: Callable[[], Tokenizer], peer: Callable[[str], Any]
) -> None:
    peer("sentencepiece")
    for student in (unigrams(), train_bpe(iter(TALES), 900)):
        rows = agree([*student.encode(TALE), student.end_of_text], "", answered(teacher(), TALE, 20), student)
        soft = rows.counts > 0
        masses_left = np.array([sum(one.values()) for one in masses(rows)]) + np.exp(rows.residuals)
        assert masses_left[soft] == pytest.approx(1.0)
        assert soft.mean() > 0.3
        assert soft[-1]  # the end of the text, too


@pytest.mark.peer
def test_sentencepiece_gets_the_tokens_that_it_would_write_and_no_others(peer: Callable[[str], Any]) -> None:
    peer("sentencepiece")
    student = unigrams()
    mapping = Aligner(student).mapping
    for text in ("a", "e", " the", "é", "漢"):  # the last as bytes, which begin other letters
        written = student.encode(text)
        assert mapping[text.encode()] == written[0], text
    assert mapping[END_OF_TEXT.encode()] == student.end_of_text
    assert [mapping[control] for control in (b"", b"<unk>", b"<s>")] == [-1, -1, -1]


# ------------------------------------------------------------------------------------------------ by hand


def test_the_rule_on_one_sentence() -> None:
    """The table of docs/distillation.md."""
    student = vocabulary([b" happy", b" un", b" the", b" there", b" cat"])
    said = [
        Token(b" unhappy", -0.1, ((b" unhappy", math.log(0.6)), (b" there", math.log(0.2)), (b" the", math.log(0.1)))),
        Token(b" cat", -0.1, ((b" cats", math.log(0.5)), (b" cat", math.log(0.3)), (b" hap", math.log(0.1)))),
    ]
    tokens = [student.ranks[b" un"], *(student.ranks[bytes([c])] for c in b"happy"), student.ranks[b" cat"]]
    rows = agree(tokens, "", Answer(" unhappy cat", tuple(said), "length"), student)
    named = [{student.bytes_of(token): mass for token, mass in one.items()} for one in masses(rows)]
    assert named[0] == pytest.approx({b" un": 0.6, b" there": 0.2, b" the": 0.1})
    assert named[1:6] == [{}] * 5  # inside a teacher's token: only the hard target
    assert named[6] == pytest.approx({b" cat": 0.8})  # " hap" would be " happy", or not: nobody knows
    assert math.exp(rows.residuals[6]) == pytest.approx(0.2)


def test_the_text_tells_that_the_students_token_is_longer() -> None:
    student = vocabulary([b" the", b" there"])
    said = (Token(b" the", -0.1, ((b" the", math.log(0.9)), (b" a", math.log(0.05)))), Token(b"re", -0.1))
    rows = agree([student.ranks[b" there"]], "", Answer(" there", said, "length"), student)
    assert masses(rows) == [pytest.approx({student.ranks[b" "]: 0.05})]


def test_emoji_and_halves_of_characters() -> None:
    smile = "😀".encode()
    student = vocabulary([smile])
    said = (
        Token(smile[:2], -0.1, ((smile[:2], math.log(0.7)), (smile[:3], math.log(0.2)), (b"\xf0", math.log(0.05)))),
        Token(smile[2:], -0.1, ((smile[2:], math.log(0.9)),)),
        Token(b"!", -0.1, ((b"!", math.log(0.8)), (smile + b"!", math.log(0.1)))),
    )
    rows = agree([student.ranks[smile], student.ranks[b"!"]], "", Answer("😀!", said, "length"), student)
    assert masses(rows)[0] == pytest.approx({student.ranks[b"\xf0"]: 0.05})
    assert masses(rows)[1] == pytest.approx({student.ranks[b"!"]: 0.8, student.ranks[smile]: 0.1})
    # The answer was cut inside an emoji: its text says so with U+FFFD, its tokens hold the half.
    cut = (Token(b"Hi ", -0.1, ((b"Hi ", -0.2),)), Token(smile[:2], -0.1, ((smile[:2], -0.3),)))
    tokens = [student.ranks[bytes([c])] for c in "Hi \ufffd".encode()]
    rows = Aligner(student).align(np.array(tokens), Answer("Hi \ufffd", cut, "length"))
    assert np.flatnonzero(rows.counts).tolist() == [0]


@pytest.mark.parametrize("first", [b"<s>", b"<|im_start|>", b"", b" "])
def test_a_beginning_on_one_side_only(first: bytes) -> None:
    """A BOS token, or a space that the server cut off, shifts nothing."""
    student = train_bpe(iter(STORIES), 300)
    text = "The old fox said"
    plain = answered(student, text, 5)
    begun = Answer(text, (Token(first, -0.1, ((first, -0.1),)), *plain.tokens))
    tokens = np.array([*student.encode(text), student.end_of_text])
    expected, found = (Aligner(student).align(tokens, answer) for answer in (plain, begun))
    assert masses(found) == masses(expected)
    assert (expected.counts > 0).all()


def test_what_stands_around_the_text_is_left_out() -> None:
    """Thoughts before it, and what follows a stop word."""
    student = vocabulary([])
    said = tuple(Token(bytes([c]), -0.1, ((bytes([c]), math.log(0.5)),)) for c in b"hm. Yes.STOP")
    rows = Aligner(student).align(np.array([*b"Yes.", student.end_of_text]), Answer("Yes.", said))
    assert rows.counts.tolist() == [1, 1, 1, 1, 0]  # what it said after the text was not its end


def test_tokens_of_another_text_give_nothing() -> None:
    student = vocabulary([])
    said = (Token(b"No", -0.1, ((b"No", -0.1),)),)
    assert not Aligner(student).align(np.array([*b"Yes"]), Answer("Yes", said)).counts.any()
    assert not Aligner(student).align(np.array([*b"Yes"]), Answer("Yes")).counts.any()


def test_a_list_that_sums_to_more_than_one_is_scaled_down() -> None:
    student = vocabulary([])
    said = (Token(b"a", -0.1, ((b"a", 0.0), (b"b", 0.0), (b"b", -3.0))),)
    rows = Aligner(student).align(np.array([*b"a"]), Answer("a", said, "length"))
    assert masses(rows) == [pytest.approx({97: 0.5, 98: 0.5})]
    assert rows.residuals.tolist() == [LOG_ZERO]


def test_many_answers_are_aligned_quickly() -> None:
    """Ten thousand answers of a hundred tokens with twenty alternatives: some seconds. Here a fiftieth of them."""
    student, teacher = train_bpe(iter(STORIES), 300), o200k_like()
    text = (STORIES[0] * 4)[:380]
    rows = [Answer.from_json(answered(teacher, text, 20, seed).to_json()) for seed in range(5)]
    tokens = np.array([*student.encode(text), student.end_of_text])
    aligner, begun = Aligner(student), time.process_time()
    for i in range(200):
        aligner.align(tokens, rows[i % 5])
    assert time.process_time() - begun < 4


def test_the_table_of_the_docs_is_what_the_code_beside_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")
    exec(page.partition("```python\n")[2].partition("```")[0], {})
    table = page.partition("| student token | soft target | reason |")[2].strip().splitlines()[1:]
    cells = [row.replace(r"\|", "¦").split("|") for row in table if row.startswith("|")][:8]
    told = [f"{token.strip().strip('`')} {target.strip()}".replace("¦", "|") for _, token, target, *_ in cells]
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        " ".join(t.split()) for t in told
    ]
