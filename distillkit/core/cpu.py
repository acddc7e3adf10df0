"""The CPU: its model, its cores, and the instruction sets available to programs.

On x86-64 Linux the instruction sets come from glibc, which asks the CPU itself: what a virtual machine masks or an
emulator lacks is not listed. On other systems they come from /proc/cpuinfo. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .errors import UsageError

CPUINFO = Path("/proc/cpuinfo")

# Where CPUID reports a feature: (leaf, register, bit). Leaves as glibc numbers them: 0 is 1, 1 is 7, 2 is 0x80000001;
# registers are EAX, EBX, ECX, EDX.
CPUID = {
    "sse3": (0, 2, 0),
    "ssse3": (0, 2, 9),
    "fma": (0, 2, 12),
    "cx16": (0, 2, 13),
    "sse4_1": (0, 2, 19),
    "sse4_2": (0, 2, 20),
    "popcnt": (0, 2, 23),
    "avx": (0, 2, 28),
    "f16c": (0, 2, 29),
    "bmi1": (1, 1, 3),
    "avx2": (1, 1, 5),
    "bmi2": (1, 1, 8),
    "avx512f": (1, 1, 16),
    "avx512dq": (1, 1, 17),
    "avx512cd": (1, 1, 28),
    "avx512bw": (1, 1, 30),
    "avx512vl": (1, 1, 31),
    "avx512_vnni": (1, 2, 11),
    "amx_bf16": (1, 3, 22),
    "amx_tile": (1, 3, 24),
    "lahf_lm": (2, 2, 0),
}

AT_HWCAPS = (16, 26)  # AT_HWCAP and AT_HWCAP2, for getauxval

# The instruction sets of x86-64-v2, which NumPy's wheels need. MLX's wheel needs no more than any x86-64 CPU has.
X86_64_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "sse3", "sse4_1", "sse4_2", "ssse3"})


def cores() -> int:
    """The number of cores available to this process."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


@cache
def model() -> str:
    """The CPU's name, as the operating system reports it."""
    fields = dict(_cpuinfo())
    if "model name" in fields:
        return fields["model name"]
    if "CPU part" in fields:  # Arm CPUs give numbers only
        return f"{platform.machine()} implementer {fields.get('CPU implementer')} part {fields['CPU part']}"
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.processor()
    return platform.processor() or platform.machine()


@cache
def features() -> frozenset[str]:
    """The instruction sets available here, under the names of /proc/cpuinfo; empty if unknown."""
    registers = _cpuid()
    if registers is None:  # only then: an emulator may show the /proc/cpuinfo of its host
        field = "flags" if platform.machine() in ("x86_64", "AMD64") else "Features"
        return frozenset(dict(_cpuinfo()).get(field, "").split())
    return frozenset(name for name, (leaf, register, bit) in CPUID.items() if registers[leaf][register] >> bit & 1)


@cache
def identity() -> str:
    """An identifier of the type of CPU: its model, signature and features."""
    return "; ".join([platform.machine(), model(), _signature(), " ".join(sorted(features()))])


def missing_features() -> frozenset[str]:
    """The instruction sets that the installed NumPy needs and this CPU lacks; empty if unknown."""
    lacking = X86_64_V2 - features()
    if platform.machine() not in ("x86_64", "AMD64") or not features() or not lacking or not _numpy_needs_v2():
        return frozenset()
    return lacking


def require_supported() -> None:
    """Raise UsageError if importing NumPy would end the process with an illegal instruction."""
    if lacking := missing_features():
        raise UsageError(
            f"this CPU ({model()}) cannot run the installed NumPy: it lacks {', '.join(sorted(lacking))}",
            "NumPy's wheels need an x86-64-v2 CPU (2009 or later). In a virtual machine, choose a newer CPU model; "
            'on an old CPU, install an older NumPy: pip install "numpy<2.4".',
        )


def _numpy_needs_v2() -> bool:
    from importlib.metadata import PackageNotFoundError, version  # a late import keeps --help fast

    try:
        major, minor = version("numpy").split(".")[:2]
    except (PackageNotFoundError, ValueError):
        return False
    return (int(major), int(minor)) >= (2, 4)


def _cpuinfo() -> Iterator[tuple[str, str]]:
    """The fields of the first CPU in /proc/cpuinfo."""
    try:
        with CPUINFO.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if not line.strip():
                    return
                name, _, value = line.partition(":")
                yield name.strip(), value.strip()
    except OSError:
        return


def _cpuid() -> list[list[int]] | None:
    """The usable features: four registers for each leaf, or None if glibc does not report them (before 2.33)."""
    leaf = _glibc_leaf()
    return None if leaf is None else [list(leaf(number).contents)[4:] for number in range(3)]


def _signature() -> str:
    """Family, model and stepping as in CPUID; on other CPUs, the hardware capabilities that Linux reports."""
    leaf = _glibc_leaf()
    if leaf is not None:
        return f"{leaf(0).contents[0]:x}"
    if platform.system() != "Linux":
        return ""
    value = ctypes.CDLL(None).getauxval
    value.argtypes, value.restype = [ctypes.c_ulong], ctypes.c_ulong
    return " ".join(f"{value(kind):x}" for kind in AT_HWCAPS)


@cache
def _glibc_leaf() -> ctypes._NamedFuncPointer | None:
    """glibc's function that returns, for a CPUID leaf, four registers as reported and four as usable."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return None
    function = getattr(ctypes.CDLL(None), "__x86_get_cpuid_feature_leaf", None)
    if function is not None:
        function.argtypes, function.restype = [ctypes.c_uint], ctypes.POINTER(ctypes.c_uint32 * 8)
    return function


def _sysctl(name: str) -> str:
    import subprocess

    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
