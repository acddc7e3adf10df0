"""Formats the report of `distillkit doctor` for the terminal. Knows the report, not how it was gathered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from . import terminal
from .formatting import Entry, format_bytes, format_count


def format_report(report: Mapping[str, Any]) -> str:
    """The report as text."""
    from rich.console import Group
    from rich.text import Text

    title = Text.assemble((f"distillkit {report['distillkit']}", "bold"), f"  Python {report['python']}")
    sections = {
        "machine": _machine_entries(report),
        "computing": _compute_entries(report),
        "set-up": _setup_entries(report),
        "optional": _package_entries(report["packages"]),
        "providers": [_provider_entry(row) for row in report["providers"] or []],
    }
    shown = {name: entries for name, entries in sections.items() if entries}
    table = terminal.render(Group(terminal.heading(title), terminal.sections_table(shown)), colour=False)
    return "\n".join([table, *_verdict(report)])


def _machine_entries(report: Mapping[str, Any]) -> list[Entry]:
    processor, memory, disk = report["cpu"], report["memory"], report["disk"]
    features = [
        name
        for name in ("sse4_2", "avx", "avx2", "fma", "avx512f", "amx_tile", "asimd")
        if name in processor["features"]
    ]
    available = f"{format_bytes(memory['available'])} available" if memory["available"] else ""
    kind = f"{disk['filesystem']}, network or FUSE" if disk["remote"] else disk["filesystem"]
    return [
        Entry("system", report["platform"]),
        Entry("processor", processor["model"], f"{format_count(processor['cores'], 'core')}, {' '.join(features)}"),
        Entry("memory", format_bytes(memory["total"]), available),
        Entry("disk", f"{format_bytes(disk['free'])} free", f"{disk['home']} ({kind})" if kind else disk["home"]),
    ]


def _compute_entries(report: Mapping[str, Any]) -> list[Entry]:
    mlx, blas = report["mlx"], report["blas"]
    if not mlx or not blas:
        return []
    kernel = f"{blas['kernel']} kernels, from {blas['source']}" if blas["kernel"] else blas["source"] or ""
    possible = f"about {mlx['gflops_possible']:.0f} are possible" if mlx["gflops_possible"] else ""
    compiler = report["cpu"]["compiler"]
    return [
        Entry("MLX", mlx["version"], f"{mlx['backend'] or 'unknown backend'}, computes on the {mlx['device']}"),
        Entry("GPU", mlx["gpu"] or "none"),
        Entry("BLAS", blas["name"], kernel),
        Entry("one core", f"{mlx['gflops_per_core']:.1f} GFLOP/s", possible),
        Entry("CPU streams", str(mlx["streams"]), f"{format_count(blas['threads'], 'BLAS thread')} each"),
        Entry("compiler", compiler or "none"),
    ]


def _setup_entries(report: Mapping[str, Any]) -> list[Entry]:
    answers, plugins = report["cache"], report["plugins"]
    present = [f"{name} ({where})" for name, where in report["keys"].items() if where]
    missing = [name for name, where in report["keys"].items() if not where]
    state = "" if answers["state"] != "ready" else format_bytes(answers["bytes"])
    entries = [
        Entry("keys", ", ".join(present) or "none set", f"not set: {', '.join(missing)}" if missing else ""),
        Entry(
            "answer cache",
            answers["state"],
            f"{format_count(answers['answers'], 'answer')}, {state}" if state else answers["folder"],
        ),
    ]
    if plugins:
        broken = f"broken: {', '.join(plugins['broken'])}" if plugins["broken"] else ""
        entries.append(Entry("plugins", f"{plugins['working']} offers work", broken))
    return entries


def _package_entries(rows: Iterable[Mapping[str, Any]]) -> list[Entry]:
    uses: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        uses.setdefault((row["name"], row["version"] or "not installed"), []).append(row["for"])
    return [Entry(name, found, "; ".join(purposes)) for (name, found), purposes in uses.items()]


def _provider_entry(row: Mapping[str, Any]) -> Entry:
    if row["models"] is None:
        return Entry(row["teacher"], "did not answer", row["base_url"])
    logprobs = (
        f"up to {row['top_logprobs']} log-probabilities per token" if row["top_logprobs"] else "no log-probabilities"
    )
    return Entry(
        row["teacher"],
        format_count(len(row["models"]), "model"),
        f"{', '.join(row['models'])}. {row['model']}: {logprobs}",
    )


def _verdict(report: Mapping[str, Any]) -> Iterator[str]:
    for row in report["problems"]:
        yield f"{row['level']}: {row['what']}"
        yield f"  {row['remedy']}"
    if report["problems"]:
        yield ""
    yield "A run would work here." if report["ok"] else "A run would not work here: fix the errors above."
