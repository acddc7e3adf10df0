"""Runs one engine on one problem in a separate process, and prints the times and losses of its steps as JSON.

python benchmarks/run_engine.py ENGINE PROBLEM STEPS [cpu|gpu]
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable

ENGINES = ("distillkit", "plain", "plain, as installed", "torch", "torch, compiled")


def stepper(engine: str, problem: str, device: str | None) -> Callable[[int], float]:
    """The step function of an engine. The order of imports decides which BLAS MLX uses."""
    if engine == "plain, as installed":
        import mlx.core  # noqa: F401 - before distillkit, so it keeps the BLAS of its wheel
    import problems

    if device and not engine.startswith("torch"):
        from distillkit.student import blas

        blas.use_device(device)
    chosen = problems.problem(problem)
    if engine == "distillkit":
        import distillkit_engine

        return distillkit_engine.stepper(chosen)
    if engine.startswith("plain"):
        import plain

        return plain.stepper(chosen)
    import pytorch

    kind = {"cpu": "cpu", "gpu": "cuda", None: None}[device]
    return pytorch.stepper(chosen, compiled=engine.endswith("compiled"), device=kind)


def main(engine: str, problem: str, steps: int, device: str | None = None) -> None:
    """Take the steps. The caller ignores the first, in which engines compile."""
    step = stepper(engine, problem, device)
    seconds, processor, losses = [], [], []
    for number in range(steps):
        began, used = time.perf_counter(), time.process_time()
        losses.append(step(number))
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": seconds, "processor": processor, "losses": losses, "peak_bytes": peak, **_mlx()}))


def _mlx() -> dict[str, int]:
    """MLX's own peak memory, if MLX is loaded."""
    if "mlx.core" not in sys.modules:
        return {}
    return {"mlx_peak_bytes": sys.modules["mlx.core"].get_peak_memory()}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
