"""Figures of speed and memory: all there, none of them nonsense, the run untouched; engines that are compared agree."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from distillkit.cli.main import cli
from distillkit.core.files import file_digest
from distillkit.core.run_folder import Run, find_run
from distillkit.pipeline.bench import BenchedStudent, measure
from distillkit.pipeline.bench_text import format_benchmark
from distillkit.pipeline.context import Context
from distillkit.plugins.manager import Plugins, current_plugins
from distillkit.recipe.recipe import load
from distillkit.student.generation.generate import generate_tokens
from distillkit.student.training.loop import initial_state, train_step
from support.cli_process import TINY, distillkit
from support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
LATENCY = {"mean", "p50", "p95", "p99"}
SPEEDS = {"tokens_per_second", "batches_per_second", "latency_ms", "flops", "of_matmul_rate"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student (tiny/1) and one whose teacher is in every step (pupil/1)."""
    home = tmp_path_factory.mktemp("bench")
    (home / "tiny.toml").write_text(TINY)
    (home / "pupil.toml").write_text(
        'extends = "tiny.toml"\nname = "pupil"\n[tokenizer]\nkind = "tiny"\n[mixer]\nname = "alpha-temperature"\n'
        '[teacher]\nprovider = "checkpoint"\nmodel = "tiny"\n[train]\naccumulate = 2\n'
    )
    for name in ("tiny", "pupil"):
        done = distillkit(home, "run", f"{name}.toml", "--until", "train")
        assert done.returncode == 0, done.stderr
    return home


def digests(folder: Path) -> dict[str, tuple[str, int]]:
    """What every file holds, and when it was written."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file): (file_digest(file), file.stat().st_mtime_ns) for file in files}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are short, products few: what is measured in this process is looked at, but not for how exact it is."""
    monkeypatch.setattr("distillkit.pipeline.bench.GENERATED_TOKENS", 20)
    monkeypatch.setattr("distillkit.pipeline.bench.MATMUL_REPEATS", 1)
    monkeypatch.setattr("distillkit.pipeline.bench_text.MATMUL_REPEATS", 1)


def printed(home: Path, *words: str) -> str:
    """What the command prints, in this process."""
    done = CliRunner().invoke(cli, ["bench", *words], env={"DISTILLKIT_HOME": str(home), "COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    return done.stdout


def bench(home: Path, *words: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(printed(home, *words, "--json", "--steps", "3"))
    return report


def test_every_figure_is_there_and_positive_and_the_run_is_as_it_was(home: Path) -> None:
    before = digests(home / "reports")
    report = bench(home, "tiny")
    assert digests(home / "reports") == before
    assert (report["schema"], report["run"], report["step"]) == (1, "tiny/1", 6)
    assert (report["batch"], report["accumulate"], report["context"], report["steps"]) == (2, 1, 16, 3)
    assert set(report["forward"]) == SPEEDS
    assert set(report["training"]) == SPEEDS | {"teacher", "precision", "on_policy", "without_asking"}
    for speeds in (report["forward"], report["training"]):
        assert set(speeds["latency_ms"]) == LATENCY
        assert all(value > 0 for value in (*speeds["latency_ms"].values(), speeds["of_matmul_rate"]))
        assert speeds["latency_ms"]["p50"] <= speeds["latency_ms"]["p95"] <= speeds["latency_ms"]["p99"]
        assert speeds["tokens_per_second"] == pytest.approx(speeds["batches_per_second"] * 2 * 16)
        assert speeds["latency_ms"]["p50"] == pytest.approx(1000 / speeds["batches_per_second"])
    assert [row["batch"] for row in report["generation"]] == [1, 16]
    for row in report["generation"]:
        assert row["tokens_per_second"] == pytest.approx(1000 * row["batch"] / row["ms_per_token"])
    unique = report["parameters"]["unique"]
    assert report["memory"]["parameters_fp32_bytes"] == 4 * unique == 2 * report["memory"]["parameters_fp16_bytes"]
    assert report["memory"]["activation_bytes"] > 4 * unique  # the gradients alone
    assert report["matmul_flops_per_second"] > 0
    assert {"cpu", "cores", "device", "blas", "packages"} <= set(report["machine"])


def test_operations_are_those_of_the_shape_and_training_has_three_times_as_many(home: Path) -> None:
    width, hidden, layers, context, vocabulary = 16, 64, 1, 16, 300
    block = 4 * width * width + 2 * width * hidden + context * width
    a_token = layers * block + width * vocabulary
    alone, taught = bench(home, "tiny"), bench(home, "pupil")
    assert alone["forward"]["flops"] == 2 * 2 * 16 * a_token
    assert alone["training"]["flops"] == 3 * alone["forward"]["flops"]
    # The teacher is of the same shape and only reads; two batches make a step.
    assert taught["training"]["flops"] == 2 * (3 + 1) * taught["forward"]["flops"]
    assert (alone["training"]["teacher"], taught["training"]["teacher"]) == (False, True)


def test_training_is_measured_in_the_precision_and_with_the_memory_of_the_recipe(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLKIT_HOME", str(home))
    run = find_run("tiny/1")
    plain, lowered = (BenchedStudent(assembled(run, *how), run) for how in ((), LOWERED))
    for subject, precision, recompute in ((plain, "float32", False), (lowered, "float16", True)):
        job = subject.job()
        assert (job.settings.precision, job.model.recompute) == (precision, recompute)
        train_step(job, initial_state(job.model, job.settings.optimizer))


LOWERED = ("train.precision=float16", "train.checkpointing=true")


def assembled(run: Run, *overrides: str) -> Context:
    plugins = Plugins.load()
    return Context(plugins.check(load(str(run.recipe), overrides)), current_plugins())


ON_POLICY = ("teacher.on_policy=0.5", "teacher.prompt_tokens=4")
ON_THE_WIRE = (
    "teacher.provider=compatible",
    "teacher.model=m",
    'teacher.base_url="http://127.0.0.1:1/v1"',
    "teacher.api=plain",
)


def test_what_the_student_writes_in_a_step_is_measured_with_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILLKIT_HOME", str(home))
    run = find_run("pupil/1")
    plain, writing = (BenchedStudent(assembled(run, *how), run) for how in ((), ON_POLICY))
    written = []

    def counted(model: Any, context: int, prompts: list[list[int]], *more: Any, **how: Any) -> Any:
        written.extend(prompts)
        return generate_tokens(model, context, prompts, *more, **how)

    monkeypatch.setattr("distillkit.student.training.on_policy.generate_tokens", counted)
    for subject in (plain, writing):
        job = subject.job()
        train_step(job, initial_state(job.model, job.settings.optimizer))
    assert [len(prompt) for prompt in written] == [4, 4]  # half of the rows
    assert writing.training_flops - plain.training_flops == plain.forward_flops  # of as many tokens


@pytest.mark.slow
def test_the_table_says_what_a_step_is_made_of_and_that_nobody_elsewhere_was_asked(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLKIT_HOME", str(home))
    run = find_run("pupil/1")
    told = []
    for how in (ON_POLICY, (*ON_POLICY, *ON_THE_WIRE, "teacher.prompts=0", "teacher.top_logprobs=3")):
        report = measure(assembled(run, *how), run, 1)
        told.append(" ".join(format_benchmark(report).split()))
    assert "optimizer, on-policy generation, the teacher's forward pass; on a copy" in told[0]
    assert "optimizer, on-policy generation; teacher not asked; on a copy" in told[1]
    assert all("medians of 1, of 3 for decoding, of 1 for the matrix product." in one for one in told)


@pytest.mark.slow
def test_the_table_says_in_what_precision_training_was_measured_where_it_is_not_float32(
    home: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(home, tmp_path / "copy")
    recipe = own / "reports/tiny/1/recipe.toml"
    recipe.write_text(recipe.read_text().replace('precision = "auto"', 'precision = "float16"'))
    said = [printed(folder, "tiny", "--steps", "1") for folder in (home, own)]
    assert ["float" in one for one in said] == [False, True], said


@pytest.mark.slow
def test_a_batch_can_be_of_another_size_and_the_table_says_what_is_what(home: Path) -> None:
    assert bench(home, "tiny/1", "--batch", "3")["batch"] == 3
    said = printed(home, "pupil", "--steps", "1")
    for words in ("pupil/1", "teacher's forward pass", "p99", "2 of them per training step", "fp16", "OpenBLAS"):
        assert words in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 88


def test_the_device_can_be_said_and_must_be_there(home: Path) -> None:
    assert bench(home, "tiny", "--device", "cpu")["machine"]["device"] == "CPU"
    import mlx.core as mx

    if mx.is_available(mx.gpu):
        assert bench(home, "tiny", "--device", "gpu")["machine"]["device"] == "GPU"
        return
    done = distillkit(home, "bench", "tiny", "--device", "gpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert "MLX has no GPU here" in done.stderr


def test_a_run_that_is_not_there_or_was_never_trained_is_told(home: Path, tmp_path: Path) -> None:
    unknown = distillkit(home, "bench", "tniy")
    assert unknown.returncode == 2
    assert "tiny" in unknown.stderr
    none = distillkit(tmp_path, "bench")
    assert none.returncode == 2
    assert "distillkit run quickstart" in none.stderr
    assert distillkit(home, "run", "tiny.toml", "--until", "label", "--set", "name=idle").returncode == 0
    untrained = distillkit(home, "bench", "idle")
    assert untrained.returncode == 2
    assert "never trained" in untrained.stderr


# The engines that benchmarks/ compares.


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def losses(engine: ModuleType, problems: ModuleType) -> list[float]:
    step = engine.stepper(problems.problem("tiny"))
    return [step(number) for number in range(3)]


def test_ours_and_the_plain_step_have_the_same_losses(engine: Callable[[str], ModuleType]) -> None:
    problems = engine("problems")
    ours = losses(engine("distillkit_engine"), problems)
    assert ours[2] != ours[0]
    assert ours == pytest.approx(losses(engine("plain"), problems), rel=1e-4)


def test_the_two_steps_with_and_without_soft_targets_read_the_same_text(engine: Callable[[str], ModuleType]) -> None:
    soft, problems = engine("soft"), engine("problems")
    plain, taught = (job.batch(3) for job in dict(soft._jobs(problems.problem("tiny"), "topk-tail")).values())
    assert plain.soft_ids is None
    assert (plain.inputs == taught.inputs).all()
    assert (plain.hard == taught.hard).all()
    assert all(len(set(row)) == soft.K for row in taught.soft_ids.reshape(-1, soft.K).tolist())
    mass = np.exp(taught.soft_log_probs).sum(axis=-1) + np.exp(taught.soft_residual)
    np.testing.assert_allclose(mass, 1, atol=1e-4)


@pytest.mark.slow
@pytest.mark.peer
def test_pytorch_has_the_same_losses(
    engine: Callable[[str], ModuleType], peer: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = peer("torch")
    pytorch, problems = engine("pytorch"), engine("problems")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # like to like
    assert losses(pytorch, problems) == pytest.approx(losses(engine("distillkit_engine"), problems), rel=1e-4)
