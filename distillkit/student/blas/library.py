"""Libraries that can multiply matrices for MLX on Linux: where they are, and how they are put in MLX's way.

A library is opened for itself alone; then the names that MLX looks for are defined as the addresses of its functions
(see `elf`). Nothing else that it exports is seen by other libraries of the process.
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

BLAS_NAME = re.compile(r"cblas_\w+|[sdcz][a-z0-9]+_")  # of CBLAS, or of LAPACK in Fortran's spelling
USUAL = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")  # what MLX needs most, where its library cannot be read


@dataclass(frozen=True)
class Candidate:
    """A library that may be there, and the prefix that its names carry."""

    source: str  # as a person would name it
    path: str
    prefix: str = ""


def candidates() -> Iterator[Candidate]:
    """The libraries of this machine, best first."""
    for folder in dict.fromkeys(Path(entry).resolve() for entry in sys.path):  # "" is the current folder
        for path in sorted((folder / "scipy_openblas32" / "lib").glob("libscipy_openblas*.so*")):
            yield Candidate("scipy-openblas32", str(path), "scipy_")
    found = [folder / "libopenblas.so.0" for folder in _system_folders()]
    for path in dict.fromkeys(path.resolve() for path in found if path.is_file()):
        yield Candidate("the system's libopenblas", str(path))


def libmlx() -> Path | None:
    """MLX's library, if it is installed."""
    spec = find_spec("mlx")
    files = [Path(root) / "lib" / "libmlx.so" for root in (spec.submodule_search_locations or [] if spec else [])]
    return next((file for file in files if file.is_file()), None)


def _system_folders() -> Iterator[Path]:
    """Where the dynamic linker or Conda would look."""
    yield from map(Path, filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")))
    yield Path(sys.prefix, "lib")
    for root in ("/usr/local/lib", "/usr/lib", "/lib"):
        yield Path(root, f"{platform.machine()}-linux-gnu")
        yield from (Path(root + bits) for bits in ("64", ""))


@dataclass
class Library:
    """An OpenBLAS that was opened."""

    candidate: Candidate
    handle: ctypes.CDLL
    aliases: ctypes.CDLL | None = field(default=None)

    @classmethod
    def open(cls, candidate: Candidate) -> Library:
        """Load it; an OSError where that is not possible. No other library sees its names yet."""
        library = cls(candidate, ctypes.CDLL(candidate.path, mode=ctypes.RTLD_LOCAL))
        if library.function("cblas_sgemm") is None:
            raise OSError(f"{candidate.path} has no cblas_sgemm")
        return library

    def function(self, name: str) -> ctypes._NamedFuncPointer | None:
        """One of its functions, by its name without the prefix."""
        return getattr(self.handle, self.candidate.prefix + name, None)

    def serve_mlx(self) -> None:
        """Have MLX, once it is imported, find this library's functions first."""
        found = {name: self.function(name) for name in _needed_by_mlx() if BLAS_NAME.fullmatch(name)}
        addresses = {
            name: ctypes.cast(function, ctypes.c_void_p).value or 0 for name, function in found.items() if function
        }
        self.aliases = elf.load_aliases(addresses)

    @property
    def version(self) -> str:
        """Its name and version: "OpenBLAS 0.3.34"."""
        return " ".join(self._text("openblas_get_config").split()[:2]) or "BLAS"

    @property
    def kernel(self) -> str:
        """The CPU that its chosen code was written for, as OpenBLAS names it: "Haswell"."""
        return self._text("openblas_get_corename")

    def _text(self, name: str) -> str:
        function = self.function(name)
        if function is None:
            return ""
        function.restype = ctypes.c_char_p
        return (function() or b"").decode("ascii", "replace")

    @property
    def threads(self) -> int:
        """The threads that one product uses."""
        function = self.function("openblas_get_num_threads")
        return 1 if function is None else int(function())

    def set_threads(self, count: int) -> None:
        """Use this many threads for each product, where the library can be told."""
        if (function := self.function("openblas_set_num_threads")) is not None:
            function(ctypes.c_int(count))


def _needed_by_mlx() -> list[str]:
    """The names that MLX's library takes from others, BLAS and LAPACK among them."""
    path = libmlx()
    return list(USUAL) if path is None else elf.undefined(path)
