"""The report of `distillkit doctor` as text on one screen. Knows the report, and not how it was made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from . import terminal
from .words import Fact, count, size


def text(report: Mapping[str, Any]) -> str:
    """The report on one screen."""
    from rich.console import Group
    from rich.text import Text

    title = Text.assemble((f"distillkit {report['distillkit']}", "bold"), f"  Python {report['python']}")
    sections = {
        "machine": _machine_facts(report),
        "computing": _computing_facts(report),
        "set-up": _setup_facts(report),
        "optional": _package_facts(report["packages"]),
        "providers": [_provider_fact(row) for row in report["providers"] or []],
    }
    shown = {name: facts for name, facts in sections.items() if facts}
    table = terminal.printed(Group(terminal.ruled(title), terminal.sections(shown)), colour=False)
    return "\n".join([table, *_verdict(report)])


def _machine_facts(report: Mapping[str, Any]) -> list[Fact]:
    processor, memory, disk = report["cpu"], report["memory"], report["disk"]
    wide = [
        name
        for name in ("sse4_2", "avx", "avx2", "fma", "avx512f", "amx_tile", "asimd")
        if name in processor["features"]
    ]
    available = f"{size(memory['available'])} available" if memory["available"] else ""
    kind = f"{disk['filesystem']}, network or FUSE" if disk["remote"] else disk["filesystem"]
    return [
        Fact("system", report["platform"]),
        Fact("processor", processor["model"], f"{count(processor['cores'], 'core')}, {' '.join(wide)}"),
        Fact("memory", size(memory["total"]), available),
        Fact("disk", f"{size(disk['free'])} free", f"{disk['home']} ({kind})" if kind else disk["home"]),
    ]


def _computing_facts(report: Mapping[str, Any]) -> list[Fact]:
    mlx, blas = report["mlx"], report["blas"]
    if not mlx or not blas:
        return []
    kernel = f"{blas['kernel']} kernels, from {blas['source']}" if blas["kernel"] else blas["source"] or ""
    possible = f"about {mlx['gflops_possible']:.0f} are possible" if mlx["gflops_possible"] else ""
    compiler = report["cpu"]["compiler"]
    return [
        Fact("MLX", mlx["version"], f"{mlx['backend'] or 'unknown backend'}, computes on the {mlx['device']}"),
        Fact("GPU", mlx["gpu"] or "none"),
        Fact("BLAS", blas["name"], kernel),
        Fact("one core", f"{mlx['gflops_per_core']:.1f} GFLOP/s", possible),
        Fact("CPU streams", str(mlx["streams"]), f"{count(blas['threads'], 'BLAS thread')} each"),
        Fact("compiler", compiler or "none"),
    ]


def _setup_facts(report: Mapping[str, Any]) -> list[Fact]:
    answers, plugins = report["cache"], report["plugins"]
    there = [f"{name} ({where})" for name, where in report["keys"].items() if where]
    missing = [name for name, where in report["keys"].items() if not where]
    state = "" if answers["state"] != "ready" else size(answers["bytes"])
    facts = [
        Fact("keys", ", ".join(there) or "none set", f"not set: {', '.join(missing)}" if missing else ""),
        Fact(
            "answer cache",
            answers["state"],
            f"{count(answers['answers'], 'answer')}, {state}" if state else answers["folder"],
        ),
    ]
    if plugins:
        broken = f"broken: {', '.join(plugins['broken'])}" if plugins["broken"] else ""
        facts.append(Fact("plugins", f"{plugins['working']} offers work", broken))
    return facts


def _package_facts(rows: Iterable[Mapping[str, Any]]) -> list[Fact]:
    uses: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        uses.setdefault((row["name"], row["version"] or "not installed"), []).append(row["for"])
    return [Fact(name, found, "; ".join(purposes)) for (name, found), purposes in uses.items()]


def _provider_fact(row: Mapping[str, Any]) -> Fact:
    if row["models"] is None:
        return Fact(row["teacher"], "did not answer", row["base_url"])
    given = f"up to {row['top_logprobs']} log-probabilities a token" if row["top_logprobs"] else "no log-probabilities"
    return Fact(
        row["teacher"], count(len(row["models"]), "model"), f"{', '.join(row['models'])}. {row['model']}: {given}"
    )


def _verdict(report: Mapping[str, Any]) -> Iterator[str]:
    for row in report["problems"]:
        yield f"{row['level']}: {row['what']}"
        yield f"  {row['remedy']}"
    if report["problems"]:
        yield ""
    yield "A run would work here." if report["ok"] else "A run would not work here: mend the errors above."
