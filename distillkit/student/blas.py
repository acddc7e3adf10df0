"""A fast BLAS for MLX on Linux, loaded before MLX is.

MLX's CPU wheel for Linux bundles the reference BLAS, which is some hundred times slower than it need be.
Symbols are looked up in the global table first, so an optimised library that stands there before `mlx.core`
is imported serves every matrix product. On a Mac there is nothing to do: MLX uses Accelerate and the GPU.

Knows nothing of models. Importing it does nothing; `load()` must run before the process first imports mlx.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from ..errors import UsageError


@dataclass(frozen=True)
class Blas:
    """What serves the matrix products: its name, its threads, and what to do if it is slow."""

    name: str
    threads: int
    warning: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {self.threads} thread{'s' if self.threads != 1 else ''}"


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


def cores() -> int:
    """The cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


@cache
def load() -> Blas:
    """Load the best BLAS there is, once. Later calls say what the first one found."""
    if sys.platform != "linux":
        return Blas("MLX's own", 1)
    if "mlx.core" in sys.modules:
        return Blas(
            "MLX's own",
            1,
            "mlx was imported before distillkit, so it keeps its slow BLAS; import distillkit.student first",
        )
    for path in (_packaged(), ctypes.util.find_library("openblas")):
        library = path and _open(path)
        if library:
            return _adopt(library)
    remedy = "pip install cmeel-openblas, or install your system's libopenblas"
    return Blas("reference BLAS", 1, f"no fast BLAS was found, so training is some 30 times slower: {remedy}")


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
        _library.openblas_set_num_threads(count)


_library: ctypes.CDLL | None = None


def _packaged() -> str | None:
    """The library of the wheel `cmeel-openblas`."""
    for folder in map(Path, sys.path):
        path = folder / "cmeel.prefix" / "lib" / "libopenblas.so.0"
        if path.is_file():
            return str(path)
    return None


def _open(path: str) -> ctypes.CDLL | None:
    """Put a library into the global symbol table; if it lacks its Fortran runtime, lend it MLX's."""
    for lend in (False, True):
        if lend:
            _lend_fortran()
        try:
            return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            if "libgfortran" not in str(error):
                return None
    return None


def _lend_fortran() -> None:
    """Load the copy of libgfortran that MLX bundles, under the name that OpenBLAS asks for.

    The wheel of OpenBLAS needs `libgfortran.so.5`, which a bare machine does not have. MLX's wheel brings the
    same library renamed (`libgfortran-<hash>.so.5.0.0`). A copy in memory gets its usual name back; no file
    is written.
    """
    spec = find_spec("mlx")
    roots = [Path(root).parent for root in spec.submodule_search_locations or []] if spec else []
    for folder in (root / "mlx_cpu.libs" for root in roots):
        for library in sorted(folder.glob("libquadmath*")):
            ctypes.CDLL(str(library))
        for library in sorted(folder.glob("libgfortran*")):
            _load_renamed(library, "libgfortran.so.5")


def _load_renamed(library: Path, name: str) -> None:
    """Load a shared library as if its own name (its SONAME) were another, no longer one."""
    old = library.name.encode() + b"\0"
    image = library.read_bytes().replace(old, name.encode().ljust(len(old), b"\0"))
    handle = os.memfd_create(name)
    try:
        with os.fdopen(os.dup(handle), "wb") as stream:
            stream.write(image)
        ctypes.CDLL(f"/proc/self/fd/{handle}", mode=ctypes.RTLD_GLOBAL)
    finally:
        os.close(handle)


def _adopt(library: ctypes.CDLL) -> Blas:
    """Say which library it is, and how many threads it may use."""
    global _library
    _library = library
    library.openblas_get_config.restype = ctypes.c_char_p
    words = library.openblas_get_config().decode("ascii", "replace").split()
    chosen = os.environ.get("OPENBLAS_NUM_THREADS", "")
    # One thread, for MLX's streams use the other cores: OpenBLAS's own threads wait by spinning, and with another
    # busy program on the machine that makes a step many times slower.
    threads = int(chosen) if chosen.isdecimal() and int(chosen) else 1
    library.openblas_set_num_threads(threads)
    return Blas(" ".join(words[:2]), library.openblas_get_num_threads())
