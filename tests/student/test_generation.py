"""Writing held against a network that keeps nothing, and drawing against NumPy in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from distillkit.recipe.schema import SamplingTable
from distillkit.student.generation.generate import generate_tokens
from distillkit.student.generation.sampling import (
    RepetitionPenalty,
    Sampling,
    filter_logits,
    gumbel_noise,
    sample_tokens,
)
from distillkit.student.model.cpu.matmul import matmul_few_rows
from distillkit.student.model.gpt import GPT, GPTConfig
from distillkit.student.trained import Trained
from distillkit.student.training.optimizers import flatten
from distillkit.student.training.parallel import StreamPool
from support.students import TEXTS, f64, lively, random_array, small_model, softmax, tokenizer, with_cache, writer

Array = np.ndarray[Any, Any]
QUICK = settings(max_examples=50, deadline=None)

# ---------------------------------------------------------------------------------------------- writing


def last_logits(model: GPT, tokens: Sequence[int]) -> mx.array:
    return (model(mx.array([tokens]))[:, -1] @ model.head[0].T)[0]


def without_cache(
    model: GPT, context: int, prompt: Sequence[int], seed: int, sampling: Sampling, length: int
) -> list[int]:
    """What one row writes when everything is computed again for each token.

    A window that would outgrow the context begins anew with half a context.
    """
    row, key = list(prompt)[-(context - 1) :], mx.random.key(seed)
    begin, written = 0, []
    for _ in range(length):
        if len(row) - begin > context:
            begin = len(row) - context // 2
        key, now = mx.random.split(key)
        logits = last_logits(model, row[begin:])
        noise = mx.random.gumbel(logits.shape, key=now)
        warm = logits if sampling.temperature == 0 else logits / sampling.temperature + noise
        written.append(int(warm.argmax().item()))
        row.append(written[-1])
    return written


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("context", [2, 3, 4, 7, 8])
def test_a_cache_changes_nothing_even_past_the_context(temperature: float, context: int) -> None:
    model, sampling = small_model(context), Sampling(temperature)
    for seed, prompt in enumerate([[5], [1, 2, 3], list(range(20))]):
        (found,) = with_cache(model, context, [prompt], [seed], sampling, 4 * context)
        assert found == without_cache(model, context, prompt, seed, sampling, 4 * context)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("context", [2, 5, 8])
def test_what_a_row_writes_does_not_depend_on_its_neighbours(temperature: float, context: int) -> None:
    model, sampling = small_model(context), Sampling(temperature)
    prompts = [[5], [1, 2, 3], [7, 7], list(range(20)), [9, 8, 7, 6, 5], [3, 1, 4, 1, 5, 9]]
    seeds = [11, 12, 13, 14, 15, 16]
    together = with_cache(model, context, prompts, seeds, sampling, 3 * context)
    for prompt, seed, row in zip(prompts, seeds, together, strict=True):
        assert row == with_cache(model, context, [prompt], [seed], sampling, 3 * context)[0]
        assert row == without_cache(model, context, prompt, seed, sampling, 3 * context)


def test_padding_does_not_leak_into_a_shorter_prompt() -> None:
    model = small_model()
    past = model.cache([3, 0])
    hidden = model.extend(mx.array([[0, 0, 0, 4, 5], [9, 8, 7, 6, 5]]), past)
    np.testing.assert_allclose(f64(hidden[0, 3:]), f64(model(mx.array([[4, 5]]))[0]), atol=1e-5)
    more = model.extend(mx.array([[2], [2]]), past)
    np.testing.assert_allclose(f64(more[0, 0]), f64(model(mx.array([[4, 5, 2]]))[0, -1]), atol=1e-5)
    np.testing.assert_allclose(f64(more[1, 0]), f64(model(mx.array([[9, 8, 7, 6, 5, 2]]))[0, -1]), atol=1e-5)


MANY_ROWS = pytest.param([[3], [1] * 100, [2] * 60, [7, 8], [9]], marks=pytest.mark.slow)


@pytest.mark.parametrize("prompts", [[[3]], MANY_ROWS])
def test_a_cache_that_grows_holds_what_it_held(prompts: list[list[int]]) -> None:
    model, seeds, step = small_model(400), range(len(prompts)), 1 if len(prompts) == 1 else 9
    rows = with_cache(model, 400, prompts, seeds, Sampling(1.0), 280)
    for prompt, seed, row in zip(prompts, seeds, rows, strict=True):
        window = [*prompt, *row]
        (again,) = with_cache(model, 400, [window[:-5]], [seed], Sampling(0.0), 1)
        assert again == [int(last_logits(model, window[:-5]).argmax().item())]
        past = model.cache([0])
        pieces = [window[i : i + step] for i in range(0, len(window), step)]
        hidden = mx.concatenate([model.extend(mx.array([piece]), past) for piece in pieces], axis=1)
        np.testing.assert_allclose(f64(hidden), f64(model(mx.array([window]))), rtol=1e-3, atol=1e-3)


@st.composite
def batches(draw: Any) -> tuple[list[list[int]], list[int]]:
    prompts = draw(st.lists(st.lists(st.integers(0, 22), max_size=12), min_size=1, max_size=6))
    return prompts, [draw(st.integers(0, 2**40)) for _ in prompts]


@settings(max_examples=8, deadline=None)
@given(batches(), st.integers(0, 22), st.sampled_from([1.0, 1.4]), st.randoms())
def test_rows_that_end_leave_and_change_nothing(
    given_rows: tuple[list[list[int]], list[int]], end: int, penalty: float, random: Any
) -> None:
    (prompts, seeds), model = given_rows, small_model()
    sampling = Sampling(1.0, top_k=9, min_p=0.02, repetition_penalty=penalty)
    alone = [
        with_cache(model, 8, [prompt], [seed], sampling, 14)[0] for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    until = [row[: row.index(end) + 1] if end in row else row for row in alone]
    order = list(range(len(prompts)))
    random.shuffle(order)
    shuffled = ([prompts[i] for i in order], [seeds[i] for i in order])
    found = with_cache(model, 8, *shuffled, sampling, 14, end=end)
    assert found == [until[i] for i in order]


class Counting(GPT):
    """A network that notes how many rows of how many tokens it is given."""

    def extend(self, tokens: mx.array, past: Any) -> mx.array:
        self.given.append(tokens.shape)
        return super().extend(tokens, past)


def counting(context: int = 8) -> Counting:
    model = small_model(context)
    copy = Counting(model.config)
    copy.update(model.parameters())
    copy.given = []
    return copy.eval()  # type: ignore[no-any-return]


def test_no_work_is_done_for_rows_that_have_ended_nor_past_the_end() -> None:
    model, prompts, seeds = counting(200), [[1], [2], [3]], [4, 5, 6]
    (first, *_) = rows = with_cache(model, 200, prompts, seeds, Sampling(1.0), 100)
    end = next(token for token in first if [token in row[:50] for row in rows].count(True) == 3)
    lengths = sorted(row.index(end) + 1 for row in rows)
    model.given.clear()
    drawn = list(generate_tokens(model, 200, prompts, seeds, Sampling(1.0), 0, end=end, max_tokens=60))
    assert len(drawn) == lengths[-1]
    assert {token for token in drawn[-1] if token is not None} == {end}
    # The token after an end is on its way before the end is known, so each row is computed once more.
    steps = [sum(step <= length for length in lengths) for step in range(lengths[-1] + 1)]
    assert [rows for rows, _ in model.given] == steps
    model.given.clear()
    assert len(list(generate_tokens(model, 200, prompts, seeds, Sampling(1.0), 0, max_tokens=7))) == 7
    assert [rows for rows, _ in model.given] == [3] * 7


def test_writing_to_nobody_ends_at_once() -> None:
    assert list(generate_tokens(small_model(), 8, [], [], Sampling(1.0), 0)) == []


def test_writing_nothing_ends_at_once() -> None:
    model = counting(8)
    assert list(generate_tokens(model, 8, [[1], [2]], [3, 4], Sampling(1.0), 0, max_tokens=0)) == []
    assert model.given == []


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize(
    ("rows", "size", "width"), [(1, 5000, 384), (3, 50, 16), (16, 3001, 64), (5, 1, 4), (70, 9, 3)]
)
def test_few_rows_times_a_big_matrix(streams: int, rows: int, size: int, width: int) -> None:
    x, weight = random_array(1, rows, width), random_array(2, size, width)
    found = matmul_few_rows(mx.array(x), mx.array(weight), StreamPool(streams))
    assert found.shape == (rows, size)
    np.testing.assert_allclose(f64(found), x.astype(np.float64) @ weight.T.astype(np.float64), atol=1e-4)


class Chain(nn.Module):
    """A plugin's network that keeps no cache, with a bias in its head: what follows each token is certain."""

    def __init__(self, following: Sequence[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        size = len(following)
        self.states = mx.eye(size)
        self.next = mx.array(30 * np.eye(size)[list(following)].T.astype(np.float32))
        self.bias = mx.zeros(size)

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.states[tokens]

    @property
    def head(self) -> tuple[mx.array, mx.array]:
        return self.next, self.bias


def test_a_network_without_a_cache_writes_too() -> None:
    counting = Chain([1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
    rows = with_cache(counting, 4, [[3], [5, 6, 7], []], [0, 1, 2], Sampling(1.0), 6)
    assert rows == [[4, 5, 6, 7, 8, 9], [8, 9, 0, 1, 2, 3], [1, 2, 3, 4, 5, 6]]


# ---------------------------------------------------------------------------------------------- drawing

KNOWN = np.array([3.0, 2.0, 1.0, 0.5, -1.0, -2.0])


def drawn_tokens(logits: Array, sampling: Sampling, times: int, first_seed: int = 0) -> Counter[int]:
    keys = mx.stack([mx.random.key(first_seed + i) for i in range(times)])
    noise = gumbel_noise(keys, logits.size)
    tokens = sample_tokens(mx.array(np.tile(logits.astype(np.float32), (times, 1))), noise, sampling)
    return Counter(np.array(tokens).tolist())


def left_in(logits: Array, sampling: Sampling) -> Array:
    """Which tokens may be drawn, by the book, in float64."""
    logits = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-logits)
    if sampling.top_k:
        order = order[: sampling.top_k]
    chances = softmax(logits[order])
    before = np.cumsum(chances) - chances
    order = order[before < sampling.top_p]
    chances = softmax(logits[order])
    return np.sort(order[chances >= sampling.min_p * chances.max()])


@QUICK
@given(
    st.integers(0, 10_000),
    st.floats(0.2, 3),
    st.sampled_from([0, 1, 2, 7, 30, 99]),
    st.floats(0.05, 1),
    st.floats(0, 1),
)
def test_what_is_left_in_is_what_float64_leaves_in(seed: int, heat: float, k: int, p: float, least: float) -> None:
    sampling = Sampling(heat, top_k=k, top_p=p, min_p=least)
    logits = random_array(seed, 3, 40, scale=2.0)
    found = f64(filter_logits(mx.array(logits) / heat, sampling))
    for row, kept in zip(logits, found, strict=True):
        assert np.flatnonzero(np.isfinite(kept)).tolist() == left_in(row, sampling).tolist()
        np.testing.assert_allclose(kept[np.isfinite(kept)], (row / heat)[np.isfinite(kept)], rtol=1e-5)


@QUICK
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=4),
    st.lists(st.integers(0, 9), max_size=5),
    st.floats(0.5, 3),
)
def test_what_was_said_is_punished_but_not_what_stands_between_texts(
    rows: list[list[int]], more: list[int], penalty: float
) -> None:
    penalized, between = RepetitionPenalty([list(row) for row in rows], 4, penalty), 4
    logits = random_array(len(more), len(rows), 10, scale=2.0)
    found = penalized.apply(mx.array(logits), None)
    for token in more:
        found = penalized.apply(mx.array(logits), mx.array([token] * len(rows)))
    expected = logits.astype(np.float64)
    for i, row in enumerate(rows):
        for token in {*row, *more} - {between}:
            expected[i, token] *= 1 / penalty if expected[i, token] > 0 else penalty
    np.testing.assert_allclose(f64(found), expected, rtol=1e-6)


@pytest.mark.parametrize("penalty", [0.7, 1.5])
def test_writing_with_a_penalty_is_writing_from_punished_logits(penalty: float) -> None:
    model, prompts = small_model(100), [[5], [1, 2, 3]]
    found = with_cache(model, 100, prompts, [0, 0], Sampling(0.0, repetition_penalty=penalty), 30)
    for prompt, row in zip(prompts, found, strict=True):
        text = list(prompt)
        for token in row:
            logits = f64(last_logits(model, text))
            for seen in set(text) - {0}:
                logits[seen] *= 1 / penalty if logits[seen] > 0 else penalty
            assert token == logits.argmax()
            text.append(token)


# The largest chi-square that one honest draw in a thousand exceeds, by degrees of freedom.
CHI_SQUARE = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52}


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0), 6),
        (Sampling(0.5), 6),
        (Sampling(3.0), 6),
        (Sampling(1.0, top_k=3), 3),
        (Sampling(2.0, top_k=2), 2),
        (Sampling(1.0, top_k=6), 6),
        (Sampling(1.0, top_k=100), 6),
        (Sampling(1.0, top_p=0.7), 2),
        (Sampling(1.0, top_p=0.95), 4),
        (Sampling(3.0, top_p=0.5), 2),
        (Sampling(1.0, top_k=3, top_p=0.99), 3),
        (Sampling(1.0, min_p=0.2), 2),
        (Sampling(2.0, min_p=0.2), 4),
        (Sampling(1.0, top_k=3, top_p=0.99, min_p=0.3), 2),
    ],
)
def test_frequencies_follow_the_distribution_that_is_left(sampling: Sampling, kept: int) -> None:
    times, shuffled = 4000, np.array([4, 0, 5, 2, 1, 3])
    counts = drawn_tokens(KNOWN[shuffled], sampling, times)
    chances = softmax(KNOWN[:kept] / sampling.temperature)
    expected = {int(np.flatnonzero(shuffled == i)[0]): times * chances[i] for i in range(kept)}
    assert set(counts) <= set(expected)
    distance = sum((counts[token] - mean) ** 2 / mean for token, mean in expected.items())
    assert distance < CHI_SQUARE[kept - 1]


def test_top_p_keeps_the_fewest_that_hold_the_mass() -> None:
    chances = np.array([0.4, 0.3, 0.2, 0.1])
    for top_p, kept in [
        (0.01, 1),
        (0.39, 1),
        (0.41, 2),
        (0.69, 2),
        (0.71, 3),
        (0.89, 3),
        (0.91, 4),
        (1.0, 4),
    ]:
        counts = drawn_tokens(np.log(chances), Sampling(1.0, top_p=top_p), 300)
        assert set(counts) == set(range(kept)), top_p


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.0),
        Sampling(1.0, top_k=1),
        Sampling(1.0, top_p=1e-6),
        Sampling(1.0, min_p=1.0),
        Sampling(1e-9),
        Sampling(1e-46),
    ],
)
def test_no_room_for_chance_is_greedy(sampling: Sampling) -> None:
    for seed in range(5):
        logits = random_array(seed, 40, scale=3.0)
        assert set(drawn_tokens(logits, sampling, 20)) == {int(logits.argmax())}


def test_top_k_of_one_writes_what_greedy_writes() -> None:
    prompts, seeds = [[1], [2, 3]], [5, 6]
    greedy = with_cache(small_model(), 8, prompts, seeds, Sampling(0.0), 20)
    assert with_cache(small_model(), 8, prompts, seeds, Sampling(1.3, top_k=1), 20) == greedy


@pytest.mark.parametrize("wrong", [{"min_p": -0.1}, {"min_p": 1.1}, {"repetition_penalty": 0.0}])
def test_a_recipe_says_how_to_draw_and_is_refused_what_means_nothing(wrong: dict[str, float]) -> None:
    assert Sampling(**SamplingTable(min_p=0.1, repetition_penalty=1.3).sampler_options) == Sampling(
        1.0, min_p=0.1, repetition_penalty=1.3
    )
    with pytest.raises(ValidationError):
        SamplingTable(**wrong)


# ---------------------------------------------------------------------------------------------- texts


def texts(prompts: Sequence[str], seeds: Sequence[int], temperature: float = 1.0, length: int = 30) -> list[str]:
    return [one.text for one in writer().write(prompts, seeds, Sampling(temperature), length)]


def test_one_seed_writes_the_same_again_and_another_writes_something_else() -> None:
    assert texts(["One day"], [1]) == texts(["One day"], [1])
    assert texts(["One day"] * 3, [1, 2, 1]) == [
        *texts(["One day"], [1]),
        *texts(["One day"], [2]),
        texts(["One day"], [1])[0],
    ]
    assert len(set(texts(["One day"] * 20, range(20)))) == 20


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streaming_writes_what_writing_writes(temperature: float) -> None:
    for seed in range(4 if temperature else 1):
        pieces = list(writer().stream("The hen", seed, Sampling(temperature), 40))
        assert "".join(pieces) == texts(["The hen"], [seed], temperature, 40)[0]


def test_more_prompts_than_fit_one_batch_come_back_in_order() -> None:
    prompts, seeds = [TEXTS[i % 3][: i % 7] for i in range(70)], list(range(70))
    many = texts(prompts, seeds, length=3)
    assert many == [texts([prompt], [seed], length=3)[0] for prompt, seed in zip(prompts, seeds, strict=True)]


def test_a_text_ends_where_the_student_says_so_and_nobody_else() -> None:
    end, prompts = tokenizer().end_of_text, list("uvwxyz")
    following = [end] * tokenizer().vocab_size
    letters = [tokenizer().encode(letter)[0] for letter in prompts]
    for letter, successor in pairwise(letters):
        following[letter] = successor
    student = Trained(Chain(following), tokenizer(), 8)
    ended, longer = (list(student.write(prompts, range(6), Sampling(0.0), n)) for n in (3, 50))
    assert [(one.finish, one.tokens) for one in ended] == [("length", 3)] * 3 + [
        ("stop", 2),
        ("stop", 1),
        ("stop", 0),
    ]
    assert [(one.finish, one.tokens) for one in longer] == [("stop", n) for n in (5, 4, 3, 2, 1, 0)]
    assert longer[0].text == "vwxyz"


def test_samples_are_named_and_seeded_one_by_one() -> None:
    samples = writer().generate(["One", "The"], max_tokens=4, seed=7)
    assert [(s.id, s.prompt, s.seed) for s in samples] == [("0#0", "One", 7), ("1#0", "The", 8)]
    assert samples[1].completion == texts(["The"], [8], length=4)[0]


# ---------------------------------------------------------------------------------------------- peers

PARTS = {
    "tokens": "wte",
    "positions": "wpe",
    "norm": "ln_f",
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "hidden_norm": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}


def theirs(gpt2: ModuleType, model: GPT) -> nn.Module:
    """mlx-lm's gpt2 with the weights of a student."""
    shape, weights = model.config, []
    for name, value in flatten(model.parameters()).items():
        path, kind = name.rsplit(".", 1)
        block, path = path.split(".", 2)[1:] if path.startswith("blocks.") else ("", path)
        weights.append((f"model.{f'h.{block}.' if block else ''}{PARTS[path]}.{kind}", value))
    sizes = (shape.context, shape.width, shape.heads, shape.layers, shape.context)
    network: nn.Module = gpt2.Model(gpt2.ModelArgs("gpt2", *sizes, 1e-5, shape.vocab_size))
    network.load_weights(weights)
    return network.eval()


def one_by_one(rows: Any, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """What mlx-lm's batch generator says, a row each."""
    names = rows.insert([list(prompt) for prompt in prompts])
    written: dict[int, list[int]] = {name: [] for name in names}
    while responses := rows.next_generated():
        for response in responses:
            written[response.uid].append(response.token)
    return (written[name] for name in names)


@pytest.mark.slow
@pytest.mark.peer
def test_greedy_writing_is_mlx_lms_token_for_token(peer: Callable[[str], ModuleType]) -> None:
    generating, gpt2 = peer("mlx_lm.generate"), peer("mlx_lm.models.gpt2")
    shape = GPTConfig(997, layers=3, heads=4, width=64, hidden=256, context=192, activation="gelu_tanh")
    model = lively(shape, seed=3, scale=0.15)
    network, random = theirs(gpt2, model), np.random.default_rng(0)
    prompts = [random.integers(0, 997, size).tolist() for size in (8, 1, 30, 30, 2, 17, 5, 9)]
    together = with_cache(model, 192, prompts, [0] * 8, Sampling(0.0), 140, max_tokens=140)
    assert list(one_by_one(generating.BatchGenerator(network, max_tokens=140), prompts)) == together
    for prompt, row in zip(prompts[:3], together, strict=False):
        steps = generating.generate_step(mx.array(prompt), network, max_tokens=140)
        assert [token for token, _ in steps] == row
        assert with_cache(model, 192, [prompt], [0], Sampling(0.0), 140) == [row]
        assert len(set(row)) > 5  # it does not say one thing again and again
