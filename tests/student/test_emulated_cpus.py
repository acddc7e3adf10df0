"""Real commands under emulated CPUs (QEMU's user mode): older x86-64 CPUs, and Arm.

QEMU emulates no AVX-512, and /proc/cpuinfo remains that of the host.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import pytest

from distillkit.core import cpu
from distillkit.student.blas import elf
from distillkit.student.blas.library import BLAS_NAME
from support.elf import stub
from support.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="QEMU emulates processes of Linux only")
slow = pytest.mark.slow

SECONDS = 400  # for one process; alone on a core it takes some ten seconds
# What a CPU has, what it lacks, and the kernels of OpenBLAS that fit it.
CPUS = {
    "Nehalem": ({"sse4_2", "popcnt"}, {"avx", "avx2", "fma"}, {"Nehalem"}),
    "SandyBridge": ({"avx"}, {"avx2", "fma"}, {"Sandybridge"}),
    "Haswell": ({"avx", "avx2", "fma"}, {"avx512f"}, {"Haswell"}),
    "EPYC": ({"avx", "avx2", "fma"}, {"avx512f"}, {"Haswell", "Zen"}),
}
TOO_OLD = "core2duo"
PROBLEM = "cannot run the installed NumPy: it lacks popcnt, sse4_1, sse4_2"
# The command line without its large products, which only measure speed and take a minute when emulated.
PROGRAM = """
from distillkit.pipeline import doctor, plan
from distillkit.cli.main import main
doctor.SIZE, doctor.ROUNDS = 96, 1
plan._matmul_rate = lambda: 1e9
main()
"""
RECIPE = """
name = "tiny"
[data]
source = "tales"
stories = 10
held_out = 0.2
[tokenizer]
vocab_size = 300
[student]
layers = 1
heads = 2
width = 32
context = 16
[train]
steps = 2
batch_size = 2
learning_rate = 1e-2
warmup = 0
evaluate_every = 2
checkpoint_every = 2
"""


def unavailable(reason: str) -> NoReturn:
    """Skip a test; where peers are required, fail it."""
    if os.environ.get("DISTILLKIT_PEERS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


def emulator(machine: str) -> str:
    name = f"qemu-{machine}-static"
    return shutil.which(name) or unavailable(f"{name} is not installed (Debian: qemu-user-static)")


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Nothing known of any BLAS, and no kernel forced."""
    kept = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    return {
        **kept,
        "XDG_CACHE_HOME": str(folder / "xdg"),
        "DISTILLKIT_HOME": str(folder),
        "OPENBLAS_NUM_THREADS": "1",
        **more,
    }


def python(model: str, *arguments: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run this very Python, with all that is installed for it, on a model of CPU ("": on this machine's)."""
    command = [sys.executable]
    if model:
        if platform.machine() != "x86_64":
            pytest.skip("needs an x86-64 machine")
        real = str(Path(sys.executable).resolve())  # named as in the virtual environment, to find its packages
        command = [emulator("x86_64"), "-cpu", model, "-0", sys.executable, real]
    return run([*command, *arguments], folder, environment(folder, **more))


def run(command: list[str], folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=folder, env=variables)
    told = [line for line in done.stderr.splitlines(keepends=True) if "TCG doesn't support requested" not in line]
    done.stderr = "".join(told)
    return done


# ---------------------------------------------------------------------------------------------- x86-64 CPUs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all CPUs: runs share their corpus, and results of a BLAS are kept by CPU."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "tiny.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def native_losses(home: Path) -> list[float]:
    return losses("", home)


def losses(model: str, home: Path) -> list[float]:
    """Train two steps: the loss of each, and of the held-out text."""
    done = python(model, "-c", PROGRAM, "train", "tiny.toml", folder=home)
    assert done.returncode == 0, done.stderr
    newest = max((home / "reports" / "tiny").iterdir(), key=lambda path: int(path.name))
    rows = [json.loads(line) for line in (newest / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


@slow
@pytest.mark.parametrize("model", CPUS)
def test_doctor_finds_the_features_and_the_kernel_of_a_cpu(model: str, home: Path) -> None:
    before = results(home)
    done = python(model, "-c", PROGRAM, "doctor", "--json", folder=home)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    has, lacks, kernels = CPUS[model]
    features = set(report["cpu"]["features"])
    assert has <= features
    assert not lacks & features
    assert report["blas"]["source"] == "scipy-openblas32"
    assert report["blas"]["kernel"] in kernels
    faults = [row["fault"] for row in report["blas"]["candidates"] if row["source"] == "scipy-openblas32"]
    assert faults == [None]
    assert results(home) > before, "the BLAS was not tested anew on this CPU"


def results(home: Path) -> int:
    """How many results of testing a BLAS are kept."""
    file = home / "xdg" / "distillkit" / "blas.json"
    return len(json.loads(file.read_text())["results"]) if file.exists() else 0


@slow
@pytest.mark.parametrize("model", CPUS)
def test_training_gives_the_losses_of_this_machine(model: str, home: Path, native_losses: list[float]) -> None:
    assert len(native_losses) == 3
    assert losses(model, home) == pytest.approx(native_losses, abs=1e-4)


# ----------------------------------------------------------------------------------- a CPU that is too old

# Every command in one process: starting an emulated Python takes seconds.
EVERY_COMMAND = """
import contextlib, io, json, sys
from distillkit.cli.main import cli, main
for name in sorted({*cli.commands, "plugins-own"} - {"doctor"}):
    sys.argv, said, code = ["distillkit", name], io.StringIO(), None
    with contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([name, code, said.getvalue()]))
"""


@slow
def test_where_numpy_cannot_run_a_command_says_so_and_no_signal_ends_it(tmp_path: Path) -> None:
    done = python(TOO_OLD, "-m", "distillkit", "train", "quickstart", folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    told, remedy = done.stderr.splitlines()
    assert told.startswith("error: this CPU (")
    assert told.endswith(PROBLEM)
    assert 'pip install "numpy<2.4"' in remedy
    assert python(TOO_OLD, "-c", "import numpy", folder=tmp_path).returncode == -signal.SIGILL


@slow
def test_where_numpy_cannot_run_every_command_but_doctor_says_so(tmp_path: Path) -> None:
    plant_command(tmp_path)
    done = python(TOO_OLD, "-c", EVERY_COMMAND, folder=tmp_path, **first_on_path(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 15
    for name, code, said in rows:
        assert (name, code) == (name, 2)
        assert PROBLEM in said, name


@slow
def test_where_numpy_cannot_run_doctor_reports_it(tmp_path: Path) -> None:
    plant_command(tmp_path)
    done = python(TOO_OLD, "-m", "distillkit", "doctor", "--json", folder=tmp_path, **first_on_path(tmp_path))
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert not report["ok"]
    assert report["blas"] is report["mlx"] is None
    (problem,) = [row for row in report["problems"] if row["level"] == "error"]
    assert problem["what"].endswith(PROBLEM)
    assert 'pip install "numpy<2.4"' in problem["remedy"]


def plant_command(folder: Path) -> None:
    """A package with a command that imports NumPy, as if it was installed."""
    (folder / "plugins_own.py").write_text("import numpy\n")
    info = folder / "plugins_own-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugins-own\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[distillkit.commands]\nplugins-own = plugins_own\n")


def first_on_path(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))}


# --------------------------------------------------------------------------------------------- the test child


@slow
@pytest.mark.parametrize("model", ["Nehalem", ""])
def test_the_process_that_tests_a_blas_runs_on_the_same_cpu(model: str, tmp_path: Path) -> None:
    if not model and "avx2" not in cpu.features():
        pytest.skip("this CPU has no AVX2")
    stub(tmp_path, '__asm__("vpaddd %ymm0, %ymm0, %ymm0; vzeroupper");')  # of AVX2, which Nehalem lacks
    script = "from distillkit.student import blas; found = blas.load(); print(found.warning); print(found.kernel)"
    done = python(model, "-c", script, folder=tmp_path, **first_on_path(tmp_path))
    assert done.returncode == 0, done.stderr
    warning, kernel = done.stdout.splitlines()
    killed = "a test process ended with SIGILL (illegal instruction) while multiplying matrices"
    reason = killed if model else "cblas_sgemm computes wrong products (1 x 1 times 1 x 1)"
    path = tmp_path / "scipy_openblas32" / "lib" / "libscipy_openblas.so"
    assert warning == f"scipy-openblas32 ({path}) was not used: {reason}; scipy-openblas32 is used instead"
    assert kernel == model or not model


# ------------------------------------------------------------------------------------------------------- Arm

PLATFORMS = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 40))]
# An older CPU, one with vectors of 512 bits, and what QEMU emulates unless told otherwise.
ARM = {"cortex-a72": "cortexa57", "a64fx": "a64fx", "max": None}
PRODUCT = """
import json
from distillkit.core import cpu
from distillkit.student import blas
found = blas.load()
import mlx.core as mx
import numpy as np
a, b = (np.random.default_rng(i).standard_normal((70, 70)).astype(np.float32) for i in range(2))
with mx.stream(mx.cpu):
    wrong = abs(np.array(mx.array(a) @ mx.array(b)) - a.astype(float) @ b.astype(float)).max()
print(json.dumps({
    "kernel": found.kernel, "warning": found.warning, "wrong": float(wrong), "features": sorted(cpu.features()),
    "identity": cpu.identity(),
}))
"""


def wheels(folder: Path, python_version: str, *names: str) -> list[Path]:
    """Download wheels for Arm, in the versions that are installed here."""
    pinned = [f"{name}=={version(name)}" for name in names]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"),
            *("--only-binary=:all:", "--python-version", python_version, "--dest", folder, *platforms, *pinned),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        unavailable(f"wheels for Arm cannot be downloaded: {done.stderr.strip()[-300:]}")
    return list(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def arm_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels of MLX's backend and of OpenBLAS, unpacked."""
    folder = tmp_path_factory.mktemp("arm")
    for wheel in wheels(folder, platform.python_version(), "mlx-cpu", "scipy-openblas32"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


def test_aliases_for_arm_hold_absolute_addresses(tmp_path: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf (Debian: binutils)")
    addresses = {"cblas_sgemm": 0x0000_FFFF_8000_1000, "ssyevd_": 0x0000_AAAA_0000_0040}
    image = tmp_path / "aliases.so"
    image.write_bytes(elf.build_alias_library(addresses, "aarch64"))

    def told(*options: str) -> list[list[str]]:
        done = subprocess.run(["readelf", "--wide", *options, image], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return [line.split() for line in done.stdout.splitlines()]

    assert ["Machine:", "AArch64"] in told("--file-header")
    rows = [row for row in told("--use-dynamic", "--symbols") if "FUNC" in row]
    assert [(row[7], int(row[1], 16)) for row in rows] == list(addresses.items())
    assert {tuple(row[3:7]) for row in rows} == {("FUNC", "GLOBAL", "DEFAULT", "ABS")}


@slow
def test_openblas_for_arm_has_all_that_mlx_for_arm_needs_of_blas_and_lapack(arm_libraries: Path) -> None:
    (openblas,) = arm_libraries.glob("scipy_openblas32/lib/libscipy_openblas*.so")
    exported = {name for name, section, _ in elf.symbols(openblas.read_bytes()) if section != elf.SHN_UNDEF}
    needed = {
        name for name in elf.undefined_symbols(arm_libraries / "mlx" / "lib" / "libmlx.so") if BLAS_NAME.fullmatch(name)
    }
    assert {"cblas_sgemm", "cblas_dgemm", "ssyevd_"} <= needed
    assert "scipy_cblas_sgemm" in exported
    assert {f"scipy_{name}" for name in needed} <= exported


@pytest.fixture(scope="module")
def arm_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's Python for Arm in a folder of its own: nothing of this machine's packages is changed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("needs apt-get and dpkg to unpack a Python for Arm")
    folder = tmp_path_factory.mktemp("debian")
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()
    options = [
        f"Dir::State={folder / 'state'}",
        f"Dir::State::status={folder / 'status'}",
        f"Dir::Cache={folder / 'cache'}",
        "APT::Architecture=arm64",
        "APT::Architectures::=arm64",
        "APT::Sandbox::User=",
        "Acquire::Languages=none",
        "Debug::NoLocking=1",
    ]
    command = ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
    install = ["install", "--yes", "--no-install-recommends", "--download-only"]
    for step in (["update"], [*install, "python3-minimal", "libpython3-stdlib", "libstdc++6"]):
        done = subprocess.run([*command, *step], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a Python for Arm cannot be downloaded: {done.stderr.strip()[-300:]}")
    root = folder / "root"
    for package in sorted((folder / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg", "--extract", package, root], check=True)
    return root


@slow
def test_mlx_multiplies_right_on_arm_and_with_its_kernels(arm_root: Path, tmp_path: Path) -> None:
    interpreter = max((arm_root / "usr" / "bin").glob("python3.[0-9]*"))
    python_version = interpreter.name.removeprefix("python")
    site = tmp_path / "site"
    for wheel in wheels(tmp_path, python_version, "numpy", "mlx", "mlx-cpu", "scipy-openblas32"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    (site / "distillkit").symlink_to(ROOT / "distillkit")
    found: dict[str, dict[str, Any]] = {}
    for model in ARM:
        command = [emulator("aarch64"), "-cpu", model, "-L", str(arm_root), str(interpreter), "-c", PRODUCT]
        done = run(command, tmp_path, environment(tmp_path, PYTHONPATH=str(site)))
        assert done.returncode == 0, done.stderr
        found[model] = json.loads(done.stdout)
        assert found[model]["wrong"] < 1e-4, model
        assert "avx" not in found[model]["features"]  # of the host
    assert len({one["identity"] for one in found.values()}) == len(ARM)
    for model, kernel in ARM.items():
        used, warning = found[model]["kernel"], found[model]["warning"]
        if kernel is None:  # with the kernel that it chooses there, products are wrong under QEMU 7.2
            assert used or "computes wrong products" in warning
        else:
            assert (used, warning) == (kernel, "")
