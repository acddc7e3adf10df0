"""The measurements of `bench` as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .bench import GENERATION_REPEATS, MATMUL_REPEATS

if TYPE_CHECKING:
    from ..reporting.formatting import Entry


def format_benchmark(report: Mapping[str, Any]) -> str:
    """The measurements as text for the terminal."""
    from rich.console import Group
    from rich.text import Text

    from ..reporting import formatting, terminal

    title = Text.assemble((formatting.one_line(report["run"]), "bold"), f"  step {report['step']:,}")
    size = f"{report['batch']} x {report['context']} random tokens"
    if report["accumulate"] > 1:
        size += f", {report['accumulate']} of them per training step"
    repeats = f"of {GENERATION_REPEATS} for decoding, of {MATMUL_REPEATS} for the matrix product"
    medians = f"medians of {report['steps']}, {repeats}"
    about = Text(f"Batches of {size}; {medians}.", "dim")
    training = report["training"]
    entries = {
        "forward": _speed_entries(report["forward"], "batch", "forward pass to logits"),
        "training": _speed_entries(training, "step", _describe_step(training)),
        "decoding": [_generation_entry(row) for row in report["generation"]],
        "memory": _memory_entries(report),
        "machine": _machine_entries(report),
    }
    return terminal.render(Group(terminal.heading(title), about, terminal.sections_table(entries)), colour=False)


def _describe_step(training: Mapping[str, Any]) -> str:
    written = ", on-policy generation" if training["on_policy"] else ""
    taught = ", the teacher's forward pass" if training["teacher"] else ""
    lowered = f" in {training['precision']}" if training["precision"] != "float32" else ""
    less = "; teacher not asked" if training["without_asking"] else ""
    return f"forward, backward, optimizer{written}{taught}{lowered}{less}; on a copy"


def _speed_entries(speeds: Mapping[str, Any], unit: str, about: str) -> list[Entry]:
    from ..reporting.formatting import Entry, format_number

    latency = ", ".join(f"{name} {format_number(value)}" for name, value in speeds["latency_ms"].items())
    share = f"{speeds['of_matmul_rate']:.0%} of the rate of a matrix product"
    return [
        Entry("tokens/s", format_number(speeds["tokens_per_second"]), about),
        Entry(f"{unit}{'es' if unit == 'batch' else 's'}/s", format_number(speeds["batches_per_second"])),
        Entry(f"ms/{unit}", latency),
        Entry("arithmetic", share, f"{format_number(speeds['flops'] / 1e9)} GFLOP per {unit}"),
    ]


def _generation_entry(row: Mapping[str, Any]) -> Entry:
    from ..reporting.formatting import Entry, format_number

    speed = f"{format_number(row['tokens_per_second'])} tokens/s"
    return Entry(f"batch {row['batch']}", speed, f"{format_number(row['ms_per_token'])} ms per token")


def _memory_entries(report: Mapping[str, Any]) -> list[Entry]:
    from ..reporting.formatting import Entry, format_bytes, format_count

    sizes, memory = report["parameters"], report["memory"]
    shared = f"{format_count(sizes['total'])} machine a shared one counts at each use"
    return [
        Entry("parameters", format_count(sizes["unique"]), shared if sizes["total"] != sizes["unique"] else ""),
        Entry("in fp32", format_bytes(memory["parameters_fp32_bytes"])),
        Entry("in fp16", format_bytes(memory["parameters_fp16_bytes"])),
        Entry(
            "activations",
            format_bytes(memory["activation_bytes"]),
            "peak memory that a training step adds",
        ),
    ]


def _machine_entries(report: Mapping[str, Any]) -> list[Entry]:
    from ..reporting.formatting import Entry, format_count, format_number

    machine, rate = report["machine"], report["matmul_flops_per_second"]
    return [
        Entry("processor", machine["cpu"], format_count(machine["cores"], "core")),
        Entry("device", machine["device"], machine["device_name"] or ""),
        Entry("BLAS", machine["blas"]),
        Entry("matrix product", f"{format_number(rate / 1e9)} GFLOP/s", "of large matrices, measured in this run"),
        Entry("versions", ", ".join(f"{name} {number}" for name, number in machine["packages"].items())),
    ]
