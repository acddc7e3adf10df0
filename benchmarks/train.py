"""Training speed and memory of distillkit, plain MLX and PyTorch, with the same weights, batches and losses.

    python benchmarks/train.py [53m | quickstart] [--rounds 3] [--steps 3] [--json FILE] [--installed]
                               [--device cpu|gpu]

The engines take turns, each in a separate process, for several rounds. The first step of each is not counted, because
engines compile in it. `--installed` adds plain MLX with the BLAS of its own wheel: one step, which takes minutes.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measure import EngineError, median, report, run_engine

from distillkit.student import blas

blas.load()

from problems import CONFIGS  # noqa: E402

from distillkit.pipeline.bench import FORWARD_FLOPS, TRAINING_FLOPS, matmul_rate, multiply_adds  # noqa: E402
from distillkit.student.model.gpt import GPTConfig  # noqa: E402

INSTALLED = "plain, as installed"
COMPARED_STEPS = 15  # whose losses must agree


def main() -> None:
    """Measure and report."""
    options = _options()
    if options.device:
        blas.use_device(options.device)
    runs = _runs(options.problem, options.rounds, options.steps + 1, options.device)
    if options.installed:
        runs[INSTALLED] = [run_engine(INSTALLED, options.problem, 1)]
    results = {engine: _summary(rounds) for engine, rounds in runs.items()}
    peak = matmul_rate()
    flops, tokens = step_size(options.problem)
    rows = [_row(engine, results, tokens, flops / peak) for engine in results]
    title = f"Training, {options.problem}: {tokens} tokens per step, {options.rounds} rounds of {options.steps} steps"
    print(f"A large matmul on each core at once: {peak / 1e9:.0f} GFLOP/s; a step needs {flops / 1e9:.1f} GFLOP.")
    result = {"problem": options.problem, "engines": results, "matmul_flops": peak, "step_flops": flops}
    report(title, rows, result, options.json)
    _check_losses(results)


def _runs(problem: str, rounds: int, steps: int, device: str | None) -> dict[str, list[dict[str, Any]]]:
    """The runs of each engine. PyTorch is left out if it is missing or fails, for example without a compiler."""
    engines = ["distillkit", "plain", *(["torch", "torch, compiled"] if find_spec("torch") else [])]
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for engine in engines * rounds:
        try:
            if engine in runs:
                runs[engine].append(run_engine(engine, problem, steps, device))
        except EngineError as failure:
            if not engine.startswith("torch"):
                raise
            print(f"left out: {failure}", file=sys.stderr)
            del runs[engine]
    return runs


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", nargs="?", default="53m", choices=["53m", "quickstart"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--installed", action="store_true")
    parser.add_argument("--device", choices=["cpu", "gpu"], help="override the default device of MLX and PyTorch")
    return parser.parse_args()


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "seconds": median([second for run in runs for second in run["seconds"][1:] or run["seconds"]]),
        "first": median([run["seconds"][0] for run in runs]),
        "peak_bytes": median([run["peak_bytes"] for run in runs]),
        "losses": runs[0]["losses"],
        "steps": sum(max(1, len(run["seconds"]) - 1) for run in runs),
    }


def _row(engine: str, results: dict[str, Any], tokens: int, ideal_seconds: float) -> dict[str, str]:
    reference, own = results["distillkit"], results[engine]
    return {
        "engine": engine,
        "s/step": f"{own['seconds']:.3f}",
        "tokens/s": f"{tokens / own['seconds']:,.0f}",
        "time / distillkit's": f"{own['seconds'] / reference['seconds']:.2f}",
        "of matmul peak": f"{ideal_seconds / own['seconds']:.0%}",
        "peak memory": f"{own['peak_bytes'] / 1e6:,.0f} MB",
        "distillkit's memory / this": f"{reference['peak_bytes'] / own['peak_bytes']:.2f}",
        "last loss": f"{own['losses'][-1]:.5f}",
    }


def step_size(problem: str) -> tuple[float, int]:
    """The floating-point operations of a step, without those of the attention scores, and its number of tokens."""
    config, rows = GPTConfig(**CONFIGS[problem]), 4 if problem == "53m" else 8  # type: ignore[arg-type]
    tokens = rows * config.context
    flops = TRAINING_FLOPS * tokens * multiply_adds(config)
    if problem == "quickstart":  # the teacher has no backward pass
        flops += FORWARD_FLOPS * tokens * multiply_adds(replace(config, width=192, hidden=768))
    return float(flops), tokens


def _check_losses(results: dict[str, Any]) -> None:
    """Exit with 1 unless the engines have the same losses, that is, do the same work.

    Only the first steps are compared, because rounding errors grow: after 20 steps of the quickstart PyTorch in float32
    differs by 2e-4 from PyTorch in float64.
    """
    reference = results["distillkit"]["losses"][:COMPARED_STEPS]
    for engine, other in results.items():
        pairs = zip(reference, other["losses"], strict=False)
        difference = max(abs(one - two) / abs(two) for one, two in pairs)
        if difference > 1e-4:
            raise SystemExit(f"the losses of distillkit and {engine} differ by a relative {difference:.1e}")
    print(f"The losses of all engines agree over {len(reference)} steps, to a relative 1e-4.")


if __name__ == "__main__":
    main()
