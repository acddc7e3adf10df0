"""A fast BLAS for MLX on Linux, loaded before MLX is, and the device that MLX computes on.

MLX's CPU wheel for Linux bundles the reference BLAS, which is up to a hundred times slower than an optimised one.
Symbols are looked up in the global table first, so a library whose functions are known there before `mlx.core` is
imported serves every matrix product (see `library`). Each candidate is tested on this CPU first (see `verify`).
On a Mac there is nothing to do: MLX uses Accelerate and the GPU.

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

__all__ = ["Blas", "feed_streams", "insist_on_mlx", "load", "on_gpu", "set_threads", "use"]

REMEDY = "pip install scipy-openblas32, or install your system's libopenblas"


@dataclass(frozen=True)
class Blas:
    """The library that serves the matrix products, and what to do if it is slow."""

    name: str  # with its version: "OpenBLAS 0.3.34"
    threads: int
    kernel: str = ""  # the CPU whose code OpenBLAS chose: "Haswell"
    source: str = ""  # where the library comes from
    warning: str = ""

    def __str__(self) -> str:
        kernel = f" ({self.kernel} kernels)" if self.kernel else ""
        return f"{self.name}{kernel}, {self.threads} thread{'s' if self.threads != 1 else ''}"


WIDE = ("MLX_BFS_MAX_WIDTH", "1000")


def on_gpu() -> bool:
    """Whether MLX will compute on a GPU, as far as can be told without importing it."""
    if sys.platform == "darwin":
        return True
    return any(any(distributions(name=name)) for name in ("mlx-cuda-12", "mlx-cuda-13"))


def feed_streams() -> None:
    """Have MLX feed several streams at once.

    It walks a graph with many results depth first, one after another, and so feeds streams one after another, too,
    unless told to take more results abreast. It reads this once, at the process's first evaluation.
    """
    if not on_gpu():
        os.environ.setdefault(*WIDE)


def use(device: str) -> None:
    """Compute on the CPU or the GPU from now on, whatever MLX would choose. Before the first evaluation."""
    import mlx.core as mx

    chosen = mx.Device({"cpu": mx.cpu, "gpu": mx.gpu}[device])
    if not mx.is_available(chosen):
        raise UsageError(f"MLX has no {device.upper()} here", "Leave --device out: MLX chooses what there is.")
    mx.set_default_device(chosen)
    if device == "cpu":
        os.environ.setdefault(*WIDE)


@cache
def load() -> Blas:
    """Load the best BLAS that passes its test on this CPU, once; later calls return the same."""
    if sys.platform != "linux":
        return Blas("MLX's own", 1)
    if "mlx.core" in sys.modules:
        return Blas(
            "MLX's own",
            1,
            warning="mlx was imported before distillkit, so it keeps its slow BLAS; import distillkit.student first",
        )
    cpu.require_supported()
    refused: list[str] = []
    for candidate in candidates():
        try:
            found = verify.fault(candidate)
            if not found:
                return _adopt(Library.open(candidate), refused)
        except OSError as error:
            found = str(error)
        refused.append(f"{candidate.source} ({candidate.path}) was not used: {found}")
    slow = f"no fast BLAS works here, so MLX's own is used and training is some 30 times slower: {REMEDY}"
    return Blas("MLX's reference BLAS", 1, source="MLX's wheel", warning="; ".join([*refused, slow]))


def insist_on_mlx() -> None:
    """Say what to install when MLX, or on Linux its backend, is not there."""
    spec = find_spec("mlx")
    roots = [Path(root) for root in spec.submodule_search_locations or []] if spec else []
    if not roots or (sys.platform == "linux" and not any((root / "lib" / "libmlx.so").is_file() for root in roots)):
        raise UsageError(
            "MLX has no backend here", 'Install one: pip install "distillkit[cpu]" (or cuda12 or cuda13 for a GPU).'
        )


def set_threads(count: int) -> None:
    """Use this many threads from now on, where the library can be told."""
    if _library is not None:
        _library.set_threads(count)


_library: Library | None = None


def _adopt(library: Library, refused: list[str]) -> Blas:
    """Have MLX use a library, with as many threads as are wanted."""
    global _library
    library.serve_mlx()
    chosen = os.environ.get("OPENBLAS_NUM_THREADS", "")
    # One thread, for MLX's streams use the other cores: OpenBLAS's own threads wait by spinning, and with another
    # busy program on the machine that makes a step many times slower.
    library.set_threads(int(chosen) if chosen.isdecimal() and int(chosen) else 1)
    _library = library
    warning = f"{'; '.join(refused)}; {library.candidate.source} is used instead" if refused else ""
    return Blas(library.version, library.threads, library.kernel, library.candidate.source, warning)
