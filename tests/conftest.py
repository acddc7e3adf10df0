"""The fast BLAS stands before any test imports mlx, with one thread, so that tests are quick and repeat."""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from distillkit.student import blas

blas.load()
