"""Write the pages of docs/ that say what the code says: commands from `--help`, recipe keys and plugins from their
classes. `--check` writes nothing and fails when a page is out of date."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import python_api
import surface

from distillkit.cli.main import cli
from distillkit.plugins import scaffold
from distillkit.plugins.interfaces import ROLES
from distillkit.plugins.manager import Plugins
from distillkit.recipe.recipe import Recipe
from distillkit.recipe.schedules import Schedule

HERE = Path(__file__).parent
MADE = "<!-- Made by docs/generate.py from the code: `make docs`. Do not edit. -->\n"


def commands() -> str:
    """Every command with its `--help`."""
    pages = [f"{MADE}\n# Commands\n", *(_help(path, command) for path, command in _commands(cli, ["distillkit"]))]
    return "\n".join(pages)


def _commands(command: click.Command, path: list[str]) -> Iterator[tuple[list[str], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _commands(inner, [*path, name])


def _help(path: list[str], command: click.Command) -> str:
    context = click.Context(command, info_name=" ".join(path), terminal_width=100, max_content_width=100)
    return f"## {' '.join(path)}\n\n```text\n{command.get_help(context)}\n```\n"


def recipe() -> str:
    """Every key of a recipe: the host's, table by table, and the options of the built-in plugins."""
    parts = [f"{MADE}\n# Recipes\n\n{INTRODUCTION}\n## Keys\n\n"]
    parts.append(_table(Plugins.load().schema()["properties"]))
    for name, field in Recipe.model_fields.items():
        model = _model(field.annotation)
        if model is not None:
            title = f"[[{name}]]" if "list" in str(field.annotation) else f"[{name}]"
            about = " ".join((model.__doc__ or "").split())
            parts.append(f"\n### `{title}`\n\n{about}\n\n{_table(model.model_json_schema()['properties'])}")
            parts += _inner(name, model) if name == "teacher" else []  # a judge's teacher has the same
    parts.append(f"\n## Numbers that change\n\n{SCHEDULES}\n{_table(Schedule.model_json_schema()['properties'])}")
    parts.append("\n## Options of the built-in plugins\n")
    rows = Plugins.load().describe()
    parts += [_plugin(row) for row in rows if row["status"] == "ok" and row["distribution"] == "distillkit"]
    return "".join(parts)


def _inner(table: str, model: Any) -> Iterator[str]:
    """The tables that stand in a table."""
    for name, field in model.model_fields.items():
        if (inner := _model(field.annotation)) is not None:
            about = " ".join((inner.__doc__ or "").split())
            yield f"\n### `[{table}.{name}]`\n\n{about}\n\n{_table(inner.model_json_schema()['properties'])}"


INTRODUCTION = """\
A recipe is a TOML file. `name` (or `extends`) is all that it must have; everything else has a default.
`distillkit recipe show RECIPE` prints a recipe with all of them, `distillkit recipe check RECIPE` says
what is wrong.
Tables that name a plugin (`source`, `arch`, `provider`, `name`) take the plugin's options beside these keys.
"""


SCHEDULES = """\
Where an option is a Schedule, it is a number, or a table that says how the number changes while the student learns:
`alpha = { schedule = "linear", from = 0.9, to = 0.5 }`. `cosine` goes along half a cosine; `warm-stable-decay` goes to
`to`, stays there, and goes to `end`. Steps are those of `train.steps`, so a run that is extended stretches it.
"""


def _model(annotation: Any) -> Any:
    """The table model inside an annotation, or None."""
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        return annotation
    return next((model for inner in getattr(annotation, "__args__", ()) if (model := _model(inner))), None)


def _table(properties: dict[str, Any]) -> str:
    rows = ["| key | is | default | |", "| --- | --- | --- | --- |"]
    rows += [
        f"| `{key}` | {_kind(value)} | {_default(value)} | {value.get('description', '')} |"
        for key, value in properties.items()
        if "$ref" not in str(value)  # a table of its own
    ]
    return "\n".join(rows) + "\n"


def _kind(value: dict[str, Any]) -> str:
    kinds = [value, *value.get("anyOf", ())]
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false", "array": "list"}
    words["object"] = "table"
    names = [words[kind["type"]] for kind in kinds if kind.get("type") in words and not {"enum", "const"} & kind.keys()]
    names += [f"`{option}`" for kind in kinds for option in kind.get("enum", [])]
    names += [f"`{kind['const']}`" for kind in kinds if "const" in kind]
    return ", ".join(dict.fromkeys(names))


def _shown(default: Any) -> str:
    """A default in a cell of a table, where a bar would end the cell."""
    bar = "\\|"
    return f"`{str(default).replace('|', bar)}`"


def _default(value: dict[str, Any]) -> str:
    default = value.get("default")
    if isinstance(default, dict) or len(str(default)) > 60:
        return ", ".join(f"`{key}`" for key in default) if isinstance(default, dict) else "a text of ours"
    return "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _plugin(row: dict[str, Any]) -> str:
    text = f"\n### {row['role']} `{row['name']}`\n\n{row['about']}\n"
    if not row["options"]:
        return text
    lines = ["\n| option | is | default | |", "| --- | --- | --- | --- |"]
    for option in row["options"]:
        default = "required" if option["required"] else "" if option["default"] is None else _shown(option["default"])
        kind = option["type"].replace("|", "or")
        lines.append(f"| `{option['name']}` | {kind} | {default} | {option['about']} |")
    return text + "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------- plugins


def plugins() -> str:
    """The page about plugins: its words are written by hand, what stands between its marks is made."""
    made = {
        **{kind: lambda name=name, kind=kind: _template(name, kind) for kind, name in TUTORIAL.items()},
        "checks": _checks,
        "hooks": surface.hooks_table,
        "roles": surface.roles_text,
    }

    def fill(mark: re.Match[str]) -> str:
        return f"<!-- made: {mark[1]} -->\n{made[mark[1]]()}<!-- end -->"

    page = (HERE / "plugins.md").read_text(encoding="utf-8")
    return re.sub(r"<!-- made: (\w+) -->\n.*?<!-- end -->", fill, page, flags=re.DOTALL)


TUTORIAL = {"teacher": "hello", "mixer": "focal", "judge": "length"}


def _template(name: str, kind: str) -> str:
    """What `plugins new` writes."""
    return f"```python\n{scaffold.render(f'{kind}.py', scaffold.template_values(name, kind)).strip()}\n```\n"


def _checks() -> str:
    """Every conformance check of every role."""
    rows = ["| function | checks that a plugin ... |", "| --- | --- |"]
    for roles in ROLES:
        module, kind = importlib.import_module(f"distillkit.testing.{roles}"), roles.removesuffix("s")
        own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
        functions = [value for value in own if inspect.isfunction(value) and list(_annotations(value)) == ["Case"]]
        names = [function.__name__ for function in functions if function.__name__ in _listed(module)]
        rows.append(f"| `check_{kind}` | {', '.join(name.replace('_', ' ') for name in names)} |")
    return "\n".join(rows) + "\n"


def _annotations(function: Any) -> Iterator[str]:
    return (str(one.annotation) for one in inspect.signature(function).parameters.values())


def _listed(module: Any) -> set[str]:
    """The names that the check of a module mentions."""
    check = next(value for name, value in vars(module).items() if name.startswith("check_"))
    return set(re.findall(r"\w+", inspect.getsource(check)))


# ------------------------------------------------------------------------------------------- all pages


def api() -> str:
    """What Python code may import."""
    return f"{MADE}\n{python_api.page()}"


PAGES = {
    "commands.md": commands,
    "recipes.md": recipe,
    "plugins.md": plugins,
    "api.md": api,
    "api.txt": surface.recorded,
}


def main() -> None:
    """Write the pages, or check them."""
    stale = []
    for name, make in PAGES.items():
        page, text = HERE / name, make()
        if page.exists() and page.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            page.write_text(text, encoding="utf-8")
    if "--check" in sys.argv and stale:
        sys.exit(f"out of date: {', '.join(stale)}. Run `make docs`.")


if __name__ == "__main__":
    main()
