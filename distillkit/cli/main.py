"""Arguments in, messages out. What a command does is in the rooms; here is only how it is asked for.

Everything heavy is imported inside the command that needs it, so that `--help` is quick.
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
@click.option("-p", "--plugin", "modules", multiple=True, metavar="FILE|MODULE", help="Load a plugin as well.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, modules: tuple[str, ...], debug: bool) -> None:
    """Teach a small language model from a big one, and see honestly what that was worth.

    RECIPE is a path or a bundled recipe's name. RUN is a folder, recipe/number, a recipe's name, or `latest`.
    """
    ctx.obj = {"plugins": modules, "debug": debug}
    if ctx.invoked_subcommand != "doctor":
        cpu.require_supported()


COMMANDS = (
    *(run.run, plan.plan, label.label, train.train, report.report, judge.judge, compare.compare, runs.runs),
    *(generate.generate, serve.serve, bench.bench, doctor.doctor, export.export, import_.bring),
    *(plugins.plugins, recipe.recipe, cache.cache, data.data, init.init),
)
for command in COMMANDS:
    cli.add_command(command)


# --------------------------------------------------------------------------------------------- the program


_ROOM = "Make room there, then run the same command again: what is whole is kept."
_YOURS = "Set DISTILLKIT_HOME to a folder that you can write to, or name another."
_ELSEWHERE = "The disk fails. Copy what is there to another one; distillkit cache verify tells which answers are whole."
REMEDIES = {errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EFBIG: _ROOM, errno.EROFS: _YOURS, errno.EIO: _ELSEWHERE}


def main() -> None:
    """The program: every failure in a few lines, unless --debug asks for more."""
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
        _fail("error: not enough memory\n  A smaller train.batch_size or student would fit.", 1, debug)
    except SystemExit as error:  # a command of a plugin's may leave the program, its other parts may not
        _fail(f"error: {told}", 1, debug) if (told := _blamed(error)) else sys.exit(error.code)
    except Exception as error:  # noqa: BLE001 - the last resort: a fault of ours is told in a line, too
        ours = f"{type(error).__name__}: {error}\n  This is a fault in distillkit or a plugin; --debug shows where."
        _fail(f"error: {_blamed(error) or ours}", 1, debug)
    for fault in broken:
        click.echo(printable(f"warning: the plugin {fault}"), err=True)
    sys.exit(code)


def _blamed(error: BaseException) -> str | None:
    """A fault that nobody foresaw, if it was in a plugin."""
    from ..plugins.manager import current_plugins

    origin = current_plugins().origin_of_error(error)
    told = f"{type(error).__name__}: {error}"
    return f"the plugin {origin} failed: {told}\n  Tell its author; --debug shows where it was." if origin else None


def _add_plugin_commands() -> list[Any]:
    """Let plugins of the group `distillkit.commands` add theirs; looks before it loads anything heavy.

    Not where importing NumPy would end the process: a plugin may import it.
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
