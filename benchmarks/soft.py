"""What cached soft targets cost: a step with the 20 likeliest tokens of each place beside a plain cross-entropy step.

    python benchmarks/soft.py [53m | quickstart] [--steps 7] [--mixer topk-tail] [--json FILE]

Both steps are taken by the same student on the same batches, by turns, in one process; the first of each is not
counted. Ends with 1 above the mark of 1.15.
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
from measure import median, tell

from distillkit.student import blas

blas.load()

from distillkit_plugins.mixers import Hard  # noqa: E402
from ours import job_of  # noqa: E402
from problems import Problem, problem  # noqa: E402

from distillkit.data.batches import Batch  # noqa: E402
from distillkit.plugins.manager import Plugins  # noqa: E402
from distillkit.student.training.loop import TrainingJob, initial_state, train_step  # noqa: E402
from distillkit.student.training.parallel import keep_freed_memory  # noqa: E402

K, MARK = 20, 1.15
PLAIN = "cross-entropy"


def main() -> int:
    """Measure, and tell."""
    options = _options()
    keep_freed_memory()
    what = problem(options.problem)
    jobs = dict(_jobs(replace(what, teacher=None), options.mixer))
    taken = _by_turns(jobs, options.steps + 1)
    results = {name: {way: median(values[1:]) for way, values in times.items()} for name, times in taken.items()}
    rows = [_row(name, result, results[PLAIN], what.tokens) for name, result in results.items()]
    ratios = {way: _ratio(taken, way) for way in ("seconds", "processor")}
    title = f"Soft targets, {options.problem}: top {K} of {what.shape['vocab_size']}, {options.steps} steps of each"
    tell(title, rows, {"problem": options.problem, "k": K, "steps": results, "ratios": ratios}, options.json)
    print(
        f"A cached step takes {ratios['seconds']:.3f} times the plain one, {ratios['processor']:.3f} by processor time."
    )
    print(f"The mark is {MARK}.")
    return int(ratios["seconds"] > MARK)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", nargs="?", default="53m", choices=["53m", "quickstart", "tiny"])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--mixer", default="topk-tail")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _jobs(what: Problem, mixer: str) -> Iterator[tuple[str, TrainingJob]]:
    """The same student, with hard targets alone and with soft ones beside them."""
    plain = job_of(what, Hard())
    yield PLAIN, plain
    soft: Any = Plugins.load().build("mixers", mixer, {})
    yield (
        mixer,
        replace(plain, mixer=soft, batch=lambda step: _taught(plain.batch(step), what.shape["vocab_size"], step)),
    )


def _taught(batch: Any, vocabulary: int, seed: int) -> Batch:
    """A batch with stored soft targets: some tokens, none twice, that hold nine tenths of the mass."""
    random, shape = np.random.default_rng(seed), (*batch.inputs.shape, min(K, vocabulary - 1))
    first = random.integers(0, vocabulary, shape[:2])[..., None]
    ids = (first + np.arange(shape[2]) * (vocabulary // shape[2])) % vocabulary
    logs = np.log(0.9 * random.dirichlet(np.ones(shape[2]), shape[:2]) + 1e-9)
    left, ones = np.full(shape[:2], np.log(0.1)), np.ones(shape[:2])
    soft = {"soft_ids": ids, "soft_log_probs": logs, "soft_residual": left, "has_soft": ones}
    kinds = {name: value.astype(np.int32 if name == "soft_ids" else np.float32) for name, value in soft.items()}
    return replace(batch, **kinds)


def _by_turns(jobs: dict[str, TrainingJob], steps: int) -> dict[str, dict[str, list[float]]]:
    """The times of each job's steps, which all move the same weights."""
    state = initial_state(jobs[PLAIN].model, jobs[PLAIN].settings.optimizer)
    taken: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "processor": []} for name in jobs}
    for step in range(steps):
        for name, job in jobs.items():
            state.step = step  # the same rows for all
            began, used = time.perf_counter(), time.process_time()
            train_step(job, state)
            taken[name]["seconds"].append(time.perf_counter() - began)
            taken[name]["processor"].append(time.process_time() - used)
    return taken


def _ratio(taken: dict[str, dict[str, list[float]]], way: str) -> float:
    """The median of the ratios of neighbouring steps, so that a busy minute weighs on both sides alike."""
    plain, soft = (times[way][1:] for times in taken.values())
    return median([one / other for one, other in zip(soft, plain, strict=True)])


def _row(name: str, result: dict[str, float], plain: dict[str, float], tokens: int) -> dict[str, str]:
    return {
        "step": name,
        "s a step": f"{result['seconds']:.3f}",
        "processor s": f"{result['processor']:.3f}",
        "tokens/s": f"{tokens / result['seconds']:,.0f}",
        "times the plain one": f"{result['seconds'] / plain['seconds']:.3f}",
    }


if __name__ == "__main__":
    sys.exit(main())
