"""`distillkit doctor`: checks this machine, and lists problems with their remedies.

Each check runs by itself, so that one that fails does not hide the others. Changes nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core import cpu, filesystems
from ..core.errors import DistillkitError
from ..core.run_folder import cache_folder, home_folder
from ..teachers.client import api_keys

if TYPE_CHECKING:
    from ..plugins.manager import Plugins
    from ..teachers.chat import ChatTeacher

SCHEMA = 1
ERROR, WARNING = "error", "warning"  # an error prevents runs
MIN_FREE_BYTES = 2_000_000_000  # bytes: less than the checkpoints of a few runs
LOW_SHARE = 0.3  # of what a core could do
ROUNDS, SIZE = 7, 768  # products that are measured
# Multiply-adds count twice: what a core does in one cycle at best, in float32.
PER_CYCLE = (("avx512f", 64), ("fma", 32), ("avx", 16), ("sse3", 8))
KEYS = ("GROQ_API_KEY", "OPENAI_API_KEY", "DISTILLKIT_API_KEY", "DISTILLKIT_SERVE_KEY")
PROVIDER_SECONDS = 60.0

# What the extras of pyproject.toml are for.
EXTRAS = {
    "hub": 'data sets of the Hugging Face Hub (data.source = "hub")',
    "parquet": "text in Parquet files",
    "zstd": "answer bundles compressed as .jsonl.zst",
    "sentencepiece": "tokenizers of SentencePiece",
    "torch": "importing PyTorch checkpoints",
    "export-hf": "verifying exports to Transformers",
    "export-mlx": "verifying exports to mlx-lm",
    "export-gguf": "exporting to GGUF",
    "push": "uploading exports to the Hub",
}
BACKENDS = ("mlx-cpu", "mlx-metal", "mlx-cuda-12", "mlx-cuda-13")

Report = dict[str, Any]


class Problems:
    """A list of problems, each with a level and a remedy."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []

    def add(self, level: str, what: str, remedy: str) -> None:
        """Add a problem."""
        self.rows.append({"level": level, "what": what, "remedy": remedy})

    def of(self, level: str) -> list[dict[str, str]]:
        """The problems of a level."""
        return [row for row in self.rows if row["level"] == level]


def examine(load_plugins: Callable[[], Plugins], *, online: bool = False, base_url: str = "") -> Report:
    """Run all checks. With `online`, also ask the providers that have a key, and the server at `base_url`."""
    problems = Problems()
    report: Report = {
        "schema": SCHEMA,
        "distillkit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(problems),
        "memory": _memory(),
        "disk": _disk(problems),
        "keys": _keys(problems),
        "packages": _packages(),
        "cache": _cache(problems),
        "mlx": None,
        "blas": None,
        "plugins": None,
        "providers": None,
    }
    if cpu.missing_features():  # what follows imports NumPy, which would end this process
        return _with_problems(report, problems)
    if _backend(problems):
        report["blas"] = _blas(problems)
        report["mlx"] = _mlx(report["cpu"], report["blas"], problems)
        if plugins := _plugins(load_plugins, report, problems):
            _add_plugin_keys(plugins, report["keys"])
            report["providers"] = _providers(plugins, base_url, problems) if online else None
    return _with_problems(report, problems)


def _with_problems(report: Report, problems: Problems) -> Report:
    return {**report, "problems": problems.rows, "ok": not problems.of(ERROR)}


# ---------------------------------------------------------------------------------------------------- machine


def _cpu(problems: Problems) -> Report:
    try:
        cpu.require_supported()
    except DistillkitError as error:
        problems.add(ERROR, error.message, error.hint)
    if forced := os.environ.get("OPENBLAS_CORETYPE"):
        problems.add(
            WARNING,
            f"OPENBLAS_CORETYPE = {forced} forces a kernel of OpenBLAS, which may be slow or crash on this CPU",
            "Unset it, unless you know why it is set.",
        )
    return {
        "model": cpu.model(),
        "machine": platform.machine(),
        "cores": cpu.cores(),
        "features": sorted(cpu.features()),
        "compiler": shutil.which("g++") or shutil.which("clang++") or "",
    }


def _memory() -> Report:
    """Total and available bytes, None if unknown. A container's limit counts."""
    fields = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields[name] = int(value.split()[0]) * 1024
    except OSError:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {"total": total, "available": None}
    total, available = fields["MemTotal"], fields.get("MemAvailable")
    if (limit := _container_limit()) is not None and limit < total:
        total, available = limit, min(limit, available or limit)
    return {"total": total, "available": available}


def _container_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _disk(problems: Problems) -> Report:
    folder = home_folder().absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    kind, free = filesystems.filesystem_type(existing), shutil.disk_usage(existing).free
    remote, writable = filesystems.is_remote(kind), os.access(existing, os.W_OK | os.X_OK)
    if remote:
        problems.add(
            WARNING,
            f"{folder} is on a network or FUSE file system ({kind}), where the locks of the answer cache may fail",
            "Set DISTILLKIT_HOME to a folder on a disk of this machine.",
        )
    if free < MIN_FREE_BYTES:
        problems.add(
            WARNING, f"{folder} has only {free / 1e9:.1f} GB free", "Make room, or set DISTILLKIT_HOME to another disk."
        )
    if not writable:
        problems.add(
            ERROR, f"{existing} cannot be written to", "Set DISTILLKIT_HOME to a folder that you can write to."
        )
    return {"home": str(folder), "free": free, "filesystem": kind, "remote": remote, "writable": writable}


# ----------------------------------------------------------------------------------------------- configuration


def _keys(problems: Problems) -> dict[str, str | None]:
    """The source of each key: "environment", ".env" or None. Never the key itself."""
    result = {}
    for variable in KEYS:
        try:
            result[variable] = _key_source(variable)
        except DistillkitError as error:
            problems.add(ERROR, error.message, error.hint)
            result[variable] = None
    return result


def _key_source(variable: str) -> str | None:
    if api_keys.find_key(variable) is None:
        return None
    return "environment" if os.environ.get(variable) else ".env"


def _add_plugin_keys(plugins: Plugins, result: dict[str, str | None]) -> None:
    """Add the key variables of other plugins' teachers."""
    for registration in plugins.registrations:
        variable = getattr(registration.cls, "variable", None)
        if isinstance(variable, str) and variable and variable not in result:
            result[variable] = _key_source(variable)


def _packages() -> list[Report]:
    """The optional packages with their purpose and installed version."""
    from packaging.requirements import Requirement

    rows = []
    for text in requires("distillkit") or []:
        requirement = Requirement(text)
        for extra, purpose in EXTRAS.items():
            marker = requirement.marker
            if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
                rows.append(
                    {"name": requirement.name, "extra": extra, "for": purpose, "version": _version(requirement.name)}
                )
    return rows


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cache(problems: Problems) -> Report:
    """The answer cache. It is not created if it does not exist."""
    folder = (cache_folder() / "teachers").absolute()
    result: Report = {"folder": str(folder), "answers": 0, "bytes": 0, "state": "empty"}
    if not (folder / "cache.db").exists():
        return result
    from ..teachers.answers.disk import DiskAnswerStore

    try:
        with DiskAnswerStore(folder) as opened:
            result["answers"] = len(opened)
        result["bytes"] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        result["state"] = "ready"
    except DistillkitError as error:
        result["state"] = "unusable"
        problems.add(ERROR, error.message, error.hint)
    return result


def _plugins(load: Callable[[], Plugins], report: Report, problems: Problems) -> Plugins | None:
    """Load all plugins. A broken plugin of another package is a warning, since other runs still work."""
    try:
        plugins = load()
    except DistillkitError as error:
        problems.add(ERROR, error.message, error.hint or "Correct the plugin, or leave out -p.")
        return None
    rows = plugins.describe()
    broken = [row for row in rows if row["status"] == "broken"]
    for row in broken:
        is_built_in = row["distribution"] == "distillkit"
        remedy = "Install distillkit again." if is_built_in else "Update or remove its package, or tell its author."
        problems.add(
            ERROR if is_built_in else WARNING, f"the plugin {row['plugin']} is broken: {row['reason']}", remedy
        )
    for role, name in dict.fromkeys((row["role"], row["name"]) for row in rows if row["status"] == "clash"):
        problems.add(WARNING, f"two plugins offer the {role} {name!r}, so it cannot be used", "Remove one of them.")
    working = [row for row in rows if row["status"] == "ok"]
    report["plugins"] = {"working": len(working), "broken": [row["plugin"] for row in broken]}
    return plugins


# ------------------------------------------------------------------------------------------------ computation


def _backend(problems: Problems) -> bool:
    from ..student import blas

    try:
        blas.require_mlx()
    except DistillkitError as error:
        problems.add(ERROR, error.message, error.hint)
        return False
    return True


def _blas(problems: Problems) -> Report:
    """The BLAS in use, and the repeated test of each candidate."""
    from ..student import blas
    from ..student.blas import library, verify

    chosen = blas.load()
    tests = []
    if sys.platform == "linux":
        for candidate in library.candidates():
            fault = verify.find_fault(candidate, force=True)
            tests.append({"source": candidate.source, "path": candidate.path, "fault": fault or None})
    if chosen.warning:
        problems.add(WARNING, chosen.warning, f"Install a working library: {blas.INSTALL_HINT}.")
    return {
        "name": chosen.name,
        "kernel": chosen.kernel or None,
        "source": chosen.source or None,
        "threads": chosen.threads,
        "candidates": tests,
    }


def _mlx(processor: Report, blas: Report, problems: Problems) -> Report:
    """MLX's device, and the rate of one CPU core through MLX."""
    import mlx.core as mx

    gpu = mx.is_available(mx.gpu)
    backend = next((name for name in BACKENDS if _version(name)), None)
    result: Report = {
        "version": version("mlx"),
        "backend": backend,
        "device": "GPU" if mx.default_device().type == mx.gpu else "CPU",
        "gpu": str(mx.device_info().get("device_name") or "GPU") if gpu else None,
        "streams": cpu.cores(),
        "gflops_per_core": round(_measure_flops() / 1e9, 1),
        "gflops_possible": _peak_gflops(),
    }
    if not gpu and Path("/proc/driver/nvidia/version").exists():
        problems.add(
            WARNING,
            "this machine has an NVIDIA GPU, but MLX is installed without CUDA, so the CPU computes",
            'Install one backend only: pip uninstall mlx-cpu; pip install "distillkit[cuda13]" (or cuda12).',
        )
    possible = result["gflops_possible"]
    if not gpu and possible and result["gflops_per_core"] < LOW_SHARE * possible:
        problems.add(
            WARNING,
            f"a core multiplies matrices at {result['gflops_per_core']:.0f} GFLOP/s, which is low for this CPU"
            f" (about {possible:.0f} are possible)",
            "Is the machine busy? If not, see the BLAS above.",
        )
    if not gpu and not processor["compiler"]:
        problems.add(
            WARNING,
            "there is no C++ compiler, so MLX compiles nothing and the optimizer is slower",
            "Install g++ (Debian: apt install g++).",
        )
    return result


def _measure_flops() -> float:
    """Operations per second of a float32 matrix product on one CPU stream. The fastest of several."""
    import time

    import mlx.core as mx

    with mx.stream(mx.cpu):
        matrix = mx.random.normal((SIZE, SIZE))
        mx.eval(matrix, matrix @ matrix)
        times = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            mx.eval(matrix @ matrix)
            times.append(time.perf_counter() - started)
    return 2 * SIZE**3 / min(times)


def _peak_gflops() -> float | None:
    """Peak GFLOP/s of one core at its present clock rate. None if the clock rate is unknown."""
    try:
        rates = [line.partition(":")[2] for line in cpu.CPUINFO.read_text().splitlines() if line.startswith("cpu MHz")]
    except OSError:
        return None
    per_cycle = next((number for name, number in PER_CYCLE if name in cpu.features()), None)
    return round(per_cycle * float(rates[0]) / 1000, 1) if rates and per_cycle else None


# -------------------------------------------------------------------------------------------------- providers


def _providers(plugins: Plugins, base_url: str, problems: Problems) -> list[Report]:
    """Ask every provider that has a key, and the server at `base_url`, for its models."""
    import asyncio

    from ..teachers.chat import ChatTeacher

    rows = []
    for registration in plugins.registrations:
        kind = registration.cls
        if registration.role != "teachers" or not issubclass(kind, ChatTeacher):
            continue
        is_reachable = _has_key(kind.variable) if kind.needs_key else bool(base_url)
        if is_reachable:
            rows.append(asyncio.run(_provider(kind, "" if kind.needs_key else base_url, problems)))
    if not rows:
        problems.add(
            WARNING, "no provider has a key, so none was asked", "Set a key (see .env.example), or give --base-url."
        )
    return rows


def _has_key(variable: str) -> bool:
    try:
        return api_keys.find_key(variable) is not None
    except DistillkitError:
        return False  # told among the keys


async def _provider(kind: type[ChatTeacher], base_url: str, problems: Problems) -> Report:
    """One provider's models, and the number of log-probabilities per token of its default or first model."""
    import asyncio

    row: Report = {"teacher": kind.name, "base_url": base_url, "models": None, "model": None, "top_logprobs": None}
    try:
        async with asyncio.timeout(PROVIDER_SECONDS):
            await _query_provider(kind, {"base_url": base_url, "model": "unknown"} if base_url else {}, row)
    except TimeoutError:
        what = f"the teacher {kind.name!r} did not answer within {PROVIDER_SECONDS:.0f} s"
        problems.add(ERROR, what, f"Is there a server at {row['base_url']}?")
    except DistillkitError as error:
        problems.add(ERROR, f"the teacher {kind.name!r}: {error.message}", error.hint or "Try again later.")
    return row


async def _query_provider(kind: type[ChatTeacher], options: dict[str, Any], row: Report) -> None:
    """Fill in a provider's answers."""
    from ..core.records import Request

    teacher = kind(kind.Options.model_validate(options))
    row["base_url"] = teacher.options.base_url
    try:
        row["models"] = await teacher.models()
    finally:
        await teacher.close()
    if options and row["models"]:
        teacher = kind(kind.Options.model_validate({**options, "model": row["models"][0]}))
    row["model"] = teacher.options.model
    if kind.signal == "text":
        row["top_logprobs"] = 0
        return
    request = Request("doctor", prompt="one, two,", max_tokens=16, top_logprobs=20)
    try:
        row["top_logprobs"] = (await teacher.probe("parameters", request))["top_logprobs"]
    finally:
        await teacher.close()
