"""Loads a fast BLAS for MLX on Linux before MLX itself, and selects the device that MLX computes on.

MLX's CPU wheel for Linux bundles the reference BLAS, which is up to a hundred times slower than an optimised one. The
dynamic linker looks symbols up in the global table first, so a library whose functions are there before `mlx.core` is
imported serves every matrix product (see `library`). Each candidate is first tested on this CPU (see `verify`). On a
Mac there is nothing to do: MLX uses Accelerate and the GPU.

Knows nothing of models. Importing it loads nothing; `load()` must run before the process first imports mlx.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from ...core import cpu
from ...core.errors import UsageError
from . import verify
from .library import Library, candidates

__all__ = ["Blas", "load", "on_gpu", "require_mlx", "set_threads", "use_device", "widen_graph_evaluation"]

INSTALL_HINT = "pip install scipy-openblas32, or install your system's libopenblas"


@dataclass(frozen=True)
class Blas:
    """The library that computes the matrix products, and a warning if it is slow."""

    name: str  # with the version: "OpenBLAS 0.3.34"
    threads: int
    kernel: str = ""  # the CPU architecture whose kernels OpenBLAS chose: "Haswell"
    source: str = ""  # where the library comes from
    warning: str = ""

    def __str__(self) -> str:
        kernel = f" ({self.kernel} kernels)" if self.kernel else ""
        return f"{self.name}{kernel}, {self.threads} thread{'s' if self.threads != 1 else ''}"


GRAPH_WIDTH = ("MLX_BFS_MAX_WIDTH", "1000")


def on_gpu() -> bool:
    """Whether MLX will compute on a GPU, judged by the platform and the installed packages, without importing it."""
    if sys.platform == "darwin":
        return True
    return any(any(distributions(name=name)) for name in ("mlx-cuda-12", "mlx-cuda-13"))


def widen_graph_evaluation() -> None:
    """Set MLX_BFS_MAX_WIDTH so that MLX feeds several streams at once.

    By default MLX traverses a graph with many outputs depth first, one output after another, and so feeds one stream
    after another. It reads this variable once, at the first evaluation of the process.
    """
    if not on_gpu():
        os.environ.setdefault(*GRAPH_WIDTH)


def use_device(device: str) -> None:
    """Override MLX's default device with "cpu" or "gpu". Must be called before the first evaluation."""
    import mlx.core as mx

    chosen = mx.Device({"cpu": mx.cpu, "gpu": mx.gpu}[device])
    if not mx.is_available(chosen):
        raise UsageError(f"MLX has no {device.upper()} here", "Leave out --device: MLX chooses an available device.")
    mx.set_default_device(chosen)
    if device == "cpu":
        os.environ.setdefault(*GRAPH_WIDTH)


@cache
def load() -> Blas:
    """Load the best BLAS that passes its test on this CPU. Later calls return the first result."""
    if sys.platform != "linux":
        return Blas("MLX's own", 1)
    if "mlx.core" in sys.modules:
        return Blas(
            "MLX's own",
            1,
            warning="mlx was imported before distillkit, so it keeps its slow BLAS; import distillkit.student first",
        )
    cpu.require_supported()
    rejected: list[str] = []
    for candidate in candidates():
        try:
            fault = verify.find_fault(candidate)
            if not fault:
                return _activate(Library.open(candidate), rejected)
        except OSError as error:
            fault = str(error)
        rejected.append(f"{candidate.source} ({candidate.path}) was not used: {fault}")
    slow = f"no fast BLAS works here, so MLX's own is used and training is some 30 times slower: {INSTALL_HINT}"
    return Blas("MLX's reference BLAS", 1, source="MLX's wheel", warning="; ".join([*rejected, slow]))


def require_mlx() -> None:
    """Raise a `UsageError` that says what to install if MLX, or on Linux its backend, is missing."""
    spec = find_spec("mlx")
    roots = [Path(root) for root in spec.submodule_search_locations or []] if spec else []
    if not roots or (sys.platform == "linux" and not any((root / "lib" / "libmlx.so").is_file() for root in roots)):
        raise UsageError(
            "MLX has no backend here", 'Install one: pip install "distillkit[cpu]" (or cuda12 or cuda13 for a GPU).'
        )


def set_threads(count: int) -> None:
    """Set the number of threads of each product, if the library allows it."""
    if _library is not None:
        _library.set_threads(count)


_library: Library | None = None


def _activate(library: Library, rejected: list[str]) -> Blas:
    """Make MLX use a library, with one thread or as many as OPENBLAS_NUM_THREADS says."""
    global _library
    library.expose_to_mlx()
    chosen = os.environ.get("OPENBLAS_NUM_THREADS", "")
    # One thread, because MLX's streams use the other cores. OpenBLAS's own threads wait by spinning, which makes a step
    # many times slower when another program is busy on the machine.
    library.set_threads(int(chosen) if chosen.isdecimal() and int(chosen) else 1)
    _library = library
    warning = f"{'; '.join(rejected)}; {library.candidate.source} is used instead" if rejected else ""
    return Blas(library.version, library.threads, library.kernel, library.candidate.source, warning)
