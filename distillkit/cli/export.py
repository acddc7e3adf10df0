"""`distillkit export`: write a student in the format of other tools.

Formats are exporter plugins.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import UsageError
from .common import confirm, json_option, load_plugins, print_result, yes_option

if TYPE_CHECKING:
    from ..core.run_folder import Run


@click.command(name="export")
@click.argument("where", metavar="[RUN]", default="latest")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="New folder to write.")
@click.option("--format", "kind", required=True, help="hf, mlx, gguf, or a plugin's.")
@click.option("--quantize", type=click.Choice(["8", "4"]), help="Bits per weight, if the format supports it.")
@click.option("--push", metavar="NAME", help="Upload it to the Hugging Face Hub as NAME, after confirmation.")
@click.option("--public", is_flag=True, help="With --push: make it public.")
@yes_option
@json_option
@click.pass_context
def export(
    ctx: click.Context,
    /,
    where: str,
    folder: Path | None,
    kind: str,
    quantize: str | None,
    push: str | None,
    public: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Convert a student to the format of other tools, and verify the result.

    The exported model is loaded with those tools, and its logits are compared with the student's."""
    from ..core import run_folder
    from ..student import blas

    blas.require_mlx()
    if push:
        from ..student.interchange import upload

        upload.token()  # a missing token is an error before the conversion
    run = _with_report(run_folder.find_run(where))
    folder = folder or Path(f"{run.path.resolve().parent.name}-{kind}{f'-{quantize}bit' if quantize else ''}")
    checked = _export(ctx, run, folder, kind, {"quantize": int(quantize)} if quantize else {})
    proof = json.loads((folder / "proof.json").read_text("utf-8")) if (folder / "proof.json").is_file() else {}
    text = "\n".join([f"{run.name} in {folder}, for {kind}:", *(f"  {line}" for line in checked)])
    print_result({"schema": 1, "run": run.name, "folder": str(folder), "proof": proof}, as_json, lambda _: text)
    if push:
        _push(folder, push, public, yes)


def _export(ctx: click.Context, run: Run, folder: Path, kind: str, options: dict[str, Any]) -> list[str]:
    """Export into a folder that is created only if everything succeeds."""
    from ..core.files import atomic_folder
    from ..plugins.interfaces import Exporter

    if folder.exists():
        raise UsageError(f"{folder} already exists", "Choose another folder, or move it away.")
    exporter = load_plugins(ctx).build("exporters", kind, options, file="--quantize" if options else "--format")
    assert isinstance(exporter, Exporter)
    with atomic_folder(folder.absolute()) as part:
        return exporter.export(run, part)


def _with_report(run: Run) -> Run:
    """The run, with an up-to-date report: the model card is made from it."""
    from ..core.files import read_json
    from ..reporting.run.report import build_report, write_report

    old, current = read_json(run.report) if run.report.is_file() else {}, build_report(run)
    if any(old.get(key) != current[key] for key in ("training", "judges", "missing")):
        write_report(run)
    return run


def _push(folder: Path, name: str, public: bool, yes: bool) -> None:
    """Upload a folder, after listing its files and the destination."""
    from ..student.interchange import upload

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    visibility, hint = "public" if public else "private", upload.upload_hint(folder, name, not public)
    click.echo(f"To {upload.endpoint()}/{name} ({visibility}) will be uploaded:", err=True)
    for file in files:
        click.echo(f"  {file.relative_to(folder)}  {file.stat().st_size / 2**20:,.1f} MiB", err=True)
    confirm(
        "Upload?",
        yes,
        without_terminal=UsageError(
            "an upload needs confirmation, and there is no terminal", f"Add --yes next time. {hint}"
        ),
        declined=UsageError("nothing was uploaded", hint),
    )
    click.echo(f"Uploaded: {upload.push(folder, name, private=not public)}")
