"""The command line: the list of commands, the loading of plugins' commands, and error handling.

Each command is a file of this folder. To add one, write it and add it to `COMMANDS`. Heavy modules are imported inside
the function that needs them, so that `distillkit --help` is quick.
"""

from __future__ import annotations

import errno
import sys
from typing import Any

import click

from .. import __version__
from ..core import cpu
from ..core.console import clear_live_line
from ..core.errors import DistillkitError, PeerProcessError, UsageError
from ..core.text import printable
from . import (
    bench,
    cache,
    compare,
    data,
    doctor,
    export,
    generate,
    import_,
    init,
    judge,
    label,
    plan,
    plugins,
    recipe,
    report,
    run,
    runs,
    serve,
    train,
)


class Commands(click.Group):
    """A group that lists its commands in the order of `COMMANDS`, then those of plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which they were added."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> None:
        """Ignore what a command returns: only `ctx.exit` sets the exit code."""
        super().invoke(ctx)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Suggest the nearest name for an unknown command."""
        from ..core.errors import did_you_mean

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            cpu.require_supported()  # without it plugins' commands are not loaded, and this may be one
            raise UsageError(error.message.rstrip("."), did_you_mean(args[0], self.commands)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="distillkit")
@click.option("-p", "--plugin", "modules", multiple=True, metavar="FILE|MODULE", help="Load another plugin.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, modules: tuple[str, ...], debug: bool) -> None:
    """Distil a large language model into a small one, and measure what that was worth.

    RECIPE is a path or a bundled recipe's name. RUN is a folder, recipe/number, a recipe's name, or `latest`.
    """
    ctx.obj = {"plugins": modules, "debug": debug}
    if ctx.invoked_subcommand != "doctor":
        cpu.require_supported()


COMMANDS = (
    *(run.run, plan.plan, label.label, train.train, report.report, judge.judge, compare.compare, runs.runs),
    *(generate.generate, serve.serve, bench.bench, doctor.doctor, export.export, import_.import_),
    *(plugins.plugins, recipe.recipe, cache.cache, data.data, init.init),
)
for command in COMMANDS:
    cli.add_command(command)


# --------------------------------------------------------------------------------------------- the program


_ROOM = "Free some space there, then run the same command again: complete files are kept."
_YOURS = "Set DISTILLKIT_HOME to a folder that you can write to, or choose another."
_ELSEWHERE = "The disk may be failing. Copy the files to another one; distillkit cache verify finds damaged answers."
REMEDIES = {errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EFBIG: _ROOM, errno.EROFS: _YOURS, errno.EIO: _ELSEWHERE}


def main() -> None:
    """Run the program. Every error is printed in a few lines; --debug adds the traceback."""
    debug = "--debug" in sys.argv
    broken = _add_plugin_commands()
    try:
        code = cli.main(standalone_mode=False)  # of `ctx.exit`; a closed pipe is click's, and ends the program
    except PeerProcessError as error:
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
        _fail("error: not enough memory\n  Use a smaller train.batch_size or student.", 1, debug)
    except SystemExit as error:  # a plugin's command may exit the program, its other code may not
        _fail(f"error: {message}", 1, debug) if (message := _plugin_error(error)) else sys.exit(error.code)
    except Exception as error:  # noqa: BLE001 - the last resort: an unexpected error is printed in a few lines, too
        internal = (
            f"{type(error).__name__}: {error}\n  This is a bug in distillkit or a plugin; --debug shows the traceback."
        )
        _fail(f"error: {_plugin_error(error) or internal}", 1, debug)
    for fault in broken:
        click.echo(printable(f"warning: the plugin {fault}"), err=True)
    sys.exit(code)


def _plugin_error(error: BaseException) -> str | None:
    """The message for an unexpected error that was raised in a plugin's code, else None."""
    from ..plugins.manager import current_plugins

    origin = current_plugins().origin_of_error(error)
    message = f"{type(error).__name__}: {error}"
    return (
        f"the plugin {origin} failed: {message}\n  Report it to the plugin's author; --debug shows the traceback."
        if origin
        else None
    )


def _add_plugin_commands() -> list[Any]:
    """Let plugins of the entry-point group `distillkit.commands` add their commands. Without any, nothing is imported.

    Not on a CPU on which importing NumPy would crash the process: a plugin may import it.
    """
    from importlib.metadata import entry_points

    if not entry_points(group="distillkit.commands") or cpu.missing_features():
        return []
    from ..plugins.manager import load_commands

    return load_commands(cli)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    clear_live_line()
    click.echo(printable(message), err=True)
    sys.exit(code)
