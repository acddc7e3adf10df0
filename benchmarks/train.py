"""Training speed and memory: distillkit beside plain MLX and PyTorch, the same weights, batches and losses.

    python benchmarks/train.py [53m | quickstart] [--rounds 3] [--steps 3] [--json FILE] [--installed]

Every engine runs in a process of its own, in turn, round after round; the first step of each is not counted, for
engines compile then. `--installed` adds plain MLX with the BLAS of its own wheel, one step of some hundred seconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measure import median, subject, tell

FLOPS_OF_TRAINING = 6  # a multiply-add each in the forward pass, and two in the backward pass
INSTALLED = "plain, as installed"


def main() -> None:
    """Measure, and tell."""
    options = _options()
    engines = ["distillkit", "plain", *(["torch", "torch, compiled"] if find_spec("torch") else [])]
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for _ in range(options.rounds):
        for engine in engines:
            runs[engine].append(subject(engine, options.problem, options.steps + 1))
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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", nargs="?", default="53m", choices=["53m", "quickstart"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--installed", action="store_true")
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
    from problems import SHAPES

    shape, rows = SHAPES[problem], 4 if problem == "53m" else 8
    tokens = rows * shape["context"]
    flops = FLOPS_OF_TRAINING * tokens * multiplied(shape)
    if problem == "quickstart":  # the teacher only reads
        flops += 2 * tokens * multiplied({**shape, "width": 192, "hidden": 768})
    return flops, tokens


def multiplied(shape: dict[str, Any]) -> int:
    """Multiply-adds a token: the weights of all matrices, and what attention does (half of it, being causal)."""
    width = shape["width"]
    block = 4 * width * width + 2 * width * shape["hidden"] + shape["context"] * width
    return int(shape["layers"] * block + width * shape["vocab_size"])


def matmul_rate() -> float:
    """Operations a second of large products, one on each core's stream at once."""
    code = """
import time
from distillkit.student import blas
from distillkit.student.parallel import Lanes
import mlx.core as mx
lanes, n = Lanes(blas.cores() if mx.default_device() == mx.cpu else 1), 1536
a = mx.random.normal((n, n)); mx.eval(a)
times = []
for _ in range(9):
    began = time.perf_counter(); lanes.each(lambda i: a @ (a + i)); times.append(time.perf_counter() - began)
print(lanes.count * 2 * n**3 / sorted(times)[len(times) // 2])
"""
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def _must_agree(results: dict[str, Any]) -> None:
    """The engines do the same work, or comparing them means nothing."""
    ours = results["distillkit"]["losses"]
    for engine, other in results.items():
        pairs = zip(ours, other["losses"], strict=False)
        apart = max(abs(one - two) / abs(two) for one, two in pairs)
        if apart > 1e-4:
            raise SystemExit(f"the losses of distillkit and {engine} differ by {apart:.1e}, relative")
    print("All engines have the same losses to 1e-4, relative.")


if __name__ == "__main__":
    main()
