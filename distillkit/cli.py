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

from . import __version__, cache_commands
from .errors import DistillkitError, UsageError

if TYPE_CHECKING:
    from .assembly import Assembly
    from .plugins import Plugins
    from .recipe import Recipe
    from .runs import Run

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
    ctx.obj = {"plugins": plugins, "debug": debug, "assembly": lambda spec: _assembly(ctx, _load(spec, ()))}


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
        _begin(ctx, _assembly(ctx, _load(recipe, overrides)), stages)


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


@cli.command()
@click.argument("where", metavar="[RECIPE|RUN]", default="latest")
@recipe_option
@click.option("--batch", is_flag=True, help="In the provider's batches: half the price, within a day.")
@click.option("--wait", is_flag=True, help="Wait for batches until they are done.")
@yes_option
@click.pass_context
def label(ctx: click.Context, where: str, overrides: tuple[str, ...], batch: bool, wait: bool, yes: bool) -> None:
    """Ask the teacher: one stage of a run, or a new run up to it."""
    if wait and not batch:
        raise UsageError("--wait waits for batches", "Add --batch, or leave out --wait.")
    _stage(ctx, "label", where, overrides, in_batches=batch, waits=wait)


@cli.command()
@click.argument("where", metavar="[RECIPE|RUN]", default="latest")
@recipe_option
@yes_option
@click.pass_context
def train(ctx: click.Context, where: str, overrides: tuple[str, ...], yes: bool) -> None:
    """Train the student, from its last checkpoint if there is one."""
    _stage(ctx, "train", where, overrides)


def _stage(ctx: click.Context, stage: str, where: str, overrides: tuple[str, ...], **how: bool) -> None:
    """One stage of a run that is there, or a new run up to it. Batches are collected by the run that sent them off."""
    if _is_run(where) or (how.get("in_batches") and _was_stopped(where, overrides)):
        _go_on(ctx, where, overrides, (stage,), **how)
    else:
        _begin(ctx, _assembly(ctx, _load(where, overrides), **how), STAGES[: STAGES.index(stage) + 1])


def _was_stopped(where: str, overrides: tuple[str, ...]) -> bool:
    """Whether the newest run of a recipe stopped at a limit, to be gone on with."""
    from .runs import runs_of

    return any(run.info.get("status") == "stopped" for run in runs_of(_load(where, overrides).name)[-1:])


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
        _begin(ctx, _assembly(ctx, _load(where, overrides)), STAGES)


@cli.command()
@click.argument("where", metavar="[RUN]", default="latest")
@json_option
def report(where: str, as_json: bool) -> None:
    """Write the report of a run again, from what its folder holds."""
    from . import runs
    from .reporting import tables

    _show(tables.write(runs.find(where)), as_json, tables.text)


def _begin(ctx: click.Context, assembly: Assembly, stages: tuple[str, ...]) -> None:
    """A new run, from its first stage."""
    from . import pipeline
    from . import plan as planning

    assembly.voice.say(f"distillkit {__version__}: {assembly.recipe.name}")
    assembly.check()
    _writable()
    foreseen = planning.foresee(assembly)
    assembly.voice.say(planning.brief(foreseen))
    run = pipeline.begin(assembly, foreseen)
    assembly.voice.say(f"Run {run.name} in {run.path}")
    _finish(assembly, run, stages)


def _go_on(ctx: click.Context, where: str, overrides: tuple[str, ...], stages: tuple[str, ...], **how: bool) -> None:
    """The stages of a run that is there already, with its own recipe or a newer version of it."""
    from . import recipe as recipes
    from . import runs

    run = runs.find(where) if _is_run(where) else runs.newest(recipes.load(where, overrides).name)
    chosen = recipes.load(str(run.recipe) if _is_run(where) else where, overrides)
    assembly = _assembly(ctx, chosen, **how)
    _writable()
    assembly.voice.say(f"Run {run.name} in {run.path}")
    _finish(assembly, run, stages)


def _finish(assembly: Assembly, run: Run, stages: tuple[str, ...]) -> None:
    from .pipeline import Pipeline

    Pipeline(assembly, run).go(stages)
    if stages[-1] == "report":
        from .reporting import tables

        click.echo(tables.text(tables.build(run)))
        click.echo(f"The whole report: {run.path / 'report.html'}")
    else:
        assembly.voice.say(f"Done up to {stages[-1]}. Go on: distillkit run {run.path} --resume")


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
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.pass_context
def generate(
    ctx: click.Context,
    where: str,
    prompt: str | None,
    interactive: bool,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> None:
    """Let a student write. RUN may also be a checkpoint folder or a bundled student: tales-teacher."""
    if (prompt is None) != interactive:
        raise UsageError("generate needs --prompt TEXT or --interactive", 'For example --prompt "One day"')
    _plugins(ctx)
    from .student import Sampling, Trained

    student = Trained.load(where)
    sampling = Sampling(temperature, top_k, top_p)
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


cli.add_command(cache_commands.cache)


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


def _assembly(ctx: click.Context, recipe: Recipe, **how: bool) -> Assembly:
    """The parts of a recipe that has been checked, with what was said on the command line of how they work."""
    checked = _checked(ctx, recipe)
    from .assembly import Assembly
    from .plugins import current
    from .progress import voice
    from .student import blas

    speaker = voice()
    if warning := blas.load().warning:
        speaker.warn(warning)
    assembly = Assembly(checked, current(), speaker)
    vars(assembly).update(how)
    return assembly


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
