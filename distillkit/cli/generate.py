"""`distillkit generate`: let a student write, once, in bulk, or in turns.

In interactive mode the whole conversation is the prompt, as plain text: a student does not chat.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import click

from ..core.errors import UsageError
from ..core.text import printable
from .common import device_option, load_plugins, warn_of_slow_blas

if TYPE_CHECKING:
    from ..student import Sampling, Trained


@click.command()
@click.argument("where", metavar="[RUN]", default="latest")
@click.option("--prompt", help="Text to continue.")
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of prompts: one per line, or a string or {prompt} per line in .jsonl.",
)
@click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Texts per prompt.")
@click.option("--to", type=click.Path(dir_okay=False, path_type=Path), help="New file for JSON lines.")
@click.option(
    "--interactive",
    is_flag=True,
    help="Ask for prompts; earlier text stays in the context. /new clears it, Ctrl-D quits.",
)
@click.option("--max-tokens", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.8, show_default=True)
@click.option("--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="0 turns this off.")
@click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0, show_default=True)
@click.option("--min-p", type=click.FloatRange(min=0, max=1), default=0.0, show_default=True, help="0 turns this off.")
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Above 1, tokens that were written become less likely.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@device_option
@click.pass_context
def generate(
    ctx: click.Context,
    /,
    where: str,
    prompt: str | None,
    prompts: Path | None,
    samples: int,
    to: Path | None,
    interactive: bool,
    max_tokens: int,
    seed: int,
    **sampling_options: Any,
) -> None:
    """Generate text with a student. RUN may also be a checkpoint folder or a bundled student: tales-teacher.

    The continuation of one --prompt is printed as it is generated. With --prompts, --samples or --to, many texts are
    generated at once and printed as JSON lines with prompt, completion, finish and seed. --prompt with that --seed
    generates the same text again.
    """
    if (prompt is not None) + (prompts is not None) + interactive != 1:
        raise UsageError("generate needs one of --prompt TEXT, --prompts FILE, --interactive", 'Try --prompt "One day"')
    as_lines = prompts is not None or samples > 1 or to is not None
    if interactive and as_lines:
        raise UsageError("--interactive generates one text at a time, on the screen", "Leave out --samples and --to.")
    texts = [prompt or ""] if prompts is None else _prompts(prompts)
    load_plugins(ctx)
    warn_of_slow_blas()
    from ..student import Sampling, Trained

    sampling, student = Sampling(**sampling_options), Trained.load(where)
    if as_lines:
        with _open_output(to) as out:
            rows = _rows(texts, samples, seed, seed_from_id=prompts is not None)
            _write_lines(student, rows, sampling, max_tokens, out)
    elif prompt is not None:
        click.echo(prompt, nl=False)
        for _ in _stream(student, prompt, seed, sampling, max_tokens):
            pass
        click.echo()
    else:
        _run_interactive(student, seed, sampling, max_tokens)


# ------------------------------------------------------------------------------------------------ JSON lines


def _prompts(file: Path) -> list[str]:
    """The prompts of a file. Chat messages are joined, since a student does not chat."""
    from ..teachers.asking import prompts

    found = prompts.read_prompts(file, 0)
    return [said if isinstance(said, str) else "\n".join(turn["content"] for turn in said) for said in found]


@contextmanager
def _open_output(file: Path | None) -> Iterator[IO[str]]:
    """The output for JSON lines: a new file, or standard output."""
    if file is None:
        yield sys.stdout
        return
    try:
        out = file.open("x", encoding="utf-8")
    except FileExistsError:
        raise UsageError(f"{file} already exists", "Choose another file, or move it away.") from None
    with out:
        yield out


class Row(NamedTuple):
    """One text to generate."""

    id: str
    prompt: str
    seed: int


def _rows(prompts: list[str], samples: int, seed: int, *, seed_from_id: bool) -> list[Row]:
    """One row per sample. For a file, the seed depends on the row's id, so prompts and samples can be added."""
    from ..judging.sampling import derive_seed

    rows = [(f"{i}#{sample}", prompt, sample) for i, prompt in enumerate(prompts) for sample in range(samples)]
    return [Row(name, prompt, derive_seed(seed, name) if seed_from_id else seed + i) for name, prompt, i in rows]


def _write_lines(student: Trained, rows: list[Row], sampling: Sampling, max_tokens: int, out: IO[str]) -> None:
    """Write one line per sample, in the order of the prompts."""
    texts = student.write([row.prompt for row in rows], [row.seed for row in rows], sampling, max_tokens)
    for row, text in zip(rows, texts, strict=True):
        written = {"completion": text.text, "tokens": text.tokens, "finish": text.finish}
        out.write(json.dumps({**row._asdict(), **written}, ensure_ascii=False) + "\n")
        out.flush()


# ------------------------------------------------------------------------------------------ one after another


def _stream(student: Trained, text: str, seed: int, sampling: Sampling, max_tokens: int) -> Iterator[str]:
    """Print the continuation piece by piece."""
    for piece in student.stream(text, seed, sampling, max_tokens):
        click.echo(printable(piece) if sys.stdout.isatty() else piece, nl=False)  # a file gets the exact text
        sys.stdout.flush()
        yield piece


def _run_interactive(student: Trained, seed: int, sampling: Sampling, max_tokens: int) -> None:
    """Generate text after text, each after all earlier text. Ctrl-C stops one; its beginning stays in the context."""
    if sys.stdin.isatty():
        click.echo("An empty line continues, /new clears the context, Ctrl-C stops a text, Ctrl-D quits.", err=True)
    history, turns = History(), count(seed)
    while (line := _read_line()) is not None:
        if line == "/new":
            history.clear()
        else:
            history.turn(student, line, next(turns), sampling, max_tokens)


class History:
    """The text so far."""

    def __init__(self) -> None:
        self.text = ""

    def clear(self) -> None:
        """Clear the text."""
        self.text = ""

    def turn(self, student: Trained, line: str, seed: int, sampling: Sampling, max_tokens: int) -> None:
        """Add a line and the student's continuation. With an empty line, the student continues its last text."""
        self.text += "\n" if self.text and line else ""
        self.text += line
        click.echo(line, nl=False)
        try:
            for piece in _stream(student, self.text, seed, sampling, max_tokens):
                self.text += piece
        except KeyboardInterrupt:
            click.echo(" ...", nl=False)
        click.echo()
        sys.stdout.flush()


def _read_line() -> str | None:
    """The next input line, or None at the end of input. At a terminal, Ctrl-C clears the line that is being typed."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    while True:
        try:
            return input("> ")
        except KeyboardInterrupt:
            click.echo("\n(Ctrl-D quits)", err=True)
        except EOFError:
            click.echo()
            return None
