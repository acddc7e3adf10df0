"""A shared library, compiled by the test, that answers as an OpenBLAS of a given version does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

# Libraries with the names of scipy-openblas32. One ends the process at its first product, one computes nothing.
STUB = """
#include <signal.h>
void scipy_cblas_sgemm(void) { %s }
void scipy_cblas_dgemm(void) { }
"""


def stub(folder: Path, body: str) -> Path:
    """A folder to put first on Python's path, with a library in the place of the wheel's."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc to build a library")
    lib = folder / "scipy_openblas32" / "lib"
    lib.mkdir(parents=True)
    source = folder / "stub.c"
    source.write_text(STUB % body)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", lib / "libscipy_openblas.so", source], check=True)
    return folder
