"""BLAS libraries for MLX on Linux: where they are, and how MLX is made to use them.

A library is opened with local visibility; then the names that MLX looks for are defined as the addresses of its
functions (see `elf`). Other libraries of the process do not see anything else that it exports.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from . import elf

BLAS_NAME = re.compile(r"cblas_\w+|[sdcz][a-z0-9]+_")  # CBLAS, or LAPACK with Fortran names
COMMON_FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")  # used if MLX's library cannot be read


@dataclass(frozen=True)
class Candidate:
    """A library file, and the prefix of its symbol names."""

    source: str  # for messages
    path: str
    prefix: str = ""


def candidates() -> Iterator[Candidate]:
    """The BLAS libraries of this machine, best first."""
    for folder in dict.fromkeys(Path(entry).resolve() for entry in sys.path):  # "" is the current folder
        for path in sorted((folder / "scipy_openblas32" / "lib").glob("libscipy_openblas*.so*")):
            yield Candidate("scipy-openblas32", str(path), "scipy_")
    found = [folder / "libopenblas.so.0" for folder in _system_folders()]
    for path in dict.fromkeys(path.resolve() for path in found if path.is_file()):
        yield Candidate("the system's libopenblas", str(path))


def find_libmlx() -> Path | None:
    """The path of MLX's shared library, if it is installed."""
    spec = find_spec("mlx")
    files = [Path(root) / "lib" / "libmlx.so" for root in (spec.submodule_search_locations or [] if spec else [])]
    return next((file for file in files if file.is_file()), None)


def _system_folders() -> Iterator[Path]:
    """The folders where the dynamic linker or Conda would look."""
    yield from map(Path, filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")))
    yield Path(sys.prefix, "lib")
    for root in ("/usr/local/lib", "/usr/lib", "/lib"):
        yield Path(root, f"{platform.machine()}-linux-gnu")
        yield from (Path(root + bits) for bits in ("64", ""))


@dataclass
class Library:
    """An OpenBLAS that has been loaded."""

    candidate: Candidate
    handle: ctypes.CDLL
    aliases: ctypes.CDLL | None = field(default=None)

    @classmethod
    def open(cls, candidate: Candidate) -> Library:
        """Load a library without making its names visible to others. Raises OSError if that fails."""
        library = cls(candidate, ctypes.CDLL(candidate.path, mode=ctypes.RTLD_LOCAL))
        if library.function("cblas_sgemm") is None:
            raise OSError(f"{candidate.path} has no cblas_sgemm")
        return library

    def function(self, name: str) -> ctypes._NamedFuncPointer | None:
        """A function by its name without the prefix, or None."""
        return getattr(self.handle, self.candidate.prefix + name, None)

    def expose_to_mlx(self) -> None:
        """Make MLX, once it is imported, use this library's functions."""
        found = {name: self.function(name) for name in _functions_needed_by_mlx() if BLAS_NAME.fullmatch(name)}
        addresses = {
            name: ctypes.cast(function, ctypes.c_void_p).value or 0 for name, function in found.items() if function
        }
        self.aliases = elf.load_aliases(addresses)

    @property
    def version(self) -> str:
        """Name and version: "OpenBLAS 0.3.34"."""
        return " ".join(self._text("openblas_get_config").split()[:2]) or "BLAS"

    @property
    def kernel(self) -> str:
        """The CPU architecture of the chosen kernels, as OpenBLAS names it: "Haswell"."""
        return self._text("openblas_get_corename")

    def _text(self, name: str) -> str:
        function = self.function(name)
        if function is None:
            return ""
        function.restype = ctypes.c_char_p
        return (function() or b"").decode("ascii", "replace")

    @property
    def threads(self) -> int:
        """The number of threads of one product."""
        function = self.function("openblas_get_num_threads")
        return 1 if function is None else int(function())

    def set_threads(self, count: int) -> None:
        """Set the number of threads of each product, if the library allows it."""
        if (function := self.function("openblas_set_num_threads")) is not None:
            function(ctypes.c_int(count))


def _functions_needed_by_mlx() -> list[str]:
    """The names that MLX's library imports, among them those of BLAS and LAPACK."""
    path = find_libmlx()
    return list(COMMON_FUNCTIONS) if path is None else elf.undefined_symbols(path)
