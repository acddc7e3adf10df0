"""What is known of the CPU, and the message where it cannot run the installed NumPy."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from distillkit.core import cpu
from distillkit.core.errors import UsageError

x86_64_linux = pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="needs x86-64 Linux"
)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing of this machine is remembered, before or after."""
    for function in (cpu.model, cpu.features, cpu.identity, cpu._glibc_leaf):
        function.cache_clear()
        monkeypatch.setattr(cpu, function.__name__, function.__wrapped__)
    return monkeypatch


@x86_64_linux
def test_features_are_those_that_the_kernel_lists() -> None:
    listed = dict(cpu._cpuinfo())["flags"].split()
    spelled = {"pni" if name == "sse3" else name for name in cpu.features()}
    assert spelled <= set(listed)
    assert {name for name in cpu.CPUID if name in listed} <= cpu.features()


@x86_64_linux
def test_what_numpy_needs_is_what_is_asked_for() -> None:
    from numpy._core._multiarray_umath import __cpu_baseline__  # type: ignore[import-not-found]

    needed = {"X86_V2": cpu.X86_64_V2}
    names = {name: needed.get(name, {name.lower()}) for name in __cpu_baseline__}
    asked = cpu.X86_64_V2 if cpu._numpy_needs_v2() else {"sse", "sse2", "sse3"}
    assert asked >= set().union(*names.values()) & set(cpu.CPUID)
    assert np.ones(1).sum() == 1


def test_a_cpu_that_lacks_what_numpy_needs_is_named_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"sse3", "ssse3", "cx16", "lahf_lm"}))
    monkeypatch.setattr(cpu, "model", lambda: "Core 2 Duo")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.4.6")
    with pytest.raises(
        UsageError, match=r"Core 2 Duo\) cannot run the installed NumPy: it lacks popcnt, sse4_1, sse4_2"
    ):
        cpu.require_supported()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.3.5")  # whose wheels need less
    cpu.require_supported()
    monkeypatch.setattr(cpu, "features", frozenset)  # nothing is known
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.4.6")
    cpu.require_supported()


def test_an_arm_cpu_is_named_by_its_numbers_and_features(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\nprocessor: 1\n"
    )
    fresh.setattr(cpu, "CPUINFO", file)
    fresh.setattr(platform, "machine", lambda: "aarch64")
    assert cpu.model() == "aarch64 implementer 0x41 part 0xd0c"
    assert cpu.features() == {"fp", "asimd", "sve"}
    assert cpu.missing_features() == frozenset()
    name = "aarch64; aarch64 implementer 0x41 part 0xd0c"
    assert re.fullmatch(f"{name}; [0-9a-f ]*; asimd fp sve", cpu.identity())


def test_an_emulated_arm_cpu_has_no_features_of_its_host(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: sse4_2 avx2\n")
    fresh.setattr(cpu, "CPUINFO", file)
    fresh.setattr(platform, "machine", lambda: "aarch64")
    assert cpu.features() == frozenset()
