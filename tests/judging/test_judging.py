"""Samples from everywhere, judges that answer for what they say, and figures that somebody else can compute."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distillkit_plugins.gpt import Gpt
from distillkit_plugins.perplexity import Perplexity
from hypothesis import given
from hypothesis import strategies as st

from distillkit.core.errors import DistillkitError, UsageError
from distillkit.core.records import Answer, Document, Grade, Metric, Request, Sample
from distillkit.data.tokenizer import Tokenizer, train_bpe
from distillkit.judging import protocol
from distillkit.judging.sampling import (
    PlannedSample,
    file_prompts,
    generate_samples,
    held_out_prompts,
    load_story_prompts,
    plan_samples,
    story_prompts,
)
from distillkit.plugins.interfaces import Judge
from distillkit.stats import mean_interval

# ----------------------------------------------------------------------------------------------------- samples


def documents(count: int) -> list[Document]:
    return [Document(f"d{i}", f"Story number {i} begins here.") for i in range(count)]


def first_word(text: str) -> str:
    return text.split()[0]


def echo(prompts: Sequence[str], seeds: Sequence[int], temperature: float) -> Iterable[str]:
    return (f"{prompt}/{seed}/{temperature:g}" for prompt, seed in zip(prompts, seeds, strict=True))


def written(prompts: Sequence[tuple[str, str]], seed: int = 0, **more: Any) -> list[Sample]:
    return generate_samples(plan_samples(prompts, len(prompts), seed, **more), echo)


@given(st.integers(1, 60), st.integers(1, 200))
def test_prompts_are_spread_evenly_over_the_held_out_documents(there: int, count: int) -> None:
    chosen = [int(name[1:]) for name, _ in held_out_prompts(documents(there), count, first_word)]
    assert len(chosen) == count
    times = [chosen.count(i) for i in range(there)]
    assert max(times) - min(times) <= 1  # all serve once before one serves twice
    rest = sorted(chosen[count - count % there :])
    gaps = np.diff([*rest, there + rest[0]]) if rest else [1]
    assert max(gaps) - min(gaps) <= 1  # and those that serve once more stand at even distances


def test_another_number_of_held_out_prompts_shares_what_the_documentation_says() -> None:
    fifty, sixty = ({name for name, _ in held_out_prompts(documents(100), n, first_word)} for n in (50, 60))
    assert (len(fifty & sixty), len(sixty - fifty)) == (30, 30)


def test_prompts_are_beginnings_under_the_names_of_their_documents() -> None:
    assert held_out_prompts(documents(10), 3, first_word) == [("d0", "Story"), ("d3", "Story"), ("d6", "Story")]
    assert held_out_prompts(documents(10), 0, first_word) == []


def test_no_held_out_document_is_said() -> None:
    with pytest.raises(UsageError, match="no held-out documents"):
        held_out_prompts([], 3, first_word)


def test_further_samples_of_a_prompt_are_numbered_and_have_seeds_of_their_own() -> None:
    told = written(held_out_prompts(documents(2), 5, first_word), 40)
    assert [sample.id for sample in told] == ["d0#0", "d1#0", "d0#1", "d1#1", "d0#2"]
    assert len({sample.seed for sample in told}) == 5
    assert [sample.completion for sample in told] == [f"Story/{sample.seed}/1" for sample in told]
    assert {sample.prompt_id for sample in told} == {"d0", "d1"}
    assert {Grade("a", 1, sample=sample.id).cluster for sample in told} == {"d0", "d1"}


def test_a_prompt_is_written_to_as_often_as_is_asked_at_every_temperature() -> None:
    wanted = plan_samples(held_out_prompts(documents(3), 3, first_word), 5, 1, repeats=2, temperatures=[1.0, 0.5])
    assert [row.id for row in wanted[:5]] == ["d0#0", "d0#1", "d1#0", "d1#1", "d2#0"]
    assert [row.temperature for row in wanted] == [1.0] * 5 + [0.5] * 5
    assert len({row.id for row in wanted}) == len({row.seed for row in wanted}) == 10
    assert {row.sample("").prompt_id for row in wanted} == {"d0", "d1", "d2"}


def test_what_a_row_is_written_with_hangs_neither_on_how_many_there_are_nor_on_the_other_temperatures() -> None:
    few = plan_samples(story_prompts(3), 3, 7)
    many = plan_samples(story_prompts(40), 40, 7, temperatures=[1.0, 0.3])
    assert many[:3] == few
    assert {row.seed for row in plan_samples(story_prompts(3), 3, 8)}.isdisjoint({row.seed for row in few})


def test_what_is_kept_is_not_written_again_and_the_rest_in_one_go_a_temperature() -> None:
    wanted = plan_samples(story_prompts(4), 4, 0, temperatures=[1.0, 0.5])
    calls = []

    def write(prompts: Sequence[str], seeds: Sequence[int], temperature: float) -> Iterable[str]:
        calls.append((len(prompts), temperature))
        return echo(prompts, seeds, temperature)

    kept = {row.key: "kept" for row in wanted[1:3]}
    texts = [sample.completion for sample in generate_samples(wanted, write, kept)]
    assert calls == [(2, 1.0), (4, 0.5)]
    assert texts[1:3] == ["kept", "kept"]
    assert texts[0] == f"{wanted[0].prompt}/{wanted[0].seed}/1"
    assert generate_samples(wanted, write, {row.key: "kept" for row in wanted}) == [
        row.sample("kept") for row in wanted
    ]
    assert len(calls) == 2  # nobody is woken for nothing


def test_the_beginnings_that_ship_are_many_all_different_and_most_cut_in_a_sentence() -> None:
    texts = load_story_prompts()
    assert len(texts) == len(set(texts)) >= 100
    assert all(text == text.strip() and 30 < len(text) < 300 for text in texts)
    whole = [text for text in texts if text[-1] in ".!?"]
    assert 10 <= len(whole) <= len(texts) / 3
    assert story_prompts(len(texts) + 1)[-1] == story_prompts(1)[0] == ("stories:1", texts[0])


def test_a_name_with_a_number_sign_is_still_one_cluster() -> None:
    told = written([("a#b", "x"), ("a#b", "x")])
    assert [Grade("a", 1, sample=sample.id).cluster for sample in told] == ["a#b", "a#b"]
    assert [sample.prompt_id for sample in told] == ["a#b", "a#b"]


def test_prompts_of_a_file_are_its_lines_from_the_top_again_when_there_are_too_few(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeffOnce upon a time\r\n\n  \nÜnï 漢\u2028字 \x0b!\nlast".encode())
    prompts = file_prompts(file, 5)
    texts = ["Once upon a time", "Ünï 漢\u2028字 \x0b!", "last"]
    assert prompts == [(f"mine.txt:{i % 3 + 1}", texts[i % 3]) for i in range(5)]
    assert file_prompts(file, 2) == prompts[:2]
    assert [sample.id for sample in written(prompts)][2:4] == ["mine.txt:3#0", "mine.txt:1#1"]


def test_a_file_without_prompts_or_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"empty\.txt contains no prompts"):
        file_prompts(tmp_path / "empty.txt", 1)
    for name in ("binary.txt", "missing.txt", "."):
        with pytest.raises(UsageError, match="cannot be read"):
            file_prompts(tmp_path / name, 1)


def test_a_writer_that_writes_too_little_is_noticed() -> None:
    with pytest.raises(ValueError, match="shorter"):
        generate_samples(plan_samples([("a", "x"), ("b", "y")], 2, 0), lambda prompts, seeds, temperature: ["only one"])


def test_a_sample_is_kept_with_its_prompts_name_and_its_temperature() -> None:
    sample = PlannedSample("d0#3", "One", 5, 0.5).sample(" day")
    told = sample.to_json()
    assert told == {
        **{"id": "d0#3", "prompt": "One", "completion": " day", "seed": 5},
        **{"temperature": 0.5, "prompt_id": "d0"},
    }
    assert Sample.from_json(told) == sample
    old = {"id": "d0#3", "prompt": "One", "completion": " day", "seed": 5}  # of a version that recorded less
    assert Sample.from_json(old) == Sample("d0#3", "One", " day", 5, None)


# ------------------------------------------------------------------------------------------------------ judges


@dataclass
class Fixed:
    """How likely a text was, as somebody says."""

    nats: float
    tokens: int
    bytes: int


class Scores:
    """A student whose scores are known beforehand."""

    def __init__(self, scores: Sequence[Fixed] = ()) -> None:
        self.scores = list(scores)

    def generate(self, prompts: Sequence[str], *, max_tokens: int, seed: int = 0) -> Sequence[Sample]:
        return [Sample(f"{i}#0", prompt, "", seed) for i, prompt in enumerate(prompts)]

    def score_after(self, prompts: Sequence[str], texts: Sequence[str]) -> Sequence[Fixed]:
        return self.score(texts)

    def score(self, texts: Sequence[str]) -> Sequence[Fixed]:
        assert len(texts) == len(self.scores)
        return self.scores


def subject(held_out: Sequence[Document] = (), student: Any = None, **more: Any) -> protocol.RunSubject:
    told = written(held_out_prompts(documents(3), 6, first_word))
    return protocol.RunSubject(told, held_out, student or Scores(), lambda: iter(["a story"]), **more)


class Says(Judge):
    """Says what it is told to say."""

    name = "says"

    def __init__(self, *grades: Any, metrics: Any = None) -> None:
        super().__init__()
        self.said, self.metrics = grades, metrics

    def grade(self, subject: Any) -> Iterable[Grade]:
        for grade in self.said:
            if isinstance(grade, BaseException):
                raise grade
            yield grade

    def summarise(self, grades: Sequence[Grade]) -> dict[str, Metric]:
        return super().summarise(grades) if self.metrics is None else self.metrics  # type: ignore[no-any-return]


def test_a_judge_sees_the_run_and_its_words_are_kept() -> None:
    class Length(Judge):
        """Words a sample."""

        name = "length"

        def grade(self, subject: Any) -> Iterable[Grade]:
            assert list(subject.train_text) == list(subject.train_text) == ["a story"]
            assert subject.ask([Request("r", prompt="?")]) is None
            return [Grade("words", len(s.completion.split()), sample=s.id, note="n") for s in subject.samples]

    verdict = protocol.run_judge(Length(), subject())
    assert verdict.judge == "length"
    assert verdict.metrics == {"words": Metric(1.0, 1.0, 1.0, 3)}
    lines = verdict.rows()
    mark = {"judge": "length", "protocol": verdict.protocol.hash}
    assert lines[0] == {**mark, "criterion": "words", "score": 1, "sample": "d0#0", "note": "n"}
    assert [Grade.from_json(line) for line in lines] == verdict.grades


def test_a_judge_with_a_teacher_asks_it() -> None:
    asked: list[Request] = []

    def asker(requests: Sequence[Request]) -> list[Answer]:
        asked.extend(requests)
        return [Answer("8")] * len(requests)

    assert subject(teacher=asker).ask([Request("r", prompt="?")]) == [Answer("8")]
    assert len(asked) == 1


def test_a_judge_that_fails_is_blamed_by_name() -> None:
    for judge in (Says(ValueError("no idea")), Says(Grade("a", 1), ValueError("no idea"))):
        with pytest.raises(DistillkitError, match="the judge 'says' failed: ValueError: no idea"):
            protocol.run_judge(judge, subject())

    class None_(Says):  # noqa: N801
        def grade(self, subject: Any) -> Any:
            return None

    with pytest.raises(DistillkitError, match="the judge 'says' failed: TypeError"):
        protocol.run_judge(None_(), subject())


def test_an_error_that_is_already_clear_stays_what_it_is() -> None:
    with pytest.raises(UsageError, match=r"^no samples$"):
        protocol.run_judge(Says(UsageError("no samples")), subject())


@pytest.mark.parametrize("given", ["8", 8, None, {"criterion": "a", "score": 1}])
def test_what_is_no_grade_is_blamed_on_its_judge(given: Any) -> None:
    with pytest.raises(DistillkitError, match=rf"'says' returned a {type(given).__name__} instead of a Grade"):
        protocol.run_judge(Says(Grade("a", 1), given), subject())


@pytest.mark.parametrize(
    "grade",
    [
        Grade("fun", "8", sample="d0#0"),  # type: ignore[arg-type]
        Grade("fun", None, sample="d0#0"),  # type: ignore[arg-type]
        Grade("fun", math.nan, sample="d0#0"),
        Grade("fun", math.inf, sample="d0#0"),
        Grade("fun", 1e160, sample="d0#0"),
        Grade("fun", -1e308, sample="d0#0"),
        Grade("fun", 8, sample="d0#0", weight=math.nan),
        Grade("fun", 8, sample="d0#0", weight=-1),
    ],
    ids=lambda grade: f"{grade.score!r} weighing {grade.weight}",
)
def test_a_score_that_cannot_be_averaged_is_blamed_on_its_judge(grade: Grade) -> None:
    with pytest.raises(DistillkitError, match=r"the judge 'says' gave d0#0 a score of .* for 'fun'"):
        protocol.run_judge(Says(grade), subject())


def test_numbers_of_any_kind_are_scores() -> None:
    scores = [1, 1.0, np.float32(1), np.int64(1), True]
    assert protocol.run_judge(Says(*(Grade("a", score) for score in scores)), subject()).metrics["a"].value == 1


@pytest.mark.parametrize("metrics", [{"a": 1.0}, {"a": None}, {"a": Metric(math.nan)}, {"a": Metric(math.inf)}])
def test_a_summary_without_a_number_is_blamed_on_its_judge(metrics: Any) -> None:
    with pytest.raises(DistillkitError, match="the judge 'says' returned no numeric metric for 'a'"):
        protocol.run_judge(Says(metrics=metrics), subject())


def test_a_judge_may_have_nothing_to_say() -> None:
    verdict = protocol.run_judge(Says(), subject())
    assert (verdict.grades, verdict.metrics, verdict.rows()) == ([], {}, [])


def test_by_default_grades_of_one_prompt_are_one_cluster() -> None:
    rng = np.random.default_rng(0)
    luck = {f"d{i}": float(rng.integers(0, 10)) for i in range(20)}
    grades = [Grade("fun", luck[name], sample=f"{name}#{k}") for name in luck for k in range(10)]
    metrics = protocol.run_judge(Says(*grades, *(Grade("size", i) for i in range(4))), subject()).metrics
    assert metrics["fun"].n == 20
    alone = mean_interval(list(luck.values()), [1.0] * 20, list(luck))
    assert (metrics["fun"].value, metrics["fun"].n) == (pytest.approx(alone.value), alone.n)
    assert (metrics["fun"].low, metrics["fun"].high) == pytest.approx((alone.low, alone.high))
    assert metrics["size"].n == 4  # grades of the student as a whole stand each for itself


# -------------------------------------------------------------------------------------------------- perplexity

CONTEXT = 16


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(iter([f"Story {i}: the fox ran {'far and ' * (i % 5)}home." for i in range(200)]), 280)


@pytest.fixture(scope="module")
def trained(tokenizer: Tokenizer) -> Any:
    """A tiny student with random weights."""
    import mlx.core as mx

    from distillkit.student import Trained
    from distillkit.student.training.optimizers import flatten

    model = Gpt(Gpt.Options(layers=2, heads=2, width=16, context=CONTEXT)).build(tokenizer.vocab_size)
    rng = np.random.default_rng(0)
    shapes = {name: value.shape for name, value in flatten(model.parameters()).items()}
    model.load_weights([(name, mx.array(rng.normal(0, 0.3, shape).astype("f"))) for name, shape in shapes.items()])
    return Trained(model, tokenizer, CONTEXT)


HELD_OUT = [
    Document("short", "the fox"),
    Document("one", "x"),
    Document("long", "Once the fox ran far and home, and " * 12),
    Document("other", "漢字 \U0001f98a and the fox."),
    Document("exact", "the fox ran home"),
    Document("again", "Story 7: the fox ran far and far and home."),
]


def gpt_in_float64(weights: dict[str, np.ndarray], tokens: Sequence[int], heads: int) -> np.ndarray:
    """Log-probabilities [T, V] after each token, by a second pen."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    erf = np.vectorize(math.erf)
    x = weights["tokens.weight"][list(tokens)] + weights["positions.weight"][: len(tokens)]
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    for block in (f"blocks.{i}" for i in range(layers)):
        parts = np.split(linear(norm(x, f"{block}.attention_norm"), f"{block}.attention.qkv"), 3, axis=-1)
        queries, keys, values = (part.reshape(len(tokens), heads, -1).swapaxes(0, 1) for part in parts)
        scores = queries @ keys.swapaxes(1, 2) / math.sqrt(queries.shape[-1])
        scores = np.where(np.tril(np.ones_like(scores)) > 0, scores, -np.inf)
        seen = (np.exp(log_softmax(scores)) @ values).swapaxes(0, 1).reshape(len(tokens), -1)
        x = x + linear(seen, f"{block}.attention.out")
        hidden = linear(norm(x, f"{block}.hidden_norm"), f"{block}.up")
        x = x + linear(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, f"{block}.down")
    return log_softmax(norm(x, "norm") @ weights["tokens.weight"].T)


def nats_in_float64(trained: Any, text: str) -> tuple[float, int]:
    """A document's surprise, token by token: each within the first of the half-overlapping windows that holds it."""
    from distillkit.student.training.optimizers import flatten

    weights = {name: np.array(value, np.float64) for name, value in flatten(trained.model.parameters()).items()}
    end = trained.tokenizer.end_of_text
    tokens = [end, *trained.tokenizer.encode(text), end]
    nats = 0.0
    for place in range(1, len(tokens)):
        begin = max(0, math.ceil((place - CONTEXT) / (CONTEXT // 2))) * (CONTEXT // 2)
        nats -= gpt_in_float64(weights, tokens[begin:place], heads=2)[-1, tokens[place]]
    return nats, len(tokens) - 1


def test_perplexity_is_what_an_independent_float64_computation_says(trained: Any) -> None:
    verdict = protocol.run_judge(Perplexity(), subject(HELD_OUT, trained))
    nats, tokens = np.array([nats_in_float64(trained, document.text) for document in HELD_OUT]).T
    sizes = np.array([len(document.text.encode()) for document in HELD_OUT])
    assert max(tokens) > 4 * CONTEXT
    loss = nats.sum() / tokens.sum()
    metrics = verdict.metrics
    assert metrics["loss"].value == pytest.approx(loss, rel=1e-5)
    assert metrics["bits_per_byte"].value == pytest.approx(nats.sum() / sizes.sum() / math.log(2), rel=1e-5)
    assert metrics["perplexity"].value == pytest.approx(math.exp(loss), rel=1e-4)
    by_document = {grade.document: grade.score for grade in verdict.grades if grade.criterion == "loss"}
    assert [by_document[document.id] for document in HELD_OUT] == pytest.approx(nats / tokens, rel=1e-5)


def test_intervals_of_perplexity_are_over_documents_and_hold_their_value(trained: Any) -> None:
    metrics = protocol.run_judge(Perplexity(), subject(HELD_OUT, trained)).metrics
    assert set(metrics) == {"loss", "bits_per_byte", "perplexity"}
    for metric in metrics.values():
        assert metric.n == len(HELD_OUT)
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low < metric.value < metric.high
    loss, perplexity = metrics["loss"], metrics["perplexity"]
    for bound in ("value", "low", "high"):
        assert getattr(perplexity, bound) == math.exp(getattr(loss, bound))


def test_a_student_that_knows_nothing_is_as_surprised_as_its_vocabulary_is_large(
    trained: Any, tokenizer: Tokenizer
) -> None:
    import mlx.core as mx

    from distillkit.student import Trained
    from distillkit.student.training.optimizers import flatten

    model = Gpt(Gpt.Options(layers=1, heads=1, width=4, context=CONTEXT)).build(tokenizer.vocab_size)
    model.load_weights([(name, mx.zeros_like(value)) for name, value in flatten(model.parameters()).items()])
    metrics = protocol.run_judge(Perplexity(), subject(HELD_OUT, Trained(model, tokenizer, CONTEXT))).metrics
    assert metrics["perplexity"].value == pytest.approx(tokenizer.vocab_size, rel=1e-5)


def test_loss_weighs_tokens_and_bits_weigh_bytes() -> None:
    student = Scores([Fixed(nats=10, tokens=10, bytes=20), Fixed(nats=90, tokens=30, bytes=180)])
    metrics = protocol.run_judge(Perplexity(), subject(documents(2), student)).metrics
    assert metrics["loss"].value == pytest.approx(100 / 40)
    assert metrics["bits_per_byte"].value == pytest.approx(100 / math.log(2) / 200)
    assert metrics["perplexity"].value == pytest.approx(math.exp(2.5))


def test_one_document_gives_values_without_intervals() -> None:
    metrics = protocol.run_judge(Perplexity(), subject(documents(1), Scores([Fixed(5, 5, 5)]))).metrics
    assert metrics["perplexity"] == Metric(math.e, None, None, 1)


def test_an_empty_document_has_an_end_to_be_surprised_by_and_no_bytes() -> None:
    student = Scores([Fixed(2, 1, 0), Fixed(8, 4, 8)])
    metrics = protocol.run_judge(Perplexity(), subject(documents(2), student)).metrics
    assert metrics["loss"].value == pytest.approx(2)
    assert metrics["bits_per_byte"].value == pytest.approx(1 / math.log(2))


def test_a_student_that_diverged_is_said_and_not_reported() -> None:
    student = Scores([Fixed(math.nan, 5, 5), Fixed(1, 5, 5)])
    with pytest.raises(DistillkitError, match="the judge 'perplexity' gave d0 a score of nan"):
        protocol.run_judge(Perplexity(), subject(documents(2), student))


def test_a_loss_whose_exponential_is_no_number_has_no_perplexity_but_bits_per_byte() -> None:
    bound = Scores([Fixed(6 * 10, 10, 40), Fixed(200 * 10, 10, 40)])  # the interval ends above 709
    metrics = protocol.run_judge(Perplexity(), subject(documents(2), bound)).metrics
    assert metrics["perplexity"].value == pytest.approx(math.exp(103))
    assert metrics["perplexity"].high is None
    assert metrics["loss"].high is not None
    lost = Scores([Fixed(900 * 10, 10, 40), Fixed(910 * 10, 10, 40)])
    assert set(protocol.run_judge(Perplexity(), subject(documents(2), lost)).metrics) == {"loss", "bits_per_byte"}


def test_nothing_to_judge_by_is_said() -> None:
    with pytest.raises(UsageError, match="no held-out documents"):
        protocol.run_judge(Perplexity(), subject())
