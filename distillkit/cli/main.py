"""Arguments in, messages out. What a command does is in the rooms; here is only how it is asked for.

Everything heavy is imported inside the command that needs it, so that `--help` is quick.
"""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..core import cpu
from ..core.console import clear_live_line
from ..core.errors import DistillkitError, Elsewhere, UsageError
from ..core.text import clean
from . import cache, data, export, judge, stages, students
from . import plugins as plugin_commands
from .common import device_option, json_option, load_context, plugins_of, recipe_of, recipe_option, show


class Commands(click.Group):
    """Commands in the order of a run, and those of plugins after them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were defined."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> None:
        """What a command returns is for nobody: only `ctx.exit` says how the program ends."""
        super().invoke(ctx)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """A misspelt command names its nearest."""
        from ..core.errors import did_you_mean

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            cpu.require_supported()  # it may be a plugin's command: those are not loaded then
            raise UsageError(error.message.rstrip("."), did_you_mean(args[0], self.commands)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="distillkit")
@click.option("-p", "--plugin", "plugins", multiple=True, metavar="FILE|MODULE", help="Load a plugin as well.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, plugins: tuple[str, ...], debug: bool) -> None:
    """Teach a small language model from a big one, and see honestly what that was worth.

    RECIPE is a path or a bundled recipe's name. RUN is a folder, recipe/number, a recipe's name, or `latest`.
    """
    ctx.obj = {"plugins": plugins, "debug": debug}
    if ctx.invoked_subcommand != "doctor":
        cpu.require_supported()


for command in (*stages.COMMANDS, *judge.COMMANDS):
    cli.add_command(command)


# --------------------------------------------------------------------------------------------- looking at runs


@cli.command()
@click.argument("where", nargs=-1, required=True, metavar="RUN RUN...")
@json_option
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page as well.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write it as Markdown as well.")
@click.option("--csv", type=click.Path(file_okay=False, path_type=Path), help="Write the tables into a folder as well.")
@click.option("--anyway", is_flag=True, help="Compare also what was not judged in the same way.")
def compare(
    where: tuple[str, ...], as_json: bool, html: Path | None, markdown: Path | None, csv: Path | None, anyway: bool
) -> None:
    """Compare runs with the first one: differences, their intervals, and what can be said. Takes 2 to 50."""
    from ..core import run_folder as runs
    from ..reporting.compare import comparison as comparing
    from ..reporting.compare import files
    from ..reporting.compare import text as compare_text

    found = comparing.read([runs.find(spec) for spec in where])
    comparison = comparing.contrast(found, anyway)
    files.write(comparison, found, html=html, markdown=markdown, csv=csv)
    show(comparison, as_json, compare_text.text)


@cli.command()
@json_option
def runs(as_json: bool) -> None:
    """List the runs."""
    from ..core import run_folder as folders
    from ..reporting.run import tables

    show(tables.listing(folders.every_run()), as_json, tables.listing_text)


for command in students.COMMANDS:
    cli.add_command(command)


@cli.command()
@click.argument("where", metavar="[RUN]", default="latest")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Batches of each kind.")
@click.option("--batch", type=click.IntRange(min=1), help="Rows of a batch, if not as many as the recipe says.")
@device_option
@json_option
@click.pass_context
def bench(ctx: click.Context, where: str, steps: int, batch: int | None, as_json: bool) -> None:
    """Measure how fast a student reads, learns and writes here. Changes nothing of its run."""
    from ..core import run_folder as runs

    run = runs.find(where)
    context = load_context(ctx, recipe_of(str(run.recipe), (f"train.batch_size={batch}",) if batch else ()))
    from ..pipeline import bench as measuring  # now that the fast BLAS is there

    show(measuring.measure(context, run, steps), as_json, measuring.text)


@cli.command()
@click.option("--online", is_flag=True, help="Ask each provider with a key for its models and log-probabilities.")
@click.option(
    "--base-url", metavar="URL", default="", help="With --online: also ask the OpenAI-compatible server at URL."
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, online: bool, base_url: str, as_json: bool) -> None:
    """Check this machine: CPU, MLX, BLAS, memory, disk, keys, packages, plugins, answer cache.

    Exits with 0 if a run would work, and with 1 if not; each problem is listed with its remedy.
    """
    from ..pipeline import doctor as examination
    from ..reporting import machine

    if base_url and not online:
        raise UsageError("--base-url is for --online", "Add --online.")
    report = examination.examine(lambda: plugins_of(ctx), online=online, base_url=base_url)
    show(report, as_json, machine.text)
    ctx.exit(0 if report["ok"] else 1)


for command in export.COMMANDS:
    cli.add_command(command)


# --------------------------------------------------------------------------------------------- looking around


cli.add_command(plugin_commands.plugins)


@cli.group()
def recipe() -> None:
    """Check a recipe, show it resolved, or print the schema of all recipes."""


@recipe.command()
@click.argument("name", metavar="RECIPE")
@recipe_option
@click.pass_context
def check(ctx: click.Context, name: str, overrides: tuple[str, ...]) -> None:
    """Say whether a recipe can be run. Spends nothing."""
    context = load_context(ctx, recipe_of(name, overrides))
    context.check()
    for error in context.cannot_be_asked():
        context.console.warn(f"{error.message}: only what it was asked before can be had. {error.hint}")
    click.echo(f"{context.recipe.file} is fine.")


@recipe.command("show")
@click.argument("name", metavar="RECIPE")
@recipe_option
def shown(name: str, overrides: tuple[str, ...]) -> None:
    """Print a recipe with everything that it inherits and every default."""
    click.echo(clean(recipe_of(name, overrides).to_toml()), nl=False)  # as TOML spells it, too


@recipe.command()
@click.pass_context
def schema(ctx: click.Context) -> None:
    """Print the JSON Schema of recipes, with the options of all plugins."""
    click.echo(json.dumps(plugins_of(ctx).schema(), indent=2))


cli.add_command(cache.cache)
cli.add_command(data.data)


@cli.command()
@click.argument("name", default="my_recipe")
def init(name: str) -> None:
    """Write a first recipe of your own, NAME.toml, in the current folder."""
    from ..recipe.recipe import starter

    path = Path(f"{name.removesuffix('.toml')}.toml")
    if path.exists():
        raise UsageError(f"{path} is there already", "Choose another name: distillkit init NAME")
    text = starter(path.stem)
    from ..core.files import write_text

    write_text(path, text)
    click.echo(f"Wrote {path}. Look at it, then: distillkit run {path}")


# --------------------------------------------------------------------------------------------- the program


_ROOM = "Make room there, then run the same command again: what is whole is kept."
_YOURS = "Set DISTILLKIT_HOME to a folder of yours, or name another."
_ELSEWHERE = "The disk fails. Copy what is there to another one; distillkit cache verify tells which answers are whole."
REMEDIES = {errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EFBIG: _ROOM, errno.EROFS: _YOURS, errno.EIO: _ELSEWHERE}


def main() -> None:
    """The program: every failure in a few lines, unless --debug asks for more."""
    debug = "--debug" in sys.argv
    broken = _add_plugin_commands()
    try:
        code = cli.main(standalone_mode=False)  # of `ctx.exit`; a closed pipe is click's, and ends the program
    except Elsewhere as error:
        _fail(f"error: {error.message}", error.exit_code, debug) if error.message else sys.exit(error.exit_code)
    except DistillkitError as error:
        _fail(f"error: {error}", error.exit_code, debug)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", 130, debug)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        next_ = f"\n  {REMEDIES[error.errno]}" if error.errno in REMEDIES else ""
        _fail(f"error: {where}{error.strerror or error}{next_}", 1, debug)
    except MemoryError:
        _fail("error: not enough memory\n  A smaller train.batch_size or student would fit.", 1, debug)
    except SystemExit as error:  # a command of a plugin's may leave the program, its other parts may not
        _fail(f"error: {told}", 1, debug) if (told := _blamed(error)) else sys.exit(error.code)
    except Exception as error:  # noqa: BLE001 - the last resort: a fault of ours is told in a line, too
        ours = f"{type(error).__name__}: {error}\n  This is a fault in distillkit or a plugin; --debug shows where."
        _fail(f"error: {_blamed(error) or ours}", 1, debug)
    for fault in broken:
        click.echo(clean(f"warning: the plugin {fault}"), err=True)
    sys.exit(code)


def _blamed(error: BaseException) -> str | None:
    """A fault that nobody foresaw, if it was in a plugin."""
    from ..plugins.manager import current

    origin = current().culprit(error)
    told = f"{type(error).__name__}: {error}"
    return f"the plugin {origin} failed: {told}\n  Tell its author; --debug shows where it was." if origin else None


def _add_plugin_commands() -> list[Any]:
    """Let plugins of the group `distillkit.commands` add theirs; looks before it loads anything heavy.

    Not where importing NumPy would end the process: a plugin may import it.
    """
    from importlib.metadata import entry_points

    if not entry_points(group="distillkit.commands") or cpu.missing():
        return []
    from ..plugins.manager import load_commands

    return load_commands(cli)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    clear_live_line()
    click.echo(clean(message), err=True)
    sys.exit(code)
