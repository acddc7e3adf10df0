"""`distillkit plugins`: list plugins and check that they load, or create a new plugin package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..core.errors import UsageError
from .common import json_option, load_plugins, print_result

KINDS = ("teacher", "mixer", "optimizer", "judge", "source", "student", "tracker", "exporter")


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """List plugins with their package and options, and report broken ones."""
    if ctx.invoked_subcommand is None:
        print_result(load_plugins(ctx).describe(), as_json, lambda rows: "\n".join(_format_list(rows)))


@plugins.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="Role of the plugin.")
@click.option(
    "--to",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    help="Parent folder. Default: the current folder.",
)
@click.pass_context
def new(ctx: click.Context, name: str, kind: str, to: Path) -> None:
    """Create a plugin package to start from, with tests that pass."""
    from ..plugins.scaffold import create_package, template_values

    plain = template_values(name, kind)["name"]
    for row in load_plugins(ctx).describe():
        if (row.get("role"), row.get("name")) == (kind, plain):
            raise UsageError(f"a {kind} {plain!r} exists already in {_origin(row)}", "Choose another name.")
    folder = create_package(name, kind, to)
    click.echo(f"Wrote {folder}: the {kind} {plain!r}. Next:")
    click.echo(f'  cd {folder}\n  pip install -e ".[test]"\n  pytest\n  distillkit run example.toml')


# ------------------------------------------------------------------------------------------- the list


def _format_list(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The plugins of each package, then broken ones."""
    working = [row for row in rows if row["status"] != "broken"]
    for origin in dict.fromkeys(_origin(row) for row in working):
        yield origin
        own = [row for row in working if _origin(row) == origin]
        for row in own:
            yield from _format_plugin(row)
        for warning in dict.fromkeys(text for row in own for text in row["warnings"]):
            yield f"  warning: {warning}"
    broken = [row for row in rows if row["status"] == "broken"]
    for row in broken:
        yield f"{_origin(row)} is broken\n  {row['reason']}"
    clashes = sum(row["status"] == "clash" for row in rows)
    summary = [f"{len(working) - clashes} plugins work"]
    summary += [f"{clashes} share a name and cannot be used"] if clashes else []
    summary += [f"{len(broken)} {'plugin is' if len(broken) == 1 else 'plugins are'} broken"] if broken else []
    yield ", ".join(summary) + "."


def _format_plugin(row: dict[str, Any]) -> Iterator[str]:
    clash = "  (offered twice: cannot be used)" if row["status"] == "clash" else ""
    verb = "gives" if row["role"] == "teacher" else "needs"
    signal = f"  {verb} {row['signal']}" if row["signal"] not in (None, "none") else ""
    yield f"  {row['role']:<8} {row['name']:<18} {row['about']}{signal and f' [{signal.strip()}]'}{clash}"
    if row["options"]:
        yield f"{'':<30}{', '.join(_format_option(option) for option in row['options'])}"


def _format_option(option: dict[str, Any]) -> str:
    """An option with its default, as in a recipe; `...` if it is required."""
    value = "..." if option["required"] else json.dumps(option["default"], ensure_ascii=False)
    return option["name"] if value == "null" else f"{option['name']} = {value}"


def _origin(row: dict[str, Any]) -> str:
    """The package that a plugin comes from, with its version."""
    return " ".join(filter(None, [row["distribution"] or row["plugin"], row["version"]]))
