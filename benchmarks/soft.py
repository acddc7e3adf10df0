"""The cost of stored soft targets: a step with the top 20 tokens of each position against a cross-entropy step.

    python benchmarks/soft.py [53m | quickstart] [--steps 7] [--mixer topk-tail] [--json FILE]

The same student takes both steps on the same batches, in turn, in one process; the first of each is not counted. Exits
with 1 if the ratio is above 1.15.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import median, report

from distillkit.student import blas

blas.load()

from distillkit_engine import job_of  # noqa: E402
from distillkit_plugins.mixers import Hard  # noqa: E402
from problems import Problem, problem  # noqa: E402

from distillkit.data.batches import Batch  # noqa: E402
from distillkit.plugins.manager import Plugins  # noqa: E402
from distillkit.student.training.loop import TrainingJob, initial_state, train_step  # noqa: E402
from distillkit.student.training.parallel import keep_freed_memory  # noqa: E402

K, LIMIT = 20, 1.15
PLAIN = "cross-entropy"


def main() -> int:
    """Measure and report."""
    options = _options()
    keep_freed_memory()
    chosen = problem(options.problem)
    jobs = dict(_jobs(replace(chosen, teacher=None), options.mixer))
    measured = _measure_in_turn(jobs, options.steps + 1)
    results = {name: {unit: median(values[1:]) for unit, values in times.items()} for name, times in measured.items()}
    rows = [_row(name, result, results[PLAIN], chosen.tokens) for name, result in results.items()]
    ratios = {unit: _ratio(measured, unit) for unit in ("seconds", "processor")}
    title = f"Soft targets, {options.problem}: top {K} of {chosen.config['vocab_size']}, {options.steps} steps of each"
    report(title, rows, {"problem": options.problem, "k": K, "steps": results, "ratios": ratios}, options.json)
    print(
        f"A step with soft targets takes {ratios['seconds']:.3f} times as long as one without, "
        f"{ratios['processor']:.3f} times in CPU time."
    )
    print(f"The limit is {LIMIT}.")
    return int(ratios["seconds"] > LIMIT)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", nargs="?", default="53m", choices=["53m", "quickstart", "tiny"])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--mixer", default="topk-tail")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _jobs(chosen: Problem, mixer: str) -> Iterator[tuple[str, TrainingJob]]:
    """Two jobs for the same student: with hard targets only, and with soft targets."""
    plain = job_of(chosen, Hard())
    yield PLAIN, plain
    soft: Any = Plugins.load().build("mixers", mixer, {})
    yield (
        mixer,
        replace(plain, mixer=soft, batch=lambda step: _with_soft(plain.batch(step), chosen.config["vocab_size"], step)),
    )


def _with_soft(batch: Any, vocab_size: int, seed: int) -> Batch:
    """A batch with stored soft targets: K distinct tokens per position with 90% of the probability mass."""
    random, shape = np.random.default_rng(seed), (*batch.inputs.shape, min(K, vocab_size - 1))
    first = random.integers(0, vocab_size, shape[:2])[..., None]
    ids = (first + np.arange(shape[2]) * (vocab_size // shape[2])) % vocab_size
    logs = np.log(0.9 * random.dirichlet(np.ones(shape[2]), shape[:2]) + 1e-9)
    left, ones = np.full(shape[:2], np.log(0.1)), np.ones(shape[:2])
    soft = {"soft_ids": ids, "soft_log_probs": logs, "soft_residual": left, "has_soft": ones}
    typed = {name: value.astype(np.int32 if name == "soft_ids" else np.float32) for name, value in soft.items()}
    return replace(batch, **typed)


def _measure_in_turn(jobs: dict[str, TrainingJob], steps: int) -> dict[str, dict[str, list[float]]]:
    """The times of each job's steps. All jobs update the same weights."""
    state = initial_state(jobs[PLAIN].model, jobs[PLAIN].settings.optimizer)
    measured: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "processor": []} for name in jobs}
    for step in range(steps):
        for name, job in jobs.items():
            state.step = step  # the same rows for all
            began, used = time.perf_counter(), time.process_time()
            train_step(job, state)
            measured[name]["seconds"].append(time.perf_counter() - began)
            measured[name]["processor"].append(time.process_time() - used)
    return measured


def _ratio(measured: dict[str, dict[str, list[float]]], unit: str) -> float:
    """The median ratio of neighbouring steps, so that other load on the machine affects both alike."""
    plain, soft = (times[unit][1:] for times in measured.values())
    return median([one / other for one, other in zip(soft, plain, strict=True)])


def _row(name: str, result: dict[str, float], plain: dict[str, float], tokens: int) -> dict[str, str]:
    return {
        "step": name,
        "s/step": f"{result['seconds']:.3f}",
        "CPU s": f"{result['processor']:.3f}",
        "tokens/s": f"{tokens / result['seconds']:,.0f}",
        "relative time": f"{result['seconds'] / plain['seconds']:.3f}",
    }


if __name__ == "__main__":
    sys.exit(main())
