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

    with _cache() as opened:
        _print(maintenance.stats(opened), as_json, _stats)


def _stats(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['folder']}: {found['answers']:,} answers, {found['bytes'] / 2**20:,.1f} MiB"
    head = ("provider", "model", "answers", "refused", "truncated", "tokens in", "tokens out", "MiB", "from", "to")
    rows = [
        (
            row["provider"],
            row["model"] or "-",
            *(f"{row[name]:,}" for name in ("answers", "refused", "truncated", "prompt_tokens", "completion_tokens")),
            f"{row['bytes'] / 2**20:,.1f}",
            *(row[name][:10] for name in ("oldest", "newest")),
        )
        for row in found["by"]
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows] if rows else []:
        cells = (
            f"{cell:<{width}}" if i < 2 or i > 7 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
    if found["damaged"]:
        yield f"{found['damaged']:,} rows are damaged. To list them: distillkit cache verify"


@cache.command()
@click.option("--repair", is_flag=True, help="Delete damaged rows, so that they are requested again.")
@json_option
def verify(repair: bool, as_json: bool) -> None:
    """Read every row, and check its key against its request."""
    from ..teachers.answers import maintenance

    with _cache() as opened:
        found = maintenance.verify(opened, repair)
    _print(found, as_json, _verified)
    if found["damaged"] and not repair:
        raise CorruptError(
            f"{len(found['damaged']):,} of {found['rows']:,} rows are damaged",
            "Delete them, so that they are requested again: distillkit cache verify --repair",
        )


def _verified(found: dict[str, Any]) -> Iterator[str]:
    yield from (f"damaged  {row['key']}  {row['fault']}" for row in found["damaged"])
    yield f"{found['rows'] - len(found['damaged']):,} of {found['rows']:,} rows are sound."
    if found["dropped"]:
        yield f"{found['dropped']:,} damaged rows were deleted."


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

    with _cache() as opened:
        rows = list(maintenance.select_rows(opened, provider, model, older_than))
        size = sum(row.bytes for row in rows)
        if rows and not dry_run:
            _confirm_deletion(f"{len(rows):,} rows, {size / 2**20:,.1f} MiB", yes)
        dropped = 0 if dry_run else opened.drop(rows)
    _print({"schema": 1, "chosen": len(rows), "bytes": size, "dropped": dropped}, as_json, _pruned)


def _pruned(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['chosen']:,} rows, {found['bytes'] / 2**20:,.1f} MiB; {found['dropped']:,} deleted."


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

    with _cache() as opened:
        _print(archive.export_answers(opened, file, licence), as_json, lambda header: _exported(file, header))


def _exported(file: Path, header: dict[str, Any]) -> Iterator[str]:
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

    with _cache() as opened:
        _print(archive.import_answers(opened, file), as_json, _brought)


def _brought(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['new']:,} of {found['rows']:,} rows are new; {found['known']:,} were cached already."
    if found["header"].get("licence"):
        yield f"Licence given in the file: {found['header']['licence']}"


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
    with _cache() as opened:
        if len(what) == 2:
            _print(explaining.compare_requests(opened, *what), as_json, _pair)
            return
        context = load_context(ctx, load_recipe(what[0], ()))
        if context.teacher is None:
            raise UsageError(
                f"{context.recipe.name} has no teacher, so it makes no requests", "Name one under [teacher]."
            )
        _print(explaining.explain_missing(opened, context.teacher, teacher_requests(context), count), as_json, _missing)


def _pair(found: dict[str, Any]) -> Iterator[str]:
    from ..teachers.answers.explain import format_differences

    yield f"one    {found['one']['key']}"
    yield f"other  {found['other']['key']}"
    yield from format_differences(found["differences"]) if found["differences"] else ["The requests are equal."]


def _missing(found: dict[str, Any]) -> Iterator[str]:
    from ..teachers.answers.explain import format_differences

    yield f"{found['cached']:,} of {found['requests']:,} requests are in the cache, {found['missing']:,} are not."
    if found["differ_in"]:
        yield "The missing ones differ from the nearest cached row in:"
        yield from (f"  {name}: {count:,}" for name, count in found["differ_in"].items())
    for example in found["examples"]:
        yield f"{example['id']}  {example['key'][:12]}  nearest: {(example['nearest'] or 'none')[:12]}"
        yield from (f"  {line}" for line in format_differences(example["differences"]))


def _cache() -> DiskAnswerStore:
    from ..core.run_folder import cache_folder
    from ..teachers.answers.disk import DiskAnswerStore

    return DiskAnswerStore(cache_folder() / "teachers")


def _print(value: Any, as_json: bool, text: Callable[[Any], Iterator[str]]) -> None:
    print_result(value, as_json, lambda told: "\n".join(text(told)))
