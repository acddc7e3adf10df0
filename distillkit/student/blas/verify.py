"""Tests a BLAS before it is used: a child process multiplies matrices with it and compares the results with NumPy's.

A library may be built for another CPU, so that its first product crashes the process, or it may compute wrong numbers.
The child is a fork of this process and not a new Python, so that it runs on the same CPU, emulated or not. The result
is cached in the user's cache folder for this CPU and this file, so that a machine tests a library only once.
"""

from __future__ import annotations

import ctypes
import faulthandler
import hashlib
import os
import resource
import signal
import sys
import time
import warnings
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

from ...core import cpu
from ...core.files import file_digest, read_json, write_json
from .library import Candidate, Library, find_libmlx

FORMAT = 1
PASSED = "fine"
TIMEOUT = 120.0  # an emulated CPU is slow
# M, N, K: scalars, thin and square matrices, odd remainders, and sizes larger than the blocks of the kernels.
SHAPES = [(1, 1, 1), (3, 5, 7), (1, 300, 129), (300, 1, 129), (64, 64, 64), (97, 131, 193), (8, 520, 260)]
ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112
# Signals by which faulty code ends a process reproducibly.
CRASHES = {signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP}


def find_fault(candidate: Candidate, *, force: bool = False) -> str:
    """What is wrong with a library on this CPU, or "". Cached; `force` tests it again."""
    cache = _ResultCache(candidate)
    if not force and (known := cache.get()) is not None:
        return known
    fault, reproducible = _run_test(candidate)
    if reproducible:
        cache.put(fault)
    return fault


def results_file() -> Path | None:
    """The cache file, `distillkit/blas.json` in the user's cache folder; None for a user without a home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "distillkit" / "blas.json"


class _ResultCache:
    """The cached result of one library on this CPU. If the file cannot be read or written, the test runs again."""

    def __init__(self, candidate: Candidate) -> None:
        self.file, self.path = results_file(), candidate.path
        self.rows = self._rows()
        status = Path(self.path).stat()
        self.status = [status.st_size, status.st_mtime_ns, status.st_ino]

    def get(self) -> str | None:
        """The cached result, or None."""
        known = self.rows["libraries"].get(self.path)
        if not isinstance(known, dict) or known.get("status") != self.status:
            return None
        fault = self.rows["results"].get(self._key(known["sha256"]))
        return fault if isinstance(fault, str) else None

    def put(self, fault: str) -> None:
        """Store a result."""
        sha256 = file_digest(Path(self.path))
        rows = self._rows()  # another process may have written to it meanwhile
        rows["libraries"][self.path] = {"status": self.status, "sha256": sha256}
        rows["results"][self._key(sha256)] = fault
        if self.file is None:
            return
        with suppress(OSError):
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(self.file, rows)

    def _rows(self) -> dict[str, Any]:
        if self.file is not None:
            with suppress(OSError, ValueError):
                rows = read_json(self.file)
                if isinstance(rows, dict) and rows.get("format") == FORMAT:
                    return rows
        return {"format": FORMAT, "libraries": {}, "results": {}}

    def _key(self, sha256: str) -> str:
        """A hash of what determines the code that runs: CPU, forced kernel, library, and the MLX that calls it."""
        mlx = find_libmlx()
        parts = [cpu.identity(), os.environ.get("OPENBLAS_CORETYPE", ""), sha256, str(mlx and mlx.stat().st_size)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


# ------------------------------------------------------------------------------------------ parent and child


def _run_test(candidate: Candidate) -> tuple[str, bool]:
    """What is wrong, or "", and whether another test would find the same."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():  # Python warns of fork with threads; the child takes no locks
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _child(candidate, writing)
    os.close(writing)
    code = _wait(pid)
    with os.fdopen(reading, "rb") as pipe:
        os.set_blocking(reading, False)
        *_, last = ["starting", *(pipe.read() or b"").decode("utf-8", "replace").splitlines()]
    if last == PASSED:
        return "", True
    if code is None:
        return f"testing it took longer than {TIMEOUT:.0f} s, while {last}", False
    if code < 0:
        return f"a test process ended with {_signal_name(-code)} while {last}", -code in CRASHES
    return last, True


def _wait(pid: int) -> int | None:
    """The exit code of a child, negative for a signal; None if it exceeded the time limit and was killed."""
    deadline = time.monotonic() + TIMEOUT
    try:
        while time.monotonic() < deadline:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except ChildProcessError:  # SIGCHLD is ignored, so the exit code is lost and only the pipe tells the result
        return 1
    return None


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} ({(signal.strsignal(number) or '').lower()})"
    except ValueError:
        return f"signal {number}"


def _child(candidate: Candidate, pipe: int) -> NoReturn:
    """Test a library and exit. Each line in the pipe is a progress message; the last is PASSED or the fault."""
    try:
        _silence_output()
        os.write(pipe, b"importing NumPy\n")
        import numpy  # noqa: F401 - fails here if this CPU cannot run the wheel

        os.write(pipe, b"loading it\n")
        library = Library.open(candidate)
        library.set_threads(1)
        os.write(pipe, b"multiplying matrices\n")
        _check_products(library)
        if find_libmlx() is not None and "mlx.core" not in sys.modules:  # a fork lacks MLX's threads
            os.write(pipe, b"multiplying matrices through MLX\n")
            _check_mlx(library)
        os.write(pipe, PASSED.encode())
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - reported to the parent; the child must not return
        os.write(pipe, f"{error or type(error).__name__}\n".encode())
    os._exit(1)


def _silence_output() -> None:
    """Suppress core dumps and tracebacks, because a crash of the child is an expected outcome."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    faulthandler.disable()
    for number in CRASHES | {signal.SIGINT, signal.SIGTERM}:
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (1, 2):
        os.dup2(null, standard)


# -------------------------------------------------------------------------------------------------- products


def _check_products(library: Library) -> None:
    """Raise an ArithmeticError if a product differs from NumPy's."""
    import numpy as np

    for name, kind, number, digits in (
        ("cblas_sgemm", np.float32, ctypes.c_float, 2e-5),
        ("cblas_dgemm", np.float64, ctypes.c_double, 1e-13),
    ):
        multiply = library.function(name)
        if multiply is None:
            raise ArithmeticError(f"it has no {name}")
        for shape, left, right in product(SHAPES, (False, True), (False, True)):
            a, b, c, expected, allowed = _problem(shape, left, right, kind, digits)
            turned = (TRANSPOSED if flag else PLAIN for flag in (left, right))
            scales = number(0.5), number(2)
            multiply(ROW_MAJOR, *turned, *shape, scales[0], *_pointer(a), *_pointer(b), scales[1], *_pointer(c))
            if not (abs(c - expected) <= allowed).all():
                m, n, k = shape
                raise ArithmeticError(f"{name} computes wrong products ({m} x {k} times {k} x {n})")


def _problem(shape: tuple[int, int, int], left: bool, right: bool, kind: Any, digits: float) -> tuple[Any, ...]:
    """Matrices A, B (each possibly transposed) and C, the expected 0.5 A B + 2 C, and the allowed error."""
    import numpy as np

    random, (m, n, k) = np.random.default_rng(0), shape
    a = _padded(random.standard_normal((k, m) if left else (m, k)), kind)
    b = _padded(random.standard_normal((n, k) if right else (k, n)), kind)
    c = _padded(random.standard_normal((m, n)), kind)
    x, y = (a.T if left else a).astype(float), (b.T if right else b).astype(float)
    expected = 0.5 * np.einsum("mk,kn->mn", x, y) + 2 * c.astype(float)  # einsum calls no BLAS
    allowed = digits * (0.5 * np.einsum("mk,kn->mn", abs(x), abs(y)) + 2 * abs(c))
    return a, b, c, expected, allowed


def _padded(values: Any, kind: Any) -> Any:
    """The values as part of a wider matrix whose other columns are NaN and must not be touched."""
    import numpy as np

    whole = np.full((values.shape[0], values.shape[1] + 3), np.nan, dtype=kind)
    whole[:, :-3] = values
    return whole[:, :-3]


def _pointer(matrix: Any) -> tuple[ctypes.c_void_p, ctypes.c_int]:
    """The address of a matrix, and its leading dimension."""
    return ctypes.c_void_p(matrix.ctypes.data), ctypes.c_int(matrix.strides[0] // matrix.itemsize)


def _check_mlx(library: Library) -> None:
    """Raise an ArithmeticError if a product by MLX differs from NumPy's."""
    library.expose_to_mlx()
    import mlx.core as mx
    import numpy as np

    a, b = (np.random.default_rng(i).standard_normal((130, 130)).astype(np.float32) for i in range(2))
    with mx.stream(mx.cpu):
        found = np.array(mx.array(a) @ mx.array(b))
    if not np.allclose(found, np.einsum("mk,kn->mn", a.astype(float), b.astype(float)), atol=1e-3):
        raise ArithmeticError("MLX computes wrong products with it")
