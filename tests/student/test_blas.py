"""The BLAS that MLX uses on Linux: found, tested on this CPU, put in MLX's way, and told apart by its kernel."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distillkit.student import blas
from distillkit.student.blas import elf, library, verify
from distillkit.student.blas.library import Candidate
from support.elf import stub

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="on a Mac MLX brings a fast BLAS")

LOAD = "from distillkit.student import blas; found = blas.load()\n"
TIME = """
import time
import mlx.core as mx
mx.set_default_device(mx.cpu)
a, b = mx.ones((1024, 256)), mx.ones((256, 1024))
mx.eval(a, b)
def once():
    begun = time.perf_counter()
    mx.eval(a @ b)
    return time.perf_counter() - begun
print(min(once() for _ in range(5)))
"""


def python(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def packaged() -> Candidate:
    return next(found for found in library.candidates() if found.source == "scipy-openblas32")


def test_the_loaded_blas_is_at_least_five_times_faster() -> None:
    slow, fast = float(python(TIME)), float(python(LOAD + TIME))
    assert fast < slow / 5


def test_the_kernel_is_named() -> None:
    name, kernel, source = python(LOAD + "print(found.name, found.kernel, found.source, sep=chr(10))").splitlines()
    assert name.startswith("OpenBLAS 0.3.")
    assert kernel.isalnum()
    assert source == "scipy-openblas32"


def test_mlx_before_distillkit_is_told() -> None:
    said = python("import mlx.core\n" + LOAD + "print(found.warning)")
    assert said == ("mlx was imported before distillkit, so it keeps its slow BLAS; import distillkit.student first")


def test_threads_are_those_that_were_asked_for() -> None:
    script = LOAD + "print(found.threads); blas.set_threads(1); print(blas._library.threads)"
    assert python(script, OPENBLAS_NUM_THREADS="2").split() == ["2", "1"]


def test_importing_the_student_does_not_import_mlx_or_numpy() -> None:
    kept = python("import sys, distillkit.student; print([m for m in sys.modules if m in ('mlx.core', 'numpy')])")
    assert kept == "[]"


def test_the_student_offers_its_names_late() -> None:
    names = "s.Trained.__name__, s.Sampling.__name__, hasattr(s, 'nothing')"
    assert python(f"import distillkit.student as s; print({names})") == "Trained Sampling False"


# ------------------------------------------------------------------------------------------ the next candidate


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise(SIGILL);", "a test process ended with SIGILL (illegal instruction) while multiplying matrices"),
        ("raise(SIGSEGV);", "a test process ended with SIGSEGV (segmentation fault) while multiplying matrices"),
        ("", "cblas_sgemm computes wrong products (1 x 1 times 1 x 1)"),
    ],
)
def test_a_library_that_fails_its_test_is_not_used_and_one_line_says_so(tmp_path: Path, body: str, reason: str) -> None:
    folder = stub(tmp_path, body)
    script = LOAD + "print(found.warning); print(found.source)"
    environment = {"PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(tmp_path)}
    for _ in range(2):  # tested, then known
        warning, source = python(script, **environment).splitlines()
        path = folder / "scipy_openblas32" / "lib" / "libscipy_openblas.so"
        assert warning == f"scipy-openblas32 ({path}) was not used: {reason}; scipy-openblas32 is used instead"
        assert source == "scipy-openblas32"


def test_a_folder_that_is_twice_on_the_path_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lib = tmp_path / "scipy_openblas32" / "lib"
    lib.mkdir(parents=True)
    (lib / "libscipy_openblas.so").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), f"{tmp_path}/"])
    found = [candidate.path for candidate in library.candidates() if candidate.source == "scipy-openblas32"]
    assert found == [str(lib / "libscipy_openblas.so")]


def test_a_damaged_library_is_not_used(tmp_path: Path) -> None:
    path = stub(tmp_path, "") / "scipy_openblas32" / "lib" / "libscipy_openblas.so"
    path.write_bytes(path.read_bytes()[:200])
    warning = python(LOAD + "print(found.warning)", PYTHONPATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert warning.startswith(f"scipy-openblas32 ({path}) was not used: {path}: ")


def test_without_any_library_mlxs_own_is_used_and_the_remedy_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)  # as in a process that has not imported it yet
    monkeypatch.setattr(blas, "candidates", lambda: iter(()))
    found = blas.load.__wrapped__()
    assert found.name == "MLX's reference BLAS"
    assert found.warning.startswith(
        "no fast BLAS works here, so MLX's own is used and training is some 30 times slower"
    )
    assert found.warning.endswith("pip install scipy-openblas32, or install your system's libopenblas")


def test_results_are_kept_for_this_file_and_a_forced_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tested = []
    monkeypatch.setattr(verify, "_run_test", lambda candidate: (tested.append(candidate), ("", True))[1])
    copy = tmp_path / "libscipy_openblas.so"
    shutil.copy(packaged().path, copy)
    candidate = Candidate("a copy", str(copy), "scipy_")
    assert [verify.find_fault(candidate) for _ in range(3)] == ["", "", ""]
    assert len(tested) == 1
    verify.find_fault(candidate, force=True)
    assert len(tested) == 2
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    verify.find_fault(candidate)
    assert len(tested) == 3
    os.utime(copy, ns=(1, 1))
    verify.find_fault(candidate)
    assert len(tested) == 4
    file = verify.results_file()
    assert file is not None
    assert file.stat().st_mode & 0o022 == 0
    assert file.parent.stat().st_mode & 0o777 == 0o700
    file.write_text("{nonsense")
    verify.find_fault(candidate)
    assert len(tested) == 5


def test_a_test_that_takes_too_long_is_ended_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(verify, "TIMEOUT", 0.0)
    assert verify.find_fault(packaged()).startswith("testing it took longer than 0 s")
    monkeypatch.undo()
    assert verify.find_fault(packaged()) == ""


def test_a_library_is_tested_in_a_process_that_uses_mlx_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    mx.eval(mx.ones((2, 2)) @ mx.ones((2, 2)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(verify, "TIMEOUT", 60.0)
    assert verify.find_fault(packaged(), force=True) == ""


@pytest.mark.parametrize("where", ["a thread", "a process that ignores its children"])
def test_a_library_is_tested_wherever_it_is_asked_for(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN if where != "a thread" else signal.SIG_DFL)
    try:
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(verify.find_fault, packaged()) if where == "a thread" else None
            assert (found.result() if found else verify.find_fault(packaged())) == ""
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert verify.results_file() is None
    assert verify.find_fault(packaged()) == ""


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "distillkit").write_text("a file in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert verify.find_fault(packaged()) == ""


def test_a_library_of_the_system_comes_after_the_wheels_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").symlink_to(tmp_path / "one")
    (tmp_path / "one" / "libopenblas.so.0").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path / 'one'}:{tmp_path / 'other'}")
    first, second, *_ = library.candidates()
    assert first.source == "scipy-openblas32"
    assert second == Candidate("the system's libopenblas", str(tmp_path / "one" / "libopenblas.so.0"))
    assert [found.path for found in library.candidates()].count(second.path) == 1


# ------------------------------------------------------------------------------------------------------ names


def test_an_alias_is_found_by_the_dynamic_linker() -> None:
    getpid = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    assert getpid is not None
    names = {f"distillkit_test_{i}": getpid for i in range(50)}
    held = elf.load_aliases(names)
    assert {ctypes.CDLL(None)[name]() for name in names} == {os.getpid()}
    assert held


def test_only_names_of_blas_and_lapack_are_given_to_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr(elf, "load_aliases", given.update)
    opened = library.Library.open(packaged())
    opened.expose_to_mlx()
    assert {"cblas_sgemm", "cblas_dgemm", "ssyevd_"} <= given.keys()
    assert all(library.BLAS_NAME.fullmatch(name) for name in given)
    sgemm = opened.function("cblas_sgemm")
    assert given["cblas_sgemm"] == ctypes.cast(sgemm, ctypes.c_void_p).value
