"""`distillkit cache`: maintain the store of teachers' answers. The work is in `teachers.answers`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import CorruptError, UsageError
from .common import confirm, json_option, load_context, load_recipe, print_result

if TYPE_CHECKING:
    from ..teachers.answers.disk import DiskAnswerStore

FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def cache() -> None:
    """Maintain the cache of teacher answers: count, verify, prune, export, import, explain."""


@cache.command()
@json_option
def stats(as_json: bool) -> None:
    """Count the cached answers of each provider and model."""
    from ..teachers.answers import maintenance

    with _open_store() as opened:
        _print(maintenance.stats(opened), as_json, _format_stats)


def _format_stats(result: dict[str, Any]) -> Iterator[str]:
    yield f"{result['folder']}: {result['answers']:,} answers, {result['bytes'] / 2**20:,.1f} MiB"
    head = ("provider", "model", "answers", "refused", "truncated", "tokens in", "tokens out", "MiB", "from", "to")
    rows = [
        (
            row["provider"],
            row["model"] or "-",
            *(f"{row[name]:,}" for name in ("answers", "refused", "truncated", "prompt_tokens", "completion_tokens")),
            f"{row['bytes'] / 2**20:,.1f}",
            *(row[name][:10] for name in ("oldest", "newest")),
        )
        for row in result["by"]
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows] if rows else []:
        cells = (
            f"{cell:<{width}}" if i < 2 or i > 7 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
    if result["damaged"]:
        yield f"{result['damaged']:,} rows are damaged. To list them: distillkit cache verify"


@cache.command()
@click.option("--repair", is_flag=True, help="Delete damaged rows, so that they are requested again.")
@json_option
def verify(repair: bool, as_json: bool) -> None:
    """Read every row, and check its key against its request."""
    from ..teachers.answers import maintenance

    with _open_store() as opened:
        result = maintenance.verify(opened, repair)
    _print(result, as_json, _format_verification)
    if result["damaged"] and not repair:
        raise CorruptError(
            f"{len(result['damaged']):,} of {result['rows']:,} rows are damaged",
            "Delete them, so that they are requested again: distillkit cache verify --repair",
        )


def _format_verification(result: dict[str, Any]) -> Iterator[str]:
    yield from (f"damaged  {row['key']}  {row['fault']}" for row in result["damaged"])
    yield f"{result['rows'] - len(result['damaged']):,} of {result['rows']:,} rows are sound."
    if result["dropped"]:
        yield f"{result['dropped']:,} damaged rows were deleted."


@cache.command()
@click.option("--provider", help="Only answers of this provider.")
@click.option("--model", help="Only answers of this model.")
@click.option("--older-than", metavar="AGE", help="Only older answers: 12h, 30d, 2w.")
@click.option("--dry-run", is_flag=True, help="Print what would be deleted, and stop.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def prune(
    provider: str | None, model: str | None, older_than: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Delete answers. They may have cost money: export them first."""
    from ..teachers.answers import maintenance

    with _open_store() as opened:
        rows = list(maintenance.select_rows(opened, provider, model, older_than))
        size = sum(row.bytes for row in rows)
        if rows and not dry_run:
            _confirm_deletion(f"{len(rows):,} rows, {size / 2**20:,.1f} MiB", yes)
        dropped = 0 if dry_run else opened.drop(rows)
    _print({"schema": 1, "chosen": len(rows), "bytes": size, "dropped": dropped}, as_json, _format_pruning)


def _format_pruning(result: dict[str, Any]) -> Iterator[str]:
    yield f"{result['chosen']:,} rows, {result['bytes'] / 2**20:,.1f} MiB; {result['dropped']:,} deleted."


def _confirm_deletion(what: str, yes: bool) -> None:
    confirm(
        f"Delete {what}?",
        yes,
        without_terminal=UsageError(
            f"Delete {what}? This needs confirmation, and there is no terminal",
            "Add --yes, or --dry-run to look first.",
        ),
        declined=UsageError("nothing was deleted", "Add --dry-run to look first."),
    )


@cache.command(name="export")
@click.argument("file", type=FILE)
@click.option("--licence", help="Licence of the answers, for the header of the file.")
@json_option
def export(file: Path, licence: str | None, as_json: bool) -> None:
    """Write all answers to FILE: .jsonl, .jsonl.gz or .jsonl.zst."""
    from ..teachers.answers import archive

    with _open_store() as opened:
        _print(archive.export_answers(opened, file, licence), as_json, lambda header: _format_export(file, header))


def _format_export(file: Path, header: dict[str, Any]) -> Iterator[str]:
    yield f"Wrote {header['rows']:,} rows to {file}."
    if header["left_out"]:
        yield f"{header['left_out']:,} damaged rows were left out. To list them: distillkit cache verify"
    if not header["licence"]:
        yield "The file has no licence. Add one before you share it: --licence TEXT"


@cache.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def import_(file: Path, as_json: bool) -> None:
    """Add the answers of FILE that are not cached yet. Checks every key and overwrites nothing."""
    from ..teachers.answers import archive

    with _open_store() as opened:
        _print(archive.import_answers(opened, file), as_json, _format_import)


def _format_import(result: dict[str, Any]) -> Iterator[str]:
    yield f"{result['new']:,} of {result['rows']:,} rows are new; {result['known']:,} were cached already."
    if result["header"].get("licence"):
        yield f"Licence given in the file: {result['header']['licence']}"


@cache.command()
@click.argument("what", nargs=-1, required=True, metavar="RECIPE | A B")
@click.option("--show", "count", type=click.IntRange(min=0), default=5, show_default=True, help="Number of examples.")
@json_option
@click.pass_context
def explain(ctx: click.Context, what: tuple[str, ...], count: int, as_json: bool) -> None:
    """Explain why A and B have different keys, or why requests of a recipe are not cached.

    A and B are keys, beginnings of keys, or JSON files with requests.
    """
    from ..pipeline.teacher_requests import teacher_requests
    from ..teachers.answers import explain as explaining

    if len(what) > 2:
        raise UsageError("explain takes one recipe or two requests", "For example: distillkit cache explain quickstart")
    with _open_store() as opened:
        if len(what) == 2:
            _print(explaining.compare_requests(opened, *what), as_json, _format_pair)
            return
        context = load_context(ctx, load_recipe(what[0], ()))
        if context.teacher is None:
            raise UsageError(
                f"{context.recipe.name} has no teacher, so it makes no requests", "Name one under [teacher]."
            )
        _print(
            explaining.explain_missing(opened, context.teacher, teacher_requests(context), count),
            as_json,
            _format_missing,
        )


def _format_pair(result: dict[str, Any]) -> Iterator[str]:
    from ..teachers.answers.explain import format_differences

    yield f"one    {result['one']['key']}"
    yield f"other  {result['other']['key']}"
    yield from format_differences(result["differences"]) if result["differences"] else ["The requests are equal."]


def _format_missing(result: dict[str, Any]) -> Iterator[str]:
    from ..teachers.answers.explain import format_differences

    yield f"{result['cached']:,} of {result['requests']:,} requests are in the cache, {result['missing']:,} are not."
    if result["differ_in"]:
        yield "The missing ones differ from the nearest cached row in:"
        yield from (f"  {name}: {count:,}" for name, count in result["differ_in"].items())
    for example in result["examples"]:
        yield f"{example['id']}  {example['key'][:12]}  nearest: {(example['nearest'] or 'none')[:12]}"
        yield from (f"  {line}" for line in format_differences(example["differences"]))


def _open_store() -> DiskAnswerStore:
    from ..core.run_folder import cache_folder
    from ..teachers.answers.disk import DiskAnswerStore

    return DiskAnswerStore(cache_folder() / "teachers")


def _print(value: Any, as_json: bool, text: Callable[[Any], Iterator[str]]) -> None:
    print_result(value, as_json, lambda value: "\n".join(text(value)))
