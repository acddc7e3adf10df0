"""Arguments in, messages out. What a command does is in the rooms; here is only how it is asked for.

Everything heavy is imported inside the command that needs it, so that `--help` is quick.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import __version__
from .errors import DistillkitError, Elsewhere, UsageError

if TYPE_CHECKING:
    from .assembly import Assembly
    from .plugins import Plugins
    from .recipe import Recipe
    from .runs import Run
    from .student.world import World

F = TypeVar("F", bound=Callable[..., Any])
STAGES = ("label", "train", "judge", "report")


class Commands(click.Group):
    """Commands in the order of a run, and those of plugins after them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were defined."""
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """A misspelt command names its nearest."""
        from .errors import did_you_mean

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
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


recipe_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key of the recipe: train.steps=10.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="For machines.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


# --------------------------------------------------------------------------------------------- one run


@cli.command()
@click.argument("recipe")
@recipe_option
@click.option("--until", type=click.Choice(STAGES), default="report", help="The last stage to run.")
@click.option("--resume", is_flag=True, help="Go on with the newest run of the recipe.")
@yes_option
@click.pass_context
def run(ctx: click.Context, recipe: str, overrides: tuple[str, ...], until: str, resume: bool, yes: bool) -> None:
    """Run a recipe: label, train, judge, report.

    With --resume, RECIPE may also be a run.
    """
    stages = STAGES[: STAGES.index(until) + 1]
    if resume:
        _go_on(ctx, recipe, overrides, stages)
    else:
        _begin(ctx, recipe, overrides, stages)


@cli.command()
@click.argument("recipe")
@recipe_option
@json_option
@click.pass_context
def plan(ctx: click.Context, recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Count what a run would ask, use and take. Spends nothing."""
    from . import plan as planning

    foreseen = planning.foresee(_assembly(ctx, _load(recipe, overrides)))
    _show(foreseen, as_json, planning.text)


def _stage_command(stage: str, about: str) -> None:
    @cli.command(name=stage, help=about)
    @click.argument("where", metavar="[RECIPE|RUN]", default="latest")
    @recipe_option
    @yes_option
    @click.pass_context
    def command(ctx: click.Context, where: str, overrides: tuple[str, ...], yes: bool) -> None:
        if _is_run(where):
            _go_on(ctx, where, overrides, (stage,))
        else:
            _begin(ctx, where, overrides, STAGES[: STAGES.index(stage) + 1])


_stage_command("label", "Ask the teacher: one stage of a run, or a new run up to it.")
_stage_command("train", "Train the student, from its last checkpoint if there is one.")


@cli.command()
@click.argument("where", metavar="[RECIPE|RUN]", default="latest")
@recipe_option
@click.option("--samples", type=click.IntRange(min=0), help="How many samples the student writes.")
@yes_option
@click.pass_context
def judge(ctx: click.Context, where: str, overrides: tuple[str, ...], samples: int | None, yes: bool) -> None:
    """Let the student write, grade it, and report."""
    if samples is not None:
        overrides = (*overrides, f"sampling.count={samples}")
    if _is_run(where):
        _go_on(ctx, where, overrides, ("judge", "report"))
    else:
        _begin(ctx, where, overrides, STAGES)


@cli.command()
@click.argument("where", metavar="[RUN]", default="latest")
@json_option
def report(where: str, as_json: bool) -> None:
    """Write the report of a run again, from what its folder holds."""
    from . import runs
    from .reporting import tables

    _show(tables.write(runs.find(where)), as_json, tables.text)


def _begin(ctx: click.Context, recipe: str, overrides: tuple[str, ...], stages: tuple[str, ...]) -> None:
    """A new run, from its first stage."""
    world = _world()
    with world.together():
        assembly = _assembly(ctx, _load(recipe, overrides), world)
    run = world.first(lambda: str(_new_run(assembly).path))
    _finish(assembly, run, stages, world)


def _new_run(assembly: Assembly) -> Run:
    """The folder of a new run, once it is sure that it can be run."""
    from . import pipeline
    from . import plan as planning

    assembly.voice.say(f"distillkit {__version__}: {assembly.recipe.name}")
    assembly.check()
    _writable()
    foreseen = planning.foresee(assembly)
    assembly.voice.say(planning.brief(foreseen))
    return pipeline.begin(assembly, foreseen)


def _go_on(ctx: click.Context, where: str, overrides: tuple[str, ...], stages: tuple[str, ...]) -> None:
    """The stages of a run that is there already, with its own recipe or a newer version of it."""
    world = _world()
    run, recipe = world.first(lambda: _former_run(where, overrides))
    with world.together():
        assembly = _assembly(ctx, _load(recipe, overrides), world)
    _finish(assembly, run, stages, world)


def _former_run(where: str, overrides: tuple[str, ...]) -> tuple[str, str]:
    """The folder of the run that is meant, and the recipe that it goes on with."""
    from . import runs

    run = runs.find(where) if _is_run(where) else runs.newest(_load(where, overrides).name)
    _writable()
    return str(run.path), str(run.recipe) if _is_run(where) else where


def _finish(assembly: Assembly, folder: str, stages: tuple[str, ...], world: World) -> None:
    from .pipeline import Pipeline
    from .runs import Run

    run = Run(Path(folder))
    assembly.voice.say(f"Run {run.name} in {run.path}")
    Pipeline(assembly, run, world).go(stages)
    if not world.writes:
        return
    if stages[-1] == "report":
        from .reporting import tables

        click.echo(tables.text(tables.build(run)))
        click.echo(f"The whole report: {run.path / 'report.html'}")
    else:
        assembly.voice.say(f"Done up to {stages[-1]}. Go on: distillkit run {run.path} --resume")


def _world() -> World:
    """The processes of this run: more than one under `mlx.launch` or MPI."""
    from .student import blas
    from .student.world import join

    blas.insist_on_mlx()
    return join()


# --------------------------------------------------------------------------------------------- looking at runs


@cli.command()
@click.argument("where", nargs=-1, required=True, metavar="RUN RUN...")
@json_option
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page as well.")
def compare(where: tuple[str, ...], as_json: bool, html: Path | None) -> None:
    """Compare runs with the first one: differences, their intervals, and what can be said."""
    from . import runs
    from .reporting import compare as comparing
    from .reporting import page, tables

    chosen = [runs.find(spec) for spec in where]
    comparison = comparing.compare(chosen)
    if html:
        from .files import write_text

        histories = {name: tables.history(run) for name, run in zip(comparison["runs"], chosen, strict=True)}
        write_text(html, page.compare_html(comparison, histories))
    _show(comparison, as_json, comparing.text)


@cli.command()
@json_option
def runs(as_json: bool) -> None:
    """List the runs."""
    from . import runs as folders
    from .reporting import tables

    _show(tables.listing(folders.every_run()), as_json, tables.listing_text)


@cli.command()
@click.argument("where", metavar="[RUN]", default="latest")
@click.option("--prompt", help="What to go on from.")
@click.option("--interactive", is_flag=True, help="Ask for prompts until an empty one.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.8, show_default=True)
@click.option("--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="0 leaves all in.")
@click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0, show_default=True)
@click.option("--min-p", type=click.FloatRange(min=0, max=1), default=0.0, show_default=True, help="0 leaves all in.")
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Above 1, what was written is less likely to come again.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.pass_context
def generate(
    ctx: click.Context,
    /,
    where: str,
    prompt: str | None,
    interactive: bool,
    max_tokens: int,
    seed: int,
    **how: Any,
) -> None:
    """Let a student write. RUN may also be a checkpoint folder or a bundled student: tales-teacher."""
    if (prompt is None) != interactive:
        raise UsageError("generate needs --prompt TEXT or --interactive", 'For example --prompt "One day"')
    _plugins(ctx)
    from .student import Sampling, Trained

    student = Trained.load(where)
    sampling = Sampling(**how)
    for text in [prompt] if prompt is not None else iter(_asked, ""):
        click.echo(text, nl=False)
        for piece in student.stream(text, seed, sampling, max_tokens):
            click.echo(piece, nl=False)
            sys.stdout.flush()
        click.echo()


def _asked() -> str:
    """The next prompt; the end of input is like an empty one."""
    try:
        return input("> ") if sys.stdin.isatty() else (sys.stdin.readline().rstrip("\n"))
    except EOFError:
        return ""


# --------------------------------------------------------------------------------------------- looking around


@cli.command()
@json_option
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """List what plugins offer, and which are broken."""
    found = _plugins(ctx)
    if as_json:
        click.echo(json.dumps(found.describe(), indent=2))
        return
    for row in found.describe():
        if row["status"] == "broken":
            click.echo(f"broken    {row['plugin']}: {row['reason']}")
            continue
        clash = "  (offered twice: unusable)" if row["status"] == "clash" else ""
        click.echo(f"{row['role']:<9} {row['name']:<18} {row['about']}{clash}")


@cli.group()
def recipe() -> None:
    """Check a recipe, show it resolved, or print the schema of all recipes."""


@recipe.command()
@click.argument("name", metavar="RECIPE")
@recipe_option
@click.pass_context
def check(ctx: click.Context, name: str, overrides: tuple[str, ...]) -> None:
    """Say whether a recipe can be run. Spends nothing."""
    assembly = _assembly(ctx, _load(name, overrides))
    assembly.check()
    click.echo(f"{assembly.recipe.file} is fine.")


@recipe.command()
@click.argument("name", metavar="RECIPE")
@recipe_option
def show(name: str, overrides: tuple[str, ...]) -> None:
    """Print a recipe with everything that it inherits and every default."""
    click.echo(_load(name, overrides).to_toml(), nl=False)


@recipe.command()
@click.pass_context
def schema(ctx: click.Context) -> None:
    """Print the JSON Schema of recipes, with the options of all plugins."""
    click.echo(json.dumps(_plugins(ctx).schema(), indent=2))


@cli.command()
@click.argument("name", default="my_recipe")
def init(name: str) -> None:
    """Write a first recipe of your own, NAME.toml, in the current folder."""
    from .recipe import starter

    path = Path(f"{name.removesuffix('.toml')}.toml")
    if path.exists():
        raise UsageError(f"{path} is there already", "Choose another name: distillkit init NAME")
    text = starter(path.stem)
    from .files import write_text

    write_text(path, text)
    click.echo(f"Wrote {path}. Look at it, then: distillkit run {path}")


# --------------------------------------------------------------------------------------------- helpers


def _load(spec: str, overrides: tuple[str, ...]) -> Recipe:
    from .recipe import load

    return load(spec, overrides)


def _plugins(ctx: click.Context, requirements: tuple[str, ...] = ()) -> Plugins:
    """All plugins, with a fast BLAS in place before any of them can import mlx."""
    from .plugins import Plugins
    from .student import blas

    blas.insist_on_mlx()
    return Plugins.load(ctx.obj["plugins"], requirements)


def _checked(ctx: click.Context, recipe: Recipe) -> Recipe:
    return _plugins(ctx, tuple(recipe.plugins)).check(recipe)


def _assembly(ctx: click.Context, recipe: Recipe, world: World | None = None) -> Assembly:
    """The parts of a recipe that has been checked. Of several processes one speaks."""
    checked = _checked(ctx, recipe)
    from .assembly import Assembly
    from .plugins import current
    from .progress import Voice, voice
    from .student import blas

    speaker = voice() if world is None or world.writes else Voice()
    if warning := blas.load().warning:
        speaker.warn(warning)
    return Assembly(checked, current(), speaker)


def _is_run(where: str) -> bool:
    """Whether a word means a run: `latest`, a folder of one, recipe/number, or a name that no recipe has."""
    from .recipe import bundled
    from .runs import Run, reports_folder, runs_of

    if where == "latest" or (Path(where) / "run.json").is_file():
        return True
    if "/" in where:
        return Run(reports_folder() / where).info != {}
    return not Path(where).exists() and where not in bundled() and bool(runs_of(where))


def _writable() -> None:
    """Refuse early when nothing can be kept."""
    from .runs import cache_folder, reports_folder

    for folder in (cache_folder(), reports_folder()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder} cannot be made: {error.strerror}", _ELSEWHERE) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"{folder} cannot be written to", _ELSEWHERE)


_ELSEWHERE = "Set DISTILLKIT_HOME to a folder of yours."


def _show(value: Any, as_json: bool, text: Callable[[Any], str]) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text(value))


def main() -> None:
    """The program: every failure in a few lines, unless --debug asks for more."""
    debug = "--debug" in sys.argv
    broken = _add_plugin_commands()
    try:
        cli.main(standalone_mode=False)
    except Elsewhere as error:
        _fail(f"error: {error.message}", error.exit_code, debug) if error.message else sys.exit(error.exit_code)
    except DistillkitError as error:
        _fail(f"error: {error}", error.exit_code, debug)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", 130, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"error: {where}{error.strerror or error}", 1, debug)
    except MemoryError:
        _fail("error: not enough memory\n  A smaller train.batch_size or student would fit.", 1, debug)
    except Exception as error:  # noqa: BLE001 - the last resort: a fault of ours is told in a line, too
        told = f"{type(error).__name__}: {error}"
        _fail(f"error: {told}\n  This is a fault in distillkit or a plugin; --debug shows where.", 1, debug)
    for fault in broken:
        click.echo(f"warning: the plugin {fault}", err=True)


def _add_plugin_commands() -> list[Any]:
    """Let plugins of the group `distillkit.commands` add theirs; looks before it loads anything heavy."""
    from importlib.metadata import entry_points

    if not entry_points(group="distillkit.commands"):
        return []
    from .plugins import load_commands

    return load_commands(cli)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)  # a progress line may stand there
    click.echo(message, err=True)
    sys.exit(code)
