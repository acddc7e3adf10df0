"""Training speed and memory: distillkit beside plain MLX and PyTorch, the same weights, batches and losses.

    python benchmarks/train.py [53m | quickstart] [--rounds 3] [--steps 3] [--json FILE] [--installed]
                               [--device cpu|gpu]

Every engine runs in a process of its own, in turn, round after round; the first step of each is not counted, for
engines compile then. `--installed` adds plain MLX with the BLAS of its own wheel, one step of some hundred seconds.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measure import Failed, median, subject, tell

from distillkit.student import blas

blas.load()

from problems import SHAPES  # noqa: E402

from distillkit.pipeline.bench import FORWARD, TRAINING, matmul_rate, multiply_adds  # noqa: E402
from distillkit.student.model.gpt import GPTConfig  # noqa: E402

INSTALLED = "plain, as installed"
TOLD = 15  # steps


def main() -> None:
    """Measure, and tell."""
    options = _options()
    if options.device:
        blas.use_device(options.device)
    runs = _runs(options.problem, options.rounds, options.steps + 1, options.device)
    if options.installed:
        runs[INSTALLED] = [subject(INSTALLED, options.problem, 1)]
    results = {engine: _summary(some) for engine, some in runs.items()}
    peak = matmul_rate()
    flops, tokens = figures(options.problem)
    rows = [_row(engine, results, tokens, flops / peak) for engine in results]
    title = f"Training, {options.problem}: {tokens} tokens a step, {options.rounds} rounds of {options.steps} steps"
    print(f"A large matmul, as many at once as cores: {peak / 1e9:.0f} GFLOP/s; a step needs {flops / 1e9:.1f} GFLOP.")
    result = {"problem": options.problem, "engines": results, "matmul_flops": peak, "step_flops": flops}
    tell(title, rows, result, options.json)
    _must_agree(results)


def _runs(problem: str, rounds: int, steps: int, device: str | None) -> dict[str, list[dict[str, Any]]]:
    """What each engine took, round after round. A peer that cannot run, say for want of a compiler, is left out."""
    engines = ["distillkit", "plain", *(["torch", "torch, compiled"] if find_spec("torch") else [])]
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for engine in engines * rounds:
        try:
            if engine in runs:
                runs[engine].append(subject(engine, problem, steps, device))
        except Failed as failure:
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
    parser.add_argument("--device", choices=["cpu", "gpu"], help="not what MLX and PyTorch choose")
    return parser.parse_args()


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "seconds": median([second for run in runs for second in run["seconds"][1:] or run["seconds"]]),
        "first": median([run["seconds"][0] for run in runs]),
        "peak_bytes": median([run["peak_bytes"] for run in runs]),
        "losses": runs[0]["losses"],
        "steps": sum(max(1, len(run["seconds"]) - 1) for run in runs),
    }


def _row(engine: str, results: dict[str, Any], tokens: int, least: float) -> dict[str, str]:
    ours, here = results["distillkit"], results[engine]
    return {
        "engine": engine,
        "s a step": f"{here['seconds']:.3f}",
        "tokens/s": f"{tokens / here['seconds']:,.0f}",
        "distillkit is faster by": f"{here['seconds'] / ours['seconds']:.2f}",
        "of the matmul rate": f"{least / here['seconds']:.0%}",
        "peak memory": f"{here['peak_bytes'] / 1e6:,.0f} MB",
        "distillkit's share of it": f"{ours['peak_bytes'] / here['peak_bytes']:.2f}",
        "last loss": f"{here['losses'][-1]:.5f}",
    }


def figures(problem: str) -> tuple[float, int]:
    """The floating-point operations of a step (without attention's and the teacher's backward), and its tokens."""
    shape, rows = GPTConfig(**SHAPES[problem]), 4 if problem == "53m" else 8  # type: ignore[arg-type]
    tokens = rows * shape.context
    flops = TRAINING * tokens * multiply_adds(shape)
    if problem == "quickstart":  # the teacher only reads
        flops += FORWARD * tokens * multiply_adds(replace(shape, width=192, hidden=768))
    return float(flops), tokens


def _must_agree(results: dict[str, Any]) -> None:
    """The engines do the same work, or comparing them means nothing.

    Only the first steps tell: what rounding does grows with each, and after twenty of the quickstart's PyTorch in
    float32 is itself 2e-4 from PyTorch in float64.
    """
    ours = results["distillkit"]["losses"][:TOLD]
    for engine, other in results.items():
        pairs = zip(ours, other["losses"], strict=False)
        apart = max(abs(one - two) / abs(two) for one, two in pairs)
        if apart > 1e-4:
            raise SystemExit(f"the losses of distillkit and {engine} differ by {apart:.1e}, relative")
    print(f"All engines have the same losses over {len(ours)} steps, to 1e-4, relative.")


if __name__ == "__main__":
    main()
