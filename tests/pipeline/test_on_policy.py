"""A teacher with other tokens judges what the student has just written: it reads it, on the wire or here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from distillkit_plugins.checkpoint import Checkpoint
from distillkit_plugins.compatible import Compatible

from distillkit.cli.main import cli
from distillkit.core.errors import DistillkitError, TeacherError, UsageError
from distillkit.core.files import read_jsonl
from distillkit.core.records import LOG_ZERO, Answer, Request
from distillkit.core.run_folder import newest_run
from distillkit.data.batches import Batches
from distillkit.data.corpus import pack_texts
from distillkit.pipeline.checks import check, teacher_errors
from distillkit.pipeline.costs import describe_teacher_cost, estimate_teacher
from distillkit.pipeline.new_run import create_run
from distillkit.pipeline.on_policy import OnPolicyScorer, check_countable_limits, decodable_range
from distillkit.pipeline.pipeline import Pipeline
from distillkit.pipeline.plan import build_plan
from distillkit.pipeline.plan_text import format_plan, format_summary
from distillkit.pipeline.teacher_calls import open_answer_store
from distillkit.student.model.gpt import GPTConfig
from distillkit.student.trained import Trained
from distillkit.student.training.distributed import SINGLE_PROCESS, BatchShard
from distillkit.student.training.loop import batch_arrays
from distillkit.student.training.on_policy import SOFT_ARRAYS, OnPolicyGenerator, soft_target_coverage
from distillkit.teachers.answers.disk import DiskAnswerStore
from distillkit.teachers.asking.label import label
from distillkit.teachers.asking.policy import RequestPolicy
from distillkit.teachers.asking.rate_limits import Clock
from distillkit.testing import check_teacher
from support.chat_provider import Act, Call, Provider, error, serving
from support.soft_targets import FOREIGN, assemble, home, sit, trained
from support.students import f64, lively, log_softmax, tokenizer
from support.training import Fake

__all__ = ["home", "trained"]  # fixtures

READS = ("teacher.signal=top_logprobs", "teacher.on_policy=0.5", "teacher.prompts=0", "mixer.name=topk-tail")

# ------------------------------------------------------------------------------------------------ what is text

HALVES = [
    (["One", " day"], (0, 2)),
    (["", "caf", "é"], (0, 3)),
    ([b"caf", b"\xc3", b"\xa9", b"!"], (0, 4)),
    ([b"\xa9", b"t\xc3\xa9", b"\xc3"], (1, 2)),
    ([b"a", b"\xc3", b"b", b"c"], (0, 1)),
    ([b"\xff", b"a"], (0, 0)),
    ([b"\x80\x80"], (1, 1)),
    ([], (0, 0)),
]


@pytest.mark.parametrize(("words", "expected"), HALVES)
def test_halves_of_characters_at_the_ends_are_left_out(words: list[Any], expected: tuple[int, int]) -> None:
    assert decodable_range([word.encode() if isinstance(word, str) else word for word in words]) == expected


# ---------------------------------------------------------------------------------------------- what it thinks


def test_a_reader_with_the_students_tokens_thinks_what_its_logits_say(home: Path) -> None:
    parts = assemble(*READS, "teacher.top_logprobs=300")
    tokenizer, end = parts.tokenizer, parts.tokenizer.end_of_text
    one, two = tokenizer.encode("One day, a fox"), tokenizer.encode("The moon was big.")
    rows = np.array([[*one, end, *two][:14], [*two, end, *one][:14]], np.int32)
    ids, logs, residuals, has = OnPolicyScorer(parts, {})(rows)
    teacher = Trained.load("tiny")
    for row, tokens in enumerate(rows):
        at = int(np.flatnonzero(tokens == end)[0])
        for start, stop in ((0, at), (at + 1, len(tokens))):
            opinion = log_softmax(f64(teacher.logits(mx.array([[end, *tokens[start : stop - 1].tolist()]])))[0])
            for place in range(max(start, 1), stop):
                found = np.full(opinion.shape[1], LOG_ZERO)
                found[ids[row, place - 1]] = logs[row, place - 1]
                np.testing.assert_allclose(found, opinion[place - start], atol=2e-3)
                assert residuals[row, place - 1] < np.log(1e-3)
        assert has[row].tolist() == [float(place != at) for place in range(1, len(tokens))]


def test_with_other_tokens_it_thinks_something_at_some_places(home: Path) -> None:
    parts = assemble(*FOREIGN, *READS[1:])
    text = "One day, a little fox went home. " * 2
    tokens = np.array([parts.tokenizer.encode(text)], np.int32)
    ids, logs, residuals, has = OnPolicyScorer(parts, {})(tokens)
    assert ids.shape == (1, tokens.shape[1] - 1, 10)
    assert has.mean() > 0.3
    mass = np.exp(logs).sum(axis=-1) + np.exp(residuals)
    np.testing.assert_allclose(mass[has > 0], 1, atol=1e-5)
    assert (logs[has == 0] == LOG_ZERO).all()


def test_a_text_that_is_refused_has_no_soft_target(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = assemble(*FOREIGN, *READS[1:])
    monkeypatch.setattr(Checkpoint, "_score", lambda self, request: (request, Answer("", finish="content_filter")))
    *_, has = OnPolicyScorer(parts, {})(np.array([parts.tokenizer.encode("One day, a fox")], np.int32))
    assert not has.any()


def test_alternatives_that_nobody_asked_for_are_cut(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin may give as many as it likes, in any order."""
    parts = assemble(*READS, "teacher.top_logprobs=4")
    rows, inner = np.array([parts.tokenizer.encode("One day, a fox")], np.int32), Checkpoint._score

    def more(self: Checkpoint, request: Request) -> tuple[Request, Answer]:
        _, answer = inner(self, replace(request, top_logprobs=9))
        tokens = tuple(replace(token, top=token.top[::-1]) for token in answer.tokens)
        return request, replace(answer, tokens=tokens)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "_score", more)
        found = OnPolicyScorer(parts, {})(rows)
    with open_answer_store() as cache:
        cache.folder.rename(cache.folder.with_name("others"))
    for cut, exact in zip(found, OnPolicyScorer(parts, {})(rows), strict=True):
        np.testing.assert_allclose(cut, exact, atol=1e-5)


# ------------------------------------------------------------------------------------------------- in a batch


class Two:
    """Names two tokens at each place, always the same."""

    width = 2

    def __call__(self, rows: Any) -> tuple[Any, ...]:
        size = rows[:, 1:].shape
        logs = np.log(np.broadcast_to([0.6, 0.3], (*size, 2)))
        return np.broadcast_to([3, 4], (*size, 2)), logs, np.full(size, np.log(0.1)), np.ones(size)


@pytest.mark.parametrize("width", [0, 1, 3])
def test_what_is_thought_stands_in_the_batch_beside_what_was_there(width: int) -> None:
    from support.students import batch_of, tiny_model

    arrays = batch_of(1)
    size = arrays["weight"].shape
    if width:
        had = (np.full((*size, width), 7), np.full((*size, width), -1.0), np.full(size, -2.0), np.ones(size))
        arrays |= dict(zip(SOFT_ARRAYS, had, strict=True))
    policy = OnPolicyGenerator(0.5, 3, 8, 0, 1, Two())
    written = policy.generate(tiny_model(), arrays, BatchShard(range(6), (6,), 0, 6), 4)
    own = policy.chosen_rows(6, 4)
    others = [row for row in range(6) if row not in own]
    assert written["soft_ids"].shape == (*size, max(width, 2))
    assert (written["soft_ids"][own, :, :2] == [3, 4]).all()
    assert (written["soft_log_probs"][own, :, 2:] == LOG_ZERO).all()
    np.testing.assert_allclose(np.exp(written["soft_residual"][own]), 0.1)
    assert (written["has_soft"][others] == float(width > 0)).all()
    if width:
        np.testing.assert_array_equal(written["soft_log_probs"][others, :, :width], -1.0)
    assert soft_target_coverage(written) == pytest.approx({"share": 1.0, "mass": 0.9})


@pytest.mark.parametrize("left", [2, 3, 4])
def test_a_last_window_with_less_text_than_the_student_is_given_is_learnt_as_it_is(tmp_path: Path, left: int) -> None:
    words = tokenizer()
    stream = pack_texts([("", "One day a fox met a hen.", True)], words, tmp_path / "packed")
    context = stream.tokens - left
    model = lively(GPTConfig(words.vocab_size, layers=1, heads=2, width=8, hidden=16, context=context))
    batch = batch_arrays(Batches([stream], context, 2, seed=0).batch(0))
    (short,) = np.flatnonzero(batch["weight"].sum(axis=1) == left - 1)
    policy = OnPolicyGenerator(1.0, 3, context, words.end_of_text, 1, Two())
    written = policy.generate(model, batch, BatchShard(range(2), (2,), 0, 2), 0)
    own = left >= 3
    assert written["from_student"][short].any() == own
    assert written["from_student"][1 - short].all()
    assert (written["inputs"][short, :3] == batch["inputs"][short, :3]).all()
    assert written["weight"][short].sum() == (context if own else left - 1)
    if not own:
        np.testing.assert_array_equal(written["hard"][short], batch["hard"][short])
        assert not written["has_soft"][short].any()


# ------------------------------------------------------------------------------------------------- whole runs


def test_a_run_asks_for_what_it_wrote_once_and_comes_to_the_same_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sit(*FOREIGN, *READS[1:], "teacher.prompt_tokens=4")
    rows = [row for row in read_jsonl(first.metrics) if row["kind"] == "train"]
    assert all(row["terms"]["soft"] > 0 and row["terms"]["hard"] > 0 for row in rows)
    mean = sum(row["judged"]["share"] for row in rows) / len(rows)
    assert first.info["training"]["judged"]["share"] == pytest.approx(mean)
    assert 0.1 < mean < 1
    monkeypatch.setattr(Checkpoint, "_score", lambda *_: pytest.fail("it was asked again"))
    again = sit(*FOREIGN, *READS[1:], "teacher.prompt_tokens=4")
    assert again.info["training"]["weights_sha256"] == first.info["training"]["weights_sha256"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ("teacher.provider=compatible", "teacher.model=m", 'teacher.base_url="http://127.0.0.1:1/v1"'),
            "cannot score given text, which teacher.on_policy needs",
        ),
        (("teacher.top_logprobs=0",), "teacher.top_logprobs: found 0, expected at least 1"),
        (("teacher.signal=text", "mixer.name=hard"), "gives text, so it cannot score what the student writes"),
    ],
)
def test_a_teacher_that_cannot_judge_is_refused_by_the_recipe(
    home: Path, overrides: tuple[str, ...], told: str
) -> None:
    with pytest.raises(DistillkitError, match=told):
        check(assemble(*FOREIGN, *READS[1:], *overrides))


@pytest.mark.parametrize("key", ["share", "on_policy"])
def test_a_share_that_comes_to_no_row_is_refused_before_anything_is_spent(home: Path, key: str) -> None:
    with pytest.raises(UsageError, match=rf"teacher\.{key} = 0\.1 of 4 rows per step rounds to 0"):
        check(assemble(*FOREIGN, *READS[1:], f"teacher.{key}=0.1"))
    check(assemble(*FOREIGN, *READS[1:], f"teacher.{key}=0.1", "train.accumulate=2"))
    check(assemble(*FOREIGN, *READS[1:], "teacher.share=0"))  # which leaves the answers out


def test_whoever_reads_in_steps_or_answers_a_file_must_have_a_key_though_no_prompts_are_counted(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISTILLKIT_API_KEY", raising=False)
    monkeypatch.setattr(Compatible, "needs_key", True)
    (home / "prompts.txt").write_text("one\ntwo\n")
    keyed = (*wire("https://a.example/v1"), "teacher.prompts=0")
    of_a_file = ("teacher.prompts_file=prompts.txt", "teacher.signal=text", "mixer.name=hard")
    for parts in (assemble(*FOREIGN, *READS[1:], *keyed), assemble(*keyed, *of_a_file)):
        (missing,) = teacher_errors(parts)
        assert "DISTILLKIT_API_KEY" in missing.hint


def test_the_plan_counts_what_is_to_be_judged_and_says_that_it_may_cost(home: Path) -> None:
    parts = assemble(*FOREIGN, *READS[1:])
    foreseen = build_plan(parts)
    assert foreseen["teacher"]["judged"] == {"rows": 8, "tokens": 8 * 16}
    assert "8 rows that the student writes" in format_plan(foreseen)
    paid = assemble(*FOREIGN, *READS[1:], *wire("https://a.example/v1"))
    assert str(describe_teacher_cost(paid, estimate_teacher(paid))).startswith("8 calls to compatible may cost money")


def test_the_first_lines_of_a_run_say_what_the_teacher_reads_in_its_steps_and_what_that_costs(home: Path) -> None:
    priced = "teacher.price={input=1000.0, output=1.0}"
    foreseen = build_plan(assemble(*FOREIGN, *READS[1:], *wire("https://a.example/v1"), priced))
    assert (
        "0 calls to compatible, 0 answers are cached, 8 rows are scored during training; cost: $0."
        in format_summary(foreseen)
    )


def test_what_is_in_batches_is_told_beside_what_is_known(home: Path) -> None:
    foreseen = build_plan(assemble("teacher.prompts=3"))
    foreseen["teacher"] |= {"calls": 0, "sent_off": 3}
    for told in (format_summary(foreseen), format_plan(foreseen)):
        assert "answers are cached, 3 are in batches" in told


def test_what_is_judged_in_the_steps_is_counted_by_the_stage_that_trains(home: Path) -> None:
    parts = assemble(*FOREIGN, *READS[1:], *wire("https://a.example/v1"), "teacher.prompts=3")
    counts = [estimate_teacher(parts, stages) for stages in (("label",), ("train",), ("label", "train"))]
    assert [(one["calls"], one["judged"]["rows"]) for one in counts if one] == [(3, 0), (0, 8), (3, 8)]


def test_steps_that_were_made_are_not_paid_for_again(home: Path, provider: Provider) -> None:
    provider.rule = echoing
    how = ("teacher.prompt_tokens=4", "teacher.top_logprobs=2", "teacher.price={input=1000.0, output=1.0}")
    run = sit(*FOREIGN, *READS, *wire(provider.url), *how)
    counts = [
        estimate_teacher(assemble(*FOREIGN, *READS, *wire(provider.url), *how, f"train.steps={steps}"), run=run)
        for steps in (4, 6)
    ]
    assert [one["judged"]["rows"] for one in counts if one] == [0, 4]
    provider.forget()
    assert CliRunner().invoke(cli, ["run", run.name, "--resume"], catch_exceptions=False).exit_code == 0
    assert provider.calls == []


def test_who_only_labels_is_not_asked_about_the_steps(home: Path, provider: Provider) -> None:
    provider.rule = echoing
    how = ("teacher.prompt_tokens=4", "teacher.top_logprobs=2", "teacher.price={input=1000.0, output=1.0}")
    words = [word for key in (*FOREIGN, *READS, *wire(provider.url), *how) for word in ("--set", key)]
    assert CliRunner().invoke(cli, ["label", "pupil.toml", *words], catch_exceptions=False).exit_code == 0
    with pytest.raises(UsageError, match=r"8 calls to compatible may cost \$"):
        CliRunner().invoke(cli, ["train", "pupil.toml", *words], catch_exceptions=False)


# ------------------------------------------------------------------------------------------------ on the wire


def wire(url: str) -> tuple[str, ...]:
    """A teacher at an address, as the overrides of a recipe."""
    return ("teacher.provider=compatible", "teacher.api=plain", "teacher.model=m", f'teacher.base_url="{url}"')


def read(url: str, texts: list[str], folder: Path) -> list[Answer]:
    """What a server makes of texts."""
    teacher = Compatible(Compatible.Options(base_url=url, model="m", api="plain"))
    requests = [Request(str(i), text, max_tokens=0, top_logprobs=2) for i, text in enumerate(texts)]
    with DiskAnswerStore(folder) as cache:
        return label(teacher, requests, cache, policy=RequestPolicy(attempts=2)).replies


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving() as server:
        yield server


def echoing(call: Call) -> Act:
    """A server that gives prompts back, nothing being known of the first token, and adds a word as some do."""
    assert call.body["echo"] is True
    words = call.body["prompt"].split(" ")
    pieces = [words[0], *(f" {word}" for word in words[1:]), " more"]
    tops = [None, *({piece: -0.5, " other": -1.5} for piece in pieces[1:])]
    told = {"tokens": pieces, "token_logprobs": [None, *[-0.5] * (len(pieces) - 1)], "top_logprobs": tops}
    return Act(change=lambda body: body["choices"][0].update(text="".join(pieces), logprobs=told))


def test_a_server_that_gives_prompts_back_is_a_reader(provider: Provider, tmp_path: Path) -> None:
    provider.rule = echoing
    (answer,) = read(provider.url, ["One day a fox"], tmp_path)
    assert answer.text == "One day a fox"
    assert [token.bytes for token in answer.tokens] == [b"One", b" day", b" a", b" fox", b" more"]
    assert answer.tokens[0].top == ()
    assert answer.tokens[1].top == ((b" day", -0.5), (b" other", -1.5))


def test_a_server_that_does_not_is_named_before_anything_is_read(provider: Provider, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not return 2 log-probabilities for each token of a given text"):
        read(provider.url, ["One day a fox"], tmp_path)
    assert provider.prompts == ["one, two,"]


def test_a_text_that_comes_back_changed_is_asked_for_again_and_then_told(provider: Provider, tmp_path: Path) -> None:
    provider.rule = echoing
    read(provider.url, ["One day"], tmp_path)  # so that it is known to read

    def changed(call: Call) -> Act:
        return Act(change=lambda body: body["choices"][0].update(text="Two days", logprobs=None))

    provider.rule = changed
    provider.forget()
    with pytest.raises(TeacherError, match="the prompt that was to be scored was not returned"):
        read(provider.url, ["The moon was"], tmp_path)
    assert len(provider.calls) == 2


def wired(url: str, *overrides: str) -> tuple[str, ...]:
    """A recipe whose teacher is asked in the step, over the wire."""
    return (*FOREIGN, *READS, *wire(url), "teacher.prompt_tokens=4", "teacher.top_logprobs=2", *overrides)


def test_what_reading_costs_is_written_down_step_by_step(home: Path, provider: Provider) -> None:
    """For a process that is killed writes nothing at its end, and a budget holds for all sittings."""
    known: list[float] = []

    def rule(call: Call) -> Act:
        known.append(newest_run("pupil").info.get("spent", {}).get("requests", 0))
        return echoing(call)

    provider.rule = rule
    run = sit(*wired(provider.url, "teacher.concurrency=1"))
    steps = [before for before, after in zip([0, *known], known, strict=False) if after > before]
    assert 0 < len(steps) < len(known)
    assert run.info["spent"]["requests"] >= known[-1] > 0


def test_training_alone_asks_before_it_spends(home: Path, provider: Provider) -> None:
    provider.rule = echoing
    how = ("teacher.prompt_tokens=4", "teacher.top_logprobs=2", "teacher.price={input=1000.0, output=1.0}")
    run = sit(*FOREIGN, *READS, *wire(provider.url), *how, stages=("label",))
    with pytest.raises(UsageError, match=r"8 calls to compatible may cost \$"):
        CliRunner().invoke(cli, ["train", run.name], catch_exceptions=False)
    assert provider.calls == []
    assert CliRunner().invoke(cli, ["train", run.name, "--yes"], catch_exceptions=False).exit_code == 0
    assert run.info["spent"]["usd"] > 0


def test_a_text_of_spaces_is_read_like_any_other(home: Path, provider: Provider) -> None:
    provider.rule = echoing
    parts = assemble(*wired(provider.url))
    *_, has = OnPolicyScorer(parts, {})(
        np.array([[*parts.tokenizer.encode("\n \n"), parts.tokenizer.end_of_text]], np.int32)
    )
    assert provider.prompts == ["one, two,", "\n \n"]
    assert has.any()


class Unhurried:
    """Time that passes only where somebody waits, and when which call was made."""

    def __init__(self) -> None:
        self.time = 0.0

    async def sleep(self, seconds: float) -> None:
        self.time += seconds

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.time, self.sleep, lambda: self.time)


def reads(reader: OnPolicyScorer, texts: int) -> None:
    """So many steps, each with a row that nobody has read."""
    for number in range(texts):
        reader(np.array([reader.context.tokenizer.encode(f"One day a fox {number}")], np.int32))


def test_a_minute_is_that_of_all_steps(home: Path, provider: Provider) -> None:
    provider.rule, unhurried = echoing, Unhurried()
    parts = assemble(*wired(provider.url, "teacher.requests_per_minute=6"))
    reader = OnPolicyScorer(parts, {})
    reader.policy = replace(reader.policy, clock=unhurried.clock)
    reads(reader, 20)
    assert len(provider.calls) == 21  # and one to find out whether it reads
    assert unhurried.time >= 60 * 20 / 6 - 1


def test_what_a_plea_to_slow_down_taught_holds_in_the_next_step_too(home: Path, provider: Provider) -> None:
    provider.rule, unhurried = echoing, Unhurried()
    reader = OnPolicyScorer(assemble(*wired(provider.url)), {})
    reader.policy = replace(reader.policy, clock=unhurried.clock)
    reads(reader, 1)
    before = reader.policy.rate_state.concurrency
    provider.rule = lambda call: echoing(call) if len(provider.calls) > 3 else error(429, "slow", retry_after="9")
    reads(reader, 2)
    assert unhurried.time >= 9
    assert reader.policy.rate_state.concurrency < before


@pytest.mark.parametrize(
    "limit",
    ["max_usd=1.0", "max_requests=9", "max_tokens_total=9", "requests_per_minute=9", "tokens_per_minute=9"],
)
def test_limits_that_each_process_would_count_for_itself_are_refused(
    home: Path, provider: Provider, limit: str
) -> None:
    parts = assemble(*wired(provider.url, f"teacher.{limit}"))
    told = f"teacher.{limit.partition('=')[0]} cannot be enforced across 2 processes"
    with pytest.raises(UsageError, match=told):
        Pipeline(parts, create_run(parts, {}), Fake(0, [0, 0])).execute(("label", "train"))
    assert not provider.calls


@pytest.mark.parametrize(
    ("url", "price", "told"),
    [
        ("http://127.0.0.1:1/v1", "{input=0.0, output=1.0}", "cannot be counted across 2 processes"),
        ("https://a.example/v1", None, "cannot be counted across 2 processes"),
        ("https://a.example/v1", "{input=0.0, output=0.0}", None),
        ("http://127.0.0.1:1/v1", None, None),
    ],
)
def test_several_processes_read_only_what_costs_nothing(
    home: Path, url: str, price: str | None, told: str | None
) -> None:
    parts = assemble(*wired(url, *([f"teacher.price={price}"] if price else [])))
    with pytest.raises(UsageError, match=told) if told else nullcontext():
        check_countable_limits(parts, Fake(0))
    check_countable_limits(parts, SINGLE_PROCESS)


def test_without_such_limits_several_processes_may_read(home: Path, provider: Provider) -> None:
    parts = assemble(*wired(provider.url, "teacher.requests_per_day=9"))
    check_countable_limits(parts, Fake(0))
    check_countable_limits(assemble(*wired(provider.url, "teacher.max_requests=9")), SINGLE_PROCESS)


def test_a_served_student_reads_as_it_does_at_home(home: Path, tmp_path: Path) -> None:
    from distillkit.student.serving.server import StudentServer
    from support.serving import serving as served

    student = Trained.load("tiny")
    texts = ["One day, a fox", "The hen 🦊 and the moon"]
    with served(StudentServer(student, ["m"])) as url:
        found = read(url, texts, tmp_path / "wire")
    teacher = Checkpoint(Checkpoint.Options(model="tiny"))
    for text, answer in zip(texts, found, strict=True):
        own = teacher.answer(Request("1", text, max_tokens=0, top_logprobs=2))
        assert (answer.text, own.text) == (text, text)
        assert [token.bytes for token in answer.tokens] == [token.bytes for token in own.tokens]
        ours, theirs = ([value for token in one.tokens for _, value in token.top] for one in (own, answer))
        assert theirs == pytest.approx(ours, abs=1e-3)


def test_a_teacher_that_says_it_reads_is_held_to_it(home: Path) -> None:
    assert "scores given text" in check_teacher(Checkpoint, {"model": "tiny"})
