"""A trained student as a teacher: its answers and logits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distillkit_plugins.checkpoint import Checkpoint

from distillkit.core.errors import CorruptError, UsageError
from distillkit.core.records import Answer, Request
from distillkit.data.tokenizer import Tokenizer, train_bpe
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking.label import count_known, label


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskAnswerStore]:
    with DiskAnswerStore(tmp_path / "cache") as opened:
        yield opened


CONTEXT = 32


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(iter([f"Story {i}: the fox ran {'far and ' * (i % 5)}home." for i in range(200)]), 280)


def save_student(folder: Path, tokenizer: Tokenizer, seed: int = 0) -> Path:
    """A student whose random weights are large enough that it prefers some tokens over others."""
    import mlx.core as mx
    from distillkit_plugins.gpt import Gpt

    from distillkit.student import checkpoint
    from distillkit.student.training.optimizers import flatten

    options = {"layers": 2, "heads": 2, "width": 16, "context": CONTEXT}
    model = Gpt(Gpt.Options(**options)).build(tokenizer.vocab_size)
    rng = np.random.default_rng(seed)
    weights = {
        name: mx.array(rng.normal(0, 0.3, value.shape).astype(np.float32))
        for name, value in flatten(model.parameters()).items()
    }
    student = {"arch": "gpt", "options": options, "vocab_size": tokenizer.vocab_size}
    checkpoint.save(folder, weights, None, student, {"step": 0})
    tokenizer.save(folder / "tokenizer")
    return folder


def teacher_of(folder: Path) -> Checkpoint:
    return Checkpoint(Checkpoint.Options(model=str(folder)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return save_student(tmp_path_factory.mktemp("student") / "one", tokenizer)


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Checkpoint:
    return teacher_of(folder)


def stories(count: int, **same: Any) -> list[Request]:
    """Prompts of different lengths."""
    texts = [f"Story {i}:{' the fox ran' * (i % 4)}" for i in range(count)]
    return [Request(str(i), prompt=text, seed=100 + i, **same) for i, text in enumerate(texts)]


def said(teacher: Checkpoint, requests: Sequence[Request]) -> dict[str, Answer]:
    return {request.id: answer for request, answer in teacher.answers(requests)}


def test_an_answer_depends_on_its_seed_and_on_nothing_before_it(folder: Path, teacher: Checkpoint) -> None:
    (request, *_) = stories(1, max_tokens=16)
    assert teacher.answer(request) == teacher.answer(request) == teacher_of(folder).answer(request)
    others = {teacher.answer(replace(request, seed=seed)).text for seed in range(8)}
    assert len(others) == 8
    repeats = {teacher.answer(replace(request, repeat=repeat)).text for repeat in range(4)}
    assert len(repeats) == 4
    greedy = {teacher.answer(replace(request, seed=seed, temperature=0.0)).text for seed in range(4)}
    assert len(greedy) == 1


BEYOND = pytest.param(60, id="beyond the context", marks=pytest.mark.slow)


@pytest.mark.parametrize("max_tokens", [pytest.param(8, id="within the context"), BEYOND])
def test_an_answer_does_not_depend_on_the_batch_that_it_is_in(teacher: Checkpoint, max_tokens: int) -> None:
    requests = stories(8, max_tokens=max_tokens)
    alone = {request.id: teacher.answer(request) for request in requests}
    assert said(teacher, requests) == alone
    assert said(teacher, requests[::-1]) == alone
    assert said(teacher, requests[1::5]) == {request.id: alone[request.id] for request in requests[1::5]}


def test_each_of_many_requests_is_answered_as_it_was_asked(teacher: Checkpoint) -> None:
    base = stories(6, max_tokens=8)
    mixed = [
        replace(request, id=f"{request.id}/{i}", **change)
        for request in base
        for i, change in enumerate([{}, {"temperature": 0.0}, {"max_tokens": 3}, {"top_p": 0.5}])
    ]
    answers = said(teacher, mixed)
    assert len(answers) == len(mixed) == 24
    assert all(answers[request.id] == teacher.answer(request) for request in mixed)


def test_an_answer_says_why_it_ended_and_how_long_it_is(teacher: Checkpoint) -> None:
    requests = [replace(stories(1)[0], id=str(i), seed=i, max_tokens=40) for i in range(64)]
    answers = said(teacher, requests).values()
    assert {answer.finish for answer in answers} == {"stop", "length"}
    for answer in answers:
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(teacher.tokenizer.encode("Story 0:"))
        assert (answer.usage.completion_tokens == 40) >= (answer.finish == "length")
        assert answer.usage.completion_tokens <= 40
        assert "<|endoftext|>" not in answer.text
        assert answer.model == teacher.options.model


def test_an_answer_ends_before_the_first_stop_word(teacher: Checkpoint) -> None:
    (request,) = stories(1, max_tokens=24)
    whole = teacher.answer(request).text
    word, late = whole[6:9], whole[12:14]
    for stop in ((word,), (late, word), ("not in it", word)):
        answer = teacher.answer(replace(request, stop=stop))
        assert answer.text == whole[: min(whole.find(w) for w in stop if w in whole)]
        assert answer.finish == "stop"
    for stop in (("not in it",), ("",)):
        assert teacher.answer(replace(request, stop=stop)).text == whole


def test_messages_are_refused_before_anything_is_written(teacher: Checkpoint, cache: DiskAnswerStore) -> None:
    chat = Request("chat", messages=({"role": "user", "content": "Hi"},))
    with pytest.raises(UsageError, match="continues prompts, but was given messages"):
        label(teacher, [*stories(3, max_tokens=4), chat], cache)
    assert len(cache) == 0


def test_an_empty_prompt_begins_a_document(teacher: Checkpoint) -> None:
    answer = teacher.answer(Request("r", prompt="", max_tokens=4, seed=1))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 0


def test_an_identity_is_of_weights_and_not_of_names(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    same, other = save_student(tmp_path / "same", tokenizer), save_student(tmp_path / "other", tokenizer, 1)
    wider = save_student(tmp_path / "wider", train_bpe(iter(["other words, far off"] * 9), 270), 0)
    identities = [teacher_of(path).identity() for path in (folder, same, other, wider)]
    assert identities[0] == identities[1]
    assert len({json.dumps(identity) for identity in identities}) == 3
    assert str(tmp_path) not in json.dumps(identities)


def test_answers_of_a_student_that_was_moved_are_still_known(
    folder: Path, tmp_path: Path, tokenizer: Tokenizer, cache: DiskAnswerStore
) -> None:
    requests = stories(5, max_tokens=4)
    label(teacher_of(folder), requests, cache)
    assert count_known(teacher_of(save_student(tmp_path / "moved", tokenizer)), requests, cache) == 5
    assert count_known(teacher_of(save_student(tmp_path / "other", tokenizer, 1)), requests, cache) == 0


def test_answers_are_kept_under_the_weights_that_gave_them(
    tmp_path: Path, tokenizer: Tokenizer, cache: DiskAnswerStore
) -> None:
    """Another process may train the teacher, and save, while it is asked."""
    trained = save_student(tmp_path / "trained", tokenizer)
    early, other = teacher_of(trained), teacher_of(trained)
    before = early.identity()
    label(early, stories(2, max_tokens=4), cache)
    save_student(trained, tokenizer, 1)
    late = stories(5, max_tokens=4)
    label(early, late, cache)
    assert early.identity() == before != other.identity()
    assert count_known(other, late, cache) == 0


def test_weights_that_change_before_they_are_loaded_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, cache: DiskAnswerStore
) -> None:
    trained = save_student(tmp_path / "trained", tokenizer)
    teacher = teacher_of(trained)
    teacher.identity()
    save_student(trained, tokenizer, 1)
    with pytest.raises(UsageError, match="changed during this run"):
        label(teacher, stories(2, max_tokens=4), cache)
    assert len(cache) == 0


def test_its_logits_are_those_of_its_network(teacher: Checkpoint) -> None:
    import mlx.core as mx

    tokens = mx.array([teacher.tokenizer.encode("the fox ran")[:3], [1, 2, 3]])
    network = teacher.trained.model
    logits = np.array(teacher.logits(tokens))
    assert logits.shape == (2, 3, teacher.tokenizer.vocab_size)
    assert np.array_equal(logits, np.array(network(tokens) @ network.tokens.weight.T))


def test_it_writes_what_its_logits_say(teacher: Checkpoint) -> None:
    """Greedily, token by token, over the whole text again each time."""
    import mlx.core as mx

    (request,) = stories(1, max_tokens=12, temperature=0.0)
    tokenizer = teacher.tokenizer
    begun = [tokenizer.end_of_text, *tokenizer.encode(request.prompt or "")]
    tokens = list(begun)
    while len(tokens) - len(begun) < 12:
        best = int(np.array(teacher.logits(mx.array([tokens])))[0, -1].argmax())
        if best == tokenizer.end_of_text:
            break
        tokens.append(best)
    assert teacher.answer(request).text == tokenizer.decode(tokens[len(begun) :])


def test_a_student_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="no student 'no-such-student'"):
        teacher_of(Path("no-such-student")).identity()


def test_damaged_weights_do_not_teach(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = save_student(tmp_path / "damaged", tokenizer) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptError, match="damaged"):
        teacher_of(tmp_path / "damaged").answer(stories(1)[0])
