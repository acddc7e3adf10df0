"""Tests a BLAS before it is trusted: a child process multiplies matrices with it and compares them with NumPy.

A library may be built for another CPU, and then its first product ends the process; or it may compute wrong numbers.
The child is a fork of this process and not a new Python, so that it runs on the same CPU, emulated or not. The result
is kept in the user's cache folder for this CPU and this very file: a machine tests a library once.
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
from .library import Candidate, Library, libmlx

FORMAT = 1
FINE = "fine"
SECONDS = 120.0  # an emulated CPU is slow
# M, N, K: single numbers, thin and square, with odd remainders, and larger than the blocks of the kernels.
SHAPES = [(1, 1, 1), (3, 5, 7), (1, 300, 129), (300, 1, 129), (64, 64, 64), (97, 131, 193), (8, 520, 260)]
ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112
# Signals by which faulty code ends a process, here and the next time.
CRASHES = {signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP}


def fault(candidate: Candidate, *, again: bool = False) -> str:
    """What is wrong with a library on this CPU, or ""; tested if `again` is set or no result is kept."""
    cached = _Results(candidate)
    if not again and (known := cached.get()) is not None:
        return known
    found, lasting = _tested(candidate)
    if lasting:
        cached.put(found)
    return found


def results_file() -> Path | None:
    """Where results are kept: `distillkit/blas.json` in the user's cache folder; None for a user without a home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "distillkit" / "blas.json"


class _Results:
    """The kept result of one library on this CPU. A file that cannot be read or written only costs time."""

    def __init__(self, candidate: Candidate) -> None:
        self.file, self.path = results_file(), candidate.path
        self.rows = self._rows()
        status = Path(self.path).stat()
        self.status = [status.st_size, status.st_mtime_ns, status.st_ino]

    def get(self) -> str | None:
        """What was found before, or None."""
        known = self.rows["libraries"].get(self.path)
        if not isinstance(known, dict) or known.get("status") != self.status:
            return None
        found = self.rows["results"].get(self._key(known["sha256"]))
        return found if isinstance(found, str) else None

    def put(self, found: str) -> None:
        """Keep what was found."""
        sha256 = file_digest(Path(self.path))
        rows = self._rows()  # another process may have added to them meanwhile
        rows["libraries"][self.path] = {"status": self.status, "sha256": sha256}
        rows["results"][self._key(sha256)] = found
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
        """All that decides which code runs: the CPU, a forced kernel, the library, and the MLX that calls it."""
        mlx = libmlx()
        parts = [cpu.identity(), os.environ.get("OPENBLAS_CORETYPE", ""), sha256, str(mlx and mlx.stat().st_size)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


# ------------------------------------------------------------------------------------------ parent and child


def _tested(candidate: Candidate) -> tuple[str, bool]:
    """What is wrong, and whether another test would surely find the same."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():  # Python warns of forks beside threads; the child takes none of their locks
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _child(candidate, writing)
    os.close(writing)
    code = _wait(pid)
    with os.fdopen(reading, "rb") as pipe:
        os.set_blocking(reading, False)
        *_, last = ["starting", *(pipe.read() or b"").decode("utf-8", "replace").splitlines()]
    if last == FINE:
        return "", True
    if code is None:
        return f"testing it took longer than {SECONDS:.0f} s, while {last}", False
    if code < 0:
        return f"a test process ended with {_name(-code)} while {last}", -code in CRASHES
    return last, True


def _wait(pid: int) -> int | None:
    """The exit code of a child, negative for a signal, or None if it did not end in time and was killed."""
    deadline = time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except ChildProcessError:  # it has ended, in a process that ignores SIGCHLD: only the pipe says how
        return 1
    return None


def _name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} ({(signal.strsignal(number) or '').lower()})"
    except ValueError:
        return f"signal {number}"


def _child(candidate: Candidate, pipe: int) -> NoReturn:
    """Test a library and end. Each line in the pipe says what is being done; the last is FINE, or what is wrong."""
    try:
        _silence()
        os.write(pipe, b"importing NumPy\n")
        import numpy  # noqa: F401 - a wheel that this CPU cannot run is found out here

        os.write(pipe, b"loading it\n")
        library = Library.open(candidate)
        library.set_threads(1)
        os.write(pipe, b"multiplying matrices\n")
        _check_products(library)
        if libmlx() is not None and "mlx.core" not in sys.modules:  # its threads are not in this child
            os.write(pipe, b"multiplying matrices through MLX\n")
            _check_mlx(library)
        os.write(pipe, FINE.encode())
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - it is told to the parent, and the child must not return
        os.write(pipe, f"{error or type(error).__name__}\n".encode())
    os._exit(1)


def _silence() -> None:
    """A crash of the child is expected: no core dump, no traceback."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    faulthandler.disable()
    for number in CRASHES | {signal.SIGINT, signal.SIGTERM}:
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (1, 2):
        os.dup2(null, standard)


# -------------------------------------------------------------------------------------------------- products


def _check_products(library: Library) -> None:
    """Raise an ArithmeticError where a product is not what NumPy says."""
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
    """Matrices A, B (transposed if asked for) and C, what 0.5 AB + 2 C is, and how far off it may be."""
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
    """The values as a part of a wider matrix, whose other columns a product must leave alone."""
    import numpy as np

    whole = np.full((values.shape[0], values.shape[1] + 3), np.nan, dtype=kind)
    whole[:, :-3] = values
    return whole[:, :-3]


def _pointer(matrix: Any) -> tuple[ctypes.c_void_p, ctypes.c_int]:
    """Its address, and the number of elements from row to row."""
    return ctypes.c_void_p(matrix.ctypes.data), ctypes.c_int(matrix.strides[0] // matrix.itemsize)


def _check_mlx(library: Library) -> None:
    """Raise an ArithmeticError where a product of MLX is not what NumPy says."""
    library.serve_mlx()
    import mlx.core as mx
    import numpy as np

    a, b = (np.random.default_rng(i).standard_normal((130, 130)).astype(np.float32) for i in range(2))
    with mx.stream(mx.cpu):
        found = np.array(mx.array(a) @ mx.array(b))
    if not np.allclose(found, np.einsum("mk,kn->mn", a.astype(float), b.astype(float)), atol=1e-3):
        raise ArithmeticError("MLX computes wrong products with it")
